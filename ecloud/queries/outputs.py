"""Stored outputs of the tasks of a run. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ecloud.db import schema
from ecloud.queries.status import snapshot


class Output(NamedTuple):
    """Output of one attempt. `ended`: its cause, as `exit 3` or `success`."""

    task: str
    number: int
    ended: str
    stdout: str
    stderr: str


def outputs(engine: Engine, run: str) -> Iterator[Output]:
    """Yield the output of every attempt that has some, in the order of tasks and attempts. Raises `DatabaseAway`."""
    attempts, tasks, runs = schema.attempts.c, schema.tasks.c, schema.runs.c
    query = (
        sa.select(tasks.id, attempts.number, attempts.cause, attempts.exit_code, attempts.stdout, attempts.stderr)
        .join_from(schema.attempts, schema.tasks, attempts.task_no == tasks.task_no)
        .join(schema.runs, runs.run_no == tasks.run_no)
        .where(runs.name == run, sa.or_(attempts.stdout.is_not(None), attempts.stderr.is_not(None)))
        .order_by(tasks.task_no, attempts.number)
    )
    with snapshot(engine) as connection:
        for row in connection.execute(query, execution_options={"stream_results": True, "max_row_buffer": 100}):
            code = f" {row.exit_code}" if row.exit_code else ""
            yield Output(row.id, row.number, f"{row.cause}{code}", row.stdout or "", row.stderr or "")
