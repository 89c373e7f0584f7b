"""A cloud that has less room than is asked for: all of it is used, and one sentence says why it is not more."""

from __future__ import annotations

import msgspec

from boss.core.model.config import BossConfig, PoolConfig
from ecloud.model.tasks import TaskDefinition
from ecloud.model.wire import PushOptions
from sim import story
from sim.faults import Faults
from sim.scenario import Size
from sim.simulation import Result, Simulation
from sim.store import Tables
from sim.worker_shell import command

ADDRESSES = 255
SIZE = Size(runs=(0, 0), wishes=(0, 0), workers=(0, 0), troubled_s=100.0)
TASKS = [TaskDefinition(f"t{number}", (command(60.0, 0.0),), runtime_s=60.0) for number in range(300)]
FULL = "pool vms has room for no more VMs (network lab has 0 free addresses of 255)"


class FullCloud(Simulation):
    """A pool that may have 300 VMs, at a cloud with 255 addresses."""

    most_alive = 0
    told: set[str]

    def _make_config(self) -> BossConfig:
        self.told = set()
        self.cloud.most = ADDRESSES
        pool = PoolConfig("vms", {"cpus": 1.0, "memory_mb": 4000.0}, maximum=300, idle_s=10.0, tells_room=True)
        return msgspec.structs.replace(super()._make_config(), pools=(pool,), starts_under_way=400, heartbeat_s=5.0)

    def _step_for(self, seconds: float) -> None:
        super()._step_for(seconds)
        self.most_alive = max(self.most_alive, len(self.cloud.living))
        self.told.update(_closed(self.tables))


def _closed(tables: Tables) -> set[str]:
    return {row.closed for row in tables.pools.values() if row.closed}


def _run(seed: int, faults: Faults) -> tuple[FullCloud, Result]:
    world = FullCloud(seed, faults, SIZE, fails=False)
    world.clients[0].push("push", PushOptions(run="wide"), TASKS)
    return world, world.run()


def test_of_300_vms_of_a_network_of_255_addresses_255_work_and_one_sentence_says_why() -> None:
    world, result = _run(3, Faults())
    assert not result.problem, story.tell(result)
    assert result.completions == 300
    assert world.most_alive == ADDRESSES
    assert world.told == {FULL}
    assert not world.cloud.living
    assert not [row for row in world.tables.vms.values() if row.cause.startswith("refused")], "no request was refused"
