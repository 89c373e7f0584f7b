"""Messages that are sent again because they got lost, and tasks that must not be: stories of the boss's core."""

from __future__ import annotations

import pytest
from boss_script import BossScript, Peer, task

from boss.core.placement.stealing import MOST_EACH
from ecloud.model import wire
from ecloud.model.tasks import Cause, Outcome
from ecloud.model.wire import HeldAttempt


@pytest.fixture
def script() -> BossScript:
    return BossScript()


def numbers(script: BossScript, id: str) -> list[int]:
    """Of all attempts of the task that were ever given."""
    return sorted(number for task_no, number in script.store.attempts if task_no == script.names[id])


def test_an_undrain_that_got_lost_is_said_again_to_who_gives_tasks_back(script: BossScript) -> None:
    """The worker rests and the boss does not know: what it is given comes back with that reason."""
    w1 = script.worker("w1")
    script.ask("drain_worker", workers=["w1"])
    script.take(w1, wire.Drain)
    script.push("r", task("a"))
    script.ask("undrain_worker", workers=["w1"])
    script.take(w1, wire.Undrain)  # lost on its way
    script.starts(w1, "a").returned(w1, "a", reason=wire.DRAINING)
    script.take(w1, wire.Undrain)
    script.nothing_else().states(a="ready")
    script.beats(w1).starts(w1, "a").ended(w1, "a").stored(w1, "a").states(a="succeeded")


