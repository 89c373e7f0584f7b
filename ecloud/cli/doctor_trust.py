"""Findings of `doctor` on who could read what: the way to the database, and the account that tasks run under."""

from __future__ import annotations

import getpass
import os

import sqlalchemy as sa

from ecloud.cli.request import LOOPBACK
from ecloud.config.settings import Settings

USE_TLS = "add ?ssl_ca=/path/to/ca.pem to DATABASE_URL (docs/production.md)"


def database_encryption(connection: sa.Connection) -> tuple[str, str]:
    """Whether the connection to a database server is encrypted and the server known: what was found, and the remedy or
    an empty text."""
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


def task_account(settings: Settings) -> str:
    """Under which account tasks of pools on this machine run, and what they can read there; empty without such
    pools."""
    if not any(pool.cloud in ("", "local") for pool in settings.all_pools):
        return ""
    name = "root" if os.geteuid() == 0 else getpass.getuser()
    return (
        f"tasks of pools on this machine run as {name}, like the boss, and can read its secrets: "
        "let only people push whom you would give admin.py; others' tasks belong on other machines"
    )
