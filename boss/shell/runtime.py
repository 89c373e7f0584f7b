"""THE loop: one thread. Facts in, one decision out, one commit, then words and calls.

take what is in the inbox, or wait until the next deadline effects = boss.handle(events, now) commit effects.writes
again and again while the database is away; nothing is said before fill in the bodies, publish     one SELECT per batch
hand over the calls             their completions come back as events answer the reads                before any other
event
"""

from __future__ import annotations

import logging
import queue
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from boss.core.boss import Boss
from boss.core.model.config import BossConfig
from boss.core.model.effects import Call, Effects, LoadRun, PromoteFiles, Read, Send
from boss.core.model.events import BrokerFound, BrokerLost, Event, MessageArrived, RunLoaded, TasksSelected
from boss.core.tasks.manifests import declared_of
from boss.shell.calls import Calls
from boss.shell.embedded_broker import BrokerWontStart, EmbeddedBroker
from boss.shell.gc_pauses import Cycles
from boss.store.store import CommitRefused, Deposed, Store, StoreAway
from ecloud.client.broker import BrokerAddress, BrokerConnection
from ecloud.config.secrets import derive_key
from ecloud.model import wire
from ecloud.model.topics import peer_topic
from ecloud.model.wire import AttemptOrder, Envelope, Unreadable

log = logging.getLogger("boss")
EVENTS_A_BATCH = 5_000
"""Taken from the inbox at once: bounds a transaction; a batch grows by itself while a commit runs."""
RENEW_S = 5.0
FIRST_WAIT_S = 0.1
LAST_WAIT_S = 5.0
LOG_EVERY_S = 10.0
KEYS_KEPT = 100_000
_Answer = TypeVar("_Answer")


