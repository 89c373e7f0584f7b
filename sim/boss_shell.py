"""A simulated boss process: the product's own loop (`boss.shell.driver`), which may be killed between any two steps.

Owns what a process has in addition to a driver: inbox, connection, clock, start and end. Only the store outlives it.
"""

from __future__ import annotations

from collections.abc import Callable

from boss.core.boss import Boss
from boss.core.model.config import BossConfig
from boss.core.model.effects import Effects
from boss.core.model.events import BrokerFound, BrokerLost, Event, MessageArrived
from boss.core.model.rows import Snapshot
from boss.shell.driver import Commit, Driver, Pause, Turn
from boss.shell.inbox import MAX_BYTES, MAX_PEER_MESSAGES, Inbox
from boss.store.store import AnotherBossLeads, Deposed
from ecloud.model import wire
from ecloud.model.topics import peer_topic
from ecloud.model.wire import Envelope
from sim.boss_ports import BossCalls, BossStore, Places
from sim.network import Link, key_of
from sim.store import CLUSTER_ID
from sim.world import TICK_S

CLOCK_STEP_S = 7200.0
EVENTS_A_BATCH = 5_000
SMALL_INBOX = 3, 6_000
"""Messages of one peer, and bytes of all, in an inbox that is soon full."""
CHECKED_ALWAYS, CHECKED_EACH = 200, 100
"""Cores with fewer tasks and workers than the first number are checked after each batch; larger ones after this many
batches."""


