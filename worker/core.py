"""The worker's side of the conversation, and what it starts when. Events in, effects out; owns no clock, file or
process.

The rules are those of docs/protocol.md. What this core says of an attempt is true when it is said; what it hears is
obeyed only in
the session that its last Hello opened.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from ecloud import wire
from ecloud.tasks import Cause, Outcome, Resources
from ecloud.wire import AttemptName, AttemptOrder, Envelope, HeldAttempt
from worker.events import (
    AttemptEnded,
    AttemptReturned,
    ConnectionFound,
    ConnectionLost,
    Event,
    Leave,
    MessageArrived,
    StartAttempt,
    StateMeasured,
    StopAttempt,
    StreamOutput,
    TermReceived,
    TroubleChanged,
    WorkerConfig,
    WorkerEffects,
)

FLUSH_COUNT = 64
"""Outcomes that are said at once (facts: one outcome a message costs almost half of the speed)."""
FLUSH_S = 0.02
"""Longest time an outcome waits for others, while something runs or waits. What began later than this before a flush
is said with the next one: of most short tasks the boss hears only that they ended."""
FIRST_HELLO_S = 1.0
LAST_HELLO_S = 10.0
DRAIN_WITHOUT_BOSS_S = 5.0
"""A worker that wants to leave waits this long for the boss to hear of it, once it is idle."""
ENDS_SOON_S = 60.0
"""A machine that is about to end takes nothing more."""
_ROUNDING = 1e-6

FLUSH_BUSY_S = 0.05
"""The same while at least `FLUSH_COUNT` attempts wait here: then nobody is short of work, and fewer, fuller messages
cost boss and database half as much."""

Key = tuple[int, int]


class Running(msgspec.Struct, eq=False):
    """An attempt that was started here. `said`: whether the boss was told."""

    order: AttemptOrder
    gpus: tuple[int, ...]
    started_at: float
    said: bool = False
    stopping: bool = False


class Ended(msgspec.Struct, eq=False):
    """An outcome that the boss has not answered, and when it was last said."""

    outcome: Outcome
    size: int
    said_at: float = 0.0


class WorkerCore:
    """One worker process."""

    def __init__(self, config: WorkerConfig, now: float) -> None:
        self.config = config
        self.connected = False
        self.session = ""
        self.epoch = 0
        self.heartbeat_s, self.lease_s = 5.0, 60.0
        self.datastore = wire.DatastoreAccess("")
        self.settings: dict[str, float] = {}
        self.shell = "/bin/sh"
        self._access_until: float | None = None
        self.queue: dict[Key, AttemptOrder] = {}
        self.running: dict[Key, Running] = {}
        self.ended: dict[Key, Ended] = {}
        self.inits: dict[int, str] = {}
        self.draining = self.then_exit = self.leaving = False
        self.trouble = ""
        self.ignored: Counter[str] = Counter()
        self.free: Resources = dict(config.resources)
        self.free_gpus = list(config.gpus)
        self._number = self._seen = self._nonces = 0
        self._hello_at: float | None = None
        self._hello_wait_s = FIRST_HELLO_S
        self._heartbeat_at: float | None = None
        self._lease_until: float | None = None
        self._heartbeats: dict[int, float] = {}
        self._flush_at: float | None = None
        self._leave_at: float | None = None
        self._ends_soon_at = None if config.lives_s is None else now + max(0.0, config.lives_s - ENDS_SOON_S)
        self._heard_at = now
        self._state = StateMeasured()
        self._starts_changed = False
        self._queued_without_cpus = 0
        self._unsaid: dict[Key, Ended] = {}
        self._effects = WorkerEffects()
        for outcome in config.spooled:
            self._keep(outcome)

    # --- the one verb -------------------------------------------------------------------------------

    def handle(self, events: Sequence[Event], now: float) -> WorkerEffects:
        """Apply a batch, let deadlines pass, start what fits, say what is due."""
        for event in events:
            self._apply(event, now)
        self._pass_deadlines(now)
        self._start(now)
        self._flush(now)
        self._maybe_leave(now)
        effects, self._effects = self._effects, WorkerEffects()
        return effects

    def next_deadline(self) -> float | None:
        """When `handle` must be called again, whatever happens."""
        deadlines = [self._flush_at, self._leave_at, self._ends_soon_at]
        if self.connected:
            deadlines += [self._hello_at, self._heartbeat_at]
        if self.config.boss_gone_exit_s is not None and not self.leaving:
            deadlines.append(self._heard_at + self.config.boss_gone_exit_s)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    # --- events -------------------------------------------------------------------------------------

    def _apply(self, event: Event, now: float) -> None:
        match event:
            case AttemptEnded(outcome):
                self._on_attempt_ended(outcome)
            case MessageArrived(envelope):
                self._on_message(envelope, now)
            case AttemptReturned(task_no, number, reason):
                self._on_attempt_returned((task_no, number), reason)
            case ConnectionFound():
                self.connected = True
                self._hello_wait_s = FIRST_HELLO_S
                self._say_hello(now)
            case ConnectionLost():
                self.connected = False
                self.session = ""
                self._hello_at = self._heartbeat_at = None
            case TroubleChanged(text):
                if text != self.trouble:
                    self.trouble = text
                    self._starts_changed = True
                    if self.session:  # else the Welcome's heartbeat says it
                        self._heartbeat_at = now
            case TermReceived():
                self._on_term(now)
            case StateMeasured():
                self._state = event

    def _on_message(self, envelope: Envelope, now: float) -> None:
        message = envelope.message
        if isinstance(message, wire.Welcome):
            self._on_welcome(envelope, message, now)
            return
        if isinstance(message, wire.Refused) and message.code == "session":
            # A deposed boss that does not know it yet has no say in the session with the one that leads.
            if message.about == self.session and self.session and self.connected and envelope.epoch >= self.epoch:
                self._say_hello(now)
            return
        if envelope.session != self.session or not self.session or envelope.epoch != self.epoch:
            self.ignored["session"] += 1
            return
        if envelope.number <= self._seen:
            self.ignored["number"] += 1
            return
        self._seen = envelope.number
        self._heard_at = now
        self._obey(message, now)

    def _obey(self, message: wire.Message, now: float) -> None:
        match message:
            case wire.StartTasks(attempts):
                self._on_start_tasks(attempts)
            case wire.OutcomesStored(attempts):
                self._on_stored(attempts)
            case wire.HeartbeatAnswered(number):
                sent_at = self._heartbeats.pop(number, None)
                if sent_at is not None:
                    self._lease_until = max(self._lease_until or 0.0, sent_at + self.lease_s)
                    self._starts_changed = True
            case wire.DatastoreGranted(datastore, lives_s):
                self.datastore = datastore
                self._access_until = now + lives_s if datastore.credential else None
                self._starts_changed = True
            case wire.ReturnTasks(attempts):
                self._give_back([(name.task_no, name.number) for name in attempts], "")
            case wire.StopTasks(attempts, grace_s, reason):
                self._on_stop(attempts, grace_s, reason)
            case wire.Drain(_, then_exit):
                self.draining = True
                self.then_exit = self.then_exit or then_exit
                self._give_back(list(self.queue), "")
            case wire.Undrain():
                self.draining = self.then_exit
                self._starts_changed = True
            case wire.Exit(reason):
                self._leave(0, reason or "the boss said so")
            case wire.StreamLogs(task_no, number, seconds):
                self._effects.streams.append(StreamOutput(task_no, number, seconds))
            case wire.Refused(_, reason):
                self.ignored[f"refused: {reason}"] += 1
            case _:
                self.ignored["message"] += 1

    def _on_welcome(self, envelope: Envelope, welcome: wire.Welcome, now: float) -> None:
        if welcome.nonce != self._nonce or self._hello_at is None or envelope.epoch < self.epoch:
            self.ignored["welcome"] += 1
            return
        self.session, self.epoch = welcome.session, envelope.epoch
        self.heartbeat_s, self.lease_s = welcome.heartbeat_s, welcome.lease_s
        self.settings, self.shell = welcome.settings, welcome.shell
        if (welcome.datastore.address, welcome.datastore.host_key) != (self.datastore.address, self.datastore.host_key):
            self.datastore, self._access_until = welcome.datastore, None
        self._number = self._seen = 0
        self._hello_at, self._hello_wait_s = None, FIRST_HELLO_S
        self._heartbeats.clear()
        self._lease_until = max(self._lease_until or 0.0, now + self.lease_s)
        self._starts_changed = True
        self._heard_at = now
        self._unsaid = dict(self.ended)
        for running in self.running.values():
            running.said = True  # the inventory of the heartbeat says so
        self._say_heartbeat(now)
        if self.ended:
            self._flush_at = now
        if self.draining and self._leave_at is not None:
            self._say(wire.DrainWanted("it was told to leave"))

    # --- attempts -----------------------------------------------------------------------------------

    def _on_start_tasks(self, orders: Iterable[AttemptOrder]) -> None:
        back: list[Key] = []
        for order in orders:
            key = (order.task_no, order.number)
            if key in self.queue or key in self.running or key in self.ended:
                continue
            if self.draining or self.leaving or not self._fits(order.asks, self.config.resources):
                back.append(key)
                continue
            self.queue[key] = order
            self._queued_without_cpus += not _asks_cpus(order)
            self._starts_changed = True
            if order.init:
                self.inits[order.task_no] = "queued"
        if back:
            self._say_returned(back, "")

    def _start(self, now: float) -> None:
        """Start the first in the queue that fit, in order."""
        if not self._starts_changed or not self.queue:
            return
        if self.draining or self.leaving or self.trouble or self._lease_until is None or now >= self._lease_until:
            return
        if self.datastore.host_key and not self.datastore.credential:
            return  # access is on its way
        self._starts_changed = False
        unready: list[Key] = []
        for key in tuple(self.queue):
            order = self.queue[key]
            if self.free.get("cpus", 0.0) <= _ROUNDING:
                if not self._queued_without_cpus:
                    break  # a long queue is not looked through for each task that ends
                if _asks_cpus(order):
                    continue
            ready = self._init_stands(order)
            if ready is False:
                unready.append(key)
            elif ready and self._fits(order.asks, self.free):
                self._start_one(key, order, now)
        if unready:
            self._give_back(unready, "init")

    def _init_stands(self, order: AttemptOrder) -> bool | None:
        """Whether what must go before it has succeeded here: True, None (not yet), False (it failed, or is not known
        here)."""
        if order.init:
            busy = any(running.order.init and running.order.run_no == order.run_no for running in self.running.values())
            return None if busy else True
        states = [self.inits.get(task_no, "unknown") for task_no in order.after_init]
        if any(state in ("failed", "unknown") for state in states):
            return False
        return None if any(state != "succeeded" for state in states) else True

    def _start_one(self, key: Key, order: AttemptOrder, now: float) -> None:
        self._unqueue(key)
        for name, amount in order.asks.items():
            self.free[name] = self.free.get(name, 0.0) - amount
        wanted = int(order.asks.get("gpus", 0))
        gpus = tuple(self.free_gpus[:wanted])
        del self.free_gpus[:wanted]
        self.running[key] = Running(order, gpus, now)
        if order.init:
            self.inits[order.task_no] = "running"
        self._effects.starts.append(StartAttempt(order, gpus if self.config.gpus else None))
        if self._flush_at is None:
            self._flush_at = now + self._flush_s

    def _unqueue(self, key: Key) -> AttemptOrder:
        order = self.queue.pop(key)
        self._queued_without_cpus -= not _asks_cpus(order)
        return order

    @staticmethod
    def _fits(asks: Resources, offers: Resources) -> bool:
        return all(offers.get(name, 0.0) + _ROUNDING >= amount for name, amount in asks.items())

    def _release(self, key: Key) -> Running | None:
        running = self.running.pop(key, None)
        if running is None:
            return None
        for name, amount in running.order.asks.items():
            self.free[name] += amount
        self.free_gpus = sorted([*self.free_gpus, *running.gpus])
        if not self.running:
            self.free = dict(self.config.resources)
        self._starts_changed = True
        return running

    def _on_attempt_ended(self, outcome: Outcome) -> None:
        key = (outcome.task_no, outcome.number)
        running = self._release(key)
        if running is None:
            return
        self._effects.spool.append(outcome)
        self._keep(outcome)
        if running.order.init:
            succeeded = outcome.cause is Cause.SUCCESS
            self.inits[outcome.task_no] = "succeeded" if succeeded else "failed"
            if not succeeded:
                run_no = running.order.run_no
                self._give_back([other for other, order in self.queue.items() if order.run_no == run_no], "init")

    def _keep(self, outcome: Outcome) -> None:
        size = 300 + len(outcome.stdout) + len(outcome.stderr) + len(outcome.command) + 150 * len(outcome.manifest)
        key = (outcome.task_no, outcome.number)
        self.ended[key] = self._unsaid[key] = Ended(outcome, size)

    def _on_attempt_returned(self, key: Key, reason: str) -> None:
        running = self._release(key)
        if running is not None:
            if running.order.init:
                self.inits.pop(key[0], None)
            self._say_returned([key], reason)

    def _on_stored(self, names: Iterable[AttemptName]) -> None:
        for name in names:
            key = (name.task_no, name.number)
            self._unsaid.pop(key, None)
            if self.ended.pop(key, None) is not None:
                self._effects.forget.append(key)

    def _on_stop(self, names: Iterable[AttemptName], grace_s: float, reason: str) -> None:
        self._give_back([(name.task_no, name.number) for name in names], "")
        for name in names:
            running = self.running.get((name.task_no, name.number))
            if running is not None and not running.stopping:
                running.stopping = True
                self._effects.stops.append(StopAttempt(name.task_no, name.number, grace_s, reason))

    def _give_back(self, keys: Iterable[Key], reason: str) -> None:
        back = [key for key in keys if key in self.queue]
        for key in back:
            order = self._unqueue(key)
            if order.init:
                self.inits.pop(order.task_no, None)
        if back:
            self._say_returned(back, reason)

    def _say_returned(self, keys: Sequence[Key], reason: str) -> None:
        for start in range(0, len(keys), wire.BATCH_COUNT):
            names = tuple(AttemptName(*key) for key in keys[start : start + wire.BATCH_COUNT])
            self._say(wire.TasksReturned(names, reason))

    # --- saying -------------------------------------------------------------------------------------

    @property
    def _nonce(self) -> str:
        return f"{self.config.peer}-{self._nonces}"

    def _say(self, message: wire.Message) -> None:
        """In the session; without one it is not said: the inventory will tell."""
        if self.session:
            self._number += 1
            self._effects.says.append(
                Envelope(wire.PROTOCOL_VERSION, self.config.peer, self.session, self._number, message)
            )

    def _say_hello(self, now: float) -> None:
        self.session = ""
        self._heartbeat_at = None
        self._nonces += 1
        config = self.config
        hello = wire.Hello(
            nonce=self._nonce,
            kind="worker",
            software=config.software,
            host=config.host,
            addresses=config.addresses,
            boot_id=config.boot_id,
            home=config.home,
            pid=config.pid,
            vm=config.vm,
            boot_nonce=config.boot_nonce,
            resources=config.resources,
            labels=config.labels,
            lives_s=config.lives_s,
            attempts=self.inventory,
            ssh_key=config.ssh_key,
        )
        self._effects.says.append(Envelope(wire.PROTOCOL_VERSION, config.peer, "", 0, hello))
        self._hello_at = now + self._hello_wait_s
        self._hello_wait_s = min(LAST_HELLO_S, self._hello_wait_s * 2)

    @property
    def inventory(self) -> tuple[HeldAttempt, ...]:
        """Everything held here."""
        return (
            *(HeldAttempt(*key, "queued") for key in self.queue),
            *(HeldAttempt(*key, "running") for key in self.running),
            *(HeldAttempt(*key, "ended") for key in self.ended),
        )

    def _say_heartbeat(self, now: float) -> None:
        self._say(
            wire.Heartbeat(
                orders_seen=self._seen,
                attempts=self.inventory,
                spooled=len(self.ended),
                free_disk_mb=self._state.free_disk_mb,
                load=self._state.load,
                trouble=self.trouble,
                access_s=None if self._access_until is None else max(0.0, self._access_until - now),
            )
        )
        self._heartbeats[self._number] = now
        while len(self._heartbeats) > 100:
            del self._heartbeats[next(iter(self._heartbeats))]
        self._heartbeat_at = now + self.heartbeat_s

    @property
    def _flush_s(self) -> float:
        return FLUSH_S if len(self.queue) < FLUSH_COUNT else FLUSH_BUSY_S

    def _flush(self, now: float) -> None:
        """Say what started and what ended, in batches; soon, not at once, so that there are batches."""
        if not self.session:
            self._flush_at = None
            return
        unsaid = self._unsaid
        idle = not self.queue and not self.running
        due = self._flush_at is not None and now >= self._flush_at
        if not (due or len(unsaid) >= FLUSH_COUNT or (unsaid and idle)):
            if unsaid and self._flush_at is None:
                self._flush_at = now + self._flush_s
            return
        self._flush_at = None
        self._say_started(now)
        self._unsaid = {}
        self._say_ended(unsaid.values(), now)

    def _say_started(self, now: float) -> None:
        started = []
        for key, running in self.running.items():
            if running.said:
                continue
            if now < running.started_at + FLUSH_S:
                self._flush_at = min(self._flush_at or math.inf, running.started_at + self._flush_s)
                continue
            running.said = True
            started.append(wire.StartedAttempt(*key, now - running.started_at))
        if started:
            self._say(wire.TasksStarted(tuple(started)))

    def _say_ended(self, unsaid: Iterable[Ended], now: float) -> None:
        batch: list[Outcome] = []
        size = 0
        for ended in unsaid:
            if batch and (len(batch) >= wire.BATCH_COUNT or size + ended.size > wire.BATCH_BYTES):
                self._say(wire.TasksEnded(tuple(batch)))
                batch, size = [], 0
            batch.append(ended.outcome)
            size += ended.size
            ended.said_at = now
        if batch:
            self._say(wire.TasksEnded(tuple(batch)))

    # --- time ---------------------------------------------------------------------------------------

    def _pass_deadlines(self, now: float) -> None:
        if self.connected and self._hello_at is not None and now >= self._hello_at:
            self._say_hello(now)
        if self.session and self._heartbeat_at is not None and now >= self._heartbeat_at:
            self._say_heartbeat(now)
            for key, ended in self.ended.items():
                if key not in self._unsaid and now - ended.said_at >= 2 * self.heartbeat_s:
                    self._unsaid[key] = ended
                    self._flush_at = now
        if self._ends_soon_at is not None and now >= self._ends_soon_at:
            self._ends_soon_at = None
            self._want_drain("its machine is about to end", now)
        gone_s = self.config.boss_gone_exit_s
        if gone_s is not None and now - self._heard_at >= gone_s and not self.leaving:
            self._leave(0, f"no boss was heard for {gone_s:.0f} s")

    def _on_term(self, now: float) -> None:
        if self._leave_at is not None or self.leaving:
            self._leave(0, "told to leave at once")
        else:
            self._want_drain("it was told to leave", now)

    def _want_drain(self, reason: str, now: float) -> None:
        self.draining = self.then_exit = True
        self._leave_at = now + DRAIN_WITHOUT_BOSS_S
        self._give_back(list(self.queue), "")
        self._say(wire.DrainWanted(reason))

    def _maybe_leave(self, now: float) -> None:
        if not self.then_exit or self.leaving or self.running or self.queue:
            if self._leave_at is not None:
                self._leave_at = max(self._leave_at, now + DRAIN_WITHOUT_BOSS_S)
            return
        waited_enough = self._leave_at is not None and now >= self._leave_at
        if self.ended and not waited_enough:
            if self._leave_at is None:
                self._leave_at = now + DRAIN_WITHOUT_BOSS_S
            return
        self._leave(0, "drained")

    def _leave(self, code: int, reason: str) -> None:
        if not self.leaving:
            self.leaving = True
            self._say(wire.Goodbye(reason))
            self._effects.leave = Leave(code, reason)

    def check(self) -> None:
        """Invariants: an attempt is in one place; resources add up; GPUs are given once."""
        places = [*self.queue, *self.running, *self.ended]
        assert len(places) == len(set(places)), "an attempt is in two places"
        assert self._unsaid.keys() <= self.ended.keys(), "what was answered waits to be said"
        assert self._queued_without_cpus == sum(not _asks_cpus(order) for order in self.queue.values())
        taken: Resources = {}
        gpus = list(self.free_gpus)
        for running in self.running.values():
            gpus += running.gpus
            for name, amount in running.order.asks.items():
                taken[name] = taken.get(name, 0.0) + amount
        assert sorted(gpus) == sorted(self.config.gpus), "a GPU is lost or given twice"
        for name, amount in taken.items():
            assert amount <= self.config.resources.get(name, 0.0) + 0.001, f"more {name} taken than there are"
        for name, amount in self.config.resources.items():
            assert abs(self.free[name] + taken.get(name, 0.0) - amount) < 0.001, f"{name} does not add up"


def _asks_cpus(order: AttemptOrder) -> bool:
    return order.asks.get("cpus", 0.0) > 0
