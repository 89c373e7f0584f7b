"""VMs: each owned by a written intent from before it is asked for until the cloud says that it is gone.

Owns VM rows that are not gone. Does what `scaling.plan` says: starts, and ends idle ones. Each state that should pass
has a deadline. A VM is ended for good only when the cloud's own list says so; until then its end is asked for again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from boss.core.autoscale.boot_log import BootLog
from boss.core.autoscale.daily_budget import DailyBudget
from boss.core.autoscale.demand import DemandEstimate
from boss.core.autoscale.orphans import Orphans
from boss.core.autoscale.pools import COMING, Pools
from boss.core.autoscale.scaling import FleetSnapshot, Plan, PoolNow, plan
from boss.core.model.config import BossConfig, PoolConfig
from boss.core.model.effects import EndVm, ListVms, StartVm
from boss.core.model.events import VmsListed, VmVisited
from boss.core.model.fleet import Fleet, Worker
from boss.core.model.outbox import Outbox
from boss.core.model.rows import PoolRow, VmRow, VmSpan
from boss.core.model.timers import Timers
from boss.core.workers.leases import Leases
from ecloud.model.text import counted
from ecloud.model.vm_life import ahead_s
from ecloud.model.worker_states import WorkerState

ASK_AGAIN_S = 15.0
"""An end that the cloud's list does not confirm is asked for again."""
CONFIRM_S = 2.0
"""After an end was asked for, the list that may confirm it comes no later than this: who stops all VMs waits for it."""
SLOW_S = 15.0
"""What a cloud says of a VM that boots is passed on after this: before, it says that of all."""
TOLD_TOGETHER = 3
"""Reasons why no VM comes that are told at once."""
MANY_WORKERS = 50
"""With more than these, capacity is planned less often: a plan looks at each of them, which costs 15 µs."""
PLAN_EVERY_S_A_WORKER = 0.001
ENDED_BY_HAND = "all VMs were ended by a person; python admin.py instantiate_worker starts some, or a new boss"


