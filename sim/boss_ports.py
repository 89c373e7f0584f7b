"""Ports of a simulated boss: a database that fails, a datastore and a cloud that answer late, a broker.

Implements the three ports of `boss.shell.driver`. Each port draws its faults at the time of the call.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence

import msgspec

from boss.core.model.effects import (
    AskRoom,
    Call,
    DropStages,
    EndVm,
    FindResults,
    ListStages,
    ListVms,
    LoadCalls,
    LoadRun,
    LoadValues,
    PromoteFiles,
    RemoveFiles,
    SelectTasks,
    SignClientKey,
    SignKey,
    StartVm,
    VisitVm,
)
from boss.core.model.events import (
    ClientKeySigned,
    DatastoreFailed,
    Event,
    FilesPromoted,
    KeySigned,
    ResultsFound,
    RoomSeen,
    StagesListed,
    VmListFailed,
    VmRefused,
    VmsListed,
    VmStarted,
    VmVisited,
)
from boss.core.model.history import EPOCH_CHANCES
from boss.core.model.rows import PushAnswered, RunImage, Snapshot, Writes
from boss.store.store import CommitRefused, StoreAway
from datastore.port import DatastoreAway
from ecloud.model.boot_diagnosis import Visit
from ecloud.model.wire import CallEnded, CallValue, DatastoreAccess
from sim.checker import Checker
from sim.cloud import LATE_S, Cloud, Refused, host_key
from sim.datastore import Datastore
from sim.faults import Faults
from sim.invariants import Violation
from sim.network import Network
from sim.store import Store, Tables
from sim.world import World

COMMIT_S, ROW_S = 0.002, 0.00005
"""Duration of a commit, and of each row in addition: under load batches grow, as with a real database."""
SLOW_COMMIT_S = 8.0
ARRIVES = 0.3
"""Probability that a call for a VM reaches the cloud although its answer is lost."""
CERTIFICATE_LIVES_S = (8.0, 60.0)
OVER_SSH = DatastoreAccess("files@host:/root", host_key="a host key")
"""The datastore of those worlds in which it is another machine."""


def certificate(public_key: str, until: float) -> str:
    """Return a certificate that grants the key's owner access to the datastore until `until`."""
    return f"{public_key} {until!r}"


class Places(msgspec.Struct):
    """Objects that all bosses of a world share."""

    world: World
    faults: Faults
    network: Network
    tables: Tables
    datastore: Datastore
    cloud: Cloud
    checker: Checker


