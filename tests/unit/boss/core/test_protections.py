"""Protections whose absence no other test of the core would notice: each was switched off once, and nothing failed."""

from __future__ import annotations

import pytest
from boss_script import BossScript, task

from boss.core.model.effects import DropStages
from boss.core.model.events import StagesListed
from ecloud.model import wire
from ecloud.model.tasks import AttemptState, Cause, Outcome, Retries


@pytest.fixture
def script() -> BossScript:
    return BossScript(retry_backoff_s=0.0)


@pytest.mark.parametrize("strategy", ["keep_succeeded", "replace"])
def test_a_task_that_is_pushed_again_waits_for_each_dependency_once(script: BossScript, strategy: str) -> None:
    """With the edges of its earlier definition it would count the end of one dependency twice, and start too early."""
    w1 = script.worker("w1", cpus=2)
    before = [task("a"), task("b")]
    script.push("r", *before, task("c", after="a b"))
    script.starts(w1, "a", "b").started(w1, "a", "b")
    script.push("r", *before, task("c", after="a b", priority=1), merge_strategy=strategy)
    script.said.clear()
    if strategy == "replace":
        script.ended(w1, "a", "b", cause=Cause.STOPPED)
    script.ended(w1, "a").states(a="succeeded", c="waiting")
    script.ended(w1, "b").states(b="succeeded", c="ready")


def test_an_order_of_an_earlier_session_is_not_in_flight(script: BossScript) -> None:
    """The worker joins again and never got the order: numbers of orders begin at 1 in each session."""
    w1 = script.worker("w1")
    script.push("r", task("a"))
    script.take(w1, wire.StartTasks)  # never arrives
    assert w1.seen > 1
    script.hello(w1, resources={"cpus": 1.0}, home="home-w1")
    script.beats(w1)
    assert script.store.attempts[script.key("a", 1)].state is AttemptState.RETURNED
    script.starts(w1, "a")
    assert script.key("a")[1] == 2


def test_an_order_of_this_session_that_is_in_flight_is_not_given_to_another(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"))
    script.take(w1, wire.StartTasks)
    script.worker("w2")
    script.beats(w1, orders_seen=0)
    assert script.store.attempts[script.key("a", 1)].state is AttemptState.ASSIGNED


def test_a_stage_without_an_owner_is_dropped_when_it_is_seen_the_second_time(script: BossScript) -> None:
    """An attempt that ends between the list and the look would lose what it staged."""
    script.handle(StagesListed(("w9/7-1",)))
    assert not [call for call in script.calls if isinstance(call, DropStages)]
    script.handle(StagesListed(("w9/7-1", "w9/8-1")))
    assert script.call(DropStages).stages == ("w9/7-1",)
    script.handle(StagesListed(()))
    script.handle(StagesListed(("w9/8-1",)))
    assert not [call for call in script.calls if isinstance(call, DropStages)]


def test_what_a_silent_client_left_is_freed(script: BossScript) -> None:
    """Its session, its push under way and what it watches; one that speaks keeps all of it."""
    silent, speaking = script.client("silent"), script.client("speaking")
    for client in (silent, speaking):
        script.hear(client, wire.SubmitTasks(f"p-{client.name}", 0, 2, wire.PushOptions(run=client.name), (task("a"),)))
    script.hear(silent, wire.Request("watch-1", "watch", {"run": "silent"}))
    for _ in range(int(2 * script.config.lease_s / script.config.heartbeat_s) + 2):
        script.wait(script.config.heartbeat_s)
        script.beats(speaking)
    boss = script.boss
    assert set(boss.clients) == {"speaking"}
    assert {conversation.peer for conversation in boss.sessions.open.values()} == {"speaking"}
    assert list(boss.pushes._open) == ["p-speaking"]
    assert "silent" not in {peer for peers in boss.watchers._watching.values() for peer in peers}
    script.said.clear()
    script.hear(silent, wire.Heartbeat(0))
    assert script.take(silent, wire.Refused).code == "session"


def test_each_failure_uses_one_retry_however_often_it_is_reported_and_whichever_boss_leads() -> None:
    script = BossScript(retry_backoff_s=1.0)
    script.push("r", task("a", retries=Retries(3)))
    for number in range(1, 5):
        if number == 3:
            script.start()
        worker = script.worker(f"w{number}")
        script.starts(worker, "a")
        outcome = wire.TasksEnded((Outcome(*script.key("a"), Cause.EXIT),))
        script.hear(worker, outcome).hear(worker, outcome)
        row = script.store.tasks[script.names["a"]]
        assert (row.attempts, row.retries_used) == (number, min(number, 3))
        script.hear(worker, wire.Goodbye("done")).wait(8.0)
        script.said.clear()
    script.states(a="failed")
