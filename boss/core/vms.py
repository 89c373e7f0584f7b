"""VMs: each owned by a written intent from before it is asked for until the cloud says that it is gone.

Owns VM rows that are not gone. Does what `scaling.plan` says: starts, and ends idle ones. Each state that should pass
has a deadline. A VM is ended for good only when the cloud's own list says so; until then its end is asked for again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from boss.core.config import BossConfig, PoolConfig
from boss.core.duty import Duty
from boss.core.effects import EndVm, ListVms, StartVm
from boss.core.events import VmsListed
from boss.core.fleet import Fleet, Worker
from boss.core.outbox import Outbox
from boss.core.outlook import Outlook
from boss.core.pool_health import PoolHealth
from boss.core.rows import PoolRow, VmRow
from boss.core.scaling import Plan, PoolNow, Situation, plan
from boss.core.spending import Spending
from boss.core.timers import Timers

ADOPTION_GRACE_S = 30.0
"""After a start, how long an intent without an answer waits for the cloud's list to show its VM."""
ASK_AGAIN_S = 15.0
"""An end that the cloud's list does not confirm is asked for again."""
PENDING_S = 120.0
"""A VM that its cloud finds no place for is withdrawn after this: room that is there elsewhere is of more use."""
MANY_WORKERS = 50
"""With more than these, capacity is planned less often: a plan looks at each of them, which costs 15 µs."""
PLAN_EVERY_S_A_WORKER = 0.001
COMING = ("intended", "booting")
ENDED_BY_HAND = "all VMs were ended by a person; python admin.py instantiate_worker starts some, or a new boss"


