"""VMs whose answers got lost, lists that show more or less than is known, and the room that a cloud says it has."""

from __future__ import annotations

import msgspec
from boss_script import BossScript, Peer, task
from vm_script import cloud_lists, made, vm_worker

from boss.core.model.cloud_vms import CloudState, VmFound
from boss.core.model.effects import AskRoom, EndVm, ListVms, StartVm
from boss.core.model.events import BrokerLost, MessageArrived, RoomSeen, VmRefused, VmsListed, VmStarted
from ecloud.model import wire
from ecloud.model.tasks import Cause
from ecloud.model.wire import Envelope

EMPTY = cloud_lists("p")


def one_pool(maximum: int = 1, **config: float) -> BossScript:
    return BossScript(**config).pool("p", maximum=maximum)


def asked(script: BossScript) -> list[int]:
    """The intents that the cloud was asked for since the last look."""
    found = [call.vm_no for call in script.calls if isinstance(call, StartVm)]
    script.calls = [call for call in script.calls if not isinstance(call, StartVm)]
    return found


def ended(script: BossScript) -> list[str]:
    """The VMs whose end was asked for since the last look."""
    found = [call.cloud_id for call in script.calls if isinstance(call, EndVm)]
    script.calls = [call for call in script.calls if not isinstance(call, EndVm)]
    return found


def lists(script: BossScript) -> int:
    """How often the cloud was asked for its list since the last look."""
    count = sum(1 for call in script.calls if isinstance(call, ListVms))
    script.calls = [call for call in script.calls if not isinstance(call, ListVms)]
    return count


def shown(**vms: int) -> VmsListed:
    """A list that shows these, each by its cloud id with its intent."""
    return cloud_lists("p", {vm_no: cloud_id for cloud_id, vm_no in vms.items()})


def agent(script: BossScript, vm_no: int, nonce: str = "") -> Peer:
    """A worker with the key of that VM joins."""
    peer = script.peers[f"w{vm_no}"] = Peer(f"w{vm_no}", "worker")
    hello = wire.Hello("n", "worker", resources={"cpus": 1.0}, boot_nonce=nonce, home=f"h{vm_no}")
    script.handle(MessageArrived(Envelope(wire.PROTOCOL_VERSION, peer.name, "", 0, hello), f"vm-{vm_no}"))
    peer.session = script.take(peer, wire.Welcome).session
    says(script, peer, vm_no, 1)
    return peer


def says(script: BossScript, peer: Peer, vm_no: int, number: int) -> None:
    beat = Envelope(wire.PROTOCOL_VERSION, peer.name, peer.session, number, wire.Heartbeat(0))
    script.handle(MessageArrived(beat, f"vm-{vm_no}"))


# --- an answer that is lost -----------------------------------------------------------------------


def test_an_intent_waits_as_long_as_its_call_may_be_under_way() -> None:
    script = one_pool()
    script.push("r", task("a"))
    (vm_no,) = asked(script)
    for _ in range(6):  # the call hangs, behind others in the queue
        script.wait(40.0)
        script.handle(cloud_lists("p", starting=frozenset({vm_no})))
    assert script.store.vms[vm_no].state == "intended"
    script.wait(60.0)
    script.handle(EMPTY)
    assert script.store.vms[vm_no].state != "gone", "the cloud may still work on a call that was given up"
    script.wait(40.0)
    script.handle(EMPTY)
    vm = script.store.vms[vm_no]
    assert (vm.state, vm.cause, vm.reason) == ("gone", "unanswered", "the cloud has no VM of this intent")


def test_a_boss_that_was_killed_in_the_middle_of_a_call_waits_for_the_list_to_show_its_vm() -> None:
    script = one_pool()
    script.push("r", task("a"))
    (vm_no,) = asked(script)
    intended_at = script.now
    script.wait(200.0)
    script.start()
    script.handle(EMPTY)
    assert script.store.vms[vm_no].state == "intended"
    script.wait(30.0)
    script.handle(cloud_lists("p", {vm_no: "late"}, since={"late": intended_at + 210.0}))
    vm = script.store.vms[vm_no]
    assert (vm.state, vm.cloud_id) == ("booting", "late")
    assert vm.started_at == intended_at + 210.0, "its life began when the cloud says, not when it was found"
    assert asked(script) == []


# --- VMs without an owner --------------------------------------------------------------------------


