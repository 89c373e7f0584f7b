"""The tasks around one task: dependencies and dependents, two steps each way."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ecloud.db import schema
from ecloud.queries.lookup import find_task
from ecloud.queries.status import snapshot

STEPS = 2
COLUMN_SHOWN = 10
"""Tasks shown in one column."""
LOOKED_AT = 1_000
"""The shown tasks are chosen among this many."""
FOREMOST = ("failed", "aborted", "cancelled", "running", "ready", "waiting", "succeeded")
"""Tasks in the first of these states are shown before others: they are why a task does not run."""


class Near(msgspec.Struct, frozen=True):
    """A task and its distance in steps after (below 0: before) the requested task."""

    task_no: int
    id: str
    state: str
    step: int


class Neighbourhood(msgspec.Struct, frozen=True):
    """Tasks by step, the edges among them as (from, to) by task_no, and the number of hidden tasks of each step."""

    run: str
    tasks: list[Near]
    edges: list[tuple[int, int]]
    more: dict[int, int]


def neighbourhood(engine: Engine, name: str, run: str = "") -> Neighbourhood:
    """Return the tasks around one task. Raises `NoSuchTask`, `NoSuchRun`, `DatabaseAway`."""
    edges = schema.dependencies.c
    with snapshot(engine) as connection:
        row = find_task(connection, name, run)
        run_name = connection.execute(
            sa.select(schema.runs.c.name).where(schema.runs.c.run_no == row.run_no)
        ).scalar_one()
        steps = {row.task_no: 0}
        more: dict[int, int] = {}
        for sign, here, there in ((-1, edges.task_no, edges.on_task_no), (1, edges.on_task_no, edges.task_no)):
            frontier = [row.task_no]
            for step in range(1, STEPS + 1):
                found, total = _beyond(connection, frontier, here, there)
                frontier = [task_no for task_no in found if task_no not in steps]
                steps.update(dict.fromkeys(frontier, sign * step))
                if total > len(found):
                    more[sign * step] = total - len(found)
        tasks = schema.tasks.c
        near = [
            Near(one.task_no, one.id, one.state, steps[one.task_no])
            for one in connection.execute(
                sa.select(tasks.task_no, tasks.id, tasks.state)
                .where(tasks.task_no.in_(list(steps)))
                .order_by(tasks.task_no)
            )
        ]
        among = sa.select(edges.on_task_no, edges.task_no).where(
            edges.task_no.in_(list(steps)), edges.on_task_no.in_(list(steps))
        )
        return Neighbourhood(run_name, near, [(one[0], one[1]) for one in connection.execute(among)], more)


def _beyond(
    connection: Connection, frontier: list[int], here: sa.ColumnElement[int], there: sa.ColumnElement[int]
) -> tuple[list[int], int]:
    """Return tasks at the other end of the edges of `frontier`, at most a column of them, those that failed first, and
    approximately the number of all."""
    if not frontier:
        return [], 0
    query = sa.select(there).where(here.in_(frontier)).distinct().order_by(there)
    known = [int(one) for one in connection.execute(query.limit(LOOKED_AT)).scalars()]
    if len(known) <= COLUMN_SHOWN:
        return known, len(known)
    tasks = schema.tasks.c
    rows = connection.execute(sa.select(tasks.task_no, tasks.state).where(tasks.task_no.in_(known)))
    found = [int(row.task_no) for row in sorted(rows, key=lambda row: (FOREMOST.index(row.state), row.task_no))]
    if len(known) < LOOKED_AT:
        return found[:COLUMN_SHOWN], len(known)
    total = connection.execute(sa.select(sa.func.count(sa.distinct(there))).where(here.in_(frontier))).scalar()
    return found[:COLUMN_SHOWN], int(total or 0)
