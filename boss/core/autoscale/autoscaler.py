"""Carries out `scaling.plan`: starts VMs for waiting work, ends idle VMs, and reports why none starts.

Owns the time of the next plan. `Vms` owns the VMs.
"""

from __future__ import annotations

from collections.abc import Callable

from boss.core.autoscale.daily_budget import DailyBudget
from boss.core.autoscale.demand import DemandEstimate
from boss.core.autoscale.scaling import FleetSnapshot, Plan, PoolNow, plan
from boss.core.autoscale.vm import Vm
from boss.core.autoscale.vms import SCALING, Vms
from boss.core.model.config import BossConfig
from boss.core.model.fleet import Fleet
from boss.core.model.rows import PoolRow
from boss.core.model.timers import Timers
from ecloud.model.text import counted
from ecloud.model.vm_states import VmState

SLOW_S = 15.0
"""How long to wait before a booting VM's cloud state is reported as a reason: early on, clouds report every VM as
booting."""
TOLD_TOGETHER = 3
"""How many reasons are reported together when no VM comes up."""
MANY_WORKERS = 50
"""With more workers than this, plans are made less often: a plan checks each worker, which costs 15 µs."""
PLAN_EVERY_S_A_WORKER = 0.001
ENDED_BY_HAND = "an operator ended all VMs; to start some: python admin.py instantiate_worker, or restart the boss"


class Autoscaler:
    """Plans capacity after each batch of events."""

    def __init__(self, vms: Vms, demand: DemandEstimate, fleet: Fleet, timers: Timers, config: BossConfig) -> None:
        self._vms = vms
        self._demand = demand
        self._fleet = fleet
        self._timers = timers
        self._config = config
        self.rule: Callable[[FleetSnapshot], Plan] = plan
        self._not_planned_before = 0.0
        self._why_none: str | None = None
        """What keeps VMs from starting, cached for this batch."""

    # --- starts and ends -------------------------------------------------------------------------

    def scale(self, now: float) -> None:
        """Start VMs that the work needs and end idle VMs."""
        self._why_none = None
        vms = self._vms
        if not self._config.pools:
            return
        vms.pools.look_for_room(vms.rows, now)
        vms.pools.tell(self._closed_all(now), now)
        self._start_owed(now)
        pools = self.pools_now(now)
        may_start = any(not pool.closed and pool.may_start and pool.alive < pool.config.maximum for pool in pools)
        if not may_start and not any(row.state is VmState.RUNNING for row in vms.rows):
            self._plan_again(now)
            return
        if len(self._fleet.workers) > MANY_WORKERS:
            if now < self._not_planned_before:
                self._timers.once(SCALING, self._not_planned_before)
                return
            self._not_planned_before = now + PLAN_EVERY_S_A_WORKER * len(self._fleet.workers)
        self._carry_out(self.rule(self._demand.situation(vms.rows, pools, now)), now)
        self._plan_again(now)

    def _carry_out(self, made: Plan, now: float) -> None:
        vms = self._vms
        for start in made.starts:
            if vms.pools.asks_room_first(start.pool, vms.rows, now):
                continue
            vms.pools.health[start.pool].on_asked(now)
            vms.start(vms.pools.configs[start.pool], 1, False, start.reason, now)
        for end in made.ends:
            vms.end(vms.alive[end.vm_no], end.reason, now)
        if made.next_s is not None:
            self._timers.once(SCALING, now + made.next_s)

    def _start_owed(self, now: float) -> None:
        """Request VMs again that an operator requested and the cloud had no host for, as soon as the pool may start
        VMs."""
        vms = self._vms
        for pool in self.pools_now(now) if vms.owed else ():
            name = pool.config.name
            may_start = vms.owed.of(name) and not vms.held and not pool.closed and pool.may_start
            if may_start and not vms.pools.asks_room_first(name, vms.rows, now):
                vms.start_owed(pool.config, pool.may_start, now)

    def plan(self, now: float) -> Plan:
        """What `scale` would do now, with reasons. Changes nothing."""
        return self.rule(self._demand.situation(self._vms.rows, self.pools_now(now), now))

    # --- reports ---------------------------------------------------------------------------------

    def pool_rows(self, now: float) -> list[PoolRow]:
        """The state of each pool, for the database."""
        return self._vms.pools.rows(self._closed_all(now), now)

    def why_none_starts(self, run_no: int, now: float) -> str:
        """Why no VM starts or comes up for a run's ready tasks; empty if nothing prevents it."""
        exhausted = self._demand.run_budgets.exhausted
        if self._config.pools and run_no in exhausted:
            return f"no VM starts for it: {exhausted[run_no]}"
        if self._why_none is None:  # each watched run asks within one batch
            self._why_none = self._why_no_vm_comes(now)
        return self._why_none

    def _why_no_vm_comes(self, now: float) -> str:
        if not self._config.pools:
            return ""
        closed = self._closed_all(now)
        if closed:
            return f"no VM starts: {closed}"
        told = list(self._vms.pools.troubles(now))
        waits: dict[tuple[str, str], int] = {}
        for vm in self._vms.alive.values():
            if vm.is_coming and (text := self._why_not_up(vm, now)):
                waits[vm.row.pool, text] = waits.get((vm.row.pool, text), 0) + 1
        for (pool, text), count in waits.items():
            told.append(f"{counted(count, 'VM')} of pool {pool} {'is' if count == 1 else 'are'} not up yet: {text}")
        return "; ".join(told[:TOLD_TOGETHER])

    def _why_not_up(self, vm: Vm, now: float) -> str:
        """What the cloud, or a visit, reports about a booting VM; empty for a VM that has just begun to boot."""
        cause = self._vms.boots.cause(vm.row)
        if cause is not None:
            return cause.text
        return vm.row.said if now - vm.row.intended_at >= SLOW_S else ""

    # --- times -----------------------------------------------------------------------------------

    @property
    def _spending(self) -> DailyBudget:
        return self._vms.spending

    def pools_now(self, now: float) -> list[PoolNow]:
        """The current state of all pools."""
        return self._vms.pools.now(self._vms.rows, self._closed_all(now), now)

    def _closed_all(self, now: float) -> str:
        """Why no pool may start a VM."""
        return ENDED_BY_HAND if self._vms.held else self._spending.exhausted(self._vms.rows, now)

    def _plan_again(self, now: float) -> None:
        """Set an alarm for the time at which a time limit allows more starts."""
        if self._spending.exhausted(self._vms.rows, now):
            self._timers.once(SCALING, now + self._spending.LOOK_AGAIN_S)
        for at in self._vms.pools.free_again_at(now):
            self._timers.once(SCALING, at)
