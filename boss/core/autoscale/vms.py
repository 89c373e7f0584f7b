"""VMs. Each has a written intent from before it is requested until the cloud reports that it is gone.

Owns the rows of VMs that are not gone. Each transient state has a deadline. A VM counts as ended only when the cloud's
list shows it (`vm_lists`); until then its end is requested again. `Autoscaler` decides how many VMs there should be.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import msgspec

from boss.core.autoscale.boot_log import BootLog
from boss.core.autoscale.daily_budget import DailyBudget
from boss.core.autoscale.list_requests import ListRequests
from boss.core.autoscale.orphans import Orphans
from boss.core.autoscale.owed_vms import ASKED_FOR, OwedVms
from boss.core.autoscale.pools import Pools
from boss.core.autoscale.run_budgets import RunBudgets
from boss.core.autoscale.vm import Vm
from boss.core.model.cloud_vms import VmFound, boot_nonce
from boss.core.model.config import BossConfig, PoolConfig
from boss.core.model.effects import EndVm, StartVm
from boss.core.model.events import VmVisited
from boss.core.model.fleet import Fleet
from boss.core.model.outbox import Outbox
from boss.core.model.rows import VmRow, VmSpan
from boss.core.model.timers import Timers
from boss.core.model.worker import Worker
from boss.core.workers.leases import Leases
from ecloud.model.vm_life import ahead_s
from ecloud.model.vm_states import WRITTEN_OFF, VmState
from ecloud.model.worker_states import WorkerState

ASK_AGAIN_S = 15.0
"""After this an end that the cloud's list does not confirm is requested again."""
SCALING = "scaling"
"""The alarm at which capacity is planned again."""
CONFIRM_S = 2.0
"""How soon the list that may confirm an end is requested: `stop --vms` waits for it."""


