"""Findings of `doctor` on access to data: the connection to the database, and the account that tasks run under."""

from __future__ import annotations

import getpass
import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from ecloud.cli.request import LOOPBACK
from ecloud.config.settings import Settings, settings_path

USE_TLS = "add ?ssl_ca=/path/to/ca.pem to DATABASE_URL (docs/production.md)"


def database_encryption(connection: sa.Connection) -> tuple[str, str]:
    """Check whether the connection to a database server is encrypted and the server's identity verified. Returns the
    finding, and the remedy or an empty text."""
    url = connection.engine.url
    host = str(url.query.get("unix_socket") or url.host or "localhost")
    if host in LOOPBACK or host.startswith("/"):
        return "the connection does not leave this machine", ""
    row = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Ssl_cipher'").first()
    cipher = str(row[1]) if row is not None else ""
    if not cipher:
        return f"the connection to {host} is not encrypted", USE_TLS
    if "ssl_ca" not in url.query:
        return f"the connection to {host} is encrypted ({cipher}), but its certificate is not verified", USE_TLS
    return f"the connection to {host} is encrypted ({cipher}) and its certificate verified", ""


def task_accounts(settings: Settings) -> Iterator[tuple[str, str]]:
    """Check under which accounts tasks of this machine's pools run, and what these can read here. Yields findings, each
    with a remedy or an empty text; nothing without such pools."""
    pools = [pool for pool in settings.all_pools if pool.cloud == "local"]
    if any(not pool.run_as for pool in pools):
        name = "root" if os.geteuid() == 0 else getpass.getuser()
        yield (
            f"tasks of pools on this machine run as {name}, like the boss, and can read its secrets: "
            "allow pushes only to users that may have admin.py, or set run_as (docs/production.md)",
            "",
        )
    for name in sorted({pool.run_as for pool in pools if pool.run_as}):
        yield _other_account(settings, name)


def _other_account(settings: Settings, name: str) -> tuple[str, str]:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return f"run_as = {name!r}: this machine has no such account", f"useradd --system {name}"
    if os.geteuid() != 0:
        return f"tasks of pools with run_as run as {name}; whether it can read secrets only root can tell", ""
    home = settings.home_directory
    secret = [settings_path(), home.client_access, home.cluster_key, home.database, home.log]
    open_ = [str(path) for path in secret if _reads(entry, path)]
    if open_:
        return f"tasks of pools with run_as run as {name}, which can read {', '.join(open_)}", "chmod go= for each"
    return f"tasks of pools with run_as run as {name}, which cannot read the boss's secrets", ""


def _reads(entry: pwd.struct_passwd, path: Path) -> bool:
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    command = ["test", "-r", str(path)]
    done = subprocess.run(command, cwd="/", user=entry.pw_uid, group=entry.pw_gid, extra_groups=groups)
    return done.returncode == 0