class BossProcess:
    """One boss process, from its attempt to lead until it dies or is deposed."""

    def __init__(
        self, name: str, places: Places, config: BossConfig, replace: bool, gone: Callable[[str], None]
    ) -> None:
        self.name = name
        self.world = places.world
        self.faults = places.faults
        self.places = places
        self.config = config
        self.alive = True
        self.frozen = False
        self.clock_s = 0.0
        """Offset of its clock from the world's. It changes between processes, not within one."""
        if self.world.fault("clock_steps", self.faults.clock_steps):
            self.clock_s = self.world.random.uniform(-CLOCK_STEP_S, CLOCK_STEP_S)
        self.store = BossStore(name, places)
        self.calls = BossCalls(name, places, self.store, self._put, lambda: self.alive)
        self.driver = Driver(
            self.store, self.calls, self, self._make_core, lambda: self.now, self._report, self._decided,
            self._take_waiting,
        )  # fmt: skip
        self.link: Link | None = None
        self._gone = gone
        self._inbox: Inbox[Event] = Inbox()
        if self.world.chance(self.faults.inbox_full):
            self._inbox.max_peer_messages, self._inbox.max_bytes = SMALL_INBOX
        self._turn: Turn | None = None
        self._woken = False
        self._wake_at: float | None = None
        self._handled = 0
        self.world.after(0.0, lambda: self._lead(replace))

    @property
    def now(self) -> float:
        """Time of its own clock."""
        return self.world.now + self.clock_s

    @property
    def core(self) -> Boss | None:
        """Its core, once it leads."""
        return self.driver.core

    # --- beginning and end -----------------------------------------------------------------------

    def _lead(self, replace: bool) -> None:
        if not self.alive:
            return
        try:
            epoch = self.store.store.lead(self.name, self.now, replace)
        except AnotherBossLeads:
            self.world.after(1.0, lambda: self._lead(replace))
            return
        self.world.tell(self.name, f"leads with epoch {epoch}")
        self.link = self.places.network.connect("", self._hear, self._found, self._lost)
        self.link.backlog = lambda: self._inbox.count
        self._run(self._begin())

    def _begin(self) -> Turn:
        yield from self.driver.begin()
        yield from self.driver.turn([])

    def _make_core(self, snapshot: Snapshot) -> Boss:
        return Boss(snapshot, self.config, self.now)

    def _report(self, level: int, text: str) -> None:
        self.world.tell(self.name, text)

    def die(self, why: str) -> None:
        """Die: only calls that are under way still complete."""
        if self.alive:
            self.world.tell(self.name, f"dies: {why}")
            self.alive = False
            if self.link is not None:
                self.link.close()
            self._turn = None
            self._gone(why)

    def freeze(self, seconds: float) -> None:
        """Suspend the process for a while."""
        if self.alive and not self.frozen:
            self.world.tell(self.name, f"stands still for {seconds:.1f} s")
            self.frozen = True
            self.world.after(seconds, self.thaw)

    def thaw(self) -> None:
        """Resume the process."""
        if self.alive and self.frozen:
            self.world.tell(self.name, "continues")
            self.frozen = False
            self._go_on()

    # --- the inbox -------------------------------------------------------------------------------

    def _found(self) -> None:
        self.places.checker.fleet.on_hearing(self.name)
        self._put(BrokerFound())

    def _lost(self, reason: str) -> None:
        self.places.checker.fleet.on_deaf(self.name)
        self._put(BrokerLost(reason))

    def _hear(self, topic: str, payload: bytes) -> None:
        inbox, dropped = self._inbox, self._inbox.dropped
        inbox.put_message(topic, payload)
        if self.faults.inbox_full:
            self.world.fired["inbox_full"] += inbox.dropped - dropped
            if inbox.dropped == dropped:
                self.places.checker.on_inbox(self.name, inbox, len(payload))
        self._wake()

    def make_room(self) -> None:
        """Give its inbox the usual limits."""
        self._inbox.max_peer_messages, self._inbox.max_bytes = MAX_PEER_MESSAGES, MAX_BYTES

    def _put(self, event: Event) -> None:
        if self.alive:
            self._inbox.put(event)
            self._wake()

    def _wake(self) -> None:
        if not self._woken and self._turn is None and not self.frozen:
            self._woken = True
            self.world.after(0.0001, self._take)

    def _take(self) -> None:
        self._woken = False
        if self.alive and self._turn is None and not self.frozen and self.core is not None:
            self._run(self.driver.turn(self._take_waiting()))

    def _take_waiting(self) -> list[Event]:
        events: list[Event] = []
        while len(events) < EVENTS_A_BATCH and not self._inbox.is_empty:
            item = self._inbox.get(0.0)
            if isinstance(item, tuple):
                envelope, key_name = wire.decode(item[1], item[0], key_of)
                events.append(MessageArrived(envelope, key_name))
            elif item is not None:
                events.append(item)
        return events

    # --- turns -----------------------------------------------------------------------------------

    def _run(self, turn: Turn) -> None:
        self._turn = turn
        self._go_on()

    def _go_on(self) -> None:
        """Run the current turn until time must pass."""
        if not self.alive or self.frozen or self._turn is None:
            return self._wake() if self.alive and not self.frozen else None
        deadly = self.faults.boss_death
        try:
            for step in self._turn:
                if type(step) is Pause:
                    self.world.after(step.seconds, self._go_on)
                    return None
                if deadly and self.world.fault("boss_death", deadly):
                    return self.die("killed between two effects")
                if type(step) is Commit:
                    self.world.after(self.store.commit_takes_s(step.writes), self._go_on)
                    return None
        except Deposed as error:
            return self.die(str(error))
        self._turn = None
        return self._wait()

    def _wait(self) -> None:
        if not self._inbox.is_empty:
            self._wake()
            return
        at = self.driver.wakes_at - self.clock_s + TICK_S
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

    def _decided(self, core: Boss, effects: Effects) -> None:
        self.places.checker.fleet.decided_at[self.name] = self.places.world.now
        if effects.writes.workers:
            self.places.checker.fleet.on_decided(self.name)
        self._handled += 1
        size = len(core.book.graph.nodes) + len(core.fleet.workers)
        if size < CHECKED_ALWAYS or self._handled % CHECKED_EACH == 0:
            core.check()

    # --- sending ---------------------------------------------------------------------------------

    def publish(self, envelope: Envelope, key_name: str) -> None:
        """Publish at the broker, and report the message to the checker (the driver's `SpeakPort`)."""
        assert self.link is not None
        self.places.checker.on_said(self.name, envelope)
        self.link.publish(self.name, envelope, key_name, peer_topic(CLUSTER_ID, envelope.peer))
