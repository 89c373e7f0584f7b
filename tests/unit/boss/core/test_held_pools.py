"""An operator holds a pool: it starts no VM until it is released, under any leader, and every command says why."""

from __future__ import annotations

import json

import pytest
from boss_script import BossScript, task
from vm_script import cloud_lists, made, started, vm_worker

from ecloud.model import wire

HELD = "held by an operator (new image); python admin.py release_pool big"


@pytest.fixture
def script() -> BossScript:
    return BossScript(pending_s=120.0).pool("big", maximum=2, cloud="c")


def answer(script: BossScript, verb: str, **arguments: str | int) -> wire.RequestDone:
    done = script.ask(verb, **arguments)
    assert isinstance(done, wire.RequestDone), done
    return done


def test_a_held_pool_starts_no_vm_and_says_why(script: BossScript) -> None:
    answer(script, "hold_pool", pool="big", reason="new image")
    script.push("r", task("a"))
    script.ask("watch", run="r")
    assert started(script) == []
    assert script.take(script.client(), wire.RunChanged).waits == f"pool big starts no VM: {HELD}"
    assert script.store.tables.pools["big"].closed == HELD
    assert script.store.tables.pools["big"].since == script.now
    plan = json.loads(answer(script, "plan").text)
    assert f"no VM of pool big starts for 1 task of 1 cpu: {HELD}" in plan["notes"]
    assert any(line.startswith("pool big: 0 of 2 VMs") and HELD in line for line in plan["lines"])
    (task_no,) = script.store.tables.tasks
    layers = json.loads(answer(script, "why", task_no=task_no).text)
    assert layers[0] == f"task a waits: no worker is up; no VM of pool big starts: {HELD}"


def test_a_released_pool_starts_what_waits(script: BossScript) -> None:
    answer(script, "hold_pool", pool="big", reason="new image")
    script.push("r", task("a"))
    assert answer(script, "release_pool", pool="big").text == "pool big is released: it may start VMs again"
    assert started(script) == [1]
    assert script.store.tables.pools["big"].closed == ""
    assert not any(name.startswith("held/") for name in script.store.tables.context)
    assert answer(script, "release_pool", pool="big").count == 0


def test_a_hold_outlives_the_boss_with_its_reason_and_its_beginning(script: BossScript) -> None:
    began = script.now
    answer(script, "hold_pool", pool="big", reason="new image")
    script.wait(100.0)
    script.start()
    script.push("r", task("a"))
    assert started(script) == []
    row = script.store.tables.pools["big"]
    assert (row.closed, row.since, row.until) == (HELD, began, None)


def test_another_reason_keeps_the_beginning(script: BossScript) -> None:
    began = script.now
    answer(script, "hold_pool", pool="big")
    assert script.store.tables.pools["big"].closed == "held by an operator; python admin.py release_pool big"
    script.wait(50.0)
    answer(script, "hold_pool", pool="big", reason="new image")
    assert (script.store.tables.pools["big"].closed, script.store.tables.pools["big"].since) == (HELD, began)


def test_vms_of_a_held_pool_continue_and_their_number_is_shown(script: BossScript) -> None:
    script.push("r", task("a"))
    (vm_no,) = started(script)
    made(script, vm_no)
    told = answer(script, "hold_pool", pool="big").text
    assert told == "pool big is held: it starts no VM until python admin.py release_pool big; its 1 VM continues"
    worker = vm_worker(script, vm_no)
    assert script.take(worker, wire.StartTasks).attempts


def test_an_operator_is_refused_vms_of_a_held_pool(script: BossScript) -> None:
    answer(script, "hold_pool", pool="big", reason="new image")
    refused = script.ask("instantiate_worker", n=1)
    assert isinstance(refused, wire.Refused)
    assert (refused.code, refused.reason) == ("held", f"pool big starts no VM: {HELD}")
    assert started(script) == []


def test_vms_that_are_owed_wait_for_the_release(script: BossScript) -> None:
    answer(script, "instantiate_worker", n=1)
    (vm_no,) = started(script)
    made(script, vm_no)
    script.wait(125.0)
    script.handle(cloud_lists("big", {vm_no: f"cloud-{vm_no}"}, {vm_no: ("pending", "no host")}))
    answer(script, "hold_pool", pool="big")
    script.handle(cloud_lists("big"))
    script.wait(600.0)
    assert started(script) == []
    answer(script, "release_pool", pool="big")
    script.wait(1.0)
    assert len(started(script)) == 1


def test_another_pool_that_fits_takes_the_work(script: BossScript) -> None:
    script.pool("other", maximum=1, cloud="c")
    answer(script, "hold_pool", pool="big")
    script.push("r", task("a"))
    (vm_no,) = started(script)
    assert script.store.vms[vm_no].pool == "other"


@pytest.mark.parametrize("verb", ["hold_pool", "release_pool"])
def test_a_pool_that_is_not_set_is_refused(script: BossScript, verb: str) -> None:
    refused = script.ask(verb, pool="bug")
    assert isinstance(refused, wire.Refused)
    assert refused.reason == "there is no pool 'bug'; there are big"