def test_a_vm_without_an_owner_is_ended_after_a_grace_and_asked_again_until_it_is_gone() -> None:
    script = one_pool()
    script.handle(shown(lost=77))
    assert ended(script) == []
    script.wait(100.0)
    assert lists(script) >= 8, "where something is wrong it looks often"
    script.handle(shown(lost=77))
    assert ended(script) == []
    for _ in range(3):
        script.wait(25.0)
        script.handle(shown(lost=77))
        assert ended(script) == ["lost"]
    script.handle(EMPTY)
    script.wait(200.0)
    assert ended(script) == []


def test_a_vm_without_an_owner_that_goes_within_the_grace_is_forgotten() -> None:
    script = one_pool()
    script.handle(shown(lost=77))
    script.wait(30.0)
    script.handle(EMPTY)
    lists(script)
    script.wait(120.0)
    assert (ended(script), lists(script)) == ([], 2), "it looks as seldom as before"


def test_a_vm_that_came_up_after_its_intent_was_given_up_is_ended() -> None:
    script = one_pool()
    script.push("r", task("a"))
    (vm_no,) = asked(script)
    script.wait(100.0)
    script.handle(EMPTY)
    assert script.store.vms[vm_no].state == "gone"
    (second,) = asked(script)
    script.handle(VmStarted(second, "second"))
    for _ in range(3):
        script.wait(70.0)
        script.handle(shown(lost=vm_no, second=second))
    assert ended(script) == ["lost"]


def test_after_a_restore_a_vm_of_the_lost_history_is_not_taken_for_the_new_one_of_its_number() -> None:
    script = one_pool()
    script.push("r", task("a"))
    (vm_no,) = asked(script)
    old = VmFound(vm_no, "old", boot_nonce=f"1-{vm_no}")
    script.handle(VmsListed("p", (old,), starting=frozenset({vm_no})))
    assert script.store.vms[vm_no].state == "intended"
    script.handle(VmStarted(vm_no, "new"))
    new = VmFound(vm_no, "new", boot_nonce=script.store.vms[vm_no].boot_nonce)
    peer = vm_worker(script, vm_no)
    script.starts(peer, "a")
    for _ in range(6):
        script.wait(25.0)
        says(script, peer, vm_no, peer.number + 1)
        peer.number += 1
        script.handle(VmsListed("p", (old, new)))
    assert script.store.vms[vm_no].state == "running"
    assert set(ended(script)) == {"old"}
    script.handle(VmsListed("p", (new,)))
    assert script.store.vms[vm_no].cloud_id == "new"
    assert not any(isinstance(send.envelope.message, wire.Drain) for send in script.said)


def test_an_unanswered_intent_adopts_its_own_vm_and_not_that_of_the_lost_history() -> None:
    script = one_pool()
    script.push("r", task("a"))
    (vm_no,) = asked(script)
    nonce = script.store.vms[vm_no].boot_nonce
    old = VmFound(vm_no, "old", boot_nonce=f"1-{vm_no}")
    script.handle(VmsListed("p", (old, VmFound(vm_no, "new", boot_nonce=nonce))))
    assert (script.store.vms[vm_no].state, script.store.vms[vm_no].cloud_id) == ("booting", "new")


def test_an_unanswered_intent_is_not_over_because_a_vm_of_the_lost_history_is() -> None:
    script = one_pool()
    script.push("r", task("a"))
    (vm_no,) = asked(script)
    script.wait(100.0)
    script.start()
    script.handle(VmsListed("p", (VmFound(vm_no, "old", CloudState.GONE, boot_nonce=f"1-{vm_no}"),)))
    assert (script.store.vms[vm_no].state, script.store.vms[vm_no].cloud_id) == ("intended", "")


def test_a_copy_that_shows_the_number_of_a_vm_does_not_hide_it() -> None:
    script = one_pool()
    script.push("r", task("a"))
    (vm_no,) = asked(script)
    made(script, vm_no)
    known = VmFound(vm_no, f"cloud-{vm_no}")
    for vms in ((known, VmFound(vm_no, "copy")), (VmFound(vm_no, "copy"), known)):
        script.handle(VmsListed("p", vms))
        assert script.store.vms[vm_no].state == "booting"
    assert ended(script) == []


