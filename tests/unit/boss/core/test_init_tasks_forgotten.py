"""What is remembered of init tasks ends with their run at the boss, and with the thousandth newer one at a worker."""

from __future__ import annotations

import pytest
from boss_script import BossScript, Peer, task
from worker_script import WorkerScript, order

from boss.core.boss import ARCHIVE_EVERY_S
from ecloud.model import wire
from ecloud.model.tasks import Cause, Outcome
from worker.core import attempts


def init_ends(script: BossScript, peer: Peer, id: str, cause: Cause = Cause.SUCCESS) -> None:
    """The worker's own attempt of an init task."""
    keys = [key for key, row in script.store.attempts.items() if row.worker == peer.name and key[0] == script.names[id]]
    script.hear(peer, wire.TasksEnded((Outcome(*max(keys), cause),)))


def test_how_an_init_task_stood_in_a_worker_is_forgotten_with_its_run() -> None:
    script = BossScript(keep_runs_s=60.0, lease_s=1e6, heartbeat_s=1e5)
    w1 = script.worker("w1")
    script.push("r", task("i", init=True), task("a"))
    init_ends(script, w1, "i")
    script.ended(w1, "a")
    assert script.boss.fleet.workers["w1"].inits
    script.wait(2 * ARCHIVE_EVERY_S)
    assert not script.boss.book.runs
    assert not script.boss.fleet.workers["w1"].inits


def test_an_init_task_whose_run_is_gone_is_not_remembered_when_it_ends() -> None:
    script = BossScript()
    w1 = script.worker("w1")
    script.push("r", task("i", init=True), task("a"))
    key = max(key for key in script.store.attempts if key[0] == script.names["i"])
    script.ask("drop_tasks", run="r")
    script.hear(w1, wire.TasksEnded((Outcome(*key, Cause.SUCCESS),)))
    assert not script.boss.fleet.workers["w1"].inits


def test_a_worker_that_forgot_what_prepared_it_is_prepared_again() -> None:
    script = BossScript()
    w1 = script.worker("w1")
    script.push("r", task("i", init=True), task("a"))
    init_ends(script, w1, "i")
    script.returned(w1, "a", reason="init")
    script.beats(w1)
    assert max(key for key in script.store.attempts if key[0] == script.names["i"])[1] == 2
    init_ends(script, w1, "i")
    script.ended(w1, "a").states(a="succeeded")


def test_a_worker_remembers_the_init_tasks_that_were_ordered_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "INITS_KEPT", 2)
    script = WorkerScript(cpus=1).on_duty()
    core = script.core.attempts
    for number in range(1, 6):
        core.on_start_tasks([order(number, init=True)], takes=True)
    assert list(core.inits) == [1, 2, 3, 4, 5], "none that waits is forgotten"
    for number in range(1, 6):
        core._unqueue((number, 1))
    core.on_start_tasks([order(6, init=True), order(7, after_init=(2,))], takes=True)
    assert list(core.inits) == [2, 6]
