"""What the simulation has found, each told once more in a few lines."""

from __future__ import annotations

import pytest
from boss_script import BossScript, Peer, task
from worker_script import WorkerScript

from boss.core.model.effects import LoadRun, PromoteFiles, SelectTasks
from boss.core.model.events import DatastoreFailed, FilesPromoted
from boss.store.store import Deposed
from ecloud.model import wire
from ecloud.model.tasks import Cause, Condition, Dependency, ManifestEntry, Outcome, Retries, TaskDefinition
from ecloud.model.wire import Envelope
from sim.store import Store
from worker.core.events import ConnectionFound, ConnectionLost, MessageArrived, WorkerConfig
from worker.core.worker_core import WorkerCore

FILE = (ManifestEntry("x", 1, "aa"),)


def rescue(number: str) -> TaskDefinition:
    """A task that needs a to fail and b to succeed; b changes with `number`."""
    return TaskDefinition("c", ("true",), (Dependency("a", Condition.FAILURE), Dependency("b")), env={"n": number})


def test_what_a_dependency_made_impossible_does_not_wait_for_the_others() -> None:
    """a succeeded; c needs it to fail, and waits for b too, which runs again: c must not run."""
    script = BossScript()
    w1 = script.worker("w1")
    script.push("r", task("a"), task("b"), rescue("1"))
    script.ended(w1, "a").states(c="aborted")
    script.push("r", task("a"), task("b", priority=1), rescue("2"))
    script.states(a="succeeded", c="aborted")


def test_what_runs_on_waits_for_its_redone_dependency_when_it_is_tried_again() -> None:
    script = BossScript(retry_backoff_s=0.0)
    w1 = script.worker("w1", cpus=2)
    script.push("r", task("a"), task("b", after="a", retries=Retries(1)))
    script.ended(w1, "a").started(w1, "b")
    script.ask("redo_task", ids=["a"])
    script.states(b="running")
    script.ended(w1, "b", cause=Cause.EXIT).states(b="waiting")
    script.ended(w1, "a").states(b="ready")


def test_of_two_attempts_the_later_has_the_last_word_on_their_files() -> None:
    script = BossScript()
    w1 = script.worker("w1")
    script.push("r", task("a", results=("x",)))
    script.ended(w1, "a", manifest=FILE)
    first = script.call(PromoteFiles)
    script.handle(DatastoreFailed(first, "away"))
    script.push("r", task("a", results=("x",), priority=1), merge_strategy="replace")
    script.ended(w1, "a", manifest=FILE)
    assert not [call for call in script.calls if isinstance(call, PromoteFiles)]
    script.wait(1.0)
    assert script.call(PromoteFiles) == first
    script.handle(FilesPromoted(((script.names["a"], 1, None),)))
    assert script.call(PromoteFiles).promotions[0].number == 2
    script.states(a="running")
    script.handle(FilesPromoted(((script.names["a"], 2, None),)))
    script.states(a="succeeded")


def test_after_a_restart_a_replaced_task_does_not_count_on_the_attempt_still_being_published() -> None:
    script = BossScript()
    w1 = script.worker("w1")
    script.push("r", task("a", results=("x",)))
    script.ended(w1, "a", manifest=FILE)
    script.push("r", task("a", results=("x",), resources={"cpus": 2.0}), merge_strategy="replace")
    script.start()
    script.handle(FilesPromoted(((script.names["a"], 1, None),)))
    script.states(a="ready")


def test_a_core_that_starts_again_in_the_same_epoch_uses_new_names_of_sessions() -> None:
    script = BossScript()
    before = script.worker("w1").session
    script.now += 0.001
    script.begin_anew()
    assert script.worker("w1").session != before


def test_a_dropped_run_is_forgotten_whatever_its_init_tasks_did() -> None:
    script = BossScript()
    w1 = script.worker("w1")
    script.push("r", task("i", init=True), task("a"))
    script.ended(w1, "i", cause=Cause.EXIT, error="no")
    script.ask("drop_tasks", run="r")
    script.wait(1.0)
    assert not script.boss.book.runs


def ends(script: BossScript, peer: Peer, id: str, cause: Cause = Cause.SUCCESS) -> None:
    """The worker says how its own attempt of the task ended: init tasks are tried in each worker."""
    keys = [key for key, row in script.store.attempts.items() if row.worker == peer.name and key[0] == script.names[id]]
    script.hear(peer, wire.TasksEnded((Outcome(*max(keys), cause, error="no"),)))


