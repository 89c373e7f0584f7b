"""VMs: each owned by a written intent from before it is asked for until the cloud says that it is gone.

Owns VM rows that are not gone. Decides by `scaling.plan` when to start, and when an idle one may end. A VM is ended
for good only
when the cloud's own list says so.
"""

from __future__ import annotations

from functools import partial
from itertools import islice

import msgspec

from boss.core.config import BossConfig, PoolConfig
from boss.core.duty import Duty
from boss.core.effects import EndVm, ListVms, StartVm
from boss.core.fleet import Fleet, Worker
from boss.core.outbox import Outbox
from boss.core.rows import VmRow
from boss.core.scaling import Demand, plan
from boss.core.taskbook import TaskBook
from boss.core.timers import Timers
from ecloud.tasks import TaskState

BOOT_DEADLINE_S = 300.0
"""A VM whose worker has not reported for duty by then is ended."""
ADOPTION_GRACE_S = 30.0
"""After a start, how long an intent without an answer waits for the cloud's list to show its VM."""
ASK_AGAIN_S = 15.0
"""An end that the cloud's list does not confirm is asked for again."""
STARTS_PER_BATCH = 50
"""VMs asked for in one batch, so that one mistaken plan can't ask for hundreds."""
COUNTED_READY = 1_000
"""Ready tasks of a kind that are counted one by one in a batch; of more, void entries in the queue are counted too. A
batch must not cost more where more tasks wait."""


