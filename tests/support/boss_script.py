"""A script for the boss: one line in, the exact answer out, anything extra fails.

    script = BossScript().pool("local", maximum=2)
    w1 = script.worker("w1", cpus=2)
    script.push("r", task("a"), task("b", after="a"))
    script.starts(w1, "a").nothing_else()
    script.ended(w1, "a").stored(w1, "a").starts(w1, "b")

Drives the real core, the real store twin and real envelopes; no socket, no clock.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from as_received import as_received

from boss.core.boss import Boss
from boss.core.model.config import BossConfig, PoolConfig
from boss.core.model.effects import Call, Effects, ListVms, LoadRun, Send
from boss.core.model.events import Event, MessageArrived
from boss.core.model.rows import Snapshot
from boss.core.tasks.outcome_acks import ANSWER_S
from boss.shell.driver import Driver, Pause, Turn
from ecloud.model import wire
from ecloud.model.tasks import Cause, Condition, Dependency, Outcome, Result, TaskDefinition, TaskState
from ecloud.model.wire import AttemptName, Envelope, HeldAttempt
from sim.store import Store


def task(id: str, *, after: str = "", on: str = "success", **fields: Any) -> TaskDefinition:
    """A task of one command; `after` names dependencies, split at spaces."""
    dependencies = tuple(Dependency(name, Condition(on)) for name in after.split())
    results = tuple(Result(path, path) for path in fields.pop("results", ()))
    fields.setdefault("commands", ("true",))
    return TaskDefinition(id=id, dependencies=dependencies, results=results, **fields)


def _fail(level: int, text: str) -> None:
    assert level < logging.ERROR, text


def _check(core: Boss, effects: Effects) -> None:
    core.check()


class Peer:
    """One peer's side of a conversation."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.key_name = f"key-{name}"
        self.session = ""
        self.number = 0
        self.seen = 0
        self.holds: dict[tuple[int, int], str] = {}


class BossScript:
    """The boss, its store, and everything it said that no assertion has taken yet."""

    def __init__(self, store: Store | None = None, **config: Any) -> None:
        self.store = store if store is not None else Store()
        config.setdefault("watch_every_s", 0.0)
        self.config = BossConfig(**config)
        self.now = 1000.0
        self.said: list[Send] = []
        self.calls: list[Call] = []
        self.peers: dict[str, Peer] = {}
        self.names: dict[str, int] = {}
        self.start()

    def start(self) -> BossScript:
        """A new boss on the same store."""
        self.store.lead("test", self.now, replace=True)
        self.driver = Driver(
            self.store,
            self,
            self,
            self._make_core,
            lambda: self.now,
            _fail,
            _check,
        )
        self.begin_anew()
        self.said, self.calls = [], []
        self.handle()
        # What each start asks first: which VMs are there.
        self.calls = [call for call in self.calls if not isinstance(call, ListVms)]
        return self

    def begin_anew(self) -> None:
        """A new core in the same process, as after a batch that the database refused."""
        self._run(self.driver.begin())

    def _make_core(self, snapshot: Snapshot) -> Boss:
        return Boss(snapshot, self.config, self.now)

    @property
    def boss(self) -> Boss:
        """The core."""
        assert self.driver.core is not None
        return self.driver.core

    def handle(self, *events: Event) -> None:
        """One batch, carried out by the product's own loop."""
        self._run(self.driver.turn(list(events)))

    def _run(self, turn: Turn) -> None:
        for step in turn:
            assert not isinstance(step, Pause)

    def publish(self, envelope: Envelope, key_name: str) -> None:
        """What the boss says (the driver's `SpeakPort`)."""
        if len(envelope.peer) <= wire.MAX_NAME_CHARS:  # no peer that can be heard has a longer name
            as_received(envelope, key_name)
        self.said.append(Send(envelope, key_name))

    def make(self, call: Call) -> None:
        """A call that it makes (the driver's `CallPort`)."""
        self.calls.append(call)

    def wait(self, seconds: float) -> BossScript:
        """Let time pass, deadline by deadline."""
        until = self.now + seconds
        while (deadline := self.boss.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.handle()
        self.now = until
        self.handle()
        return self

    # --- peers -----------------------------------------------------------------------------------

    def hear(self, peer: Peer, message: wire.Message) -> BossScript:
        """The peer says something in its session."""
        peer.number += 1
        envelope = Envelope(wire.PROTOCOL_VERSION, peer.name, peer.session, peer.number, message)
        self.handle(MessageArrived(envelope, peer.key_name))
        return self

    def message(self, name: str, message: wire.Message) -> MessageArrived:
        """What this peer says outside a session."""
        return MessageArrived(Envelope(wire.PROTOCOL_VERSION, name, "", 0, message), f"key-{name}")

    def hello(self, peer: Peer, **fields: Any) -> BossScript:
        """Hello and Welcome. Processes of one home sign with its key, unless a test says otherwise."""
        if fields.get("home", f"home-{peer.name}") != f"home-{peer.name}" and peer.key_name == f"key-{peer.name}":
            peer.key_name = f"key-{fields['home']}"
        fields.setdefault("attempts", tuple(HeldAttempt(*key, state) for key, state in peer.holds.items()))
        fields.setdefault("asks_values", peer.kind == "worker")
        hello = wire.Hello(nonce=f"{peer.name}-nonce", kind=peer.kind, **fields)
        self.handle(MessageArrived(Envelope(wire.PROTOCOL_VERSION, peer.name, "", 0, hello), peer.key_name))
        welcome = self.take(peer, wire.Welcome)
        peer.session, peer.number, peer.seen = welcome.session, 0, 0
        return self

    def worker(
        self, name: str, *, cpus: float = 1.0, home: str = "", lives_s: float | None = None, **resources: float
    ) -> Peer:
        """A worker on duty."""
        peer = self.peers[name] = Peer(name, "worker")
        self.hello(peer, resources={"cpus": cpus, **resources}, home=home or f"home-{name}", lives_s=lives_s)
        self.beats(peer)
        return peer

    def client(self, name: str = "c1") -> Peer:
        """A client with a session."""
        peer = self.peers.setdefault(name, Peer(name, "client"))
        if peer.session not in self.boss.sessions.open:
            self.hello(peer)
        return peer

    def beats(self, peer: Peer, **fields: Any) -> BossScript:
        """A heartbeat with the peer's inventory, answered."""
        held = tuple(HeldAttempt(*key, state) for key, state in peer.holds.items())
        heartbeat = wire.Heartbeat(**{"orders_seen": peer.seen, "attempts": held, **fields})
        self.hear(peer, heartbeat)
        self.take(peer, wire.HeartbeatAnswered)
        return self

    def push(self, run: str, *tasks: TaskDefinition, **options: Any) -> wire.RunAccepted:
        """A push, accepted."""
        client = self.client()
        push_id = f"push-{self.store.last_batch()}-{len(self.names)}-{self.now}"
        options_ = wire.PushOptions(run=run, **options)
        self.hear(client, wire.SubmitTasks(push_id, 0, 1, options_, tasks))
        answer = self.take(client, wire.RunAccepted)
        [(image, _)] = self.store.load_runs([LoadRun(1, run)])
        assert image is not None
        self.names.update({row.id: row.task_no for row in image.tasks})
        return answer

    def ask(self, verb: str, **arguments: Any) -> wire.RequestDone | wire.Refused:
        """A person's request and its answer."""
        client = self.client()
        self.hear(client, wire.Request(f"{verb}-{client.number}", verb, arguments))
        for index, send in enumerate(self.said):
            if isinstance(send.envelope.message, (wire.RequestDone, wire.Refused)):
                del self.said[index]
                return send.envelope.message  # type: ignore[return-value]
        raise AssertionError(f"{verb} was not answered")

    # --- what workers do -------------------------------------------------------------------------

    def key(self, id: str, number: int | None = None) -> tuple[int, int]:
        """(task_no, number of its last attempt)."""
        task_no = self.names[id]
        if number is None:
            number = max(key[1] for key in self.store.attempts if key[0] == task_no)
        return task_no, number

    def started(self, peer: Peer, *ids: str) -> BossScript:
        """The worker says that these run."""
        for id in ids:
            peer.holds[self.key(id)] = "running"
        return self.hear(peer, wire.TasksStarted(tuple(wire.StartedAttempt(*self.key(id), 0.0) for id in ids)))

    def ended(self, peer: Peer, *ids: str, cause: Cause = Cause.SUCCESS, **fields: Any) -> BossScript:
        """The worker says how these ended."""
        outcomes = tuple(Outcome(*self.key(id), cause, **fields) for id in ids)
        for id in ids:
            peer.holds[self.key(id)] = "ended"
        return self.hear(peer, wire.TasksEnded(outcomes))

    def returned(self, peer: Peer, *ids: str, reason: str = "") -> BossScript:
        """The worker gives these back."""
        for id in ids:
            peer.holds.pop(self.key(id), None)
        return self.hear(peer, wire.TasksReturned(tuple(AttemptName(*self.key(id)) for id in ids), reason))

    # --- assertions ------------------------------------------------------------------------------

    def take(self, peer: Peer, kind: type[Any]) -> Any:
        """The next message of that kind to the peer, taken out of what was said."""
        for index, send in enumerate(self.said):
            envelope = send.envelope
            if envelope.peer == peer.name and isinstance(envelope.message, kind):
                del self.said[index]
                if envelope.session == peer.session and envelope.number:
                    peer.seen = max(peer.seen, envelope.number)
                return envelope.message
        heard = [(send.envelope.peer, type(send.envelope.message).__name__) for send in self.said]
        raise AssertionError(f"no {kind.__name__} for {peer.name}; there is {heard}")

    def starts(self, peer: Peer, *ids: str) -> BossScript:
        """The boss ordered exactly these of the worker, in this order, in one message."""
        orders = self.take(peer, wire.StartTasks).attempts
        by_no = {number: id for id, number in self.names.items()}
        assert [by_no[order.task_no] for order in orders] == list(ids)
        for order in orders:
            assert (order.task_no, order.number) in self.store.attempts, "said before it was committed"
            peer.holds[(order.task_no, order.number)] = "queued"
        return self

    def stored(self, peer: Peer, *ids: str) -> BossScript:
        """The boss answers the outcomes of these: at once where the worker holds nothing more, else a moment later."""
        said = [send.envelope for send in self.said]
        if not any(one.peer == peer.name and isinstance(one.message, wire.OutcomesStored) for one in said):
            self.wait(ANSWER_S)
        names = self.take(peer, wire.OutcomesStored).attempts
        assert sorted(name.task_no for name in names) == sorted(self.names[id] for id in ids)
        for name in names:
            peer.holds.pop((name.task_no, name.number), None)
        return self

    def stops(self, peer: Peer, *ids: str) -> BossScript:
        """The boss wants these stopped."""
        names = self.take(peer, wire.StopTasks).attempts
        assert sorted(name.task_no for name in names) == sorted(self.names[id] for id in ids)
        return self

    def nothing_else(self) -> BossScript:
        """Nothing was said or called that no assertion took."""
        assert [send.envelope for send in self.said] == []
        assert self.calls == []
        return self

    def call(self, kind: type[Any]) -> Any:
        """The next call of that kind."""
        for index, call in enumerate(self.calls):
            if isinstance(call, kind):
                return self.calls.pop(index)
        raise AssertionError(f"no {kind.__name__} among {self.calls}")

    def states(self, **expected: str) -> BossScript:
        """Tasks stand so, in the store."""
        found = {id: str(self.store.tasks[self.names[id]].state) for id in expected}
        assert found == expected
        return self

    def reason(self, id: str) -> str:
        """The stored reason of a task."""
        return self.store.tasks[self.names[id]].reason

    def state(self, id: str) -> TaskState:
        """The stored state of a task."""
        return self.store.tasks[self.names[id]].state

    def pool(self, name: str, maximum: int, cpus: float = 1.0, **fields: Any) -> BossScript:
        """A boss with one more pool, started again."""
        pool = PoolConfig(name, {"cpus": cpus}, maximum=maximum, **fields)
        self.config = msgspec.structs.replace(self.config, pools=(*self.config.pools, pool))
        return self.start()
