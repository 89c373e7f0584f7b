"""The ledger: the state of every VM at every second, and the VM time of each run. Read-only; computed from the rows of
VMs and attempts. `vm_life` divides the life of a VM into parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ecloud.db import schema
from ecloud.db.database import database_now
from ecloud.model.tasks import AttemptState
from ecloud.model.vm_life import MICRO, PARTS, Division, Ran, VmLife, ahead_s, divide
from ecloud.model.vm_states import WRITTEN_OFF
from ecloud.queries.status import find_run, snapshot

_VMS_A_QUERY = 200


class VmAccount(msgspec.Struct, frozen=True):
    """A VM's seconds. `of_run`: those of the requested run. `written_off`: the end of the VM was never confirmed; its
    life counts until it was given up, and may have been longer."""

    vm_no: int
    pool: str
    life_s: float
    parts: dict[str, float]
    of_run: dict[str, float] = {}
    written_off: bool = False


class PoolAccount(msgspec.Struct, frozen=True):
    """Sum over all VMs of a pool."""

    pool: str
    vms: int
    life_s: float
    parts: dict[str, float]


class RunAccount(msgspec.Struct, frozen=True):
    """VM-seconds of one run: its share of the time of all VMs that ran its attempts."""

    run: str
    vms: int
    taken_s: float
    parts: dict[str, float]


class Ledger(msgspec.Struct, frozen=True):
    """The whole ledger, in seconds."""

    vms: list[VmAccount]
    pools: list[PoolAccount]
    total: PoolAccount
    run: RunAccount | None = None


# --- from the database --------------------------------------------------------------------------------


def ledger(engine: Engine, run: str = "", now: float = 0.0) -> Ledger:
    """Compute the ledger of all VMs; with `run`, of those that ran its tasks, and the run's account.

    Raises `NoSuchRun`, `DatabaseAway`.
    """
    with snapshot(engine) as connection:
        run_no = find_run(connection, run) if run else None
        divided = [
            (vm, division) for vm, division in divisions(connection, now) if run_no is None or run_no in division.runs
        ]
        vms = schema.vms
        written_off = set(connection.execute(sa.select(vms.c.vm_no).where(vms.c.cause == WRITTEN_OFF)).scalars())
    accounts = [
        VmAccount(
            vm.vm_no,
            vm.pool,
            sum(division.parts.values()) / MICRO,
            _seconds(division.parts),
            _seconds(division.runs[run_no]) if run_no is not None else {},
            vm.vm_no in written_off,
        )
        for vm, division in divided
    ]
    pools = [_together(name, divided) for name in sorted({vm.pool for vm, _ in divided})]
    of_run = None
    if run_no is not None:
        taken = _sum(division.runs[run_no] for _, division in divided)
        of_run = RunAccount(run, len(divided), sum(taken.values()) / MICRO, _seconds(taken))
    return Ledger(accounts, pools, _together("", divided), of_run)


def ledger_now(engine: Engine, run: str = "") -> Ledger:
    """Compute the ledger for the current time of the database's clock."""
    with snapshot(engine) as connection:
        now = database_now(connection)
    return ledger(engine, run, now)


def divisions(
    connection: Connection, now: float, vm_nos: Sequence[int] | None = None
) -> Iterator[tuple[VmLife, Division]]:
    """Yield each VM that its cloud made (among those given), and the division of its life."""
    for vm, ran in lives(connection, now, vm_nos):
        yield vm, divide(vm, ran, now)


def lives(
    connection: Connection, now: float, vm_nos: Sequence[int] | None = None
) -> Iterator[tuple[VmLife, Sequence[Ran]]]:
    """Yield each VM that its cloud made (among those given), and what ran on it."""
    known = _lives(connection, now)
    if vm_nos is not None:
        wanted = frozenset(vm_nos)
        known = [vm for vm in known if vm.vm_no in wanted]
    for start in range(0, len(known), _VMS_A_QUERY):
        some = known[start : start + _VMS_A_QUERY]
        ran = _ran(connection, [vm.vm_no for vm in some])
        for vm in some:
            yield vm, ran.get(vm.vm_no, ())


def _lives(connection: Connection, now: float) -> list[VmLife]:
    vms = schema.vms
    query = sa.select(vms).where(vms.c.started_at.is_not(None)).order_by(vms.c.vm_no)
    return [
        VmLife(
            row.vm_no,
            row.pool,
            row.started_at,
            row.hello_at,
            row.ending_at,
            row.gone_at,
            ahead_s(row.intended_at, row.started_at, row.hello_at if row.hello_at is not None else now),
        )
        for row in connection.execute(query)
    ]


def _ran(connection: Connection, vm_nos: Sequence[int]) -> dict[int, list[Ran]]:
    """Return what ran on each VM, even if the row of its worker was dropped."""
    attempts, workers, vms = schema.attempts, schema.workers, schema.vms
    homes: dict[str, int] = {}
    for table in (workers, vms):
        query = sa.select(table.c.worker, table.c.vm_no).where(table.c.vm_no.in_(vm_nos))
        homes.update({row.worker: row.vm_no for row in connection.execute(query) if row.worker})
    found: dict[int, list[Ran]] = {}
    if not homes:
        return found
    names = ("worker", "run_no", "started_at", "ended_at", "state", "fetch_s", "run_s")
    told = sa.select(*(attempts.c[name] for name in names))
    told = told.where(attempts.c.worker.in_(list(homes)), attempts.c.started_at.is_not(None))
    for row in connection.execute(told):
        lost = row.state == AttemptState.LOST.value
        ran = Ran(row.run_no, row.started_at, row.ended_at, lost, row.fetch_s or 0.0, row.run_s)
        found.setdefault(homes[row.worker], []).append(ran)
    return found


def _together(name: str, divided: Sequence[tuple[VmLife, Division]]) -> PoolAccount:
    of_pool = [division.parts for vm, division in divided if not name or vm.pool == name]
    micro = _sum(of_pool)
    return PoolAccount(name, len(of_pool), sum(micro.values()) / MICRO, _seconds(micro))


def _sum(many: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total = dict.fromkeys(PARTS, 0)
    for parts in many:
        for part, amount in parts.items():
            total[part] += amount
    return total


def _seconds(micro: Mapping[str, int]) -> dict[str, float]:
    return {part: amount / MICRO for part, amount in micro.items()}
