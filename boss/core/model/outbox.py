"""Collects the decisions of one batch: the core's parts write, send and call only through it.

Owns the `Effects` of the current batch and the message numbers of each session.
"""

from __future__ import annotations

import msgspec

from boss.core.model.effects import Call, Effects, Read, Send
from boss.core.model.rows import Writes
from ecloud.model.wire import PROTOCOL_VERSION, Envelope, Message


class Conversation(msgspec.Struct, eq=False):
    """A session with a peer. `heard`, `said`: last message number of each direction. `kind`: worker or client. `hello`:
    of two sessions that one boss opened, the one with the higher number belongs to the later Hello. `hello_at`: when
    that Hello arrived. `heartbeat_s`: the interval that the peer was told."""

    peer: str
    key_name: str
    session: str
    kind: str
    heard: int = 0
    said: int = 0
    heard_at: float = 0.0
    hello: int = 0
    hello_at: float = 0.0
    heartbeat_s: float = 0.0


class Outbox:
    """Collects the effects of one batch; `take` returns them and starts an empty batch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self._begin()

    def _begin(self) -> None:
        self._effects = Effects()
        self.writes: Writes = self._effects.writes
        """The transaction of this batch."""

    def say(self, to: Conversation, message: Message) -> int:
        """Send a message in a session. Returns the message's number."""
        to.said += 1
        envelope = Envelope(PROTOCOL_VERSION, to.peer, to.session, to.said, message, self.epoch)
        self._effects.sends.append(Send(envelope, to.key_name))
        return to.said

    def say_outside(self, peer: str, key_name: str, session: str, message: Message) -> None:
        """Send a message before a session is valid, or about an invalid one: number 0."""
        envelope = Envelope(PROTOCOL_VERSION, peer, session, 0, message, self.epoch)
        self._effects.sends.append(Send(envelope, key_name))

    def call(self, call: Call) -> None:
        """Call the datastore or a cloud after the commit."""
        self._effects.calls.append(call)

    def read(self, read: Read) -> None:
        """Query the store; the answer arrives before the next event."""
        self._effects.reads.append(read)

    def take(self) -> Effects:
        """Return this batch's effects; the next batch begins empty."""
        effects = self._effects
        self._begin()
        return effects
