"""From an address to a datastore that can be asked with the boss's own key: a directory, or a machine over SSH."""

from __future__ import annotations

from pathlib import Path

from datastore.directory import DirectoryDatastore
from datastore.keys import Authority, make_key, write_known_hosts
from datastore.port import DatastoreAway, Publisher
from datastore.ssh.access import ALIAS, Access, SshAddress, gate_command
from datastore.ssh.datastore import STALL_S, SshDatastore
from ecloud.config.home import Home

NOTES = ("datastore_address", "datastore_host_key", "datastore_python", "datastore_gate")
"""In the context: where files are; over SSH the pinned host key, its Python and the gate that this runs."""


def is_ssh(address: str) -> bool:
    """Whether `user@host[:port]:/root` is meant, not a directory."""
    return not address.startswith(("dir:", "/", "~", ".")) and "@" in address


def directory_of(address: str) -> Path:
    """The directory that an address names."""
    return Path(address.removeprefix("dir:")).expanduser()


def open_publisher(
    home: Home,
    address: str,
    host_key: str = "",
    python: str = "",
    gate: str = "",
    *,
    stall_s: float = STALL_S,
) -> Publisher:
    """The datastore, for reading, staging and publishing; one over SSH connects when asked. Raises `DatastoreAway`."""
    if not is_ssh(address):
        return DirectoryDatastore(directory_of(address)).make()
    if not host_key or not gate:
        raise DatastoreAway(f"the datastore {address} is not set up", f"python admin.py set_datastore {address}")
    try:
        parsed = SshAddress.parse(address)
    except ValueError as error:
        raise DatastoreAway(str(error)) from None
    known_hosts = home.secrets / "datastore.known_hosts"
    write_known_hosts(known_hosts, ALIAS, host_key)
    command = gate_command(python, gate, parsed.root)
    access = Access(boss_key(home), known_hosts, gate=command)
    return SshDatastore(parsed, access, stall_s=stall_s)


def boss_key(home: Home) -> Path:
    """The key by which the boss reaches the datastore, made at the first call. Raises `KeyToolFailed`."""
    path = home.secrets / "datastore.key"
    make_key(path, "ecloud-boss")
    return path


def authority(home: Home, cluster_id: str) -> Authority:
    """What signs the workers' keys. Raises `KeyToolFailed`."""
    return Authority.make(home.secrets / "datastore.authority", cluster_id)
