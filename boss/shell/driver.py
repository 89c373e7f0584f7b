"""The loop between a core and the world: a batch of events in, one decision, one commit, then messages, calls, reads.

    driver = Driver(store, calls, speaker, make_core, clock)
    for step in driver.begin(): ...
    for step in driver.turn(events): ...

The product and the simulation run this code over three ports: `StorePort`, `CallPort`, `SpeakPort`. The driver owns the
core, the number of the batch, the unanswered reads, and the order of effects. It owns no inbox, thread, socket or
clock.

A turn is a generator. It yields each step before it takes it; at a `Pause` its caller lets that time pass. A process
may end between any two steps: only the contents of the store survive. The simulation kills it there.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence, Set
from enum import Enum
from functools import partial
from typing import Protocol, TypeVar

import msgspec

from boss.core.boss import Boss
from boss.core.model.effects import (
    Call,
    Effects,
    LeadAbove,
    LoadCalls,
    LoadRun,
    LoadValues,
    Read,
    SelectTasks,
    Send,
)
from boss.core.model.events import (
    AttemptsDeclared,
    BatchRefused,
    BrokerLost,
    CallsLoaded,
    Event,
    RunLoaded,
    TasksSelected,
    ValuesLoaded,
)
from boss.core.model.rows import PushAnswered, RunImage, Snapshot, Writes
from boss.core.tasks.manifests import declared_results
from boss.store.store import CommitRefused, StoreAway
from datastore.backoff import Backoff
from ecloud.model.tasks import Result, TaskBody
from ecloud.model.wire import AttemptOrder, CallEnded, CallValue, Envelope, StartTasks

RENEW_S = 5.0
"""How often a leader with nothing to commit records that it is alive."""
LEAD_ABOVE_EVERY_S = 10.0
DATABASE_BACKOFF = Backoff(0.1, 5.0)
"""Delay between queries while the database does not answer."""

READS_TOGETHER = 64
"""Maximum runs that one query looks for."""

NEEDS_VALUES = b'"needs":['
"""Occurs in the stored definition of a call that needs values of others; in other definitions it causes a useless
lookup."""

LONG_BYTES = 256 * 1024
"""Of a longer definition, a worker gets only the part that it needs."""

_Answer = TypeVar("_Answer")
_Lookup = LoadRun | SelectTasks | LoadCalls | LoadValues


class StorePort(Protocol):
    """The tables. Each method raises `StoreAway` if the database does not answer; the driver repeats the call."""

    @property
    def epoch(self) -> int:
        """The epoch in which this boss writes."""

    def last_batch(self) -> int:
        """The number of the last committed batch."""

    def load(self) -> Snapshot:
        """Everything unfinished."""

    def commit(self, batch: int, writes: Writes, now: float) -> None:
        """Write one transaction; repeating a batch is harmless. Raises `CommitRefused`, `Deposed`."""

    def renew(self, now: float) -> None:
        """Record that the leader is alive. Raises `Deposed`."""

    def lead_above(self, epoch: int, now: float) -> int:
        """Continue to lead, in an epoch above this one. Returns it. Raises `Deposed`."""

    def load_runs(self, wanted: Sequence[LoadRun]) -> list[tuple[RunImage | None, PushAnswered | None]]:
        """For the first ones, at least one: the run, and the result of the push. Raises `Deposed`."""

    def load_calls(self, wanted: LoadCalls) -> tuple[list[CallEnded], bool]:
        """The state of calls, in order, and whether there are more. Raises `Deposed`."""

    def select(self, wanted: SelectTasks) -> tuple[list[RunImage], set[int], str]:
        """Resolve a selection. Raises `Deposed`."""

    def load_values(self, wanted: LoadValues) -> tuple[list[CallValue], bool]:
        """A page of the values that a call needs, and whether there are more. Raises `Deposed`."""

    def needed_values(self, task_nos: Sequence[int], most_bytes: int) -> dict[int, tuple[CallValue, ...] | None]:
        """The values of the calls that these calls depend on, by task_no; None if they need more than `most_bytes`."""

    def definitions(self, task_nos: Sequence[int]) -> dict[int, bytes]:
        """Stored definitions by task_no, as JSON; missing tasks are omitted."""


class CallPort(Protocol):
    """Calls to the datastore and to clouds. Their answers are events of later turns."""

    def make(self, call: Call) -> None:
        """Begin the call and return immediately."""


class SpeakPort(Protocol):
    """The broker."""

    def publish(self, envelope: Envelope, key_name: str) -> None:
        """Send to `envelope.peer`, signed with this key. Delivery is not guaranteed."""


class Commit(msgspec.Struct, frozen=True):
    """Step: the driver is about to commit these rows."""

    writes: Writes


class Pause(msgspec.Struct, frozen=True):
    """Step: the database does not answer; the driver tries again after `seconds`."""

    seconds: float


class Next(Enum):
    """Steps without data: what the driver is about to do."""

    READ = "read"
    SEND = "send"
    CALL = "call"


Step = Commit | Pause | Next
Turn = Generator[Step, None, None]
Report = Callable[[int, str], None]
"""Takes a level of `logging` and a sentence."""


class Driver:
    """Carries out the decisions of one core. If the database refuses a batch, the driver makes a new core from the
    tables."""

    def __init__(
        self,
        store: StorePort,
        calls: CallPort,
        speaker: SpeakPort,
        make_core: Callable[[Snapshot], Boss],
        clock: Callable[[], float],
        report: Report,
        decided: Callable[[Boss, Effects], None] = lambda core, effects: None,
        waiting: Callable[[], Sequence[Event]] = lambda: (),
        forgotten: Callable[[], None] = lambda: None,
    ) -> None:
        """`make_core` makes a core from a snapshot; `decided` is called after each decision, before its commit.
        `waiting` takes the present contents of the caller's inbox, without waiting for more. `forgotten` is called when
        a core was given up."""
        self._store = store
        self._calls = calls
        self._speaker = speaker
        self._make_core = make_core
        self._clock = clock
        self._report = report
        self._decided = decided
        self._waiting = waiting
        self._forgotten = forgotten
        self.core: Boss | None = None
        self._batch = 0
        self._events: Sequence[Event] = ()
        """Events of the decision that is being carried out."""
        self._reads: deque[Read] = deque()
        self._learned: list[Event] = []
        """Events that the driver produced while it carried out the last decision: the core receives them first."""
        self._renewed_at = clock()
        self._led_above_at = -LEAD_ABOVE_EVERY_S

    # --- turns --------------------------------------------------------------------------------------

    def begin(self) -> Turn:
        """Make a core from the contents of the store. The caller then runs a turn without events."""
        self._reads.clear()
        deaf = self.core is not None and self.core.leases.deaf
        # the new core gets no other event for an earlier connection loss
        self._learned = [BrokerLost()] if deaf else []
        if self.core is not None:
            self.core = None  # two cores together would need twice the memory
            self._forgotten()
        self._batch = yield from self._ask(self._store.last_batch)
        snapshot = yield from self._ask(self._store.load)
        self.core = self._make_core(snapshot)

    def turn(self, events: Sequence[Event]) -> Turn:
        """Decide on a batch of events and carry everything out; reads are answered before it ends.

        Raises `Deposed` if another boss leads.
        """
        try:
            yield from self._carry_out(self._decide(events))
            while self._reads:
                yield Next.READ
                read = self._reads.popleft()
                if isinstance(read, LeadAbove):
                    yield from self._lead_above(read.epoch)
                else:
                    answers = yield from self._ask(partial(self._answer, self._with_alike(read)))
                    # This turn may have waited long for the database: heartbeats that arrived meanwhile are handled
                    # before the alarms of this decision give their workers up. The answers go first: they show the
                    # tables as the core left them.
                    yield from self._carry_out(self._decide([*answers, *self._waiting()]))
        except CommitRefused as error:
            kinds = dict(Counter(type(event).__name__ for event in self._events))
            self._report(logging.ERROR, f"the database refuses a batch of {kinds}, which is left out: {error}")
            yield from self.begin()
            self._learned.append(BatchRefused())
        self._renew()

    @property
    def wakes_at(self) -> float:
        """When the next turn is due, with or without events, by the clock."""
        assert self.core is not None
        deadline = self.core.next_deadline()
        renewal = self._renewed_at + RENEW_S
        return renewal if deadline is None or renewal < deadline else deadline

    def _decide(self, events: Sequence[Event]) -> Effects:
        assert self.core is not None
        if self._learned:
            events = [*self._learned, *events]
            self._learned = []
        self._events = events
        effects = self.core.handle(events, self._clock())
        self._decided(self.core, effects)
        return effects

    # --- carrying out -------------------------------------------------------------------------------

    def _carry_out(self, effects: Effects) -> Turn:
        """Commit, then send, then call: no message contains uncommitted state."""
        if not effects.writes.is_empty:
            yield from self._commit(effects.writes)
        yield from self._publish(effects.sends, effects.writes.revoked_keys)
        for call in effects.calls:
            yield Next.CALL
            self._calls.make(call)
        self._reads.extend(effects.reads)

    def _commit(self, writes: Writes) -> Turn:
        batch = self._batch + 1
        # After a lost answer the store checks whether this batch was committed, and whether this boss still leads.
        yield from self._ask(lambda: self._store.commit(batch, writes, self._clock()), Commit(writes))
        self._batch = batch
        self._renewed_at = self._clock()

    def _publish(self, sends: Sequence[Send], just_revoked: Set[str]) -> Turn:
        """Send messages. With a revoked key, only the message that it was revoked just now, so that its holder stops
        its tasks."""
        assert self.core is not None
        silent = self.core.revoked_keys
        orders = [send.envelope.message for send in sends if isinstance(send.envelope.message, StartTasks)]
        bodies: dict[int, bytes] = {}
        values: dict[int, tuple[CallValue, ...] | None] = {}
        values_bytes = self.core.config.values_bytes
        if orders:
            bodies = yield from self._ask(
                partial(self._store.definitions, [order.task_no for message in orders for order in message.attempts])
            )
            self._learn_declared(orders, bodies)
            bodies = {task_no: _for_worker(body) for task_no, body in bodies.items()}
            if needy := [task_no for task_no, body in bodies.items() if NEEDS_VALUES in body]:
                values = yield from self._ask(partial(self._store.needed_values, needy, values_bytes))
        for send in sends:
            yield Next.SEND
            if send.key_name not in silent or send.key_name in just_revoked:
                message = send.envelope.message
                if isinstance(message, StartTasks):
                    can_ask = self.core.asks_values(send.envelope.peer)
                    message = _with_bodies(message, bodies, values, values_bytes, can_ask)
                # Everything that a peer receives is committed in this batch or before.
                envelope = msgspec.structs.replace(send.envelope, message=message, batch=self._batch)
                self._speaker.publish(envelope, send.key_name)

    def _learn_declared(self, messages: Sequence[StartTasks], bodies: dict[int, bytes]) -> None:
        """Note the results that each order declares: the core checks the attempt's outcome against them."""
        declared: dict[tuple[int, int], tuple[Result, ...]] = {}
        for message in messages:
            for order in message.attempts:
                body = bodies.get(order.task_no)
                results = declared_results(body) if body is not None else ()
                if results:
                    declared[(order.task_no, order.number)] = results
        if declared:
            self._learned.append(AttemptsDeclared(declared))

    def _lead_above(self, epoch: int) -> Turn:
        """Make a new core in a higher epoch, at a limited rate: any holder of a key may claim to know a high epoch."""
        now = self._clock()
        if now < self._led_above_at + LEAD_ABOVE_EVERY_S:
            return
        self._led_above_at = now
        led = yield from self._ask(lambda: self._store.lead_above(epoch, now))
        self._report(
            logging.WARNING, f"a peer knows epoch {epoch}, which this database never had: leading in epoch {led}"
        )
        yield from self.begin()

    def _with_alike(self, read: _Lookup) -> Sequence[_Lookup]:
        """The read, and those of other runs that follow it: many small pushes become one query and one commit. Not soon
        after a refused batch: its pushes come again, and the good ones must not be refused with the bad one."""
        reads: list[_Lookup] = [read]
        assert self.core is not None
        if isinstance(read, LoadRun) and not self.core.pushes.are_apart(self._clock()):
            names = {read.name}
            while self._reads and len(reads) < READS_TOGETHER:
                other = self._reads[0]
                if not isinstance(other, LoadRun) or other.name in names:
                    break
                names.add(other.name)
                reads.append(other)
                self._reads.popleft()
        return reads

    def _answer(self, reads: Sequence[_Lookup]) -> list[Event]:
        read = reads[0]
        if isinstance(read, LoadCalls):
            calls, more = self._store.load_calls(read)
            return [CallsLoaded(read.token, tuple(calls), more)]
        if isinstance(read, LoadValues):
            values, more = self._store.load_values(read)
            return [ValuesLoaded(read.token, tuple(values), more)]
        if isinstance(read, SelectTasks):
            images, task_nos, problem = self._store.select(read)
            return [TasksSelected(read.token, tuple(images), frozenset(task_nos), problem)]
        wanted = [item for item in reads if isinstance(item, LoadRun)]
        found = self._store.load_runs(wanted)
        self._reads.extendleft(reversed(wanted[len(found) :]))
        return [RunLoaded(item.token, image, answered) for item, (image, answered) in zip(wanted, found)]

    # --- the database -------------------------------------------------------------------------------

    def _ask(self, question: Callable[[], _Answer], before: Step | None = None) -> Generator[Step, None, _Answer]:
        """Repeat a query until it succeeds, with a pause after each failure. `before`: the step that begins each
        try."""
        failures = 0
        while True:
            if before is not None:
                yield before
            try:
                answer = question()
            except StoreAway as error:
                if not failures:
                    self._report(logging.ERROR, f"waiting for the database: {error}")
            else:
                if failures:
                    self._report(logging.INFO, "the database is back")
                return answer
            yield Pause(DATABASE_BACKOFF.wait_s(failures))
            failures += 1

    def _renew(self) -> None:
        """Record that this leader is alive if it has committed nothing for a while."""
        now = self._clock()
        if now < self._renewed_at + RENEW_S:
            return
        self._renewed_at = now
        try:
            self._store.renew(now)
        except StoreAway as error:
            self._report(logging.WARNING, f"the database does not answer: {error}")