class Vms:
    """All VMs that are not gone, and the health of each pool."""

    def __init__(
        self,
        outbox: Outbox,
        fleet: Fleet,
        run_budgets: RunBudgets,
        leases: Leases,
        timers: Timers,
        config: BossConfig,
        next_vm_no: int,
        context: Mapping[str, str],
    ) -> None:
        self._outbox = outbox
        self._fleet = fleet
        self._run_budgets = run_budgets
        self._leases = leases
        self._timers = timers
        self._config = config
        self._next_vm_no = next_vm_no
        self.pools = Pools(outbox, config, context)
        self.spending = DailyBudget(config.vm_hours_per_day)
        self.alive: dict[int, Vm] = {}
        self.orphans = Orphans(outbox, fleet, leases, config)
        self.list_requests = ListRequests(outbox, timers, config, self.pools, self.alive, self.orphans)
        self.boots = BootLog(outbox, timers, config.boot_deadline_s)
        self.owed = OwedVms(outbox, context)
        self.held = False
        """Whether an operator ended all VMs: then none starts automatically until the boss restarts."""

    @property
    def rows(self) -> list[VmRow]:
        """Rows of VMs that are not gone."""
        return [vm.row for vm in self.alive.values()]

    def load(self, rows: list[VmRow], past: list[VmRow], now: float) -> None:
        """Load known VMs after a start. The cloud's list adopts them again; pools learn boot times from the gone ones.
        The cloud may still have some of those that were given up."""
        for row in past:
            if row.started_at is not None and row.gone_at is None:
                span = VmSpan(row.vm_no, row.cloud_id, row.started_at, boot_nonce=row.boot_nonce)
                self.orphans.remember(self.list_requests.cloud_of(row.pool), span, row.pool in self.pools.configs, now)
        for row in sorted([*past, *rows], key=lambda row: row.vm_no):
            if row.hello_at is not None and row.pool in self.pools.health:
                self.pools.health[row.pool].learn(row.hello_at - row.intended_at)
            self.spending.remember(row)
        for row in rows:
            # An earlier boss's call may still be in progress.
            vm = self.alive[row.vm_no] = Vm(row, called_at=None if row.cloud_id else now, waits_since=now)
            if vm.ends_at_once:  # else its worker may still run tasks: the list decides
                self.ask_end(vm, now)
            self._expect_worker(vm, now)
        self.list_requests.no_later(now)

    # --- starting --------------------------------------------------------------------------------

    def start(self, pool: PoolConfig, count: int, keep_alive: bool, reason: str, now: float) -> list[int]:
        """Write `count` intents and request their VMs, up to the pool's maximum. Returns their numbers."""
        room = pool.maximum - sum(1 for row in self.rows if row.pool == pool.name)
        count = max(0, min(count, room))
        vm_nos = list(range(self._next_vm_no, self._next_vm_no + count))
        self._next_vm_no += count
        for vm_no in vm_nos:
            row = VmRow(
                vm_no=vm_no,
                pool=pool.name,
                state=VmState.INTENDED,
                since=now,
                size=dict(pool.size),
                boot_nonce=boot_nonce(self._outbox.epoch, vm_no),
                keep_alive=keep_alive,
                reason=reason,
                intended_at=now,
            )
            vm = self.alive[vm_no] = Vm(row, called_at=now)
            self.write(vm)
            self._outbox.call(StartVm(vm_no, pool.name, row.size, row.boot_nonce))
            self._expect_worker(vm, now)
        if count:
            self.pools.on_start(pool.name, count)
            self.list_requests.no_later(now + self._config.list_vms_every_s)
        return vm_nos

    def start_owed(self, pool: PoolConfig, at_most: int, now: float) -> None:
        """Request VMs again that an operator requested."""
        for keep_alive in (False, True):
            wanted = min(self.owed.count(pool.name, keep_alive), at_most)
            started = len(self.start(pool, wanted, keep_alive, ASKED_FOR, now))
            at_most -= started
            self.owed.take(pool.name, keep_alive, started)

    def may_bring_workers(self, now: float) -> bool:
        """Whether a VM boots, or another may start."""
        counts: dict[str, int] = {}
        for vm in self.alive.values():
            if vm.is_coming:
                return True
            # A VM that ends makes room for another.
            counts[vm.row.pool] = counts.get(vm.row.pool, 0) + (vm.state is not VmState.ENDING)
        return not self.held and any(
            counts.get(pool.name, 0) < pool.maximum
            and self.pools.capacity[pool.name].left != 0
            and pool.name not in self.pools.held
            for pool in self._config.pools
        )

    # --- ending ----------------------------------------------------------------------------------

    def end(self, vm: Vm, reason: str, now: float) -> None:
        """End a VM: drain its worker, then request the end until the cloud's list lacks the VM."""
        worker = self._fleet.workers.get(vm.row.worker)
        if vm.state is not VmState.ENDING:
            self._begin_end(vm, reason, now)
        if worker is not None:
            self._leases.drain(worker, reason, then_exit=True)
        if worker is None or not worker.held:
            self.ask_end(vm, now)

    def kill(self, vm: Vm, reason: str, now: float) -> None:
        """End a VM now, whatever it runs."""
        worker = self._fleet.workers.get(vm.row.worker)
        if worker is not None and not worker.leaving:
            self._leases.kill(worker, reason, now)
        if vm.state is not VmState.ENDING:
            self._begin_end(vm, reason, now)
        self.ask_end(vm, now)

    def end_all(self, reason: str, now: float) -> int:
        """End every VM now, whatever it runs. Returns their number."""
        self.held = True
        self.owed.clear()
        self.orphans.at_once = True
        self.list_requests.no_later(now)
        vms = tuple(self.alive.values())
        for vm in vms:
            self.kill(vm, reason, now)
        return len(vms)

    def ask_end(self, vm: Vm, now: float) -> None:
        """Request the VM's end from its cloud, unless that happened a moment ago: a worker that leaves because its VM
        ends must not cause a second request."""
        if vm.row.cloud_id and now - vm.end_asked_at >= ASK_AGAIN_S:
            vm.end_asked_at = now
            vm.row.end_asked += 1
            self.write(vm)
            self._outbox.call(EndVm(vm.vm_no, vm.listed_by, vm.row.cloud_id))
            self.list_requests.no_later(now + CONFIRM_S)

    def withdraw(self, vm: Vm, reason: str, now: float) -> None:
        """Give up a VM that its cloud finds no host for, so that another pool can be used. A VM that an operator
        requested is requested again later."""
        vm.row.cause = "no_place"
        self.rest(vm.row.pool, "less", reason, self._config.pending_s, now)
        if vm.row.reason == ASKED_FOR and not self.held:
            self.owed.add(vm.row.pool, vm.row.keep_alive)
        self.end(vm, reason, now)

    def write_off(self, vm: Vm, why: str, now: float) -> None:
        """Give up a VM whose end nothing can confirm: it no longer counts, and its end is no longer requested."""
        self.gone(vm, f"{why}; it may still run and cost money: check the cloud", now, cause=WRITTEN_OFF)

    def _begin_end(self, vm: Vm, reason: str, now: float) -> None:
        if vm.row.ending_at is None:
            vm.row.ending_at = now
        self._move(vm, VmState.ENDING, reason, now)

    # --- facts -----------------------------------------------------------------------------------

    def owner(self, found: VmFound) -> Vm | None:
        """The VM that a cloud's list shows. One of the same number from a history that a restored database lacks has
        another boot nonce."""
        vm = self.alive.get(found.vm_no)
        return vm if vm is not None and found.boot_nonce in ("", vm.row.boot_nonce) else None

    def recognise(self, key_name: str, boot_nonce: str) -> Vm | None:
        """The VM whose key and boot nonce a worker presents."""
        prefix, _, number = key_name.partition("-")
        vm = self.alive.get(int(number)) if prefix == "vm" and number.isdecimal() else None
        return vm if vm is not None and vm.row.boot_nonce == boot_nonce else None

    def is_over(self, key_name: str) -> bool:
        """Whether this key belongs to a VM that is gone, and is therefore revoked."""
        if not key_name.startswith("vm-"):
            return False
        number = key_name[3:]
        if not number.isdecimal():
            return False
        # A number that this cluster never assigned comes from a lost database.
        return int(number) < self._next_vm_no and int(number) not in self.alive

    def on_worker(self, vm: Vm, worker: Worker, now: float) -> None:
        """The VM's worker reported."""
        row = vm.row
        if vm.is_coming:
            self._move(vm, VmState.RUNNING, row.reason, now)
        if row.hello_at is None:
            placed_s = now - (vm.placed_at or row.intended_at)
            self.pools.on_booted(row.pool, now - row.intended_at, placed_s, worker.left_s(now))
            self.boots.on_worker(row, worker.row.hello.boot_s, now)
        if row.worker != worker.name or row.hello_at is None:
            row.worker = worker.name
            row.hello_at = row.hello_at or now
            self.write(vm)
        if vm.ends_at_once and worker.held:
            self._leases.kill(worker, row.reason, now)  # its previous session may have ended before it heard that
        elif vm.state is VmState.ENDING:
            self._leases.drain(worker, row.reason, then_exit=True)

    def on_started(self, vm_no: int, cloud_id: str, now: float) -> None:
        """The cloud made the VM."""
        vm = self.alive.get(vm_no)
        if vm is None:
            return
        if vm.row.pool in self.pools.health:
            self.pools.health[vm.row.pool].on_started(now)
        vm.row.cloud_id = cloud_id
        if vm.row.started_at is None:
            vm.row.started_at = now
            self.spending.recount()
        vm.called_at, vm.waits_since = None, now
        self.write(vm)
        self._run_budgets.on_made(vm.row, now)
        if vm.state is VmState.INTENDED:
            self._move(vm, VmState.BOOTING, vm.row.reason, now)
        elif vm.state is VmState.ENDING:
            self.ask_end(vm, now)

    def on_refused(self, vm_no: int, reason: str, retry_s: float, cause: str, now: float) -> None:
        """The cloud refused the VM: its intent ends and the pool rests."""
        vm = self.alive.get(vm_no)
        if vm is None:
            return
        if vm.row.pool in self.pools.health:
            self.rest(vm.row.pool, cause, reason, retry_s, now)
            self.pools.capacity[vm.row.pool].on_refused(cause == "less")
        self.gone(vm, reason, now, cause=f"refused: {cause}"[:16])

    def on_visited(self, event: VmVisited, now: float) -> None:
        """A visit by SSH ended."""
        vm = self.alive.get(event.vm_no)
        pool = self.pools.configs.get(vm.row.pool) if vm is not None else None
        if vm is not None and pool is not None:
            self.boots.on_visited(vm.row, event, pool, now)

    def on_vanished(self, vm: Vm, ended: float | None, now: float) -> None:
        """The cloud's list reports that the VM is gone. `ended`: since when, by the cloud's clock."""
        worker = self._fleet.workers.get(vm.row.worker)
        if worker is not None:
            ours = vm.state is VmState.ENDING  # else a process inside it may have ended the machine
            self._leases.remove(worker, WorkerState.GONE, "its VM is gone", now, explained=ours)
        if vm.is_coming:
            self.boot_failed(vm, "the VM vanished", "vanished", now)
        self.gone(vm, vm.row.reason if vm.state is VmState.ENDING else "the VM vanished", now, ended=ended)

    def on_task(self, worker: Worker, now: float) -> None:
        """A worker reported a task: note the time of a VM's first."""
        vm = self.alive.get(worker.row.vm_no) if worker.row.vm_no is not None else None
        if vm is not None and vm.row.first_task_at is None:
            vm.row.first_task_at = now
            self.write(vm)

    def on_worker_left(self, worker: Worker, now: float) -> None:
        """The VM's worker sent Goodbye or was lost: the VM is of no more use."""
        vm = self.alive.get(worker.row.vm_no) if worker.row.vm_no is not None else None
        if vm is not None and vm.row.worker == worker.name:
            if vm.state is not VmState.ENDING:
                self._begin_end(vm, worker.row.reason or "its worker left", now)
            self.ask_end(vm, now)

    def on_placed(self, vm: Vm, now: float) -> None:
        """The cloud boots the VM: its boot deadline begins."""
        vm.placed_at = now
        self._expect_worker(vm, now)

    def _expect_worker(self, vm: Vm, now: float) -> None:
        vm.boot_due = now + self._config.boot_deadline_s
        self._timers.set(vm.boot_due, partial(self._look_at_boot, vm.vm_no))

    def _look_at_boot(self, vm_no: int, now: float) -> None:
        vm = self.alive.get(vm_no)
        if vm is None or not vm.is_coming or now < vm.boot_due:
            return
        if vm.waits:  # judged by the pool's queue instead
            self._expect_worker(vm, now)
            return
        reason = f"no worker reported within {self._config.boot_deadline_s:.0f} s"
        cause = self.boots.cause(vm.row)
        if cause is not None:
            reason += f": {cause.text}"
        self.boot_failed(vm, reason, cause.name if cause is not None else "silent", now)
        self.end(vm, reason, now)

    def boot_failed(self, vm: Vm, reason: str, cause: str, now: float) -> None:
        """The boot failed: the pool may rest."""
        vm.row.cause = cause
        self.write(vm)
        if vm.row.pool in self.pools.health:
            at = self.pools.health[vm.row.pool].on_boot_failed(f"VM {vm.vm_no}: {reason}", now)
            if at is not None:
                self._wake(at)

    def rest(self, pool: str, cause: str, reason: str, retry_s: float, now: float) -> None:
        """The pool's cloud starts no VM now."""
        if pool in self.pools.health:
            self._wake(self.pools.health[pool].on_refused(cause, reason, retry_s, now))

    def _wake(self, when: float) -> None:
        """Plan again when a resting pool may start VMs."""
        self._timers.once(SCALING, when)

    # --- rows ------------------------------------------------------------------------------------

    def _move(self, vm: Vm, state: VmState, reason: str, now: float) -> None:
        vm.move(state, reason, now)
        self.write(vm)

    def gone(self, vm: Vm, reason: str, now: float, cause: str = "", ended: float | None = None) -> None:
        """Record that the VM is gone. `ended`: when, by its cloud's clock, if known."""
        row = vm.row
        gone_at = ended
        if gone_at is None:  # by the same clock as its start
            gone_at = now + (ahead_s(row.intended_at, row.started_at, now) if row.started_at is not None else 0.0)
        row.gone_at, row.cause = gone_at, cause or row.cause
        self._move(vm, VmState.GONE, reason, now)
        self.spending.remember(row)
        self._run_budgets.on_gone(vm.vm_no, now)
        self.boots.forget(vm.vm_no)
        self.alive.pop(vm.vm_no, None)
        self.pools.on_gone(row)

    def write(self, vm: Vm) -> None:
        """Store a copy of its row with this batch: later changes must not affect it."""
        self._outbox.writes.vms[vm.vm_no] = msgspec.structs.replace(vm.row)

    def check(self) -> None:
        """Invariants: no pool exceeds its maximum; each row is under its own number."""
        counts: dict[str, int] = {}
        for vm_no, vm in self.alive.items():
            assert vm.vm_no == vm_no
            assert vm.state is not VmState.GONE
            counts[vm.row.pool] = counts.get(vm.row.pool, 0) + 1
        for name, count in counts.items():
            if name in self.pools.configs:
                pool = self.pools.configs[name]
                assert count <= max(pool.maximum, pool.minimum), f"pool {name} has {count} VMs"
