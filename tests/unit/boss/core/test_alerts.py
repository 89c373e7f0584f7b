"""Operator alerts for what lasts too long, once an hour for each cause, as stories of the whole core."""

from __future__ import annotations

from boss_script import BossScript, task
from vm_script import cloud_lists, made, script_with_one, started, vm_worker

from boss.core.model.effects import TellPerson
from boss.core.model.events import DatastoreFailed, VmRefused
from boss.core.model.rows import VmRow
from ecloud.model.tasks import ManifestEntry


def told(script: BossScript) -> list[TellPerson]:
    """What was shouted since the last look."""
    found = [call for call in script.calls if isinstance(call, TellPerson)]
    script.calls = []
    return found


def still_there(script: BossScript, vm: VmRow, seconds: float) -> None:
    """The cloud keeps listing it for this long."""
    for _ in range(int(seconds / 15)):
        script.wait(15.0)
        script.handle(cloud_lists("p", {vm.vm_no: vm.cloud_id}))


def test_an_end_that_fails_for_ten_minutes_is_shouted_about_and_again_after_an_hour() -> None:
    script = BossScript().pool("p", maximum=1)
    vm = script.store.vms[script_with_one(script)]
    script.ask("end_vms")
    still_there(script, vm, 500.0)
    assert told(script) == [], "it may still end"
    still_there(script, vm, 200.0)
    (shout,) = told(script)
    assert shout.cause == "end/p"
    assert "VM 1 (the cloud's cloud-1, asked 4" in shout.text
    assert shout.text.endswith("for 10 minutes: end it by hand in the cloud")
    still_there(script, vm, 3300.0)
    assert told(script) == []
    still_there(script, vm, 400.0)
    assert [shout.cause for shout in told(script)] == ["end/p"]


def test_a_boss_that_starts_again_does_not_shout_again_within_the_hour() -> None:
    script = BossScript().pool("p", maximum=1)
    vm = script.store.vms[script_with_one(script)]
    script.ask("end_vms")
    still_there(script, vm, 700.0)
    assert len(told(script)) == 1
    script.start()
    still_there(script, vm, 700.0)
    assert told(script) == []
    script.handle(cloud_lists("p"))
    script.wait(3700.0)
    assert not any(name.startswith("shouted/") for name in script.store.tables.context), "forgotten when it has ended"


def test_a_cloud_that_does_not_even_list_is_shouted_about_too() -> None:
    script = BossScript().pool("p", maximum=1)
    script_with_one(script)
    script.ask("end_vms")
    script.wait(700.0)
    assert [shout.cause for shout in told(script)] == ["end/p"]


def test_vms_that_end_one_after_another_are_no_trouble() -> None:
    script = BossScript(vm_hours_per_day=0.0).pool("p", maximum=1)
    for _ in range(20):
        vm_no = script_with_one(script)
        script.ask("kill_worker")
        script.wait(60.0)
        script.handle(cloud_lists("p"))
        assert script.store.vms[vm_no].state == "gone"
    assert told(script) == []


def test_a_pool_whose_boots_fail_is_shouted_about_and_not_when_it_is_well_again() -> None:
    script = BossScript().pool("p", maximum=10)
    script.push("r", *(task(f"t{i}") for i in range(10)))
    made(script, *started(script))
    script.wait(301.0)
    script.handle(cloud_lists("p"))
    script.wait(30.0)
    (shout,) = [call for call in script.calls if isinstance(call, TellPerson)]
    assert shout.cause == "pool/p"
    assert shout.text.startswith("pool p starts no VM: 3 boots in a row failed, the last: VM 3: no worker reported")
    script.wait(60.0)
    (probe,) = started(script)
    made(script, probe)
    vm_worker(script, probe)
    assert not script.boss.vms.pools.health["p"].failing


def test_wrong_credentials_are_shouted_about_at_once_and_a_busy_cloud_only_when_it_lasts() -> None:
    script = BossScript().pool("p", maximum=1)
    script.push("r", task("a"))
    script.handle(VmRefused(*started(script), "OpenNebula refuses the login", 300.0, "credentials"))
    script.wait(31.0)
    (shout,) = told(script)
    assert (shout.cause, shout.text) == ("pool/p", "pool p starts no VM: OpenNebula refuses the login")

    script = BossScript().pool("p", maximum=1)
    script.push("r", task("a"))
    script.handle(VmRefused(*started(script), "it is busy", 10.0, "later"))
    script.wait(60.0)
    assert told(script) == []


def test_a_budget_that_is_used_up_is_shouted_about() -> None:
    script = BossScript(vm_hours_per_day=0.1).pool("p", maximum=1, idle_s=7200.0)
    script_with_one(script)
    script.wait(500.0)
    (shout,) = told(script)
    assert shout.cause == "budget"
    assert shout.text.startswith("no VM starts automatically: the budget of 0.1 VM-hours in 24 hours is used up")


def test_a_datastore_that_is_away_for_long_is_shouted_about() -> None:
    script = BossScript()
    worker = script.worker("w")
    script.push("r", task("a", results=["out"]))
    script.started(worker, "a").ended(worker, "a", manifest=(ManifestEntry("out", 5, "ab"),))
    for _ in range(25):
        promotes = [call for call in script.calls if type(call).__name__ == "PromoteFiles"]
        script.calls = [call for call in script.calls if isinstance(call, TellPerson)]
        script.handle(*(DatastoreFailed(call, "the datastore is away") for call in promotes))
        script.wait(31.0)
        script.beats(worker)
    (shout,) = told(script)
    assert (shout.cause, shout.text.partition(":")[2]) == ("datastore", " the datastore is away")
