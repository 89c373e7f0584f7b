"""The boss's core, told as stories: what it hears, and exactly what it answers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from boss_script import BossScript, Peer, task
from vm_script import cloud_lists

from boss.core.model.effects import DropStages, EndVm, FindResults, ListVms, PromoteFiles, StartVm
from boss.core.model.events import (
    BrokerFound,
    BrokerLost,
    DatastoreFailed,
    FilesPromoted,
    MessageArrived,
    ResultsFound,
    VmStarted,
)
from ecloud.model import wire
from ecloud.model.tasks import AttemptState, Cause, ManifestEntry, Outcome, Retries, TaskState
from ecloud.model.wire import Envelope


@pytest.fixture
def script() -> BossScript:
    return BossScript()


def test_a_chain_runs_link_by_link(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"), task("b", after="a"))
    script.starts(w1, "a").nothing_else()
    script.started(w1, "a").states(a="running", b="waiting")
    script.ended(w1, "a").stored(w1, "a").starts(w1, "b").nothing_else()
    script.states(a="succeeded", b="ready")
    script.ended(w1, "b").stored(w1, "b").nothing_else()
    script.states(a="succeeded", b="succeeded")
    assert script.store.runs[1].ended_at is not None


def test_what_lies_below_a_failure_is_aborted_and_names_it(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"), task("b", after="a"), task("c", after="b"), task("d", after="c", on="any"))
    script.starts(w1, "a")
    script.ended(w1, "a", cause=Cause.EXIT, exit_code=3, error="command failed with exit code 3").stored(w1, "a")
    script.starts(w1, "d").nothing_else()
    script.states(a="failed", b="aborted", c="aborted", d="ready")
    assert script.reason("b") == script.reason("c") == "task a failed"


def test_a_dependency_on_failure_runs_only_after_one(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"), task("mend", after="a", on="failure"))
    script.starts(w1, "a").ended(w1, "a").stored(w1, "a").nothing_else()
    script.states(mend="aborted")
    assert "runs only if it does not" in script.reason("mend")


def test_results_are_promoted_before_dependents_go(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a", results=["out"]), task("b", after="a"))
    script.starts(w1, "a")
    script.ended(w1, "a", manifest=(ManifestEntry("out", 5, "ab"),)).stored(w1, "a")
    call = script.call(PromoteFiles)
    task_no, number = script.key("a")
    assert call.promotions[0].stage == f"w1/{task_no}-{number}"
    script.nothing_else().states(a="running", b="waiting")
    script.handle(FilesPromoted(((task_no, number, None),)))
    script.starts(w1, "b").nothing_else().states(a="succeeded")


def test_a_promotion_survives_the_boss(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a", results=["out"]))
    script.starts(w1, "a")
    script.ended(w1, "a", manifest=(ManifestEntry("out", 5, "ab"),)).stored(w1, "a")
    script.start()
    assert len(script.call(PromoteFiles).promotions) == 1
    script.handle(FilesPromoted(((*script.key("a"), None),)))
    script.states(a="succeeded")


def test_a_promotion_is_tried_again_soon_after_each_first_failure_and_its_attempt_says_why(script: BossScript) -> None:
    w1 = script.worker("w1", cpus=2.0)
    script.push("r", task("a", results=["a"]), task("b", results=["b"]))
    script.starts(w1, "a", "b")
    for id in "ab":
        script.ended(w1, id, manifest=(ManifestEntry(id, 5, "ab"),))
        script.handle(DatastoreFailed(script.call(PromoteFiles), "the disk is full"))
        assert script.store.attempts[script.key(id)].reason == "the disk is full"
        script.wait(0.5)
        script.call(PromoteFiles)
        script.handle(FilesPromoted(((*script.key(id), None),)))
    script.states(a="succeeded", b="succeeded")


def test_an_outcome_is_recorded_once_and_answered_each_time(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"))
    script.starts(w1, "a").ended(w1, "a").stored(w1, "a")
    writes_before = dict(script.store.attempts)
    script.ended(w1, "a", cause=Cause.EXIT, exit_code=1).stored(w1, "a").nothing_else()
    script.states(a="succeeded")
    assert script.store.attempts == writes_before


def test_a_retry_waits_for_its_back_off_and_counts_on(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a", retries=Retries(1)))
    script.starts(w1, "a")
    script.ended(w1, "a", cause=Cause.EXIT, exit_code=1, error="no luck").stored(w1, "a").nothing_else()
    script.states(a="ready")
    script.wait(2).starts(w1, "a").nothing_else()
    assert script.key("a")[1] == 2
    script.ended(w1, "a", cause=Cause.EXIT, exit_code=1, error="no luck again").stored(w1, "a").states(a="failed")


def test_a_task_that_needs_more_memory_asks_for_more_within_what_there_is(script: BossScript) -> None:
    w1 = script.worker("w1", cpus=2.0, memory_mb=350.0)
    retries = Retries(3, (Cause.MEMORY,), grow=2)
    script.push("r", task("a", retries=retries, resources={"memory_mb": 100.0}))
    asked = [100.0]
    for wait_s in (2, 4, 8):
        script.starts(w1, "a").ended(w1, "a", cause=Cause.MEMORY, error="too much").stored(w1, "a").states(a="ready")
        asked.append(script.boss.book.graph.nodes[script.names["a"]].shape.as_resources["memory_mb"])
        script.wait(wait_s)
    assert asked == [100.0, 200.0, 350.0, 350.0]
    script.starts(w1, "a").ended(w1, "a", cause=Cause.MEMORY, error="too much").states(a="failed")


@pytest.mark.parametrize("who_is_left", ["w2", ""])
def test_a_task_that_needs_more_memory_is_tried_again_after_its_worker_left_before_its_output_was_published(
    script: BossScript, who_is_left: str
) -> None:
    w1, w2 = script.worker("w1", memory_mb=350.0), script.worker("w2")  # w2 does not say how much it has
    retries = Retries(3, (Cause.MEMORY,), grow=2)
    kept = msgspec.structs.replace(task("a", retries=retries, resources={"memory_mb": 100.0}), stdout="logs/%t")
    script.push("r", kept)
    script.starts(w1, "a").ended(w1, "a", cause=Cause.MEMORY, error="too much", manifest=(ManifestEntry("logs/a"),))
    for worker in (w1, w2):
        if worker.name != who_is_left:
            script.hear(worker, wire.Goodbye("its machine ends"))
    script.handle(FilesPromoted(((*script.key("a"), None),)))
    script.states(a="ready")


def test_a_restarted_boss_knows_how_much_memory_a_task_asked_for_last(script: BossScript) -> None:
    w1 = script.worker("w1", cpus=2.0, memory_mb=350.0)
    script.push("r", task("a", retries=Retries(3, (Cause.MEMORY,), grow=2), resources={"memory_mb": 100.0}))
    script.starts(w1, "a").ended(w1, "a", cause=Cause.MEMORY, error="too much").stored(w1, "a").states(a="ready")
    script.start()
    assert script.boss.book.graph.nodes[script.names["a"]].shape.as_resources["memory_mb"] == 200.0


def test_only_attempts_that_started_count_as_tries(script: BossScript) -> None:
    def tries() -> int:
        node = script.boss.book.graph.nodes[script.names["a"]]
        return node.attempts - node.unstarted

    w1 = script.worker("w1")
    script.push("r", task("a", retries=Retries(1)))
    script.starts(w1, "a").returned(w1, "a", reason="no room").beats(w1).starts(w1, "a")
    assert tries() == 1
    script.started(w1, "a").ended(w1, "a", cause=Cause.EXIT, exit_code=1).stored(w1, "a").wait(2).starts(w1, "a")
    assert tries() == 2
    assert script.key("a")[1] == 3


@pytest.mark.parametrize("told", [{"cause": Cause.SIGNAL, "signal": 15}, {"cause": Cause.EXIT, "exit_code": 143}])
def test_term_while_the_worker_leaves_costs_no_retry_and_counts_as_a_try(script: BossScript, told: Any) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"))
    script.starts(w1, "a").hear(w1, wire.DrainWanted("SIGTERM"))
    assert script.take(w1, wire.Drain).then_exit
    script.ended(w1, "a", **told).stored(w1, "a").states(a="ready")
    first = script.store.attempts[script.key("a")]
    assert (first.state, first.started_at is not None) == ("returned", True)
    w2 = script.worker("w2")
    (order,) = script.take(w2, wire.StartTasks).attempts
    assert (order.number, order.tries) == (2, 2)
    assert script.boss.book.graph.nodes[script.names["a"]].retries_used == 0


@pytest.mark.parametrize(
    ("leaves", "told"),
    [
        (False, {"cause": Cause.SIGNAL, "signal": 15}),
        (True, {"cause": Cause.SIGNAL, "signal": 9}),
        (True, {"cause": Cause.EXIT, "exit_code": 1}),
    ],
)
def test_any_other_failure_counts(script: BossScript, leaves: bool, told: Any) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"))
    script.starts(w1, "a")
    if leaves:
        script.hear(w1, wire.DrainWanted("SIGTERM")).take(w1, wire.Drain)
    script.ended(w1, "a", **told).stored(w1, "a").states(a="failed")


def test_term_by_a_shutdown_is_no_failure_when_the_next_process_of_the_home_tells_of_it(script: BossScript) -> None:
    first = script.worker("w1", home="h")
    script.push("r", task("a"))
    script.starts(first, "a").started(first, "a").hear(first, wire.DrainWanted("SIGTERM")).take(first, wire.Drain)
    key, second = script.key("a"), Peer("w2", "worker")
    second.holds = {key: "ended"}
    script.hello(second, resources={"cpus": 1.0}, home="h").beats(second)
    script.ended(second, "a", cause=Cause.SIGNAL, signal=15)
    assert script.store.attempts[key].state is AttemptState.RETURNED
    script.starts(second, "a")


def test_the_next_boss_knows_that_a_worker_was_leaving(script: BossScript) -> None:
    worker = script.worker("w1")
    script.push("r", task("a"))
    script.starts(worker, "a").started(worker, "a")
    script.hear(worker, wire.DrainWanted(wire.ORDERED_TO_LEAVE)).take(worker, wire.Drain)
    key = script.key("a")
    worker.holds = {key: "ended"}
    script.start().hello(worker, resources={"cpus": 1.0}, home="home-w1")
    script.ended(worker, "a", cause=Cause.SIGNAL, signal=15)
    assert script.store.attempts[key].state is AttemptState.RETURNED


def test_term_of_a_task_that_was_cancelled_meanwhile_is_no_reason_to_run_it_again(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"))
    script.starts(w1, "a").hear(w1, wire.DrainWanted("SIGTERM")).take(w1, wire.Drain)
    script.ask("cancel", ids=["a"])
    script.stops(w1, "a")
    script.ended(w1, "a", cause=Cause.SIGNAL, signal=15).stored(w1, "a").states(a="cancelled")
    assert script.store.attempts[script.key("a")].state == "ended"


def test_a_cause_that_is_not_listed_is_not_retried(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a", retries=Retries(5, (Cause.TIMEOUT,))))
    script.starts(w1, "a").ended(w1, "a", cause=Cause.EXIT, exit_code=1).states(a="failed")


def test_a_silent_worker_is_lost_after_its_lease_and_costs_no_retry(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"))
    script.starts(w1, "a").started(w1, "a")
    script.wait(50).states(a="running")
    script.wait(20).states(a="ready")
    attempt = script.store.attempts[script.key("a")]
    assert attempt.state is AttemptState.LOST
    assert script.store.workers["w1"].state == "lost"
    w2 = script.worker("w2")
    script.starts(w2, "a")
    assert script.boss.book.graph.nodes[script.names["a"]].retries_used == 0


def test_a_worker_that_thaws_is_asked_for_hello_and_told_to_stop(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"))
    script.starts(w1, "a").started(w1, "a").wait(70)
    script.hear(w1, wire.Heartbeat(w1.seen))
    assert script.take(w1, wire.Refused).code == "session"
    script.hello(w1, resources={"cpus": 1.0}, home="home-w1")
    w1.holds = {script.key("a", 1): "running"}
    script.beats(w1).stops(w1, "a")


def test_no_broker_no_lease_runs_out(script: BossScript) -> None:
    script.worker("w1")
    script.handle(BrokerLost())
    script.wait(300)
    assert script.store.workers["w1"].state == "up"
    script.handle(BrokerFound())
    script.wait(60)
    assert script.store.workers["w1"].state == "up"
    script.wait(10)
    assert script.store.workers["w1"].state == "lost"


def test_a_boss_that_slept_blames_no_worker(script: BossScript) -> None:
    script.worker("w1")
    script.now += 500
    script.handle()
    assert script.store.workers["w1"].state == "up"


def test_an_order_that_got_lost_heals_with_the_next_heartbeat(script: BossScript) -> None:
    w1 = script.worker("w1", cpus=1)
    script.push("r", task("a"))
    script.take(w1, wire.StartTasks)  # never arrives
    script.beats(w1, orders_seen=0).nothing_else().states(a="ready")  # it may still be in flight
    w1.seen = 99
    script.beats(w1).starts(w1, "a")
    assert script.store.attempts[script.key("a", 1)].state is AttemptState.RETURNED
    assert script.key("a")[1] == 2


def test_after_a_restart_the_worker_continues_with_what_it_holds(script: BossScript) -> None:
    w1 = script.worker("w1", cpus=2)
    script.push("r", task("a"), task("b"), task("c"))
    script.starts(w1, "a", "b", "c").started(w1, "a", "b")
    del w1.holds[script.key("c")]  # never arrived
    script.start()
    script.hear(w1, wire.Heartbeat(1))
    script.take(w1, wire.Refused)
    script.hello(w1, resources={"cpus": 2.0}, home="home-w1")
    script.beats(w1).starts(w1, "c").states(a="running", b="running", c="ready")
    script.ended(w1, "a").stored(w1, "a").states(a="succeeded")


def test_a_new_process_of_the_same_home_frees_what_the_old_one_held(script: BossScript) -> None:
    w1 = script.worker("w1", home="h")
    script.push("r", task("a"))
    script.starts(w1, "a").started(w1, "a")
    w2 = script.worker("w2", home="h")
    script.starts(w2, "a").states(a="ready")
    assert script.store.workers["w1"].state == "gone"


def test_a_new_process_delivers_what_the_old_one_spooled(script: BossScript) -> None:
    w1 = script.worker("w1", home="h")
    script.push("r", task("a"))
    script.starts(w1, "a")
    w2 = script.peers["w2"] = type(w1)("w2", "worker")
    w2.key_name, w2.holds = w1.key_name, {script.key("a"): "ended"}
    script.hello(w2, resources={"cpus": 1.0}, home="h")
    script.beats(w2).ended(w2, "a").stored(w2, "a").states(a="succeeded")


def test_replayed_reordered_and_foreign_messages_change_nothing(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"))
    script.starts(w1, "a")
    ended = wire.TasksEnded((wire.Outcome(*script.key("a"), Cause.SUCCESS),))
    old = Envelope(1, "w1", w1.session, w1.number, ended)
    script.handle(MessageArrived(old, "key-w1"))  # a number heard before
    foreign = Envelope(1, "w1", w1.session, w1.number + 1, ended)
    script.handle(MessageArrived(foreign, "key-other"))  # signed by another's key
    script.nothing_else().states(a="ready")


def test_priority_goes_first_and_runs_share_fairly(script: BossScript) -> None:
    script.push("r", *(task(f"r{i}", runtime_s=60.0) for i in range(4)))
    script.push("s", *(task(f"s{i}", runtime_s=60.0) for i in range(4)), task("urgent", priority=5, runtime_s=60.0))
    w1 = script.worker("w1", cpus=5)
    script.starts(w1, "urgent", "r0", "r1", "s0", "r2").nothing_else()  # "urgent" counts for its run


def test_tasks_are_packed_by_their_resources(script: BossScript) -> None:
    big, small = {"cpus": 3.0, "gpus": 1.0}, {"cpus": 1.0}
    script.push(
        "r",
        task("big", resources=big, runtime_s=60.0),
        *(task(f"s{i}", resources=small, runtime_s=60.0) for i in range(3)),
    )
    plain = script.worker("w1", cpus=2)
    script.starts(plain, "s0", "s1")
    rich = script.worker("w2", cpus=4, gpus=1)
    script.starts(rich, "big", "s2").nothing_else()


def test_a_worker_that_lost_a_gpu_gets_no_task_for_it() -> None:
    """It says Hello again with what is left; what runs there stays its own."""
    script = BossScript(ahead_max=0)
    script.push("r", *(task(f"g{i}", resources={"cpus": 1.0, "gpus": 1.0}, runtime_s=60.0) for i in range(4)))
    w1 = script.worker("w1", cpus=8, gpus=2)
    script.starts(w1, "g0", "g1").started(w1, "g0", "g1")
    script.hello(w1, resources={"cpus": 8.0, "gpus": 1.0}, home="home-w1").beats(w1)
    script.ended(w1, "g0").stored(w1, "g0").nothing_else()  # g1 is on the one that is left
    script.ended(w1, "g1").stored(w1, "g1").starts(w1, "g2").nothing_else()
    script.hello(w1, resources={"cpus": 8.0, "gpus": 2.0}, home="home-w1").beats(w1)
    script.starts(w1, "g3")


def test_a_large_task_is_not_starved_by_small_ones(script: BossScript) -> None:
    w1 = script.worker("w1", cpus=2)
    script.push("r", *(task(f"s{i}", runtime_s=60.0) for i in range(2)))
    script.starts(w1, "s0", "s1").started(w1, "s0", "s1")
    script.push("big", task("big", resources={"cpus": 2.0}, runtime_s=60.0))
    script.push("more", *(task(f"m{i}", runtime_s=60.0) for i in range(20)))
    script.ended(w1, "s0").stored(w1, "s0").nothing_else()  # kept free for the large one
    script.ended(w1, "s1").stored(w1, "s1").starts(w1, "big")


def test_short_tasks_are_queued_ahead_and_long_ones_are_not() -> None:
    script = BossScript(ahead_max=64)
    w1 = script.worker("w1", cpus=2)
    script.push("short", *(task(f"a{i}", runtime_s=0.001) for i in range(1000)))
    assert len(script.take(w1, wire.StartTasks).attempts) == 2 + 64
    other = BossScript()
    w2 = other.worker("w2", cpus=2)
    other.push("long", *(task(f"b{i}", runtime_s=100.0) for i in range(10)))
    other.starts(w2, "b0", "b1").nothing_else()


def test_what_waits_long_at_a_busy_worker_is_asked_back_for_an_idle_one(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", *(task(f"t{i}", runtime_s=0.05) for i in range(4)))
    script.starts(w1, "t0", "t1", "t2", "t3").started(w1, "t0")
    w2 = script.worker("w2")
    script.wait(1.1)
    assert len(script.take(w1, wire.ReturnTasks).attempts) == 3
    script.returned(w1, "t1", "t2", "t3")
    script.starts(w2, "t1", "t2", "t3")


def test_init_tasks_run_once_in_each_worker_process(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("prepare", init=True), task("a"), task("b"))
    script.starts(w1, "prepare", "a", "b")
    script.ended(w1, "prepare").stored(w1, "prepare").ended(w1, "a").stored(w1, "a").nothing_else()
    script.states(prepare="succeeded", a="succeeded")
    script.push("r", task("prepare", init=True), task("a"), task("b"), task("c"))
    script.ended(w1, "b").stored(w1, "b")
    script.starts(w1, "c").nothing_else()


def test_an_init_task_that_fails_in_three_processes_holds_its_run_and_no_other(script: BossScript) -> None:
    script.push("r", task("prepare", init=True), task("a"))
    for name in ("w1", "w2", "w3"):
        worker = script.worker(name)
        script.starts(worker, "prepare", "a")
        script.ended(worker, "prepare", cause=Cause.EXIT, exit_code=1, error="no license").stored(worker, "prepare")
        script.returned(worker, "a", reason="init")
    assert "no license" in script.store.runs[1].held
    script.states(prepare="failed", a="ready")
    w4 = script.worker("w4", cpus=2)
    script.nothing_else()
    script.push("s", task("other"))
    script.starts(w4, "other").nothing_else()
    script.ask("retry_failed", run="r")
    assert script.store.runs[1].held == ""
    given = [peer for peer in script.peers.values() if any(send.envelope.peer == peer.name for send in script.said)]
    assert len(given) == 1
    script.starts(given[0], "prepare", "a").nothing_else()


def test_an_init_task_that_was_returned_or_whose_run_ended_or_was_dropped_runs_no_more(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("i", init=True), task("a"))
    script.starts(w1, "i", "a").started(w1, "i").states(i="running")
    script.returned(w1, "i", "a", reason="disk full").states(i="ready", a="ready")
    script.ask("cancel", ids=["a"])
    script.states(i="succeeded", a="cancelled")  # prepared nowhere: no task is left that needs it
    assert script.store.runs[1].ended_at == script.now
    script.push("s", task("j", init=True), task("b"))
    script.beats(w1).starts(w1, "j", "b").started(w1, "j")
    script.ask("drop_tasks", run="s")
    script.wait(script.config.lease_s + script.config.lease_margin_s + 1.0)
    assert str(script.store.workers["w1"].state) == "lost"
    assert [run.name for run in script.store.runs.values()] == ["r"]


def test_drained_workers_get_nothing(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.ask("drain_worker", workers=["w1"])
    script.take(w1, wire.Drain)
    script.push("r", task("a"))
    script.nothing_else()
    script.ask("undrain_worker", workers=["w1"])
    script.take(w1, wire.Undrain)
    script.starts(w1, "a")


def test_goodbye_frees_what_was_held(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"))
    script.starts(w1, "a")
    script.hear(w1, wire.Goodbye("its machine ends"))
    script.states(a="ready")
    w2 = script.worker("w2")
    script.starts(w2, "a")


def test_trouble_at_a_worker_costs_nothing_and_is_remembered(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"))
    script.starts(w1, "a").returned(w1, "a", reason="disk full").nothing_else().states(a="ready")
    assert script.store.workers["w1"].trouble == "disk full"
    script.beats(w1, trouble="")
    script.starts(w1, "a")


def test_cancel_is_at_once_and_the_attempt_keeps_its_room(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"), task("b", after="a"), task("c"))
    script.take(w1, wire.StartTasks)
    script.started(w1, "a")
    answer = script.ask("cancel", ids=["a", "b"])
    assert isinstance(answer, wire.RequestDone)
    assert answer.count == 2
    script.take(w1, wire.StopTasks)
    script.states(a="cancelled", b="cancelled")
    script.ended(w1, "a", cause=Cause.STOPPED).stored(w1, "a").states(a="cancelled")
    assert script.store.attempts[script.key("a")].state is AttemptState.ENDED


@pytest.mark.parametrize("is_again", [False, True])
def test_what_is_cancelled_keeps_its_room_until_it_has_stopped_also_for_a_boss_that_starts(is_again: bool) -> None:
    script = BossScript()
    w1 = script.worker("w1", cpus=3)
    script.push("r", task("a", resources={"cpus": 2.0}))
    script.starts(w1, "a").started(w1, "a")
    script.ask("cancel", ids=["a"])
    if is_again:
        script.start().hello(w1, resources={"cpus": 3.0}).beats(w1)
    assert script.boss.fleet.workers["w1"].free["cpus"] == 1.0
    script.ended(w1, "a", cause=Cause.STOPPED)
    assert script.boss.fleet.workers["w1"].free["cpus"] == 3.0


@pytest.mark.parametrize("is_again", [False, True])
def test_a_replaced_attempt_occupies_what_it_was_given_with_until_it_has_stopped(is_again: bool) -> None:
    script = BossScript()
    w1 = script.worker("w1", cpus=3)
    script.push("r", task("a", resources={"cpus": 2.0}))
    script.starts(w1, "a").started(w1, "a")
    script.push("r", task("a", resources={"cpus": 3.0}))
    if is_again:
        script.start().hello(w1, resources={"cpus": 3.0}).beats(w1)
    assert script.boss.fleet.workers["w1"].free["cpus"] == 1.0


def test_retry_failed_takes_what_was_aborted_below_along(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"), task("b", after="a"), task("c", after="b"))
    script.starts(w1, "a").ended(w1, "a", cause=Cause.EXIT, exit_code=1).stored(w1, "a")
    answer = script.ask("retry_failed", run="r")
    assert isinstance(answer, wire.RequestDone)
    assert answer.count == 3
    script.starts(w1, "a").states(a="ready", b="waiting", c="waiting")
    script.ended(w1, "a").stored(w1, "a").starts(w1, "b").ended(w1, "b").stored(w1, "b").starts(w1, "c")


def test_redo_of_a_succeeded_task_leaves_the_others(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"), task("b", after="a"))
    script.starts(w1, "a").ended(w1, "a").stored(w1, "a").starts(w1, "b").ended(w1, "b").stored(w1, "b")
    script.ask("redo_task", ids=["a"])
    script.starts(w1, "a").states(a="ready", b="succeeded")
    assert script.key("a")[1] == 2


def test_dropped_tasks_are_gone(script: BossScript) -> None:
    script.push("r", task("a"), task("b"))
    answer = script.ask("drop_tasks", ids=["a"])
    assert isinstance(answer, wire.RequestDone)
    assert answer.count == 1
    assert script.names["a"] not in script.store.tasks
    script.ask("drop_tasks", run="r")
    assert script.store.runs == {}
    assert script.boss.book.runs == {}


def test_of_a_dropped_task_nothing_more_is_written_when_its_attempt_has_stopped(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"), task("b"))
    script.starts(w1, "a", "b").started(w1, "a")
    key = script.key("a")
    script.ask("drop_tasks", ids=["a"])
    script.hear(w1, wire.TasksEnded((Outcome(*key, Cause.STOPPED),)))
    assert [task_no for task_no, _ in script.store.attempts] == [script.names["b"]]


def test_what_the_next_process_of_a_home_holds_is_stopped_there(script: BossScript) -> None:
    w1 = script.worker("w1", home="h")
    script.push("r", task("a"))
    script.starts(w1, "a")
    w2 = script.peers["w2"] = Peer("w2", "worker")
    w2.key_name, w2.holds = w1.key_name, {script.key("a"): "ended"}
    script.hello(w2, resources={"cpus": 1.0}, home="h").beats(w2)
    script.ask("cancel", ids=["a"])
    script.stops(w2, "a")


def test_pushing_the_same_list_again_changes_only_what_failed(script: BossScript) -> None:
    w1 = script.worker("w1")
    tasks = [task("a"), task("b"), task("c", after="b")]
    script.push("r", *tasks)
    script.take(w1, wire.StartTasks)
    script.ended(w1, "a").stored(w1, "a")
    script.ended(w1, "b", cause=Cause.EXIT, exit_code=1)
    script.states(a="succeeded", b="failed", c="aborted")
    answer = script.push("r", *tasks)
    assert answer.decisions == {"kept": 1, "anew": 2}
    script.states(a="succeeded", b="ready", c="waiting")


def test_what_lies_below_a_changed_definition_is_replaced(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"), task("b", after="a"), task("z"))
    script.take(w1, wire.StartTasks)
    script.ended(w1, "a", "z").ended(w1, "b").states(a="succeeded", b="succeeded", z="succeeded")
    answer = script.push("r", task("a", commands=("false",)), task("b", after="a"), task("z"))
    assert answer.decisions == {"replaced": 2, "kept": 1}
    script.states(a="ready", b="waiting", z="succeeded")


def test_replace_drops_what_the_list_lacks_and_stops_what_runs(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"), task("b"))
    script.take(w1, wire.StartTasks)
    script.started(w1, "a")
    answer = script.push("r", task("a"), merge_strategy="replace")
    assert answer.decisions == {"replaced": 1, "dropped": 1}
    script.take(w1, wire.StopTasks)
    assert script.names["b"] not in script.store.tasks


def test_existing_results_are_skipped_when_asked(script: BossScript) -> None:
    client = script.client()
    tasks = (task("a", results=["x"], overwrite_result=False), task("b", after="a"))
    script.hear(client, wire.SubmitTasks("p", 0, 1, wire.PushOptions("r"), tasks))
    call = script.call(FindResults)
    assert call.paths == ("x",)
    script.handle(ResultsFound(call.token, frozenset({"x"})))
    answer = script.take(client, wire.RunAccepted)
    assert answer.decisions == {"new": 2, "skipped": 1}
    assert answer.states == {"succeeded": 1, "ready": 1}


def test_the_same_push_is_answered_as_before_also_by_a_new_boss(script: BossScript) -> None:
    client = script.client()
    chunk = wire.SubmitTasks("p1", 0, 1, wire.PushOptions("r"), (task("a"),))
    script.hear(client, chunk)
    first = script.take(client, wire.RunAccepted)
    script.hear(client, chunk)
    assert script.take(client, wire.RunAccepted) == first
    script.start()
    script.hello(client)
    script.hear(client, chunk)
    assert script.take(client, wire.RunAccepted) == first
    assert len(script.store.tasks) == 1


def test_a_push_arrives_in_chunks_or_not_at_all(script: BossScript) -> None:
    client = script.client()
    options = wire.PushOptions("r")
    script.hear(client, wire.SubmitTasks("p", 1, 2, options, (task("b", after="a"),)))
    assert script.store.tasks == {}
    script.hear(client, wire.SubmitTasks("p", 0, 2, options, (task("a"),)))
    assert script.take(client, wire.RunAccepted).states == {"ready": 1, "waiting": 1}


def test_ready_work_starts_vms_and_idle_ones_end() -> None:
    script = BossScript().pool("local", maximum=2)
    script.push("r", *(task(f"t{i}") for i in range(5)))
    calls = [script.call(StartVm), script.call(StartVm)]
    script.nothing_else()
    for call in calls:
        assert call.vm_no in script.store.vms, "asked for before the intent was written"
        script.handle(VmStarted(call.vm_no, f"cloud-{call.vm_no}"))
    vm = script.store.vms[calls[0].vm_no]
    peer = script.peers["w"] = type(script.client())("w", "worker")
    hello = wire.Hello("n", "worker", resources={"cpus": 1.0}, boot_nonce=vm.boot_nonce, vm="x", home="h")
    script.handle(MessageArrived(Envelope(1, "w", "", 0, hello), f"vm-{vm.vm_no}"))
    peer.session = script.take(peer, wire.Welcome).session
    script.handle(MessageArrived(Envelope(1, "w", peer.session, 1, wire.Heartbeat(0)), f"vm-{vm.vm_no}"))
    assert script.store.vms[vm.vm_no].state == "running"
    assert script.store.vms[vm.vm_no].worker == "w"


def test_a_vm_is_gone_when_the_clouds_list_lacks_it() -> None:
    script = BossScript().pool("local", maximum=2)
    script.ask("instantiate_worker", n=1)
    vm_no = script.call(StartVm).vm_no
    script.handle(VmStarted(vm_no, "cloud-1"))
    script.ask("end_vms")
    assert script.call(EndVm).cloud_id == "cloud-1"
    script.handle(cloud_lists("local", {vm_no: "cloud-1"}))
    assert script.store.vms[vm_no].state == "ending"
    script.wait(20)
    assert script.call(ListVms).pool == "local"
    script.handle(cloud_lists("local"))
    assert script.store.vms[vm_no].state == "gone"


def test_instantiate_is_bounded_by_the_pool_and_reports_it() -> None:
    script = BossScript().pool("local", maximum=2)
    answer = script.ask("instantiate_worker", n=5)
    assert isinstance(answer, wire.RequestDone)
    assert answer.count == 2
    assert "maximum of 2" in answer.text
    refused = script.ask("instantiate_worker", n=-1)
    assert isinstance(refused, wire.Refused)
    refused = script.ask("instantiate_worker", n=1, pool="nope")
    assert isinstance(refused, wire.Refused)
    assert refused.code == "no_pool"


def test_a_watcher_gets_what_changed(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a"))
    client = script.client()
    script.ask("watch", run="r")
    script.take(client, wire.RunChanged)
    script.starts(w1, "a").ended(w1, "a", cause=Cause.EXIT, exit_code=1, error="boom")
    changed = script.take(client, wire.RunChanged)
    assert changed.states == {"failed": 1}
    assert changed.over
    assert changed.ended[0].text == "boom"


def test_stale_results_are_dropped_from_the_staging_area(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a", results=["x"]))
    script.starts(w1, "a").started(w1, "a")
    script.ask("cancel", ids=["a"])
    script.ended(w1, "a", manifest=(ManifestEntry("x", 1, "aa"),)).stored(w1, "a")
    assert script.call(DropStages).stages == (f"w1/{script.names['a']}-1",)
    assert script.state("a") is TaskState.CANCELLED


def test_old_runs_go_in_time() -> None:
    script = BossScript(keep_runs_s=1000.0)
    w1 = script.worker("w1")
    script.push("r", task("a"))
    script.starts(w1, "a").ended(w1, "a").stored(w1, "a")
    script.wait(3 * 3600)
    assert script.store.runs == {}


def test_what_its_attempt_does_not_declare_is_not_published_and_fails_the_task(script: BossScript) -> None:
    w1 = script.worker("w1")
    script.push("r", task("a", results=("out",)))
    script.starts(w1, "a").started(w1, "a").ended(w1, "a", manifest=(ManifestEntry("other", 1, "aa"),)).stored(w1, "a")
    script.states(a="failed")
    assert script.store.tasks[script.names["a"]].reason == (
        "its worker staged 'other', which is not a result that the task declares"
    )
    assert script.call(DropStages).stages == (f"w1/{script.names['a']}-1",)
    script.nothing_else()


def test_a_boss_that_starts_knows_what_attempts_declared_that_run_on(script: BossScript) -> None:
    w1 = script.worker("w1", cpus=2)
    script.push("r", task("a", results=("out",)), task("b", results=("b",)))
    script.starts(w1, "a", "b").started(w1, "a", "b")
    script.start().hello(w1).beats(w1)
    script.ended(w1, "a", manifest=(ManifestEntry("out", 1, "aa"),))
    assert [item.manifest[0].path for item in script.call(PromoteFiles).promotions] == ["out"]
    script.ended(w1, "b", manifest=(ManifestEntry("out", 1, "aa"),)).states(b="failed")


def test_phases_have_names_and_reasons(script: BossScript) -> None:
    phases = script.boss._phases
    assert len({phase.name for phase in phases}) == len(phases)
    assert all(phase.why.startswith(("after", "before", "last")) for phase in phases)


def test_a_push_that_is_repeated_after_its_run_was_dropped_is_answered_and_not_taken_again(script: BossScript) -> None:
    client = script.client()
    chunk = wire.SubmitTasks("p", 0, 1, wire.PushOptions(run="r"), (task("a"),))
    script.hear(client, chunk)
    first = script.take(client, wire.RunAccepted)
    script.ask("drop_tasks", run="r")
    script.start()  # what the one before had in memory is gone
    client = script.client()
    script.hear(client, chunk)
    assert script.take(client, wire.RunAccepted) == first
    assert not script.store.runs


def test_a_push_that_the_database_can_not_take_is_refused_with_the_remedy_and_others_are_taken() -> None:
    script = BossScript(max_value_bytes=10_000)
    big, small = script.client("big"), script.client("small")
    submit = [
        wire.SubmitTasks(name, 0, 1, wire.PushOptions(run=name), (task("a", commands=("x" * size,)),))
        for name, size in (("big", 20_000), ("small", 10))
    ]
    script.hear(big, submit[0]).hear(small, submit[1])
    (problem,) = script.take(big, wire.RunRejected).problems
    assert problem.startswith("task a: its definition has 20,")
    assert "raise max_allowed_packet" in problem
    assert script.take(small, wire.RunAccepted).run == "small"
    assert [run.name for run in script.store.runs.values()] == ["small"]


def test_a_list_of_results_that_the_database_can_not_take_fails_its_task_with_the_remedy() -> None:
    script = BossScript(max_value_bytes=10_000)
    w1 = script.worker("w1")
    script.push("r", task("a", results=("out",)))
    manifest = tuple(ManifestEntry(f"out/{number}", 1, "aa") for number in range(100))
    script.ended(w1, "a", manifest=manifest).states(a="failed")
    assert "pack them into an archive" in script.store.tasks[script.names["a"]].reason
