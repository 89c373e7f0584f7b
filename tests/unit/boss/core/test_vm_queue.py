"""VMs that wait at their cloud: one that places VMs slowly and steadily is waited for and not asked for more than it
places; what it finds no place for is withdrawn, and requested again if an operator wanted it. And what happens to a VM
whose end nothing can confirm."""

from __future__ import annotations

from boss_script import BossScript, task
from vm_script import cloud_lists, made, script_with_one, started, vm_worker

from boss.core.autoscale.vm_lists import HIDDEN_S
from boss.core.model.effects import EndVm
from boss.core.model.events import MessageArrived, VmsListed
from ecloud.model import wire
from ecloud.model.wire import Envelope

DISPATCH = "[HOST] Dispatch limit reached on hosts"


def ten_of_a_slow_cloud() -> tuple[BossScript, list[int]]:
    script = BossScript(pending_s=120.0, boot_deadline_s=300.0, lease_s=1e6).pool(
        "p", maximum=10, cloud="c", idle_s=1e6
    )
    script.push("r", *(task(f"t{number}") for number in range(10)))
    vm_nos = started(script)
    made(script, *vm_nos)
    return script, vm_nos


def listed(vm_nos: list[int], up: int, booting: bool = False, state: str = "queued") -> VmsListed:
    """Of these this many run, one is being started, and the others wait."""
    ids = {vm_no: f"cloud-{vm_no}" for vm_no in vm_nos}
    states = dict.fromkeys(vm_nos[:up], ("running", ""))
    states |= dict.fromkeys(vm_nos[up : up + booting], ("booting", ""))
    states |= dict.fromkeys(vm_nos[up + booting :], (state, DISPATCH))
    return cloud_lists("p", ids, states)


def ended(script: BossScript) -> list[int]:
    found = [call.vm_no for call in script.calls if isinstance(call, EndVm)]
    script.calls = [call for call in script.calls if not isinstance(call, EndVm)]
    return found


def test_vms_are_waited_for_while_their_cloud_places_one_after_another() -> None:
    """One in 60 s: the last waits for ten minutes, twice as long as any boot may take, and none is given up."""
    script, vm_nos = ten_of_a_slow_cloud()
    assert len(vm_nos) == 10
    for up in range(10):
        for _ in range(6):
            script.wait(10.0)
            script.handle(listed(vm_nos, up, booting=True))
        vm_worker(script, vm_nos[up])
    assert ended(script) == []
    assert all(script.store.vms[vm_no].state == "running" for vm_no in vm_nos)


def test_vms_are_withdrawn_when_the_cloud_places_none() -> None:
    script, vm_nos = ten_of_a_slow_cloud()
    script.wait(110.0)
    script.handle(listed(vm_nos, 1))
    vm_worker(script, vm_nos[0])
    script.wait(115.0)
    script.handle(listed(vm_nos, 1))
    assert ended(script) == [], "the cloud placed one 115 s ago"
    script.wait(10.0)
    script.handle(listed(vm_nos, 1))
    assert ended(script) == vm_nos[1:]
    vm = script.store.vms[vm_nos[1]]
    assert (vm.cause, vm.reason) == ("no_place", f"its cloud found no host for it in 120 s: {DISPATCH}")


def test_vms_whose_own_pool_gets_no_host_are_withdrawn_although_others_are_placed() -> None:
    """No host is large enough for them: VMs that the cloud starts for another pool are no progress for them."""
    script = BossScript(pending_s=120.0).pool("p", maximum=1, cloud="c").pool("q", maximum=1, cpus=8.0, cloud="c")
    script.push("r", task("a", resources={"cpus": 8.0}), task("b"))
    vms = {script.store.vms[vm_no].pool: vm_no for vm_no in started(script)}
    made(script, *vms.values())
    ids = {vm_no: f"cloud-{vm_no}" for vm_no in vms.values()}
    for _ in range(13):
        script.wait(10.0)
        states = {vms["p"]: ("booting", ""), vms["q"]: ("pending", "Not enough CPU on hosts")}
        script.handle(cloud_lists("p", ids, states))
    assert ended(script) == [vms["q"]]


def test_no_more_are_asked_for_than_the_cloud_places_within_a_boot_time() -> None:
    script = BossScript().pool("p", maximum=100, cloud="c", boot_s=60.0)
    script.push("r", *(task(f"t{number}") for number in range(100)))
    first = started(script)
    made(script, *first)
    script.wait(10.0)
    script.handle(listed(first, 0))
    script.handle()
    assert started(script) == [], "those that wait are enough for a cloud that has placed none"
    script.handle(listed(first, 8))
    for vm_no in first[:8]:
        vm_worker(script, vm_no)
    more = started(script)
    script.handle()
    more += started(script)
    assert len(first) - 8 + len(more) == 8, "as many wait as were placed lately"
    answer = script.ask("plan")
    assert isinstance(answer, wire.RequestDone)
    assert "wait for a host of their cloud, which placed 8 within a boot time" in answer.text


