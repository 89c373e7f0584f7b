"""The boss's datastore: its address, the connection with the boss's key, and certificates for workers and clients."""

from __future__ import annotations

import logging
import threading
import time

from datastore.keys import LIVES_S
from datastore.port import DatastoreAway, Publisher
from datastore.ssh.access import SshAddress, gate_command
from datastore.ssh.datastore import STALL_S, SshDatastore
from ecloud.config.datastore_address import authority, is_ssh, open_publisher
from ecloud.config.home import Home
from ecloud.model.wire import DatastoreAccess

log = logging.getLogger("boss")
UNSURE_S = 60.0
"""Lifetime of access that is sent to a worker while the datastore's clock is unknown: the worker asks again soon."""
ANEW_S = 20.0
"""How long a clock reading after a refusal is trusted: refusals for other reasons do not cause more reconnections."""


class Storage:
    """One datastore at a time. `use` may be called again; calls in progress end at the earlier datastore."""

    def __init__(self, home: Home, cluster_id: str, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s
        self._home = home
        self._cluster_id = cluster_id
        self._python = ""
        self._gate = ""
        self.access = DatastoreAccess("")
        self._publisher: Publisher | None = None

    def use(self, address: str, host_key: str = "", python: str = "", gate: str = "") -> DatastoreAccess:
        """Use the datastore at `address` from now on. Returns the message for workers. Raises `DatastoreAway`,
        `OSError`."""
        self._python, self._gate, before = python, gate, self._publisher
        self._publisher = open_publisher(self._home, address, host_key, python, gate, stall_s=self._stall_s)
        self._clock = _Clock(self._publisher)
        self.access = DatastoreAccess(address, host_key=host_key)
        if isinstance(before, SshDatastore):
            before.close()  # a call in progress there reconnects
        return self.access

    @property
    def publisher(self) -> Publisher:
        """The datastore."""
        assert self._publisher is not None, "use() comes first"
        return self._publisher

    def sign(self, worker: str, public_key: str, refused: bool = False) -> tuple[str, float]:
        """A certificate for that worker's key, and its lifetime in seconds by the datastore's clock, which may be hours
        off. Connections end with it. `refused`: the previous certificate was refused, so read that clock again.

        Raises `KeyToolFailed`, `DatastoreAway` if files are in a directory, and `ValueError` for an invalid key.
        """
        return self._sign(public_key, worker, refused, "worker", worker)

    def sign_for_client(self, client: str, public_key: str) -> tuple[str, float]:
        """As `sign`, for a client's key. Raises `DatastoreAway` also if the datastore's gate is too old."""
        publisher, address = self._publisher, self.access.address
        if isinstance(publisher, SshDatastore) and "client" not in str(publisher.hello().get("can")):
            raise DatastoreAway(
                f"the gate of the datastore {address} is from an earlier version, which admits no clients",
                f"on the boss's machine: python admin.py set_datastore {address}",
            )
        return self._sign(public_key, client, False, "client")

    def _sign(self, public_key: str, name: str, refused: bool, *who: str) -> tuple[str, float]:
        address = self.access.address
        if not is_ssh(address):
            raise DatastoreAway(f"files are in {address} now: access to it needs no signature")
        ahead_s, is_sure = self._clock.ahead_s(anew=refused)
        until_s = time.time() + ahead_s + LIVES_S
        command = gate_command(self._python, self._gate, SshAddress.parse(address).root, *who, until_s=until_s)
        certificate = authority(self._home, self._cluster_id).sign(public_key, name, command, LIVES_S, ahead_s)
        return certificate, LIVES_S if is_sure else min(LIVES_S, UNSURE_S)


class _Clock:
    """How far the datastore's clock is ahead of this machine's: read with each connection, remembered while the
    datastore is away."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._lock = threading.Lock()
        self._ahead_s: float | None = None
        self._again_at_s = self._anew_at_s = 0.0

    def ahead_s(self, anew: bool = False) -> tuple[float, bool]:
        """The offset, and whether it is known. At most one thread waits for the datastore.

        `anew`: the clock may have been changed: reconnect, which reads it. Once for all threads that ask at about the
        same time.
        """
        if self._lock.acquire(blocking=anew or self._ahead_s is None):
            try:
                if anew and time.monotonic() >= self._anew_at_s and isinstance(self._publisher, SshDatastore):
                    self._publisher.close()
                    self._anew_at_s = time.monotonic() + ANEW_S
                if time.monotonic() >= self._again_at_s:
                    self._look()
            finally:
                self._lock.release()
        return self._ahead_s or 0.0, self._ahead_s is not None

    def _look(self) -> None:
        try:
            assert isinstance(self._publisher, SshDatastore), "a directory needs no signatures"
            self._ahead_s = float(str(self._publisher.hello()["ahead_s"]))
        except DatastoreAway as error:
            self._again_at_s = time.monotonic() + UNSURE_S / 2
            log.warning("the datastore's clock cannot be read: %s", error)
