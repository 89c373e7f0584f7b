"""Why a ready task waits, answered by the boss from what it decides by."""

from __future__ import annotations

import msgspec
from boss_script import BossScript, task

from boss.core.model.effects import StartVm
from boss.core.model.events import VmRefused
from ecloud.model import wire
from ecloud.model.tasks import Cause


def why(script: BossScript, id: str) -> list[str]:
    answer = script.ask("why", task_no=script.names[id])
    assert isinstance(answer, wire.RequestDone)
    layers = msgspec.json.decode(answer.text, type=list[str])
    assert answer.count == len(layers)
    return layers


def test_no_worker_and_no_pool() -> None:
    script = BossScript()
    script.push("r", task("a"))
    assert why(script, "a") == ["task a needs 1 cpu; no worker is up, no pool has any"]


def test_asking_for_more_than_anybody_has() -> None:
    script = BossScript().pool("p", maximum=1, cpus=8.0)
    script.worker("w1", cpus=2)
    script.push("r", task("a", resources={"cpus": 64.0}))
    assert why(script, "a")[0] == "task a needs 64 cpus; the largest worker has 2 cpus, the largest pool offers 8 cpus"


def test_busy_workers_and_who_goes_first() -> None:
    script = BossScript(ahead_max=0)
    script.worker("w1")
    script.push("r", task("runs", priority=9))
    script.push("r2", task("high", priority=5), task("first"), task("a"))
    assert why(script, "a") == [
        "task a waits its turn: 1 worker that fits it is busy; 1 ready task of higher priority goes first; "
        "1 task of its run is before it"
    ]
    assert why(script, "runs") == [], "a worker has it: rows tell"


def test_workers_that_take_no_tasks() -> None:
    script = BossScript()
    sick, leaving = script.worker("w1"), script.worker("w2")
    script.beats(sick, trouble="the disk is full").hear(leaving, wire.DrainWanted("SIGTERM"))
    script.push("r", task("a"))
    (layer,) = why(script, "a")
    assert (
        "none of the workers that it fits takes tasks now: w1 reports: the disk is full; w2 is draining (SIGTERM)"
        in layer
    )


def test_a_worker_that_was_not_heard_since_the_boss_started_is_known_to_the_boss_alone() -> None:
    script = BossScript()
    script.worker("w1")
    script.push("r", task("a"))
    script.start()
    key = (script.names["a"], 1)
    assert key in script.boss.fleet.workers["w1"].held
    script.push("r2", task("b"))
    assert "w1 was not heard since the boss started" in why(script, "b")[0]


def test_a_run_that_can_not_be_prepared_and_one_that_is_held() -> None:
    script = BossScript(ahead_max=0)
    script.push("r", task("prepare", init=True), task("a"))
    for number in (1, 2, 3):
        worker = script.worker(f"w{number}")
        script.take(worker, wire.StartTasks)
        script.ended(worker, "prepare", cause=Cause.EXIT, error="no module")
        script.hear(worker, wire.TasksReturned((wire.AttemptName(*script.key("a")),), "init"))
    assert why(script, "a")[0].startswith("task a waits because its run is held: init task prepare failed in 3 worker")


def test_pools_that_are_closed_or_full_and_vms_that_boot() -> None:
    script = BossScript().pool("p", maximum=2)
    script.push("r", task("a"), task("b"), task("c"))
    vm_no = script.call(StartVm).vm_no
    layers = why(script, "c")
    assert layers[0].startswith("task c waits: no worker is up; pool p can start one that fits")
    assert any("2 VMs of pool p boot" in layer and "at its maximum of 2 VMs" in layer for layer in layers)
    script.handle(VmRefused(vm_no, "quota is used up", 600.0, "less"))
    assert any("quota is used up" in layer for layer in why(script, "c"))


def test_a_retry_that_waits_and_a_budget_that_is_used_up() -> None:
    script = BossScript(retry_backoff_s=50.0)
    worker = script.worker("w1")
    script.push("r", task("a", retries=msgspec.json.decode(b'{"max": 2}', type=type(task("x").retries))))
    script.starts(worker, "a").ended(worker, "a", cause=Cause.EXIT, error="exit code 1")
    assert why(script, "a")[0] == "task a is tried again in 50 s: exit code 1"


def test_a_pool_that_asks_its_cloud_for_room_first_is_about_to_start_a_vm() -> None:
    script = BossScript().pool("p", maximum=2, tells_room=True)
    script.push("r", task("a"))
    assert any(layer.startswith("the boss is about to start 1 VM of pool p: ") for layer in why(script, "a"))
