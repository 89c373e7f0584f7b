"""Requirements and results of a run's successful tasks, to find stale ones. Reads a snapshot."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ecloud.db import schema
from ecloud.model.tasks import ManifestEntry, TaskState
from ecloud.queries.status import find_run, snapshot

MOST_TASKS = 20_000
"""Maximum number of tasks to read; of a larger run the first ones."""


class Success(msgspec.Struct, frozen=True):
    """A task that succeeded. `stamps`: of its requirements, by path; `results`: files that it published."""

    id: str
    stamps: dict[str, str]
    results: tuple[str, ...]


def successes(engine: Engine, run: str) -> list[Success]:
    """Return the successful tasks of a run that required or published files. Raises `NoSuchRun`, `DatabaseAway`."""
    rows, attempts = schema.tasks, schema.attempts
    with snapshot(engine) as connection:
        query = (
            sa.select(rows.c.id, attempts.c.stamps, attempts.c.manifest)
            .join(attempts, (attempts.c.task_no == rows.c.task_no) & (attempts.c.number == rows.c.attempts))
            .where(rows.c.run_no == find_run(connection, run), rows.c.state == TaskState.SUCCEEDED.value)
            .where(attempts.c.stamps.is_not(None) | attempts.c.manifest.is_not(None))
            .order_by(rows.c.task_no)
            .limit(MOST_TASKS)
        )
        return [_success(row.id, row.stamps, row.manifest) for row in connection.execute(query)]


def _success(id: str, stamps: bytes | None, manifest: bytes | None) -> Success:
    entries = msgspec.json.decode(manifest, type=tuple[ManifestEntry, ...]) if manifest else ()
    results = tuple(entry.path for entry in entries if entry.kind != "directory")
    return Success(id, msgspec.json.decode(stamps, type=dict[str, str]) if stamps else {}, results)
