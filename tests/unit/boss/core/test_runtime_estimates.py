"""What is believed of how long tasks take."""

from __future__ import annotations

import pytest
from boss_script import BossScript, task

from boss.core.model import runtime_estimates
from boss.core.model.graph import Node, Shapes
from boss.core.model.runtime_estimates import SAMPLES, SHORTEST_S, UNKNOWN_S, Runtimes
from ecloud.model.tasks import Retries, TaskState

SHAPE = Shapes().of({"cpus": 1.0})


def node(label: str = "some", runtime_s: float | None = None, run_no: int = 1) -> Node:
    return Node(1, run_no, "t", TaskState.READY, SHAPE, Retries(), label, runtime_s=runtime_s)


def learned(*run_s: float, label: str = "some") -> Runtimes:
    known = Runtimes()
    for seconds in run_s:
        known.learn(node(label), seconds)
    return known


def test_the_stated_run_time_counts_until_one_was_seen() -> None:
    assert Runtimes().guess_s(node(), 1) == UNKNOWN_S
    assert Runtimes().guess_s(node(runtime_s=7.0), 1) == 7.0
    assert learned(3.0).guess_s(node(runtime_s=7.0), 1) == 3.0
    assert learned(3.0).guess_s(node("other", runtime_s=7.0), 1) == 7.0


def test_of_many_that_began_together_the_first_to_end_are_the_shortest() -> None:
    """Ten can run at once: after three of them it is not believed that all are as short."""
    few, all_ = learned(0.01, 0.02, 0.03), learned(*[0.01] * 10)
    assert few.guess_s(node(), 10) == UNKNOWN_S
    assert few.guess_s(node(runtime_s=0.5), 10) == 0.5
    assert learned(30.0, 20.0, 40.0).guess_s(node(), 10) == 30.0
    assert all_.guess_s(node(), 10) == 0.01
    assert few.guess_s(node(), 3) == 0.02


def test_what_was_believed_once_is_believed_when_more_workers_come() -> None:
    known = learned(*[0.01] * 10)
    assert known.guess_s(node(), 10) == known.guess_s(node(), 100) == 0.01


def test_the_median_follows_a_change() -> None:
    known = learned(*[1.0] * 100, *[5.0] * 2 * SAMPLES)
    assert known.guess_s(node(), 1) == known.known_s(node()) == 5.0
    assert learned(0.0).guess_s(node(), 1) == SHORTEST_S


def test_kinds_are_labels_or_shapes_of_a_run_and_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = learned(2.0)
    known.learn(node("", run_no=4), 3.0)
    assert known.guess_s(node("", run_no=4), 1) == 3.0
    assert known.known_s(node("", run_no=5)) is None
    known.learn(node("", run_no=5), 4.0)
    known.forget_run(4)
    assert known.known_s(node("", run_no=5)) == 4.0
    assert (known.known_s(node("", run_no=4)), known.known_s(node())) == (None, 2.0)
    monkeypatch.setattr(runtime_estimates, "KINDS_KEPT", 2)
    for label in ("b", "c"):
        known.learn(node(label), 1.0)
    assert list(known.kinds) == ["b", "c"]


def test_no_worker_is_given_a_long_queue_because_the_first_tasks_were_short() -> None:
    """One worker's first task ends at once, while those of the others run on: so may the next ones."""
    script = BossScript()
    workers = {name: script.worker(name, cpus=2) for name in [f"w{number}" for number in range(10)]}
    script.push("r", *[task(f"t{number}", labels=("some",)) for number in range(200)])
    given = len(script.store.attempts)
    script.now += 0.01
    script.ended(workers[script.store.attempts[script.key("t0")].worker], "t0", run_s=0.005)
    assert len(script.store.attempts) <= given + 2
