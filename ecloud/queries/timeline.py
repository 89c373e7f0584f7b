"""Attempts of a run by worker and time, summed by the database into the buckets of a picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ecloud.db import schema
from ecloud.db.database import database_now
from ecloud.model.tasks import AttemptState, Cause
from ecloud.queries.status import find_run, snapshot

LANES = 200
"""Maximum number of workers to show; the busiest."""
BUCKETS = 240
"""Number of buckets that a run's time is divided into."""


class Span(msgspec.Struct, frozen=True):
    """A run's time from its first start to its last end, or now; seconds since 1970. `is_empty`: nothing started."""

    begin: float
    end: float
    is_empty: bool = False

    @property
    def bucket_s(self) -> float:
        """Duration of one bucket."""
        return (self.end - self.begin) / BUCKETS

    def bucket(self, at: float) -> int:
        """Return the bucket of a time; times outside belong to the first or last bucket."""
        return min(BUCKETS - 1, max(0, int((at - self.begin) / self.bucket_s)))


class Lane(msgspec.Struct, frozen=True):
    """One worker. `busy`: by bucket, the attempts that began in it, their seconds, the number that did not succeed."""

    worker: str
    busy: dict[int, tuple[int, float, int]]


class Timeline(msgspec.Struct, frozen=True):
    """The workers of a run over time. `ended`: attempts that ended in each bucket; `workers`: total number of workers
    that worked for the run."""

    span: Span
    lanes: list[Lane]
    ended: list[int]
    workers: int


def timeline(engine: Engine, run: str, now: float | None = None) -> Timeline:
    """Compute the timeline of a run. Raises `NoSuchRun`, `DatabaseAway`."""
    attempts = schema.attempts.c
    with snapshot(engine) as connection:
        run_no = find_run(connection, run)
        span = span_of(connection, run_no, now)
        if span.is_empty:
            return Timeline(span, [], [0] * BUCKETS, 0)
        of_run = (attempts.run_no == run_no, attempts.started_at.is_not(None))
        bucket = bucket_of(connection, span, attempts.started_at)
        ran_s = sa.func.coalesce(attempts.ended_at, span.end) - attempts.started_at
        failed = sa.case((attempts.cause.in_((Cause.SUCCESS.value, Cause.STOPPED.value)), 0), else_=1)
        bad = sa.case((attempts.state == AttemptState.ENDED.value, failed), else_=0)
        query = (
            sa.select(attempts.worker, bucket, sa.func.count(), sa.func.sum(ran_s), sa.func.sum(bad))
            .where(*of_run)
            .group_by(attempts.worker, bucket)
        )
        lanes: dict[str, dict[int, tuple[int, float, int]]] = {}
        for worker, number, count, seconds, wrong in connection.execute(query):
            lanes.setdefault(worker, {})[_within(number)] = (int(count), float(seconds or 0), int(wrong or 0))
        ended_in = bucket_of(connection, span, attempts.ended_at)
        ends = sa.select(ended_in, sa.func.count()).where(*of_run, attempts.ended_at.is_not(None)).group_by(ended_in)
        ended = in_buckets(connection.execute(ends))
    busiest = sorted(lanes.items(), key=lambda lane: -sum(seconds for _, seconds, _ in lane[1].values()))[:LANES]
    return Timeline(span, [Lane(name, busy) for name, busy in sorted(busiest)], ended, len(lanes))


def span_of(connection: Connection, run_no: int, now: float | None = None) -> Span:
    """Return the time from the first start of an attempt to the last end, or to now if the run has not ended."""
    attempts = schema.attempts.c
    now = database_now(connection) if now is None else now
    of_run = (attempts.run_no == run_no, attempts.started_at.is_not(None))
    bounds = sa.select(sa.func.min(attempts.started_at), sa.func.max(attempts.ended_at)).where(*of_run)
    begin, last_end = connection.execute(bounds).one()
    if begin is None:
        return Span(now - 1.0, now, is_empty=True)
    run_ended_at = connection.execute(sa.select(schema.runs.c.ended_at).where(schema.runs.c.run_no == run_no)).scalar()
    return Span(begin, max(begin + 1.0, now if run_ended_at is None else last_end or now))


def bucket_of(connection: Connection, span: Span, at: sa.ColumnElement[float]) -> sa.ColumnElement[Any]:
    """Return the SQL expression of the bucket number for a column of times; times outside the span are out of range."""
    # CAST truncates in SQLite but rounds in MySQL and MariaDB.
    round_down = 0.0 if connection.dialect.name == "sqlite" else 0.5
    return sa.cast((at - span.begin) / span.bucket_s - round_down, sa.Integer)


def in_buckets(rows: Iterable[Any]) -> list[int]:
    """Convert rows of (bucket, count) to a list with one number for each bucket."""
    counts = [0] * BUCKETS
    for number, count in rows:
        counts[_within(number)] += int(count)
    return counts


def _within(number: Any) -> int:
    return min(BUCKETS - 1, max(0, int(number)))
