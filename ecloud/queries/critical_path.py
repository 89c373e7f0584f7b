"""Critical path of a run: from the task that ended last back along the dependency that each task waited for."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ecloud.db import schema
from ecloud.db.database import database_now
from ecloud.queries.status import find_run, snapshot

STEPS_SHOWN = 100
"""Tasks of the path to read, from its end; of a chain of 16,000 the last ones are shown."""


class PathStep(msgspec.Struct, frozen=True):
    """A task of the path and its times in seconds. It became ready at `ready_at` (seconds since 1970), when the step
    before it ended. `tries_s`: earlier attempts without success; `queue_s`: from ready until a worker started it;
    `fetch_s`, `run_s`, `store_s`: of the last attempt. Together they are `ended_at` - `ready_at`."""

    id: str
    state: str
    attempts: int
    ready_at: float
    ended_at: float
    tries_s: float
    queue_s: float
    fetch_s: float
    run_s: float
    store_s: float

    @property
    def waited_for(self) -> str:
        """Describe which of the times was the longest."""
        parts = {
            "earlier attempts": self.tries_s, "a free worker": self.queue_s, "fetching its files": self.fetch_s,
            "its commands": self.run_s, "storing its results": self.store_s,
        }  # fmt: skip
        return max(parts, key=lambda name: parts[name])


class CriticalPath(msgspec.Struct, frozen=True):
    """The path from its beginning to its end. `is_cut`: the path has further steps before the first."""

    steps: list[PathStep]
    is_cut: bool


def critical_path(engine: Engine, run: str, now: float | None = None, limit: int = STEPS_SHOWN) -> CriticalPath:
    """Return the chain of dependencies that ended last; during a run, the chain up to what has ended or runs now.
    Raises `NoSuchRun`, `DatabaseAway`."""
    with snapshot(engine) as connection:
        run_no = find_run(connection, run)
        now = database_now(connection) if now is None else now
        row = _last(connection, run_no)
        pushed_at = connection.execute(
            sa.select(schema.runs.c.created_at).where(schema.runs.c.run_no == run_no)
        ).scalar_one()
        steps: list[PathStep] = []
        while row is not None and len(steps) < limit:
            before = _last_dependency(connection, row.task_no)
            ready_at = max(pushed_at, before.ended_at) if before is not None and before.ended_at else pushed_at
            steps.append(_step(connection, row, ready_at, now))
            row = before
    return CriticalPath(steps[::-1], row is not None)


def _columns() -> Any:
    tasks, last = schema.tasks, schema.attempts
    return (
        sa.select(
            tasks.c.task_no, tasks.c.id, tasks.c.state, tasks.c.attempts, last.c.assigned_at, last.c.started_at,
            last.c.ended_at, last.c.fetch_s, last.c.run_s, last.c.store_s,
        )
        .select_from(tasks)
        .join(last, (last.c.task_no == tasks.c.task_no) & (last.c.number == tasks.c.attempts))
    )  # fmt: skip


def _last(connection: Connection, run_no: int) -> Any:
    """Return the task that ended last; before any ended, the one that has run the longest."""
    attempts = schema.attempts.c
    newest = (
        sa.select(attempts.task_no)
        .where(attempts.run_no == run_no, attempts.state == "ended", attempts.cause != "stopped")
        .order_by(attempts.ended_at.desc())
        .limit(1)
    )
    task_no = connection.execute(newest).scalar()
    if task_no is None:
        running = sa.select(attempts.task_no).where(attempts.run_no == run_no, attempts.started_at.is_not(None))
        task_no = connection.execute(running.order_by(attempts.started_at).limit(1)).scalar()
    return None if task_no is None else connection.execute(_columns().where(schema.tasks.c.task_no == task_no)).first()


def _last_dependency(connection: Connection, task_no: int) -> Any:
    edges, attempts = schema.dependencies.c, schema.attempts.c
    query = (
        _columns()
        .join(schema.dependencies, edges.on_task_no == schema.tasks.c.task_no)
        .where(edges.task_no == task_no, attempts.ended_at.is_not(None))
        .order_by(attempts.ended_at.desc())
        .limit(1)
    )
    return connection.execute(query).first()


def _step(connection: Connection, row: Any, ready_at: float, now: float) -> PathStep:
    attempts = schema.attempts.c
    earlier = sa.select(sa.func.max(attempts.ended_at)).where(
        attempts.task_no == row.task_no, attempts.number < row.attempts, attempts.started_at.is_not(None)
    )
    tried_until = connection.execute(earlier).scalar() if row.attempts > 1 else None
    free_at = max(ready_at, tried_until or ready_at)
    ended_at = max(free_at, row.ended_at or now)
    started_at = min(ended_at, max(free_at, row.started_at or ended_at))
    whole_s = ended_at - started_at
    fetch_s = min(whole_s, row.fetch_s or 0.0)
    store_s = min(whole_s - fetch_s, row.store_s or 0.0)
    return PathStep(
        id=row.id,
        state=row.state,
        attempts=row.attempts,
        ready_at=ready_at,
        ended_at=ended_at,
        tries_s=free_at - ready_at,
        queue_s=started_at - free_at,
        fetch_s=fetch_s,
        run_s=whole_s - fetch_s - store_s,
        store_s=store_s,
    )
