"""Records each VM's boot: when each step was done, what a visit by SSH found, and why the boot failed.

Owns the boot rows of VMs that are not gone; rows of VMs that are gone stay in the database. Steps come from the cloud's
list (address), from visits (ssh, clock, python, code) and from the worker's Hello (its own start, by a clock that is
never compared with the boss's). Decides when a VM is visited. Ends no VM.
"""

from __future__ import annotations

import msgspec

from boss.core.model.config import PoolConfig
from boss.core.model.effects import VisitVm
from boss.core.model.events import VmVisited
from boss.core.model.outbox import Outbox
from boss.core.model.rows import BootRow, VmRow
from boss.core.model.timers import Timers
from ecloud.model.boot_diagnosis import Cause, recognise
from ecloud.model.vm_states import VmState

VISIT_AGAIN_S = 5.0
"""Between visits to a VM that has no code yet."""
LOOK_AGAIN_S = 30.0
"""Between visits to a VM that has its code and does not report, or whose problem time alone does not solve."""
LATE_S = 45.0
"""A VM whose image has the code is visited when its boot takes longer than this and longer than usual …"""
LAST_MOMENT = 0.4
"""… but no later than after this share of its boot deadline."""
ANSWER_S = 300.0
"""When an unanswered visit is forgotten. A visit ends within 180 s but may wait for its turn."""
TOLD = ("context", "code", "python", "broker")
"""Steps that a worker reports in its Hello."""


class BootLog:
    """Boot records by VM."""

    def __init__(self, outbox: Outbox, timers: Timers, boot_deadline_s: float) -> None:
        self._boot_deadline_s = boot_deadline_s
        self._outbox = outbox
        self._timers = timers
        self.rows: dict[int, BootRow] = {}
        self._visited_at: dict[int, float] = {}
        """When the next visit may begin; during a visit, when it is given up."""

    def load(self, rows: list[BootRow]) -> None:
        """Load the rows of VMs that are not gone, after a start. A visit that was in progress is repeated."""
        self.rows = {row.vm_no: row for row in rows}

    def on_listed(self, vm: VmRow, address: str, pool: PoolConfig, usual_s: float, now: float) -> None:
        """The cloud reports that this VM runs at an address. `usual_s`: the 95th percentile of boot times in its
        pool."""
        row = self._row(vm)
        if address != row.address:
            if row.address:  # steps of the machine that had the old address do not apply to this one
                self._visited_at.pop(vm.vm_no, None)
            if vm.hello_at is None:  # else the time at which it got its address is unknown
                self._step(row, "address", now)
            row.address = address
            self._write(row)
        if vm.state is VmState.BOOTING:
            self._visit(vm, pool, usual_s, now)

    def _visit(self, vm: VmRow, pool: PoolConfig, usual_s: float, now: float) -> None:
        if vm.state is not VmState.BOOTING or not pool.visited or now < self._visited_at.get(vm.vm_no, 0.0):
            return
        late_s = min(max(LATE_S, usual_s), LAST_MOMENT * self._boot_deadline_s)
        if not pool.gets_code and now - vm.intended_at < late_s:
            return
        row = self._row(vm)
        self._visited_at[vm.vm_no] = now + ANSWER_S
        self._outbox.call(VisitVm(vm.vm_no, vm.pool, row.address, vm.boot_nonce, row.host_key, pool.gets_code))

    def on_visited(self, vm: VmRow, event: VmVisited, pool: PoolConfig, now: float) -> None:
        """Take the answer of a visit."""
        row = self._row(vm)
        row.visit = event.visit
        if self._is_of(vm, row, event):
            row.host_key = row.host_key or event.host_key
            for step, ago_s in event.ago_s.items():
                self._step(row, step, now - max(0.0, ago_s))
        self._write(row)
        visit = event.visit
        soon = pool.gets_code and not (visit.agent or visit.problem or visit.contact == "changed")
        again_s = VISIT_AGAIN_S if soon else LOOK_AGAIN_S
        self._visited_at[vm.vm_no] = now + again_s
        if vm.state is VmState.BOOTING:
            self._timers.set(now + again_s, lambda then: self._again(vm, pool, then))

    def _is_of(self, vm: VmRow, row: BootRow, event: VmVisited) -> bool:
        """Whether the visited machine is this VM. By then the address may belong to another VM, whose host key and
        steps do not apply to this one."""
        visit = event.visit
        another = bool(visit.boot_nonce) and (visit.vm, visit.boot_nonce) != (str(vm.vm_no), vm.boot_nonce)
        return not another and event.address == row.address

    def _again(self, vm: VmRow, pool: PoolConfig, now: float) -> None:
        if vm.vm_no in self.rows:
            self._visit(vm, pool, 0.0, now)

    def on_worker(self, vm: VmRow, steps: dict[str, float], now: float) -> None:
        """A worker reported. `steps`: seconds between each step and the report, by the worker's own clock."""
        row = self._row(vm)
        longest = now - vm.intended_at
        for step in TOLD:
            ago_s = steps.get(step, -1.0)
            # A worker may claim anything: no step of a VM is older than its intent.
            if 0.0 <= ago_s <= longest:
                self._step(row, step, now - ago_s)
        self._write(row)
        self._visited_at.pop(vm.vm_no, None)

    def cause(self, vm: VmRow) -> Cause | None:
        """Why the VM has no worker yet, if that is known."""
        row = self.rows.get(vm.vm_no)
        if row is None or row.visit is None:
            return None
        return recognise(row.visit, vm.vm_no, vm.boot_nonce)

    def forget(self, vm_no: int) -> None:
        """Drop the row of a VM that is gone; the database keeps it."""
        self._visited_at.pop(vm_no, None)
        self.rows.pop(vm_no, None)

    def _row(self, vm: VmRow) -> BootRow:
        return self.rows.setdefault(vm.vm_no, BootRow(vm.vm_no))

    def _step(self, row: BootRow, step: str, at: float) -> None:
        row.steps.setdefault(step, at)  # the first time counts

    def _write(self, row: BootRow) -> None:
        self._outbox.writes.boots[row.vm_no] = msgspec.structs.replace(row, steps=dict(row.steps))
