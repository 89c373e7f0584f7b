"""Big inputs in the simulation: tasks go where these are, so less is fetched, and no task waits longer for it."""

from __future__ import annotations

import random

import msgspec
import pytest

from boss.core.clients import pushes
from boss.core.model.config import BossConfig
from ecloud.model.tasks import Requirement, TaskDefinition
from ecloud.model.wire import PushOptions
from sim import faults as faults_of
from sim import story
from sim.faults import Faults
from sim.scenario import Size
from sim.simulation import Simulation
from sim.worker_shell import command

BIG, INPUTS, TASKS = 200_000_000, 8, 240
SIZE = Size(runs=(0, 0), wishes=(0, 0), workers=(0, 0), troubled_s=1.0)
LONGEST = 1.1
"""Of the time it takes without the preference: which task comes last is chance."""


class World(Simulation):
    """Eight machines; 240 tasks of some seconds in a list that mixes eight inputs, which take 2 s to fetch."""

    shortest_s, longest_s = 2.0, 6.0
    ahead_s = 0.0

    def _make_config(self) -> BossConfig:
        return msgspec.structs.replace(super()._make_config(), pools=(), ahead_s=self.ahead_s)

    def begin(self) -> World:
        self.shared_machine = 0.0
        for _ in range(8):
            self.add_machine()
        self.datastore.big = {f"big/{number}": BIG for number in range(INPUTS)}
        self.datastore.final.update(dict.fromkeys(self.datastore.big, "big"))
        chance = random.Random(self.world.seed)
        tasks = []
        for number in range(TASKS):
            path = f"big/{chance.randrange(INPUTS)}"
            seconds = chance.uniform(self.shortest_s, self.longest_s)
            tasks.append(
                TaskDefinition(
                    f"t{number}",
                    (command(seconds, 0.0),),
                    requirements=(Requirement(path, "in"),),
                    runtime_s=seconds,
                )
            )
        self.clients[0].push("push", PushOptions(run="mixed"), tasks)
        return self

    def took_s(self) -> float:
        """From the first task that was given to the end of the last."""
        rows = self.tables.attempts.values()
        return max(row.ended_at or 0.0 for row in rows) - min(row.assigned_at for row in rows)


class ShortWorld(World):
    """With a queue ahead as it is usually set, and tasks that fit into it."""

    shortest_s, longest_s = 0.05, 0.5
    ahead_s = BossConfig().ahead_s


def _run(seed: int, faults: Faults, size: Size = SIZE, kind: type[World] = World) -> World:
    world = kind(seed, faults, size, fails=False).begin()
    result = world.run()
    assert not result.problem, story.tell(result)
    assert all(task.state == "succeeded" for task in world.tables.tasks.values())
    return world


@pytest.mark.parametrize("kind", [World, ShortWorld])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_less_is_fetched_and_it_takes_no_longer(seed: int, kind: type[World], monkeypatch: pytest.MonkeyPatch) -> None:
    preferring = _run(seed, Faults(), kind=kind)
    monkeypatch.setattr(pushes, "note_shared", lambda *_: None)
    anywhere = _run(seed, Faults(), kind=kind)
    assert preferring.datastore.moved_bytes <= 0.5 * anywhere.datastore.moved_bytes
    assert preferring.took_s() <= LONGEST * anywhere.took_s()


@pytest.mark.parametrize("seed", range(4, 10))
def test_whatever_goes_wrong_every_task_gets_its_turn(seed: int) -> None:
    faults = faults_of.draw(random.Random(seed + 1), faults_of.NAMES)
    _run(seed, faults, msgspec.structs.replace(SIZE, troubled_s=40.0))