def test_a_vm_without_an_owner_may_finish_what_its_agent_runs_and_is_ended_when_that_has_left() -> None:
    script = one_pool()
    peer = agent(script, 77)
    script.handle(shown(lost=77))
    assert script.take(peer, wire.Drain).then_exit
    for number in range(2, 12):
        script.wait(30.0)
        says(script, peer, 77, number)
        script.handle(shown(lost=77))
    assert ended(script) == []
    goodbye = Envelope(wire.PROTOCOL_VERSION, peer.name, peer.session, 12, wire.Goodbye("drained"))
    script.handle(MessageArrived(goodbye, "vm-77"))
    script.handle(shown(lost=77))
    assert ended(script) == ["lost"]


def working() -> tuple[BossScript, int, Peer]:
    """A VM whose worker runs the task a."""
    script = one_pool()
    script.push("r", task("a"))
    (vm_no,) = asked(script)
    made(script, vm_no)
    peer = script.peers["w"] = vm_worker(script, vm_no)
    script.starts(peer, "a")
    return script, vm_no, peer


def test_a_vm_that_another_person_shuts_down_gets_no_more_tasks_and_its_tasks_cost_no_retry() -> None:
    script, vm_no, peer = working()
    script.handle(cloud_lists("p", {vm_no: f"cloud-{vm_no}"}, {vm_no: ("ending", "")}))
    script.push("s", task("b"))
    assert script.take(peer, wire.Drain).then_exit
    assert (script.store.vms[vm_no].state, script.store.vms[vm_no].reason) == ("ending", "its cloud shuts it down")
    script.ended(peer, "a", cause=Cause.SIGNAL, signal=15).states(a="ready", b="ready")
    assert [item for item in script.said if isinstance(item.envelope.message, wire.StartTasks)] == []


def test_a_new_boss_does_not_end_a_vm_whose_worker_finishes_its_tasks() -> None:
    """Found by the simulation: a boss that was killed had ordered the worker to finish and leave."""
    script, vm_no, peer = working()
    script.started(peer, "a")
    ending = cloud_lists("p", {vm_no: f"cloud-{vm_no}"}, {vm_no: ("ending", "")})
    script.handle(ending)
    assert script.take(peer, wire.Drain).then_exit
    script.start()
    script.handle(ending)
    assert ended(script) == []
    script.wait(200.0)
    script.handle(ending)
    assert ended(script) == [f"cloud-{vm_no}"], "the worker was lost, and the list still shows its VM"


def test_while_no_worker_can_be_heard_every_vm_is_taken_to_have_an_owner() -> None:
    script = one_pool()
    script.handle(BrokerLost("no route"))
    for _ in range(5):
        script.wait(60.0)
        script.handle(shown(lost=77))
    assert ended(script) == []


def test_the_cloud_is_asked_for_its_list_at_the_start_and_now_and_then_while_no_vm_is_known() -> None:
    script = one_pool(list_idle_every_s=60.0)
    script.wait(181.0)
    assert lists(script) == 3
    assert lists(BossScript().wait(1000.0)) == 0, "without a cloud there is nothing to ask"


# --- one list for all pools of a cloud ------------------------------------------------------------


def two_pools() -> BossScript:
    script = BossScript().pool("p", maximum=2, cloud="one").pool("q", maximum=2, cloud="one", cpus=8.0)
    return script.pool("here", maximum=2, cloud="local", cpus=16.0)


def test_one_list_serves_all_pools_of_a_cloud() -> None:
    script = two_pools()
    script.push("r", task("a"), task("b", resources={"cpus": 8.0}), task("c", resources={"cpus": 16.0}))
    small, large, here = asked(script)
    script.handle(VmStarted(small, "1"), VmStarted(large, "2"), VmStarted(here, "3"))
    script.wait(10.0)
    assert lists(script) == 2
    script.handle(cloud_lists("q", {large: "2"}))
    states = {no: script.store.vms[no].state for no in (small, large, here)}
    assert states == {small: "gone", large: "booting", here: "booting"}


def test_vms_of_a_pool_that_was_removed_from_the_settings_are_ended() -> None:
    script = two_pools()
    script.push("r", task("b", resources={"cpus": 8.0}))
    (large,) = asked(script)
    script.handle(VmStarted(large, "2"))
    script.config = msgspec.structs.replace(script.config, pools=script.config.pools[:1])
    script.start()
    script.handle(cloud_lists("p", {large: "2"}))
    assert script.store.vms[large].reason == "its pool q is no longer in the settings"
    assert script.call(EndVm) == EndVm(large, "p", "2")
    script.handle(EMPTY)
    assert script.store.vms[large].state == "gone"


# --- room -----------------------------------------------------------------------------------------


