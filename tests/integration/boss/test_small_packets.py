"""A database that takes at most 1 MB in a statement or a value: what fits is stored, what does not is refused alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from databases import MariaDb, statements
from sqlalchemy.engine import Engine

from boss.core.model.rows import AttemptRow, RunRow, StoredTasks, TaskMoved, TaskStored, Writes
from boss.core.tasks.merging import new_task
from boss.store.store import CommitRefused, Store
from ecloud.db.database import make_engine, migrate
from ecloud.model.tasks import AttemptState, Cause, ManifestEntry, Outcome, TaskDefinition, TaskState

NOW = 1_700_000_000.25
MB = 1024 * 1024


@pytest.fixture
def engine(mariadb: MariaDb) -> Iterator[Engine]:
    """Connections that were made while max_allowed_packet was 1 MB."""
    with mariadb.packets_of(MB):
        engine = make_engine(mariadb.new_url())
        migrate(engine)
        yield engine
        engine.dispose()


@pytest.fixture
def store(engine: Engine) -> Store:
    store = Store(engine)
    store.lead("one:1", NOW)
    return store


def task(number: int, command_bytes: int) -> TaskStored:
    return new_task(TaskDefinition(str(number), ("'" * command_bytes,)), number, 1, keep_dir=False)


def write(store: Store, **fields: Any) -> None:
    store.commit(store.last_batch() + 1, Writes(**fields), NOW)


def test_what_fits_into_a_value_is_stored_also_where_escaping_doubles_it(store: Store) -> None:
    assert store.value_bytes is not None
    stored = [task(1, store.value_bytes - 1_000), *(task(number, 100_000) for number in range(2, 12))]
    write(store, runs={1: RunRow(1, "r", NOW)}, stored=StoredTasks(stored))
    assert store.definitions([1, 5]) == {1: stored[0].json, 5: stored[4].json}


def test_a_long_value_costs_the_other_rows_no_statements(store: Store, engine: Engine) -> None:
    stored = [task(1, 500_000), *(task(number, 10) for number in range(2, 202))]
    with statements(engine) as asked:
        write(store, runs={1: RunRow(1, "r", NOW)}, stored=StoredTasks(stored))
    into_definitions = [sql for sql in asked if "INTO definitions" in sql]
    assert len(into_definitions) == 2, "one for the 200 short ones, one for the beginning of the long one"
    assert len(store.definitions(range(1, 202))) == 201


def test_a_longer_value_is_refused_with_the_remedy_and_the_next_batch_is_taken(store: Store) -> None:
    with pytest.raises(CommitRefused, match=r"raise its max_allowed_packet .* to 16,777,216"):
        write(store, runs={1: RunRow(1, "r", NOW)}, stored=StoredTasks([task(1, 2 * MB)]))
    write(store, runs={1: RunRow(1, "r", NOW)}, stored=StoredTasks([task(1, 10)]))
    assert len(store.definitions([1])) == 1


def test_whatever_ends_and_moves_at_once_is_stored(store: Store) -> None:
    numbers = range(1, 61)
    write(store, runs={1: RunRow(1, "r", NOW)}, stored=StoredTasks([task(number, 10) for number in numbers]))
    manifest = tuple(ManifestEntry(f"{index}/{'p' * 200}", 3, "a" * 64) for index in range(9_000))
    outcomes = [Outcome(n, 1, Cause.EXIT, error="🦀" * 64_000, command="\\" * 3_000_000) for n in numbers]
    attempts = {(o.task_no, 1): AttemptRow(o.task_no, 1, 1, "w", AttemptState.ENDED, outcome=o) for o in outcomes}
    attempts[(1, 1)] = AttemptRow(
        1, 1, 1, "w", AttemptState.ENDED, outcome=Outcome(1, 1, Cause.SUCCESS, manifest=manifest)
    )
    moved = {number: TaskMoved(TaskState.FAILED, f"{number}" + "\\" * 4_096, 1) for number in numbers}
    write(store, tasks=moved, attempts=attempts)
    assert store.load().states == {1: {"failed": 60}}
