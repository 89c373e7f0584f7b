"""The ledger: where every second of every VM went. Computed from the rows of VMs and attempts, read only.

A VM's life is from when its cloud made it until it was gone. Each moment of it is exactly one of the parts below, so
that they add up to the life: times are whole microseconds, nothing is rounded away.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ecloud import schema
from ecloud.queries import find_run, snapshot
from ecloud.tasks import AttemptState

PARTS = ("booting", "running", "idle", "draining", "lost")
"""booting: from being made to its worker's first word. running: at least one attempt ran that was not lost. lost: only
attempts ran that came to nothing, or the VM went without any worker having reported. draining: no attempt ran, and its
end was decided. idle: the rest."""
MICRO = 1_000_000
_VMS_A_QUERY = 200


class VmLife(msgspec.Struct, frozen=True):
    """What the ledger is made of, of one VM. `hello_at`, `ending_at`, `gone_at`: None while it has not come to that."""

    vm_no: int
    pool: str
    started_at: float
    hello_at: float | None = None
    ending_at: float | None = None
    gone_at: float | None = None


class Ran(msgspec.Struct, frozen=True):
    """An attempt that ran on the VM. `ended_at` None: it runs still."""

    run_no: int
    started_at: float
    ended_at: float | None = None
    lost: bool = False


class VmAccount(msgspec.Struct, frozen=True):
    """A VM's seconds. `of_run`: those during which attempts of the run that was asked about ran, shared equally with
    the attempts of other runs at the same moment; `lost_of_run`: the same of attempts that were lost."""

    vm_no: int
    pool: str
    life_s: float
    parts: dict[str, float]
    of_run: float = 0.0
    lost_of_run: float = 0.0


class PoolAccount(msgspec.Struct, frozen=True):
    """All VMs of a pool together."""

    pool: str
    vms: int
    life_s: float
    parts: dict[str, float]


class RunAccount(msgspec.Struct, frozen=True):
    """What one run took, in VM-seconds. `overhead_s`: its share of what its VMs booted, idled and drained."""

    run: str
    running_s: float
    lost_s: float
    overhead_s: float


class Ledger(msgspec.Struct, frozen=True):
    """Everything, in seconds."""

    vms: list[VmAccount]
    pools: list[PoolAccount]
    total: PoolAccount
    run: RunAccount | None = None


def micros(at: float) -> int:
    """Seconds as whole microseconds."""
    return round(at * MICRO)


def divide(vm: VmLife, ran: Sequence[Ran], now: float, run_no: int | None = None) -> tuple[dict[str, int], int, int]:
    """A VM's life in microseconds by part; and of it what attempts of the run took, those that were lost apart."""
    born = micros(vm.started_at)
    over = max(born, micros(vm.gone_at if vm.gone_at is not None else now))
    hello = over if vm.hello_at is None else min(max(micros(vm.hello_at), born), over)
    leaving = over if vm.ending_at is None else min(max(micros(vm.ending_at), hello), over)
    parts = dict.fromkeys(PARTS, 0)
    of_run = lost_of_run = 0
    for start, end, going in _moments(born, over, (hello, leaving), ran):
        length = end - start
        good = [attempt for attempt in going if not attempt.lost]
        if good:
            part = "running"
        elif going:
            part = "lost"
        elif start < hello:
            part = "lost" if vm.hello_at is None and vm.gone_at is not None else "booting"
        else:
            part = "draining" if start >= leaving else "idle"
        parts[part] += length
        if run_no is not None and going:
            counted = good or going
            share = length * sum(1 for attempt in counted if attempt.run_no == run_no) // len(counted)
            of_run += share if good else 0
            lost_of_run += 0 if good else share
    return parts, of_run, lost_of_run


