"""Tasks that kill their workers fail after a number of them; tasks that ran beside them do not."""

from __future__ import annotations

import pytest
from boss_script import BossScript, Peer, task
from vm_script import cloud_lists, script_with_one

from boss.core.boss import ARCHIVE_EVERY_S
from ecloud.model import wire
from ecloud.model.tasks import Cause, ManifestEntry


def dies(script: BossScript, peer: Peer) -> None:
    """Its process is killed: nothing is heard of it, until its lease ends."""
    config = script.config
    others = [other for other in script.peers.values() if other is not peer and other.kind == "worker"]
    for _ in range(int((config.lease_s + config.lease_margin_s) / config.heartbeat_s) + 2):
        script.wait(config.heartbeat_s)
        for other in others:
            if other.name in script.boss.fleet.workers:
                script.beats(other)
    assert peer.name not in script.boss.fleet.workers


def orders(script: BossScript, peer: Peer) -> dict[str, wire.AttemptOrder]:
    """What a worker was ordered, by id."""
    names = {number: id for id, number in script.names.items()}
    found = {}
    for send in list(script.said):
        if send.envelope.peer == peer.name and isinstance(send.envelope.message, wire.StartTasks):
            found.update({names[order.task_no]: order for order in send.envelope.message.attempts})
            script.said.remove(send)
    return found


def test_a_task_that_kills_its_workers_fails_after_three_and_its_neighbour_succeeds() -> None:
    script = BossScript()
    script.worker("w1", cpus=2)
    script.push("r", task("poison"), task("good"))
    for number in (1, 2):
        dying = script.peers[f"w{number}"]
        assert set(orders(script, dying)) == {"poison", "good"}, "charged once, they still run side by side"
        dies(script, dying)
        script.worker(f"w{number + 1}", cpus=2)
    third = script.peers["w3"]
    alone = orders(script, third)
    assert len(alone) == 1, "one short of the limit, each has a worker to itself"
    ((first, order),) = alone.items()
    assert order.asks["cpus"] == 2.0
    second = {"poison": "good", "good": "poison"}[first]
    if first == "good":
        script.ended(third, "good")
        assert set(orders(script, third)) == {"poison"}
        dies(script, third)
    else:
        dies(script, third)
        fourth = script.worker("w4", cpus=2)
        assert set(orders(script, fourth)) == {second}
        script.ended(fourth, "good")
    script.states(poison="failed", good="succeeded")
    assert script.reason("poison").startswith(
        "3 workers were lost while running it; the last was worker w3: silent for"
    )
    (row,) = script.store.tables.suspects.values()
    assert (row.task_no, row.lost, row.failed) == (script.names["poison"], 3, True)


def test_what_fails_alone_never_fails_its_dependents_neighbours_and_can_be_tried_again() -> None:
    script = BossScript(max_lost_workers=2)
    script.worker("w1")
    script.push("r", task("poison"), task("below", after="poison"))
    for number in (1, 2):
        orders(script, script.peers[f"w{number}"])
        dies(script, script.peers[f"w{number}"])
        script.worker(f"w{number + 1}")
    script.states(poison="failed", below="aborted")
    script.ask("retry_failed", ids=["poison"])
    assert script.store.tables.suspects == {}, "a task that is tried again begins at 0"
    assert set(orders(script, script.peers["w3"])) == {"poison"}
    script.ended(script.peers["w3"], "poison")
    assert script.state("poison") == "succeeded"


@pytest.mark.parametrize("how", ["goodbye", "drained", "killed by a person", "unheard since the boss's start"])
def test_a_worker_that_was_to_leave_charges_no_task(how: str) -> None:
    script = BossScript()
    worker = script.worker("w1")
    script.push("r", task("a"))
    script.starts(worker, "a").started(worker, "a")
    if how == "goodbye":
        script.hear(worker, wire.Goodbye("its machine ends"))
    else:
        if how == "drained":
            script.hear(worker, wire.DrainWanted("SIGTERM"))
        elif how == "killed by a person":
            script.ask("kill_worker", workers=["w1"])
        else:
            script.start()
        dies(script, worker)
    assert script.state("a") == "ready"
    assert script.store.tables.suspects == {}


@pytest.mark.parametrize("ours", [True, False])
def test_a_vm_that_vanishes_charges_its_tasks_unless_we_ended_it(ours: bool) -> None:
    script = BossScript().pool("p", maximum=1)
    script.push("r", task("a"))
    vm_no = script_with_one(script)
    if ours:
        script.ask("end_vms")
    script.handle(cloud_lists("p", gone={f"cloud-{vm_no}": vm_no}))
    assert len(script.store.tables.suspects) == (0 if ours else 1)


