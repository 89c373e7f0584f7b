"""Access of a program to a datastore over SSH, granted by the boss: for machines that have an access file only."""

from __future__ import annotations

import math
import threading
import time
from typing import Protocol

import msgspec

from datastore.keys import make_key, write_known_hosts
from datastore.port import DatastoreAway
from datastore.problem import Problem
from datastore.ssh.access import ALIAS, Access, SshAddress
from datastore.ssh.datastore import SshDatastore
from ecloud.config.owned_directory import KEY, OwnedDirectory
from ecloud.model.wire import DatastoreGranted, RequestDone

RENEWED_AFTER_S = 10.0
"""A connection gets new access unless the last is younger: connections are few, and last."""
PATIENCE_S = 60.0
"""A request without progress for this long ends with `DatastoreAway`: a program should not end with each restart of the
datastore's machine."""


class AskForAccess(Protocol):
    """Sends a request to the boss, as `Client.request` does. Raises `Problem`, `PartAway`."""

    def __call__(self, verb: str, *, public_key: str) -> RequestDone: ...


class GrantedAccess:
    """A key of this process, below a temporary directory, and the certificate that the boss makes for it: a new one for
    each connection, so that neither a suspended machine nor a clock that was set leaves it with an expired one."""

    def __init__(self, ask: AskForAccess) -> None:
        self._ask = ask
        self._directory = OwnedDirectory(KEY)
        self._address: SshAddress | None = None
        self._granted_at_s = -math.inf
        self._lock = threading.Lock()

    def opened(self) -> SshDatastore:
        """The datastore, for reading and uploads. Raises `Problem`, `DatastoreAway`, `KeyToolFailed`."""
        self._access()
        assert self._address is not None
        return SshDatastore(self._address, self._access, patience_s=PATIENCE_S)

    def _access(self) -> Access:
        key, known_hosts, certificate = (
            self._directory.path / name for name in ("key", "known_hosts", "certificate.pub")
        )
        with self._lock:
            if time.monotonic() - self._granted_at_s >= RENEWED_AFTER_S:
                public_key = make_key(key, "ecloud-client")
                try:
                    answer = self._ask("open_datastore", public_key=public_key)
                except Problem as error:
                    if not certificate.exists():
                        text = f"the boss gives no access to the datastore: {error.text}"
                        raise DatastoreAway(text, error.remedy) from error
                    return Access(key, known_hosts, certificate)  # it may still be valid
                granted = msgspec.json.decode(answer.text, type=DatastoreGranted)
                address = SshAddress.parse(granted.datastore.address)
                if self._address not in (None, address):
                    raise DatastoreAway(f"the datastore is {address} now, no longer {self._address}", "start again")
                self._address = address
                write_known_hosts(known_hosts, ALIAS, granted.datastore.host_key)
                certificate.write_text(granted.datastore.credential + "\n")
                self._granted_at_s = time.monotonic()
        return Access(key, known_hosts, certificate)
