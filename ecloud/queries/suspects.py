"""Tasks that were running when their workers were lost: texts from the boss's counts."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ecloud.db import schema

SHOWN = 20
"""Maximum number of tasks to name, those with the most losses first."""


def lost_workers(connection: Connection, task_no: int) -> str:
    """Report how many workers were lost while the task ran, and the last of them; empty if none was."""
    rows = schema.suspects
    row = connection.execute(sa.select(rows).where(rows.c.task_no == task_no)).first()
    return _sentence(row.lost, row.reason) if row is not None else ""


def suspect_tasks(connection: Connection) -> list[str]:
    """Return a sentence for each task that may kill its workers."""
    rows, tasks, runs = schema.suspects, schema.tasks, schema.runs
    query = (
        sa.select(tasks.c.id, tasks.c.state, runs.c.name, rows.c.lost, rows.c.failed, rows.c.reason)
        .select_from(rows)
        .join(tasks, tasks.c.task_no == rows.c.task_no)
        .join(runs, runs.c.run_no == rows.c.run_no)
        .where(sa.or_(rows.c.failed == 1, rows.c.lost > 1))
        .order_by(rows.c.lost.desc(), rows.c.task_no)
        .limit(SHOWN)
    )
    return [
        f"task {row.id} of run {row.name} ({'failed for it' if row.failed else row.state}): "
        f"{_sentence(row.lost, row.reason)}"
        for row in connection.execute(query)
    ]


def _sentence(lost: int, reason: str) -> str:
    were = "worker was" if lost == 1 else "workers were"
    return f"{lost} {were} lost while it ran; the last one {reason}"
