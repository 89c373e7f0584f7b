"""`/metrics` for Prometheus: gauges and counters read from the database. No label without a bound."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.engine import Engine

from ecloud.db import schema
from ecloud.queries.boot_history import pool_views
from ecloud.queries.ledger import Ledger, ledger
from ecloud.queries.status import snapshot, status
from ecloud.queries.views import Status

POOLS_SHOWN = 100
"""Pools with series of their own; settings have no more by far."""


class Cluster(Collector):
    """What the database says at this moment."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Raises `DatabaseAway`."""
        now = status(self._engine)
        yield from _tasks(now)
        yield from _boss(now)
        yield from self._outcomes()
        yield from self._machines(now)
        yield from _seconds(ledger(self._engine, now=now.at))

    def _outcomes(self) -> Iterator[Metric]:
        attempts = schema.attempts.c
        query = sa.select(attempts.state, attempts.cause, sa.func.count()).group_by(attempts.state, attempts.cause)
        with snapshot(self._engine) as connection:
            rows = connection.execute(query).all()
            oldest = connection.execute(
                sa.select(sa.func.min(schema.tasks.c.changed_at)).where(schema.tasks.c.state == "ready")
            ).scalar()
        ends = GaugeMetricFamily(
            "ecloud_attempts", "Attempts in the database, by state and cause", labels=("state", "cause")
        )
        for state, cause, count in rows:
            ends.add_metric((state, cause or ""), count)
        yield ends
        yield GaugeMetricFamily(
            "ecloud_oldest_ready_task_timestamp_seconds", "Since when the oldest ready task waits; 0: none", oldest or 0
        )

    def _machines(self, now: Status) -> Iterator[Metric]:
        vms = schema.vms.c
        with snapshot(self._engine) as connection:
            rows = connection.execute(
                sa.select(vms.pool, vms.state, sa.func.count()).group_by(vms.pool, vms.state)
            ).all()
            pools = list(pool_views(connection).values())[:POOLS_SHOWN]
        shown = {pool.pool for pool in pools}
        machines = GaugeMetricFamily("ecloud_vms", "VMs by pool and state", labels=("pool", "state"))
        for pool, state, count in rows:
            if pool in shown or len(shown) < POOLS_SHOWN:
                machines.add_metric((pool, state), count)
        closed = GaugeMetricFamily("ecloud_pool_closed", "1 while no VM of the pool is started", labels=("pool",))
        boots = GaugeMetricFamily("ecloud_pool_boot_seconds", "Usual time to boot", labels=("pool", "quantile"))
        for view in pools:
            closed.add_metric((view.pool,), 1 if view.closed else 0)
            boots.add_metric((view.pool, "0.5"), view.boot_s_p50)
            boots.add_metric((view.pool, "0.95"), view.boot_s_p95)
        workers = GaugeMetricFamily("ecloud_workers", "Workers by state", labels=("state",))
        for state, count in now.workers.items():
            workers.add_metric((state,), count)
        yield from (machines, closed, boots, workers)


def _tasks(now: Status) -> Iterator[Metric]:
    tasks = GaugeMetricFamily("ecloud_tasks", "Tasks by state, without init tasks", labels=("state",))
    for state, count in now.tasks.items():
        tasks.add_metric((state,), count)
    yield tasks
    yield GaugeMetricFamily(
        "ecloud_runs_unfinished", "Runs with tasks that have not ended", sum(run.left > 0 for run in now.runs)
    )
    yield GaugeMetricFamily("ecloud_runs_held", "Runs that are held", sum(bool(run.held) for run in now.runs))
    yield GaugeMetricFamily("ecloud_worker_troubles", "Workers that start nothing now", len(now.troubles))
    yield GaugeMetricFamily("ecloud_cloud_troubles", "What keeps pools from starting VMs", len(now.cloud_troubles))


def _boss(now: Status) -> Iterator[Metric]:
    yield GaugeMetricFamily("ecloud_boss_leads", "1 while a boss leads", int(now.boss.leads))
    yield GaugeMetricFamily("ecloud_boss_epoch", "The leader's epoch", now.boss.epoch)
    yield GaugeMetricFamily("ecloud_boss_silent_seconds", "Since the boss last wrote", now.boss.silent_s or 0)


def _seconds(books: Ledger) -> Iterator[Metric]:
    used = CounterMetricFamily("ecloud_vm_seconds", "VM time by pool and use", labels=("pool", "use"))
    for pool in books.pools[:POOLS_SHOWN]:
        for use, seconds in pool.parts.items():
            used.add_metric((pool.pool, use), seconds)
    yield used


def exposition(engine: Engine) -> bytes:
    """The text that Prometheus reads. Raises `DatabaseAway`."""
    registry = CollectorRegistry(auto_describe=False)
    cluster = Cluster(engine)
    registry.register(_Once(list(cluster.collect())))
    return generate_latest(registry)


class _Once(Collector):
    """Metrics that were read already, so that an error comes before the answer begins."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics
