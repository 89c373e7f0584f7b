"""Days of a cluster with a cloud, a wave of work every so often: nothing that boss, workers and tables hold grows.

VMs come and go by the hundred, some never boot, some vanish; two machines stay all the time; people come, push and
leave, politely or not. The test measures every container that can be reached from the core of a boss that lives all
the time, from the cores of two such workers, and every table. The load of each hour is the same.
"""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

import worker.core.attempts as worker_attempts
from boss.core.autoscale import daily_budget
from boss.core.clients import pushes, requests
from boss.core.model import runtime_estimates
from boss.core.model.config import BossConfig, PoolConfig
from boss.core.tasks import input_locality
from boss.core.workers import sessions
from ecloud.model.tasks import TaskDefinition
from ecloud.model.wire import PushOptions
from sim import client, containers
from sim.boss_shell import BossProcess
from sim.client import Client
from sim.faults import Faults
from sim.scenario import Size, make_tasks
from sim.simulation import Simulation
from sim.worker_shell import command
from sim.world import World

HOUR_S = 3600.0
WAVE_EVERY_S = 600.0
WAVES_AN_HOUR = int(HOUR_S / WAVE_EVERY_S)
WAVES_A_STAY = 3
"""Number of waves for which a client stays."""
SLACK, FEW = 1.3, 12
"""How much more the late hours may have than the early ones: what is drawn each hour is not the same."""
BY_DESIGN = ("tables: Tables.archived_runs", "tables: Tables.archived_runs[]")
"""A line of each run is kept for ever."""
FAULTS = Faults(
    vm_refused=0.02,
    vm_slow=0.05,
    vm_never=0.03,
    vm_late=0.03,
    vm_vanishes=0.0002,
    vm_off=0.0002,
    link_cut=0.0002,
)


class CloudyDays(Simulation):
    """`kept_s`: how long runs, and machines that are gone, are kept."""

    def __init__(self, seed: int, kept_s: float) -> None:
        self.kept_s = kept_s
        size = Size(runs=(0, 0), wishes=(0, 0), workers=(0, 0), task_s=400.0, troubled_s=1e9, most_steps=100_000_000)
        super().__init__(seed, msgspec.structs.replace(FAULTS), size)
        self.visitors: list[Client] = []
        self.waves = 0
        self.most: dict[str, list[int]] = {}
        """By what it counts: the most of each hour."""
        for _ in range(2):
            self.add_machine()

    def _make_config(self) -> BossConfig:
        self.gpus = 0
        usual = super()._make_config()
        pool = PoolConfig(
            "vms", {"cpus": 2.0, "memory_mb": 4000.0}, maximum=8, idle_s=60.0, boot_s=30.0, tells_room=True
        )
        self.cloud.most = None
        return msgspec.structs.replace(
            usual, pools=(pool,), heartbeat_s=20.0, lease_s=120.0, keep_runs_s=self.kept_s, keep_machines_s=self.kept_s,
            starts_a_minute=30, sweep_every_s=600.0, vm_hours_per_run=1.0, vm_hours_per_day=1000.0,
            list_vms_every_s=20.0,
        )  # fmt: skip

    def wave(self) -> None:
        """A client comes, pushes one more run and watches it; the client of some waves ago leaves."""
        self.waves += 1
        name = f"run{self.waves}"
        visitor = Client(f"v{self.waves}", self.world, self.network)
        self.visitors.append(visitor)
        if len(self.visitors) > WAVES_A_STAY:
            self.visitors.pop(0).leave(politely=self.waves % 2 == 0)
        visitor.push(f"push-{self.waves}", PushOptions(run=name, vm_hours=0.5 * (self.waves % 3)), self.tasks(name))
        visitor.ask(f"watch-{self.waves}", "watch", run=name)
        if self.waves % 7 == 0:
            visitor.ask(f"cancel-{self.waves}", "cancel", run=f"run{self.waves - 1}")
        if self.waves % 11 == 0:
            visitor.ask(f"redo-{self.waves}", "redo_task", run=f"run{self.waves - 2}")

    def tasks(self, name: str) -> list[TaskDefinition]:
        """The same every hour, but that some have a label which no other wave has."""
        made = make_tasks(World(self.waves % WAVES_AN_HOUR), name, 20, self.size)
        made += [TaskDefinition(f"u{n}", (command(120.0, 0.0),), resources={"cpus": 2.0}) for n in range(4)]
        return [msgspec.structs.replace(task, labels=task.labels and (f"of-{name}",)) for task in made]

    def live(self, hours: int) -> None:
        """Hour by hour."""
        for hour in range(hours):
            for _ in range(WAVES_AN_HOUR):
                self.wave()
                self._step_for(WAVE_EVERY_S)
                for name, count in self.sizes().items():
                    by_hour = self.most.setdefault(name, [])
                    by_hour += [0] * (hour + 1 - len(by_hour))
                    by_hour[hour] = max(by_hour[hour], count)

    def sizes(self) -> Counter[str]:
        """What core, tables and the two workers that stay hold."""
        found: Counter[str] = Counter()
        found.update({f"boss: {name}": count for name, count in containers.sizes(self.leader().core).items()})
        found.update({f"tables: {name}": count for name, count in containers.sizes(self.tables).items()})
        for machine in self.machines.values():
            if not machine.of_cloud and machine.process is not None:
                core = containers.sizes(machine.process.core)
                found.update({f"workers: {name}": count for name, count in core.items()})
        return found

    def leader(self) -> BossProcess:
        """The boss that leads."""
        return next(boss for boss in self.bosses if boss.alive and boss.core is not None)


def lower_limits(patch: pytest.MonkeyPatch) -> None:
    """What is bounded by a number or by a day reaches its bound within the first hours."""
    for module, name, value in (
        (input_locality, "KEPT", 6),
        (pushes, "ANSWERS_KEPT", 4),
        (requests, "ANSWERS_KEPT", 4),
        (runtime_estimates, "KINDS_KEPT", 40),
        (sessions, "MAX_PENDING", 20),
        (daily_budget, "DAY_S", HOUR_S),
        (worker_attempts, "INITS_KEPT", 10),
    ):
        patch.setattr(module, name, value)
    patch.setattr(client, "AGAIN_S", 20.0)  # programs of people speak as often as workers


def grown(most: dict[str, list[int]], early: range, late: range) -> list[str]:
    """What holds more in the late hours than in the early ones."""
    found = []
    for name, by_hour in sorted(most.items()):
        before = max((by_hour[hour] for hour in early if hour < len(by_hour)), default=0)
        after = max((by_hour[hour] for hour in late if hour < len(by_hour)), default=0)
        if after > before * SLACK + FEW and name not in BY_DESIGN:
            found.append(f"{name}: {by_hour}")
    return found


@pytest.mark.long
def test_half_a_day_of_vms_that_come_and_go_leaves_memory_and_tables_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept are runs and machines of the last hour."""
    lower_limits(monkeypatch)
    sim = CloudyDays(3, HOUR_S)
    sim.live(12)
    assert sim.tables.next_vm_no > 100, "the pool did not follow the waves"
    assert not grown(sim.most, range(3, 6), range(9, 12))


@pytest.mark.long
@pytest.mark.timeout(1_200)
def test_two_days_of_vms_that_come_and_go_leaves_memory_and_tables_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept are runs and machines of the last twelve hours."""
    lower_limits(monkeypatch)
    sim = CloudyDays(4, 12 * HOUR_S)
    sim.live(2 * 24)
    assert sim.tables.next_vm_no > 800, "the pool did not follow the waves"
    assert not grown(sim.most, range(15, 24), range(39, 48))
