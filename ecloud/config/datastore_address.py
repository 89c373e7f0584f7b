"""Opens the datastore of an address with the boss's own key: a directory, or a machine over SSH."""

from __future__ import annotations

from pathlib import Path

from datastore.directory import DirectoryDatastore
from datastore.keys import Authority, make_key, write_known_hosts
from datastore.port import DatastoreAway, Publisher
from datastore.ssh.access import ALIAS, Access, SshAddress, gate_command
from datastore.ssh.datastore import STALL_S, SshDatastore
from ecloud.config.home import Home

NOTES = ("datastore_address", "datastore_host_key", "datastore_python", "datastore_gate")
"""Names in the context: the datastore's address; over SSH also the pinned host key, its Python and the gate that it
runs."""


def is_ssh(address: str) -> bool:
    """Whether the address is `user@host[:port]:/root`, not a directory."""
    return not address.startswith(("dir:", "/", "~", ".")) and "@" in address


def directory_of(address: str) -> Path:
    """Return the directory that an address names."""
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
    """Open the datastore, for reading, staging and publishing; over SSH, the first request connects. Raises
    `DatastoreAway`."""
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
    command = gate_command(python, gate, parsed.root, "boss")
    access = Access(boss_key(home), known_hosts, gate=command)
    return SshDatastore(parsed, access, stall_s=stall_s)


def boss_key(home: Home) -> Path:
    """Return the key with which the boss reaches the datastore, made at the first call. Raises `KeyToolFailed`."""
    path = home.secrets / "datastore.key"
    make_key(path, "ecloud-boss")
    return path


def authority(home: Home, cluster_id: str) -> Authority:
    """Return the authority that signs the workers' keys. Raises `KeyToolFailed`."""
    return Authority.make(home.secrets / "datastore.authority", cluster_id)
