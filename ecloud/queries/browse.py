"""Tasks page by page, for a user who looks through a million of them: each page costs what it shows."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ecloud.db import schema
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
    """Some tasks in the order of their lists. `more_after`: the number to continue after, None at the end."""

    rows: list[TaskRow]
    more_after: int | None


def browse(
    engine: Engine, run: str = "", states: Sequence[str] = (), label: str = "", text: str = "", after: int = 0,
    limit: int = 100,
) -> Page:  # fmt: skip
    """Tasks after number `after` that match all that is given; `text` is looked for in ids and reasons, by byte.

    Raises `NoSuchRun`, `DatabaseAway`.
    """
    tasks, runs = schema.tasks.c, schema.runs.c
    with snapshot(engine) as connection:
        conditions: list[sa.ColumnElement[bool]] = [tasks.task_no > after]
        if run:
            conditions.append(tasks.run_no == find_run(connection, run))
        if states:
            conditions.append(tasks.state.in_(states))
        if label:
            conditions.append(schema.labelled(label))
        if text:
            wanted = sa.bindparam(None, text, type_=schema.Utf8())
            conditions.append((sa.func.instr(tasks.id, wanted) > 0) | (sa.func.instr(tasks.reason, wanted) > 0))
        query = (
            sa.select(
                tasks.task_no, runs.name.label("run"), tasks.id, tasks.state, tasks.reason, tasks.attempts,
                tasks.changed_at,
            )
            .select_from(schema.tasks.join(schema.runs, runs.run_no == tasks.run_no))
            .where(*conditions)
            .order_by(tasks.task_no)
            .limit(limit + 1)
        )  # fmt: skip
        rows = [TaskRow(**row._mapping) for row in connection.execute(query)]
    more = len(rows) > limit
    return Page(rows[:limit], rows[limit - 1].task_no if more else None)
