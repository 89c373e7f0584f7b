"""The simulation itself: the same seed is the same story, and what is broken on purpose is found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from boss.core.model.graph import TaskGraph
from boss.core.tasks.attempts import Attempts
from boss.core.workers.sessions import Sessions
from ecloud.model.tasks import Outcome
from sim import faults, simulation, story
from sim.world import World
from worker.core.events import WorkerConfig
from worker.core.worker_core import WorkerCore


def first_wrong(seeds: Iterable[int], allowed: tuple[str, ...] = faults.NAMES) -> simulation.Result | None:
    """The first of these seeds in which something is found."""
    return next((result for seed in seeds if (result := simulation.run(seed, allowed)).problem), None)


def test_things_happen_in_the_order_of_their_time_then_of_their_making() -> None:
    world, seen = World(1), []
    world.after(2.0, lambda: seen.append("late"))
    world.after(1.0, lambda: seen.append("first"))
    world.after(1.0, lambda: seen.append("second"))
    while world.step():
        pass
    assert seen == ["first", "second", "late"]
    assert world.passed_s == 2.0


def test_the_same_seed_is_the_same_story_to_the_last_bit() -> None:
    for seed in (3, 11, 42):
        once, again = simulation.run(seed), simulation.run(seed)
        assert once == again
        assert once.trace_hash == again.trace_hash
    assert simulation.run(3).trace_hash != simulation.run(4).trace_hash


def test_another_process_tells_the_same_story() -> None:
    """Whatever the hash seed of that process is: no set decides anything."""
    program = "from sim import simulation; print(simulation.run(12).trace_hash)"
    told = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    ]
    assert told == [simulation.run(12).trace_hash] * 2


def test_a_story_names_the_seed_the_trouble_and_how_to_see_it_again() -> None:
    result = simulation.run(5)
    text = story.tell(result, " --options lose", lines=10)
    assert "again: python -m sim --seed 5 --options lose" in text
    assert result.trace_hash in text
    assert len(text.splitlines()) == 15


# --- broken on purpose -------------------------------------------------------------------------------


def test_a_worker_that_forgets_its_spool_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = WorkerCore.__init__

    def forgetful(self: WorkerCore, config: WorkerConfig, now: float) -> None:
        begin(self, msgspec.structs.replace(config, spooled=()), now)

    monkeypatch.setattr(WorkerCore, "__init__", forgetful)
    wrong = first_wrong(range(1, 51))
    assert wrong is not None
    assert "in its spool" in wrong.problem


def test_a_worker_that_obeys_an_order_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    obey = WorkerCore._on_message

    def gullible(self: WorkerCore, envelope: Any, now: float) -> None:
        self._seen = 0
        obey(self, envelope, now)

    monkeypatch.setattr(WorkerCore, "_on_message", gullible)
    wrong = first_wrong(range(1, 51))
    assert wrong is not None
    assert "twice" in wrong.problem or "[fenced]" in wrong.problem


def test_a_boss_that_answers_outcomes_it_did_not_record_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Attempts._record

    def careless(self: Attempts, worker: Any, attempt: Any, outcome: Outcome, now: float) -> None:
        if outcome.task_no % 7:
            record(self, worker, attempt, outcome, now)

    monkeypatch.setattr(Attempts, "_record", careless)
    wrong = first_wrong(range(1, 51))
    assert wrong is not None
    assert "is stored" in wrong.problem


def test_a_boss_that_starts_what_must_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the core itself does not notice."""
    wait = TaskGraph.wait

    def hasty(self: TaskGraph, node: Any, dependencies: Any) -> None:
        wait(self, node, dependencies if len(dependencies) < 2 else dependencies[:-1])

    monkeypatch.setattr(TaskGraph, "wait", hasty)
    wrong = first_wrong(range(1, 51), allowed=())
    assert wrong is not None
    assert "is given although" in wrong.problem


def test_a_boss_that_uses_names_of_sessions_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It happened: after a refused batch a new core began within the same epoch."""
    begin = Sessions.__init__

    def repeating(self: Sessions, outbox: Any, config: Any, now: float) -> None:
        begin(self, outbox, config, 0.0)

    monkeypatch.setattr(Sessions, "__init__", repeating)
    wrong = first_wrong(range(1, 201), allowed=("commit_refused",))
    assert wrong is not None
    assert "after all is well" in wrong.problem
