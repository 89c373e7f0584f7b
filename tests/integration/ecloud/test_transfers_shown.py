"""What people see of transfers, on both kinds of database: whose turn it is, who waits, what an attempt moved, and who
should have made a file that is missing."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from sqlalchemy.engine import Engine

from boss.core.model.effects import LoadRun
from boss.core.model.rows import AttemptRow, RunRow, StoredTasks, WorkerRow, Writes
from boss.core.tasks.merging import new_task
from boss.store.store import Store
from ecloud.cli.transfer_text import transfer_line
from ecloud.model.tasks import AttemptState, Cause, Condition, Outcome, Requirement, Result, TaskDefinition, TaskState
from ecloud.model.transfer_status import Moving
from ecloud.model.wire import Hello
from ecloud.queries import status as queries
from ecloud.queries.lookup import task
from ecloud.queries.why import why


class Shelf:
    """A store with one run, filled as a boss would fill it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.now = time.time()
        self.store = Store(engine)
        self.store.lead("pid 7 on node0", self.now)
        self.count = 0
        self.write(runs={1: RunRow(1, "r", self.now)})

    def write(self, **fields: Any) -> None:
        self.store.commit(self.store.last_batch() + 1, Writes(**fields), self.now)

    def task(
        self, id: str, state: TaskState, attempt: AttemptRow | None = None, after: tuple[int, ...] = (), **more: Any
    ) -> int:
        """A task; its number."""
        self.count += 1
        definition = TaskDefinition(id, ("true",), **more)
        task = new_task(definition, self.count, 1, keep_dir=False)
        task.row = msgspec.structs.replace(
            task.row,
            state=state,
            dependencies=tuple((number, Condition.SUCCESS) for number in after),
            attempts=int(attempt is not None),
        )
        attempts = {}
        if attempt is not None:
            outcome = attempt.outcome and msgspec.structs.replace(attempt.outcome, task_no=self.count)
            attempts = {(self.count, 1): msgspec.structs.replace(attempt, task_no=self.count, outcome=outcome)}
        self.write(stored=StoredTasks([task]), attempts=attempts)
        return self.count

    def lacking(self, id: str, path: str, after: tuple[int, ...] = ()) -> int:
        """A task that failed since a file is missing."""
        outcome = Outcome(0, 1, Cause.REQUIREMENT, error=f"requirement {path} is not in the datastore")
        attempt = AttemptRow(
            0, 1, 1, "w1", AttemptState.ENDED, self.now - 9, self.now - 8, self.now - 7, outcome=outcome
        )
        return self.task(id, TaskState.FAILED, attempt, after, requirements=(Requirement(path, path),))

    def worker(self, name: str, **fields: Any) -> None:
        row = WorkerRow(name, "client", "up", self.now, self.now, Hello("n", "worker"), **fields)
        self.write(workers={name: row})


@pytest.fixture
def shelf(engine: Engine) -> Shelf:
    return Shelf(engine)


def test_turns_are_shown(shelf: Shelf) -> None:
    shelf.worker("w1", lane_since=shelf.now - 5)
    shelf.worker("w2", lane_wanted_since=shelf.now - 90)
    shelf.worker("w3")
    running = AttemptRow(0, 1, 1, "w2", AttemptState.STARTED, shelf.now - 95, shelf.now - 94)
    shelf.task("t", TaskState.RUNNING, running)
    status = queries.status(shelf.engine)
    assert (status.transfers, status.transfers_turns, status.transfers_waiting) == ([], 1, 1), "nothing moves"
    reasons = why(shelf.engine, "t", "", (), shelf.now)
    assert any(
        "w2 has waited for its turn to move files" in layer and "1 worker has" in layer for layer in reasons.layers
    )


def test_what_moves_is_shown_by_those_on_duty_alone(shelf: Shelf) -> None:
    number = shelf.task("t", TaskState.RUNNING, AttemptRow(0, 1, 1, "w1", AttemptState.STARTED, shelf.now, shelf.now))
    fetching = Moving(1, 0, 300_000_000, 120_000_000, 20_000_000, tasks=(number,), since_s=6.0)
    shelf.worker("w1", moving=fetching, moving_at=shelf.now - 1, lane_since=shelf.now - 9)
    shelf.worker(
        "w2", moving=Moving(0, 40, 4_000, 1_000, tasks=(number, 77, 78, 79), since_s=60.0), moving_at=shelf.now - 30
    )
    shelf.worker("w3", moving=None, moving_at=shelf.now)
    shelf.worker("w4", moving=fetching, moving_at=shelf.now)
    shelf.write(workers={"w4": WorkerRow("w4", "client", "lost", 0.0, 0.0, Hello("n", "worker"), moving=fetching)})
    status = queries.status(shelf.engine, shelf.now)
    assert [transfer_line(transfer, shelf.now) for transfer in status.transfers] == [
        "w2  storing 40 files, 1 of 4 kB, for 1 min: r:t, task 77 and 2 others (reported 30 s ago)",
        "w1  fetching 1 file, 120 of 300 MB, 20 MB/s, for 6 s: r:t",
    ]
    kept = {row.worker: (row.moving, row.moving_at) for row in shelf.store.load().workers}
    assert kept["w1"] == (fetching, shelf.now - 1)


def test_what_an_attempt_moved_is_kept(shelf: Shelf) -> None:
    outcome = Outcome(0, 1, Cause.SUCCESS, fetch_s=1.5, run_s=2.0, fetch_bytes=5 * 2**40, cached_bytes=2**40)
    ended = AttemptRow(0, 1, 1, "w1", AttemptState.ENDED, shelf.now - 9, shelf.now - 8, shelf.now, outcome=outcome)
    shelf.task("t", TaskState.SUCCEEDED, ended)
    (attempt,) = task(shelf.engine, "t").attempts
    assert (attempt.fetch_bytes, attempt.cached_bytes, attempt.store_bytes) == (5 * 2**40, 2**40, 0)
    [(loaded, _)] = shelf.store.load_runs([LoadRun(1, "r")])
    assert loaded is not None


def test_who_should_have_made_a_file_is_named(shelf: Shelf) -> None:
    ok = TaskState.SUCCEEDED
    whole = shelf.task("whole", ok, results=(Result("out", "made"),))
    globs = shelf.task("globs", ok, results=(Result("parts/*.dat", "parts"),))
    globs_after_whole = shelf.task("after", ok, after=(whole,))
    shelf.task("far", TaskState.CANCELLED, results=(Result('odd "name', 'odd "name'),))
    shelf.lacking("a", "made/deep/file", after=(whole,))
    shelf.lacking("b", "parts/x.dat", after=(whole, globs))
    shelf.lacking("c", 'odd "name')
    shelf.lacking("d", "nobody's", after=(whole,))
    shelf.lacking("e", "made", after=(globs_after_whole,))
    errors = {failure.id: failure.error for failure in queries.failures(shelf.engine)}
    assert errors["a"].endswith("; task whole (succeeded) should have produced it")
    assert errors["b"].endswith("; task globs (succeeded) should have produced it")
    assert errors["c"].endswith(
        "; task far (cancelled) produces it, but this task does not wait for it: add far to its dependencies, "
        "or push with --infer_dependencies"
    )
    assert errors["e"].endswith("; task whole (succeeded) should have produced it"), "it is waited for through a"
    assert "no task of its run produces it" in errors["d"]
    assert "task whole (succeeded) should have produced it" in why(shelf.engine, "a", "", (), shelf.now).sentence
