"""`admin.py set_datastore`: sets the datastore. Over SSH, pins the host key and installs the gate there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from datastore.keys import fingerprint, make_key, public_line, read_host_key, write_known_hosts
from datastore.port import AccessRefused, DatastoreAway
from datastore.problem import PART_AWAY, Problem
from datastore.ssh import installing
from datastore.ssh.access import ALIAS, Access, SshAddress, gate_command
from datastore.ssh.datastore import SshDatastore
from ecloud.cli import app, request
from ecloud.config.datastore_address import authority, boss_key, directory_of, is_ssh, open_publisher
from ecloud.config.home import Home
from ecloud.config.settings import Settings, load_settings
from ecloud.queries import status

INSTALL_S = 60
PROBE_S = 10.0
PROBE_LIVES_S = 120.0
KEYS_FILE = f"~/{installing.AUTHORIZED_KEYS}"


def set_datastore(address: str, new_host_key: bool, own_account: bool, as_json: bool) -> int:
    """Set up the datastore at `address` and send the address to the boss. `new_host_key`: accept a key other than the
    pinned one; `own_account`: the address is the current account on this machine, whose files are accessible directly.

    Raises `Problem`, `DatastoreAway`, `RequestRefused`.
    """
    settings = load_settings()
    if settings.datastore:
        raise Problem(f"DATASTORE = {settings.datastore!r} in the settings takes precedence: remove it there first")
    if not is_ssh(address):
        if not address.strip():
            raise Problem("set_datastore where? A directory, or user@host:/root")
        address = f"dir:{os.path.abspath(directory_of(address))}"
        open_publisher(settings.home_directory, address)
        return request.ask("set_datastore", as_json, address=address)
    try:
        parsed = SshAddress.parse(address)
    except ValueError as error:
        raise Problem(str(error)) from None
    context = status.context(app.database(settings))
    return _set_up(settings, parsed, context, new_host_key, own_account, as_json)


def _set_up(
    settings: Settings,
    address: SshAddress,
    context: dict[str, str],
    new_host_key: bool,
    own_account: bool,
    as_json: bool,
) -> int:
    home = settings.home_directory
    host_key = read_host_key(address.host, address.port)
    _compare_host_key(address, context, host_key, new_host_key)
    _say(f"{address.host} shows the host key {fingerprint(host_key)}, which is pinned")
    lines = _Lines(address, public_line(boss_key(home)), authority(home, context["cluster_id"]).authorized_line())
    installed = _install(home, lines, host_key, own_account)
    if not _accepts_workers(home, context["cluster_id"], address, host_key, installed):
        if installed.wrote_line:
            installing.take_back(address, boss_key(home), host_key, lines.workers)
        raise lines.refused("accepts no worker's certificate", installed.wrote_line)
    return request.ask(
        "set_datastore",
        as_json,
        address=str(address),
        host_key=host_key,
        python=installed.python,
        gate=installed.gate,
    )


def _compare_host_key(address: SshAddress, context: dict[str, str], host_key: str, new_host_key: bool) -> None:
    pinned = context.get("datastore_host_key", "")
    if context.get("datastore_address") == str(address) and pinned not in ("", host_key) and not new_host_key:
        shown, known = fingerprint(host_key), fingerprint(pinned)
        raise Problem(
            [
                f"REFUSED: {address.host} shows the host key {shown}, but {known} was pinned",
                "the connection may be intercepted, or the host was reinstalled; if you know why: --new_host_key",
            ],
            exit_code=PART_AWAY,
        )


class _Lines:
    """The two lines that the account's `authorized_keys` needs: `boss` allows a shell for the boss, `workers` accepts
    certificates of this cluster's authority, each for the gate only."""

    def __init__(self, address: SshAddress, boss: str, workers: str) -> None:
        self.address = address
        self.boss = boss
        self.workers = workers

    def refused(self, problem: str, took_back: bool) -> Problem:
        """Print commands for an account whose sshd rejects one or both keys, to be pasted there; return the error."""
        user = self.address.user
        text = f"{user}@{self.address.host} {problem}"
        if took_back:
            text += f"; what was written into {KEYS_FILE} there did not help and was removed again"
        _say(f"mkdir -p -m 700 ~/.ssh && cat >> {KEYS_FILE} <<'END'\n{self.boss}\n{self.workers}\nEND")
        return Problem(
            [
                text,
                f"run the lines above there as {user} (the first key is the boss's, the second accepts workers by"
                " certificates for the gate alone), then set_datastore again",
                f"where AuthorizedKeysFile in its sshd_config names another file for {user}, both keys belong into that"
                " one",
            ],
            exit_code=PART_AWAY,
        )


def _install(home: Home, lines: _Lines, host_key: str, own_account: bool) -> installing.Installed:
    """Install the gate and write the lines. Raises `Problem`, `CannotServe`, `DatastoreAway`."""
    key, address = boss_key(home), lines.address
    account = f"{address.user}@{address.host}"
    try:
        installed = installing.install(address, key, host_key, lines.workers)
    except AccessRefused:
        wrote = _by_own_ssh(address, installing.adding(lines.boss), own_account)
        if wrote is None:
            raise lines.refused("does not accept the boss's key", False) from None
        try:
            installed = installing.install(address, key, host_key, lines.workers)
        except AccessRefused:
            took_back = wrote == installing.ADDED and (
                _by_own_ssh(address, installing.removing(lines.boss), own_account) is not None
            )
            raise lines.refused("does not accept the boss's key", took_back) from None
        if wrote == installing.ADDED:
            _say(f"wrote into {KEYS_FILE} of {account}, for the boss: {lines.boss}")
    if installed.wrote_line:
        _say(f"wrote into {KEYS_FILE} of {account}, for workers' certificates: {lines.workers}")
    return installed


def _accepts_workers(
    home: Home, cluster_id: str, address: SshAddress, host_key: str, installed: installing.Installed
) -> bool:
    """Whether sshd accepts a certificate like those of workers for the gate."""
    with tempfile.TemporaryDirectory(prefix="ecloud-") as directory:
        place = Path(directory)
        command = gate_command(installed.python, installed.gate, address.root, "worker", "probe")
        certificate = place / "certificate.pub"
        public = make_key(place / "key", "probe")
        certificate.write_text(authority(home, cluster_id).sign(public, "probe", command, PROBE_LIVES_S) + "\n")
        write_known_hosts(place / "known_hosts", ALIAS, host_key)
        access = Access(place / "key", place / "known_hosts", certificate)
        datastore = SshDatastore(address, access, patience_s=PROBE_S)
        try:
            datastore.hello()
        except DatastoreAway:
            return False
        finally:
            datastore.close()
        return True


def _by_own_ssh(address: SshAddress, script: str, own_account: bool) -> str | None:
    """Run a script there with the user's own ssh, or in a local shell if it is the same account; returns its output.
    Returns None if it fails, or if ssh would have to ask the user."""
    command = ["ssh", "-o", "BatchMode=yes", "-p", str(address.port), "-l", address.user, "--", address.host, "sh -s"]
    if own_account:
        command = ["sh", "-s"]
    try:
        done = subprocess.run(command, input=script.encode(), capture_output=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None


def _say(text: str) -> None:
    print(text, file=sys.stderr)