class Vms:
    """All VMs that are not gone, and when each pool may be asked again."""

    def __init__(
        self,
        outbox: Outbox,
        fleet: Fleet,
        book: TaskBook,
        duty: Duty,
        timers: Timers,
        config: BossConfig,
        next_vm_no: int,
    ) -> None:
        self._outbox = outbox
        self._fleet = fleet
        self._book = book
        self._ready = book.ready
        self._duty = duty
        self._timers = timers
        self._config = config
        self._next_vm_no = next_vm_no
        self.pools = {pool.name: pool for pool in config.pools}
        self.alive: dict[int, VmRow] = {}
        self._asked_at: dict[int, float] = {}
        self._not_before: dict[str, float] = {}
        self.refusals: dict[str, str] = {}
        self._listing = False
        self._held = False
        """All were ended by a person: none is started by itself until the boss's next start."""

    def load(self, rows: list[VmRow], now: float) -> None:
        """After a start: what is known, adopted again when the cloud's list shows it."""
        for row in rows:
            self.alive[row.vm_no] = row
            if row.state == "ending":
                self._ask_end(row, now)
            self._timers.set(now + BOOT_DEADLINE_S, partial(self._look_at_boot, row.vm_no))
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
            self._timers.set(now + BOOT_DEADLINE_S, partial(self._look_at_boot, vm_no))
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

    def scale(self, now: float) -> None:
        """Start what is missing for the ready work; let idle ones go."""
        if not self._config.pools or self._held:
            return
        demands: dict[object, Demand] = {}
        for group in self._ready.placeable():
            looked_at = islice(group.nodes, COUNTED_READY)
            count = sum(1 for node in looked_at if node.state is TaskState.READY and not node.assigned)
            count += max(0, len(group.nodes) - COUNTED_READY)
            known = demands.get(group.shape)
            demands[group.shape] = Demand(group.shape, count + (known.count if known else 0))
        rooms = [vm.size for vm in self.alive.values() if vm.state in ("intended", "booting")]
        failing = [task_no for run_no in self._book.failing_runs for task_no in self._book.runs[run_no].init_failures]
        rooms += [
            worker.free
            for worker in self._fleet.workers.values()
            # One in which a run can't be prepared is no room for that run's tasks: another process may do better.
            if worker.takes_tasks and not any(worker.inits.get(task_no) == "failed" for task_no in failing)
        ]
        counts: dict[str, int] = {}
        for vm in self.alive.values():
            counts[vm.pool] = counts.get(vm.pool, 0) + 1
        open_pools = [pool for pool in self._config.pools if self._not_before.get(pool.name, 0.0) <= now]
        starts = plan(demands.values(), rooms, open_pools, counts).starts
        for name, reason in starts[:STARTS_PER_BATCH]:
            self.start(self.pools[name], 1, False, reason, now)
        self._end_idle(bool(demands), counts, now)

    def _end_idle(self, work_waits: bool, counts: dict[str, int], now: float) -> None:
        if work_waits:
            return
        for vm in sorted(self.alive.values(), key=lambda row: row.since):
            worker = self._fleet.workers.get(vm.worker)
            pool = self.pools.get(vm.pool)
            if vm.state != "running" or vm.keep_alive or worker is None or pool is None or worker.idle_since is None:
                continue
            if worker.leaving or counts[vm.pool] <= pool.minimum:
                continue
            idle_until = worker.idle_since + pool.idle_s
            if idle_until <= now:
                counts[vm.pool] -= 1
                self.end(vm, f"idle for {pool.idle_s:g} s", now)
            else:
                self._timers.set(idle_until, _nothing)

    def end(self, vm: VmRow, reason: str, now: float) -> None:
        """End a VM: its worker drains and leaves, then the cloud is asked until its list lacks the VM."""
        worker = self._fleet.workers.get(vm.worker)
        if vm.state not in ("ending", "gone"):
            self._change(vm, "ending", reason, now)
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
            self._change(vm, "ending", reason, now)
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
            self._outbox.call(EndVm(vm.vm_no, vm.pool, vm.cloud_id))

    # --- facts -----------------------------------------------------------------------------------

    def recognise(self, key_name: str, boot_nonce: str) -> VmRow | None:
        """The VM whose key and boot nonce a worker shows."""
        prefix, _, number = key_name.partition("-")
        vm = self.alive.get(int(number)) if prefix == "vm" and number.isdecimal() else None
        return vm if vm is not None and vm.boot_nonce == boot_nonce else None

    def on_worker(self, vm: VmRow, worker: Worker, now: float) -> None:
        """The VM's worker reports for duty."""
        if vm.state in ("intended", "booting"):
            self._change(vm, "running", vm.reason, now)
        if vm.worker != worker.name or vm.hello_at is None:
            vm = self._replace(vm, worker=worker.name, hello_at=vm.hello_at or now)
        if vm.state == "ending":
            self._duty.drain(worker, vm.reason, then_exit=True)

    def on_started(self, vm_no: int, cloud_id: str, now: float) -> None:
        """The cloud made it."""
        vm = self.alive.get(vm_no)
        if vm is None:
            return
        self.refusals.pop(vm.pool, None)
        vm = self._replace(vm, cloud_id=cloud_id)
        if vm.state == "intended":
            self._change(vm, "booting", vm.reason, now)
        elif vm.state == "ending":
            self._ask_end(vm, now)

    def on_refused(self, vm_no: int, reason: str, retry_s: float, now: float) -> None:
        """The cloud said no: this intent is over; the pool rests."""
        vm = self.alive.get(vm_no)
        if vm is None:
            return
        self._not_before[vm.pool] = now + retry_s
        self.refusals[vm.pool] = reason
        self._timers.set(now + retry_s, _nothing)
        self._gone(vm, reason, now)

    def on_listed(self, pool: str, alive: frozenset[str], by_vm_no: dict[int, str], now: float) -> None:
        """What the cloud says: adopt what is ours and was unanswered; what it lacks is gone, with all it held."""
        for vm in [vm for vm in self.alive.values() if vm.pool == pool]:
            cloud_id = vm.cloud_id or by_vm_no.get(vm.vm_no, "")
            if cloud_id and not vm.cloud_id:
                self.on_started(vm.vm_no, cloud_id, now)
            elif vm.cloud_id and vm.cloud_id not in alive:
                worker = self._fleet.workers.get(vm.worker)
                if worker is not None:
                    self._duty.remove(worker, "gone", "its VM is gone", now)
                self._gone(vm, vm.reason if vm.state == "ending" else "the VM vanished", now)
            elif not vm.cloud_id and now - vm.since > ADOPTION_GRACE_S:
                self._gone(vm, "the cloud has no VM of this intent", now)
            elif vm.state == "ending" and now - self._asked_at.get(vm.vm_no, 0.0) >= ASK_AGAIN_S:
                worker = self._fleet.workers.get(vm.worker)
                if worker is None or not worker.held:
                    self._ask_end(vm, now)

    def on_worker_left(self, worker: Worker, now: float) -> None:
        """The worker of a VM said Goodbye or was lost: the VM has no more use."""
        vm = self.alive.get(worker.row.vm_no) if worker.row.vm_no is not None else None
        if vm is not None and vm.worker == worker.name:
            if vm.state != "ending":
                self._change(vm, "ending", worker.row.reason or "its worker left", now)
            self._ask_end(vm, now)

    def _look_at_boot(self, vm_no: int, now: float) -> None:
        vm = self.alive.get(vm_no)
        if vm is not None and vm.state in ("intended", "booting"):
            self.end(vm, f"no worker reported for duty within {BOOT_DEADLINE_S:.0f} s", now)

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

    def _change(self, vm: VmRow, state: str, reason: str, now: float) -> None:
        self._replace(vm, state=state, reason=reason, since=now)

    def _replace(self, vm: VmRow, **changes: object) -> VmRow:
        # Rows that were written belong to their batch: `vm` is changed and a copy is what is written.
        for name, value in changes.items():
            setattr(vm, name, value)
        self._write(vm)
        return vm

    def _gone(self, vm: VmRow, reason: str, now: float) -> None:
        self._replace(vm, state="gone", reason=reason, since=now, gone_at=now)
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
