"""Pages of tasks for users who browse a run of a million: the cost of a page depends on its size, not on the run's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ecloud.db import schema
from ecloud.model.tasks import TaskState
from ecloud.queries.status import find_run, snapshot


class TaskRow(msgspec.Struct, frozen=True):
    """One line of a page. `changed_at`: seconds since 1970."""

    task_no: int
    run: str
    id: str
    state: str
    reason: str
    attempts: int
    changed_at: float


class Page(msgspec.Struct, frozen=True):
    """Some tasks in list order. `more_after`: the task number to continue after, None at the end. `searched`: number of
    tasks searched if the search stopped before the page was full; else 0."""

    rows: list[TaskRow]
    more_after: int | None
    searched: int = 0


SEARCHED = 25_000
"""Tasks searched for a label or a text per page, so that a page of a million tasks takes as long as one of a
thousand."""


def browse(
    engine: Engine, run: str = "", states: Sequence[str] = (), label: str = "", text: str = "", after: int = 0,
    limit: int = 100,
) -> Page:  # fmt: skip
    """Return the tasks after number `after` that match all conditions; `text` is searched in ids and reasons, by byte.

    Raises `NoSuchRun`, `DatabaseAway`.
    """
    tasks = schema.tasks.c
    with snapshot(engine) as connection:
        run_no = find_run(connection, run) if run else None
        if run_no is not None and not (label or text):
            return _of_run(connection, run_no, states, after, limit)
        conditions: list[sa.ColumnElement[bool]] = [tasks.task_no > after, schema.is_listed()]
        if run_no is not None:
            # + 0: the index over runs would make the database sort all tasks of the run.
            conditions.append(tasks.run_no + 0 == run_no)
        upto = _search_ends(connection, after) if label or text or states else None
        if upto is not None:
            conditions.append(tasks.task_no <= upto)
        if states:
            conditions.append(tasks.state.in_(states))
        if label:
            conditions.append(schema.labelled(label))
        if text:
            wanted = sa.bindparam(None, text, type_=schema.Utf8())
            conditions.append((sa.func.instr(tasks.id, wanted) > 0) | (sa.func.instr(tasks.reason, wanted) > 0))
        query = _rows().where(*conditions).order_by(tasks.task_no).limit(limit + 1)
        rows = [TaskRow(**row._mapping) for row in connection.execute(query)]
    if len(rows) > limit:
        return Page(rows[:limit], rows[limit - 1].task_no)
    return Page(rows, upto, SEARCHED if upto is not None else 0)


def _rows() -> sa.Select[Any]:
    tasks, runs = schema.tasks.c, schema.runs.c
    return sa.select(
        tasks.task_no, runs.name.label("run"), tasks.id, tasks.state, tasks.reason, tasks.attempts, tasks.changed_at
    ).select_from(schema.tasks.join(schema.runs, runs.run_no == tasks.run_no))


def _of_run(connection: Connection, run_no: int, states: Sequence[str], after: int, limit: int) -> Page:
    """Return the page from the index over states, runs and kinds of rows, in which each combination is in list order:
    the first ones of each, merged. A database that sorts the run instead reads all of it."""
    tasks = schema.tasks.c
    numbers: list[int] = []
    for state in states or [state.value for state in TaskState]:
        for init in (schema.TASK, schema.INIT, schema.ARRAY):
            query = (
                sa.select(tasks.task_no)
                .where(tasks.state == state, tasks.run_no == run_no, tasks.init == init, tasks.task_no > after)
                .order_by(tasks.task_no)
                .limit(limit + 1)
            )
            if init == schema.ARRAY:
                query = query.where(schema.is_listed())
            numbers += connection.scalars(query)
    first = sorted(numbers)[: limit + 1]
    query = _rows().where(tasks.task_no.in_(first)).order_by(tasks.task_no)
    rows = [TaskRow(**row._mapping) for row in connection.execute(query)]
    return Page(rows, None) if len(first) <= limit else Page(rows[:limit], first[limit - 1])


def _search_ends(connection: Connection, after: int) -> int | None:
    """Return the number of the last task to search; None if the search can cover all remaining tasks."""
    numbers = schema.tasks.c.task_no
    query = sa.select(numbers).where(numbers > after).order_by(numbers).offset(SEARCHED).limit(1)
    return connection.execute(query).scalar()


def some_in_state(engine: Engine, run: str, state: str, limit: int) -> list[TaskRow]:
    """Return some tasks of a run in one state; uses the index over states, whatever the run's size. Raises `NoSuchRun`,
    `DatabaseAway`."""
    tasks = schema.tasks.c
    with snapshot(engine) as connection:
        query = (
            sa.select(
                tasks.task_no, sa.literal(run).label("run"), tasks.id, tasks.state, tasks.reason, tasks.attempts,
                tasks.changed_at,
            )
            .where(tasks.run_no == find_run(connection, run), tasks.init == 0, tasks.state == state)
            .limit(limit)
        )  # fmt: skip
        return [TaskRow(**row._mapping) for row in connection.execute(query)]
