"""A simulated boss: the real core, driven as `boss.shell.runtime` drives it, and killed between any two effects.

A turn is a generator: what it yields is how long the next thing takes. Between any two effects it may be the last thing
that this process ever did. What survives is what the store holds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import msgspec

from boss.core.boss import Boss
from boss.core.model.config import BossConfig
from boss.core.model.effects import (
    AskRoom,
    Call,
    DropStages,
    Effects,
    EndVm,
    FindResults,
    ListStages,
    ListVms,
    LoadRun,
    PromoteFiles,
    Read,
    Send,
    SignKey,
    StartVm,
    VisitVm,
)
from boss.core.model.events import (
    BrokerFound,
    BrokerLost,
    DatastoreFailed,
    Event,
    FilesPromoted,
    KeySigned,
    MessageArrived,
    ResultsFound,
    RoomSeen,
    RunLoaded,
    StagesListed,
    TasksSelected,
    VmRefused,
    VmsListed,
    VmStarted,
    VmVisited,
)
from boss.store.store import AnotherBossLeads, CommitRefused, Deposed, StoreAway
from datastore.port import DatastoreAway
from ecloud.model import wire
from ecloud.model.boot_diagnosis import Visit
from ecloud.model.topics import peer_topic
from ecloud.model.wire import Envelope
from sim.checker import Checker
from sim.cloud import LATE_S, Cloud, Refused, host_key
from sim.datastore import Datastore
from sim.faults import Faults
from sim.network import Network
from sim.store import CLUSTER_ID, Store, Tables
from sim.world import TICK_S, World

RENEW_S = 5.0
FIRST_WAIT_S, LAST_WAIT_S = 0.1, 5.0
COMMIT_S, ROW_S = 0.002, 0.00005
"""What a commit takes, and each row of it more: one under load has larger batches, like a real one."""
CLOCK_STEP_S = 7200.0
SLOW_COMMIT_S = 8.0
EVENTS_A_BATCH = 5_000
CHECKED_ALWAYS, CHECKED_EACH = 200, 100
"""A core with fewer tasks and workers than the first is checked after each batch; a larger one each so many batches."""
ARRIVES = 0.3
"""How often a call for a VM arrives although its answer can't."""
CERTIFICATE_LIVES_S = (8.0, 60.0)
Turn = Iterator[float]


def certificate(public_key: str, until: float) -> str:
    """What opens the datastore for the holder of that key until then."""
    return f"{public_key} {until!r}"


def _not_asked(call: StartVm | EndVm | ListVms | AskRoom, reason: str) -> Event | None:
    """What the boss hears of a call that was not made."""
    if isinstance(call, StartVm):
        return VmRefused(call.vm_no, reason, 5.0, "later")
    return RoomSeen(call.pool, None) if isinstance(call, AskRoom) else None


class Places(msgspec.Struct):
    """What a boss works with."""

    world: World
    faults: Faults
    network: Network
    tables: Tables
    datastore: Datastore
    cloud: Cloud
    checker: Checker