def test_what_was_only_queued_is_not_charged_and_neither_is_a_bystander_of_a_suspect() -> None:
    script = BossScript()
    script.worker("w1", cpus=1)
    script.push("r", task("runs"), task("waits"))
    orders(script, script.peers["w1"])
    dies(script, script.peers["w1"])
    assert set(script.store.tables.suspects) == {script.names["runs"]}
    script.worker("w2", cpus=2)
    orders(script, script.peers["w2"])
    dies(script, script.peers["w2"])
    assert {row.task_no: row.lost for row in script.store.tables.suspects.values()} == {script.names["runs"]: 2}


@pytest.mark.parametrize(
    ("started", "charged"), [("", "a"), ("a", "a"), ("a b", "b"), ("a b c", "c"), ("a x b", "b x"), ("a x b d", "d")]
)
def test_of_a_chain_the_attempt_that_had_started_last_is_charged(started: str, charged: str) -> None:
    script = BossScript()
    w1 = script.peers["w1"] = Peer("w1", "worker")
    script.hello(w1, resources={"cpus": 2.0}, home="home-w1", chains=True)
    script.beats(w1)
    tasks = [task("a", runtime_s=0.01), task("b", after="a", runtime_s=0.01), task("c", after="b", runtime_s=0.01)]
    if "x" in started:
        tasks = [*tasks[:2], task("x", runtime_s=0.01), task("d", after="b x", runtime_s=0.01)]
    script.push("r", *tasks)
    assert set(orders(script, w1)) == {task.id for task in tasks}
    for id in started.split():
        script.started(w1, id)
    dies(script, w1)
    ids = {number: id for id, number in script.names.items()}
    assert {ids[row.task_no] for row in script.store.tables.suspects.values()} == set(charged.split())


def test_a_chained_task_that_kills_its_workers_fails_and_the_task_before_it_succeeds() -> None:
    script = BossScript()
    script.push("r", task("good", runtime_s=0.01), task("poison", after="good", runtime_s=0.01))
    for number in range(1, 4):
        peer = script.peers[f"w{number}"] = Peer(f"w{number}", "worker")
        script.hello(peer, resources={"cpus": 1.0}, home=f"home-w{number}", chains=True)
        script.beats(peer)
        given = orders(script, peer)
        script.started(peer, "good")
        if "poison" in given:
            script.started(peer, "poison")
        else:
            script.ended(peer, "good")
            assert set(orders(script, peer)) == {"poison"}, "a suspect is chained to nothing"
        dies(script, peer)
    script.states(good="succeeded", poison="failed")


def test_a_chained_attempt_that_had_ended_is_not_charged() -> None:
    """Its outcome was heard, and waits for the results before it to be published."""
    script = BossScript()
    w1 = script.peers["w1"] = Peer("w1", "worker")
    script.hello(w1, resources={"cpus": 1.0}, home="home-w1", chains=True)
    script.beats(w1)
    script.push("r", task("a", results=["out"], runtime_s=0.01), task("b", after="a", runtime_s=0.01))
    assert set(orders(script, w1)) == {"a", "b"}
    script.ended(w1, "a", manifest=(ManifestEntry("out", 1, "00"),)).started(w1, "b").ended(w1, "b")
    dies(script, w1)
    assert script.store.tables.suspects == {}


def test_a_task_that_succeeded_is_not_charged_although_the_one_chained_to_it_is_being_stopped() -> None:
    script = BossScript()
    w1 = script.peers["w1"] = Peer("w1", "worker")
    script.hello(w1, resources={"cpus": 1.0}, home="home-w1", chains=True)
    script.beats(w1)
    script.push("r", task("a", runtime_s=0.01), task("b", after="a", runtime_s=0.01))
    assert set(orders(script, w1)) == {"a", "b"}
    script.started(w1, "a").started(w1, "b")
    script.ask("cancel", ids=["b"])
    dies(script, w1)
    assert script.store.tables.suspects == {}


def test_a_task_fails_that_killed_its_workers_while_a_task_above_it_is_done_again() -> None:
    script = BossScript(max_lost_workers=2)
    w1 = script.worker("w1")
    script.push("r", task("a"), task("poison", after="a"))
    script.ended(w1, "a").started(w1, "poison")
    dies(script, w1)
    w2 = script.worker("w2")
    script.started(w2, "poison")
    script.ask("redo_task", ids=["a"])
    dies(script, w2)
    script.states(poison="failed", a="ready")