def test_a_drain_that_got_lost_is_said_again_with_each_heartbeat(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.ask("drain_worker", workers=["w1"])
    script.take(w1, wire.Drain)  # lost on its way
    script.beats(w1).take(w1, wire.Drain)
    script.nothing_else()


def test_a_cancelled_task_that_is_done_again_has_a_new_number_with_the_next_boss(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"))
    script.starts(w1, "a").started(w1, "a")
    script.ask("cancel", run="r")
    script.stops(w1, "a").ended(w1, "a", cause=Cause.STOPPED).stored(w1, "a").states(a="cancelled")
    script.start()
    w2 = script.worker("w2")
    script.ask("redo_task", run="r")
    script.starts(w2, "a")
    assert numbers(script, "a") == [1, 2]


def test_a_replaced_attempt_keeps_its_number_for_itself(script: BossScript) -> None:
    """Replaced while it was given; its end is written with the count, although the task has continued without it."""
    w1 = script.worker("w1")
    script.push("r", task("a"))
    script.starts(w1, "a")
    script.push("r", task("a", commands=("false",)), merge_strategy="replace")
    script.stops(w1, "a")
    script.hear(w1, wire.Goodbye("its machine ends"))
    given = numbers(script, "a")
    script.start()
    w2 = script.worker("w2")
    script.starts(w2, "a")
    assert len(numbers(script, "a")) == len(given) + 1
    assert numbers(script, "a")[-1] > given[-1]


def test_no_more_is_asked_back_than_the_idle_ones_would_begin(script: BossScript) -> None:
    """Guesses are poor where short tasks have waited long: the idle worker gets some, not all that wait anywhere."""
    w1 = script.worker("w1")
    ids = [f"t{index}" for index in range(100)]
    script.push("r", *(task(id, runtime_s=0.001) for id in ids))
    script.starts(w1, *ids).started(w1, "t0")
    script.worker("w2")
    script.wait(1.1)
    assert len(script.take(w1, wire.ReturnTasks).attempts) == MOST_EACH


def test_what_a_newer_process_took_over_continues_through_a_restart_of_the_boss() -> None:
    script = BossScript()
    w1 = script.worker("w1", home="h")
    script.push("r", task("a"))
    script.started(w1, "a")
    newer = script.peers["w2"] = Peer("w2", "worker")
    newer.holds = {script.key("a"): "running"}
    script.hello(newer, home="h", resources={"cpus": 1.0})
    script.beats(newer)
    script.start()
    script.states(a="running")
    script.hello(newer, home="h", resources={"cpus": 1.0})
    script.beats(newer).nothing_else()
    script.ended(newer, "a").states(a="succeeded")
    assert script.key("a")[1] == 1


def test_what_prepared_a_process_says_nothing_of_the_next_one_in_its_home() -> None:
    script = BossScript()
    script.worker("w1", home="h")
    script.push("r", task("i", init=True), task("a"))
    key = script.key("i", 1)
    newer = script.peers["w2"] = Peer("w2", "worker")
    newer.holds = {key: "ended"}
    script.hello(newer, home="h", resources={"cpus": 1.0})
    script.beats(newer)
    script.hear(newer, wire.TasksEnded((Outcome(*key, Cause.SUCCESS),)))
    given = [key for key, row in script.store.attempts.items() if row.worker == "w2" and key[0] == script.names["i"]]
    assert given == [(script.names["i"], 2)]
    assert script.boss.fleet.workers["w2"].inits == {script.names["i"]: "given"}


@pytest.mark.parametrize("comes_to", ["stopped", "nothing"])
def test_how_the_init_task_of_an_earlier_process_ended_makes_no_process_do_its_own_twice(comes_to: str) -> None:
    script = BossScript()
    script.worker("w1", home="h")
    script.push("r", task("i", init=True), task("a"), task("b"))
    init = script.names["i"]
    newer = script.peers["w2"] = Peer("w2", "worker")
    newer.holds = {(init, 1): "ended"}
    script.hello(newer, home="h", resources={"cpus": 1.0})
    script.beats(newer)
    if comes_to == "stopped":
        script.hear(newer, wire.TasksEnded((Outcome(init, 1, Cause.STOPPED),)))
    else:
        del newer.holds[init, 1]
        script.beats(newer)
    script.ended(newer, "a")
    script.push("r", task("c"))
    assert script.store.tasks[script.names["c"]].attempts or script.boss.book.graph.nodes[script.names["c"]].assigned
    assert numbers(script, "i") == [1, 2]


def test_the_number_of_an_init_attempt_that_no_worker_holds_is_not_given_twice() -> None:
    """It is assigned, its task's row does not show it yet, and no worker is there when a boss begins."""
    script = BossScript()
    script.worker("w1", home="h")
    script.push("r", task("i", init=True), task("a"))
    assert script.store.tasks[script.names["i"]].attempts == 0
    script.store.workers["w1"].state = "gone"
    script.start()
    script.handle()
    script.start()
    script.worker("w2")
    given = {row.number: row.worker for key, row in script.store.attempts.items() if key[0] == script.names["i"]}
    assert given == {1: "w1", 2: "w2"}


@pytest.mark.parametrize("seen_s", [None, 1.9], ids=["never-seen", "seen-by-a-heartbeat"])
def test_what_was_not_said_to_have_started_began_before_all_that_it_did(seen_s: float | None) -> None:
    script = BossScript()
    worker = script.worker("w")
    script.push("r", task("a"))
    if seen_s is not None:
        script.now += seen_s
        script.beats(worker, orders_seen=1, attempts=(HeldAttempt(*script.key("a"), "running"),))
    script.now = 1002.0
    script.ended(worker, "a", fetch_s=0.2, run_s=0.3, store_s=0.1)
    assert script.store.attempts[script.key("a")].started_at == pytest.approx(1001.4)


def test_what_was_said_to_have_started_began_then_however_late_its_outcome_comes() -> None:
    script = BossScript()
    worker = script.worker("w")
    script.push("r", task("a"))
    script.now += 1.0
    script.started(worker, "a")
    script.now += 60.0
    script.ended(worker, "a", run_s=0.3)
    assert script.store.attempts[script.key("a")].started_at == 1001.0


def test_a_message_of_an_earlier_session_does_not_bring_back_a_worker_that_has_left(script: BossScript) -> None:
    """It said Hello twice, used the second session, and left; a heartbeat in the first session was delayed."""
    worker = Peer("w1", "worker")
    script.hello(worker, resources={"cpus": 1.0}, home="home-w1")
    earlier = worker.session
    script.handle(
        script.message("w1", wire.Hello(nonce="again", kind="worker", resources={"cpus": 1.0}, home="home-w1"))
    )
    worker.session = script.take(worker, wire.Welcome).session
    script.hear(worker, wire.Heartbeat(0)).take(worker, wire.HeartbeatAnswered)
    script.hear(worker, wire.Goodbye("its machine ends"))
    worker.session = earlier
    script.hear(worker, wire.Heartbeat(0))
    assert script.take(worker, wire.Refused).code == "session"
    assert script.store.workers["w1"].state == "gone"
    script.push("r", task("a"))
    script.nothing_else()
