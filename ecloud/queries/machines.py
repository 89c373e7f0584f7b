"""Machines for a page: VMs, Slurm jobs and workers on hosts as what they are, and the hosts of workers. Reads the rows
that the boss writes; the settings tell the kind of each pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ecloud.db import schema
from ecloud.db.database import database_now
from ecloud.model.vm_life import ahead_s
from ecloud.model.vm_states import COMING, VmState
from ecloud.model.worker_states import WorkerState
from ecloud.queries.boot_history import boot_views, record, trouble
from ecloud.queries.status import snapshot, vm_views, worker_views
from ecloud.queries.views import BootView, VmView, WorkerView
from ecloud.queries.why_task import Pool

VMS = "VMs"
KINDS = {"opennebula": VMS, "slurm": "Slurm jobs", "ssh_hosts": "Workers on hosts", "local": "Workers on this machine"}
"""What the machines of each cloud are called, in the order of the page."""
GONE = "Gone"
PENDING = "pending"
"""State of a job in Slurm's queue."""


class MachineView(msgspec.Struct, frozen=True):
    """A machine as its user knows it. `place`: the node, host or address that it runs on, as far as known. `why`: the
    reason for its state. `life_s`: its time so far by its cloud; None before that begins. `record`: its steps."""

    vm: VmView
    kind: str
    state: str
    place: str
    why: str
    life_s: float | None
    record: tuple[str, ...]

    @property
    def core_s(self) -> float | None:
        """What it costs so far: its time multiplied by its CPUs."""
        return None if self.life_s is None else self.life_s * self.vm.size.get("cpus", 1.0)


class HostView(msgspec.Struct, frozen=True):
    """A host of workers. `workers`: their number by state; `offers`: the sum of what those that are up offer."""

    host: str
    address: str
    workers: dict[str, int]
    offers: dict[str, float]
    running: int
    queued: int


class MachinesPage(msgspec.Struct, frozen=True):
    """A part of all machines. `totals`: number of all workers, hosts and machines."""

    workers: list[WorkerView]
    hosts: list[HostView]
    machines: list[MachineView]
    gone: list[MachineView]
    totals: dict[str, int]
    page: int
    upto: int

    @property
    def lists(self) -> list[tuple[str, list[MachineView]]]:
        """The machines by kind, and those that are gone."""
        kinds = [(kind, [one for one in self.machines if one.kind == kind]) for kind in KINDS.values()]
        return [(title, some) for title, some in [*kinds, (GONE, self.gone)] if some]

    @property
    def is_last(self) -> bool:
        """Whether no further page follows."""
        return self.upto >= max(self.totals.values())


def machines_page(engine: Engine, pools: Sequence[Pool], page: int, most: int, gone: int) -> MachinesPage:
    """Return page number `page` (from 0) of the workers, their hosts and the machines that exist, `most` of each, and
    the last `gone` machines that are gone. Workers with a trouble come first. Raises `DatabaseAway`."""
    here = slice(page * most, (page + 1) * most)
    kinds = _kinds(pools)
    rows = schema.vms
    with snapshot(engine) as connection:
        now = database_now(connection)
        every = worker_views(connection, (WorkerState.UP, WorkerState.DRAINING, WorkerState.LOST))
        workers = sorted(every, key=lambda worker: worker.state == WorkerState.UP and not worker.trouble)
        alive = vm_views(connection)[::-1]
        query = sa.select(rows).where(rows.c.state == VmState.GONE.value).order_by(rows.c.vm_no.desc()).limit(gone)
        ended = [VmView(**schema.vm_values(row)) for row in connection.execute(query)]
        boots = boot_views(connection, [vm.vm_no for vm in alive[here] + ended])
    hosts = host_views(workers, frozenset(vm.vm_no for vm in alive if kinds.get(vm.pool, VMS) == VMS))

    def views(vms: Sequence[VmView]) -> list[MachineView]:
        return [_machine(vm, boots.get(vm.vm_no), kinds.get(vm.pool, VMS), now) for vm in vms]

    totals = {"workers": len(workers), "hosts": len(hosts), "machines": len(alive)}
    return MachinesPage(workers[here], hosts[here], views(alive[here]), views(ended), totals, page, here.stop)


def machine_counts(connection: Connection, pools: Sequence[Pool]) -> dict[str, dict[str, int]]:
    """Count the machines that exist, by kind and state."""
    rows, kinds = schema.vms.c, _kinds(pools)
    found: dict[str, dict[str, int]] = {}
    query = sa.select(rows.pool, rows.state, sa.func.count()).where(rows.state != VmState.GONE.value)
    for pool, state, count in connection.execute(query.group_by(rows.pool, rows.state)):
        states = found.setdefault(kinds.get(pool, VMS), {})
        states[state] = states.get(state, 0) + count
    return {kind: found[kind] for kind in KINDS.values() if kind in found}


def host_views(workers: Sequence[WorkerView], cloud_vms: frozenset[int]) -> list[HostView]:
    """Return the hosts of these workers, except `cloud_vms`, which are no hosts of their own."""
    found: dict[tuple[str, str], list[WorkerView]] = {}
    for worker in workers:
        if worker.vm_no not in cloud_vms:
            found.setdefault((worker.host, ", ".join(worker.addresses[:1])), []).append(worker)
    return [_host(*name, some) for name, some in sorted(found.items())]


def _kinds(pools: Sequence[Pool]) -> Mapping[str, str]:
    return {pool.name: KINDS[pool.cloud] for pool in pools}


def _machine(vm: VmView, boot: BootView | None, kind: str, now: float) -> MachineView:
    place = boot.address if boot is not None else ""
    is_coming = vm.state in COMING
    # A job has a node as soon as it leaves the queue.
    is_queued = kind == KINDS["slurm"] and vm.state == VmState.BOOTING and not place
    why = (trouble(vm, boot) or vm.said if is_coming else "") or vm.reason or vm.said
    life_s = None if is_queued or vm.started_at is None else _life_s(vm, vm.started_at, now)
    state = PENDING if is_queued else vm.state
    return MachineView(vm, kind, state, place, why, life_s, tuple(record(vm, boot, now)))


def _life_s(vm: VmView, started_at: float, now: float) -> float:
    """The life of a VM as the ledger counts it: the cloud's clock may be ahead of the boss's."""
    ahead = ahead_s(vm.intended_at, started_at, vm.hello_at if vm.hello_at is not None else now)
    return max(0.0, (vm.gone_at if vm.gone_at is not None else now + ahead) - started_at)


def _host(host: str, address: str, some: Sequence[WorkerView]) -> HostView:
    states: dict[str, int] = {}
    offers: dict[str, float] = {}
    for worker in some:
        states[worker.state] = states.get(worker.state, 0) + 1
        offered = worker.resources if worker.state == WorkerState.UP else {}
        for name, amount in offered.items():
            offers[name] = offers.get(name, 0.0) + amount
    running, queued = sum(len(worker.running) for worker in some), sum(worker.queued for worker in some)
    return HostView(host, address, states, offers, running, queued)
