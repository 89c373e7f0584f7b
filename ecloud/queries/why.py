"""Why a task does not run, or why a worker or VM is absent: one sentence with the nearest reason, and further layers.

Reads the database. Asks the boss, if it is reachable, why a ready task waits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import msgspec
from sqlalchemy.engine import Connection, Engine

from datastore.problem import Problem
from ecloud.config.settings import Settings, size_of
from ecloud.db.database import database_now
from ecloud.model.text import counted, duration
from ecloud.model.vm_states import VmState
from ecloud.model.worker_states import ON_DUTY, WorkerState
from ecloud.queries.boot_history import PoolView, boot_views, last_step, pool_views, record, trouble, usual
from ecloud.queries.lookup import find_task, is_task
from ecloud.queries.status import boss_status, near, snapshot, vm_views, worker_views
from ecloud.queries.views import BootView, BossStatus, Reasons, VmView, WorkerView
from ecloud.queries.why_task import AskBoss, Pool, TaskReasons, no_boss, some


class NoSuchThing(Problem):
    """No worker or VM has this name; the text lists similar names."""


def pools_of(settings: Settings) -> list[Pool]:
    """Return the pools of the settings; amounts that the settings omit are those of this machine."""
    return [Pool(pool.name, size_of(pool), pool.maximum, pool.cloud) for pool in settings.all_pools]


def why(
    engine: Engine,
    subject: str,
    run: str = "",
    pools: Sequence[Pool] = (),
    now: float | None = None,
    ask: AskBoss | None = None,
) -> Reasons:
    """Return why `subject` (a task, `worker/ID` or `vm/ID`) is in its state. `ask`: for ready tasks, and tasks that
    wait for them, the boss answers from its placement and pools; the database answers the rest, and everything while no
    boss leads.

    A task whose id is `worker/ID` or `vm/ID` goes before the machine, which is then a further layer.

    Raises `NoSuchTask`, `NoSuchRun`, `NoSuchThing`, `DatabaseAway`.
    """
    kind, _, name = subject.partition("/")
    with snapshot(engine) as connection:
        now = database_now(connection) if now is None else now
        reasons = TaskReasons(connection, pools, now, ask)
        if kind not in ("worker", "vm") or not name or run:
            return reasons.of(find_task(connection, subject, run))
        machine = _why_worker if kind == "worker" else _why_vm
        if not is_task(connection, subject):
            return machine(connection, name, now)
        found = reasons.of(find_task(connection, subject))
        with contextlib.suppress(NoSuchThing):
            found = msgspec.structs.replace(found, layers=(*found.layers, machine(connection, name, now).sentence))
        return found


# --- workers and VMs -----------------------------------------------------------------------------


def _why_worker(connection: Connection, name: str, now: float) -> Reasons:
    views = worker_views(connection, tuple(WorkerState))
    found = [worker for worker in views if worker.worker == name]
    found = found or [worker for worker in views if worker.worker.startswith(name)]
    if len(found) != 1:
        known = [worker.worker for worker in views]
        what = f"{len(found)} workers are called {name}…" if found else f"there is no worker {name!r}"
        raise NoSuchThing(what + near(name, known), "python admin.py show_workers --all lists them")
    worker = found[0]
    layers = list(_worker_layers(worker, boss_status(connection, now), now))
    return Reasons(f"worker {worker.worker}", worker.state, layers[0], tuple(layers[1:]))


def _worker_layers(worker: WorkerView, boss: BossStatus, now: float) -> Iterator[str]:
    name = f"worker {worker.worker}" + (f" on {worker.host}" if worker.host else "")
    since = f"for {duration(now - worker.since)}"
    if not boss.leads and worker.state in ON_DUTY:
        yield f"{name} was {worker.state} when a boss last checked; {no_boss(boss, now)}"
    if worker.state in (WorkerState.LOST, WorkerState.GONE):
        yield f"{name} has been {worker.state} {since}" + (f": {worker.reason}" if worker.reason else "")
    elif worker.trouble:
        yield f"{name} starts no tasks now: {worker.trouble}"
    if worker.state == WorkerState.DRAINING:
        yield f"{name} is draining: {worker.reason}" + _runs(worker)
    elif worker.state == WorkerState.UP and (worker.running or worker.queued):
        yield f"{name} has been up {since}" + _runs(worker)
    elif worker.state == WorkerState.UP:
        yield f"{name} has been up {since} and is idle: the boss has assigned no ready task to it"
    if worker.vm_no is not None:
        yield f"it is the worker of VM {worker.vm_no}"


def _runs(worker: WorkerView) -> str:
    running = f" and runs {some(worker.running)}" if worker.running else ""
    queued = f"; {counted(worker.queued, 'more task')} {'waits' if worker.queued == 1 else 'wait'} there"
    return running + (queued if worker.queued else "")


def _why_vm(connection: Connection, name: str, now: float) -> Reasons:
    views = vm_views(connection, gone=True)
    # A VM number of ECLOUD takes precedence over a cloud's id: clouds may also number their VMs.
    named = [vm for vm in views if str(vm.vm_no) == name] or [vm for vm in views if vm.cloud_id and vm.cloud_id == name]
    found = named[0] if named else None
    if found is None:
        text = f"there is no VM {name!r}" + near(name, [str(vm.vm_no) for vm in views[-100:]])
        raise NoSuchThing(text, "python admin.py show_vms --all lists them")
    boot = boot_views(connection, [found.vm_no]).get(found.vm_no)
    pool = pool_views(connection).get(found.pool)
    layers = list(_vm_layers(found, boot, boss_status(connection, now), pool, now))
    return Reasons(f"VM {found.vm_no}", found.state, layers[0], tuple(layers[1:]))


def _vm_layers(vm: VmView, boot: BootView | None, boss: BossStatus, pool: PoolView | None, now: float) -> Iterator[str]:
    name = f"VM {vm.vm_no} of pool {vm.pool}"
    since = f"for {duration(now - vm.since)}"
    if vm.state == VmState.INTENDED:
        yield f"{name} was requested {duration(now - vm.since)} ago, and its cloud has not answered yet: {vm.reason}"
    elif vm.state == VmState.BOOTING:
        yield f"{name} has been booting {since}{usual(pool)}; {trouble(vm, boot) or last_step(vm, boot, now)}"
    elif vm.state == VmState.RUNNING:
        yield f"{name} has been running {since} as worker {vm.worker}: {vm.reason}"
    elif vm.state == VmState.ENDING:
        yield f"{name} has been ending {since}: {vm.reason}"
    else:
        silent = vm.hello_at is None and not vm.cause.startswith("refused")
        never = "; its worker never reported" if silent else ""
        yield f"{name} has been gone {since}: {vm.reason}{never}"
    if not boss.leads and vm.state != VmState.GONE:
        yield no_boss(boss, now)
    yield from record(vm, boot, now)
    if vm.cloud_id:
        at = f", at {boot.address}" if boot is not None and boot.address else ""
        yield f"its id in the cloud: {vm.cloud_id}{at}"
