"""A client's half of a conversation with the boss: Hello, sessions, numbers, heartbeats. Knows no verbs.

Runs on its caller's thread: `wait` sleeps until the boss sends something, and sends Hello and Heartbeat when due.
"""

from __future__ import annotations

import base64
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable
from queue import Empty, SimpleQueue

from ecloud.client.broker import BrokerAddress, BrokerConnection
from ecloud.config.secrets import AccessFile
from ecloud.model import wire
from ecloud.model.topics import boss_topic, peer_topic
from ecloud.model.wire import Envelope, Heartbeat, HeartbeatAnswered, Hello, Message, Refused, Unreadable, Welcome

FIRST_HELLO_AGAIN_S = 1.0
LAST_HELLO_AGAIN_S = 10.0
LONGEST_SLEEP_S = 1.0
"""How long `wait` sleeps at most between checks of `watchdog` and the clock."""


class _Found:
    """The broker accepted the connection."""


class _Lost(str):
    """The connection ended; the text says why."""


class _Woken:
    """Another thread wants `wait` to return."""


_Arrived = tuple[str, bytes]


class Conversation:
    """One connection of one client. Not thread-safe, but only `wait` calls `on_other`."""

    def __init__(self, access: AccessFile, watchdog: Callable[[], None] | None = None) -> None:
        self.access = access
        self.peer = "c" + base64.b32encode(secrets.token_bytes(7)).decode().lower().rstrip("=")[:10]
        self.session = ""
        self.sessions = 0
        """Number of sessions so far: a new one means that earlier messages may be lost."""
        self.welcome: Welcome | None = None
        self.broker_trouble = ""
        """Why there is no connection to the broker; empty if there is one."""
        self.was_connected = False
        self.refusal = ""
        """Why the boss refuses this client for good: another protocol version, the key's role, or a revoked key."""
        self.ignored: Counter[str] = Counter()
        self.heard_at = time.monotonic()
        """When the boss was last heard, by the monotonic clock."""
        self.on_other: Callable[[str, bytes], None] = lambda topic, payload: None
        """Called with messages on topics that `subscribe` named."""
        self._watchdog = watchdog or (lambda: None)
        self._key = access.key_bytes
        self._hello_topic = boss_topic(access.cluster_id, self.peer)
        self._own_topic = peer_topic(access.cluster_id, self.peer)
        self._inbox: SimpleQueue[_Arrived | _Found | _Lost | _Woken] = SimpleQueue()
        self._nonce = ""
        self._hellos = 0
        self._hello_at = 0.0
        self._hello_again_s = FIRST_HELLO_AGAIN_S
        self._heartbeat_at = 0.0
        self._epoch = self._batch = 0
        self.history_lost = False
        """Whether the boss's database lacks what this client heard: it was restored from a backup."""
        self._said = 0
        self._heard = 0
        address = BrokerAddress.of(access)
        self._broker = BrokerConnection(
            address,
            self.peer,
            [self._own_topic],
            lambda topic, payload: self._inbox.put((topic, payload)),
            lambda: self._inbox.put(_Found()),
            lambda reason: self._inbox.put(_Lost(reason)),
        )

    def start(self) -> None:
        """Connect, now and after each loss."""
        self._broker.start()

    def stop(self) -> None:
        """Disconnect, after what was said."""
        self._broker.stop()

    def subscribe(self, topic: str) -> None:
        """Also listen to `topic`; see `on_other`."""
        self._broker.subscribe(topic)

    def unsubscribe(self, topic: str) -> None:
        """Listen to it no more."""
        self._broker.unsubscribe(topic)

    def wake(self) -> None:
        """From any thread: let `wait` return now."""
        self._inbox.put(_Woken())

    @property
    def silent_s(self) -> float:
        """Seconds since the boss was heard."""
        return time.monotonic() - self.heard_at

    def say(self, message: Message) -> bool:
        """Send in the session; False if there is none. The caller sends again what gets lost."""
        if not self.session:
            return False
        self._said += 1
        return self._publish(Envelope(wire.PROTOCOL_VERSION, self.peer, self.session, self._said, message))

    def wait(self, most_s: float) -> Message | None:
        """What the boss says next in the session; None after `most_s`, or sooner when a session began or ended."""
        deadline = time.monotonic() + most_s
        while True:
            self._watchdog()
            self._say_what_is_due()
            sleep_s = min(deadline, self._next_due(), time.monotonic() + LONGEST_SLEEP_S) - time.monotonic()
            try:
                item = self._inbox.get(timeout=max(0.0, sleep_s)) if sleep_s > 0 else self._inbox.get_nowait()
            except Empty:
                if time.monotonic() >= deadline:
                    return None
                continue
            if isinstance(item, _Woken):
                return None
            before = self.session
            message = self._take(item)
            if message is not None or self.session != before:
                return message

    # --- speaking -----------------------------------------------------------------------------------

    def _say_what_is_due(self) -> None:
        now = time.monotonic()
        if self.broker_trouble or not self.was_connected:
            return
        if not self.session:
            if now >= self._hello_at:
                self._say_hello(now)
        elif now >= self._heartbeat_at:
            self._say_heartbeat(now)

    def _next_due(self) -> float:
        if self.broker_trouble or not self.was_connected:
            return float("inf")
        return self._heartbeat_at if self.session else self._hello_at

    def _say_hello(self, now: float) -> None:
        self.session = ""
        self._hellos += 1
        self._nonce = f"{self.peer}-{self._hellos}"
        self._hello_at = now + self._hello_again_s
        self._hello_again_s = min(LAST_HELLO_AGAIN_S, 2 * self._hello_again_s)
        hello = Hello(nonce=self._nonce, kind="client", host=socket.gethostname(), epoch=self._epoch, batch=self._batch)
        self._publish(Envelope(wire.PROTOCOL_VERSION, self.peer, "", 0, hello))

    def _say_heartbeat(self, now: float) -> None:
        assert self.welcome is not None
        self._heartbeat_at = now + self.welcome.heartbeat_s
        self.say(Heartbeat(orders_seen=self._heard))

    def _publish(self, envelope: Envelope) -> bool:
        topic = self._hello_topic
        return self._broker.publish(topic, wire.encode(envelope, topic, self.access.key_name, self._key))

    # --- hearing ------------------------------------------------------------------------------------

    def _take(self, item: _Arrived | _Found | _Lost) -> Message | None:
        if isinstance(item, _Found):
            self.was_connected, self.broker_trouble = True, ""
            self.session, self._hello_at, self._hello_again_s = "", 0.0, FIRST_HELLO_AGAIN_S
            return None
        if isinstance(item, _Lost):
            self.broker_trouble, self.session = str(item), ""
            return None
        topic, payload = item
        if topic != self._own_topic:
            self.on_other(topic, payload)
            return None
        try:
            envelope, _ = wire.decode(payload, topic, lambda name: self._key if name == self.access.key_name else None)
        except Unreadable as error:
            self.ignored[error.why] += 1
            if error.why == "version" and error.key_name:
                self.refusal = f"the boss speaks {error}; bring both to the same version"
            return None
        return self._hear(envelope)

    def _hear(self, envelope: Envelope) -> Message | None:
        message = envelope.message
        if envelope.epoch < self._epoch:
            self.ignored["epoch"] += 1
            # Where the boss with the higher epoch is silent, this one may lead: it learns that epoch by a Hello.
            lease_s = self.welcome.lease_s if self.welcome is not None else 0.0
            if isinstance(message, Refused) and message.code == "session" and self.silent_s > lease_s:
                self.session, self._hello_at, self._hello_again_s = "", 0.0, FIRST_HELLO_AGAIN_S
            return None
        if isinstance(message, Welcome):
            if message.nonce == self._nonce and not self.session:
                self._begin_session(message, envelope)
            return None
        if isinstance(message, Refused) and message.code == "version":
            self.refusal = f"the boss refuses this client: {message.reason}; bring both to the same version"
            return None
        if isinstance(message, Refused) and message.code in ("role", "peer") and message.about == self._nonce:
            self.refusal = f"the boss refuses this client: {message.reason}"
            return None
        if isinstance(message, Refused) and message.code == "session":
            if self.session and message.about == self.session:
                self.session, self._hello_at, self._hello_again_s = "", 0.0, FIRST_HELLO_AGAIN_S
            return None
        if isinstance(message, Refused) and message.code == "revoked" and envelope.session == self.session:
            self.refusal = f"the boss refuses this client: {message.reason}"
            return None
        if envelope.session != self.session or envelope.number <= self._heard or envelope.epoch != self._epoch:
            self.ignored["session"] += 1
            return None
        self._heard = envelope.number
        self._batch = max(self._batch, envelope.batch)
        self.heard_at = time.monotonic()
        return None if isinstance(message, HeartbeatAnswered) else message

    def _begin_session(self, welcome: Welcome, envelope: Envelope) -> None:
        self.welcome, self._epoch, self._batch = welcome, envelope.epoch, envelope.batch
        self.history_lost = self.history_lost or welcome.other_history
        self.session, self._said, self._heard = welcome.session, 0, 0
        self.sessions += 1
        self.heard_at = time.monotonic()
        self._hello_again_s = FIRST_HELLO_AGAIN_S
        self._say_heartbeat(self.heard_at)
