"""What the core forgets goes at once, so that a boss need not search all that it remembers for cycles."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator

import pytest

from boss.shell import gc_pauses
from boss.shell.gc_pauses import Cycles
from sim import faults
from sim.simulation import Simulation

SEEDS = range(20)


@pytest.fixture(autouse=True)
def _own_collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    gc.enable()
    gc.collect()


def _of_the_boss(thing: object) -> bool:
    maker = thing if callable(thing) and hasattr(thing, "__module__") else type(thing)
    return str(maker.__module__ or "").startswith("boss")


def test_the_core_makes_no_cycles() -> None:
    """Whole runs of the simulation, pushes to ends: nothing of the boss is left for Python's search to find."""
    found: list[str] = []
    lived = 0
    for seed in SEEDS:
        gc.collect()
        gc.disable()
        world = Simulation(seed, faults.draw(random.Random(seed + 1), ("none",)))
        assert not world.run().problem
        one_boss = world._boss_count == 1  # a replaced core is a cycle, and its process has ended
        lived += one_boss
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        found += [repr(thing)[:200] for thing in gc.garbage if one_boss and _of_the_boss(thing)]
        gc.garbage.clear()
        del world
    assert lived > 5
    assert not found


class _Knot:
    def __init__(self) -> None:
        self.itself = self


def test_what_grew_old_is_set_aside_and_searched_again_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the knot of a library that had grown old is found, once there is nothing else to do."""
    monkeypatch.setattr(gc_pauses, "FEW_OBJECTS", 100_000_000)  # a process that tests has more than a boss at rest
    collector = Cycles()
    collector.begin(0.0)
    before = gc.get_freeze_count()
    knot = _Knot()
    gone: list[str] = []
    knot.__dict__["told"] = _Tells(gone)
    kept = []
    for number in range(200_000):
        kept.append([number])
        collector.after_batch()
    assert gc.get_freeze_count() > before + 100_000
    del knot, kept
    gc.collect()
    assert not gone, "it is set aside"
    collector.at_rest(gc_pauses.SEARCHED_EVERY_S - 1)
    assert not gone
    collector.at_rest(gc_pauses.SEARCHED_EVERY_S)
    assert gone == ["gone"]


@pytest.mark.parametrize("a_batch", [6_000, 39_000, 200_000])
def test_no_search_visits_many_objects(monkeypatch: pytest.MonkeyPatch, a_batch: int) -> None:
    """However large the batches are whose objects stay."""
    visited: list[int] = []
    search = gc.collect

    def count(generation: int = 2) -> int:
        visited.append(sum(len(gc.get_objects(young)) for young in range(generation + 1)))
        return search(generation)

    collector = Cycles()
    collector.begin(0.0)
    monkeypatch.setattr(gc, "collect", count)
    kept = []
    for _ in range(12):
        kept.append([[number] for number in range(a_batch)])
        collector.after_batch()
    assert max(visited, default=0) < 2 * gc_pauses.MANY
    assert gc.get_freeze_count() > 8 * a_batch


class _Tells:
    def __init__(self, told: list[str]) -> None:
        self._told = told

    def __del__(self) -> None:
        self._told.append("gone")


def test_a_boss_that_remembers_much_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold the loop."""
    monkeypatch.setattr(gc_pauses, "FEW_OBJECTS", 0)
    collector = Cycles()
    collector.begin(0.0)
    count = gc.get_freeze_count()
    kept = [[number] for number in range(1_000)]
    collector.at_rest(10 * gc_pauses.SEARCHED_EVERY_S)
    # The kept ones are not frozen. Others may go meanwhile: a frozen object without references is freed.
    assert gc.get_freeze_count() < count + len(kept)


def test_how_much_is_remembered_is_not_counted_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting walks all of it, and a boss is at rest many times a second."""
    monkeypatch.setattr(gc_pauses, "FEW_OBJECTS", 0)
    counted: list[int] = []
    count = gc.get_freeze_count
    monkeypatch.setattr(gc, "get_freeze_count", lambda: counted.append(count()) or counted[-1])
    collector = Cycles()
    collector.begin(0.0)
    for tenth in range(100):
        collector.at_rest(gc_pauses.SEARCHED_EVERY_S + tenth / 10)
    assert len(counted) == 1
    collector.at_rest(2 * gc_pauses.SEARCHED_EVERY_S)
    assert len(counted) == 2