class BossStore:
    """One boss's connection to the tables: calls fail while it is partitioned from them."""

    def __init__(self, boss: str, places: Places) -> None:
        self._boss = boss
        self._world = places.world
        self._faults = places.faults
        self._checker = places.checker
        self.store = Store(places.tables, chance=self._chance)
        self.parted_until = 0.0

    @property
    def epoch(self) -> int:
        """Epoch in which this boss writes."""
        return self.store.epoch

    def _chance(self) -> int:
        """Draw the chance of an epoch from a separate generator, so that the world's other draws do not depend on
        it."""
        return random.Random(self._world.seed * 1_000_003 + self._world.steps).randrange(EPOCH_CHANCES)

    def _reach(self) -> Store:
        if self._world.now < self.parted_until:
            raise StoreAway("the database is away")
        return self.store

    def commit_takes_s(self, writes: Writes) -> float:
        """Duration of the commit of these rows."""
        if self._world.fault("commit_slow", self._faults.commit_slow):
            return SLOW_COMMIT_S * self._world.random.random()
        return COMMIT_S + ROW_S * (len(writes.attempts) + len(writes.tasks) + len(writes.stored))

    def commit(self, batch: int, writes: Writes, now: float) -> None:
        """Commit, or fail as a real database may fail."""
        world, faults = self._world, self._faults
        if world.fault("commit_fails", faults.commit_fails):
            raise StoreAway("the database is away")
        store = self._reach()
        if world.fault("commit_refused", faults.commit_refused):
            raise CommitRefused("the database refuses")
        world.looked["accepted"] += bool(writes.stored)
        try:
            with self._checker.committing(self._boss, store.epoch, writes):
                store.commit(batch, writes, now)
        except CommitRefused as error:
            raise Violation("accepted", f"the database refuses a batch of {self._boss}: {error}") from error
        if world.fault("commit_unanswered", faults.commit_unanswered):
            raise StoreAway("the answer got lost")

    def last_batch(self) -> int:
        """Number of the last committed batch."""
        return self._reach().last_batch()

    def load(self) -> Snapshot:
        """Load everything unfinished."""
        return self._reach().load()

    def renew(self, now: float) -> None:
        """Renew the leadership."""
        self._reach().renew(now)

    def lead_above(self, epoch: int, now: float) -> int:
        """Continue to lead, in an epoch above `epoch`."""
        return self._reach().lead_above(epoch, now)

    def load_runs(self, wanted: Sequence[LoadRun]) -> list[tuple[RunImage | None, PushAnswered | None]]:
        """See `StorePort.load_runs`."""
        return self._reach().load_runs(wanted)

    def load_values(self, wanted: LoadValues) -> tuple[list[CallValue], bool]:
        """See `StorePort.load_values`."""
        return self._reach().load_values(wanted)

    def needed_values(self, task_nos: Sequence[int], most_bytes: int) -> dict[int, tuple[CallValue, ...] | None]:
        """See `StorePort.needed_values`."""
        return self._reach().needed_values(task_nos, most_bytes)

    def load_calls(self, wanted: LoadCalls) -> tuple[list[CallEnded], bool]:
        """See `StorePort.load_calls`."""
        return self._reach().load_calls(wanted)

    def select(self, wanted: SelectTasks) -> tuple[list[RunImage], set[int], str]:
        """Resolve a user's selection of tasks."""
        return self._reach().select(wanted)

    def definitions(self, task_nos: Sequence[int]) -> dict[int, bytes]:
        """Load stored definitions."""
        return self._reach().definitions(task_nos)