def _moments(born: int, over: int, marks: Iterable[int], ran: Sequence[Ran]) -> Iterator[tuple[int, int, list[Ran]]]:
    """The life cut wherever something begins or ends: from, to, and what ran all the while."""
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for index, attempt in enumerate(ran):
        start = max(born, micros(attempt.started_at))
        end = over if attempt.ended_at is None else min(over, micros(attempt.ended_at))
        if start < end:
            begins.setdefault(start, []).append(index)
            ends.setdefault(end, []).append(index)
    cuts = sorted({born, over, *marks, *begins, *ends})
    going: dict[int, Ran] = {}
    for start, end in itertools.pairwise(cuts):
        for index in ends.get(start, ()):
            going.pop(index, None)
        going.update({index: ran[index] for index in begins.get(start, ())})
        yield start, end, list(going.values())


# --- from the database --------------------------------------------------------------------------------


def ledger(engine: Engine, run: str = "", now: float = 0.0) -> Ledger:
    """Where the seconds of all VMs went; with `run` of those that ran its tasks, and what it took.

    Raises `NoSuchRun`, `DatabaseAway`.
    """
    with snapshot(engine) as connection:
        run_no = find_run(connection, run) if run else None
        accounts = list(_accounts(connection, run_no, now))
    pools = [_together(name, accounts) for name in sorted({account.pool for account in accounts})]
    total = _together("", accounts)
    return Ledger(accounts, pools, total, _of_run(run, accounts) if run else None)


def _accounts(connection: Connection, run_no: int | None, now: float) -> Iterator[VmAccount]:
    lives = _lives(connection)
    for start in range(0, len(lives), _VMS_A_QUERY):
        some = lives[start : start + _VMS_A_QUERY]
        ran = _ran(connection, [vm.vm_no for vm in some])
        for vm in some:
            attempts = ran.get(vm.vm_no, [])
            if run_no is not None and all(attempt.run_no != run_no for attempt in attempts):
                continue
            parts, of_run, lost_of_run = divide(vm, attempts, now, run_no)
            yield VmAccount(
                vm.vm_no,
                vm.pool,
                sum(parts.values()) / MICRO,
                {name: parts[name] / MICRO for name in PARTS},
                of_run / MICRO,
                lost_of_run / MICRO,
            )


def _lives(connection: Connection) -> list[VmLife]:
    vms = schema.vms
    query = sa.select(vms).where(vms.c.started_at.is_not(None)).order_by(vms.c.vm_no)
    return [
        VmLife(row.vm_no, row.pool, row.started_at, row.hello_at, row.ending_at, row.gone_at)
        for row in connection.execute(query)
    ]


def _ran(connection: Connection, vm_nos: Sequence[int]) -> dict[int, list[Ran]]:
    """What ran on each VM, also where the row of its worker was dropped."""
    attempts, workers, vms = schema.attempts, schema.workers, schema.vms
    homes: dict[str, int] = {}
    for table in (workers, vms):
        query = sa.select(table.c.worker, table.c.vm_no).where(table.c.vm_no.in_(vm_nos))
        homes.update({row.worker: row.vm_no for row in connection.execute(query) if row.worker})
    found: dict[int, list[Ran]] = {}
    if not homes:
        return found
    columns = (attempts.c.worker, attempts.c.run_no, attempts.c.started_at, attempts.c.ended_at, attempts.c.state)
    told = sa.select(*columns).where(attempts.c.worker.in_(list(homes)), attempts.c.started_at.is_not(None))
    for row in connection.execute(told):
        lost = row.state == AttemptState.LOST.value
        found.setdefault(homes[row.worker], []).append(Ran(row.run_no, row.started_at, row.ended_at, lost))
    return found


def _together(name: str, accounts: Sequence[VmAccount]) -> PoolAccount:
    of_pool = [account for account in accounts if not name or account.pool == name]
    micro = {part: sum(micros(account.parts[part]) for account in of_pool) for part in PARTS}
    parts = {part: amount / MICRO for part, amount in micro.items()}
    return PoolAccount(name, len(of_pool), sum(micro.values()) / MICRO, parts)


def _of_run(run: str, accounts: Sequence[VmAccount]) -> RunAccount:
    overhead = 0.0
    for account in accounts:
        work = account.parts["running"] + account.parts["lost"]
        if work:
            overhead += (account.life_s - work) * (account.of_run + account.lost_of_run) / work
    running = sum(account.of_run for account in accounts)
    return RunAccount(run, running, sum(account.lost_of_run for account in accounts), overhead)
