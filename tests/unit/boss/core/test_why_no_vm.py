"""What keeps VMs from starting reaches those who watch a run immediately, and is withdrawn when it has ended."""

from __future__ import annotations

import pytest
from boss_script import BossScript, task
from vm_script import cloud_lists, made, started, vm_worker

from boss.core.model.events import VmListFailed, VmRefused
from ecloud.model import wire


@pytest.fixture
def script() -> BossScript:
    return BossScript(vm_hours_per_run=0.0).pool("big", maximum=2, cloud="c")


def watched(script: BossScript) -> list[int]:
    """A run of one task that a client watches; the intents that were written for it."""
    script.push("r", task("a"))
    script.ask("watch", run="r")
    picture = script.take(script.client(), wire.RunChanged)
    assert picture.waits == ""
    return started(script)


def waits(script: BossScript) -> str:
    said: str = script.take(script.client(), wire.RunChanged).waits
    return said


def test_a_watcher_hears_at_once_that_a_template_is_refused(script: BossScript) -> None:
    (vm_no,) = watched(script)
    script.handle(
        VmRefused(vm_no, "template worker cannot be started: syntax error; correct the template", 300.0, "pool")
    )
    assert waits(script) == (
        "pool big starts no VM: template worker cannot be started: syntax error; correct the template"
    )


def test_a_watcher_hears_what_a_cloud_says_of_vms_that_wait_and_when_that_ends(script: BossScript) -> None:
    (vm_no,) = watched(script)
    made(script, vm_no)
    text = "[HOST] Dispatch limit reached on hosts"
    listed = cloud_lists("big", {vm_no: f"cloud-{vm_no}"}, {vm_no: ("pending", text)})
    script.wait(20.0)
    script.handle(listed)
    assert waits(script) == f"1 VM of pool big is not up yet: {text}"
    vm_worker(script, vm_no)
    assert waits(script) == ""


def test_a_cloud_that_is_away_is_named_until_it_is_back(script: BossScript) -> None:
    (vm_no,) = watched(script)
    made(script, vm_no)
    script.handle(VmListFailed("big", "the cloud at http://one cannot be reached: Connection refused"))
    text = "the cloud at http://one cannot be reached: Connection refused"
    assert waits(script) == f"pool big starts no VM: {text}"
    assert script.store.tables.pools["big"].closed == text
    script.handle(cloud_lists("big", {vm_no: f"cloud-{vm_no}"}))
    assert waits(script) == ""
    assert script.store.tables.pools["big"].closed == ""


def test_a_long_text_of_a_cloud_does_not_fill_the_message(script: BossScript) -> None:
    (vm_no,) = watched(script)
    script.handle(VmRefused(vm_no, "x" * 100_000, 300.0, "pool"))
    assert len(waits(script)) < 1_000


def test_who_watches_a_run_without_ready_tasks_hears_nothing_of_pools(script: BossScript) -> None:
    (vm_no,) = watched(script)
    script.handle(VmRefused(vm_no, "no", 300.0, "pool"))
    assert waits(script)
    script.ask("cancel", ids=["a"])
    assert waits(script) == ""


def test_a_request_ends_single_vms_by_name(script: BossScript) -> None:
    answer = script.ask("instantiate_worker", n=2)
    assert isinstance(answer, wire.RequestDone)
    assert answer.names == ("vm/1", "vm/2")
    script.ask("end_vms", vms=["vm/2"])
    assert {vm_no: str(vm.state) for vm_no, vm in script.boss.vms.alive.items()} == {1: "intended", 2: "ending"}
    refused = script.ask("end_vms", vms=["vm/7"])
    assert isinstance(refused, wire.Refused)
    assert "no VM vm/7" in refused.reason