def test_what_a_person_asked_for_is_asked_for_again_also_by_the_next_boss() -> None:
    script = BossScript(pending_s=120.0).pool("p", maximum=3, cloud="c")
    for keep_alive in (False, True, True):
        script.ask("instantiate_worker", n=1, keep_alive=keep_alive)
    vm_nos = started(script)
    made(script, *vm_nos)
    script.wait(125.0)
    script.handle(listed(vm_nos, 0, state="pending"))
    assert ended(script) == vm_nos
    script.handle(cloud_lists("p"))
    assert all(script.store.vms[vm_no].state == "gone" for vm_no in vm_nos)
    script.start()
    script.wait(130.0)
    again = started(script)
    assert len(again) == 3
    assert {script.store.vms[vm_no].reason for vm_no in again} == {"an operator requested it"}
    assert sorted(script.store.vms[vm_no].keep_alive for vm_no in again) == [False, True, True]
    assert "owed/p" not in script.store.tables.context
    script.start()
    script.wait(600.0)
    assert len(started(script)) == 0, "once only"


def test_who_ends_all_vms_wants_none_again() -> None:
    script = BossScript(pending_s=120.0).pool("p", maximum=1, cloud="c")
    script.ask("instantiate_worker", n=1)
    vm_nos = started(script)
    made(script, *vm_nos)
    script.wait(125.0)
    script.handle(listed(vm_nos, 0, state="pending"))
    script.ask("end_vms")
    script.handle(cloud_lists("p"))
    script.start()
    script.wait(600.0)
    assert started(script) == []


def test_an_end_is_asked_for_once_although_its_worker_leaves_at_once() -> None:
    script = BossScript().pool("p", maximum=1, idle_s=5.0)
    script.ask("instantiate_worker", n=1)
    (vm_no,) = started(script)
    made(script, vm_no)
    worker = vm_worker(script, vm_no)
    script.wait(10.0)
    assert ended(script) == [vm_no]
    goodbye = Envelope(1, worker.name, worker.session, worker.number + 1, wire.Goodbye("ordered to leave"))
    script.handle(MessageArrived(goodbye, f"vm-{vm_no}"))
    assert worker.name not in script.boss.fleet.workers
    script.wait(1.0)
    assert ended(script) == []


def hidden(vm_no: int) -> VmsListed:
    return cloud_lists("p", {vm_no: f"cloud-{vm_no}"}, {vm_no: ("hidden", "VM 1 is not visible to user alice")})


def test_a_vm_whose_end_nothing_can_confirm_is_written_off_after_a_deadline() -> None:
    """It was given to another user, and ended: its cloud shows it no more and does not say that it is gone."""
    script = BossScript().pool("p", maximum=1)
    vm_no = script_with_one(script)
    script.ask("end_vms")
    for _ in range(int(HIDDEN_S / 20.0)):
        script.handle(hidden(vm_no))
        script.wait(20.0)
    assert script.store.vms[vm_no].state == "ending"
    script.handle(hidden(vm_no))
    vm = script.store.vms[vm_no]
    assert (vm.state, vm.cause) == ("gone", "written off")
    assert "its cloud has neither listed it nor reported its end" in vm.reason
    assert vm.gone_at == script.now


def test_a_vm_that_is_shown_again_is_not_written_off() -> None:
    script = BossScript().pool("p", maximum=1)
    vm_no = script_with_one(script)
    script.ask("end_vms")
    script.handle(hidden(vm_no))
    script.wait(HIDDEN_S)
    script.handle(cloud_lists("p", {vm_no: f"cloud-{vm_no}"}))
    script.handle(hidden(vm_no))
    assert script.store.vms[vm_no].state == "ending"


def test_a_person_may_write_off_what_does_not_end_and_nothing_else() -> None:
    script = BossScript().pool("p", maximum=1)
    vm_no = script_with_one(script)
    refused = script.ask("forget_vm", vm=f"vm/{vm_no}")
    assert isinstance(refused, wire.Refused)
    assert "is running" in refused.reason
    script.ask("end_vms")
    done = script.ask("forget_vm", vm=f"vm/{vm_no}")
    assert isinstance(done, wire.RequestDone)
    assert "may still run and cost money" in done.text
    vm = script.store.vms[vm_no]
    assert (vm.state, vm.cause) == ("gone", "written off")
    # Where its cloud shows it after all, it is ended like any other that no intent owns.
    for _ in range(20):
        script.wait(10.0)
        script.handle(cloud_lists("p", {vm_no: f"cloud-{vm_no}"}))
    assert vm_no in ended(script)
