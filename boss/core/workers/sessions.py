"""Who we talk with: Hello, Welcome, sessions and numbers. Decides which messages count at all.

Never looks into a message beyond `Hello`. What it refuses changes nothing but counters.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

import msgspec

from boss.core.model.config import BossConfig
from boss.core.model.events import MessageArrived
from boss.core.model.outbox import Conversation, Outbox
from ecloud.model.wire import Hello, Refused, Welcome

MAX_PENDING = 10_000
"""Hellos not followed up that are remembered; the oldest go first. Thousands of workers may start in one second."""
KINDS = frozenset({"worker", "client"})
MACHINE_KEY = "vm-"
"""How the names of keys begin that we gave to VMs: who takes one from a machine gives no orders with it."""


class _Pending(msgspec.Struct):
    hello: Hello
    conversation: Conversation


class Sessions:
    """Sessions by name. `opened` is the fact that a peer followed its Hello up."""

    def __init__(self, outbox: Outbox, config: BossConfig, now: float) -> None:
        self._outbox = outbox
        # A core that begins anew within an epoch (a batch was refused) must not use the names of the one before it.
        self._prefix = f"{outbox.epoch}-{int(now * 1_000_000):x}"
        self._config = config
        self._pending: OrderedDict[str, _Pending] = OrderedDict()
        self._pending_of_peer: dict[str, str] = {}
        self.open: dict[str, Conversation] = {}
        self.of_peer: dict[str, Conversation] = {}
        self.datastore = config.datastore
        self.usual_datastore = config.usual_datastore
        self.ignored: Counter[str] = Counter()
        self._counter = 0

    def on_hello(self, event: MessageArrived, hello: Hello) -> None:
        """Answer with `Welcome`; remember the session until the peer's next message or until it is forgotten."""
        peer = event.envelope.peer
        if hello.kind not in KINDS or (hello.kind == "client" and event.key_name.startswith(MACHINE_KEY)):
            self.ignored["kind"] += 1
            return
        self._counter += 1
        session = f"{self._prefix}-{self._counter}"
        self._pending.pop(self._pending_of_peer.get(peer, ""), None)
        self._pending[session] = _Pending(
            hello, Conversation(peer, event.key_name, session, hello.kind, hello=self._counter)
        )
        self._pending_of_peer[peer] = session
        while len(self._pending) > MAX_PENDING:
            _, forgotten = self._pending.popitem(last=False)
            self._pending_of_peer.pop(forgotten.conversation.peer, None)
        config = self._config
        welcome = Welcome(
            nonce=hello.nonce,
            session=session,
            heartbeat_s=config.heartbeat_s,
            lease_s=config.lease_s,
            datastore=self.datastore,
            settings=config.worker_settings,
            shell=config.shell,
        )
        self._outbox.say_outside(peer, event.key_name, session, welcome)

    def accept(self, event: MessageArrived, now: float) -> tuple[Conversation | None, Hello | None]:
        """The session this message counts in, and the peer's `Hello` if the message opens the session; None where it
        does not count."""
        envelope = event.envelope
        conversation = self.open.get(envelope.session)
        opened: Hello | None = None
        if conversation is None:
            pending = self._pending.get(envelope.session)
            if pending is None:
                self.ignored["session"] += 1
                reason = "the boss does not know this session: say Hello"
                refused = Refused("session", reason, about=envelope.session)
                self._outbox.say_outside(envelope.peer, event.key_name, envelope.session, refused)
                return None, None
            conversation, opened = pending.conversation, pending.hello
        if conversation.peer != envelope.peer or conversation.key_name != event.key_name:
            self.ignored["peer"] += 1
            return None, None
        older = self.of_peer.get(envelope.peer)
        if older is not None and older.key_name != conversation.key_name:  # somebody else takes its name
            self.ignored["peer"] += 1
            return None, None
        if envelope.number <= conversation.heard:
            self.ignored["number"] += 1
            return None, None
        conversation.heard = envelope.number
        conversation.heard_at = now
        if opened is not None:
            del self._pending[envelope.session]
            self._pending_of_peer.pop(envelope.peer, None)
            older = self.of_peer.get(envelope.peer)
            if older is not None:
                del self.open[older.session]
            self.open[conversation.session] = conversation
            self.of_peer[envelope.peer] = conversation
        return conversation, opened

    def close(self, conversation: Conversation) -> None:
        """The session counts no more."""
        if self.open.pop(conversation.session, None) is not None:
            self.of_peer.pop(conversation.peer, None)

    def check(self) -> None:
        """Invariant: one open session per peer."""
        assert {c.session for c in self.of_peer.values()} == set(self.open)
