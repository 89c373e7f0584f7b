"""A peer with a valid key that sends false claims about other peers' homes, attempts, outcomes and lanes. And a replay
of other peers' messages without any key."""

from __future__ import annotations

from collections.abc import Callable

from ecloud.model import wire
from ecloud.model.tasks import Cause, ManifestEntry, Outcome
from ecloud.model.topics import boss_topic, peer_topic
from ecloud.model.wire import AttemptName, Envelope, HeldAttempt
from sim.network import Network, decoded
from sim.store import CLUSTER_ID, Tables
from sim.world import World

KEY_NAME = "worker-liar"
MOST = 2**63 - 1


class Liar:
    """A worker that offers no resources and claims other peers' property."""

    def __init__(self, world: World, network: Network, tables: Tables) -> None:
        self.world = world
        self.network = network
        self.tables = tables
        self.name = "liar"
        self.session = ""
        self._number = 0
        self._nonces = 0
        self._topic = boss_topic(CLUSTER_ID, self.name)
        self.link = network.connect(
            peer_topic(CLUSTER_ID, self.name), decoded(self._hear), lambda: None, lambda reason: None
        )

    def lie(self) -> None:
        """Send one false message of a random kind."""
        chance = self.world.random
        lies: tuple[Callable[[], None], ...] = (
            self._claim_a_home,
            self._claim_outcomes,
            self._claim_lanes,
            self._ask_for_values,
            self._return,
        )
        chance.choice((*lies, self._repeat) if self.session else (self._claim_a_home, self._repeat))()

    def _hear(self, envelope: Envelope, key_name: str) -> None:
        if isinstance(envelope.message, wire.Welcome):
            self.session, self._number = envelope.message.session, 0
            self._say(wire.Heartbeat(MOST, self._everything()))

    def _say(self, message: wire.Message) -> None:
        self._number += 1
        session = "" if isinstance(message, wire.Hello) else self.session
        envelope = Envelope(wire.PROTOCOL_VERSION, self.name, session, self._number, message)
        self.link.publish(self.name, envelope, KEY_NAME, self._topic)

    def _live(self) -> list[tuple[int, int]]:
        return [key for key, row in self.tables.attempts.items() if row.ended_at is None][:50]

    def _everything(self) -> tuple[HeldAttempt, ...]:
        return tuple(HeldAttempt(*key, "running") for key in self._live())

    def _claim_a_home(self) -> None:
        homes = sorted({row.hello.home for row in self.tables.workers.values() if row.hello.home})
        self._nonces += 1
        home = self.world.random.choice(homes) if homes else "h"
        self._say(wire.Hello(f"liar-{self._nonces}", "worker", home=home, attempts=self._everything()))

    def _claim_outcomes(self) -> None:
        cause = self.world.random.choice((Cause.SUCCESS, Cause.EXIT))
        manifest = (ManifestEntry("run0/t0/0", 1, "0" * 64),)
        outcomes = tuple(Outcome(*key, cause, run_s=1e300, manifest=manifest) for key in self._live())
        self._say(wire.TasksStarted(tuple(wire.StartedAttempt(*key, 1e300) for key in self._live())))
        self._say(wire.TasksEnded(outcomes))

    def _claim_lanes(self) -> None:
        self._say(wire.Heartbeat(MOST, self._everything(), lane=MOST, wants_bytes=MOST))
        self._say(wire.TransfersWanted(MOST))

    def _ask_for_values(self) -> None:
        for key in self._live():
            self._say(wire.ValuesWanted(*key, self.world.random.choice(("", "c1", "x" * 1_000))))

    def _return(self) -> None:
        self._say(wire.TasksReturned(tuple(AttemptName(*key) for key in self._live()), "init"))

    def _repeat(self) -> None:
        """Replay another peer's Hello, as any reader of the broker's traffic can."""
        if self.network.hellos:
            topic, payload = self.world.random.choice(self.network.hellos)
            self.network.carry(topic, payload)
