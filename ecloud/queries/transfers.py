"""Transfers in progress, as workers reported them to the database. Writes nothing."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ecloud.db import schema
from ecloud.model.transfer_status import Moving
from ecloud.queries.views import Transfer


def transfers(connection: Connection) -> list[Transfer]:
    """Return the transfers of active workers, the earliest first."""
    workers, tasks, runs = schema.workers.c, schema.tasks.c, schema.runs.c
    told = [
        (row.worker, msgspec.json.decode(row.moving, type=Moving), row.moving_at)
        for row in connection.execute(
            sa.select(workers.worker, workers.moving, workers.moving_at).where(
                workers.state.in_(("up", "draining")), workers.moving.is_not(None)
            )
        )
    ]
    wanted = {task_no for _, moving, _ in told for task_no in moving.tasks}
    names: dict[int, str] = {}
    if wanted:
        query = sa.select(tasks.task_no, tasks.id, runs.name).join(schema.runs, runs.run_no == tasks.run_no)
        for row in connection.execute(query.where(tasks.task_no.in_(wanted))):
            names[row.task_no] = f"{row.name}:{row.id}"
    return sorted(
        (
            Transfer(
                worker=worker,
                since=at - moving.since_s,
                told_at=at,
                tasks=[names.get(task_no, f"task {task_no}") for task_no in moving.tasks],
                **{name: getattr(moving, name) for name in ("fetching", "storing", "bytes", "moved_bytes")},
                bytes_per_s=moving.bytes_per_s,
            )
            for worker, moving, at in told
        ),
        key=lambda transfer: transfer.since,
    )