class Vms:
    """All VMs that are not gone, and how each pool fares."""

    def __init__(
        self,
        outbox: Outbox,
        fleet: Fleet,
        outlook: Outlook,
        duty: Duty,
        timers: Timers,
        config: BossConfig,
        next_vm_no: int,
    ) -> None:
        self._outbox = outbox
        self._fleet = fleet
        self._outlook = outlook
        self._duty = duty
        self._timers = timers
        self._config = config
        self._next_vm_no = next_vm_no
        self.pools = {pool.name: pool for pool in config.pools}
        self.health = {pool.name: PoolHealth(pool, config) for pool in config.pools}
        self.spending = Spending(config.vm_hours_per_day)
        self.rule: Callable[[Situation], Plan] = plan
        self.alive: dict[int, VmRow] = {}
        self._asked_at: dict[int, float] = {}
        self._told: dict[str, PoolRow] = {}
        self._plan_at: float | None = None
        self._not_planned_before = 0.0
        self._listing = False
        self._held = False
        """All were ended by a person: none is started by itself until the boss's next start."""

    def load(self, rows: list[VmRow], past: list[VmRow], now: float) -> None:
        """After a start: what is known, adopted again when the cloud's list shows it; what was learned from others."""
        for row in sorted([*past, *rows], key=lambda row: row.vm_no):
            if row.hello_at is not None and row.pool in self.health:
                self.health[row.pool].learn(row.hello_at - row.intended_at)
            self.spending.remember(row)
        for row in rows:
            self.alive[row.vm_no] = row
            if row.state == "ending":
                self._ask_end(row, now)
            self._timers.set(now + self._config.boot_deadline_s, partial(self._look_at_boot, row.vm_no))
        self._keep_listing(now)

    def start(self, pool: PoolConfig, count: int, keep_alive: bool, reason: str, now: float) -> int:
        """Write `count` intents and ask for their VMs, up to the pool's maximum; how many."""
        room = pool.maximum - sum(1 for vm in self.alive.values() if vm.pool == pool.name)
        count = max(0, min(count, room))
        for _ in range(count):
            vm_no, self._next_vm_no = self._next_vm_no, self._next_vm_no + 1
            row = VmRow(
                vm_no=vm_no,
                pool=pool.name,
                state="intended",
                since=now,
                size=dict(pool.size),
                boot_nonce=f"{self._outbox.epoch}-{vm_no}",
                keep_alive=keep_alive,
                reason=reason,
                intended_at=now,
            )
            self.alive[vm_no] = row
            self._write(row)
            self._outbox.call(StartVm(vm_no, pool.name, row.size, row.boot_nonce))
            self._timers.set(now + self._config.boot_deadline_s, partial(self._look_at_boot, vm_no))
        if count:
            self._keep_listing(now)
        return count

    def may_bring_workers(self, now: float) -> bool:
        """Whether a VM boots, or one more may be started."""
        counts: dict[str, int] = {}
        for vm in self.alive.values():
            if vm.state in ("intended", "booting"):
                return True
            counts[vm.pool] = counts.get(vm.pool, 0) + 1
        return not self._held and any(counts.get(pool.name, 0) < pool.maximum for pool in self._config.pools)

    # --- scaling ---------------------------------------------------------------------------------

    def scale(self, now: float) -> None:
        """Start what is missing for the work; let idle ones go."""
        if not self._config.pools:
            return
        self._tell_of_pools(now)
        pools = self._pools_now(now)
        may_start = any(not pool.closed and pool.may_start and pool.alive < pool.config.maximum for pool in pools)
        if not may_start and not any(vm.state == "running" for vm in self.alive.values()):
            self._plan_again(now)
            return
        if len(self._fleet.workers) > MANY_WORKERS:
            if now < self._not_planned_before:
                self._wake_at(self._not_planned_before, now)
                return
            self._not_planned_before = now + PLAN_EVERY_S_A_WORKER * len(self._fleet.workers)
        made = self.rule(self._outlook.situation(self.alive.values(), pools, now))
        for start in made.starts:
            self.health[start.pool].on_asked(now)
            self.start(self.pools[start.pool], 1, False, start.reason, now)
        for end in made.ends:
            self.end(self.alive[end.vm_no], end.reason, now)
        if made.next_s is not None:
            self._wake_at(now + made.next_s, now)
        self._plan_again(now)

    def plan(self, now: float) -> Plan:
        """What `scale` would do now, and why; changes nothing."""
        return self.rule(self._outlook.situation(self.alive.values(), self._pools_now(now), now))

    def pool_rows(self, now: float) -> list[PoolRow]:
        """How each pool fares."""
        rows = [health.row(now) for health in self.health.values()]
        closed = self._closed_all(now)
        return [msgspec.structs.replace(row, closed=closed) if closed and not row.closed else row for row in rows]

    def _pools_now(self, now: float) -> list[PoolNow]:
        counts: dict[str, int] = {}
        coming: dict[str, int] = {}
        for vm in self.alive.values():
            counts[vm.pool] = counts.get(vm.pool, 0) + 1
            coming[vm.pool] = coming.get(vm.pool, 0) + (vm.state in COMING)
        closed = self._closed_all(now)
        return [
            PoolNow(
                pool,
                counts.get(pool.name, 0),
                self.health[pool.name].may_start(coming.get(pool.name, 0), now),
                closed or self.health[pool.name].closed(now),
                self.health[pool.name].boot_s(),
            )
            for pool in self._config.pools
        ]

    def _closed_all(self, now: float) -> str:
        """Why nothing starts in any pool."""
        return ENDED_BY_HAND if self._held else self.spending.exhausted(self.alive.values(), now)

    def _tell_of_pools(self, now: float) -> None:
        for row in self.pool_rows(now):
            if row.closed and row.since is None:  # a reason that all pools share begins when it is first seen
                told = self._told.get(row.pool)
                row.since = told.since if told is not None and told.closed == row.closed else now
            if self._told.get(row.pool) != row:
                self._told[row.pool] = row
                self._outbox.writes.pools[row.pool] = msgspec.structs.replace(row)

    def _plan_again(self, now: float) -> None:
        """When time alone lets more start."""
        if self.spending.exhausted(self.alive.values(), now):
            self._wake_at(now + self.spending.LOOK_AGAIN_S, now)
        for health in self.health.values():
            at = health.free_again_at(now)
            if at is not None:
                self._wake_at(at, now)

    def _wake_at(self, when: float, now: float) -> None:
        if self._plan_at is None or self._plan_at <= now or when < self._plan_at:
            self._plan_at = when
            self._timers.set(when, _nothing)

    # --- ending ----------------------------------------------------------------------------------

    def end(self, vm: VmRow, reason: str, now: float) -> None:
        """End a VM: its worker drains and leaves, then the cloud is asked until its list lacks the VM."""
        worker = self._fleet.workers.get(vm.worker)
        if vm.state not in ("ending", "gone"):
            self._begin_end(vm, reason, now)
        if worker is not None and worker.held:
            self._duty.drain(worker, reason, then_exit=True)
        else:
            if worker is not None:
                self._duty.drain(worker, reason, then_exit=True)
            self._ask_end(vm, now)

    def kill(self, vm: VmRow, reason: str, now: float) -> None:
        """End a VM now, whatever it runs."""
        worker = self._fleet.workers.get(vm.worker)
        if worker is not None and not worker.leaving:
            self._duty.kill(worker, reason)
        if vm.state != "ending":
            self._begin_end(vm, reason, now)
        self._ask_end(vm, now)

    def end_all(self, reason: str, now: float) -> int:
        """End every VM now, whatever it runs; how many."""
        self._held = True
        vms = tuple(self.alive.values())
        for vm in vms:
            self.kill(vm, reason, now)
        return len(vms)

    def _ask_end(self, vm: VmRow, now: float) -> None:
        if vm.cloud_id:
            self._asked_at[vm.vm_no] = now
            self._replace(vm, end_asked=vm.end_asked + 1)
            self._outbox.call(EndVm(vm.vm_no, vm.pool, vm.cloud_id))

    # --- facts -----------------------------------------------------------------------------------

    def recognise(self, key_name: str, boot_nonce: str) -> VmRow | None:
        """The VM whose key and boot nonce a worker shows."""
        prefix, _, number = key_name.partition("-")
        vm = self.alive.get(int(number)) if prefix == "vm" and number.isdecimal() else None
        return vm if vm is not None and vm.boot_nonce == boot_nonce else None

    def on_worker(self, vm: VmRow, worker: Worker, now: float) -> None:
        """The VM's worker reports for duty."""
        if vm.state in COMING:
            self._change(vm, "running", vm.reason, now)
        if vm.hello_at is None and vm.pool in self.health:
            self.health[vm.pool].on_booted(now - vm.intended_at)
        if vm.worker != worker.name or vm.hello_at is None:
            vm = self._replace(vm, worker=worker.name, hello_at=vm.hello_at or now)
        if vm.state == "ending":
            self._duty.drain(worker, vm.reason, then_exit=True)

    def on_started(self, vm_no: int, cloud_id: str, now: float) -> None:
        """The cloud made it."""
        vm = self.alive.get(vm_no)
        if vm is None:
            return
        if vm.pool in self.health:
            self.health[vm.pool].on_started(now)
        vm = self._replace(vm, cloud_id=cloud_id, started_at=vm.started_at if vm.started_at is not None else now)
        if vm.state == "intended":
            self._change(vm, "booting", vm.reason, now)
        elif vm.state == "ending":
            self._ask_end(vm, now)

    def on_refused(self, vm_no: int, reason: str, retry_s: float, cause: str, now: float) -> None:
        """The cloud said no: this intent is over; the pool rests."""
        vm = self.alive.get(vm_no)
        if vm is None:
            return
        if vm.pool in self.health:
            self._wake_at(self.health[vm.pool].on_refused(cause, reason, retry_s, now), now)
        self._gone(vm, reason, now, cause=f"refused: {cause}"[:16])

    def on_listed(self, listed: VmsListed, now: float) -> None:
        """What the cloud says: adopt what is ours and was unanswered; what it lacks is gone, with all it held."""
        for vm in [vm for vm in self.alive.values() if vm.pool == listed.pool]:
            cloud_id = vm.cloud_id or listed.by_vm_no.get(vm.vm_no, "")
            if cloud_id and not vm.cloud_id:
                self.on_started(vm.vm_no, cloud_id, now)
            elif vm.cloud_id and vm.cloud_id not in listed.alive:
                self._on_vanished(vm, now)
            elif not vm.cloud_id and now - vm.since > ADOPTION_GRACE_S:
                self._gone(vm, "the cloud has no VM of this intent", now, cause="unanswered")
            else:
                self._on_seen(vm, *listed.seen.get(vm.vm_no, ("", "")), now)

    def _on_vanished(self, vm: VmRow, now: float) -> None:
        worker = self._fleet.workers.get(vm.worker)
        if worker is not None:
            self._duty.remove(worker, "gone", "its VM is gone", now)
        if vm.state in COMING:
            self._boot_failed(vm, "the VM vanished", "vanished", now)
        self._gone(vm, vm.reason if vm.state == "ending" else "the VM vanished", now)

    def _on_seen(self, vm: VmRow, state: str, text: str, now: float) -> None:
        """The cloud says more of it than that it is there."""
        if text and vm.said != text:
            self._replace(vm, said=text)
        if vm.state == "ending":
            worker = self._fleet.workers.get(vm.worker)
            idle = worker is None or not worker.held
            if idle and now - self._asked_at.get(vm.vm_no, 0.0) >= ASK_AGAIN_S:
                self._ask_end(vm, now)
        elif vm.state == "running" and vm.worker not in self._fleet.workers:
            # Its lease ended and no other process came: nobody would ever tell it to leave.
            self.end(vm, "its worker was lost", now)
        elif vm.state == "booting" and state == "failed":
            reason = f"its cloud says that it failed{': ' + text if text else ''}"
            self._boot_failed(vm, reason, "failed", now)
            self.end(vm, reason, now)
        elif vm.state == "booting" and state == "pending" and now - vm.since > PENDING_S:
            reason = f"its cloud found no place for it in {PENDING_S:.0f} s{': ' + text if text else ''}"
            self._replace(vm, cause="no_place")
            if vm.pool in self.health:
                self._wake_at(self.health[vm.pool].on_refused("less", reason, PENDING_S, now), now)
            self.end(vm, reason, now)

    def on_task(self, worker: Worker, now: float) -> None:
        """A worker told of a task: of a VM's first it is remembered when."""
        vm = self.alive.get(worker.row.vm_no) if worker.row.vm_no is not None else None
        if vm is not None and vm.first_task_at is None:
            self._replace(vm, first_task_at=now)

    def on_worker_left(self, worker: Worker, now: float) -> None:
        """The worker of a VM said Goodbye or was lost: the VM has no more use."""
        vm = self.alive.get(worker.row.vm_no) if worker.row.vm_no is not None else None
        if vm is not None and vm.worker == worker.name:
            if vm.state != "ending":
                self._begin_end(vm, worker.row.reason or "its worker left", now)
            self._ask_end(vm, now)

    def _look_at_boot(self, vm_no: int, now: float) -> None:
        vm = self.alive.get(vm_no)
        if vm is not None and vm.state in COMING:
            reason = f"no worker reported for duty within {self._config.boot_deadline_s:.0f} s"
            self._boot_failed(vm, reason, "silent", now)
            self.end(vm, reason, now)

    def _boot_failed(self, vm: VmRow, reason: str, cause: str, now: float) -> None:
        self._replace(vm, cause=cause)
        if vm.pool in self.health:
            at = self.health[vm.pool].on_boot_failed(f"VM {vm.vm_no}: {reason}", now)
            if at is not None:
                self._wake_at(at, now)

    def _keep_listing(self, now: float) -> None:
        if not self._listing and self.alive:
            self._listing = True
            self._timers.set(now + self._config.list_vms_every_s, self._list)

    def _list(self, now: float) -> None:
        self._listing = False
        for pool in {vm.pool for vm in self.alive.values()}:
            self._outbox.call(ListVms(pool))
        self._keep_listing(now)

    # --- rows ------------------------------------------------------------------------------------

    def _begin_end(self, vm: VmRow, reason: str, now: float) -> None:
        self._replace(vm, ending_at=vm.ending_at if vm.ending_at is not None else now)
        self._change(vm, "ending", reason, now)

    def _change(self, vm: VmRow, state: str, reason: str, now: float) -> None:
        self._replace(vm, state=state, reason=reason, since=now)

    def _replace(self, vm: VmRow, **changes: object) -> VmRow:
        # Rows that were written belong to their batch: `vm` is changed and a copy is what is written.
        for name, value in changes.items():
            setattr(vm, name, value)
        self._write(vm)
        return vm

    def _gone(self, vm: VmRow, reason: str, now: float, cause: str = "") -> None:
        self._replace(vm, state="gone", reason=reason, since=now, gone_at=now, cause=cause or vm.cause)
        self.spending.remember(vm)
        self.alive.pop(vm.vm_no, None)
        self._asked_at.pop(vm.vm_no, None)

    def _write(self, vm: VmRow) -> None:
        self._outbox.writes.vms[vm.vm_no] = msgspec.structs.replace(vm)

    def check(self) -> None:
        """Invariants: never more than a pool's maximum."""
        counts: dict[str, int] = {}
        for vm in self.alive.values():
            assert vm.state != "gone"
            counts[vm.pool] = counts.get(vm.pool, 0) + 1
        for name, count in counts.items():
            if name in self.pools:
                assert count <= max(self.pools[name].maximum, self.pools[name].minimum), f"pool {name} has {count} VMs"


def _nothing(now: float) -> None:
    """An alarm that only makes a batch happen: scaling looks at everything again."""
