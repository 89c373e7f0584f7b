"""`why` on long chains: few queries at any depth, and the root named once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from boss.core.model.rows import RunRow, StoredTasks, TaskStored, Writes
from boss.core.tasks.merging import new_task
from boss.store.store import Store
from ecloud.db.database import make_engine, migrate
from ecloud.model.tasks import Condition, TaskDefinition, TaskState
from ecloud.queries import why_edges, why_task
from ecloud.queries.views import Reasons
from ecloud.queries.why import why

DEPTH = 16_000
WIDTH = 500
QUERIES = 40
"""Of one question at any depth; it was one a step, and all of them again at each thousandth."""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine does not change the answers."""
    monkeypatch.setattr(why_edges, "WALK_S", 60.0)


def chain(first: TaskState, others: TaskState, run_no: int, numbers: list[int]) -> list[TaskStored]:
    """Tasks `t0`, `t1`, … with these numbers, each waiting for the one before it."""
    stored, reason = [], "exit code 3" if first is TaskState.FAILED else ""
    for index, number in enumerate(numbers):
        task = new_task(TaskDefinition(f"t{index}", ("true",)), number, run_no, keep_dir=False)
        after = ((numbers[index - 1], Condition.SUCCESS),) if index else ()
        state = others if index else first
        task.row = msgspec.structs.replace(task.row, state=state, dependencies=after, reason=reason)
        stored.append(task)
    return stored


def layers(run_no: int, first_no: int) -> list[TaskStored]:
    """20 layers of 500 tasks `w0`, `w1`, …, each waiting for two of the layer before. `w0` failed."""
    stored, aborted = [], {first_no}
    for index in range(20 * WIDTH):
        number = first_no + index
        before = (number - WIDTH, number - WIDTH + 1) if index >= WIDTH else ()
        state = TaskState.FAILED if not index else TaskState.SUCCEEDED
        if aborted.intersection(before):
            aborted.add(number)
            state = TaskState.ABORTED
        task = new_task(TaskDefinition(f"w{index}", ("true",)), number, run_no, keep_dir=False)
        after = tuple([(other, Condition.SUCCESS) for other in before])
        task.row = msgspec.structs.replace(task.row, state=state, dependencies=after)
        stored.append(task)
    return stored


def fan_in(run_no: int, first_no: int) -> list[TaskStored]:
    """Task `all` waits for `f0`, `f1`, …, of which only the last does not run."""
    stored = [new_task(TaskDefinition(f"f{i}", ("true",)), first_no + i, run_no, keep_dir=False) for i in range(6_000)]
    for task in stored:
        task.row.state = TaskState.READY if task is stored[-1] else TaskState.RUNNING
    last = new_task(TaskDefinition("all", ("true",)), first_no + len(stored), run_no, keep_dir=False)
    last.row.state = TaskState.WAITING
    last.row.dependencies = tuple([(task.row.task_no, Condition.SUCCESS) for task in stored])
    return [*stored, last]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Chains `waits` and `aborted` in the order of their list, `reversed` in the other."""
    engine = make_engine(f"sqlite:///{tmp_path_factory.mktemp('deep')}/deep.db")
    migrate(engine)
    store = Store(engine)
    store.lead("test", 0.0)
    runs = ["waits", "aborted", "reversed", "wide", "fan-in"]
    ranges = [list(range(1 + index * DEPTH, 1 + (index + 1) * DEPTH)) for index in range(len(runs))]
    stored = [
        *chain(TaskState.READY, TaskState.WAITING, 1, ranges[0]),
        *chain(TaskState.FAILED, TaskState.ABORTED, 2, ranges[1]),
        *chain(TaskState.READY, TaskState.WAITING, 3, ranges[2][::-1]),
        *layers(4, ranges[3][0]),
        *fan_in(5, ranges[4][0]),
    ]
    writes = Writes(runs={no: RunRow(no, name) for no, name in enumerate(runs, 1)}, stored=StoredTasks(stored))
    store.commit(1, writes, 0.0)
    yield engine
    engine.dispose()


def ask(engine: Engine, run: str, depth: int | None, name: str = "t") -> tuple[Reasons, int]:
    """Why the task `name` at that depth stands as it does, and how many queries that took."""
    counted: list[str] = []

    def count(connection: object, cursor: object, statement: str, *rest: object) -> None:
        counted.append(statement)

    sa.event.listen(engine, "before_cursor_execute", count)
    try:
        return why(engine, f"{name}{'' if depth is None else depth}", run, now=10.0), len(counted)
    finally:
        sa.event.remove(engine, "before_cursor_execute", count)


@pytest.mark.parametrize("run", ["waits", "reversed"])
@pytest.mark.parametrize("depth", [2, 999, 1_001, DEPTH - 1])
def test_the_root_of_a_waiting_chain_is_found_with_few_queries_and_named_once(
    deep: Engine, run: str, depth: int
) -> None:
    reasons, queries = ask(deep, run, depth)
    text = "\n".join([reasons.sentence, *reasons.layers])
    assert f"task t{depth} waits for task t{depth - 1} (waiting) to succeed; at the root, " in reasons.sentence
    assert text.count("task t0 ") == 1, text
    assert len(text) < 1_000
    assert queries < QUERIES


def test_the_culprit_of_an_aborted_chain_is_found_with_few_queries(deep: Engine) -> None:
    reasons, queries = ask(deep, "aborted", DEPTH - 1)
    assert reasons.sentence == f"task t{DEPTH - 1} was aborted because task t0 failed: exit code 3"
    way = f"the chain of causes: t0 (failed) <- t1 (aborted) <- t2 (aborted) <- {DEPTH - 1 - 6:,} more <- "
    assert reasons.layers[0].startswith(way)
    assert reasons.layers[0].endswith(f"t{DEPTH - 2} (aborted) <- t{DEPTH - 1}")
    assert queries < QUERIES


def test_wide_layers_are_not_read_as_a_whole(deep: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[why_edges.Upwards] = []

    class Noted(why_edges.Upwards):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            walks.append(self)

    monkeypatch.setattr(why_task, "Upwards", Noted)
    reasons, _ = ask(deep, "wide", 19 * WIDTH - 9, "w")
    assert reasons.sentence.startswith(f"task w{19 * WIDTH - 9} was aborted because task w0 failed")
    edges = sum(len(found) for walk in walks for found in walk._edges.values())
    assert edges < 3_000, "of 19,000"


def test_a_task_that_waits_for_thousands_names_one_that_does_not_run(deep: Engine) -> None:
    reasons, queries = ask(deep, "fan-in", None, "all")
    assert "task all waits for task f5999 (ready) to succeed and for 5,999 other tasks" in reasons.sentence
    assert queries < QUERIES
