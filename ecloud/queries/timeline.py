"""When a run's attempts ran, by worker and by moment: summed up by the database into a picture's buckets."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ecloud.db import schema
from ecloud.db.database import database_now
from ecloud.model.tasks import AttemptState, Cause
from ecloud.queries.status import find_run, snapshot

LANES = 200
"""Workers that are shown, at most; the busiest."""
BUCKETS = 240
"""Parts that a run's time is divided into."""


class Lane(msgspec.Struct, frozen=True):
    """One worker. `busy`: by bucket, the attempts that began in it, the seconds they ran, how many did not succeed."""

    worker: str
    busy: dict[int, tuple[int, float, int]]


class Timeline(msgspec.Struct, frozen=True):
    """A run's time from `begin` to `end` (seconds since 1970) in buckets of `bucket_s`. `ended`: attempts that ended in
    each bucket; `workers`: how many worked for the run in all."""

    begin: float
    end: float
    bucket_s: float
    lanes: list[Lane]
    ended: dict[int, int]
    workers: int


def timeline(engine: Engine, run: str, now: float | None = None) -> Timeline:
    """Raises `NoSuchRun`, `DatabaseAway`."""
    attempts = schema.attempts.c
    with snapshot(engine) as connection:
        now = database_now(connection) if now is None else now
        run_no = find_run(connection, run)
        of_run = (attempts.run_no == run_no, attempts.started_at.is_not(None))
        bounds = sa.select(sa.func.min(attempts.started_at), sa.func.max(attempts.ended_at)).where(*of_run)
        begin, last_end = connection.execute(bounds).one()
        if begin is None:
            return Timeline(now, now, 1.0, [], {}, 0)
        is_open = connection.execute(sa.select(schema.runs.c.ended_at).where(schema.runs.c.run_no == run_no)).scalar()
        end = max(begin + 1.0, now if is_open is None else last_end or now)
        bucket_s = (end - begin) / BUCKETS
        # SQLite's CAST cuts, that of MySQL and MariaDB rounds.
        round_down = 0.0 if connection.dialect.name == "sqlite" else 0.5

        def bucket_of(at: sa.ColumnElement[float]) -> sa.ColumnElement[Any]:
            return sa.cast((at - begin) / bucket_s - round_down, sa.Integer)

        bucket = bucket_of(attempts.started_at)
        ran_s = sa.func.coalesce(attempts.ended_at, now) - attempts.started_at
        failed = sa.case((attempts.cause.in_((Cause.SUCCESS.value, Cause.STOPPED.value)), 0), else_=1)
        bad = sa.case((attempts.state == AttemptState.ENDED.value, failed), else_=0)
        query = (
            sa.select(attempts.worker, bucket, sa.func.count(), sa.func.sum(ran_s), sa.func.sum(bad))
            .where(*of_run)
            .group_by(attempts.worker, bucket)
        )
        lanes: dict[str, dict[int, tuple[int, float, int]]] = {}
        for worker, number, count, seconds, wrong in connection.execute(query):
            lanes.setdefault(worker, {})[_bucket(number)] = (int(count), float(seconds or 0), int(wrong or 0))
        ended_in = bucket_of(attempts.ended_at)
        ends = sa.select(ended_in, sa.func.count()).where(*of_run, attempts.ended_at.is_not(None)).group_by(ended_in)
        ended: dict[int, int] = {}
        for number, count in connection.execute(ends):
            ended[_bucket(number)] = ended.get(_bucket(number), 0) + int(count)
    busiest = sorted(lanes.items(), key=lambda lane: -sum(seconds for _, seconds, _ in lane[1].values()))[:LANES]
    return Timeline(begin, end, bucket_s, [Lane(name, lanes) for name, lanes in sorted(busiest)], ended, len(lanes))


def _bucket(number: Any) -> int:
    return min(BUCKETS - 1, max(0, int(number)))