def test_where_one_loss_is_enough_a_chained_task_gets_a_try_of_its_own() -> None:
    script = BossScript(max_lost_workers=1)
    for number in (1, 2):
        peer = script.peers[f"w{number}"] = Peer(f"w{number}", "worker")
        script.hello(peer, resources={"cpus": 1.0}, home=f"home-w{number}", chains=True)
        script.beats(peer)
        if number == 1:
            script.push("r", task("good", runtime_s=0.01), task("poison", after="good", runtime_s=0.01))
            script.started(peer, "good").started(peer, "poison")
        else:
            script.ended(peer, "good").started(peer, "poison")
        dies(script, peer)
    script.states(good="succeeded", poison="failed")


def test_nothing_is_chained_to_a_task_that_may_have_killed_a_worker() -> None:
    """The boss did not hear that the second had started: it charges the first, which succeeds alone, and is cleared."""
    script = BossScript()
    script.push("r", task("good", runtime_s=0.01), task("poison", after="good", runtime_s=0.01))
    for number, given in ((1, {"good", "poison"}), (2, {"good"})):
        peer = script.peers[f"w{number}"] = Peer(f"w{number}", "worker")
        script.hello(peer, resources={"cpus": 1.0}, home=f"home-w{number}", chains=True)
        script.beats(peer)
        assert set(orders(script, peer)) == given
        if number == 1:
            dies(script, peer)
    script.ended(script.peers["w2"], "good")
    script.states(good="succeeded")
    assert script.store.tables.suspects == {}


def test_a_later_boss_continues_the_count() -> None:
    script = BossScript(max_lost_workers=2)
    script.worker("w1", cpus=2)
    script.push("r", task("poison"))
    orders(script, script.peers["w1"])
    dies(script, script.peers["w1"])
    script.start()
    script.worker("w2", cpus=2)
    assert orders(script, script.peers["w2"])["poison"].asks["cpus"] == 2.0
    dies(script, script.peers["w2"])
    assert script.state("poison") == "failed"


def test_success_clears_a_suspect() -> None:
    script = BossScript()
    script.worker("w1")
    script.push("r", task("a"))
    orders(script, script.peers["w1"])
    dies(script, script.peers["w1"])
    second = script.worker("w2")
    orders(script, second)
    script.ended(second, "a")
    assert script.store.tables.suspects == {}
    assert script.boss.attempts.suspects.rows == {}


def test_an_init_task_that_kills_its_workers_holds_its_run() -> None:
    script = BossScript()
    script.push("r", task("prepare", init=True), task("a"))
    for number in (1, 2, 3):
        worker = script.worker(f"w{number}")
        assert set(orders(script, worker)) == {"prepare", "a"}
        dies(script, worker)
    script.worker("w4")
    assert orders(script, script.peers["w4"]) == {}
    (run,) = script.store.runs.values()
    assert "init task prepare failed in 3 worker processes: worker w3 was lost while it ran" in run.held
    assert script.store.tables.suspects == {}, "its tasks had not begun"


def test_dropping_a_run_forgets_its_suspects() -> None:
    script = BossScript()
    script.worker("w1")
    script.push("r", task("a"))
    orders(script, script.peers["w1"])
    dies(script, script.peers["w1"])
    script.ask("drop_tasks", run="r")
    assert script.store.tables.suspects == {}


def test_zero_means_for_ever() -> None:
    script = BossScript(max_lost_workers=0)
    script.push("r", task("a"))
    for number in range(5):
        worker = script.worker(f"w{number}")
        assert set(orders(script, worker)) == {"a"}
        dies(script, worker)
    last = script.worker("last")
    orders(script, last)
    script.ended(last, "a", cause=Cause.SUCCESS)
    assert script.state("a") == "succeeded"


def test_what_is_known_of_a_task_that_failed_for_this_ends_with_its_run() -> None:
    script = BossScript(max_lost_workers=1, keep_runs_s=60.0)
    script.worker("w1")
    script.push("r", task("poison"))
    orders(script, script.peers["w1"])
    dies(script, script.peers["w1"])
    assert [row.failed for row in script.store.tables.suspects.values()] == [True]
    script.wait(2 * ARCHIVE_EVERY_S)
    assert (script.store.runs, script.store.tables.suspects) == ({}, {})
