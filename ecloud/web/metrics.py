"""`/metrics` for Prometheus, from the database, the boss's own numbers and the doctor's last findings. Every label has
a bounded number of values."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.engine import Engine

from ecloud.db import schema
from ecloud.db.database import database_now
from ecloud.model.vm_states import WRITTEN_OFF
from ecloud.queries.boot_history import pool_views
from ecloud.queries.ledger import Ledger
from ecloud.queries.status import snapshot, status
from ecloud.queries.views import Status
from ecloud.web.health import Health

POOLS_SHOWN = 50
"""Maximum number of pools with their own series; settings usually have far fewer. The rest share one series."""
OTHER = "other"
BOOT_S = (5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0)
PARTS = ("broker", "database", "datastore", "cloud", "home")
"""Parts of the doctor's checks that have a series."""
NUMBERS_OLD_S = 60.0
"""Boss numbers older than this are ignored: that boss has ended."""


def exposition(
    engine: Engine, books: Ledger | None = None, health: Health | None = None, boss_numbers: Path | None = None
) -> bytes:
    """Return the text that Prometheus reads. `books`: the ledger, whose series are left out while it is not known.
    Raises `DatabaseAway`."""
    began = time.monotonic()
    now = status(engine)
    answer_s = time.monotonic() - began
    found = [
        *_tasks(now),
        *_boss(now),
        *_outcomes(engine),
        *_machines(engine, now),
        *(_seconds(books) if books is not None else ()),
        GaugeMetricFamily("ecloud_database_answer_seconds", "How long the database took to count all tasks", answer_s),
    ]
    if health is not None:
        found += _parts(health)
    if boss_numbers is not None:
        found += _numbers(boss_numbers)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(found))
    return generate_latest(registry)


