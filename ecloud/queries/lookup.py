"""Find one task by its name, with everything known about it. Reads a snapshot, never writes."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from datastore.problem import Problem
from ecloud.db import schema
from ecloud.model.tasks import ManifestEntry, TaskDefinition
from ecloud.model.wire import Hello
from ecloud.queries.arrays import array_of_element, array_row, unmade_definition, unmade_element
from ecloud.queries.status import NoSuchRun, find_run, near, snapshot
from ecloud.queries.views import AttemptView, Neighbour, TaskDetail

IDS_COMPARED = 20_000
"""Ids compared in the search for a similar name."""
RUNS_NAMED = 500
"""Runs that a query for an id names. With more of them, the database reads the index of all ids."""
NEIGHBOURS_SHOWN = 1_000
"""Dependents listed for one task; a task can have a million."""


class NoSuchTask(Problem):
    """No task, or more than one, has this name; the text lists similar names or the runs."""


def find_task(connection: Connection, name: str, run: str = "") -> Any:
    """Return the row of the task called `name` (its id, or RUN:ID). Raises `NoSuchTask`, `NoSuchRun`."""
    rows = schema.tasks
    run_no = find_run(connection, run) if run else None
    query = sa.select(rows).where(rows.c.id == name)
    found = connection.execute(query.where(_of_runs(connection, run_no))).all()
    if len(found) > 1:
        runs = {row.run_no: row.name for row in connection.execute(sa.select(schema.runs.c.run_no, schema.runs.c.name))}
        names = ", ".join(f"{runs.get(row.run_no, row.run_no)}:{row.id}" for row in found[:5])
        raise NoSuchTask(f"task {name!r} is in {len(found)} runs: specify which, {names}, or use --run")
    if found:
        return found[0]
    row = unmade_element(connection, run_no, name)
    if row is None and run_no is None:
        row = _in_named_run(connection, name)
    if row is not None:
        return row
    known = sa.select(rows.c.id).limit(IDS_COMPARED)
    ids = connection.execute(known if run_no is None else known.where(rows.c.run_no == run_no)).scalars().all()
    inside = f" in run {run!r}" if run else ""
    text = f"there is no task {name!r}{inside}" + near(name, ids)
    raise NoSuchTask(text, "python admin.py show_tasks lists tasks")


def is_task(connection: Connection, id: str) -> bool:
    """Whether a task of some run has this id."""
    query = sa.select(schema.tasks.c.task_no).where(schema.tasks.c.id == id, _of_runs(connection, None))
    return connection.execute(query.limit(1)).first() is not None


def _of_runs(connection: Connection, run_no: int | None) -> sa.ColumnElement[bool]:
    """Tasks of this run, or of any. All runs are named, while they are few: the index of ids begins with the run."""
    if run_no is not None:
        return schema.tasks.c.run_no == run_no
    runs = connection.execute(sa.select(schema.runs.c.run_no).limit(RUNS_NAMED + 1)).scalars().all()
    return schema.tasks.c.run_no.in_(runs) if len(runs) <= RUNS_NAMED else sa.true()


def _in_named_run(connection: Connection, name: str) -> Any:
    """Resolve RUN:ID; try each colon, since runs and ids may contain colons."""
    rows, runs = schema.tasks, schema.runs
    parts = name.split(":")
    for cut in range(1, len(parts)):
        run, id = ":".join(parts[:cut]), ":".join(parts[cut:])
        query = sa.select(rows).join(runs, runs.c.run_no == rows.c.run_no).where(runs.c.name == run, rows.c.id == id)
        row = connection.execute(query).first()
        if row is None and id.endswith("]"):
            run_no = connection.execute(sa.select(runs.c.run_no).where(runs.c.name == run)).scalar()
            row = unmade_element(connection, run_no, id) if run_no is not None else None
        if row is not None:
            return row
    return None


def task(engine: Engine, name: str, run: str = "") -> TaskDetail:
    """Return everything known about a task. Raises `NoSuchTask`, `NoSuchRun`, `DatabaseAway`."""
    with snapshot(engine) as connection:
        return detail(connection, find_task(connection, name, run))


def detail(connection: Connection, row: Any) -> TaskDetail:
    """Build the details from a row of `tasks` and all rows related to it."""
    if hasattr(row, "array_no"):
        definition = unmade_definition(connection, row)
    else:
        stored = sa.select(schema.definitions.c.definition).where(schema.definitions.c.task_no == row.task_no)
        definition = msgspec.json.decode(connection.execute(stored).scalar_one(), type=TaskDefinition)
    array = array_of_element(connection, row)
    # The dependencies and dependents of an element are stored with its array.
    edges, edges_no = schema.dependencies.c, array.task_no if array is not None else row.task_no
    dependents, total = _neighbours(connection, edges.task_no, edges.on_task_no == edges_no)
    dependencies, _ = _neighbours(connection, edges.on_task_no, edges.task_no == edges_no)
    run = connection.execute(sa.select(schema.runs.c.name).where(schema.runs.c.run_no == row.run_no)).scalar_one()
    return TaskDetail(
        run=run,
        run_no=row.run_no,
        id=row.id,
        task_no=row.task_no,
        state=row.state,
        reason=row.reason,
        changed_at=row.changed_at,
        not_before=row.not_before,
        retries_used=row.retries_used,
        definition=definition,
        attempts=attempts_of(connection, row.task_no),
        dependencies=dependencies,
        dependents=dependents,
        dependents_total=total,
        elements=msgspec.json.decode(array_row(connection, row.task_no).states) if row.init == schema.ARRAY else {},
    )


def _neighbours(
    connection: Connection, other: sa.ColumnElement[int], condition: sa.ColumnElement[bool]
) -> tuple[list[Neighbour], int]:
    """Return tasks at the other end of the matching edges, and their total number."""
    edges, rows = schema.dependencies, schema.tasks
    query = (
        sa.select(rows.c.task_no, rows.c.id, rows.c.state, rows.c.reason, edges.c.met_by)
        .select_from(edges)
        .join(rows, rows.c.task_no == other)
        .where(condition)
        .order_by(rows.c.task_no)
        .limit(NEIGHBOURS_SHOWN)
    )
    found = [Neighbour(row.task_no, row.id, row.state, row.met_by, row.reason) for row in connection.execute(query)]
    if len(found) < NEIGHBOURS_SHOWN:
        return found, len(found)
    total = connection.execute(sa.select(sa.func.count()).select_from(edges).where(condition)).scalar()
    return found, int(total or 0)


def attempts_of(connection: Connection, task_no: int) -> list[AttemptView]:
    """Return all attempts of a task, first to last."""
    attempts, workers = schema.attempts, schema.workers
    query = (
        sa.select(attempts, workers.c.hello)
        .outerjoin(workers, workers.c.worker == attempts.c.worker)
        .where(attempts.c.task_no == task_no)
        .order_by(attempts.c.number)
    )
    return [_attempt(row) for row in connection.execute(query)]


def _attempt(row: Any) -> AttemptView:
    manifest = msgspec.json.decode(row.manifest, type=tuple[ManifestEntry, ...]) if row.manifest else ()
    return AttemptView(
        number=row.number,
        worker=row.worker,
        host=msgspec.json.decode(row.hello, type=Hello).host if row.hello else "",
        state=row.state,
        assigned_at=row.assigned_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        reason=row.reason or "",
        cause=row.cause,
        exit_code=row.exit_code,
        signal=row.signal,
        error=row.error or "",
        command=row.command or "",
        stdout=row.stdout or "",
        stderr=row.stderr or "",
        fetch_s=row.fetch_s,
        run_s=row.run_s,
        store_s=row.store_s,
        max_rss_mb=row.max_rss_mb,
        results=manifest,
        fetch_bytes=row.fetch_bytes,
        cached_bytes=row.cached_bytes,
    )


__all__ = ["NoSuchRun", "NoSuchTask", "attempts_of", "detail", "find_task", "task"]
