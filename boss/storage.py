"""The datastore as the boss uses it: where it is, opened with the boss's key, and signatures that let workers in."""

from __future__ import annotations

from datastore.keys import LIVES_S
from datastore.port import Publisher
from datastore.ssh import SshAddress, gate_command
from ecloud.datastores import authority, is_ssh, open_publisher
from ecloud.home import Home
from ecloud.wire import DatastoreAccess


class Storage:
    """One datastore at a time. `use` may be called again; calls under way end where they began."""

    def __init__(self, home: Home, cluster_id: str) -> None:
        self._home = home
        self._cluster_id = cluster_id
        self._python = ""
        self._gate = ""
        self.access = DatastoreAccess("")
        self._publisher: Publisher | None = None

    def use(self, address: str, host_key: str = "", python: str = "", gate: str = "") -> DatastoreAccess:
        """From now on files are there; what workers are told. Raises `DatastoreAway`, `OSError`."""
        self._python, self._gate = python, gate
        self._publisher = open_publisher(self._home, address, host_key, python, gate)
        self.access = DatastoreAccess(address, host_key=host_key)
        return self.access

    @property
    def publisher(self) -> Publisher:
        """The datastore itself."""
        assert self._publisher is not None, "use() comes first"
        return self._publisher

    def sign(self, worker: str, public_key: str) -> tuple[str, float]:
        """A certificate for the key of that worker, and for how many seconds it is good.

        Raises `KeyToolFailed`, and `ValueError` for what is no key.
        """
        address = self.access.address
        assert is_ssh(address), "only a datastore over SSH wants signatures"
        command = gate_command(self._python, self._gate, SshAddress.parse(address).root, worker)
        return authority(self._home, self._cluster_id).sign(public_key, worker, command), LIVES_S