def telling(maximum: int = 300) -> BossScript:
    """A boss whose cloud tells how much room it has."""
    script = BossScript(starts_under_way=400, starts_a_minute=1000).pool("p", maximum=maximum, tells_room=True)
    with_one = script.ask("instantiate_worker", n=1)
    assert isinstance(with_one, wire.RequestDone)
    (first,) = asked(script)
    script.handle(VmStarted(first, f"cloud-{first}"))
    agent(script, first, script.store.vms[first].boot_nonce)
    return script


def notes(script: BossScript) -> list[str]:
    answer = script.ask("plan")
    assert isinstance(answer, wire.RequestDone)
    return msgspec.json.decode(answer.text)["notes"]  # type: ignore[no-any-return]


def test_room_is_read_before_anything_is_asked_for_and_bounds_it() -> None:
    script = telling()
    script.push("r", *(task(f"t{i}") for i in range(20)))
    assert asked(script) == []
    assert script.call(AskRoom).pool == "p"
    script.handle(RoomSeen("p", 3, "network lab has 3 free addresses of 255"))
    three = asked(script)
    assert len(three) == 3
    assert notes(script) == [
        "pool p has room for 3 more VMs (network lab has 3 free addresses of 255); 3 asked for since"
    ]
    for vm_no in three:
        script.handle(VmStarted(vm_no, f"cloud-{vm_no}"))
    script.wait(3.0)
    assert script.call(AskRoom).pool == "p"
    script.handle(RoomSeen("p", 0, "network lab has 0 free addresses of 255"))
    assert asked(script) == []
    closed = script.store.tables.pools["p"]
    assert closed.closed == "pool p has room for no more VMs (network lab has 0 free addresses of 255)"


def test_a_plan_says_how_much_room_there_is_while_there_is_less_than_it_would_ask_for() -> None:
    script = telling()
    script.push("r", *(task(f"t{i}") for i in range(20)))
    script.call(AskRoom)
    script.handle(RoomSeen("p", 3, "user alice has a quota of 4 for VMS"))
    assert len(asked(script)) == 3
    assert "user alice has a quota of 4 for VMS" in notes(script)[0]


def test_a_full_cloud_is_asked_less_and_less_often_until_it_has_room_again() -> None:
    script = telling()
    script.push("r", *(task(f"t{i}") for i in range(20)))
    waits = []
    for _ in range(5):
        script.call(AskRoom)
        script.handle(RoomSeen("p", 0, "the hosts have room for 0"))
        began = script.now
        while not any(isinstance(call, AskRoom) for call in script.calls):
            script.wait(1.0)
            assert script.now - began < 500
        waits.append(round(script.now - began))
    assert waits == [15, 30, 60, 120, 120]
    script.call(AskRoom)
    script.handle(RoomSeen("p", 50, "the hosts have room for 50"))
    assert len(asked(script)) > 1
    assert script.store.tables.pools["p"].closed == ""


def test_a_cloud_that_does_not_say_how_much_room_it_has_is_asked_for_vms() -> None:
    script = telling()
    script.push("r", *(task(f"t{i}") for i in range(20)))
    script.call(AskRoom)
    script.handle(RoomSeen("p", None))
    assert len(asked(script)) == 18


def test_a_refusal_makes_what_was_known_of_the_room_void() -> None:
    script = telling()
    script.push("r", *(task(f"t{i}") for i in range(5)))
    script.call(AskRoom)
    script.handle(RoomSeen("p", 50, "the hosts have room for 50"))
    for vm_no in asked(script):
        script.handle(VmRefused(vm_no, "no free address", 10.0, "less"))
    script.wait(11.0)
    assert asked(script) == []
    assert script.call(AskRoom).pool == "p"


