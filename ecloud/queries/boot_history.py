"""Texts for users about VMs and pools: the steps of a VM's life, why a pool starts no VM, which VMs do not end.

Reads the rows that the boss writes; decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ecloud.db import schema
from ecloud.model.boot_diagnosis import Visit, recognise
from ecloud.model.text import counted, duration, when
from ecloud.model.vm_life import ahead_s
from ecloud.model.vm_states import COMING, VmState
from ecloud.queries.views import BootView, VmView

STUCK_ASKS = 8
"""Requests to end a VM without confirmation by its cloud before users are warned: two minutes."""
STUCK_S = 600.0
SLOW_S = 15.0
"""Queries search for the reason if a VM boots for longer than this."""
SLOW_LOOKED_AT = 500
LAST_LINES = 5
"""Lines of a start log to show."""
STEPS = {
    "address": "seen running at its address",
    "context": "its start script ran",
    "ssh": "accepted the boss by SSH",
    "clock": "reported its clock",
    "code": "had the code",
    "python": "ran Python",
    "broker": "reached the broker",
}
"""Descriptions of the boot steps, in the usual order."""
BUDGET = "budget/"
UNRUNNABLE = "unrunnable/"
"""Prefixes of context names; the run's number follows."""
HELD = "held/"
"""The same; the pool's name follows."""
CAUSES = {
    "silent": "it booted, but its worker never reported: check its image, its network and its start log",
    "failed": "its cloud could not run it",
    "vanished": "it disappeared while it booted",
    "no_place": "its cloud had no host with room for it",
    "written off": "its cloud never confirmed its end; it may still run and cost money",
    "unanswered": "its cloud did not answer, and its list did not show the VM until the boss gave it up",
    "refused: later": "its cloud was away, slow or busy",
    "refused: less": "a quota, the addresses or the hosts of its cloud were used up",
    "refused: pool": "no VM of its pool can start as it is set: correct the template or network",
    "refused: credent": "its cloud refuses the boss's login: check user and password",
    "refused: unset": "its pool is no longer in the settings",
}
"""Descriptions of the recorded causes of a failed boot."""


class PoolView(msgspec.Struct, frozen=True):
    """State of a pool, as the boss last wrote it. `closed`: why the pool starts no VM, or empty; `held`: whether an
    operator holds it."""

    pool: str
    closed: str
    since: float | None
    until: float | None
    boots: int
    boot_s_p50: float
    boot_s_p95: float
    held: bool = False


def pool_views(connection: Connection) -> dict[str, PoolView]:
    """Return the pools by name; without those that no boss has recorded yet."""
    notes = sa.select(schema.context.c.name).where(schema.context.c.name.startswith(HELD))
    held = {name.removeprefix(HELD) for name in connection.scalars(notes)}
    return {
        row.pool: PoolView(
            row.pool, row.closed, row.since, row.until, row.boots, row.boot_s_p50, row.boot_s_p95, row.pool in held
        )
        for row in connection.execute(sa.select(schema.pools).order_by(schema.pools.c.pool))
    }


def troubles(connection: Connection, now: float) -> list[str]:
    """List problems that users should know: pools that start no VM, VMs whose end is not confirmed."""
    vms = schema.vms
    # We ask a cloud that cannot even list its VMs only once. Then we count the time since the VM had no active worker.
    on_duty = sa.exists().where(schema.workers.c.vm_no == vms.c.vm_no, schema.workers.c.state.in_(("up", "draining")))
    silent = sa.and_(vms.c.end_asked > 0, vms.c.since < now - STUCK_S, ~on_duty)
    late = sa.or_(vms.c.end_asked >= STUCK_ASKS, silent)
    stuck = sa.select(vms).where(vms.c.state == VmState.ENDING.value, late).order_by(vms.c.vm_no)
    told = [closed(pool, now) for pool in pool_views(connection).values() if pool.closed]
    told += [f"no VM starts for a run: {text}" for text in budgets(connection).values()]
    told += _slow(connection, now)
    for row in connection.execute(stuck):
        past = duration(now - (row.ending_at if row.ending_at is not None else row.since))
        told.append(
            f"VM {row.vm_no} of pool {row.pool} ({row.cloud_id} in its cloud) does not end: requested "
            f"{counted(row.end_asked, 'time')} in {past}; end it by hand in the cloud if it "
            f"costs money; python admin.py forget_vm vm/{row.vm_no} counts and asks no longer"
        )
    return told


def _slow(connection: Connection, now: float) -> Iterator[str]:
    """Report VMs that are still booting and for which an obstacle is known, by pool and reason."""
    rows = connection.execute(
        sa.select(schema.vms)
        .where(schema.vms.c.state.in_([state.value for state in COMING]), schema.vms.c.intended_at < now - SLOW_S)
        .order_by(schema.vms.c.vm_no)
        .limit(SLOW_LOOKED_AT)
    )
    vms = [VmView(**schema.vm_values(row)) for row in rows]
    boots = boot_views(connection, [vm.vm_no for vm in vms])
    groups: dict[tuple[str, str], list[VmView]] = {}
    for vm in vms:
        if text := trouble(vm, boots.get(vm.vm_no)) or vm.said:
            groups.setdefault((vm.pool, text), []).append(vm)
    for (pool, text), same in groups.items():
        are, past = "is" if len(same) == 1 else "are", duration(now - same[0].intended_at)
        yield f"{counted(len(same), 'VM')} of pool {pool} {are} not up after {past}: {text}"


def budgets(connection: Connection) -> dict[int, str]:
    """Return the boss's notes on used-up budgets, by run number."""
    rows = connection.execute(sa.select(schema.context).order_by(schema.context.c.name))
    return {int(row.name.removeprefix(BUDGET)): row.value for row in rows if row.name.startswith(BUDGET)}


