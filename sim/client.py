"""A simulated user's program: sends pushes in chunks and requests, and repeats each until it is answered."""

from __future__ import annotations

import msgspec

from ecloud.model import wire
from ecloud.model.tasks import TaskDefinition
from ecloud.model.topics import boss_topic, peer_topic
from ecloud.model.wire import Envelope
from sim.network import Network, decoded
from sim.store import CLUSTER_ID
from sim.world import World

AGAIN_S = 2.0
"""Interval after which unanswered messages are repeated."""
HEARTBEAT_S = 3.0
CHUNK, MOST_CHUNKS = 8, 40
"""Tasks in a chunk: small, so that a small push has several. A large push is cut into at most this many, as by a real
client."""


class Wish(msgspec.Struct, eq=False):
    """A message to repeat until it is answered: a push in chunks, or a request. `received`: numbers of the chunks that
    the boss confirmed in this session."""

    id: str
    messages: tuple[wire.Message, ...]
    received: set[int] = set()
    said_at: float = 0.0

    @property
    def due(self) -> list[wire.Message]:
        """Return the chunks that the boss lacks, or the last one if it has all and has not answered, as the real client
        does."""
        return [said for k, said in enumerate(self.messages) if k not in self.received] or [self.messages[-1]]


SILENT_S = 15.0
"""A boss that is silent for this long may be followed by another one, which leads in a lower epoch."""


class Client:
    """One client. It sends its wishes one after another, like a user."""

    window = 1
    """Wishes that wait for their answers at a time."""

    def __init__(self, name: str, world: World, network: Network) -> None:
        self.name = name
        self.world = world
        self.wishes: list[Wish] = []
        self.answers: dict[str, wire.Message] = {}
        self._session = ""
        self._left = False
        self._epoch = self._batch = 0
        self._heard_at = 0.0
        self._nonce = self._number = self._heard = 0
        self._topic = boss_topic(CLUSTER_ID, name)
        self.link = network.connect(
            peer_topic(CLUSTER_ID, name), decoded(lambda envelope, _: self._hear(envelope)), self._say_hello, self._lost
        )
        self.world.after(AGAIN_S, self._again)

    def push(self, push_id: str, options: wire.PushOptions, tasks: list[TaskDefinition]) -> None:
        """Add a push of these tasks."""
        size = max(CHUNK, len(tasks) // MOST_CHUNKS)
        pieces = [tuple(tasks[start : start + size]) for start in range(0, len(tasks), size)]
        self._wish(
            push_id,
            tuple(wire.SubmitTasks(push_id, k, len(pieces), options, piece) for k, piece in enumerate(pieces)),
        )

    def ask(self, request_id: str, verb: str, **arguments: str | int | bool | None | list[str | int]) -> None:
        """Add a request to the boss."""
        self._wish(request_id, (wire.Request(request_id, verb, dict(arguments)),))

    def leave(self, politely: bool) -> None:
        """End the program, with a Goodbye or without one."""
        if politely and self._session:
            self._say(wire.Goodbye())
        self._left = True
        self.link.close()

    def _wish(self, id: str, messages: tuple[wire.Message, ...]) -> None:
        self.wishes.append(Wish(id, messages))
        if len(self.wishes) <= self.window:
            self._say_wish(self.wishes[-1])

    @property
    def _open(self) -> list[Wish]:
        """The wishes that were sent."""
        return self.wishes[: self.window]

    def _say_wish(self, wish: Wish) -> None:
        if self._session:
            wish.said_at = self.world.now
            for message in wish.due:
                self._say(message)

    def _say(self, message: wire.Message) -> None:
        self._number += 1
        self._publish(Envelope(wire.PROTOCOL_VERSION, self.name, self._session, self._number, message))

    def _publish(self, envelope: Envelope) -> None:
        self.link.publish(self.name, envelope, "client", self._topic)

    def _say_hello(self) -> None:
        self._session = ""
        self._nonce += 1
        hello = wire.Hello(nonce=f"{self.name}-{self._nonce}", kind="client", epoch=self._epoch, batch=self._batch)
        self._publish(Envelope(wire.PROTOCOL_VERSION, self.name, "", 0, hello))

    def _lost(self, reason: str) -> None:
        self._session = ""

    def _again(self) -> None:
        """Repeat at intervals: send a Hello if there is no session, else a heartbeat and the unanswered messages."""
        if self._left:
            return
        self.world.after(AGAIN_S, self._again)
        if not self._session:
            self._say_hello()
            return
        self._say(wire.Heartbeat(orders_seen=self._heard))
        for wish in self._open:
            if self.world.now - wish.said_at >= AGAIN_S:
                self._say_wish(wish)

    def _hear(self, envelope: Envelope) -> None:
        message = envelope.message
        if envelope.epoch < self._epoch:
            silent = self.world.now - self._heard_at > SILENT_S
            if silent and isinstance(message, wire.Refused) and message.code == "session":
                self._say_hello()
            return
        if isinstance(message, wire.Welcome):
            if message.nonce == f"{self.name}-{self._nonce}" and not self._session:
                self._session, self._epoch, self._batch = message.session, envelope.epoch, envelope.batch
                self._heard_at = self.world.now
                self._number = self._heard = 0
                self._say(wire.Heartbeat(orders_seen=0))
                for wish in self.wishes:
                    wish.received.clear()
                for wish in self._open:
                    self._say_wish(wish)
        elif isinstance(message, wire.Refused) and message.code == "session":
            if message.about == self._session:
                self._say_hello()
        elif envelope.session == self._session and envelope.number > self._heard and envelope.epoch == self._epoch:
            self._heard, self._heard_at = envelope.number, self.world.now
            self._batch = max(self._batch, envelope.batch)
            self._on_answer(message)

    def _on_answer(self, message: wire.Message) -> None:
        about = ""
        if isinstance(message, (wire.RunAccepted, wire.RunRejected)):
            about = message.push_id
        elif isinstance(message, wire.ChunkReceived):
            for wish in self._open:
                if wish.id == message.push_id:
                    wish.received.add(message.k)
        elif isinstance(message, wire.RequestDone) or (isinstance(message, wire.CallsEnded) and message.is_last):
            about = message.request_id
        elif isinstance(message, wire.Refused) and message.code != "busy":
            about = message.about
        answered = next((wish for wish in self._open if wish.id == about), None)
        if answered is not None:
            self.wishes.remove(answered)
            self.answers[about] = message
            self.world.tell(self.name, f"gets its answer to {about}: {type(message).__name__}")
            if len(self.wishes) >= self.window:
                self._say_wish(self.wishes[self.window - 1])