def _with_bodies(
    message: StartTasks,
    bodies: dict[int, bytes],
    values: dict[int, tuple[CallValue, ...] | None],
    values_bytes: int,
    can_ask: bool,
) -> StartTasks:
    """Add the definitions to the orders, and the values that calls need while the message stays below `values_bytes`.
    A call whose values do not fit fails on a worker that cannot ask for them (`can_ask`). The stored JSON is embedded
    as it is: msgspec writes Raw without parsing it.

    An order whose definition no longer exists (its task was dropped a moment ago) is omitted; its attempt is taken back
    when the worker's next heartbeat lacks it.
    """
    orders: list[AttemptOrder] = []
    room = values_bytes - sum([len(bodies.get(order.task_no, b"")) for order in message.attempts] if values else ())
    for order in message.attempts:
        body = bodies.get(order.task_no)
        if body is None:
            continue
        needed = values.get(order.task_no, ())
        size = values_bytes if needed is None else sum([value.json_bytes for value in needed])
        apart = needed is None or (bool(needed) and size > room)
        room -= 0 if apart else size
        if apart and not can_ask:
            orders.append(msgspec.structs.replace(order, body=_TOO_OLD))
            continue
        orders.append(
            msgspec.structs.replace(order, body=msgspec.Raw(body), values=() if apart else needed, values_apart=apart)
        )
    return StartTasks(tuple(orders))


_TOO_OLD = TaskBody(
    "too-old",
    (
        "echo 'update ECLOUD on this worker: it cannot ask for the values of a call that exceed one message' >&2",
        "exit 1",
    ),
)
"""What a worker runs that would start a call without its values."""


def _for_worker(body: bytes) -> bytes:
    """A definition, without its dependencies if it is long: with them and the rest of an order, a message could exceed
    a broker's limit that the push had kept."""
    return body if len(body) <= LONG_BYTES else msgspec.json.encode(msgspec.json.decode(body, type=TaskBody))
