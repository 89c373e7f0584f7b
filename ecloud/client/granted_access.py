"""Access of a program to a datastore over SSH, granted by the boss: for machines that have an access file only."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Protocol

import msgspec

from datastore.keys import make_key, write_known_hosts
from datastore.port import DatastoreAway
from datastore.problem import Problem
from datastore.ssh.access import ALIAS, Access, SshAddress
from datastore.ssh.datastore import SshDatastore
from ecloud.model.wire import DatastoreGranted, RequestDone

RENEW_BELOW = 0.5
"""Access is renewed when less than this share of its life is left."""


class AskForAccess(Protocol):
    """Sends a request to the boss, as `Client.request` does. Raises `Problem`, `PartAway`."""

    def __call__(self, verb: str, *, public_key: str) -> RequestDone: ...


class GrantedAccess:
    """A key of this process, below a temporary directory, and the certificate that the boss makes for it. It is renewed
    when a connection is made."""

    def __init__(self, ask: AskForAccess) -> None:
        self._ask = ask
        self._place = Path(tempfile.mkdtemp(prefix="ecloud-key-"))
        weakref.finalize(self, shutil.rmtree, self._place, ignore_errors=True)
        self._address: SshAddress | None = None
        self._renew_at_s = 0.0
        self._lock = threading.Lock()

    def opened(self) -> SshDatastore:
        """The datastore, for reading and uploads. Raises `Problem`, `DatastoreAway`, `KeyToolFailed`."""
        self._access()
        assert self._address is not None
        return SshDatastore(self._address, self._access)

    def _access(self) -> Access:
        key, known_hosts, certificate = (self._place / name for name in ("key", "known_hosts", "certificate.pub"))
        with self._lock:
            if time.monotonic() >= self._renew_at_s:
                answer = self._ask_boss(make_key(key, "ecloud-client"))
                granted = msgspec.json.decode(answer.text, type=DatastoreGranted)
                address = SshAddress.parse(granted.datastore.address)
                if self._address not in (None, address):
                    raise DatastoreAway(f"the datastore is {address} now, no longer {self._address}", "start again")
                self._address = address
                write_known_hosts(known_hosts, ALIAS, granted.datastore.host_key)
                certificate.write_text(granted.datastore.credential + "\n")
                self._renew_at_s = time.monotonic() + RENEW_BELOW * granted.lives_s
        return Access(key, known_hosts, certificate)

    def _ask_boss(self, public_key: str) -> RequestDone:
        try:
            return self._ask("open_datastore", public_key=public_key)
        except Problem as error:
            raise DatastoreAway(f"the boss gives no access to the datastore: {error.text}", error.remedy) from error