class Vms:
    """All VMs that are not gone, and how each pool fares."""

    def __init__(
        self,
        outbox: Outbox,
        fleet: Fleet,
        outlook: DemandEstimate,
        duty: Leases,
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
        self.openings = Pools(outbox, config)
        self.health = self.openings.health
        self.spending = DailyBudget(config.vm_hours_per_day)
        self.rule: Callable[[FleetSnapshot], Plan] = plan
        self.alive: dict[int, VmRow] = {}
        self._asked_at: dict[int, float] = {}
        self._called_at: dict[int, float] = {}
        """When a call for an intent without an answer was last known to be under way."""
        self._shown_by: dict[int, str] = {}
        """Of a VM whose pool is not set any more: a pool of the cloud that lists it."""
        self._orphans = Orphans(outbox, fleet, duty, config)
        self.boots = BootLog(outbox, timers, config.boot_deadline_s)
        self._not_planned_before = 0.0
        self._why_none: str | None = None
        """What this batch found to keep VMs from starting."""
        self._held = False
        """All were ended by a person: none is started by itself until the boss's next start."""

    def load(self, rows: list[VmRow], past: list[VmRow], now: float) -> None:
        """After a start: what is known, adopted again when the cloud's list shows it; what was learned from others. Of
        those that were given up the cloud may have had some still."""
        for row in past:
            if row.started_at is not None and row.gone_at is None:
                span = VmSpan(row.vm_no, row.cloud_id, row.started_at)
                self._orphans.remember(self._cloud_of(row.pool), span, row.pool in self.pools, now)
        for row in sorted([*past, *rows], key=lambda row: row.vm_no):
            if row.hello_at is not None and row.pool in self.health:
                self.health[row.pool].learn(row.hello_at - row.intended_at)
            self.spending.remember(row)
        for row in rows:
            self.alive[row.vm_no] = row
            if not row.cloud_id:
                self._called_at[row.vm_no] = now  # an earlier boss's call may still be worked on
            if row.state == "ending":
                self._ask_end(row, now)
            self._timers.set(now + self._config.boot_deadline_s, partial(self._look_at_boot, row.vm_no))
        self._list_no_later(now)

    def start(self, pool: PoolConfig, count: int, keep_alive: bool, reason: str, now: float) -> list[int]:
        """Write `count` intents and ask for their VMs, up to the pool's maximum; their numbers."""
        room = pool.maximum - sum(1 for vm in self.alive.values() if vm.pool == pool.name)
        count = max(0, min(count, room))
        vm_nos = list(range(self._next_vm_no, self._next_vm_no + count))
        self._next_vm_no += count
        for vm_no in vm_nos:
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
            self._called_at[vm_no] = now
            self._write(row)
            self._outbox.call(StartVm(vm_no, pool.name, row.size, row.boot_nonce))
            self._timers.set(now + self._config.boot_deadline_s, partial(self._look_at_boot, vm_no))
        if count:
            self.openings.rooms[pool.name].on_start(count)
            self._list_no_later(now + self._config.list_vms_every_s)
        return vm_nos

    def may_bring_workers(self, now: float) -> bool:
        """Whether a VM boots, or one more may be started."""
        counts: dict[str, int] = {}
        for vm in self.alive.values():
            if vm.state in ("intended", "booting"):
                return True
            # What ends makes room for another.
            counts[vm.pool] = counts.get(vm.pool, 0) + (vm.state != "ending")
        return not self._held and any(
            counts.get(pool.name, 0) < pool.maximum and self.openings.rooms[pool.name].left != 0
            for pool in self._config.pools
        )

    # --- scaling ---------------------------------------------------------------------------------

    def scale(self, now: float) -> None:
        """Start what is missing for the work; end idle VMs."""
        self._why_none = None
        if not self._config.pools:
            return
        self.openings.look_for_room(self.alive.values(), now)
        self.openings.tell(self._closed_all(now), now)
        pools = self.pools_now(now)
        may_start = any(not pool.closed and pool.may_start and pool.alive < pool.config.maximum for pool in pools)
        if not may_start and not any(vm.state == "running" for vm in self.alive.values()):
            self._plan_again(now)
            return
        if len(self._fleet.workers) > MANY_WORKERS:
            if now < self._not_planned_before:
                self._wake_at(self._not_planned_before)
                return
            self._not_planned_before = now + PLAN_EVERY_S_A_WORKER * len(self._fleet.workers)
        made = self.rule(self._outlook.situation(self.alive.values(), pools, now))
        for start in made.starts:
            if self.openings.asks_room_first(start.pool, self.alive.values(), now):
                continue
            self.health[start.pool].on_asked(now)
            self.start(self.pools[start.pool], 1, False, start.reason, now)
        for end in made.ends:
            self.end(self.alive[end.vm_no], end.reason, now)
        if made.next_s is not None:
            self._wake_at(now + made.next_s)
        self._plan_again(now)

    def plan(self, now: float) -> Plan:
        """What `scale` would do now, and why; changes nothing."""
        return self.rule(self._outlook.situation(self.alive.values(), self.pools_now(now), now))

    def pool_rows(self, now: float) -> list[PoolRow]:
        """How each pool fares."""
        return self.openings.rows(self._closed_all(now), now)

    def why_none_starts(self, run_no: int, now: float) -> str:
        """What keeps VMs from starting for a run's ready tasks, or from coming up; empty where nothing does."""
        if self._config.pools and run_no in self._outlook.run_spending.exhausted:
            return f"no VM starts for it: {self._outlook.run_spending.exhausted[run_no]}"
        if self._why_none is None:  # a batch asks for each run that is watched
            self._why_none = self._why_no_vm_comes(now)
        return self._why_none

    def _why_no_vm_comes(self, now: float) -> str:
        if not self._config.pools:
            return ""
        closed = self._closed_all(now)
        if closed:
            return f"no VM starts: {closed}"
        told = list(self.openings.troubles(now))
        waits: dict[tuple[str, str], int] = {}
        for vm in self.alive.values():
            if vm.state in COMING and (text := self._why_not_up(vm, now)):
                waits[vm.pool, text] = waits.get((vm.pool, text), 0) + 1
        for (pool, text), count in waits.items():
            told.append(f"{counted(count, 'VM')} of pool {pool} {'is' if count == 1 else 'are'} not up yet: {text}")
        return "; ".join(told[:TOLD_TOGETHER])

    def _why_not_up(self, vm: VmRow, now: float) -> str:
        """What its cloud says of a VM that boots, or what a visit found there; empty where it has just begun."""
        cause = self.boots.cause(vm)
        if cause is not None:
            return cause.text
        return vm.said if now - vm.intended_at >= SLOW_S else ""

    def pools_now(self, now: float) -> list[PoolNow]:
        """Every pool as it stands."""
        return self.openings.now(self.alive.values(), self._closed_all(now), now)

    def _closed_all(self, now: float) -> str:
        """Why nothing starts in any pool."""
        return ENDED_BY_HAND if self._held else self.spending.exhausted(self.alive.values(), now)

    def _plan_again(self, now: float) -> None:
        """When time alone lets more start."""
        if self.spending.exhausted(self.alive.values(), now):
            self._wake_at(now + self.spending.LOOK_AGAIN_S)
        for at in self.openings.free_again_at(now):
            self._wake_at(at)

    def _wake_at(self, when: float) -> None:
        self._timers.once("scaling", when)

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
        self._held = self._orphans.at_once = True
        self._list_no_later(now)
        vms = tuple(self.alive.values())
        for vm in vms:
            self.kill(vm, reason, now)
        return len(vms)

    def _ask_end(self, vm: VmRow, now: float) -> None:
        if vm.cloud_id:
            self._asked_at[vm.vm_no] = now
            self._replace(vm, end_asked=vm.end_asked + 1)
            self._outbox.call(EndVm(vm.vm_no, self._shown_by.get(vm.vm_no, vm.pool), vm.cloud_id))
            self._list_no_later(now + CONFIRM_S)

    # --- facts -----------------------------------------------------------------------------------

    def recognise(self, key_name: str, boot_nonce: str) -> VmRow | None:
        """The VM whose key and boot nonce a worker shows."""
        prefix, _, number = key_name.partition("-")
        vm = self.alive.get(int(number)) if prefix == "vm" and number.isdecimal() else None
        return vm if vm is not None and vm.boot_nonce == boot_nonce else None

    def is_over(self, key_name: str) -> bool:
        """Whether this is the key of a VM that is gone: it opens nothing any more."""
        if not key_name.startswith("vm-"):
            return False
        number = key_name[3:]
        if not number.isdecimal():
            return False
        # A number that no intent of ours had yet comes from a database that was lost.
        return int(number) < self._next_vm_no and int(number) not in self.alive

    def on_worker(self, vm: VmRow, worker: Worker, now: float) -> None:
        """The VM's worker reports for duty."""
        if vm.state in COMING:
            self._change(vm, "running", vm.reason, now)
        if vm.hello_at is None and vm.pool in self.health:
            self.health[vm.pool].on_booted(now - vm.intended_at)
        if vm.hello_at is None:
            self.boots.on_worker(vm, worker.row.hello.boot_s, now)
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
        self._outlook.run_spending.on_made(vm, now)
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
            self._wake_at(self.health[vm.pool].on_refused(cause, reason, retry_s, now))
            self.openings.rooms[vm.pool].on_refused(cause == "less")
        self._gone(vm, reason, now, cause=f"refused: {cause}"[:16])

    def on_listed(self, listed: VmsListed, now: float) -> None:
        """What the cloud says: adopt what is ours and was unanswered; what it lacks is gone, with all it held."""
        cloud = self._cloud_of(listed.pool)
        self._orphans.on_listed(cloud, listed, self.alive, ASK_AGAIN_S, now)
        if self._orphans.any:
            self._list_no_later(now + self._config.list_vms_every_s)
        for vm_no in listed.starting & self._called_at.keys():
            self._called_at[vm_no] = now
        gone = {vm_no: cloud_id for cloud_id, vm_no in listed.gone.items()}
        for vm in tuple(self.alive.values()):
            if vm.pool not in self.pools and vm.vm_no in listed.by_vm_no:
                self._shown_by[vm.vm_no] = listed.pool
            if self._cloud_of(self._shown_by.get(vm.vm_no, vm.pool)) != cloud:
                continue
            cloud_id = vm.cloud_id or listed.by_vm_no.get(vm.vm_no, "")
            self._live_since(vm, listed.since.get(cloud_id))
            if cloud_id and not vm.cloud_id:
                self.on_started(vm.vm_no, cloud_id, now)  # it was made, and the answer got lost
            elif vm.cloud_id and vm.cloud_id not in listed.alive:
                if listed.asked is None or vm.cloud_id in listed.asked:
                    self._on_vanished(vm, listed.ended.get(vm.cloud_id), now)
            elif not vm.cloud_id and vm.vm_no in gone and vm.vm_no not in listed.starting:  # else its answer is to come
                self.on_started(vm.vm_no, gone[vm.vm_no], now)  # and was gone before anybody saw it
                self._live_since(vm, listed.since.get(gone[vm.vm_no]))
                self._on_vanished(vm, listed.ended.get(gone[vm.vm_no]), now)
            elif not vm.cloud_id and self._is_lost(vm, now) and (listed.sought is None or vm.vm_no in listed.sought):
                self._gone(vm, "the cloud has no VM of this intent", now, cause="unanswered")
            else:
                self._on_seen(vm, *listed.seen.get(vm.vm_no, ("", "")), now)
                pool, address = self.pools.get(vm.pool), listed.addresses.get(vm.vm_no)
                if pool is not None and address:
                    self.boots.on_listed(vm, address, pool, self.health[vm.pool].boot_s(0.95), now)

    def on_visited(self, event: VmVisited, now: float) -> None:
        """Somebody went there by SSH."""
        vm = self.alive.get(event.vm_no)
        pool = self.pools.get(vm.pool) if vm is not None else None
        if vm is not None and pool is not None:
            self.boots.on_visited(vm, event, pool, now)

    def _cloud_of(self, pool: str) -> str:
        """A name for the cloud that a pool's VMs are listed by."""
        config = self.pools.get(pool)
        return config.cloud if config is not None and config.cloud else f"pool {pool}"

    def _is_lost(self, vm: VmRow, now: float) -> bool:
        """Whether the call for it ended so long ago that its VM would be there."""
        return now - self._called_at.get(vm.vm_no, now) > self._config.adoption_grace_s

    def _live_since(self, vm: VmRow, since: float | None) -> None:
        """Its life begins when its cloud says, by the cloud's clock; until that says so, when we heard of it."""
        if since is not None and vm.started_at != since:
            self._replace(vm, started_at=since)

    def _on_vanished(self, vm: VmRow, ended: float | None, now: float) -> None:
        worker = self._fleet.workers.get(vm.worker)
        if worker is not None:
            ours = vm.state == "ending"  # else something in it may have ended the machine
            self._duty.remove(worker, WorkerState.GONE, "its VM is gone", now, explained=ours)
        if vm.state in COMING:
            self._boot_failed(vm, "the VM vanished", "vanished", now)
        self._gone(vm, vm.reason if vm.state == "ending" else "the VM vanished", now, ended=ended)

    def _on_seen(self, vm: VmRow, state: str, text: str, now: float) -> None:
        """The cloud says more of it than that it is there."""
        if text and vm.said != text:
            self._replace(vm, said=text)
        if vm.state == "ending":
            worker = self._fleet.workers.get(vm.worker)
            idle = worker is None or not worker.held
            if idle and now - self._asked_at.get(vm.vm_no, 0.0) >= ASK_AGAIN_S:
                self._ask_end(vm, now)
        elif vm.pool not in self.pools and vm.cloud_id:
            self.end(vm, f"its pool {vm.pool} is not set any more", now)
        elif vm.state == "running" and vm.worker not in self._fleet.workers:
            # Its lease ended and no other process came: nobody would ever tell it to leave.
            self.end(vm, "its worker was lost", now)
        elif vm.state == "booting" and state == "failed":
            reason = f"its cloud says that it failed{': ' + text if text else ''}"
            self._boot_failed(vm, reason, "failed", now)
            self.end(vm, reason, now)
        elif vm.state == "booting" and state == "pending" and now - vm.since > self._config.pending_s:
            reason = f"its cloud found no place for it in {self._config.pending_s:.0f} s{': ' + text if text else ''}"
            self._replace(vm, cause="no_place")
            if vm.pool in self.health:
                self._wake_at(self.health[vm.pool].on_refused("less", reason, self._config.pending_s, now))
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
            cause = self.boots.cause(vm)
            if cause is not None:
                reason += f": {cause.text}"
            self._boot_failed(vm, reason, cause.name if cause is not None else "silent", now)
            self.end(vm, reason, now)

    def _boot_failed(self, vm: VmRow, reason: str, cause: str, now: float) -> None:
        self._replace(vm, cause=cause)
        if vm.pool in self.health:
            at = self.health[vm.pool].on_boot_failed(f"VM {vm.vm_no}: {reason}", now)
            if at is not None:
                self._wake_at(at)

    def _list_no_later(self, when: float) -> None:
        """Every cloud is asked for its list then, if not before, and on and on."""
        if self.pools:
            self._timers.once("list of VMs", when, self._list)

    def _list(self, now: float) -> None:
        known: dict[str, dict[str, int]] = {}
        lost: dict[str, set[int]] = {}
        for vm in self.alive.values():
            cloud = self._cloud_of(self._shown_by.get(vm.vm_no, vm.pool))
            if vm.cloud_id:
                known.setdefault(cloud, {})[vm.cloud_id] = vm.vm_no
            elif self._is_lost(vm, now):
                lost.setdefault(cloud, set()).add(vm.vm_no)
        for cloud, pool in {self._cloud_of(pool): pool for pool in self.pools}.items():
            asked = self._orphans.known(cloud) | known.get(cloud, {})
            self._outbox.call(ListVms(pool, asked, frozenset(lost.get(cloud, ()))))
        busy = self.alive or self._orphans.any
        self._list_no_later(now + (self._config.list_vms_every_s if busy else self._config.list_idle_every_s))

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

    def _gone(self, vm: VmRow, reason: str, now: float, cause: str = "", ended: float | None = None) -> None:
        """`ended`: when, by its cloud's clock, where that says so."""
        gone_at = ended
        if gone_at is None:  # by the same clock as its beginning
            gone_at = now + (ahead_s(vm.intended_at, vm.started_at, now) if vm.started_at is not None else 0.0)
        self._replace(vm, state="gone", reason=reason, since=now, gone_at=gone_at, cause=cause or vm.cause)
        self.spending.remember(vm)
        self._outlook.run_spending.on_gone(vm.vm_no, now)
        self.boots.forget(vm.vm_no)
        self.alive.pop(vm.vm_no, None)
        self.openings.on_gone(vm)
        for memory in (self._asked_at, self._called_at, self._shown_by):
            memory.pop(vm.vm_no, None)

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
