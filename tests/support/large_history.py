"""The rows of `monitored.History`'s large run, made by the database itself: a million tasks in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ecloud.db import schema

ROWS_A_STATEMENT = 100_000


def write(
    connection: Connection, tasks: int, unended: int, labels: Sequence[str], errors: Sequence[str], workers: int,
    begin: float, span: float,
) -> None:  # fmt: skip
    """Write tasks 1 … `tasks` of run 1 with their definitions, dependencies and attempts. `errors`: texts with "{0}",
    the number of the task."""
    numbers = _numbers(tasks)
    at = numbers.c.at
    level = tasks // len(labels)
    label = sa.case(
        *((at * len(labels) < tasks * (number + 1), name) for number, name in enumerate(labels[:-1])), else_=labels[-1]
    )
    id = label + "-" + _padded(at, 7)
    ran, is_failed = at < tasks - unended, at % 97 == 5
    start = begin + span * 0.94 / tasks * at
    run_s = (0.5 + 0.4 / 1000 * (at * 7919 % 1000)) * min(20.0, span * workers / tasks)
    error = sa.case(
        *(
            (at % len(errors) == number, _joined(text.split("{0}"), sa.cast(at, sa.String(10))))
            for number, text in enumerate(errors[:-1])
        ),
        else_=_joined(errors[-1].split("{0}"), sa.cast(at, sa.String(10))),
    )
    state = sa.case((sa.and_(ran, is_failed), "failed"), (ran, "succeeded"), (at % 3 != 0, "ready"), else_="waiting")
    body = '{"id": "' + id + '", "commands": ["./work --part ' + sa.cast(at, sa.String(10))
    body += '"], "labels": ["' + label + '"]}'
    each: list[tuple[sa.Table, Any, dict[str, Any]]] = [
        (schema.tasks, sa.true(), {
            "task_no": at + 1, "run_no": 1, "id": id, "state": state,
            "reason": sa.case((sa.and_(ran, is_failed), "exit code 1"), else_=""),
            "attempts": sa.case((ran, 1), else_=0),
            "retries_used": 0, "not_before": 0.0, "changed_at": start + 20, "init": 0, "priority": 0,
            "asks": '{"cpus": 1.0}', "labels": '["' + label + '"]', "retries": "{}", "keep_dir": 0, "body_bytes": 100,
            "definition_hash": "0" * 32, "makes": 0,
        }),
        (schema.definitions, sa.true(), {"task_no": at + 1, "definition": sa.cast(body, sa.LargeBinary)}),
        (schema.dependencies, at >= level, {"task_no": at + 1, "on_task_no": at + 1 - level, "met_by": "success"}),
        (schema.dependencies, sa.and_(at > level, at % 2 != 0),
         {"task_no": at + 1, "on_task_no": at - level, "met_by": "success"}),
        (schema.attempts, ran, {
            "task_no": at + 1, "number": 1, "run_no": 1,
            "worker": "w" + _padded(at % workers, 3),
            "state": "ended", "assigned_at": start - 0.5, "started_at": start, "ended_at": start + run_s * 1.05,
            "cause": sa.case((is_failed, "exit"), else_="success"), "exit_code": sa.case((is_failed, 1), else_=0),
            "error": sa.case((is_failed, "command 1 ended with exit code 1"), else_=None),
            "stderr": sa.case((is_failed, error), else_=None),
            "fetch_s": run_s * 0.03, "run_s": run_s, "store_s": run_s * 0.02, "max_rss_mb": 321.0,
        }),
    ]  # fmt: skip
    for table, condition, values in each:
        chosen = [sa.literal(value) if isinstance(value, (int, float, str)) else value for value in values.values()]
        for first in range(0, tasks, ROWS_A_STATEMENT):
            some = sa.select(*chosen).where(condition, at >= first, at < first + ROWS_A_STATEMENT)
            connection.execute(table.insert().from_select(list(values), some))


def _numbers(count: int) -> sa.Subquery:
    """The numbers 0 … `count` - 1 as `at`, as a product of digits."""
    places = range(len(str(count - 1)))
    digits = " UNION ALL ".join(f"SELECT {digit} AS d" for digit in range(10))
    tables = " CROSS JOIN ".join(f"({digits}) AS d{place}" for place in places)
    at = " + ".join(f"d{place}.d * {10**place}" for place in places)
    query = sa.text(f"SELECT * FROM (SELECT {at} AS at FROM {tables}) AS every WHERE at < {count}")
    return query.columns(sa.column("at", sa.Integer)).subquery("n")


def _padded(number: Any, digits: int) -> Any:
    """The number as text with leading zeros."""
    return sa.func.substr(sa.literal("0" * digits) + sa.cast(number, sa.String(10)), -digits, type_=sa.String())


def _joined(parts: Sequence[str], number: Any) -> Any:
    """The parts with the number between them."""
    found: Any = sa.literal(parts[0])
    for part in parts[1:]:
        found = found + number + part
    return found
