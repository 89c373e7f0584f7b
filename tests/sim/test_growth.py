"""A day of steady load: neither the boss's memory nor the tables grow, with old runs archived."""

from __future__ import annotations

import msgspec
import pytest

from boss.core.model.config import BossConfig
from ecloud.model.wire import PushOptions
from sim import memory
from sim.faults import Faults
from sim.scenario import Size, make_tasks
from sim.simulation import Simulation

HOUR_S = 3600.0
PUSH_EVERY_S = 600.0
KEEP_S = 2 * HOUR_S


class SteadyDay(Simulation):
    """Three machines and a push every ten minutes, watched by who pushed it."""

    def _make_config(self) -> BossConfig:
        self.gpus = 0
        usual = super()._make_config()
        return msgspec.structs.replace(
            usual, pools=(), heartbeat_s=20.0, lease_s=120.0, keep_runs_s=KEEP_S, sweep_every_s=600.0
        )

    def push(self, number: int) -> None:
        """One more run."""
        name = f"run{number}"
        tasks = make_tasks(self.world, name, 12, self.size)
        client = self.clients[0]
        client.push(f"push-{number}", PushOptions(run=name), tasks)
        client.ask(f"watch-{number}", "watch", run=name)

    def sizes(self) -> dict[str, int]:
        """What core and tables hold."""
        core = next(boss.core for boss in self.bosses if boss.alive and boss.core is not None)
        tables = self.tables
        rows = {
            "rows of runs": len(tables.runs),
            "rows of tasks": len(tables.tasks),
            "rows of attempts": len(tables.attempts),
            "rows of pushes": len(tables.pushes),
            "rows of workers": len(tables.workers),
            "rows of VMs": len(tables.vms),
            "rows of pools": len(tables.pools),
            "rows of boots": len(tables.boots),
            "rows of the context": len(tables.context),
            "definitions": len(tables.stored),
            "labels": len(tables.labels),
            "times of change": len(tables.changed_at),
        }
        return {**memory.sizes(core), **rows}


@pytest.mark.long
def test_a_day_of_steady_load_leaves_memory_and_tables_flat() -> None:
    size = Size(runs=(0, 0), wishes=(0, 0), workers=(3, 3), troubled_s=1e9, most_steps=1_000_000)
    sim = SteadyDay(5, Faults(), size)
    most: dict[str, list[int]] = {}
    pushes = 0
    for hour in range(24):
        for _ in range(int(HOUR_S / PUSH_EVERY_S)):
            sim.push(pushes)
            pushes += 1
            sim._step_for(PUSH_EVERY_S)
            for name, count in sim.sizes().items():
                by_hour = most.setdefault(name, [0] * 24)
                by_hour[hour] = max(by_hour[hour], count)
    assert len(sim.tables.archived_runs) > pushes / 2, "old runs were not archived"
    answers = {"push answers", "request answers"}  # bounded by their own limits, not by time
    for name, by_hour in most.items():
        early, late = max(by_hour[4:12]), max(by_hour[16:24])
        assert late <= early * 1.2 + 5 or name in answers, f"{name} grow: {by_hour}"
