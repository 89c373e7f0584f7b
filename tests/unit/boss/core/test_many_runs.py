"""Thousands of runs that wait: the fair order between runs, and how many groups of tasks a batch reads."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from boss.core.model.graph import Node
from boss.core.model.ready_tasks import Group, ReadyTasks
from ecloud.model.wire import StartTasks
from tests.support.boss_script import BossScript, task

RUNS = 300


def count_looks(act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many groups of ready tasks the boss reads."""
    looks = 0
    first = ReadyTasks.first

    def counted(self: ReadyTasks, group: Group) -> Node | None:
        nonlocal looks
        looks += 1
        return first(self, group)

    with monkeypatch.context() as patch:
        patch.setattr(ReadyTasks, "first", counted)
        act()
    return looks


@pytest.fixture
def waiting() -> BossScript:
    """A boss with many runs of one ready task each, and a worker whose slot and queue are full."""
    script = BossScript(ahead_max=0)
    script.worker("w1", cpus=1)
    for number in range(RUNS):
        script.push(f"r{number}", task(f"t{number}"))
    return script


def test_runs_without_room_cost_a_batch_nothing(waiting: BossScript, monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_looks(waiting.handle, monkeypatch) <= 10


def test_a_free_slot_costs_what_is_placed_not_what_waits(waiting: BossScript, monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_looks(lambda: waiting.worker("w2", cpus=3), monkeypatch) <= 50
    assert len(waiting.store.attempts) == 4


@pytest.mark.parametrize("seed", range(10))
def test_the_run_that_holds_least_is_next_then_the_oldest(seed: int) -> None:
    chance = random.Random(seed)
    script, left = BossScript(ahead_max=0), {}
    for number in range(8):
        count = chance.randint(1, 5)
        script.push(f"r{number}", *[task(f"{number}-{index}") for index in range(count)])
        left[number] = [f"{number}-{index}" for index in range(count)]
    held = dict.fromkeys(left, 0)
    for name in ("w1", "w2", "w3"):
        expected, slots = [], chance.randint(1, 6)
        for _ in range(slots):
            if any(left.values()):
                run = min((number for number in left if left[number]), key=lambda number: (held[number], number))
                expected.append(left[run].pop(0))
                held[run] += 1
        worker = script.worker(name, cpus=slots)
        if expected:
            orders = script.take(worker, StartTasks).attempts
            names = {number: id for id, number in script.names.items()}
            assert [names[order.task_no] for order in orders] == expected
