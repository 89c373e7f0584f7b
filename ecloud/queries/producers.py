"""Find the task of a run that produces a missing file, for error messages. Reads one snapshot, never writes."""

from __future__ import annotations

import fnmatch
from typing import NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ecloud.db import schema
from ecloud.model.tasks import Cause, Result, TaskDefinition

LAYERS_LOOKED_AT = 100
"""Layers of the graph above a task that are searched."""
LOOKED_AT = 1_000
"""Definitions to read, of those that may mention the path."""


def with_maker(connection: Connection, task_no: int, cause: str | None, error: str, wide: bool = True) -> str:
    """Describe how an attempt ended; if a requirement is missing, name the task that should have produced it. `wide`:
    search the whole run if no dependency produces it."""
    path = _missing(connection, task_no, error) if cause == Cause.REQUIREMENT.value else ""
    if not path:
        return error
    found = producer_of(connection, task_no, path, wide)
    if found is None and not wide:
        return error
    if found is None:
        return f"{error}; no task of its run produces it: upload it with push_tasks.py --upload DIR or admin.py put"
    if not found.comes_before:
        return (
            f"{error}; task {found.id} ({found.state}) produces it, but this task does not wait for it: "
            f"add {found.id} to its dependencies, or push with --infer_dependencies"
        )
    return f"{error}; task {found.id} ({found.state}) should have produced it"


def _missing(connection: Connection, task_no: int, error: str) -> str:
    if not error.startswith("requirement "):
        return ""
    requirements = _definitions(connection, [task_no])[task_no].requirements
    named = [item.path for item in requirements if error.startswith(f"requirement {item.path} is not in")]
    return max(named, key=len, default="")


class Producer(NamedTuple):
    """The task that produces a file. `comes_before`: whether the requesting task depends on it, directly or
    indirectly."""

    id: str
    state: str
    comes_before: bool


def producer_of(connection: Connection, task_no: int, path: str, wide: bool) -> Producer | None:
    """Find the task with the result `path` among the dependencies of `task_no`, else (`wide`) in its run."""
    rows, edges = schema.tasks, schema.dependencies
    before = (
        sa.select(edges.c.on_task_no.label("task_no")).where(edges.c.task_no == task_no).order_by(edges.c.on_task_no)
    )
    found = _first(connection, before.limit(LOOKED_AT), path)
    is_direct = found is not None
    if found is None and wide:
        run_no = sa.select(rows.c.run_no).where(rows.c.task_no == task_no).scalar_subquery()
        # A result is the path itself, or a directory above it.
        parts = path.split("/")
        names = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        mentions = sa.or_(*(sa.func.instr(schema.definitions.c.definition, _json(name)) > 0 for name in names))
        others = (
            sa.select(rows.c.task_no)
            .join(schema.definitions, schema.definitions.c.task_no == rows.c.task_no)
            .where(rows.c.run_no == run_no, rows.c.task_no != task_no, mentions)
            .order_by(rows.c.task_no)
        )
        found = _first(connection, others.limit(LOOKED_AT), path)
    if found is None:
        return None
    row = connection.execute(sa.select(rows.c.id, rows.c.state).where(rows.c.task_no == found)).one()
    return Producer(row.id, row.state, is_direct or _comes_before(connection, found, task_no))


def _comes_before(connection: Connection, first: int, last: int) -> bool:
    """Whether `last` depends on `first` indirectly. Tasks beyond the search limit count as dependencies."""
    edges = schema.dependencies.c
    seen, layer = {last}, [last]
    for _ in range(LAYERS_LOOKED_AT):
        query = sa.select(edges.on_task_no).where(edges.task_no.in_(layer[:500])).distinct()
        layer = [number for number in connection.execute(query).scalars() if number not in seen]
        seen.update(layer)
        if first in seen:
            return True
        if not layer:
            return False
    return True


def _json(name: str) -> bytes:
    """Encode a name as it stands in a definition."""
    return msgspec.json.encode(name)


def _first(connection: Connection, query: sa.Select[tuple[int]], path: str) -> int | None:
    task_nos = [int(row.task_no) for row in connection.execute(query)]
    for task_no, definition in _definitions(connection, task_nos).items():
        if any(_makes(result, path) for result in definition.results):
            return task_no
    return None


def _makes(result: Result, path: str) -> bool:
    if path == result.path or path.startswith(result.path + "/"):
        return True
    # The results of a pattern are below its path; their names match the last part of the pattern.
    pattern = result.local.rsplit("/", 1)[-1]
    inside = result.path == "." or path.startswith(result.path + "/")
    return (
        any(sign in result.local for sign in "*?[") and inside and fnmatch.fnmatchcase(path.rsplit("/", 1)[-1], pattern)
    )


def _definitions(connection: Connection, task_nos: list[int]) -> dict[int, TaskDefinition]:
    table = schema.definitions
    found: dict[int, TaskDefinition] = {}
    for start in range(0, len(task_nos), 500):
        query = sa.select(table).where(table.c.task_no.in_(task_nos[start : start + 500])).order_by(table.c.task_no)
        for row in connection.execute(query):
            found[row.task_no] = msgspec.json.decode(row.definition, type=TaskDefinition)
    return found
