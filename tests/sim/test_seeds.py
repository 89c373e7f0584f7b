"""Fifty small worlds in which everything goes wrong that a seed draws; and a few in which nothing does."""

from __future__ import annotations

from collections import Counter

import pytest

from sim import faults, simulation, story
from sim.scenario import Size

BLOCK = 25


@pytest.mark.parametrize("first", range(1, 51, BLOCK))
def test_everything_ends_well_whatever_goes_wrong(first: int) -> None:
    for seed in range(first, first + BLOCK):
        result = simulation.run(seed)
        assert not result.problem, story.tell(result)
        assert result.completions


def test_everything_ends_well_where_nothing_goes_wrong() -> None:
    for seed in range(1, 21):
        result = simulation.run(seed, allowed=())
        assert not result.problem, story.tell(result, " --options none")
        assert result.fired == {}


@pytest.mark.parametrize("name", [name for name in faults.NAMES if name != "call_lost"])
def test_each_fault_alone_truly_happens_and_is_survived(name: str) -> None:
    """At its highest probability."""
    fired: Counter[str] = Counter()
    for seed in range(1, 100):
        alone = faults.Faults(**{name: getattr(faults.MOST, name)})
        result = simulation.Simulation(seed, alone).run()
        assert not result.problem, story.tell(result, f" --options {name}")
        fired.update(result.fired)
        if seed >= 5 and fired[name]:
            break
    assert fired[name], "it never happened"


def test_a_large_run_ends() -> None:
    size = Size(
        tasks=(2_000, 2_000), runs=(1, 1), wishes=(0, 0), workers=(8, 8), task_s=0.05, troubled_s=5.0, arrays=0.0,
        programs=0.0,
    )  # fmt: skip
    result = simulation.run(7, allowed=(), size=size, fails=False)
    assert not result.problem, story.tell(result, " --options none")
    assert result.completions == 2_000
