"""Events that users or programs may want to know, derived from the tables. The boss sends no events, so a slow receiver
cannot delay it.

The key of an event is the same each time it is read. Events of retried tasks and of dropped runs disappear.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime, timezone

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ecloud.db import schema
from ecloud.model.vm_states import WRITTEN_OFF, VmState
from ecloud.model.worker_states import WorkerState
from ecloud.queries.boot_history import budgets
from ecloud.queries.status import snapshot

KINDS = ("run_ended", "first_failure", "pool_closed", "budget_used", "vm_lost")
BUDGET_ALERT = "shouted/budget"
"""Prefix of context names, the run's number follows: when the boss reported a used-up budget."""
RUNS_READ = 1_000


class Happened(msgspec.Struct, frozen=True):
    """An event. `at`: seconds since 1970; `run`: its name, empty if the event belongs to no run."""

    key: str
    kind: str
    at: float
    text: str
    run: str = ""


def events(engine: Engine, since: float = 0.0, known: Collection[str] = ()) -> list[Happened]:
    """Return events from `since` on, oldest first, without those whose keys are in `known`. Raises `DatabaseAway`."""
    with snapshot(engine) as connection:
        found = [
            *_runs(connection, since, known),
            *_pools(connection, since),
            *_budgets(connection, since),
            *_vms(connection, since),
        ]
    return sorted((one for one in found if one.key not in known), key=lambda one: (one.at, one.key))


def _runs(connection: Connection, since: float, known: Collection[str]) -> Iterator[Happened]:
    runs = schema.runs.c
    query = (
        sa.select(schema.runs)
        .where(sa.or_(runs.ended_at.is_(None), runs.ended_at >= since))
        .order_by(runs.run_no.desc())
        .limit(RUNS_READ)
    )
    for run in connection.execute(query).all():
        ended = f"run_ended/{run.run_no}/{run.ended_at or 0:.3f}"
        if run.ended_at is not None and run.ended_at >= since and ended not in known:
            yield Happened(
                ended, "run_ended", run.ended_at, f"run {run.name} ended: {_counts(connection, run)}", run.name
            )
        failed = f"first_failure/{run.run_no}"
        if failed not in known:
            yield from _first_failure(connection, run.run_no, run.name, failed, since)


def _counts(connection: Connection, run: sa.Row[tuple[object, ...]]) -> str:
    tasks = schema.tasks.c
    query = sa.select(tasks.state, sa.func.count()).where(tasks.run_no == run.run_no, tasks.init == 0)
    rows = connection.execute(query.group_by(tasks.state).order_by(tasks.state)).all()
    return ", ".join(f"{count:,} {state}" for state, count in rows) or "it has no tasks"


def _first_failure(connection: Connection, run_no: int, name: str, key: str, since: float) -> Iterator[Happened]:
    tasks = schema.tasks.c
    query = (
        sa.select(tasks.id, tasks.reason, tasks.changed_at)
        .where(tasks.run_no == run_no, tasks.init == 0, tasks.state == "failed")
        .order_by(tasks.changed_at, tasks.task_no)
        .limit(1)
    )
    row = connection.execute(query).first()
    if row is not None and row.changed_at >= since:
        reason = f": {row.reason}" if row.reason else ""
        yield Happened(key, "first_failure", row.changed_at, f"task {row.id} of run {name} failed{reason}", name)


def _pools(connection: Connection, since: float) -> Iterator[Happened]:
    pools = schema.pools.c
    query = sa.select(schema.pools).where(pools.closed != "", pools.since >= since)
    for pool in connection.execute(query):
        key = f"pool_closed/{pool.pool}/{pool.since:.3f}"
        yield Happened(key, "pool_closed", pool.since, f"pool {pool.pool} starts no VM: {pool.closed}")


def _budgets(connection: Connection, since: float) -> Iterator[Happened]:
    """Yield used-up budgets; a budget that stays used up is one event a day."""
    noted = {row.name: row.value for row in connection.execute(sa.select(schema.context)) if BUDGET_ALERT in row.name}
    names = {row.run_no: row.name for row in connection.execute(sa.select(schema.runs.c.run_no, schema.runs.c.name))}
    texts = budgets(connection) if noted else {}
    for name, value in noted.items():
        at, run = float(value), name.removeprefix(BUDGET_ALERT).strip("/")
        if at >= since:
            day = datetime.fromtimestamp(at, timezone.utc).date()
            run_no = int(run) if run.isdecimal() else 0
            text = texts.get(run_no) or "the VM-hours of today are used up: no VM starts automatically"
            yield Happened(f"budget_used/{run}/{day}", "budget_used", at, text, names.get(run_no, ""))


def _vms(connection: Connection, since: float) -> Iterator[Happened]:
    """Yield VMs that disappeared without a request, whose end was never confirmed, or whose worker was lost."""
    vms, workers = schema.vms.c, schema.workers.c
    vanished = sa.and_(vms.ending_at.is_(None), vms.hello_at.is_not(None))
    query = sa.select(schema.vms).where(
        vms.state == VmState.GONE.value, vms.since >= since, sa.or_(vanished, vms.cause == WRITTEN_OFF)
    )
    found: dict[int, Happened] = {}
    for vm in connection.execute(query):
        text = f"VM {vm.vm_no} of pool {vm.pool} was lost: {vm.reason}"
        found[vm.vm_no] = Happened(f"vm_lost/{vm.vm_no}", "vm_lost", vm.since, text)
    lost = sa.select(schema.workers).where(
        workers.state == WorkerState.LOST.value, workers.vm_no.is_not(None), workers.since >= since
    )
    for worker in connection.execute(lost):
        text = f"VM {worker.vm_no} was lost: its worker {worker.worker} fell silent: {worker.reason}"
        found.setdefault(worker.vm_no, Happened(f"vm_lost/{worker.vm_no}", "vm_lost", worker.since, text))
    yield from found.values()
