"""The loop over its three ports: the order of effects, reads, a database that fails, what orders declare."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from boss.core.boss import Boss
from boss.core.clients.pushes import APART_S
from boss.core.model.config import BossConfig
from boss.core.model.effects import Call, Effects, LoadRun
from boss.core.model.events import AttemptsDeclared, BrokerLost, Event, MessageArrived, RunLoaded
from boss.core.model.rows import PushAnswered, RunImage, Snapshot, Writes
from boss.shell.driver import DATABASE_BACKOFF, RENEW_S, Commit, Driver, Next, Pause, Step, Turn
from boss.store.store import CommitRefused, StoreAway
from ecloud.model import wire
from ecloud.model.tasks import Result, TaskDefinition
from ecloud.model.wire import Envelope, StartTasks
from sim.store import Store


class Ports:
    """All three ports on one list of what happened, with a database that can be told to fail."""

    def __init__(self) -> None:
        self.store = Store()
        self.store.lead("test", 0.0)
        self.epoch = self.store.epoch
        self.now = 100.0
        self.happened: list[str] = []
        self.said: list[Envelope] = []
        self.reports: list[str] = []
        self.decided: list[list[str]] = []
        self.away = 0
        """This many questions to the database fail from now on."""
        self.refuse = False
        self.inbox: list[Event] = []
        self.driver = Driver(
            self, self, self, self._make_core, lambda: self.now, self._report, self._decided, self._take_waiting
        )

    def _take_waiting(self) -> list[Event]:
        waiting, self.inbox = self.inbox, []
        return waiting

    def _make_core(self, snapshot: Snapshot) -> Boss:
        return Boss(snapshot, BossConfig(), self.now)

    def _report(self, level: int, text: str) -> None:
        self.reports.append(f"{logging.getLevelName(level)}: {text}")

    def _decided(self, core: Boss, effects: Effects) -> None:
        self.decided.append([type(event).__name__ for event in self.driver._events])
        self.happened.append("decide")

    def _reach(self, what: str) -> Store:
        if self.away:
            self.away -= 1
            raise StoreAway("nobody answers")
        self.happened.append(what)
        return self.store

    def last_batch(self) -> int:
        return self._reach("last batch").last_batch()

    def load(self) -> Snapshot:
        return self._reach("load").load()

    def commit(self, batch: int, writes: Writes, now: float) -> None:
        if self.refuse:
            self.refuse = False
            raise CommitRefused("a value is too long")
        self._reach("commit").commit(batch, writes, now)

    def renew(self, now: float) -> None:
        self._reach("renew").renew(now)

    def lead_above(self, epoch: int, now: float) -> int:
        self.epoch = self._reach("lead above").lead_above(epoch, now)
        return self.epoch

    def load_runs(self, wanted: Sequence[LoadRun]) -> list[tuple[RunImage | None, PushAnswered | None]]:
        return self._reach("load runs " + " ".join(item.name for item in wanted)).load_runs(wanted)

    def load_calls(self, wanted: Any) -> tuple[list[wire.CallEnded], bool]:
        return self._reach("load calls").load_calls(wanted)

    def load_values(self, wanted: Any) -> tuple[list[wire.CallValue], bool]:
        return self._reach("load values").load_values(wanted)

    def needed_values(self, task_nos: Sequence[int], most: int) -> dict[int, tuple[wire.CallValue, ...] | None]:
        return self._reach("needed values").needed_values(task_nos, most)

    def select(self, wanted: Any) -> tuple[list[RunImage], set[int], str]:
        return self._reach("select").select(wanted)

    def definitions(self, task_nos: Sequence[int]) -> dict[int, bytes]:
        return self._reach("definitions").definitions(task_nos)

    def make(self, call: Call) -> None:
        self.happened.append(type(call).__name__)

    def publish(self, envelope: Envelope, key_name: str) -> None:
        self.said.append(envelope)
        self.happened.append(type(envelope.message).__name__)

    # --- what happens ------------------------------------------------------------------------------

    def run(self, turn: Turn) -> list[Step]:
        return list(turn)

    def begin(self) -> Ports:
        self.run(self.driver.begin())
        self.run(self.driver.turn([]))
        self.happened.clear()
        self.decided.clear()
        return self

    def make_runs(self, *names: str) -> None:
        """Runs that exist: a further push of one reads the store."""
        session = self.hello("maker", "client")
        pushes = [submit(name, TaskDefinition("first", ("true",))) for name in names]
        self.run(self.driver.turn([heard("maker", session, n, push) for n, push in enumerate(pushes, 1)]))
        self.happened.clear()
        self.decided.clear()

    def hello(self, peer: str, kind: str, **fields: Any) -> str:
        """A session of that peer."""
        hello = wire.Hello(nonce=peer, kind=kind, **fields)
        self.run(self.driver.turn([heard(peer, "", 0, hello)]))
        (welcome,) = [e.message for e in self.said if e.peer == peer and isinstance(e.message, wire.Welcome)]
        self.happened.clear()
        self.decided.clear()
        return welcome.session


def heard(peer: str, session: str, number: int, message: wire.Message) -> Event:
    return MessageArrived(Envelope(wire.PROTOCOL_VERSION, peer, session, number, message), f"key-{peer}")


def submit(name: str, task: TaskDefinition, strategy: str = "keep_succeeded") -> wire.SubmitTasks:
    options = wire.PushOptions(run=name, merge_strategy=strategy)
    return wire.SubmitTasks(f"push-{name}-{task.id}", 0, 1, options, (task,))


@pytest.fixture
def ports() -> Ports:
    return Ports().begin()


def test_it_writes_then_speaks_then_calls(ports: Ports) -> None:
    session = ports.hello("c1", "client")
    steps = ports.run(ports.driver.turn([heard("c1", session, 1, submit("r", TaskDefinition("a", ("true",))))]))
    assert ports.happened == ["decide", "commit", "RunAccepted"]
    kinds = [step if isinstance(step, Next) else type(step) for step in steps]
    assert kinds == [Commit, Next.SEND]


def test_pushes_of_new_runs_are_one_commit_and_read_nothing(ports: Ports) -> None:
    session = ports.hello("c1", "client")
    pushes = [heard("c1", session, n, submit(f"r{n}", TaskDefinition("a", ("true",)))) for n in (1, 2)]
    ports.run(ports.driver.turn(pushes))
    assert ports.happened == ["decide", "commit", "RunAccepted", "RunAccepted"]
    assert len(ports.store.tasks) == 2


def test_calls_of_different_runs_are_one_read_and_one_commit(ports: Ports) -> None:
    ports.make_runs("r1", "r2")
    session = ports.hello("c1", "client")
    pushes = [heard("c1", session, n, submit(f"r{n}", TaskDefinition("a", ("true",)), "extend")) for n in (1, 2)]
    ports.run(ports.driver.turn(pushes))
    what = [text for text in ports.happened if text.startswith(("load run", "commit"))]
    assert what == ["load runs r1 r2", "commit"]
    assert ports.decided == [["MessageArrived", "MessageArrived"], ["RunLoaded", "RunLoaded"]]
    assert len(ports.store.tasks) == 4


def test_new_calls_of_a_run_that_this_boss_saw_begin_read_nothing(ports: Ports) -> None:
    session = ports.hello("c1", "client")
    for number, id in enumerate(("a", "b", "b"), 1):
        push = submit("r", TaskDefinition(id, ("true",)), "extend")
        push = msgspec.structs.replace(push, push_id=f"push-{number}")
        ports.run(ports.driver.turn([heard("c1", session, number, push)]))
    what = [text for text in ports.happened if text.startswith(("load run", "commit"))]
    assert what == ["commit", "commit", "load runs r", "commit"], "the third push may change what the second one made"
    assert len(ports.store.tasks) == 2


def test_two_pushes_to_one_run_are_read_one_after_another_each_after_the_commit_before(ports: Ports) -> None:
    session = ports.hello("c1", "client")
    pushes = [heard("c1", session, n, submit("r", TaskDefinition(id, ("true",)))) for n, id in ((1, "a"), (2, "b"))]
    ports.run(ports.driver.turn(pushes))
    what = [text for text in ports.happened if text.startswith(("load run", "commit"))]
    assert what == ["commit", "load runs r", "commit"]


def test_a_read_with_an_existing_run_ends_there_and_the_others_are_read_next(ports: Ports) -> None:
    ports.make_runs("r1", "r2")
    session = ports.hello("c1", "client")
    pushes = [heard("c1", session, n, submit(f"r{n}", TaskDefinition("b", ("true",)))) for n in (1, 2)]
    ports.run(ports.driver.turn(pushes))
    what = [text for text in ports.happened if text.startswith(("load run", "commit"))]
    assert what == ["load runs r1 r2", "commit", "load runs r2", "commit"]


def test_a_read_that_an_answer_asks_for_waits_behind_those_asked_before(ports: Ports) -> None:
    core = ports.driver.core
    assert core is not None
    asked = iter((LoadRun(91, "third"),))
    handle = core.handle

    def chain(events: Sequence[Event], now: float) -> Effects:
        effects = handle(events, now)
        if any(isinstance(event, RunLoaded) for event in events):
            effects.reads += list(asked)
        elif not events:
            effects.reads += [LoadRun(1, "first"), LoadRun(2, "second")]
        return effects

    core.handle = chain  # type: ignore[method-assign]
    ports.run(ports.driver.turn([]))
    read = [text.removeprefix("load runs ") for text in ports.happened if text.startswith("load runs ")]
    assert read == ["first second", "third"]


def test_while_the_database_is_away_it_waits_longer_and_longer_and_logs_that_once(ports: Ports) -> None:
    session = ports.hello("c1", "client")
    ports.away = 9
    steps = ports.run(ports.driver.turn([heard("c1", session, 1, submit("r", TaskDefinition("a", ("true",))))]))
    pauses = [step.seconds for step in steps if isinstance(step, Pause)]
    assert pauses == [DATABASE_BACKOFF.wait_s(n) for n in range(9)]
    assert ports.reports == ["ERROR: waiting for the database: nobody answers", "INFO: the database is back"]
    assert ports.happened[-1] == "RunAccepted"


def test_a_heartbeat_that_came_while_the_database_was_away_is_heard_before_its_worker_is_given_up(
    ports: Ports,
) -> None:
    ports.make_runs("r")
    worker = ports.hello("w1", "worker", resources={"cpus": 1.0}, home="h")
    ports.run(ports.driver.turn([heard("w1", worker, 1, wire.Heartbeat(0))]))
    assert ports.driver.core is not None
    lease_until = ports.driver.core.fleet.workers["w1"].lease_until
    while (due := ports.driver.wakes_at) < lease_until:
        ports.now = due
        ports.run(ports.driver.turn([]))
    ports.now = lease_until - 0.1
    client = ports.hello("c1", "client")
    for step in ports.driver.turn([heard("c1", client, 1, submit("r", TaskDefinition("a", ("true",))))]):
        if step is Next.READ:
            ports.away = 1
        if isinstance(step, Pause):
            ports.now = lease_until + 0.5
            ports.inbox.append(heard("w1", worker, 2, wire.Heartbeat(0)))
    assert ports.decided[-1] == ["RunLoaded", "MessageArrived"]
    assert ports.store.workers["w1"].state == "up"


def test_a_new_core_knows_that_the_broker_is_lost(ports: Ports) -> None:
    worker = ports.hello("w1", "worker", resources={"cpus": 1.0}, home="h")
    ports.run(ports.driver.turn([heard("w1", worker, 1, wire.Heartbeat(0))]))
    ports.run(ports.driver.turn([BrokerLost("no route")]))
    ports.run(ports.driver.begin())
    for _ in range(100):
        ports.now = max(ports.now, ports.driver.wakes_at)
        ports.run(ports.driver.turn([]))
    assert ports.now > 400.0
    assert ports.store.workers["w1"].state == "up"


def test_nothing_is_said_of_a_batch_that_is_not_committed(ports: Ports) -> None:
    session = ports.hello("c1", "client")
    turn = ports.driver.turn([heard("c1", session, 1, submit("r", TaskDefinition("a", ("true",))))])
    for step in turn:
        if isinstance(step, Commit):
            break
    assert "RunAccepted" not in ports.happened
    turn.close()
    assert not ports.store.runs


def test_a_refused_batch_is_left_out_with_what_it_had_asked_and_a_new_core_begins(ports: Ports) -> None:
    ports.make_runs("r1", "r2")
    session = ports.hello("c1", "client")
    before = ports.driver.core
    ports.refuse = True
    pushes = [heard("c1", session, n, submit(f"r{n}", TaskDefinition("a", ("true",)), "extend")) for n in (1, 2)]
    ports.run(ports.driver.turn(pushes))
    assert ports.driver.core is not before
    assert ports.reports == [
        "ERROR: the database refuses a batch of {'RunLoaded': 2}, which is left out: a value is too long"
    ]
    assert ports.happened[-2:] == ["last batch", "load"], "both are left out, and come again one by one"
    ports.run(ports.driver.turn([]))
    assert [row.id for row in ports.store.tasks.values()] == ["first", "first"]


def test_after_a_refused_batch_pushes_are_decided_one_by_one_for_a_while(ports: Ports) -> None:
    session = ports.hello("c1", "client")
    ports.refuse = True
    ports.run(ports.driver.turn([heard("c1", session, 1, submit("bad", TaskDefinition("a", ("true",))))]))

    def read_for(names: tuple[str, str]) -> list[str]:
        session = ports.hello(f"c-{names[0]}", "client")
        ports.happened.clear()
        pushes = [
            heard(f"c-{names[0]}", session, n, submit(name, TaskDefinition("a", ("true",))))
            for n, name in enumerate(names, 1)
        ]
        ports.run(ports.driver.turn(pushes))
        return [text for text in ports.happened if text.startswith("load runs")]

    assert read_for(("r1", "r2")) == ["load runs r1", "load runs r2"]
    assert len(ports.store.runs) == 2
    ports.now += APART_S
    assert read_for(("r3", "r4")) == []
    assert len(ports.store.runs) == 4


def test_the_core_hears_what_its_orders_declare_before_anything_else(ports: Ports) -> None:
    client = ports.hello("c1", "client")
    worker = ports.hello("w1", "worker", resources={"cpus": 1.0}, home="h")
    ports.run(ports.driver.turn([heard("w1", worker, 1, wire.Heartbeat(0))]))
    results = (Result("out", "final/out"),)
    ports.run(ports.driver.turn([heard("c1", client, 1, submit("r", TaskDefinition("a", ("true",), results=results)))]))
    (order,) = [order for e in ports.said if isinstance(e.message, StartTasks) for order in e.message.attempts]
    ports.decided.clear()
    ports.run(ports.driver.turn([heard("w1", worker, 2, wire.Heartbeat(0))]))
    assert ports.decided == [[AttemptsDeclared.__name__, "MessageArrived"]]
    assert ports.driver.core is not None
    assert ports.driver.core.attempts.active[(order.task_no, order.number)].declares == results


def test_no_peer_with_a_revoked_key_gets_a_message(ports: Ports) -> None:
    session = ports.hello("c1", "client")
    assert ports.driver.core is not None
    ports.driver.core.revoked_keys.add("key-c1")
    ports.run(ports.driver.turn([heard("c1", session, 1, submit("r", TaskDefinition("a", ("true",))))]))
    assert ports.happened == ["decide", "commit"]


def test_a_leader_with_nothing_to_commit_says_that_it_lives(ports: Ports) -> None:
    ports.run(ports.driver.turn([]))
    assert "renew" not in ports.happened
    assert ports.driver.wakes_at <= ports.now + RENEW_S
    ports.now += RENEW_S
    ports.run(ports.driver.turn([]))
    assert ports.happened[-1] == "renew"
    ports.now += RENEW_S
    ports.away = 1
    ports.run(ports.driver.turn([]))
    assert ports.reports == ["WARNING: the database does not answer: nobody answers"]
