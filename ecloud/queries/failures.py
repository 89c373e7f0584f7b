"""Failed tasks in groups: tasks with the same failure form one group."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ecloud.db import schema
from ecloud.model.tasks import TaskState
from ecloud.queries.status import find_run, snapshot

FAILURES_READ = 20_000
"""Failures of one run whose error output is read; the groups cover the first ones only, and report how many."""
LAST_CHARS = 300
"""Characters read of each failure's error output: enough for its last line."""
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


class FailureGroup(msgspec.Struct, frozen=True):
    """Failures with one signature. `line`: the last line of the error output without numbers and quoted names;
    `example`: the id of one such task; `text`: its own last line."""

    cause: str
    exit_code: int | None
    signal: int | None
    line: str
    count: int
    example: str
    text: str

    @property
    def key(self) -> str:
        """A short name of the signature, for URLs."""
        said = "\0".join((self.cause, str(self.exit_code), str(self.signal), self.line))
        return hashlib.blake2b(said.encode("utf-8", "replace"), digest_size=8).hexdigest()


class FailureGroups(msgspec.Struct, frozen=True):
    """All groups, the largest first; they cover `read` of `total` failures."""

    groups: list[FailureGroup]
    read: int
    total: int


def signature(text: str) -> str:
    """Return the last non-empty line of `text` without the parts that differ between tasks.

    >>> signature("Traceback\\nKeyError: 'a17' at line 12\\n\\n")
    'KeyError: … at line #'
    """
    return _NUMBERS.sub("#", _QUOTED.sub("…", last_line(text)))[:200]


def last_line(text: str) -> str:
    """Return the last line of `text` that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def failure_groups(engine: Engine, run: str) -> FailureGroups:
    """Group the failed tasks of a run. Raises `NoSuchRun`, `DatabaseAway`."""
    found: dict[tuple[str, int | None, int | None, str], FailureGroup] = {}
    read = 0
    with snapshot(engine) as connection:
        run_no = find_run(connection, run)
        rows = schema.tasks.c
        failed = sa.and_(rows.run_no == run_no, rows.state == TaskState.FAILED.value, rows.init != schema.ARRAY)
        total = connection.execute(sa.select(sa.func.count()).select_from(schema.tasks).where(failed)).scalar() or 0
        for alone in _failures(connection, run_no):
            read += 1
            key = (alone.cause, alone.exit_code, alone.signal, alone.line)
            group = found.get(key)
            found[key] = alone if group is None else msgspec.structs.replace(group, count=group.count + 1)
    groups = sorted(found.values(), key=lambda group: -group.count)
    return FailureGroups(groups, read, int(total))


def failed_in_group(engine: Engine, run: str, key: str) -> tuple[FailureGroup | None, list[str]]:
    """Return the group called `key` and the ids of its tasks; None if the group is empty now. Raises `NoSuchRun`,
    `DatabaseAway`."""
    with snapshot(engine) as connection:
        members = [alone for alone in _failures(connection, find_run(connection, run)) if alone.key == key]
    group = msgspec.structs.replace(members[0], count=len(members)) if members else None
    return group, [alone.example for alone in members]


def _failures(connection: Connection, run_no: int) -> Iterator[FailureGroup]:
    """Yield each failure as a group of one."""
    tasks, attempts = schema.tasks.c, schema.attempts.c
    # A negative start counts from the end in SQLite, MySQL and MariaDB; a shorter text then gives an empty result.
    tail = sa.func.coalesce(sa.func.nullif(sa.func.substr(attempts.stderr, -LAST_CHARS), ""), attempts.stderr)
    query = (
        sa.select(
            tasks.id, tasks.reason, attempts.cause, attempts.exit_code, attempts.signal, attempts.error,
            sa.type_coerce(tail, schema.Utf8()).label("tail"),
        )
        .select_from(schema.tasks)
        .outerjoin(schema.attempts, (attempts.task_no == tasks.task_no) & (attempts.number == tasks.attempts))
        .where(tasks.run_no == run_no, tasks.state == TaskState.FAILED.value, tasks.init != schema.ARRAY)
        .limit(FAILURES_READ)
    )  # fmt: skip
    for row in connection.execute(query):
        text = last_line(row.tail or "") or row.error or row.reason
        line = signature(text)
        yield FailureGroup(row.cause or "", row.exit_code, row.signal, line, 1, row.id, text[:LAST_CHARS])
