"""`admin.py set_datastore`: where files are kept from now on. Over SSH it pins the host key and puts the gate there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from datastore.keys import KeyToolFailed, fingerprint, make_key, public_line, read_host_key, write_known_hosts
from datastore.port import DatastoreAway
from datastore.sftp import SftpDatastore
from datastore.ssh import installing
from datastore.ssh.datastore import ALIAS, Access, SshAddress, SshDatastore
from ecloud.cli import app, request
from ecloud.cli.app import Fault
from ecloud.config.datastore_address import authority, boss_key, directory_of, is_ssh, open_publisher, workers_command
from ecloud.config.home import Home
from ecloud.config.settings import Settings, load_settings
from ecloud.queries import status

INSTALL_S = 60
PROBE_S = 10.0
PROBE_LIVES_S = 120.0


def set_datastore(address: str, new_host_key: bool, as_json: bool) -> int:
    """Set up what is at `address` and tell the boss. `new_host_key`: a key other than the pinned one is believed.

    Raises `Fault`, `DatastoreAway`, `RequestRefused`.
    """
    settings = load_settings()
    if settings.datastore:
        raise Fault(f"DATASTORE = {settings.datastore!r} in the settings goes before: take it out first")
    if not is_ssh(address):
        if not address.strip():
            raise Fault("set_datastore where? A directory, or user@host:/root")
        address = f"dir:{os.path.abspath(directory_of(address))}"
        open_publisher(settings.home_directory, address)
        return request.ask("set_datastore", as_json, address=address)
    try:
        parsed = SshAddress.parse(address)
    except ValueError as error:
        raise Fault(str(error)) from None
    context = status.context(app.database(settings))
    try:
        return _set_up(settings, parsed, context, new_host_key, as_json)
    except KeyToolFailed as error:
        raise Fault(str(error), app.PART_AWAY) from None


def _set_up(settings: Settings, address: SshAddress, context: dict[str, str], new_host_key: bool, as_json: bool) -> int:
    home = settings.home_directory
    key = boss_key(home)
    host_key = read_host_key(address.host, address.port)
    pinned = context.get("datastore_host_key", "")
    if context.get("datastore_address") == str(address) and pinned not in ("", host_key) and not new_host_key:
        shown, known = fingerprint(host_key), fingerprint(pinned)
        raise Fault(
            [
                f"REFUSED: {address.host} shows the host key {shown}, but {known} was pinned",
                "somebody may be in between, or it was installed anew; if you know why: --new_host_key",
            ],
            app.PART_AWAY,
        )
    print(f"{address.host} shows the host key {fingerprint(host_key)}, which is pinned", file=sys.stderr)
    line = authority(home, context["cluster_id"]).authorized_line()
    try:
        installed = installing.install(address, key, host_key, line)
    except DatastoreAway as error:
        if "authorise" not in str(error) or not _authorise(address, public_line(key)):
            raise Fault([str(error), *_how_to(address, public_line(key), error)], app.PART_AWAY) from None
        installed = installing.install(address, key, host_key, line)
    if not installed.gate:
        for warning in by_sftp(address, installed.has_shell):
            print(warning, file=sys.stderr)
    if not _lets_workers_in(home, context["cluster_id"], address, host_key, installed):
        raise Fault(
            [
                f"{address.host} lets no worker in: its sshd does not read the line below in ~/.ssh/authorized_keys",
                f"add it to the file that AuthorizedKeysFile of its sshd_config names for {address.user}:",
                line,
            ],
            app.PART_AWAY,
        )
    return request.ask(
        "set_datastore",
        as_json,
        address=str(address),
        host_key=host_key,
        python=installed.python,
        gate=installed.gate,
    )


def _lets_workers_in(
    home: Home, cluster_id: str, address: SshAddress, host_key: str, installed: installing.Installed
) -> bool:
    """Whether a certificate such as workers get opens it."""
    with tempfile.TemporaryDirectory(prefix="ecloud-") as directory:
        place = Path(directory)
        command = workers_command(str(address), installed.python, installed.gate, "probe")
        certificate = place / "certificate.pub"
        public = make_key(place / "key", "probe")
        certificate.write_text(authority(home, cluster_id).sign(public, "probe", command, PROBE_LIVES_S) + "\n")
        write_known_hosts(place / "known_hosts", ALIAS, host_key)
        access = Access(place / "key", place / "known_hosts", certificate)
        kind = SshDatastore if installed.gate else SftpDatastore
        datastore = kind(address, access, patience_s=PROBE_S)
        try:
            datastore.hello()
        except DatastoreAway:
            return False
        finally:
            datastore.close()
        return True


def by_sftp(address: SshAddress, has_shell: bool = True) -> list[str]:
    """What a person should know of a datastore that has no gate."""
    why = "has no python3 of 3.6 or newer for the gate" if has_shell else f"gives {address.user} no shell for the gate"
    return [
        f"{address.host} {why}: files go by SFTP, which is slower",
        f"WARNING: by SFTP a worker may do with files there whatever {address.user} may: use an account that can write"
        f" nothing but {address.root}, or install python3 and say this again (docs/data.md)",
    ]


def _how_to(address: SshAddress, line: str, error: DatastoreAway) -> list[str]:
    if "authorise" not in str(error):
        return []
    return [f"the line for ~/.ssh/authorized_keys of {address.user}@{address.host}:", line]


def _authorise(address: SshAddress, line: str) -> bool:
    """Add the boss's key by the user's own ssh, where that gets in without a question; whether it did."""
    script = 'umask 077; mkdir -p "$HOME/.ssh" && cat >> "$HOME/.ssh/authorized_keys"'
    command = ["ssh", "-o", "BatchMode=yes", "-p", str(address.port), "-l", address.user, "--", address.host, script]
    try:
        done = subprocess.run(command, input=line.encode() + b"\n", capture_output=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
