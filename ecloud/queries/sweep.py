"""A sweep's tasks with their parameters, and the location of their metrics. Reads one snapshot, never writes or
fetches."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ecloud.db import schema
from ecloud.model.tasks import ManifestEntry
from ecloud.queries.status import find_run, snapshot

METRICS = "metrics.json"
"""Name of the result that holds a task's metrics."""
MAX_METRICS = 200
"""Maximum number of metrics shown for one task."""
_PARAMETERS = "ECLOUD_PARAMETERS"


class SweepTask(msgspec.Struct, frozen=True):
    """A task of a sweep. `metrics_path`: in the datastore, empty if the task wrote none; `stdout`: the end of its
    output. `run_s`: run time of its commands in seconds, None before they ended."""

    id: str
    state: str
    run_s: float | None
    parameters: dict[str, str]
    metrics_path: str
    stdout: str


def sweep_tasks(engine: Engine, run: str) -> list[SweepTask]:
    """Return all tasks of a run that have parameters, in list order. Raises `NoSuchRun`, `DatabaseAway`."""
    rows, attempts, definitions = schema.tasks, schema.attempts, schema.definitions
    with snapshot(engine) as connection:
        query = (
            sa.select(
                rows.c.id, rows.c.state, definitions.c.definition, attempts.c.run_s, attempts.c.manifest,
                attempts.c.stdout,
            )
            .select_from(rows)
            .join(definitions, definitions.c.task_no == rows.c.task_no)
            .outerjoin(attempts, (attempts.c.task_no == rows.c.task_no) & (attempts.c.number == rows.c.attempts))
            .where(rows.c.run_no == find_run(connection, run), rows.c.init == 0)
            .order_by(rows.c.task_no)
        )  # fmt: skip
        found = []
        for row in connection.execute(query):
            parameters = _parameters(row.definition)
            if parameters is None:
                continue
            manifest = msgspec.json.decode(row.manifest, type=tuple[ManifestEntry, ...]) if row.manifest else ()
            paths = [entry.path for entry in manifest if entry.kind == "file" and _is_metrics(entry.path)]
            path = min(paths, key=len, default="")
            found.append(SweepTask(row.id, row.state, row.run_s, parameters, path, row.stdout or ""))
        return found


class _Defined(msgspec.Struct):
    env: dict[str, str] = {}


def _parameters(definition: bytes) -> dict[str, str] | None:
    """Return the parameters of a task of a sweep or of an element of an array; None for any other task."""
    env = msgspec.json.decode(definition, type=_Defined).env
    if _PARAMETERS in env:
        try:
            found = json.loads(env[_PARAMETERS])
        except ValueError:
            return None
        return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else None
    if "ECLOUD_ENTRY" in env:
        return {"index": env.get("ECLOUD_INDEX", ""), "entry": env["ECLOUD_ENTRY"]}
    return None


def _is_metrics(path: str) -> bool:
    return path == METRICS or path.endswith(f"/{METRICS}")


def numbers_in(document: Any) -> dict[str, float]:
    """Return the numbers of a JSON object by name; those in nested objects get names like `val.loss`."""
    found: dict[str, float] = {}
    todo: list[tuple[str, Any]] = [("", document)]
    while todo and len(found) < MAX_METRICS:
        name, value = todo.pop(0)
        if isinstance(value, dict):
            todo = [(f"{name}.{key}" if name else str(key), item) for key, item in value.items()] + todo
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and name:
            found[name] = value
    return found


def numbers_of_text(text: str) -> dict[str, float]:
    """Return the numbers of a file: either the whole file is a JSON object, or its last such line counts."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return last_numbers(text)
    return numbers_in(found)


def last_numbers(output: str) -> dict[str, float]:
    """Return the numbers of an output's last line that is a JSON object."""
    for line in reversed(output.splitlines()[-1_000:]):
        line = line.strip()
        if line.startswith("{") and line.endswith("}"):
            try:
                return numbers_in(json.loads(line))
            except (ValueError, RecursionError):
                continue
    return {}
