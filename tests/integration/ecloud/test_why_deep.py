"""`why` on long chains: few queries at any depth, and the root named once."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from boss.core.model.rows import RunRow, TaskStored, Writes
from boss.core.tasks.merging import new_task
from boss.store.store import Store
from ecloud.db.database import make_engine, migrate
from ecloud.model.tasks import Condition, TaskDefinition, TaskState
from ecloud.queries import why_edges
from ecloud.queries.views import Reasons
from ecloud.queries.why import why

DEPTH = 16_000
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


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Chains `waits` and `aborted` in the order of their list, `reversed` in the other."""
    engine = make_engine(f"sqlite:///{tmp_path_factory.mktemp('deep')}/deep.db")
    migrate(engine)
    store = Store(engine)
    store.lead("test", 0.0)
    runs = ["waits", "aborted", "reversed"]
    ranges = [list(range(1 + index * DEPTH, 1 + (index + 1) * DEPTH)) for index in range(len(runs))]
    stored = [
        *chain(TaskState.READY, TaskState.WAITING, 1, ranges[0]),
        *chain(TaskState.FAILED, TaskState.ABORTED, 2, ranges[1]),
        *chain(TaskState.READY, TaskState.WAITING, 3, ranges[2][::-1]),
    ]
    writes = Writes(runs={no: RunRow(no, name) for no, name in enumerate(runs, 1)}, stored=stored)
    store.commit(1, writes, 0.0)
    yield engine
    engine.dispose()


def ask(engine: Engine, run: str, depth: int) -> tuple[Reasons, int]:
    """Why the task at that depth stands as it does, and how many queries that took."""
    counted: list[str] = []

    def count(connection: object, cursor: object, statement: str, *rest: object) -> None:
        counted.append(statement)

    sa.event.listen(engine, "before_cursor_execute", count)
    try:
        return why(engine, f"t{depth}", run, now=10.0), len(counted)
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
