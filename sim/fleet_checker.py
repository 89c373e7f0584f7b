"""Invariants of machines: leases, VMs and the intents that own them. Part of `checker.Checker`.

Owns the leases that the boss confirmed. Reads committed rows, requests to the cloud, and the cloud's VMs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from boss.core.autoscale.held_pools import NOTE as HELD
from boss.core.autoscale.owed_vms import ASKED_FOR
from boss.core.model.config import BossConfig
from boss.core.model.rows import AttemptRow, BootRow, VmRow, WorkerRow
from ecloud.model.tasks import AttemptState
from ecloud.model.vm_states import VmState
from ecloud.model.worker_states import ON_DUTY, WorkerState
from sim.budgets import over_day, runs_over
from sim.cloud import Cloud, Life, host_key
from sim.invariants import Violation
from sim.store import Tables
from sim.world import World

_ROUNDING = 1e-6
JUST_NOW_S = 2.0


class FleetChecker:
    """Checks workers and VMs. Raises `Violation`."""

    def __init__(self, world: World, tables: Tables, config: BossConfig) -> None:
        self.world = world
        self.tables = tables
        self.lease_s = config.lease_s
        self.most = {pool.name: max(pool.minimum, pool.maximum) for pool in config.pools}
        self.least = {pool.name: pool.minimum for pool in config.pools}
        self.leases: dict[str, float] = {}
        """End of each worker's lease, as the boss confirmed it."""

        self.first_leases: dict[str, float] = {}
        """Time of the boss's first answer to each worker."""
        self.hearing_since: dict[str, float] = {}
        """Time since which a boss has a connection to the broker."""
        self.deaf_since: dict[str, float] = {}
        """Time since which it has none."""
        self.heard_s: dict[str, float] = {}
        """How long it had been connected at its last decision, in seconds."""
        self.decided_at: dict[str, float] = {}
        """Time of its last decision."""
        self.ends: dict[str, float] = {}
        """Time at which the machine of each worker process ends; infinity for others."""
        self.late_s: dict[str, float] = {}
        """How long ago a worker's Hello was sent, at most, when the boss read it."""
        self.looked = world.looked
        self.config = config
        self.given_up_at: dict[str, float] = {}
        """Time since which no row owns a VM, by boot nonce: its row is gone, or a restored database lacks it."""
        self.known: set[str] = set()
        """Boot nonces of VMs that had an intent."""
        self.forgotten: set[str] = set()
        """Boot nonces of VMs that a restored database lacked."""
        self.unseen: set[str] = set()
        """VMs, by the cloud's name, whose life was recorded only after the restored backup."""
        self.dismissed: set[str] = set()
        """Bosses that an operator ended to restore the database: their last calls may still reach the cloud."""
        self.withdrawn: set[int] = set()
        """VMs for which the cloud found no place, according to the boss."""
        self.holds: dict[str, str] = {}
        """Notes on held pools after the last commit."""
        self.killed: set[str] = set()
        """Worker processes that an operator killed, as the boss confirmed."""
        self.cloud: Cloud | None = None

    # --- restore ---------------------------------------------------------------------------------

    def on_restored(self, bosses: set[str]) -> None:
        """Note that the tables were replaced by a backup, after the operator ended these bosses."""
        assert self.cloud is not None
        rows = {row.boot_nonce: row for row in self.tables.vms.values()}
        self.leases.clear()
        self.killed &= {row.worker for row in self.tables.workers.values() if row.killed_at is not None}
        self.dismissed |= bosses
        self.forgotten = (self.forgotten | self.known) - rows.keys()
        for nonce in self.forgotten:
            self.given_up_at.setdefault(nonce, self.world.now)
        for nonce, row in rows.items():
            if row.state is not VmState.GONE:
                self.given_up_at.pop(nonce, None)
        recorded = {row.cloud_id for row in rows.values()}
        self.unseen |= {
            cloud_id
            for cloud_id, life in self.cloud.lives.items()
            if life.ended_at is not None and cloud_id not in recorded and _is_gone(rows.get(life.boot_nonce))
        }
        self.withdrawn = {row.vm_no for row in rows.values() if row.state is VmState.ENDING and row.cause == "no_place"}

    # --- workers ---------------------------------------------------------------------------------

    def on_lease(self, worker: str, sent_at: float) -> None:
        """Note that the boss answered the heartbeat that was sent at `sent_at`."""
        self.first_leases.setdefault(worker, self.world.now)
        self.leases[worker] = max(self.leases.get(worker, 0.0), sent_at + self.lease_s)

    def on_welcome(self, worker: str, sent_at: float) -> None:
        """Note that the boss answered the Hello that was sent at `sent_at`."""
        self.late_s[worker] = max(self.late_s.get(worker, 0.0), self.world.now - sent_at)

    def check_life(self, boss: str, worker: str, name: str, needs_s: float) -> None:
        """Check that a worker lives for the run time that the task of a new attempt states."""
        left_s = self.ends.get(worker, math.inf) - self.decided_at.get(boss, self.world.now)
        self.looked["outlived"] += left_s < math.inf
        if left_s + self.late_s.get(worker, 0.0) < needs_s - _ROUNDING:
            raise Violation(
                "outlived", f"{boss} gives {name} ({needs_s:.1f} s) to {worker}, which ends in {left_s:.1f} s"
            )

    def on_dead(self, worker: str) -> None:
        """Note that a worker process died: its lease has no holder."""
        self.leases.pop(worker, None)

    def on_hearing(self, boss: str) -> None:
        """Note that a boss connected to the broker."""
        self.hearing_since[boss] = self.world.now
        self.deaf_since.pop(boss, None)

    def on_deaf(self, boss: str) -> None:
        """Note that a boss lost its connection to the broker."""
        self.deaf_since[boss] = self.world.now

    def on_decided(self, boss: str) -> None:
        """Note the time of a decision whose commit comes later: the connection may change in between."""
        now = self.world.now
        hears = now - self.deaf_since.get(boss, now) < JUST_NOW_S
        self.heard_s[boss] = now - self.hearing_since.get(boss, now) if hears else 0.0

    def on_killed(self, workers: Iterable[str]) -> None:
        """Note the workers that the boss confirms to have killed for an operator."""
        self.killed.update(workers)

    def on_given(self, boss: str, row: AttemptRow) -> None:
        """Check that a killed worker gets no attempt."""
        self.looked["killed"] += bool(self.killed)
        if row.worker in self.killed and row.state is AttemptState.ASSIGNED:
            raise Violation("killed", f"{boss} assigns task {row.task_no} to {row.worker}, which an operator killed")

    def still_there(self, living: set[str]) -> list[str]:
        """Return the killed workers that still live."""
        return [f"worker {name} was killed by an operator, and lives" for name in sorted(self.killed & living)]

    def on_worker_row(self, boss: str, row: WorkerRow) -> None:
        """Check that a worker with a valid lease is not given up."""
        left_s = self.leases.get(row.worker, 0.0) - self.world.now
        self.looked["lease"] += row.state is WorkerState.LOST and row.worker in self.leases
        self.looked["patience"] += row.state is WorkerState.LOST
        if row.state is WorkerState.LOST and left_s > _ROUNDING:
            raise Violation("lease", f"{boss} gives {row.worker} up, whose lease lives for {left_s:.3f} s more")
        heard_s = self.heard_s.get(boss, 0.0)
        if row.state is WorkerState.LOST and heard_s < self.lease_s - _ROUNDING:
            raise Violation("patience", f"{boss} gives {row.worker} up after it could hear for {heard_s:.3f} s")

    # --- VMs -------------------------------------------------------------------------------------

    def on_vm_rows(self, boss: str, rows: dict[int, VmRow]) -> None:
        """Check changed VM rows: no more VMs than a pool's maximum, or than the budgets allow."""
        self.looked["turn"] += self.cloud is not None and bool(self.cloud.queue)
        for row in rows.values():
            self._on_withdrawn(boss, row)
            self._is_itself(boss, row)
            self._on_given_up(boss, row)
            if row.state is VmState.GONE:
                self.given_up_at.setdefault(row.boot_nonce, self.world.now)
            elif row.boot_nonce not in self.known:
                self._on_intent(boss, row)
            self.known.add(row.boot_nonce)
        counts = Counter(row.pool for row in self.tables.vms.values() if row.state is not VmState.GONE)
        for pool, count in counts.items():
            self.looked["maximum"] += count == self.most.get(pool, 0)
            if count > self.most.get(pool, 0):
                raise Violation("maximum", f"{boss} has {count} VMs of {pool}, of {self.most.get(pool, 0)} at most")

    def _is_itself(self, boss: str, row: VmRow) -> None:
        """Check that a row is that of the VM that the cloud made for it, and gone only if that VM is."""
        life = self.cloud.lives.get(row.cloud_id) if self.cloud is not None else None
        if life is None:
            return
        self.looked["other-vm"] += bool(self.forgotten)
        if life.boot_nonce != row.boot_nonce:
            raise Violation("other-vm", f"{boss} takes {row.cloud_id} of {life.boot_nonce} for {row.boot_nonce}")
        self.looked["vanished"] += row.state is VmState.GONE
        if row.state is VmState.GONE and life.ended_at is None:
            raise Violation("vanished", f"{boss} counts VM {row.boot_nonce} as gone, and {row.cloud_id} exists")

    def _on_withdrawn(self, boss: str, row: VmRow) -> None:
        """Check that no VM is withdrawn for lack of a place while its cloud still places VMs, one after another."""
        if row.state is not VmState.ENDING or row.cause != "no_place" or row.vm_no in self.withdrawn:
            return
        self.withdrawn.add(row.vm_no)
        assert self.cloud is not None
        idle_s = self.world.now - self.cloud.placed_at
        if idle_s < self.config.pending_s - self.config.list_vms_every_s - _ROUNDING:
            raise Violation("turn", f"{boss} withdraws VM {row.vm_no} although its cloud placed one {idle_s:.1f} s ago")

    def _on_given_up(self, boss: str, row: VmRow) -> None:
        """Check that a VM that its cloud queues is not given up."""
        assert self.cloud is not None
        if self.cloud.pending:
            self.looked["queued"] += 1
        if row.state is VmState.ENDING and row.cause and row.cloud_id in self.cloud.pending:
            raise Violation("queued", f"{boss} gives up VM {row.vm_no} ({row.reason}), which its cloud queues")

    def on_boot_rows(self, boss: str, rows: dict[int, BootRow]) -> None:
        """Check that a recorded boot was observed on the VM itself."""
        for row in rows.values():
            vm = self.tables.vms.get(row.vm_no)
            if vm is not None and vm.cloud_id and row.host_key not in ("", host_key(vm.cloud_id)):
                raise Violation(
                    "identity", f"{boss} takes the {row.host_key} for that of VM {row.vm_no}, {vm.cloud_id}"
                )

    def on_start_vm(self, boss: str, epoch: int, vm_no: int) -> None:
        """Check a request to the cloud for a VM."""
        if boss in self.dismissed:
            return
        self._must_lead(boss, epoch, f"asks for VM {vm_no}")
        self.looked["intent"] += 1
        if vm_no not in self.tables.vms:
            raise Violation("intent", f"{boss} asks for VM {vm_no}, whose intent is not committed")

    def note_holds(self) -> None:
        """Remember which pools are held after this commit: a VM that the same batch intended before it is allowed."""
        self.holds = {name: value for name, value in self.tables.context.items() if name.startswith(HELD)}
        self.looked["hold"] += bool(self.holds)

    def _on_intent(self, boss: str, row: VmRow) -> None:
        """Check a new intent against operators' holds and the budgets."""
        held = self.tables.context.get(HELD + row.pool)
        if held is not None and self.holds.get(HELD + row.pool) == held:
            raise Violation("hold", f"{boss} intends VM {row.vm_no} ({row.reason}) although pool {row.pool} is held")
        if ASKED_FOR in row.reason:
            return
        self.looked["budget"] += bool(self.config.vm_hours_per_day or self.config.vm_hours_per_run)
        over = over_day(self.tables, self.config.vm_hours_per_day, row)
        if not over and "minimum" not in row.reason:
            over = runs_over(self.tables)
        if over:
            raise Violation("budget", f"{boss} intends VM {row.vm_no} ({row.reason}) although {over}")

    def on_end_vm(self, boss: str, epoch: int, cloud_id: str) -> None:
        """Check the end of a VM: its row gave it up, and no current attempt runs on it."""
        assert self.cloud is not None
        if boss in self.dismissed:
            return
        life = self.cloud.lives[cloud_id]
        vm_no = life.vm_no
        self._must_lead(boss, epoch, f"ends VM {vm_no}")
        row = self.tables.vms.get(vm_no)
        if row is not None and row.boot_nonce != life.boot_nonce:
            row = None
        if row is None and life.boot_nonce not in self.forgotten:
            raise Violation("no-harm", f"{boss} ends VM {vm_no}, which is unknown")
        if row is not None and row.state not in (VmState.ENDING, VmState.GONE):
            raise Violation("no-harm", f"{boss} ends VM {vm_no}, which is {row.state}")
        if row is None or row.state is VmState.GONE:
            self._leave_agents_alone(boss, life)
            self.looked["grace"] += 1
            orphan_s = self.world.now - max(life.since - self.cloud.ahead_s, self.given_up_at[life.boot_nonce])
            if orphan_s < self.config.orphan_grace_s - _ROUNDING:
                raise Violation("grace", f"{boss} ends VM {vm_no}, which has had no owner for {orphan_s:.1f} s only")
        # All its processes: attempts that a newer process took over are recorded as assigned to the one before it.
        processes = {worker.worker: worker for worker in self.tables.workers.values() if _runs_on(worker, life)}
        reason = row.reason if row is not None else "a restored database lacks it"
        killed = any(worker.reason == f"killed: {ASKED_FOR}" for worker in processes.values())
        if ASKED_FOR in reason or killed or not any(worker.state in ON_DUTY for worker in processes.values()):
            return
        self.looked["no-harm"] += 1
        for key, attempt in self.tables.attempts.items():
            if attempt.worker in processes and attempt.state in (AttemptState.ASSIGNED, AttemptState.STARTED):
                raise Violation("no-harm", f"{boss} ends VM {vm_no} ({reason}), which runs attempt {key}")

    def _must_lead(self, boss: str, epoch: int, does: str) -> None:
        """Check that no other boss began to lead between the commit and the call that follows it."""
        if epoch != self.tables.epoch:
            raise Violation("one-boss", f"{boss} {does} in epoch {epoch}, which has ended: {self.tables.epoch} leads")

    def _leave_agents_alone(self, boss: str, life: Life) -> None:
        """Check that a VM without an intent is not ended while its agent is on duty, unless the agent has just come."""
        for worker in self.tables.workers.values():
            ours = _runs_on(worker, life) and worker.state in ON_DUTY
            came_s = self.world.now - self.first_leases.get(worker.worker, self.world.now)
            if ours and came_s > JUST_NOW_S and self.leases.get(worker.worker, 0.0) > self.world.now:
                raise Violation("no-harm", f"{boss} ends VM {life.vm_no}, whose agent {worker.worker} is on duty")

    # --- in the end ------------------------------------------------------------------------------

    def not_at_the_floor(self) -> list[str]:
        """Return why the fleet is larger than its floor."""
        left = []
        counts = Counter(
            row.pool for row in self.tables.vms.values() if row.state is not VmState.GONE and not row.keep_alive
        )
        for pool, count in counts.items():
            if count > self.least.get(pool, 0):
                left.append(f"pool {pool} has {count} VMs, its floor is {self.least.get(pool, 0)}")
        return left

    def not_owned(self, cloud: Cloud) -> list[str]:
        """Return the cluster's VMs in the cloud that no row owns."""
        rows = {row.boot_nonce for row in self.tables.vms.values() if row.state is not VmState.GONE}
        return [
            f"{cloud_id} exists, and no row owns it (intent {vm_no})"
            for cloud_id, (vm_no, _) in cloud.living.items()
            if cloud.lives[cloud_id].boot_nonce not in rows
        ]

    @property
    def lost(self) -> set[str]:
        """VMs, by the cloud's name, that the database knew only before it was restored from a backup."""
        lives = self.cloud.lives if self.cloud is not None else {}
        return self.unseen | {cloud_id for cloud_id, life in lives.items() if life.boot_nonce in self.forgotten}


def _is_gone(row: VmRow | None) -> bool:
    return row is not None and row.state is VmState.GONE


def _runs_on(worker: WorkerRow, life: Life) -> bool:
    return worker.key_name == f"vm-{life.vm_no}" and worker.hello.boot_nonce == life.boot_nonce
