"""`kill_worker` holds until the worker obeys, also across sessions and starts of the boss."""

from __future__ import annotations

import pytest
from boss_script import BossScript, Peer, task

from ecloud.model import wire


def returns(script: BossScript, worker: Peer) -> BossScript:
    """The worker is heard by a boss that has just started."""
    script.hello(worker, resources={"cpus": 1.0}, home=f"home-{worker.name}").beats(worker)
    return script


def exits(script: BossScript, worker: Peer) -> int:
    """How often the worker is ordered to exit; an order to drain, which a kill replaces, fails."""
    orders = [send.envelope.message for send in script.said if send.envelope.peer == worker.name]
    script.said.clear()
    assert not any(isinstance(order, wire.Drain | wire.StartTasks) for order in orders)
    return sum([isinstance(order, wire.Exit) for order in orders])


def test_a_worker_that_a_new_boss_has_not_heard_stops_when_it_is_heard() -> None:
    script = BossScript()
    worker = script.worker("w1")
    script.push("r", task("a"))
    script.starts(worker, "a").started(worker, "a").start()
    answer = script.ask("kill_worker", workers=["w1"])
    assert isinstance(answer, wire.RequestDone)
    assert answer.text == "1 ordered to stop immediately, 1 of them as soon as this boss hears from them"
    assert exits(script, worker) == 0
    returns(script, worker)
    assert exits(script, worker) >= 1
    script.hear(worker, wire.Goodbye("ordered"))
    script.states(a="ready")


def test_the_order_survives_a_start_of_the_boss() -> None:
    script = BossScript()
    worker = script.worker("w1")
    script.start().ask("kill_worker", workers=["w1"])
    script.start()
    script.ask("undrain_worker", workers=["w1"])
    returns(script, worker)
    assert exits(script, worker) >= 1


def test_an_order_that_was_lost_is_repeated_after_the_next_heartbeat() -> None:
    script = BossScript()
    worker = script.worker("w1")
    script.ask("kill_worker")
    assert exits(script, worker) == 1
    script.beats(worker)
    assert exits(script, worker) == 1


def test_the_next_process_of_its_home_is_not_meant() -> None:
    script = BossScript()
    script.worker("w1", home="h")
    script.start().ask("kill_worker", workers=["w1"])
    newer = script.worker("w2", home="h")
    assert exits(script, newer) == 0
    script.push("r", task("a"))
    script.starts(newer, "a")


@pytest.mark.parametrize("restarts", [False, True], ids=["the same boss", "a new boss"])
def test_a_killed_worker_that_was_lost_stops_when_it_is_heard_again(restarts: bool) -> None:
    script = BossScript()
    worker = script.worker("w1")
    script.ask("kill_worker", workers=["w1"])
    script.wait(script.config.lease_s + script.config.lease_margin_s + 1.0)
    assert str(script.store.workers["w1"].state) == "lost"
    if restarts:
        script.start()
    script.push("r", task("a"))
    script.said.clear()
    returns(script, worker)
    assert exits(script, worker) >= 1
    script.hear(worker, wire.Goodbye("ordered"))
    script.states(a="ready")


def test_a_killed_worker_that_is_not_heard_is_forgotten_with_its_row() -> None:
    script = BossScript(keep_machines_s=100.0, keep_runs_s=100.0)
    script.worker("w1")
    script.ask("kill_worker", workers=["w1"])
    script.wait(script.config.lease_s + script.config.lease_margin_s + 1.0)
    assert list(script.boss.leases.killed) == ["w1"]
    script.wait(4_000.0)
    assert not script.boss.leases.killed
    assert not script.store.workers