def test_what_a_full_cloud_refused_is_shown_while_it_is_full() -> None:
    script = telling()
    script.ask("instantiate_worker", n=5)
    two, three = (numbers := asked(script))[:2], numbers[2:]
    for vm_no in two:
        script.handle(VmStarted(vm_no, f"cloud-{vm_no}"))
    for vm_no in three[:2]:
        script.handle(VmRefused(vm_no, "no free address", 10.0, "less"))
    assert not any(isinstance(call, AskRoom) for call in script.calls), "the last may still be given"
    script.handle(VmRefused(three[2], "no free address", 10.0, "less"))
    assert script.call(AskRoom).pool == "p"
    script.handle(RoomSeen("p", 0, "network lab has 0 free addresses of 3"))
    full = "pool p has room for no more VMs (network lab has 0 free addresses of 3)"
    assert script.store.tables.pools["p"].closed == f"{full}; 3 asked for were refused"
    again = script.ask("instantiate_worker", n=1)
    assert isinstance(again, wire.RequestDone)
    assert again.text == f"1 requested in pool p; {full}"
    script.handle(VmRefused(asked(script)[0], "no free address", 10.0, "less"))
    script.call(AskRoom)
    script.handle(RoomSeen("p", 0, "network lab has 0 free addresses of 3"))
    assert script.store.tables.pools["p"].closed == f"{full}; 4 asked for were refused"
    for _ in range(2):  # no task needs more, and the boss still checks
        script.wait(61.0)
        script.call(AskRoom)
        script.handle(RoomSeen("p", 0, "network lab has 0 free addresses of 3"))
    script.wait(121.0)
    script.call(AskRoom)
    script.handle(RoomSeen("p", 1, "network lab has 1 free address of 3"))
    assert script.store.tables.pools["p"].closed == ""
    script.wait(300.0)
    assert not any(isinstance(call, AskRoom) for call in script.calls)


def test_boots_between_the_refusals_of_one_wave_do_not_make_its_rest_longer() -> None:
    script = telling()
    script.ask("instantiate_worker", n=40)
    numbers = asked(script)
    for vm_no, full in zip(numbers[:20], numbers[20:], strict=True):
        script.handle(VmStarted(vm_no, f"cloud-{vm_no}"))
        script.handle(VmRefused(full, "no free address", 10.0, "less"))
        agent(script, vm_no, script.store.vms[vm_no].boot_nonce)
    closed = script.store.tables.pools["p"]
    assert closed.until is not None
    assert closed.until <= script.now + 10.0


def test_a_vm_that_ends_makes_room() -> None:
    script = telling(maximum=4)
    script.push("r", *(task(f"t{i}") for i in range(20)))
    script.call(AskRoom)
    script.handle(RoomSeen("p", 0, "the quota"))
    script.handle(cloud_lists("p"))
    assert script.call(AskRoom).pool == "p"


def test_after_a_restart_a_vm_ends_at_once_with_what_its_worker_runs() -> None:
    script = BossScript().pool("p", maximum=1)
    script.push("r", task("a"))
    vm_no = script.call(StartVm).vm_no
    made(script, vm_no)
    worker = vm_worker(script, vm_no)
    (order,) = script.take(worker, wire.StartTasks).attempts
    held = (wire.HeldAttempt(order.task_no, order.number, "running"),)
    hello = Envelope(1, worker.name, worker.session, 2, wire.Heartbeat(1, held))
    script.handle(MessageArrived(hello, f"vm-{vm_no}"))
    script.start()  # another boss: it has not heard the worker yet, so that no message can reach it
    script.ask("end_vms")
    assert script.call(EndVm).vm_no == vm_no
    again = vm_worker(script, vm_no, held)
    assert script.take(again, wire.Exit).reason.startswith("ended:")
    script.wait(16.0)
    script.handle(cloud_lists("p", {vm_no: f"cloud-{vm_no}"}))
    assert script.call(EndVm).vm_no == vm_no


def test_a_vm_that_is_drained_is_not_ended_while_its_worker_runs_something() -> None:
    script = BossScript().pool("p", maximum=1)
    script.push("r", task("a"))
    vm_no = script.call(StartVm).vm_no
    made(script, vm_no)
    worker = vm_worker(script, vm_no)
    script.take(worker, wire.StartTasks)
    script.ask("drain_worker", workers=[worker.name])
    script.wait(16.0)
    script.handle(cloud_lists("p", {vm_no: f"cloud-{vm_no}"}))
    assert not [call for call in script.calls if isinstance(call, EndVm)]


def test_a_vm_whose_worker_left_is_ended_and_says_why() -> None:
    script = BossScript().pool("p", maximum=1)
    script.ask("instantiate_worker", n=1, keep_alive=True)
    vm_no = script.call(StartVm).vm_no
    made(script, vm_no)
    worker = vm_worker(script, vm_no)
    script.wait(30.0)
    goodbye = Envelope(1, worker.name, worker.session, worker.number + 1, wire.Goodbye("its home is full"))
    script.handle(MessageArrived(goodbye, f"vm-{vm_no}"))
    assert script.call(EndVm).vm_no == vm_no
    vm = script.store.vms[vm_no]
    assert (vm.state, vm.reason) == ("ending", "its home is full")