def unrunnable(connection: Connection) -> dict[int, str]:
    """Return the boss's notes on runs with ready tasks that no worker and no pool can run, by run number."""
    rows = connection.execute(sa.select(schema.context).where(schema.context.c.name.startswith(UNRUNNABLE)))
    return {int(row.name.removeprefix(UNRUNNABLE)): row.value for row in rows}


def closed(pool: PoolView, now: float) -> str:
    """Describe why the pool starts no VM, since when, until when."""
    since = f" since {when(pool.since, now)}" if pool.since is not None else ""
    until = f"; the boss retries at {when(pool.until, now)}" if pool.until is not None and pool.until > now else ""
    return f"pool {pool.pool} starts no VM{since}: {pool.closed}{until}"


def usual(pool: PoolView | None) -> str:
    """ ", usual time 94 s", if boots were recorded."""
    return f"; usual time {duration(pool.boot_s_p50)}" if pool is not None and pool.boots else ""


def coming(vms: Sequence[VmView], pool: PoolView | None, now: float) -> str:
    """Describe the VMs that boot in a pool."""
    first = vms[0]
    past = duration(now - first.since)
    if len(vms) > 1:
        longest = duration(now - min(vm.intended_at for vm in vms))
        return f"{counted(len(vms), 'VM')} of pool {first.pool} boot, the first for {longest}{usual(pool)}"
    stage = f"was requested {past} ago" if first.state == VmState.INTENDED else f"has been booting for {past}"
    return f"VM {first.vm_no} of pool {first.pool} {stage}{usual(pool)}"


def full(name: str, maximum: int, alive: Sequence[VmView], now: float) -> str:
    """Report that a pool has reached its maximum of VMs, and since when."""
    since = when(max(vm.intended_at for vm in alive), now) if alive else ""
    return f"pool {name} has its maximum of {counted(maximum, 'VM')}" + (f" since {since}" if since else "")


def boot_views(connection: Connection, vm_nos: Sequence[int]) -> dict[int, BootView]:
    """Return the boot records by VM."""
    boots = schema.boots
    return {
        row.vm_no: BootView(
            row.vm_no,
            row.address,
            row.host_key,
            msgspec.json.decode(row.steps),
            msgspec.json.decode(row.visit, type=Visit) if row.visit else None,
        )
        for row in connection.execute(sa.select(boots).where(boots.c.vm_no.in_(vm_nos)))
    }


def trouble(vm: VmView, boot: BootView | None) -> str:
    """Return why the VM has no worker, as far as a visit by SSH found it; empty without a visit or if the worker has
    reported."""
    if boot is None or boot.visit is None or vm.hello_at is not None:
        return ""
    cause = recognise(boot.visit, vm.vm_no, vm.boot_nonce)
    return cause.text if cause is not None else ""


def last_step(vm: VmView, boot: BootView | None, now: float) -> str:
    """Describe how far a boot has come, as far as is known."""
    steps = _steps(vm, boot.steps if boot is not None else {}, now)
    what = f"its last step: {steps[-1][0]} {duration(now - steps[-1][1])} ago; " if steps else ""
    said = f"its cloud reports: {vm.said}; " if vm.said else ""
    return f"{what}{said}no worker of it has reported yet"


def record(vm: VmView, boot: BootView | None, now: float) -> Iterator[str]:
    """List the steps of a VM's life with their times, and why the VM failed."""
    steps = _steps(vm, boot.steps if boot is not None else {}, now)
    if steps:
        told = ", ".join(f"{name} after {duration(at - vm.intended_at)}" for name, at in steps)
        yield f"requested at {when(vm.intended_at, now)}; {told}"
    found = trouble(vm, boot)
    if found:
        yield found
    elif vm.cause:
        yield CAUSES.get(vm.cause, vm.cause)
    visit = boot.visit if boot is not None and vm.hello_at is None else None
    if visit is not None and visit.clock_s is not None:
        yield f"its clock is {_clock(visit.clock_s)}"
    if visit is not None and visit.log:
        last = visit.log.splitlines()[-LAST_LINES:]
        yield f"the last lines of its start log: {' | '.join(line.strip() for line in last if line.strip())}"
    if vm.said:
        yield f"its cloud last reported: {vm.said}"
    if vm.state == VmState.ENDING and vm.end_asked > 1:
        yield f"its end was requested {vm.end_asked} times"


def _steps(vm: VmView, known: Mapping[str, float], now: float) -> list[tuple[str, float]]:
    """Return the steps and their times by the boss's clock, the earliest first. The cloud's own times are whole seconds
    of a clock that may be off; impossible ones are corrected."""
    ahead = 0.0
    if vm.started_at is not None:
        ahead = ahead_s(vm.intended_at, vm.started_at, vm.hello_at if vm.hello_at is not None else now)
    told = (
        ("created by its cloud", max(vm.intended_at, vm.started_at - ahead) if vm.started_at is not None else None),
        *((words, known.get(step)) for step, words in STEPS.items()),
        ("its worker reported", vm.hello_at),
        ("its first task", vm.first_task_at),
        ("its end decided", vm.ending_at),
    )
    steps = sorted(((name, at) for name, at in told if at is not None), key=lambda step: step[1])
    if vm.gone_at is not None:
        steps.append(("gone", max([vm.gone_at - ahead, vm.intended_at, *(at for _, at in steps)])))
    return steps


def _clock(ahead_s: float) -> str:
    if abs(ahead_s) < 2.0:  # clock_s has whole seconds
        return "right"
    return f"{duration(abs(ahead_s))} {'ahead of' if ahead_s > 0 else 'behind'} the boss's"
