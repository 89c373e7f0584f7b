"""The simulated broker and its network: connections, messages under way, and losses.

Every message passes through the real `wire.encode` and `wire.decode` with derived keys. A restarting broker and a
closed connection lose their messages, as in reality (clean sessions).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from ecloud.config.secrets import derive_key
from ecloud.model import wire
from ecloud.model.topics import boss_topic
from ecloud.model.wire import Envelope
from sim.faults import Faults
from sim.store import CLUSTER_ID
from sim.world import World
from worker.core.report_size import LARGE_BYTES

FASTEST_S, SLOWEST_S = 0.0003, 0.003
LATE_S = 8.0
"""Maximum delay of a delayed message, in seconds."""
BROKER_DOWN_S = 4.0
QUEUE_LIMIT = 6
"""Number of waiting messages of one peer above which the broker may drop new ones. The real limit is larger, and so are
its clusters."""
SECRET = b"the cluster secret of a simulation"

HELLOS_KEPT = 20
MARK_BYTES = 128
"""Bytes of a message that enter the hash of the trace: they contain its signature, which depends on the whole
message."""

_EVERYDAY = (wire.Heartbeat, wire.HeartbeatAnswered)
_BOSS_TOPIC = boss_topic(CLUSTER_ID, "")


@cache
def key_of(name: str) -> bytes:
    """Return the derived key of that name."""
    return derive_key(SECRET, name)


def decoded(hear: Callable[[Envelope, str], None]) -> Callable[[str, bytes], None]:
    """Return a receiver that decodes each message for `hear`, with the name of its key."""
    return lambda topic, payload: hear(*wire.decode(payload, topic, key_of))


class Link:
    """One connection of one process. `open` stays False once the process is dead or cut off."""

    def __init__(
        self, network: Network, topic: str, take: Callable[[str, bytes], None], found: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.network = network
        self.topic = topic
        self.take, self.found, self.lost = take, found, lost
        self.closed = False
        self.connected = False
        self.last_arrival = 0.0
        self.generation = 0
        self.under_way = 0
        self.backlog: Callable[[], int] = lambda: 0
        """Returns the number of received messages that are not handled yet."""
        self.mute_until = self.deaf_until = 0.0
        """End of a partition without notice: until then, messages from it, or to it, are lost."""

    def publish(self, who: str, envelope: Envelope, key_name: str, topic: str) -> None:
        """Publish a message; drops it if there is no connection."""
        network = self.network
        if not self.connected or self.closed or self.mute_until > network.world.now:
            return
        payload = wire.encode(envelope, topic, key_name, key_of(key_name))
        if len(payload) > LARGE_BYTES:
            network.world.tell(who, "sends a message that is too long: the broker ends the connection")
            self.cut(network.world.random.uniform(0.05, 1.0))
            return
        message = envelope.message
        words = None if type(message) in _EVERYDAY else partial(in_words, topic, message)
        network.world.note(payload[:MARK_BYTES], who, words)
        if type(message) is wire.Hello:
            network.hellos.append((topic, payload))
            del network.hellos[:-HELLOS_KEPT]
        network.carry(topic, payload)

    def close(self) -> None:
        """Close the connection, as the process has ended."""
        self.closed = True
        self.network.forget(self)

    def part(self, seconds: float, mute: bool, deaf: bool) -> None:
        """Lose messages for a while, in one direction or both."""
        until = self.network.world.now + seconds
        self.mute_until = until if mute else self.mute_until
        self.deaf_until = until if deaf else self.deaf_until

    def cut(self, seconds: float) -> None:
        """Disconnect for a while."""
        if self.connected and not self.closed:
            self.connected = False
            self.generation += 1
            self.lost("the connection ended")
            self.network.world.after(seconds, self.network.reconnect(self))


def in_words(topic: str, message: wire.Message) -> str:
    """Describe a message for the story: receiver, kind and attempts."""
    to = "the boss" if topic.startswith(_BOSS_TOPIC) else topic.rpartition("/")[2]
    items: Any = getattr(message, "outcomes", None) or getattr(message, "attempts", ())
    return " ".join([f"to {to}: {type(message).__name__}", *[f"{item.task_no}-{item.number}" for item in items]])


class Network:
    """The broker. `links` by topic: one for each peer; all bosses receive all messages to the boss."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world = world
        self.faults = faults
        self.up = True
        self.links: dict[str, list[Link]] = {}
        self.carried = 0
        self.hellos: list[tuple[str, bytes]] = []
        """The last Hellos: any reader of the broker's traffic may have kept them."""

    def connect(self, topic: str, take: Callable[[str, bytes], None], found: Callable[[], None],
                lost: Callable[[str], None]) -> Link:  # fmt: skip
        """Open a connection that receives messages on `topic` (empty: all messages to the boss). `take` receives them
        as they were sent, with their topics."""
        link = Link(self, topic, take, found, lost)
        self.links.setdefault(topic, []).append(link)
        self.world.after(self.world.random.uniform(0.001, 0.02), self.reconnect(link))
        return link

    def forget(self, link: Link) -> None:
        """Remove a closed connection."""
        links = self.links.get(link.topic, [])
        if link in links:
            links.remove(link)
            if not links:
                del self.links[link.topic]

    def reconnect(self, link: Link) -> Callable[[], None]:
        """Return an action that connects the link, now or when the broker runs again."""

        def let_in() -> None:
            if link.closed or link.connected:
                return
            if not self.up:
                self.world.after(self.world.random.uniform(0.1, 1.0), let_in)
                return
            link.connected = True
            link.generation += 1
            link.found()

        return let_in

    def restart(self) -> None:
        """Stop the broker, which loses its messages; it starts again later."""
        if not self.up:
            return
        down_s = self.world.random.uniform(0.2, BROKER_DOWN_S)
        self.world.tell("broker", f"restarts, away for {down_s:.1f} s")
        self.up = False
        self.world.after(down_s, self.come_up)
        for link in [link for links in self.links.values() for link in links]:
            if link.connected:
                link.cut(down_s + self.world.random.uniform(0.05, 1.0))

    def heal(self) -> None:
        """End all partitions."""
        for links in self.links.values():
            for link in links:
                link.mute_until = link.deaf_until = 0.0

    def come_up(self) -> None:
        """Start the broker again."""
        self.up = True

    def carry(self, topic: str, payload: bytes) -> None:
        """Deliver a message to the subscribers, or lose it."""
        self.carried += 1
        world, faults = self.world, self.faults
        listening = "" if topic.startswith(_BOSS_TOPIC) else topic
        for link in self.links.get(listening, ()):
            if link.deaf_until > world.now or (faults.lose and world.fault("lose", faults.lose)):
                continue
            waits = link.under_way + link.backlog() if faults.queue_full else 0
            if waits > QUEUE_LIMIT and world.fault("queue_full", faults.queue_full):
                continue
            self._send(link, topic, payload)
            if faults.duplicate and world.fault("duplicate", faults.duplicate):
                self._send(link, topic, payload, late_s=world.random.uniform(0, LATE_S))

    def _send(self, link: Link, topic: str, payload: bytes, late_s: float = 0.0) -> None:
        world = self.world
        arrival = world.now + FASTEST_S + (SLOWEST_S - FASTEST_S) * world.random.random()
        delay = self.faults.delay
        if late_s or (delay and world.fault("delay", delay)):
            arrival += late_s or world.random.uniform(0, LATE_S)
        else:
            # Messages arrive in the order in which they were sent.
            arrival = link.last_arrival = arrival if arrival > link.last_arrival else link.last_arrival
        link.under_way += 1
        world.at(arrival, partial(_arrive, link, link.generation, topic, payload))


def _arrive(link: Link, generation: int, topic: str, payload: bytes) -> None:
    """Deliver a message unless its connection has ended."""
    link.under_way -= 1
    if link.connected and link.generation == generation and not link.closed:
        link.take(topic, payload)
