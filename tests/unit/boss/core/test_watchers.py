"""What clients that watch a run are sent."""

from __future__ import annotations

from typing import Any

from boss_script import BossScript, Peer, task

from ecloud.model import wire
from ecloud.model.tasks import Cause
from ecloud.model.transfer_status import Moving


def watching(script: BossScript, name: str) -> Peer:
    """One more client that watches run r."""
    client = script.client(name)
    script.hear(client, wire.Request(f"watch-{name}", "watch", {"run": "r"}))
    script.take(client, wire.RunChanged)
    return client


def last(script: BossScript, client: Peer) -> Any:
    """The last change that it was sent."""
    told = [
        send.envelope.message
        for send in script.said
        if send.envelope.peer == client.name and isinstance(send.envelope.message, wire.RunChanged)
    ]
    script.said.clear()
    return told[-1] if told else None


def test_when_one_of_two_watchers_leaves_the_other_gets_what_changes() -> None:
    script = BossScript()
    w1 = script.worker("w1")
    script.push("r", task("a"), task("b"))
    first, second = watching(script, "first"), watching(script, "second")
    script.hear(first, wire.Goodbye()).ended(w1, "a")
    assert last(script, second).states == {"succeeded": 1, "ready": 1}
    script.hear(second, wire.Goodbye()).ended(w1, "b")
    assert last(script, second) is None


def test_running_tasks_are_named_and_transfers_of_all_workers_are_summed() -> None:
    script = BossScript()
    workers = [script.worker("w1", cpus=2.0), script.worker("w2")]
    script.push("r", *[task(id) for id in "abc"])
    client = watching(script, "c")
    for worker in workers:
        ids = [id for id in "abc" if script.key(id) in script.boss.fleet.workers[worker.name].held]
        script.started(worker, *ids)
    assert sorted(last(script, client).running) == ["a", "b", "c"]
    for worker in workers:
        script.hear(worker, wire.MovingChanged(Moving(1, 2, 100, 10, bytes_per_s=5)))
    assert last(script, client).moving == Moving(2, 4, 200, 20, bytes_per_s=10)
    script.ask("drop_tasks", ids=["a"])
    assert sorted(last(script, client).running) == ["b", "c"], "its attempt has not stopped yet"


def test_a_run_whose_init_task_failed_wherever_it_was_tried_is_stuck_until_another_worker_comes() -> None:
    script = BossScript(ahead_max=0)
    w1 = script.worker("w1")
    script.push("r", task("prepare", init=True), task("a"))
    client = watching(script, "c")
    script.ended(w1, "prepare", cause=Cause.EXIT, error="no license").returned(w1, "a", reason="init")
    assert last(script, client).held == "init task prepare failed in 1 worker process, all there are: no license"
    script.worker("w2")
    assert last(script, client).held == ""


def test_a_run_whose_init_task_failed_is_not_stuck_while_a_pool_may_bring_another_worker() -> None:
    script = BossScript(ahead_max=0).pool("p", maximum=1)
    w1 = script.worker("w1", gpus=1.0)
    script.push("r", task("prepare", init=True), task("a", resources={"gpus": 1.0}))
    client = watching(script, "c")
    script.ended(w1, "prepare", cause=Cause.EXIT, error="no license").returned(w1, "a", reason="init")
    assert last(script, client) is None
