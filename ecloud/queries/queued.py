"""Reasons of waiting and ready tasks in a list: what each waits for, in a few words. Reads a snapshot, never writes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ecloud.db import schema
from ecloud.db.database import database_now
from ecloud.model.tasks import TaskState
from ecloud.model.text import counted
from ecloud.queries.status import snapshot
from ecloud.queries.views import UNFINISHED, TaskLine, TaskPage
from ecloud.queries.why_task import Pool, TaskReasons

EXPLAINED = 500
"""Maximum number of ready tasks of one list to explain; each costs a few queries."""
AT_ONCE = 500
"""Tasks whose dependencies are read with one query."""
NAMED = 3


def with_reasons(engine: Engine, page: TaskPage, pools: Sequence[Pool]) -> TaskPage:
    """Add a reason to each waiting or ready task of the page. Raises `DatabaseAway`."""
    open_nos = [line.task_no for line in page.tasks if not line.reason and line.state == TaskState.WAITING]
    ready_nos = [line.task_no for line in page.tasks if not line.reason and line.state == TaskState.READY]
    if not open_nos and not ready_nos:
        return page
    with snapshot(engine) as connection:
        reasons = _of_waiting(connection, open_nos) | _of_ready(connection, ready_nos[:EXPLAINED], pools)
    return TaskPage([_explained(line, reasons) for line in page.tasks], page.total)


def _explained(line: TaskLine, reasons: dict[int, str]) -> TaskLine:
    reason = reasons.get(line.task_no, "") if not line.reason else line.reason
    return msgspec.structs.replace(line, reason=reason)


def _of_waiting(connection: Connection, task_nos: list[int]) -> dict[int, str]:
    edges, rows = schema.dependencies, schema.tasks
    found: dict[int, list[str]] = {}
    for start in range(0, len(task_nos), AT_ONCE):
        query = (
            sa.select(edges.c.task_no, rows.c.id, rows.c.state)
            .select_from(edges)
            .join(rows, rows.c.task_no == edges.c.on_task_no)
            .where(edges.c.task_no.in_(task_nos[start : start + AT_ONCE]), rows.c.state.in_(UNFINISHED))
            .order_by(edges.c.task_no, edges.c.on_task_no)
        )
        for row in connection.execute(query):
            found.setdefault(row.task_no, []).append(f"{row.id} ({row.state})")
    return {task_no: f"waits for {_some(names)}" for task_no, names in found.items()}


def _of_ready(connection: Connection, task_nos: list[int], pools: Sequence[Pool]) -> dict[int, str]:
    if not task_nos:
        return {}
    reasons = TaskReasons(connection, pools, database_now(connection))
    rows = connection.execute(sa.select(schema.tasks).where(schema.tasks.c.task_no.in_(task_nos)))
    return {row.task_no: reasons.of(row).sentence.removeprefix(f"task {row.id} ") for row in rows}


def _some(names: list[str]) -> str:
    text = ", ".join(names[:NAMED])
    return text + (f" and {counted(len(names) - NAMED, 'other task')}" if len(names) > NAMED else "")
