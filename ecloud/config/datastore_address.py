"""From an address to a datastore that can be asked with the boss's own key: a directory, or a machine over SSH."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from datastore.directory import DirectoryDatastore
from datastore.keys import Authority, make_key, write_known_hosts
from datastore.port import DatastoreAway, Publisher
from datastore.sftp import WORKERS_COMMAND, SftpDatastore
from datastore.ssh.datastore import ALIAS, STALL_S, Access, Carry, SshAddress, SshDatastore, by_process, gate_command
from ecloud.config.home import Home

NOTES = ("datastore_address", "datastore_host_key", "datastore_python", "datastore_gate")
"""In the context: where files are; over SSH the pinned host key, its Python and the gate that this runs."""


def is_ssh(address: str) -> bool:
    """Whether `user@host[:port]:/root` is meant, not a directory."""
    return not address.startswith(("dir:", "/", "~", ".")) and "@" in address


def directory_of(address: str) -> Path:
    """The directory that an address names."""
    return Path(address.removeprefix("dir:")).expanduser()


def is_by_sftp(address: str, gate: str) -> bool:
    """Whether it is over SSH and has no gate, as there is no python3."""
    return is_ssh(address) and not gate


def way_of(notes: Mapping[str, str]) -> str:
    """How files get to a datastore over SSH, as a person is told it."""
    if notes.get("datastore_gate"):
        return "its gate"
    return "SFTP, as there is no python3: slower, and a worker may do what its account may (docs/data.md)"


def workers_command(address: str, python: str, gate: str, worker: str, until_s: float | None = None) -> str:
    """What a worker's certificate starts there, and nothing else. `until_s`: when a gate ends, in epoch seconds of the
    datastore's clock."""
    if is_by_sftp(address, gate):
        return WORKERS_COMMAND
    return gate_command(python, gate, SshAddress.parse(address).root, worker, until_s)


def open_publisher(
    home: Home,
    address: str,
    host_key: str = "",
    python: str = "",
    gate: str = "",
    *,
    stall_s: float = STALL_S,
    carry: Carry = by_process,
) -> Publisher:
    """The datastore, for reading, staging and publishing; `carry`: what the bytes of one over SSH go through.

    Raises `DatastoreAway`; one over SSH connects when asked.
    """
    if not is_ssh(address):
        return DirectoryDatastore(directory_of(address)).make()
    if not host_key:
        raise DatastoreAway(f"the datastore {address} is not set up: python admin.py set_datastore {address}")
    try:
        parsed = SshAddress.parse(address)
    except ValueError as error:
        raise DatastoreAway(str(error)) from None
    known_hosts = home.secrets / "datastore.known_hosts"
    write_known_hosts(known_hosts, ALIAS, host_key)
    if is_by_sftp(address, gate):
        return SftpDatastore(parsed, Access(boss_key(home), known_hosts), stall_s=stall_s, carry=carry)
    command = gate_command(python, gate, parsed.root)
    access = Access(boss_key(home), known_hosts, gate=command)
    return SshDatastore(parsed, access, stall_s=stall_s, carry=carry)


def boss_key(home: Home) -> Path:
    """The key by which the boss reaches the datastore, made at the first call. Raises `KeyToolFailed`."""
    path = home.secrets / "datastore.key"
    make_key(path, "ecloud-boss")
    return path


def authority(home: Home, cluster_id: str) -> Authority:
    """What signs the workers' keys. Raises `KeyToolFailed`."""
    return Authority.make(home.secrets / "datastore.authority", cluster_id)
