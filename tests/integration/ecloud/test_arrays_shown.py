"""Arrays in a real database: a boss loads from it what its twin in memory has; and how commands show them."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import Engine

from boss.core.model.effects import LoadRun, SelectTasks
from boss.core.model.rows import Writes
from boss.store.store import Store
from ecloud.formats.arrays import as_array
from ecloud.model import wire
from ecloud.model.tasks import ArrayOf, Cause, Dependency, Entry, Outcome, TaskDefinition
from ecloud.queries import status as queries
from ecloud.queries.browse import browse
from ecloud.queries.failures import failure_groups
from ecloud.queries.lookup import NoSuchTask, task
from ecloud.queries.why import why
from sim.store import Store as Twin
from tests.support.boss_script import BossScript, Peer


class Both(Twin):
    """The twin in memory, whose commits a real store makes, too."""

    def __init__(self, real: Store) -> None:
        super().__init__()
        self.real = real

    def lead(self, holder: str, now: float, replace: bool = False) -> int:
        """Both lead, each in an epoch of its own."""
        self.real.lead(holder, now, replace=True)
        return super().lead(holder, now, replace)

    def commit(self, batch: int, writes: Writes, now: float) -> None:
        """Written twice; then both must give a boss the same."""
        super().commit(batch, writes, now)
        self.real.commit(batch, writes, now)
        mine, its = self.load(), self.real.load()
        assert (mine.tasks, mine.states, mine.element_ends) == (its.tasks, its.states, its.element_ends)
        assert mine.next_task_no == its.next_task_no
        for run in self.runs.values():
            wanted = [LoadRun(1, run.name)]
            assert self.load_runs(wanted) == self.real.load_runs(wanted)


@pytest.fixture
def script(engine: Engine) -> BossScript:
    """A boss on both stores."""
    return BossScript(Both(Store(engine)), array_window=6)


def array(id: str, count: int, *dependencies: Dependency) -> TaskDefinition:
    return TaskDefinition(id, ("run {}",), dependencies, array=ArrayOf(f"1-{count}"))


def works(script: BossScript, worker: Peer, most: int, fail: frozenset[str] = frozenset()) -> None:
    """The worker ends this many of its tasks, one after another; those in `fail` with exit 3."""
    done = 0
    while done < most:
        for send in [send for send in script.said if send.envelope.peer == worker.name]:
            script.said.remove(send)
            worker.seen = max(worker.seen, send.envelope.number)
            if isinstance(send.envelope.message, wire.StartTasks):
                worker.holds.update({(one.task_no, one.number): "queued" for one in send.envelope.message.attempts})
        if not worker.holds:
            assert script.boss.next_deadline() is not None
            script.handle()
            continue
        key = min(worker.holds)
        del worker.holds[key]
        failed = script.store.tasks[key[0]].id in fail
        outcome = Outcome(*key, Cause.EXIT if failed else Cause.SUCCESS, exit_code=3 * failed, error="exit 3" * failed)
        script.hear(worker, wire.TasksEnded((outcome,)))
        done += 1


def test_arrays_on_a_real_database(script: BossScript, engine: Engine) -> None:
    lines = [Entry(number, f"line {number}") for number in range(3, 203)]
    script.push(
        "r",
        as_array(TaskDefinition("a", ("convert {}",)), lines),
        array("b", 200, Dependency("first")),
        array("c", 202, Dependency("c0", each=True)),
        array("c0", 202, Dependency("first")),
        TaskDefinition("first", ("true",), priority=-5),
        TaskDefinition("end", ("true",), (Dependency("a"), Dependency("b"))),
    )
    worker = script.worker("w", cpus=1)
    works(script, worker, 7, frozenset(["a[5]"]))
    (run,) = queries.status(engine, script.now).runs
    assert run.states == {"succeeded": 6, "failed": 1, "ready": 194, "waiting": 605}
    assert {one.id: sum(one.states.values()) for one in run.arrays} == {"a": 200, "b": 200, "c": 202, "c0": 202}
    assert run.arrays[0].states == {"succeeded": 6, "failed": 1, "ready": 193}

    element = task(engine, "a[200]")
    assert element.definition.commands == ("convert 'line 200'",)
    assert (element.state, element.attempts) == ("ready", [])
    assert task(engine, "r:b[17]").state == "waiting"
    assert [other.id for other in task(engine, "b[17]").dependencies] == ["first"]
    assert task(engine, "a").elements == run.arrays[0].states
    assert task(engine, "a[5]").reason
    with pytest.raises(NoSuchTask):
        task(engine, "a[1]")

    reasons = why(engine, "a[200]", now=script.now)
    assert "are before it" in reasons.sentence
    assert "ends when all of its elements have ended" in " ".join(reasons.layers)
    assert "waiting, as its array is" in why(engine, "b[17]", now=script.now).sentence
    assert why(engine, "end", now=script.now).sentence.startswith("task end waits for task")
    assert queries.failures(engine, "r")[0].id == "a[5]"
    assert failure_groups(engine, "r").total == 1
    assert [line.id for line in queries.tasks(engine, ("waiting",), "r").tasks] == ["b", "c0", "end"]
    assert {row.id for row in browse(engine, "r", ("waiting",)).rows} == {"b", "c0", "end"}

    images, task_nos, problem = script.store.select(SelectTasks(1, ("a[190-195]", "b[7]"), "r"))
    assert (images, task_nos, problem) == script.store.real.select(SelectTasks(1, ("a[190-195]", "b[7]"), "r"))
    assert len(task_nos) == 7
    assert script.store.select(SelectTasks(1, (), "r", "waiting")) == script.store.real.select(
        SelectTasks(1, (), "r", "waiting")
    )

    script.ask("cancel", ids=["a[150-202]", "b"])
    works(script, worker, 30)
    script.start()
    script.hello(worker, resources={"cpus": 1.0}, home="home-w")
    script.beats(worker)
    works(script, worker, 200)
    (run,) = queries.status(engine, script.now).runs
    states = {one.id: one.states for one in run.arrays}
    assert states["b"] == {"cancelled": 200}
    assert states["a"] == {"succeeded": 146, "failed": 1, "cancelled": 53}
    assert "was cancelled" in why(engine, "b", now=script.now).sentence
    assert "cancelled, as its array is" in why(engine, "b[4]", now=script.now).sentence
    script.ask("drop_tasks", ids=["a[3-7]", "b[1-50]"])  # of arrays that have ended
    (run,) = queries.status(engine, script.now).runs
    states = {one.id: one.states for one in run.arrays}
    assert (states["a"], states["b"]) == ({"succeeded": 142, "cancelled": 53}, {"cancelled": 150})
    script.ask("drop_tasks", run="r")
    assert script.store.tables.arrays == {}
    assert script.store.real.load().states == {}


def test_a_small_array_has_a_line_of_its_own(script: BossScript, engine: Engine) -> None:
    """Its elements are plain tasks; what only looks like an element is none."""
    small = [TaskDefinition(f"a[{index}]", ("true",)) for index in (1, 2, 10)]
    alone = [TaskDefinition(name, ("true",)) for name in ("only[1]", "named[x]", "[3]", "a[1", "ü")]
    script.push("r", TaskDefinition("first", ("true",)), *small, *alone, array("large", 30, Dependency("first")))
    script.push("other", *(TaskDefinition(f"z ü[{index}]", ("true",), (Dependency("x"),)) for index in (1, 2)),
                TaskDefinition("x", ("true",)))  # fmt: skip
    worker = script.worker("w", cpus=1)
    works(script, worker, 3, frozenset(["a[1]"]))
    shown = {run.name: [(one.id, one.state, one.states) for one in run.arrays] for run in queries.status(engine).runs}
    assert shown == {
        "r": [
            ("large", "ready", {"ready": 30}),
            ("a", "ready", {"failed": 1, "succeeded": 1, "ready": 1}),
        ],
        "other": [("z ü", "waiting", {"waiting": 2})],
    }


def test_a_small_array_that_begins_at_zero_shows_all_its_elements(script: BossScript, engine: Engine) -> None:
    small = [TaskDefinition(f"a[{number}]", ("true",)) for number in range(4)]
    script.push("r", *small, TaskDefinition("a[x]", ("true",)), TaskDefinition("b", ("true",)))
    (run,) = queries.status(engine).runs
    assert [(one.id, one.total) for one in run.arrays] == [("a", 4)]