class BossProcess:
    """One process, from the moment it tries to lead until it dies or is deposed."""

    def __init__(
        self, name: str, places: Places, config: BossConfig, replace: bool, gone: Callable[[str], None]
    ) -> None:
        self.name = name
        self.world = places.world
        self.faults = places.faults
        self.places = places
        self.config = config
        self.store = Store(places.tables)
        self.alive = True
        self.frozen = False
        self.clock_s = 0.0
        """How far its clock stands from that of the world. It steps between processes, not within one."""
        if self.world.fault("clock_steps", self.faults.clock_steps):
            self.clock_s = self.world.random.uniform(-CLOCK_STEP_S, CLOCK_STEP_S)
        self.core: Boss | None = None
        self._gone = gone
        self._inbox: list[Event] = []
        self._turn: Turn | None = None
        self._woken = False
        self._wake_at: float | None = None
        self._batch = self._handled = 0
        self.store_parted_until = self.cloud_parted_until = 0.0
        """It does not reach its database, or its cloud, before then."""
        self._starting: set[int] = set()
        """Intents whose call waits for its turn."""
        self._renewed_at = 0.0
        self.world.after(0.0, lambda: self._lead(replace))

    @property
    def now(self) -> float:
        """What its clock shows."""
        return self.world.now + self.clock_s

    # --- beginning and end -----------------------------------------------------------------------

    def _lead(self, replace: bool) -> None:
        if not self.alive:
            return
        try:
            epoch = self.store.lead(self.name, self.now, replace)
        except AnotherBossLeads:
            self.world.after(1.0, lambda: self._lead(replace))
            return
        self.world.tell(self.name, f"leads with epoch {epoch}")
        self._begin()
        self.link = self.places.network.connect(
            "", self._hear, self._found, lambda reason: self._put(BrokerLost(reason))
        )
        self.link.backlog = lambda: len(self._inbox)
        self._renewed_at = self.world.now
        self._run(self._decide([]))

    def _begin(self) -> Boss:
        self._batch = self.store.last_batch()
        self.core = Boss(self.store.load(), self.config, self.now)
        return self.core

    def die(self, why: str) -> None:
        """Nothing of it happens any more, but for calls that are under way."""
        if self.alive:
            self.world.tell(self.name, f"dies: {why}")
            self.alive = False
            if self.core is not None:
                self.link.close()
            self._turn = None
            self._gone(why)

    def freeze(self, seconds: float) -> None:
        """Stand still for a while."""
        if self.alive and not self.frozen:
            self.world.tell(self.name, f"stands still for {seconds:.1f} s")
            self.frozen = True
            self.world.after(seconds, self.thaw)

    def thaw(self) -> None:
        """Go on."""
        if self.alive and self.frozen:
            self.world.tell(self.name, "goes on")
            self.frozen = False
            self._go_on()

    # --- the loop --------------------------------------------------------------------------------

    def _found(self) -> None:
        self.places.checker.fleet.on_hearing(self.name)
        self._put(BrokerFound())

    def _hear(self, envelope: Envelope, key_name: str) -> None:
        self._put(MessageArrived(envelope, key_name))

    def _put(self, event: Event) -> None:
        if self.alive:
            self._inbox.append(event)
            self._wake()

    def _wake(self) -> None:
        if not self._woken and self._turn is None and not self.frozen:
            self._woken = True
            self.world.after(0.0001, self._take)

    def _take(self) -> None:
        self._woken = False
        if self.alive and self._turn is None and not self.frozen and self.core is not None:
            events, self._inbox = self._inbox[:EVENTS_A_BATCH], self._inbox[EVENTS_A_BATCH:]
            self._run(self._decide(events))

    def _run(self, turn: Turn) -> None:
        self._turn = turn
        self._go_on()

    def _go_on(self) -> None:
        """Take the turn at hand as far as it goes without time passing."""
        if not self.alive or self.frozen or self._turn is None:
            return self._wake() if self.alive and not self.frozen else None
        deadly = self.faults.boss_death
        try:
            for seconds in self._turn:
                if seconds > 0:
                    self.world.after(seconds, self._go_on)
                    return None
                if deadly and self.world.fault("boss_death", deadly):
                    return self.die("killed between two effects")
        except Deposed as error:
            return self.die(str(error))
        self._turn = None
        return self._wait()

    def _wait(self) -> None:
        assert self.core is not None
        if self._inbox:
            self._wake()
            return
        deadline = self.core.next_deadline()
        at = self._renewed_at + RENEW_S
        at = at if deadline is None else min(at, deadline - self.clock_s + TICK_S)
        if self._wake_at is None or at < self._wake_at or self._wake_at <= self.world.now:
            self._wake_at = at
            self.world.at(at, self._alarm(at))

    def _alarm(self, at: float) -> Callable[[], None]:
        def ring() -> None:
            if self._wake_at == at:
                self._wake_at = None
                if self.alive and self._turn is None and not self.frozen:
                    self._take()

        return ring

    def _decide(self, events: list[Event]) -> Turn:
        assert self.core is not None
        try:
            yield from self._carry_out(self._handle(events))
        except CommitRefused as error:
            self.world.tell(self.name, f"leaves a batch out: {error}")
            self._begin()
        if self.world.now >= self._renewed_at + RENEW_S:
            self._renewed_at = self.world.now
            if self.world.now >= self.store_parted_until:
                self.store.renew(self.now)

    def _handle(self, events: list[Event]) -> Effects:
        assert self.core is not None
        effects = self.core.handle(events, self.now)
        self._handled += 1
        size = len(self.core.book.graph.nodes) + len(self.core.fleet.workers)
        if size < CHECKED_ALWAYS or self._handled % CHECKED_EACH == 0:
            self.core.check()
        return effects

    # --- carrying out ----------------------------------------------------------------------------

    def _carry_out(self, effects: Effects) -> Turn:
        yield 0.0
        if not effects.writes.is_empty:
            yield from self._commit(effects)
        yield from self._reach_store()
        bodies = self._bodies(effects.sends)
        for send in effects.sends:
            yield 0.0
            self._publish(send, bodies)
        for call in effects.calls:
            yield 0.0
            self._call(call)
        for read in effects.reads:
            yield from self._reach_store()
            yield from self._carry_out(self._handle([self._answer(read)]))

    def _commit(self, effects: Effects) -> Turn:
        batch = self._batch + 1
        wait_s = FIRST_WAIT_S
        while True:
            try:
                yield from self._commit_once(batch, effects)
                break
            except StoreAway:
                yield wait_s
            wait_s = min(LAST_WAIT_S, wait_s * 2)
        self._batch = batch
        self._renewed_at = self.world.now

    def _commit_once(self, batch: int, effects: Effects) -> Turn:
        world, faults = self.world, self.faults
        rows = len(effects.writes.attempts) + len(effects.writes.tasks) + len(effects.writes.stored)
        slow = world.fault("commit_slow", faults.commit_slow)
        yield SLOW_COMMIT_S * world.random.random() if slow else COMMIT_S + ROW_S * rows
        if world.now < self.store_parted_until or world.fault("commit_fails", faults.commit_fails):
            raise StoreAway("the database is away")
        if world.fault("commit_refused", faults.commit_refused):
            raise CommitRefused("the database refuses")
        with self.places.checker.committing(self.name, self.store.epoch, effects.writes):
            self.store.commit(batch, effects.writes, self.now)
        if world.fault("commit_unanswered", faults.commit_unanswered):
            raise StoreAway("the answer got lost")
        yield 0.0

    def _reach_store(self) -> Turn:
        """Questions are asked again until they are answered."""
        while self.world.now < self.store_parted_until:
            yield LAST_WAIT_S / 5

    def _bodies(self, sends: list[Send]) -> dict[int, bytes]:
        wanted = [
            order.task_no
            for send in sends
            if isinstance(send.envelope.message, wire.StartTasks)
            for order in send.envelope.message.attempts
        ]
        return self.store.definitions(wanted) if wanted else {}

    def _publish(self, send: Send, bodies: dict[int, bytes]) -> None:
        envelope = send.envelope
        if isinstance(envelope.message, wire.StartTasks):
            orders = tuple(
                msgspec.structs.replace(order, body=msgspec.Raw(bodies[order.task_no]))
                for order in envelope.message.attempts
                if order.task_no in bodies
            )
            envelope = msgspec.structs.replace(envelope, message=wire.StartTasks(orders))
        self.places.checker.on_said(self.name, envelope)
        self.link.publish(self.name, envelope, send.key_name, peer_topic(CLUSTER_ID, envelope.peer))

    def _answer(self, read: Read) -> Event:
        if isinstance(read, LoadRun):
            return RunLoaded(read.token, self.store.load_run(read.name))
        images, task_nos, problem = self.store.select(read)
        return TasksSelected(read.token, tuple(images), frozenset(task_nos), problem)

    # --- calls -----------------------------------------------------------------------------------

    def _call(self, call: Call) -> None:
        """Made a moment later by a thread; its answer comes back if this process still lives then."""

        def make() -> None:
            if not self.alive and not self.world.fault("call_lost", self.faults.call_lost):
                return
            event = self._make(call)
            if event is not None:
                self.world.after(self.world.random.uniform(0.0005, 0.005), lambda: self._put(event))

        delay_s = self.world.random.uniform(0.0005, 0.01)
        if isinstance(call, StartVm) and self.world.fault("vm_late", self.faults.vm_late):
            delay_s = self.world.random.uniform(*LATE_S)
            if self.world.random.random() < 0.5:
                self._give_up_on(call, delay_s)
                return
        if isinstance(call, StartVm):
            self._starting.add(call.vm_no)
        self.world.after(delay_s, make)

    def _give_up_on(self, call: StartVm, seconds: float) -> None:
        """The request has arrived, and nobody waits any more when the cloud gets to it."""
        self.world.tell(self.name, f"hears nothing of its call for intent {call.vm_no}")

        def make() -> None:
            with contextlib.suppress(Refused):
                self.places.cloud.start(call.vm_no, call.pool, call.size, call.boot_nonce)

        self.world.after(seconds, make)

    def _make(self, call: Call) -> Event | None:
        if isinstance(call, (StartVm, EndVm, ListVms, AskRoom)):
            return self._to_cloud(call)
        if isinstance(call, VisitVm):
            return self._visit(call)
        if isinstance(call, SignKey):
            if self.world.fault("sign_lost", self.faults.sign_lost):
                return None
            lives_s = self.world.random.uniform(*CERTIFICATE_LIVES_S)
            return KeySigned(call.worker, certificate(call.public_key, self.world.now + lives_s), lives_s)
        try:
            return self._to_datastore(call)
        except DatastoreAway as error:
            return None if isinstance(call, DropStages) else DatastoreFailed(call, str(error))

    def _to_datastore(self, call: Call) -> Event | None:
        datastore = self.places.datastore
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
        return None

    def _to_cloud(self, call: StartVm | EndVm | ListVms | AskRoom) -> Event | None:
        cloud = self.places.cloud
        if isinstance(call, StartVm):
            self._starting.discard(call.vm_no)
        if self.world.now < self.store_parted_until:
            return _not_asked(call, "the database can't tell whether this boss still leads")
        if not self.store.leads():
            return None
        if self.world.now < self.cloud_parted_until and not (
            isinstance(call, StartVm) and self.world.random.random() < ARRIVES
        ):
            return _not_asked(call, "the cloud can't be reached")
        match call:
            case StartVm(vm_no, pool, size, nonce):
                self.places.checker.fleet.on_start_vm(self.name, self.store.epoch, vm_no)
                try:
                    cloud_id = cloud.start(vm_no, pool, size, nonce)
                    parted = self.world.now < self.cloud_parted_until
                    return None if parted else VmStarted(vm_no, cloud_id)
                except Refused as error:
                    return VmRefused(vm_no, str(error), 5.0, "less")
            case EndVm(vm_no, _, cloud_id, why):
                if why:
                    self.world.tell(self.name, f"ends {cloud_id} (intent {vm_no}): {why}")
                if cloud_id in cloud.living:  # else it is ended in vain
                    made_at = cloud.lives[cloud_id].since - cloud.ahead_s
                    self.places.checker.fleet.on_end_vm(self.name, self.store.epoch, vm_no, made_at)
                cloud.end(cloud_id)
            case ListVms(pool, known, lost):
                alive, gone = cloud.list(), cloud.gone(known, lost)
                lives = {cloud_id: cloud.lives[cloud_id] for cloud_id in (*alive.values(), *gone)}
                since = {cloud_id: float(life.since) for cloud_id, life in lives.items()}
                ended = {
                    cloud_id: float(life.ended_at) for cloud_id, life in lives.items() if life.ended_at is not None
                }
                addresses = {vm_no: cloud.addresses[cloud_id] for vm_no, cloud_id in alive.items()}
                starting = frozenset(self._starting)
                ids = frozenset(alive.values())
                return VmsListed(pool, ids, alive, {}, since, starting, addresses, gone, ended, frozenset(known), lost)
            case AskRoom(pool):
                return RoomSeen(pool, *cloud.room())
        return None

    def _visit(self, call: VisitVm) -> Event:
        """By SSH: who is there is one of those that have that address."""
        cloud, vms = self.places.cloud, self.places.tables.vms
        there = [cloud_id for cloud_id, address in cloud.addresses.items() if address == call.address]
        if not there:
            return VmVisited(call.vm_no, call.address, call.host_key, Visit("silent"))
        met = self.world.random.choice(there)
        self.places.checker.looked["identity"] += len(there) > 1
        if call.host_key and call.host_key != host_key(met):
            return VmVisited(call.vm_no, call.address, call.host_key, Visit("changed"))
        vm_no = cloud.living[met][0]
        visit = Visit("ok", vm=str(vm_no), boot_nonce=vms[vm_no].boot_nonce)
        return VmVisited(call.vm_no, call.address, host_key(met), visit, {"ssh": 0.0})
