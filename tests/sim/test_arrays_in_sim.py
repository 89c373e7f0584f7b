"""Arrays in whole simulations: two large ones, one behind the other element by element, with and without faults."""

from __future__ import annotations

import pytest

from ecloud.model.tasks import ArrayOf, Dependency, TaskDefinition
from ecloud.model.wire import PushOptions
from sim import story
from sim.faults import Faults
from sim.scenario import Size
from sim.simulation import Result, Simulation
from sim.worker_shell import command


def run_pair(count: int, faults: Faults, steps: int, workers: int = 8) -> Result:
    """Two arrays of this many elements; the second waits for the first element by element, and one task for both."""
    size = Size(
        tasks=(1, 1), runs=(1, 1), wishes=(0, 0), workers=(workers, workers), arrays=0.0, programs=0.0,
        most_steps=steps, heartbeat_s=3.0, troubled_s=20.0,
    )  # fmt: skip
    simulation = Simulation(11, faults, size, fails=False)
    first = TaskDefinition("first", (command(0.001, 0.0),), array=ArrayOf(f"1-{count}"))
    second = TaskDefinition(
        "second", (command(0.001, 0.0),), (Dependency("first", each=True),), array=ArrayOf(f"1-{count}")
    )
    end = TaskDefinition("end", (command(0.001, 0.0),), (Dependency("first"), Dependency("second")))
    simulation.scenario.runs["pair"] = [first, second, end]
    simulation.clients[0].push("pair", PushOptions(run="pair"), [first, second, end])
    result = simulation.run()
    assert not result.problem, story.tell(result, "")
    rows = [row for row in simulation.tables.tasks.values() if row.id.startswith(("first", "second", "end"))]
    assert len(rows) == 2 * count + 3
    assert {str(row.state) for row in rows} == {"succeeded"}
    return result


def test_a_pair_of_arrays_with_bosses_that_die() -> None:
    result = run_pair(300, Faults(boss_death=0.01, worker_death=0.01, lose=0.02), 3_000_000)
    assert result.fired["boss_death"]
    assert result.looked["elements"] >= 600


@pytest.mark.long
def test_a_pair_of_arrays_of_a_hundred_thousand_elements() -> None:
    run_pair(100_000, Faults(), 100_000_000, workers=16)
