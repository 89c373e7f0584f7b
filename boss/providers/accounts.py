"""Accounts that workers of this machine run under, so that their tasks cannot read the boss's secrets.

Checks the conditions: the boss is root, the account is not, and the account can read Python, the code and the
datastore.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

from datastore.port import STAGING
from datastore.problem import Problem
from ecloud.config.datastore_address import is_ssh
from ecloud.config.settings import ROOT, PoolSettings

KEPT_VARIABLES = ("PATH", "LANG", "LANGUAGE", "TZ", "PYTHONPATH", "SSL_CERT_FILE")
"""The variables that a worker gets from the boss's environment, besides those that begin with LC_: others may hold
secrets."""
CHECK_S = 60.0
CHECK = """
import sys, tempfile
import worker.shell.runtime
for path in sys.argv[1:]:
    tempfile.TemporaryFile(dir=path).close()
"""


class Account(msgspec.Struct, frozen=True):
    """An account of this machine. `groups`: all groups of which it is a member."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    @property
    def environment(self) -> dict[str, str]:
        """The part of the boss's environment that this account's processes get."""
        kept = {name: value for name, value in os.environ.items() if name in KEPT_VARIABLES or name.startswith("LC_")}
        return {**kept, "HOME": self.home, "USER": self.name, "LOGNAME": self.name}


def account_of(pool: PoolSettings) -> Account | None:
    """Return the account of a pool's workers; None if they run under the boss's. Raises `Problem`."""
    if not pool.run_as:
        return None
    what = f"pool {pool.name}: run_as = {pool.run_as!r}"
    try:
        entry = pwd.getpwnam(pool.run_as)
    except KeyError:
        raise Problem(f"{what}: this machine has no such account", f"useradd --system {pool.run_as}") from None
    if os.geteuid() == entry.pw_uid:
        raise Problem(f"{what} is the account of the boss, whose secrets its tasks could read", "name another one")
    if os.geteuid() != 0:
        raise Problem(f"{what} needs a boss that runs as root", "start the boss as root, or leave run_as out")
    groups = tuple(os.getgrouplist(pool.run_as, entry.pw_gid))
    return Account(pool.run_as, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)


def open_staging(accounts: Iterable[Account], address: str) -> None:
    """Let workers of these accounts stage results in a datastore that is a directory of this machine. They cannot
    change what others staged. Raises `Problem` if an account cannot work at all."""
    staging = ""
    for account in {account.name: account for account in accounts}.values():
        if not staging and not is_ssh(address):
            staging = f"{address.removeprefix('dir:')}/{STAGING}"
            try:
                os.chmod(staging, 0o1777)
            except OSError as error:
                remedy = "set DATASTORE to a directory owned by root, or use one over SSH (set_datastore)"
                raise Problem(f"{staging} cannot be opened to {account.name}: {error.strerror}", remedy) from None
        _require_usable(account, staging)


def _require_usable(account: Account, staging: str) -> None:
    what = f"workers cannot run as {account.name}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHECK, *([staging] if staging else [])],
            cwd="/",
            env={**account.environment, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
            user=account.uid,
            group=account.gid,
            extra_groups=account.groups,
            capture_output=True,
            text=True,
            timeout=CHECK_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        remedy = f"install Python and ECLOUD where {account.name} can read them, e.g. below /opt"
        raise Problem(f"{what}: {sys.executable} cannot be started: {error}", remedy) from None
    if done.returncode == 0:
        return
    said = (done.stderr.strip().splitlines() or ["no output"])[-1]
    if staging and staging in said:
        raise Problem(
            f"{what}: it cannot enter the datastore {Path(staging).parent.parent}: {said}",
            f"set DATASTORE to a directory whose parents {account.name} may enter, outside the boss's HOME",
        )
    raise Problem(f"{what}: {said}", f"install ECLOUD where {account.name} can read it, e.g. below /opt")


def private_place(top: Path, name: str) -> Path:
    """Return a directory `top/name` that only root can change and everyone can enter. Raises `OSError`."""
    place = top / name
    place.mkdir(mode=0o711, parents=True, exist_ok=True)
    for directory in (top, place):
        info = directory.lstat()
        if directory.is_symlink() or info.st_uid != os.geteuid() or info.st_mode & 0o022:
            raise PermissionError(1, "it belongs to another account, or others may write there", str(directory))
        directory.chmod(0o711)
    return place
