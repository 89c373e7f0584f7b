"""Waiting and running tasks of a run and number of VMs over time, counted by the database in buckets."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ecloud.db import schema
from ecloud.queries.status import find_run, snapshot
from ecloud.queries.timeline import BUCKETS, Span, bucket_of, in_buckets, span_of


class Load(msgspec.Struct, frozen=True):
    """Counts at the end of each bucket. `queued`: ready tasks of the run that had not started; `running`: its attempts;
    `vms`: VMs of the whole cluster, from their start to their end."""

    span: Span
    queued: list[int]
    running: list[int]
    vms: list[int]


def load(engine: Engine, run: str, now: float | None = None) -> Load:
    """Compute the load of a run. Raises `NoSuchRun`, `DatabaseAway`."""
    attempts = schema.attempts.c
    with snapshot(engine) as connection:
        run_no = find_run(connection, run)
        span = span_of(connection, run_no, now)
        of_run = (attempts.run_no == run_no, attempts.started_at.is_not(None))
        first = (
            sa.select(sa.func.min(attempts.started_at).label("at")).where(*of_run).group_by(attempts.task_no).subquery()
        )
        started = _counts(connection, span, sa.select(first.c.at).subquery())
        begun = _counts(connection, span, sa.select(attempts.started_at.label("at")).where(*of_run).subquery())
        ends = sa.select(attempts.ended_at.label("at")).where(*of_run, attempts.ended_at.is_not(None)).subquery()
        ended = _counts(connection, span, ends)
        ready = _counts(connection, span, _ready_times(run_no))
        vms = _vms(connection, span)
    queued = [max(0, ready - gone) for ready, gone in zip(accumulate(ready), accumulate(started))]
    running = [max(0, begun - gone) for begun, gone in zip(accumulate(begun), accumulate(ended))]
    return Load(span, queued, running, vms)


def _ready_times(run_no: int) -> sa.Subquery:
    """Select when each task became ready: when its last dependency ended, or when it was pushed. None if a dependency
    has not ended. If a later push added to the run, the first push counts."""
    tasks, edges, attempts = schema.tasks, schema.dependencies, schema.attempts
    other = tasks.alias("other")
    last = attempts.alias("last")
    # The row of a dependency that never ran (cancelled, results existed) changed when the dependency ended.
    end = sa.case((last.c.ended_at.is_not(None), last.c.ended_at), else_=other.c.changed_at)
    unended = sa.func.sum(sa.case((other.c.state.in_(("waiting", "ready", "running")), 1), else_=0))
    after = (
        sa.select(edges.c.task_no, sa.case((unended == 0, sa.func.max(end)), else_=None).label("at"))
        .select_from(edges)
        .join(other, other.c.task_no == edges.c.on_task_no)
        .outerjoin(last, (last.c.task_no == other.c.task_no) & (last.c.number == other.c.attempts))
        .where(other.c.run_no == run_no)
        .group_by(edges.c.task_no)
        .subquery()
    )
    pushed = sa.select(schema.runs.c.created_at).where(schema.runs.c.run_no == run_no).scalar_subquery()
    return (
        sa.select(sa.case((after.c.task_no.is_(None), pushed), else_=after.c.at).label("at"))
        .select_from(tasks)
        .outerjoin(after, after.c.task_no == tasks.c.task_no)
        .where(tasks.c.run_no == run_no, tasks.c.state.in_(("ready", "running", "succeeded", "failed", "waiting")))
        .subquery()
    )


def _counts(connection: Connection, span: Span, times: sa.Subquery) -> list[int]:
    """Count the values of `times.at` in each bucket; the first bucket includes earlier ones."""
    bucket = bucket_of(connection, span, times.c.at)
    query = sa.select(bucket, sa.func.count()).where(times.c.at.is_not(None)).group_by(bucket)
    return in_buckets(connection.execute(query))


def _vms(connection: Connection, span: Span) -> list[int]:
    vms = schema.vms.c
    change = [0] * (BUCKETS + 1)
    query: Any = sa.select(vms.started_at, vms.gone_at).where(
        vms.started_at.is_not(None), vms.started_at <= span.end, sa.or_(vms.gone_at.is_(None), vms.gone_at > span.begin)
    )
    for started_at, gone_at in connection.execute(query):
        change[span.bucket(started_at)] += 1
        if gone_at is not None and gone_at < span.end:
            change[span.bucket(gone_at)] -= 1
    return list(accumulate(change[:BUCKETS]))
