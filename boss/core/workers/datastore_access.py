"""Access to the datastore. Over SSH each worker gets a certificate for its own key, renewed before it expires.

Owns the datastore's address and which worker has which certificate. Each heartbeat reports how long a worker's access
is still valid, so the next one repairs any loss.
"""

from __future__ import annotations

import msgspec

from boss.core.model.effects import SignKey, UseDatastore
from boss.core.model.fleet import Fleet
from boss.core.model.outbox import Outbox
from boss.core.model.worker import Worker
from boss.core.workers.sessions import Sessions
from ecloud.model.wire import DatastoreAccess, DatastoreGranted

RENEW_BELOW = 0.5
"""Access is renewed when less than this share of its life is left."""
ASK_AGAIN_S = 30.0
"""An unanswered request for a signature is repeated after this, and so is a request after a refused certificate."""
FREE_SPACE = "datastore/free"
"""The note of the free space over SSH in MB, and of its time in epoch seconds."""
LIVES_S = 3600.0
"""Lifetime of access, unless its signature says otherwise."""


class Access:
    """The access of all workers to the datastore."""

    def __init__(self, outbox: Outbox, fleet: Fleet, sessions: Sessions) -> None:
        self._outbox = outbox
        self._fleet = fleet
        self._sessions = sessions
        self._lives_s = LIVES_S
        self._moved_at: float | None = None
        """Since when the boss itself moves to another datastore: signatures made meanwhile are for the old one."""

    @property
    def datastore(self) -> DatastoreAccess:
        """The current datastore."""
        return self._sessions.datastore

    @property
    def usual(self) -> str:
        """The datastore's default address."""
        return self._sessions.usual_datastore

    def on_heartbeat(self, worker: Worker, access_s: float | None, now: float) -> None:
        """Request a signature if this worker has no access (0: the datastore refuses it), or soon will have none."""
        public_key = worker.row.hello.ssh_key
        if not (self.datastore.host_key and public_key) or self._is_moving(now):
            return
        if access_s is not None and access_s > RENEW_BELOW * self._lives_s:
            return
        refused = access_s is not None and access_s <= 0
        last = worker.refused_at if refused and worker.refused_at is not None else worker.access_asked_at
        if last is None or now - last >= ASK_AGAIN_S:
            worker.refused_at = now if refused else None
            self._ask(worker, now, refused)

    def _is_moving(self, now: float) -> bool:
        return self._moved_at is not None and now - self._moved_at < ASK_AGAIN_S

    def _ask(self, worker: Worker, now: float, refused: bool) -> None:
        worker.access_asked_at = now
        self._outbox.call(SignKey(worker.name, worker.row.hello.ssh_key, refused=refused))

    def on_used(self, address: str, now: float) -> None:
        """The boss itself reached the datastore: request certificates now instead of at the next heartbeats."""
        if address != self.datastore.address or not self.datastore.host_key:
            return
        self._moved_at = None
        for worker in self._fleet.workers.values():
            if worker.conversation is not None and worker.row.hello.ssh_key and worker.access_asked_at is None:
                self._ask(worker, now, False)

    def on_signed(self, name: str, certificate: str, lives_s: float, now: float) -> None:
        """Give a worker its certificate."""
        self._lives_s = lives_s
        worker = self._fleet.workers.get(name)
        if worker is None or self._is_moving(now):
            return
        worker.access_asked_at = None
        if worker.conversation is not None and self.datastore.host_key:
            access = msgspec.structs.replace(self.datastore, credential=certificate)
            self._outbox.say(worker.conversation, DatastoreGranted(access, lives_s))

    def on_free_space(self, address: str, free_mb: float, now: float) -> None:
        """Note the free space, for status."""
        if address == self.datastore.address:
            self._outbox.writes.context[FREE_SPACE] = f"{free_mb:.0f} {now:.0f}"

    def move(self, use: UseDatastore, now: float) -> None:
        """Use another datastore from now on: send its address to all workers."""
        self._moved_at = now
        access = self._sessions.datastore = DatastoreAccess(use.address, host_key=use.host_key)
        self._outbox.call(use)
        self._outbox.writes.context[FREE_SPACE] = None
        for worker in self._fleet.workers.values():
            worker.access_asked_at = worker.refused_at = None
            if worker.conversation is not None:
                self._outbox.say(worker.conversation, DatastoreGranted(access))