class BossCalls:
    """Calls of one boss, made a moment later by a thread. The answer arrives only if the process still lives then."""

    def __init__(
        self, boss: str, places: Places, store: BossStore, put: Callable[[Event], None], lives: Callable[[], bool]
    ) -> None:
        self._boss = boss
        self._places = places
        self._world = places.world
        self._faults = places.faults
        self._store = store
        self._put = put
        self._lives = lives
        self.parted_until = 0.0
        """Time until which the boss does not reach its cloud."""
        self._starting: set[int] = set()
        """Intents whose call is queued."""

    def make(self, call: Call) -> None:
        """Start the call."""

        def make() -> None:
            if not self._lives() and not self._world.fault("call_lost", self._faults.call_lost):
                return
            event = self._make(call)
            if event is not None:
                self._world.after(self._world.random.uniform(0.0005, 0.005), lambda: self._put(event))

        delay_s = self._world.random.uniform(0.0005, 0.01)
        if isinstance(call, StartVm) and self._world.fault("vm_late", self._faults.vm_late):
            delay_s = self._world.random.uniform(*LATE_S)
            if self._world.random.random() < 0.5:
                self._give_up_on(call, delay_s)
                return
        if isinstance(call, StartVm):
            self._starting.add(call.vm_no)
        self._world.after(delay_s, make)

    def _give_up_on(self, call: StartVm, seconds: float) -> None:
        """Deliver the request to the cloud late, after the boss stopped waiting for the answer."""
        self._world.tell(self._boss, f"hears nothing of its call for intent {call.vm_no}")

        def make() -> None:
            with contextlib.suppress(Refused):
                self._places.cloud.start(call.vm_no, call.pool, call.size, call.boot_nonce)

        self._world.after(seconds, make)

    def _make(self, call: Call) -> Event | None:
        if isinstance(call, (StartVm, EndVm, ListVms, AskRoom)):
            return self._to_cloud(call)
        if isinstance(call, VisitVm):
            return self._visit(call)
        if isinstance(call, SignKey):
            if self._world.fault("sign_lost", self._faults.sign_lost):
                return None
            lives_s = self._world.random.uniform(*CERTIFICATE_LIVES_S)
            return KeySigned(call.worker, certificate(call.public_key, self._world.now + lives_s), lives_s)
        if isinstance(call, SignClientKey):
            return self._sign_for_client(call)
        try:
            return self._to_datastore(call)
        except DatastoreAway as error:
            return None if isinstance(call, (DropStages, RemoveFiles)) else DatastoreFailed(call, str(error))

    def _sign_for_client(self, call: SignClientKey) -> Event | None:
        if self._world.fault("sign_lost", self._faults.sign_lost):
            return None if self._world.random.random() < 0.5 else DatastoreFailed(call, "its clock cannot be read")
        lives_s = self._world.random.uniform(*CERTIFICATE_LIVES_S)
        signed = certificate(call.public_key, self._world.now + lives_s)
        return ClientKeySigned(call.client, call.request_id, OVER_SSH.address, signed, lives_s)

    def _to_datastore(self, call: Call) -> Event | None:
        datastore = self._places.datastore
        match call:
            case PromoteFiles(promotions):
                problems = datastore.promote(promotions)
                return FilesPromoted(tuple((p.task_no, p.number, text) for p, text in zip(promotions, problems)))
            case FindResults(token, paths):
                return ResultsFound(token, datastore.existing(paths))
            case ListStages():
                return StagesListed(datastore.stages())
            case DropStages(stages):
                datastore.drop(stages)
            case RemoveFiles(paths):
                datastore.remove(paths)
        return None

    def _to_cloud(self, call: StartVm | EndVm | ListVms | AskRoom) -> Event | None:
        cloud = self._places.cloud
        if isinstance(call, StartVm):
            self._starting.discard(call.vm_no)
        if self._world.now < self._store.parted_until:
            return _not_asked(call, "the database cannot tell whether this boss still leads")
        if not self._store.store.leads():
            return None
        if self._world.now < self.parted_until and not (
            isinstance(call, StartVm) and self._world.random.random() < ARRIVES
        ):
            return _not_asked(call, "the cloud cannot be reached")
        match call:
            case StartVm(vm_no, pool, size, nonce):
                self._places.checker.fleet.on_start_vm(self._boss, self._store.epoch, vm_no)
                try:
                    cloud_id = cloud.start(vm_no, pool, size, nonce)
                    parted = self._world.now < self.parted_until
                    return None if parted else VmStarted(vm_no, cloud_id)
                except Refused as error:
                    return VmRefused(vm_no, str(error), 5.0, "less")
            case EndVm(vm_no, _, cloud_id, why):
                if why:
                    self._world.tell(self._boss, f"ends {cloud_id} (intent {vm_no}): {why}")
                if cloud_id in cloud.living:  # else ending it has no effect
                    self._places.checker.fleet.on_end_vm(self._boss, self._store.epoch, cloud_id)
                cloud.end(cloud_id)
            case ListVms(pool, known, lost):
                vms = (*cloud.list(), *cloud.gone(known, lost))
                return VmsListed(pool, vms, frozenset(self._starting), frozenset(known), frozenset(lost))
            case AskRoom(pool):
                return RoomSeen(pool, *cloud.room())
        return None

    def _visit(self, call: VisitVm) -> Event:
        """Visit over SSH: the machine that answers is one of those with that address."""
        cloud = self._places.cloud
        there = [cloud_id for cloud_id, address in cloud.addresses.items() if address == call.address]
        if not there:
            return VmVisited(call.vm_no, call.address, call.host_key, Visit("silent"))
        met = self._world.random.choice(there)
        self._places.checker.looked["identity"] += len(there) > 1
        if call.host_key and call.host_key != host_key(met):
            return VmVisited(call.vm_no, call.address, call.host_key, Visit("changed"))
        life = cloud.lives[met]
        visit = Visit("ok", vm=str(life.vm_no), boot_nonce=life.boot_nonce)
        return VmVisited(call.vm_no, call.address, host_key(met), visit, {"ssh": 0.0})


def _not_asked(call: StartVm | EndVm | ListVms | AskRoom, reason: str) -> Event | None:
    """Return the answer that the boss gets to a call that was not made."""
    if isinstance(call, StartVm):
        return VmRefused(call.vm_no, reason, 5.0, "later")
    if isinstance(call, ListVms):
        return VmListFailed(call.pool, reason)
    return RoomSeen(call.pool, None) if isinstance(call, AskRoom) else None