def test_two_init_tasks_that_each_failed_where_the_other_succeeded_leave_a_run_stuck() -> None:
    script = BossScript()
    w1, w2 = script.worker("w1"), script.worker("w2")
    script.push("r", task("i", init=True), task("j", init=True), task("a"), task("b"))
    for worker, good, bad in ((w1, "i", "j"), (w2, "j", "i")):
        ends(script, worker, good)
        ends(script, worker, bad, Cause.EXIT)
        id = next(id for id in "ab" if script.store.attempts[script.key(id)].worker == worker.name)
        script.returned(worker, id, reason="init")
    (run,) = script.boss.book.runs.values()
    assert run.stuck == "init tasks j, i failed in 2 worker processes, all there are"


def test_the_number_of_an_init_attempt_is_not_given_twice() -> None:
    """The run ends while a second worker process still prepares itself; later it runs again."""
    script = BossScript()
    w1 = script.worker("w1")
    script.push("r", task("i", init=True), task("a"), task("b", resources={"licence": 1.0}))
    ends(script, w1, "i")
    w2 = script.worker("w2", licence=1.0)
    assert script.key("i")[1] == 2, "the second worker prepares itself too"
    script.ask("cancel", run="r")
    ends(script, w2, "i")
    assert script.store.tasks[script.names["i"]].attempts == 2


def test_a_boss_that_was_deposed_reads_no_more() -> None:
    store = Store()
    store.lead("old", 0.0)
    Store(store.tables).lead("new", 0.0, replace=True)
    with pytest.raises(Deposed):
        store.load_runs([LoadRun(1, "r")])
    with pytest.raises(Deposed):
        store.select(SelectTasks(1, run="r"))


def test_a_deposed_boss_has_no_say_in_a_session_with_the_one_that_leads() -> None:
    core = WorkerCore(WorkerConfig("w1", "h", {"cpus": 1.0}), 0.0)
    hello = core.handle([ConnectionFound()], 0.0).says[0].message
    assert isinstance(hello, wire.Hello)
    welcome = wire.Welcome(hello.nonce, "s", 5.0, 60.0)
    core.handle([MessageArrived(Envelope(1, "w1", "s", 0, welcome, 7))], 0.1)
    refused = wire.Refused("session", "who are you", about="s")
    core.handle([MessageArrived(Envelope(1, "w1", "s", 0, refused, 6))], 0.2)
    assert core.session == "s"
    core.handle([MessageArrived(Envelope(1, "w1", "s", 0, refused, 7))], 0.3)
    assert core.session == ""


def test_a_worker_whose_lease_ended_gives_back_what_waited_there() -> None:
    """It slept; meanwhile others were given what waited. A new session alone does not make it start that."""
    script = WorkerScript(cpus=1).on_duty()
    script.orders(1, 2).forget_all()
    script.core.handle([ConnectionLost()], script.now)
    script.now += 1000.0
    script.core.handle([ConnectionFound()], script.now)
    hello = script.core._nonce
    welcome = wire.Welcome(hello, "later", 5.0, 60.0)
    said = script.core.handle(
        [MessageArrived(Envelope(1, script.core.config.peer, "later", 0, welcome, 9))], script.now
    )
    returned = [envelope.message for envelope in said.says if isinstance(envelope.message, wire.TasksReturned)]
    assert [[name.task_no for name in message.attempts] for message in returned] == [[2]]
    assert not said.starts


def test_a_retry_does_not_wait_for_the_clock_of_another_boss() -> None:
    script = BossScript(retry_backoff_s=1.0)
    w1 = script.worker("w1")
    script.push("r", task("a", retries=Retries(1)))
    script.ended(w1, "a", cause=Cause.EXIT, error="no")
    script.now -= 7200.0
    script.start()
    script.worker("w1")
    script.wait(90.0)
    assert script.store.attempts[(script.names["a"], 2)]


def test_an_init_task_that_failed_in_the_last_worker_is_tried_there_again_when_a_person_tries_again() -> None:
    """It succeeded elsewhere, so that its run was neither held nor stuck; that worker is gone."""
    script = BossScript()
    w1, w2 = script.worker("w1"), script.worker("w2")
    script.push("r", task("prepare", init=True), task("a"), task("b"))
    script.starts(w1, "prepare", "a").starts(w2, "prepare", "b")
    for peer, cause in ((w1, Cause.EXIT), (w2, Cause.SUCCESS)):
        number = max(number for task_no, number in peer.holds if task_no == script.names["prepare"])
        script.hear(peer, wire.TasksEnded((Outcome(script.names["prepare"], number, cause),)))
    script.returned(w1, "a", reason="init")
    script.ended(w2, "b", cause=Cause.EXIT)
    script.starts(w2, "a").ended(w2, "a")
    script.states(a="succeeded", b="failed")
    script.hear(w2, wire.Goodbye("its machine ends"))
    w1.holds.clear()
    script.beats(w1).said.clear()
    script.ask("retry_failed", run="r")
    script.starts(w1, "prepare", "b")
