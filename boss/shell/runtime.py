"""The boss's process around `boss.shell.driver`: one thread, an inbox, the broker, the clock.

Takes items from the inbox, or waits until the next deadline; decodes messages; hands the batch to the driver. Owns the
inbox and the broker connection. Threads of `boss.shell.calls` and of the broker only put events into the inbox.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from boss.core.boss import Boss
from boss.core.model.config import BossConfig
from boss.core.model.events import BrokerFound, BrokerLost, Event, MessageArrived
from boss.core.model.rows import Snapshot
from boss.shell.calls import Calls
from boss.shell.driver import Commit, Driver, Pause, Turn
from boss.shell.embedded_broker import BrokerWontStart, EmbeddedBroker
from boss.shell.gc_pauses import Cycles
from boss.shell.inbox import Inbox
from boss.shell.numbers import Numbers
from boss.store.store import Deposed, Store
from ecloud.client.broker import BrokerAddress, BrokerConnection
from ecloud.config.datastore_address import NOTES
from ecloud.config.secrets import derive_key
from ecloud.model import wire
from ecloud.model.topics import peer_topic
from ecloud.model.wire import Envelope, Unreadable

log = logging.getLogger("boss")
EVENTS_A_BATCH = 5_000
"""Maximum events taken from the inbox for a batch: bounds a transaction; a batch grows automatically while a commit
runs."""
HEARTBEATS_S = 0.05
"""How long a batch of heartbeats alone waits for more."""
LOG_EVERY_S = 10.0
KEYS_KEPT = 100_000
LOOK_AGAIN_S = 0.2
"""While the boss waits for the database it checks this often whether it was ordered to stop."""


class Clock:
    """Epoch seconds that never step back: the wall clock at the start plus the elapsed time."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        """The current time."""
        return self._offset + time.monotonic()


class Runtime:
    """Runs the boss's process."""

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
        numbers_file: Path | None = None,
    ) -> None:
        """`numbers_file`: the file of counters for `/metrics`."""
        self._numbers = Numbers(numbers_file, clock())
        self._store = store
        self._config = config
        self._cluster_id = cluster_id
        self._secret = secret
        self._embedded = embedded
        self._clock = clock
        self._keys: dict[str, bytes] = {}
        self._inbox: Inbox[Event] = Inbox()
        self._told_dropped = 0
        self._calls = make_calls(self._inbox.put)
        self._stopping = False
        self._unreadable: Counter[str] = Counter()
        self._told_unreadable_at = 0.0
        self._cycles = Cycles()
        self._noted_datastore: tuple[str, ...] | None = None
        """Address and host key in the context when this process started."""
        prefix = f"ecloud/{cluster_id}"
        self._broker = BrokerConnection(
            address,
            f"boss-{cluster_id}",
            [f"{prefix}/boss/+", f"{prefix}/presence/+"],
            self._inbox.put_message,
            lambda: self._inbox.put(BrokerFound()),
            self._on_broker_lost,
        )
        self._driver = Driver(
            store, self._calls, self, self._make_core, clock, log.log, waiting=self._take_waiting,
            forgotten=self._cycles.search,
        )  # fmt: skip

    def _make_core(self, snapshot: Snapshot) -> Boss:
        """Make a core from the contents of the store. A core that replaces another (a batch was refused) keeps the
        datastore that was set since the process started, which the context notes."""
        noted = tuple(snapshot.context.get(name, "") for name in NOTES[:2])
        if self._noted_datastore is None:
            self._noted_datastore = noted
        config = self._config
        if noted != self._noted_datastore:
            datastore = wire.DatastoreAccess(noted[0] or config.usual_datastore, host_key=noted[1])
            config = msgspec.structs.replace(config, datastore=datastore)
        boss = Boss(snapshot, config, self._clock())
        self._cycles.begin(self._clock())
        count = len(boss.book.graph.nodes)
        log.info("epoch %d: %d unfinished tasks, %d workers expected", snapshot.epoch, count, len(boss.fleet.workers))
        return boss

    # --- the loop -----------------------------------------------------------------------------------

    def run(self) -> int:
        """Lead until ordered to stop or deposed. Returns the exit code."""
        self._broker.start()
        try:
            goes_on = self._drive(self._driver.begin())
            events: list[Event] | None = []
            while goes_on and events is not None and not self._stopping:
                self._numbers.batch_events.observe(len(events))
                goes_on = self._drive(self._driver.turn(events))
                self._cycles.after_batch()
                self._numbers.write(self._clock())
                self._tell_dropped()
                events = self._take() if goes_on else None
        except Deposed as error:
            log.error("this boss leaves: %s", error)
            return 3
        finally:
            self._calls.close()
            self._broker.stop()
        return 0

    def stop(self) -> None:
        """Leave after the current batch. From any thread or a signal handler."""
        self._stopping = True
        self._inbox.put(None)

    def _take(self) -> list[Event] | None:
        """Wait for an event and take all present ones, up to a limit. Heartbeats wait a moment for others: with
        thousands of workers most batches are heartbeats alone, and a batch costs more than they do. None when ordered
        to stop."""
        if self._stopping:
            return None
        events: list[Event] = []
        if self._inbox.is_empty:
            self._cycles.at_rest(self._clock())
        timeout = max(0.0, self._driver.wakes_at - self._clock())
        try:
            item = self._inbox.get(timeout)
            until, heartbeats_alone = time.monotonic() + HEARTBEATS_S, True
            while item is not None:
                self._read(item, events)
                if len(events) >= EVENTS_A_BATCH:
                    return events
                heartbeats_alone = heartbeats_alone and bool(events) and _is_heartbeat(events[-1])
                item = self._inbox.get(until - time.monotonic() if heartbeats_alone else 0.0)
        except queue.Empty:
            return events
        return None

    def _take_waiting(self) -> list[Event]:
        """Take all present events, up to a limit, in the middle of a turn. An order to stop takes effect after the
        turn."""
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            while len(events) < EVENTS_A_BATCH:
                item = self._inbox.get(0.0)
                if item is not None:
                    self._read(item, events)
        return events

    def _read(self, item: Event | tuple[str, bytes], events: list[Event]) -> None:
        """Append the event of an inbox item; nothing if the item is unreadable."""
        if isinstance(item, tuple):
            self._decode(item[0], item[1], events)
        else:
            self._note(item)
            events.append(item)

    def _drive(self, turn: Turn) -> bool:
        """Run a turn. Returns False if it did not finish, because the boss was ordered to stop while the database is
        away. Uncommitted state was not published either, and the next boss starts from the committed state."""
        committing_since: float | None = None
        for step in turn:
            if committing_since is not None:
                self._numbers.commit_s.observe(time.perf_counter() - committing_since)
                committing_since = None
            if isinstance(step, Commit):
                committing_since = time.perf_counter()
            elif isinstance(step, Pause):
                until = time.monotonic() + step.seconds
                while (left_s := until - time.monotonic()) > 0 and not self._stopping:
                    time.sleep(min(left_s, LOOK_AGAIN_S))
                if self._stopping:
                    log.warning("the boss stops while the database does not answer: its last decisions are not stored")
                    return False
        if committing_since is not None:
            self._numbers.commit_s.observe(time.perf_counter() - committing_since)
        return True

    # --- sending ------------------------------------------------------------------------------------

    def publish(self, envelope: Envelope, key_name: str) -> None:
        """Sign and hand to the broker connection."""
        self._numbers.sent += 1
        topic = peer_topic(self._cluster_id, envelope.peer)
        self._broker.publish(topic, wire.encode(envelope, topic, key_name, self._key(key_name)))

    def _key(self, name: str) -> bytes:
        key = self._keys.get(name)
        if key is None:
            if len(self._keys) > KEYS_KEPT:
                self._keys.clear()
            key = self._keys[name] = derive_key(self._secret, name)
        return key

    def _key_of(self, name: str) -> bytes | None:
        """The key of that name; None if it was revoked."""
        core = self._driver.core
        return None if core is None or name in core.revoked_keys else self._key(name)

    # --- receiving ----------------------------------------------------------------------------------

    def _decode(self, topic: str, payload: bytes, events: list[Event]) -> None:
        kind, _, peer = topic.rpartition("/")
        if kind.endswith("/presence"):
            log.debug("the broker reports that %s is gone", peer)
            return
        try:
            envelope, key_name = wire.decode(payload, topic, self._key_of)
            if envelope.peer != peer:
                raise Unreadable("malformed", f"peer {envelope.peer!r} sends on the topic of {peer!r}")
        except Unreadable as error:
            self._on_unreadable(topic, peer, error)
            return
        self._numbers.received += 1
        events.append(MessageArrived(envelope, key_name, len(payload)))

    def _tell_dropped(self) -> None:
        """Log dropped messages, once for each time that the loop falls behind."""
        if self._inbox.dropped > self._told_dropped and self._inbox.is_empty:
            count, self._told_dropped = self._inbox.dropped - self._told_dropped, self._inbox.dropped
            log.warning(
                "%d messages were dropped: they arrived faster than the boss could read; their senders repeat them",
                count,
            )

    def _on_unreadable(self, topic: str, peer: str, error: Unreadable) -> None:
        self._unreadable[error.why] += 1
        self._numbers.unreadable += 1
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
            self._numbers.broker_up = True
            log.info("connected to the broker at %s", self._broker.address)
        elif isinstance(event, BrokerLost):
            self._numbers.broker_up = False
            log.warning("waiting for the broker: %s", event.reason)
            self._revive_broker()

    def _revive_broker(self) -> None:
        """Restart the embedded broker immediately: every peer waits for it."""
        if self._embedded is None or self._stopping:
            return
        try:
            self._embedded.ensure_alive()
        except BrokerWontStart as error:
            log.error("%s", error)


def _is_heartbeat(event: Event) -> bool:
    return isinstance(event, MessageArrived) and isinstance(event.envelope.message, wire.Heartbeat)