class _Once(Collector):
    """Metrics that were read in advance, so that errors occur before the response begins."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def _tasks(now: Status) -> Iterator[Metric]:
    tasks = GaugeMetricFamily("ecloud_tasks", "Tasks by state, without init tasks", labels=("state",))
    for state, count in now.tasks.items():
        tasks.add_metric((state,), count)
    yield tasks
    yield GaugeMetricFamily(
        "ecloud_runs_unfinished", "Runs with tasks that have not ended", sum(run.left > 0 for run in now.runs)
    )
    yield GaugeMetricFamily("ecloud_runs_held", "Runs that are held", sum(bool(run.held) for run in now.runs))
    yield GaugeMetricFamily("ecloud_worker_troubles", "Workers that start no tasks now", len(now.troubles))
    yield GaugeMetricFamily("ecloud_cloud_troubles", "Reasons why pools start no VMs", len(now.cloud_troubles))
    yield GaugeMetricFamily("ecloud_transfers", "Workers that move files now", len(now.transfers))
    yield GaugeMetricFamily("ecloud_transfers_waiting", "Workers that wait to move files", now.transfers_waiting)


def _boss(now: Status) -> Iterator[Metric]:
    yield GaugeMetricFamily("ecloud_boss_leads", "1 while a boss leads", int(now.boss.leads))
    yield GaugeMetricFamily("ecloud_boss_epoch", "The leader's epoch", now.boss.epoch)
    yield GaugeMetricFamily("ecloud_boss_silent_seconds", "Time since the boss last wrote", now.boss.silent_s or 0)


def _outcomes(engine: Engine) -> Iterator[Metric]:
    attempts = schema.attempts.c
    query = sa.select(attempts.state, attempts.cause, sa.func.count()).group_by(attempts.state, attempts.cause)
    with snapshot(engine) as connection:
        rows = connection.execute(query).all()
        oldest = connection.execute(
            sa.select(sa.func.min(schema.tasks.c.changed_at)).where(
                schema.tasks.c.state == "ready", schema.tasks.c.init != schema.ARRAY
            )
        ).scalar()
        now = database_now(connection)
    ends = GaugeMetricFamily(
        "ecloud_attempts", "Attempts in the database, by state and cause", labels=("state", "cause")
    )
    for state, cause, count in rows:
        ends.add_metric((state, cause or ""), count)
    yield ends
    lost = sum(count for state, _, count in rows if state == "lost")
    yield GaugeMetricFamily("ecloud_attempts_lost", "Attempts whose worker was lost, in the database", lost)
    yield GaugeMetricFamily(
        "ecloud_queue_age_seconds", "How long the oldest ready task has waited", max(0.0, now - oldest) if oldest else 0
    )


def _machines(engine: Engine, now: Status) -> Iterator[Metric]:
    vms = schema.vms.c
    with snapshot(engine) as connection:
        rows = connection.execute(sa.select(vms.pool, vms.state, sa.func.count()).group_by(vms.pool, vms.state)).all()
        pools = list(pool_views(connection).values())[:POOLS_SHOWN]
        boot_s = connection.execute(
            sa.select(vms.pool, vms.hello_at - vms.intended_at).where(vms.hello_at.is_not(None))
        ).all()
        leaks = connection.execute(
            sa.select(sa.func.count()).select_from(schema.vms).where(vms.cause == WRITTEN_OFF)
        ).scalar()
    shown = [pool.pool for pool in pools]
    shown += [pool for pool in dict.fromkeys(row[0] for row in rows) if pool not in shown][: POOLS_SHOWN - len(shown)]
    counts: dict[tuple[str, str], int] = {}
    for pool, state, count in rows:
        key = (pool if pool in shown else OTHER, state)
        counts[key] = counts.get(key, 0) + count
    machines = GaugeMetricFamily("ecloud_vms", "VMs by pool and state", labels=("pool", "state"))
    for (pool, state), count in counts.items():
        machines.add_metric((pool, state), count)
    closed = GaugeMetricFamily("ecloud_pool_closed", "1 while no VM of the pool is started", labels=("pool",))
    for view in pools:
        closed.add_metric((view.pool,), 1 if view.closed else 0)
    workers = GaugeMetricFamily("ecloud_workers", "Workers by state", labels=("state",))
    for state, count in now.workers.items():
        workers.add_metric((state,), count)
    yield from (machines, closed, workers, _boots(boot_s, shown))
    yield GaugeMetricFamily("ecloud_vms_written_off", "VMs whose end was never confirmed: they may run", leaks or 0)


def _boots(rows: Sequence[Any], shown: Sequence[str]) -> Metric:
    """Histogram of the time from the request of a VM to the first message of its worker."""
    family = HistogramMetricFamily(
        "ecloud_vm_boot_seconds", "Time from the request of a VM to the report of its worker", labels=("pool",)
    )
    by_pool: dict[str, list[float]] = {}
    for pool, seconds in rows:
        by_pool.setdefault(pool if pool in shown else OTHER, []).append(max(0.0, float(seconds)))
    for pool, times in by_pool.items():
        counts = [sum(1 for seconds in times if seconds <= bound) for bound in BOOT_S]
        family.add_metric((pool,), _buckets(BOOT_S, counts, len(times)), sum(times))
    return family


def _buckets(bounds: Sequence[float], upto: Sequence[int], all_of_them: int) -> list[tuple[str, float]]:
    return [*((str(bound), float(count)) for bound, count in zip(bounds, upto)), ("+Inf", float(all_of_them))]


def _seconds(books: Ledger) -> Iterator[Metric]:
    used = CounterMetricFamily("ecloud_vm_seconds", "VM time by pool and use", labels=("pool", "use"))
    for pool in books.pools[:POOLS_SHOWN]:
        for use, seconds in pool.parts.items():
            used.add_metric((pool.pool, use), seconds)
    yield used


def _parts(health: Health) -> Iterator[Metric]:
    findings, looked_at = health.findings()
    if looked_at is None:
        return
    up = GaugeMetricFamily("ecloud_part_ok", "1 if the doctor finds nothing wrong with a part", labels=("part",))
    for part in PARTS:
        of_part = [one for one in findings if one.part == part]
        if of_part:
            up.add_metric((part,), int(all(one.is_ok for one in of_part)))
    yield up
    yield GaugeMetricFamily("ecloud_findings", "Problems that the doctor found", sum(not one.is_ok for one in findings))


def _numbers(file: Path) -> Iterator[Metric]:
    """Read the counters of a boss on this machine. Yields nothing if the boss is elsewhere or has ended."""
    try:
        numbers: Mapping[str, Any] = json.loads(file.read_text())
        is_old = time.time() - numbers["at"] > NUMBERS_OLD_S
    except (OSError, ValueError, KeyError, TypeError):
        return
    if is_old:
        return
    yield _histogram("ecloud_commit_seconds", "How long the boss's commits took", numbers["commit_s"])
    yield _histogram("ecloud_batch_events", "Events per decision of the boss", numbers["batch_events"])
    messages = CounterMetricFamily("ecloud_boss_messages", "Messages of the boss", labels=("direction",))
    for direction in ("received", "sent", "unreadable"):
        messages.add_metric((direction,), numbers[direction])
    yield messages
    yield GaugeMetricFamily(
        "ecloud_boss_broker_connected", "1 while the boss has its broker", int(numbers["broker_up"])
    )


def _histogram(name: str, text: str, document: Mapping[str, Any]) -> Metric:
    family = HistogramMetricFamily(name, text)
    upto = list(accumulate(document["counts"]))
    family.add_metric((), _buckets(document["bounds"], upto, upto[-1]), document["sum"])
    return family
