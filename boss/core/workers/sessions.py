"""Conversations with peers: Hello, Welcome, sessions and message numbers. Decides which messages count.

Reads no message except `Hello`. A refused message changes only counters.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

import msgspec

from boss.core.model.config import BossConfig
from boss.core.model.events import MessageArrived
from boss.core.model.outbox import Conversation, Outbox
from boss.core.workers.hellos import bounded
from ecloud.model.roles import why_not_hello
from ecloud.model.tasks import Container
from ecloud.model.topics import why_no_peer_name
from ecloud.model.wire import MAX_NAME_CHARS, Hello, Refused, Welcome

MAX_PENDING = 10_000
"""Hellos kept until their peers confirm them. Thousands of workers may start in one second."""
MAX_PENDING_BYTES = 64 * 1024 * 1024
"""The same in bytes. Beyond either limit, the oldest Hello of the key with the most bytes is dropped, so that a peer
that floods the boss displaces only its own."""
PENDING_S = 60.0
"""When an unconfirmed Hello is dropped. A peer repeats its Hello after at most 10 s."""
KINDS = frozenset({"worker", "client"})

_encode = msgspec.json.Encoder().encode


class _Pending(msgspec.Struct):
    hello: Hello
    conversation: Conversation
    size: int
    since: float


class Sessions:
    """Sessions by name. `opened`: called when a peer confirmed its Hello."""

    def __init__(self, outbox: Outbox, config: BossConfig, now: float) -> None:
        self._outbox = outbox
        # A core that restarts within an epoch (a batch was refused) must not reuse the earlier core's names.
        self._prefix = f"{outbox.epoch}-{int(now * 1_000_000):x}"
        self._config = config
        self._pending: OrderedDict[str, _Pending] = OrderedDict()
        self._pending_of_key: dict[str, OrderedDict[str, int]] = {}
        """Sizes by session, for each key."""
        self._pending_bytes = 0
        self._session_of_nonce: dict[tuple[str, str, str], str] = {}
        """By peer, key and nonce: a Hello that arrives twice opens one session."""
        self.open: dict[str, Conversation] = {}
        self.of_peer: dict[str, Conversation] = {}
        self.datastore = config.datastore
        self.usual_datastore = config.usual_datastore
        self.ignored: Counter[str] = Counter()
        self._counter = 0

    # --- Hello -----------------------------------------------------------------------------------

    def on_hello(
        self, event: MessageArrived, hello: Hello, now: float, heartbeat_s: float, other_history: bool = False,
        container: Container | None = None,
    ) -> None:  # fmt: skip
        """Answer with `Welcome`; keep the session until the peer's next message or until it is dropped.

        A peer may have several pending Hellos: anyone at the broker can replay an old one, which must not displace the
        one that the peer is about to confirm.
        """
        peer, key_name = event.envelope.peer, event.key_name
        if hello.kind not in KINDS or not hello.nonce or len(hello.nonce) > MAX_NAME_CHARS:
            self.ignored["kind"] += 1
            return
        if problem := why_not_hello(key_name, hello.kind):
            self.ignored["role"] += 1
            self._outbox.say_outside(peer, key_name, "", Refused("role", problem, about=hello.nonce))
            return
        if problem := why_no_peer_name(peer):
            self.ignored["peer"] += 1
            self._outbox.say_outside(peer, key_name, "", Refused("peer", problem, about=hello.nonce))
            return
        self.drop_old_hellos(now)
        session = self._session_of_nonce.get((peer, key_name, hello.nonce)) or self._remember(event, hello, now)
        config = self._config
        welcome = Welcome(
            nonce=hello.nonce,
            session=session,
            heartbeat_s=heartbeat_s,
            lease_s=config.lease_s,
            datastore=self.datastore,
            settings=config.worker_settings,
            shell=config.shell,
            other_history=other_history,
            container=container,
        )
        self._outbox.say_outside(peer, key_name, session, welcome)

    def _remember(self, event: MessageArrived, hello: Hello, now: float) -> str:
        peer, key_name = event.envelope.peer, event.key_name
        self._counter += 1
        session = f"{self._prefix}-{self._counter}"
        kept = bounded(hello)
        size = len(_encode(kept))
        conversation = Conversation(peer, key_name, session, hello.kind, hello=self._counter, hello_at=now)
        self._pending[session] = _Pending(kept, conversation, size, now)
        self._pending_of_key.setdefault(key_name, OrderedDict())[session] = size
        self._pending_bytes += size
        self._session_of_nonce[(peer, key_name, hello.nonce)] = session
        while len(self._pending) > MAX_PENDING or self._pending_bytes > MAX_PENDING_BYTES:
            greediest = max(self._pending_of_key.values(), key=lambda sizes: sum(sizes.values()))
            self._drop(next(iter(greediest)))
        return session

    def drop_old_hellos(self, now: float) -> None:
        """Drop Hellos that were not confirmed in time."""
        while self._pending:
            session, pending = next(iter(self._pending.items()))
            if now - pending.since < PENDING_S:
                break
            self._drop(session)

    def _drop(self, session: str) -> None:
        pending = self._pending.pop(session)
        conversation = pending.conversation
        sizes = self._pending_of_key[conversation.key_name]
        del sizes[session]
        if not sizes:
            del self._pending_of_key[conversation.key_name]
        self._pending_bytes -= pending.size
        del self._session_of_nonce[(conversation.peer, conversation.key_name, pending.hello.nonce)]

    # --- messages --------------------------------------------------------------------------------

    def accept(self, event: MessageArrived, now: float) -> tuple[Conversation | None, Hello | None]:
        """The session that this message belongs to, and the peer's `Hello` if the message opens the session; None if it
        does not count."""
        envelope = event.envelope
        conversation = self.open.get(envelope.session)
        opened: Hello | None = None
        if conversation is None:
            pending = self._pending.get(envelope.session)
            if pending is None:
                self.ignored["session"] += 1
                reason = "the boss does not know this session: send Hello"
                refused = Refused("session", reason, about=envelope.session)
                self._outbox.say_outside(envelope.peer, event.key_name, envelope.session, refused)
                return None, None
            conversation, opened = pending.conversation, pending.hello
        if conversation.peer != envelope.peer or conversation.key_name != event.key_name:
            self.ignored["peer"] += 1
            return None, None
        older = self.of_peer.get(envelope.peer)
        if older is not None and older.key_name != conversation.key_name:  # another key takes its name
            self.ignored["peer"] += 1
            return None, None
        if opened is not None and older is not None and older.hello > conversation.hello:
            # It has opened a newer session since: this message was delayed.
            self.ignored["session"] += 1
            self._drop(envelope.session)
            return None, None
        if envelope.number <= conversation.heard:
            self.ignored["number"] += 1
            return None, None
        conversation.heard = envelope.number
        conversation.heard_at = now
        if opened is not None:
            self._drop(envelope.session)
            if older is not None:
                del self.open[older.session]
            self.open[conversation.session] = conversation
            self.of_peer[envelope.peer] = conversation
        return conversation, opened

    def close(self, conversation: Conversation) -> None:
        """End the session, and those that its peer's earlier Hellos began: what arrives in them was delayed."""
        if self.open.pop(conversation.session, None) is not None:
            self.of_peer.pop(conversation.peer, None)
        for session in tuple(self._pending_of_key.get(conversation.key_name, ())):
            other = self._pending[session].conversation
            if other.peer == conversation.peer and other.hello < conversation.hello:
                self._drop(session)

    def drop_key(self, key_name: str) -> list[Conversation]:
        """The key is revoked: drop its pending Hellos. Returns the open conversations signed with it, for the caller to
        close."""
        for session in tuple(self._pending_of_key.get(key_name, ())):
            self._drop(session)
        return [conversation for conversation in self.open.values() if conversation.key_name == key_name]

    def check(self) -> None:
        """Invariants: one open session per peer; pending Hellos are counted and bounded."""
        assert {c.session for c in self.of_peer.values()} == set(self.open)
        assert self._pending_bytes == sum(pending.size for pending in self._pending.values()) <= MAX_PENDING_BYTES
        assert len(self._pending) == len(self._session_of_nonce) <= MAX_PENDING
        assert sum(map(len, self._pending_of_key.values())) == len(self._pending)