class Clock:
    """Epoch seconds that never step back: the wall clock at the start plus what has passed."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        """Now."""
        return self._offset + time.monotonic()


class Runtime:
    """The boss's shell."""

    def __init__(
        self,
        store: Store,
        config: BossConfig,
        cluster_id: str,
        secret: bytes,
        address: BrokerAddress,
        make_calls: Callable[[Callable[[Event], None]], Calls],
        embedded: EmbeddedBroker | None,
        clock: Clock,
    ) -> None:
        self._store = store
        self._config = config
        self._cluster_id = cluster_id
        self._secret = secret
        self._embedded = embedded
        self._clock = clock
        self._keys: dict[str, bytes] = {}
        self._inbox: queue.SimpleQueue[Event | tuple[str, bytes] | None] = queue.SimpleQueue()
        self._calls = make_calls(self._inbox.put)
        self._stopping = False
        self._unreadable: Counter[str] = Counter()
        self._told_unreadable_at = 0.0
        self._renewed_at = clock()
        self._batch = 0
        self._cycles = Cycles()
        prefix = f"ecloud/{cluster_id}"
        self._broker = BrokerConnection(
            address,
            f"boss-{cluster_id}",
            [f"{prefix}/boss/+", f"{prefix}/presence/+"],
            lambda topic, payload: self._inbox.put((topic, payload)),
            lambda: self._inbox.put(BrokerFound()),
            self._on_broker_lost,
        )
        self._boss = self._begin()

    def _begin(self) -> Boss:
        """A core from what the store holds."""
        self._batch = self._store.last_batch()
        snapshot = self._store.load()
        boss = Boss(snapshot, self._config, self._clock())
        self._cycles.begin(self._clock())
        count = len(boss.book.graph.nodes)
        log.info("epoch %d: %d unfinished tasks, %d workers expected", snapshot.epoch, count, len(boss.fleet.workers))
        return boss

    # --- the loop -----------------------------------------------------------------------------------

    def run(self) -> int:
        """Lead until told to stop or deposed; the exit code."""
        self._broker.start()
        try:
            self._carry_out(self._boss.handle([], self._clock()))
            while not self._stopping:
                events = self._take()
                if events is None:
                    break
                self._decide(events)
                self._cycles.after_batch()
                self._look_after()
        except Deposed as error:
            log.error("this boss leaves: %s", error)
            return 3
        finally:
            self._calls.close()
            self._broker.stop()
        return 0

    def stop(self) -> None:
        """From any thread or a signal handler: leave after the batch at hand."""
        self._stopping = True
        self._inbox.put(None)

    def _take(self) -> list[Event] | None:
        """Wait for something; all that is there, up to a limit. None when told to stop."""
        events: list[Event] = []
        if self._inbox.empty():
            self._cycles.at_rest(self._clock())
        deadline = self._boss.next_deadline()
        timeout = RENEW_S if deadline is None else min(RENEW_S, max(0.0, deadline - self._clock()))
        try:
            item = self._inbox.get(timeout=timeout) if timeout > 0 else self._inbox.get_nowait()
            while True:
                if item is None:
                    return None
                if isinstance(item, tuple):
                    self._decode(item[0], item[1], events)
                else:
                    self._note(item)
                    events.append(item)
                if len(events) >= EVENTS_A_BATCH:
                    break
                item = self._inbox.get_nowait()
        except queue.Empty:
            pass
        return events

    def _decide(self, events: Sequence[Event]) -> None:
        try:
            self._carry_out(self._boss.handle(events, self._clock()))
        except CommitRefused as error:
            kinds = Counter(type(event).__name__ for event in events)
            log.error("the database refuses a batch of %s, which is left out: %s", dict(kinds), error)
            del self._boss  # else all that it remembers is kept for good with what the next one does
            self._boss = self._patiently(self._begin)

    def _carry_out(self, effects: Effects) -> None:
        if not effects.writes.is_empty:
            self._commit(effects)
        self._publish(effects.sends)
        for call in effects.calls:
            self._make(call)
        for read in effects.reads:
            self._carry_out(self._boss.handle([self._answer(read)], self._clock()))

    def _commit(self, effects: Effects) -> None:
        batch = self._batch + 1
        wait_s = FIRST_WAIT_S
        told = False
        while True:
            try:
                # Again after a lost answer: the store knows whether this batch landed, and whether we still lead.
                self._store.commit(batch, effects.writes, self._clock())
                break
            except StoreAway as error:
                if not told:
                    log.error("waiting for the database: %s", error)
                    told = True
            time.sleep(wait_s)
            wait_s = min(LAST_WAIT_S, wait_s * 2)
        if told:
            log.info("the database is back")
        self._batch = batch
        self._renewed_at = self._clock()

    def _answer(self, read: Read) -> Event:
        if isinstance(read, LoadRun):
            return RunLoaded(read.token, self._patiently(lambda: self._store.load_run(read.name)))
        images, task_nos, problem = self._patiently(lambda: self._store.select(read))
        return TasksSelected(read.token, tuple(images), frozenset(task_nos), problem)

    def _patiently(self, question: Callable[[], _Answer]) -> _Answer:
        while True:
            try:
                return question()
            except StoreAway as error:
                log.error("waiting for the database: %s", error)
                time.sleep(1.0)

    def _make(self, call: Call) -> None:
        """Nothing is published that its task does not declare."""
        if isinstance(call, PromoteFiles):
            task_nos = [item.task_no for item in call.promotions]
            call, refused = declared_of(call, self._patiently(lambda: self._store.definitions(task_nos)))
            if refused.results:
                self._inbox.put(refused)
            if not call.promotions:
                return
        self._calls.make(call)

    # --- speaking -----------------------------------------------------------------------------------

    def _publish(self, sends: Sequence[Send]) -> None:
        bodies = self._bodies(sends)
        for send in sends:
            envelope = send.envelope
            key = self._key_of(send.key_name)
            if key is None:
                continue
            if isinstance(envelope.message, wire.StartTasks):
                envelope = _with_bodies(envelope, bodies)
            topic = peer_topic(self._cluster_id, envelope.peer)
            self._broker.publish(topic, wire.encode(envelope, topic, send.key_name, key))

    def _bodies(self, sends: Sequence[Send]) -> dict[int, bytes]:
        wanted = [
            order.task_no
            for send in sends
            if isinstance(send.envelope.message, wire.StartTasks)
            for order in send.envelope.message.attempts
        ]
        return self._patiently(lambda: self._store.definitions(wanted)) if wanted else {}

    def _key_of(self, name: str) -> bytes | None:
        if name in self._boss.revoked_keys:
            return None
        key = self._keys.get(name)
        if key is None:
            if len(self._keys) > KEYS_KEPT:
                self._keys.clear()
            key = self._keys[name] = derive_key(self._secret, name)
        return key

    # --- hearing ------------------------------------------------------------------------------------

    def _decode(self, topic: str, payload: bytes, events: list[Event]) -> None:
        kind, _, peer = topic.rpartition("/")
        if kind.endswith("/presence"):
            log.debug("the broker says that %s is gone", peer)
            return
        try:
            envelope, key_name = wire.decode(payload, topic, self._key_of)
            if envelope.peer != peer:
                raise Unreadable("malformed", f"peer {envelope.peer!r} speaks on the topic of {peer!r}")
        except Unreadable as error:
            self._on_unreadable(topic, peer, error)
            return
        events.append(MessageArrived(envelope, key_name))

    def _on_unreadable(self, topic: str, peer: str, error: Unreadable) -> None:
        self._unreadable[error.why] += 1
        now = time.monotonic()
        if now - self._told_unreadable_at > LOG_EVERY_S:
            self._told_unreadable_at = now
            text = str(error).encode("unicode_escape").decode()[:300]
            log.warning("ignored on %s: %s: %s (so far: %s)", topic[:200], error.why, text, dict(self._unreadable))
        key = self._key_of(error.key_name) if error.key_name else None
        if error.why == "version" and key is not None:
            refused = wire.Refused("version", f"{error}: install the same ECLOUD on both sides")
            envelope = Envelope(wire.PROTOCOL_VERSION, peer, "", 0, refused, self._store.epoch)
            reply_topic = peer_topic(self._cluster_id, peer)
            self._broker.publish(reply_topic, wire.encode(envelope, reply_topic, error.key_name, key))

    def _on_broker_lost(self, reason: str) -> None:
        self._inbox.put(BrokerLost(reason))

    def _note(self, event: Event) -> None:
        if isinstance(event, BrokerFound):
            log.info("connected to the broker at %s", self._broker.address)
        elif isinstance(event, BrokerLost):
            log.warning("waiting for the broker: %s", event.reason)
            self._revive_broker()

    # --- looking after itself -----------------------------------------------------------------------

    def _look_after(self) -> None:
        now = self._clock()
        if now - self._renewed_at < RENEW_S:
            return
        self._renewed_at = now
        try:
            self._store.renew(now)
        except StoreAway as error:
            log.warning("the database does not answer: %s", error)

    def _revive_broker(self) -> None:
        """Our own broker is started again at once: every peer waits for it."""
        if self._embedded is None or self._stopping:
            return
        try:
            self._embedded.ensure_alive()
        except BrokerWontStart as error:
            log.error("%s", error)


def _with_bodies(envelope: Envelope, bodies: dict[int, bytes]) -> Envelope:
    """The orders with what the worker runs. The stored JSON is embedded as it is: msgspec writes Raw without looking
    at it.

    An order whose definition is gone (its task was dropped a moment ago) is left out; its attempt heals by the
    inventory.
    """
    message = envelope.message
    assert isinstance(message, wire.StartTasks)
    orders: list[AttemptOrder] = []
    for order in message.attempts:
        body = bodies.get(order.task_no)
        if body is not None:
            orders.append(msgspec.structs.replace(order, body=msgspec.Raw(body)))
    return msgspec.structs.replace(envelope, message=wire.StartTasks(tuple(orders)))
