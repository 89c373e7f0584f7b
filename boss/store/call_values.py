"""Reads the values of calls that other calls need, without reading more of them than one message can carry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from boss.core.model.effects import LoadValues
from ecloud.db import schema
from ecloud.model.tasks import ManifestEntry
from ecloud.model.wire import BATCH_COUNT, CallValue

TASKS_A_QUERY = 500

_edges, _tasks, _attempts = schema.dependencies, schema.tasks, schema.attempts
_last = sa.and_(_attempts.c.task_no == _tasks.c.task_no, _attempts.c.number == _tasks.c.attempts)
_joined = _edges.join(_tasks, _tasks.c.task_no == _edges.c.on_task_no).join(_attempts, _last)
_size = (
    64  # as `CallValue.json_bytes`; a manifest is longer than the path in it
    + 4 * sa.func.length(_tasks.c.id)
    + 4 * sa.func.coalesce(sa.func.length(_attempts.c.value), 0) / 3
    + 4 * sa.func.coalesce(sa.func.length(_attempts.c.manifest), 0)
)
_values = sa.select(_edges.c.task_no, _tasks.c.id, _attempts.c.value, _attempts.c.manifest).select_from(_joined)
_ORDER = (_edges.c.task_no, _edges.c.on_task_no)


def needed_values(
    connection: Connection, task_nos: Sequence[int], most_bytes: int
) -> dict[int, tuple[CallValue, ...] | None]:
    """The values of the calls that each of these depends on, from their last attempts, by task_no; None for a task
    whose values need more than `most_bytes` in a message."""
    found: dict[int, tuple[CallValue, ...] | None] = {}
    for start in range(0, len(task_nos), TASKS_A_QUERY):
        some = _edges.c.task_no.in_(task_nos[start : start + TASKS_A_QUERY])
        sizes = sa.select(_edges.c.task_no, sa.func.sum(_size)).select_from(_joined).where(some)
        fits = []
        for task_no, size in connection.execute(sizes.group_by(_edges.c.task_no)):
            if size > most_bytes:
                found[task_no] = None
            else:
                fits.append(task_no)
        query = _values.where(_edges.c.task_no.in_(fits)).order_by(*_ORDER)
        for row in connection.execute(query) if fits else ():
            found[row.task_no] = (*(found.get(row.task_no) or ()), _value(row))
    return found


def load_values(connection: Connection, wanted: LoadValues) -> tuple[list[CallValue], bool]:
    """A page of values, and whether there are more: see `LoadValues`."""
    behind = sa.and_(_edges.c.task_no == wanted.task_no, _tasks.c.id > wanted.after)
    sizes = sa.select(_tasks.c.id, _size).select_from(_joined).where(behind)
    sizes = sizes.order_by(_tasks.c.id).limit(BATCH_COUNT + 1)
    rows = connection.execute(sizes).all()
    count = how_many([float(size) for _, size in rows], wanted.most_bytes)
    if not count:
        return [], False
    page = sa.and_(behind, _tasks.c.id <= rows[count - 1].id)
    return [_value(row) for row in connection.execute(_values.where(page).order_by(_tasks.c.id))], count < len(rows)


def how_many(sizes: Iterable[float], most_bytes: int) -> int:
    """How many items of these sizes go into a message: at least one, at most `BATCH_COUNT`."""
    count, total = 0, 0.0
    for size in sizes:
        total += size
        if count and (total > most_bytes or count >= BATCH_COUNT):
            break
        count += 1
    return count


def _value(row: Any) -> CallValue:
    manifest = msgspec.json.decode(row.manifest, type=tuple[ManifestEntry, ...]) if row.manifest else ()
    return CallValue(row.id, row.value or b"", manifest[0].path if manifest else "")
