"""How many VMs there should be, told as stories. The first part asks the function, the second the whole core."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from boss_script import BossScript, task
from vm_script import cloud_lists, made, script_with_one, started, vm_worker

from boss.core.autoscale.scaling import Demand, FleetSnapshot, IdleVm, Plan, PoolNow, Spot, plan
from boss.core.model.config import PoolConfig
from boss.core.model.effects import EndVm, StartVm
from boss.core.model.events import MessageArrived, VmRefused, VmStarted
from boss.core.model.graph import Shape, Shapes
from ecloud.model import wire
from ecloud.model.wire import Envelope

SHAPES = Shapes()
CPU = SHAPES.of({"cpus": 1})
GPU = SHAPES.of({"cpus": 1, "gpus": 1})


def pool(name: str = "p", cpus: float = 1.0, maximum: int = 10, **now: object) -> PoolNow:
    config = {key: now.pop(key) for key in ("minimum", "spillover", "idle_s") if key in now}
    gpus = now.pop("gpus", 0.0)
    return PoolNow(PoolConfig(name, {"cpus": cpus, "gpus": gpus}, maximum=maximum, **config), **now)  # type: ignore[arg-type]


def ready(count: int, task_s: float | None = None, shape: Shape = CPU, in_s: float = 0.0) -> Demand:
    return Demand(shape, count, task_s, in_s)


def room(cpus: float = 1.0, free: float = 0.0, until_s: float = 0.0) -> Spot:
    return Spot({"cpus": free}, {"cpus": cpus}, until_s)


def planned(
    *pools: PoolNow, demands: Sequence[Demand], rooms: Sequence[Spot] = (), idle: Sequence[IdleVm] = ()
) -> Plan:
    return plan(FleetSnapshot(demands, rooms, pools, idle))


def starts(made: Plan) -> dict[str, int]:
    counts: dict[str, int] = {}
    for start in made.starts:
        assert start.reason
        counts[start.pool] = counts.get(start.pool, 0) + 1
    return counts


# --- what starts ----------------------------------------------------------------------------------


def test_tasks_of_unknown_length_get_a_place_each() -> None:
    assert starts(planned(pool(cpus=4, boot_s=60), demands=[ready(9)])) == {"p": 3}


def test_a_pool_never_has_more_than_its_maximum_and_the_next_one_helps() -> None:
    made = planned(pool("a", maximum=2, alive=1), pool("b"), demands=[ready(4)])
    assert starts(made) == {"a": 1, "b": 3}
    assert "pool a is at its maximum of 2 VMs" in made.notes


def test_a_minimum_is_kept_without_any_work() -> None:
    made = planned(pool(minimum=2, alive=1), demands=[])
    assert starts(made) == {"p": 1}
    assert made.starts[0].reason == "pool p is below its minimum of 2"


def test_vms_that_boot_count_as_what_they_will_be() -> None:
    booting = Spot({"cpus": 4.0}, {"cpus": 4.0}, until_s=50.0)
    assert starts(planned(pool(cpus=4, boot_s=60), demands=[ready(4, 600.0)], rooms=[booting])) == {}
    assert starts(planned(pool(cpus=4, boot_s=60), demands=[ready(5, 600.0)], rooms=[booting])) == {"p": 1}


@pytest.mark.parametrize("task_s", [0.5, 3.0, 7.0, 20.0, 100.0, 900.0])
@pytest.mark.parametrize("cpus", [1.0, 4.0])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_looking_again_asks_for_nothing_more(task_s: float, cpus: float, count: int) -> None:
    demands = [ready(count, task_s)]
    first = starts(planned(pool(cpus=cpus, maximum=60, boot_s=94), demands=demands)).get("p", 0)
    assert first
    for until_s in (94.0, 50.0, 0.0):
        booting = [Spot({"cpus": cpus}, {"cpus": cpus}, until_s) for _ in range(first)]
        assert (
            starts(planned(pool(cpus=cpus, maximum=60, alive=first, boot_s=94), demands=demands, rooms=booting)) == {}
        )


def test_no_vm_starts_whose_work_would_be_done_before_it_is_up() -> None:
    made = planned(pool(boot_s=60), demands=[ready(8, 2.0)], rooms=[room(free=1)])
    assert starts(made) == {}
    assert "sooner than a new VM of pool p" in made.notes[0]


def test_the_same_work_starts_one_if_no_worker_can_do_it() -> None:
    assert starts(planned(pool(boot_s=60), demands=[ready(4, 2.0)])) == {"p": 1}


def test_a_worker_that_is_busy_for_long_does_none_of_it() -> None:
    made = planned(pool(boot_s=60), demands=[ready(4, 2.0)], rooms=[room(until_s=3600)])
    assert starts(made) == {"p": 1}


def test_short_tasks_share_vms_and_long_ones_get_their_own() -> None:
    assert starts(planned(pool(maximum=1000, boot_s=60), demands=[ready(320, 1.0)])) == {"p": 40}
    assert starts(planned(pool(maximum=1000, boot_s=60), demands=[ready(30, 600.0)])) == {"p": 30}


def test_gpus_come_from_the_pool_that_has_them_and_only_for_those_who_ask() -> None:
    made = planned(pool("cpu"), pool("gpu", gpus=1.0, spillover=True), demands=[ready(1), ready(2, shape=GPU)])
    assert starts(made) == {"cpu": 1, "gpu": 2}


def test_what_fits_no_pool_is_named() -> None:
    made = planned(pool(), demands=[ready(3, shape=GPU)])
    assert made.unmet == [GPU]
    assert made.notes == ["3 tasks of 1 cpu, 1 gpu fit no pool"]


def test_a_pool_that_rests_starts_none_says_why_and_another_takes_over() -> None:
    broken = pool("a", closed="3 boots in a row failed")
    assert starts(planned(broken, pool("b", spillover=True), demands=[ready(2)])) == {"b": 2}
    made = planned(broken, demands=[ready(2)])
    assert starts(made) == {}
    assert made.notes == ["no VM of pool a starts for 2 tasks of 1 cpu: 3 boots in a row failed"]


def test_limits_hold_and_are_named() -> None:
    made = planned(pool(maximum=500, may_start=7), demands=[ready(400)])
    assert starts(made) == {"p": 7}
    assert "its limit of VMs that start at the same time is reached" in made.notes[0]
    assert len(planned(pool(maximum=500, may_start=500), demands=[ready(400)]).starts) == 50


def test_the_next_wave_is_met_as_it_comes() -> None:
    soon = [ready(8, 600.0, in_s=50.0)]
    assert starts(planned(pool(boot_s=60), demands=soon)) == {"p": 8}
    assert starts(planned(pool(boot_s=20), demands=soon)) == {}, "a VM asked for later is there in time"


# --- what ends ------------------------------------------------------------------------------------


def test_the_longest_idle_end_first_and_a_minimum_stays() -> None:
    idle = [
        IdleVm(1, "p", 70.0, {"cpus": 1.0}),
        IdleVm(2, "p", 90.0, {"cpus": 1.0}),
        IdleVm(3, "p", 5.0, {"cpus": 1.0}),
    ]
    made = planned(pool(alive=3, minimum=2), demands=[], idle=idle)
    assert [(end.vm_no, end.reason) for end in made.ends] == [(2, "idle for 60 s")]
    assert planned(pool(alive=3), demands=[], idle=idle).next_s == pytest.approx(55.0)


def test_an_idle_vm_is_kept_when_the_next_wave_comes_sooner_than_a_boot() -> None:
    idle = [IdleVm(1, "p", 70.0, {"cpus": 1.0}), IdleVm(2, "p", 90.0, {"cpus": 1.0})]
    made = planned(pool(alive=2, boot_s=94), demands=[ready(1, 60.0, in_s=40.0)], idle=idle)
    assert [end.vm_no for end in made.ends] == [2], "one task needs one VM"
    assert made.notes[-1] == "VM 1 is idle and is kept: 1 task of 1 cpu is ready in 40 s"
    late = planned(pool(alive=2, boot_s=30), demands=[ready(1, 60.0, in_s=40.0)], idle=idle)
    assert len(late.ends) == 2


def test_work_that_it_does_not_fit_keeps_no_vm() -> None:
    idle = [IdleVm(1, "p", 70.0, {"cpus": 1.0})]
    assert len(planned(pool(alive=1), demands=[ready(1, shape=GPU)], idle=idle).ends) == 1


# --- the whole core -------------------------------------------------------------------------------


def test_a_broken_image_costs_few_vms_not_hundreds_and_another_pool_takes_over() -> None:
    script = BossScript().pool("bad", maximum=400).pool("good", maximum=400)
    script.push("r", *(task(f"t{i}") for i in range(300)))
    asked: list[int] = []
    told: list[str] = []
    for _ in range(4):
        new = started(script)
        asked += new
        script.handle(*(VmStarted(no, f"cloud-{no}") for no in new if script.store.vms[no].pool == "bad"))
        script.wait(301.0)
        script.handle(cloud_lists("bad"))
        told.append(script.store.tables.pools["bad"].closed)
    by_pool = [script.store.vms[no].pool for no in asked]
    assert by_pool.count("bad") <= 12
    assert by_pool.count("good") > 0
    assert told[0].startswith("3 boots in a row failed, the last: VM 3: no worker reported within 300 s")


def test_a_pool_that_failed_is_tried_with_one_and_is_well_again() -> None:
    script = BossScript().pool("p", maximum=400)
    script.push("r", *(task(f"t{i}") for i in range(300)))
    first = started(script)
    made(script, *first)
    script.wait(301.0)
    script.handle(cloud_lists("p"))
    assert started(script) == []
    script.wait(60.0)
    probes = started(script)
    assert len(probes) == 1, "one shows whether it is well again"
    made(script, *probes)
    vm_worker(script, probes[0])
    assert script.store.tables.pools["p"].closed == ""
    assert len(started(script)) > 1


def test_where_the_cloud_says_no_less_is_asked_for_and_more_again_when_it_gives() -> None:
    script = BossScript(starts_under_way=8).pool("p", maximum=400)
    vm_no = script_with_one(script)
    script.push("r", *(task(f"t{i}") for i in range(300)))
    asked = started(script)
    assert len(asked) == 8
    made(script, *asked[:4])
    script.handle(*(VmRefused(no, "no more addresses", 10.0, "less") for no in asked[4:]))
    assert started(script) == []
    assert script.store.tables.pools["p"].closed == "no more addresses"
    assert script.store.vms[asked[5]].cause == "refused: less"
    script.wait(11.0)
    assert started(script) == [], "four are under way, and no more than four may be"
    for no in asked[:4]:
        vm_worker(script, no)
    assert len(started(script)) == 4
    assert script.store.vms[vm_no].state == "running"


def test_a_back_off_grows_while_the_cloud_says_no_and_is_forgotten_when_it_gives() -> None:
    script = BossScript().pool("p", maximum=4)
    script.push("r", task("a"))
    waits = []
    for _ in range(4):
        (vm_no,) = started(script)
        script.handle(VmRefused(vm_no, "busy", 10.0, "later"))
        began = script.now
        while not any(isinstance(call, StartVm) for call in script.calls):
            script.wait(5.0)
        waits.append(script.now - began)
    assert waits == [10.0, 20.0, 40.0, 80.0]
    (vm_no,) = started(script)
    made(script, vm_no)
    script.handle(cloud_lists("p"))
    (vm_no,) = started(script)
    script.handle(VmRefused(vm_no, "busy", 10.0, "later"))
    script.wait(10.0)
    assert len(started(script)) == 1


def test_a_vm_that_its_cloud_calls_failed_is_ended_and_its_words_are_kept() -> None:
    script = BossScript().pool("p", maximum=1)
    script.push("r", task("a"))
    (vm_no,) = started(script)
    made(script, vm_no)
    script.handle(cloud_lists("p", {vm_no: "cloud-1"}, {vm_no: ("failed", "no such image 7")}))
    assert script.call(EndVm).vm_no == vm_no
    script.handle(cloud_lists("p"))
    vm = script.store.vms[vm_no]
    assert (vm.state, vm.cause, vm.said) == ("gone", "failed", "no such image 7")


def test_a_vm_that_finds_no_place_is_withdrawn() -> None:
    script = BossScript().pool("p", maximum=1)
    script.push("r", task("a"))
    (vm_no,) = started(script)
    made(script, vm_no)
    pending = cloud_lists("p", {vm_no: "cloud-1"}, {vm_no: ("pending", "no host has room")})
    script.handle(pending)
    assert script.store.vms[vm_no].state == "booting"
    script.wait(130.0)
    script.handle(pending)
    assert script.call(EndVm).vm_no == vm_no
    assert "no host has room" in script.store.vms[vm_no].reason


def test_an_end_is_asked_for_until_the_list_confirms_it_and_each_time_is_counted() -> None:
    script = BossScript().pool("p", maximum=1)
    vm_no = script_with_one(script)
    script.ask("end_vms")
    for _ in range(5):
        script.wait(16.0)
        script.handle(cloud_lists("p", {vm_no: "cloud-1"}))
    vm = script.store.vms[vm_no]
    assert (vm.state, vm.end_asked) == ("ending", 6)
    script.handle(cloud_lists("p"))
    assert script.store.vms[vm_no].gone_at == script.now


def test_every_step_of_a_vms_life_has_its_time() -> None:
    script = BossScript().pool("p", maximum=1)
    script.push("r", task("a"))
    (vm_no,) = started(script)
    born = script.now
    script.wait(2.0)
    made(script, vm_no)
    script.wait(40.0)
    worker = vm_worker(script, vm_no)
    script.wait(1.0)
    script.handle(MessageArrived(Envelope(1, worker.name, worker.session, 2, wire.TasksStarted(())), f"vm-{vm_no}"))
    vm = script.store.vms[vm_no]
    assert (vm.intended_at, vm.started_at, vm.hello_at) == (born, born + 2, born + 42)
    assert vm.first_task_at == born + 43
    assert script.store.tables.pools["p"].boot_s_p50 == 42.0


def test_boot_times_are_remembered_by_the_next_boss() -> None:
    script = BossScript().pool("p", maximum=1)
    script.push("r", task("a"))
    (vm_no,) = started(script)
    made(script, vm_no)
    script.wait(42.0)
    vm_worker(script, vm_no)
    script.start()
    assert script.store.tables.pools["p"].boot_s_p50 == 42.0
    assert script.boss.vms.pools.health["p"].boot_s(0.95) == 42.0


def test_the_budget_stops_new_starts_with_a_sentence_and_lets_go_after_a_day() -> None:
    script = BossScript(vm_hours_per_day=1.0).pool("p", maximum=1, idle_s=7200.0)
    vm_no = script_with_one(script)
    script.wait(3700.0)
    script.handle(cloud_lists("p"))
    assert script.store.vms[vm_no].state == "gone"
    script.push("r", task("a"))
    assert started(script) == []
    row = script.store.tables.pools["p"]
    assert row.closed.startswith("the budget of 1 VM-hours in 24 hours is used up")
    assert "budget" in plan_of(script)["notes"][0]
    script.wait(86_400.0)
    assert len(started(script)) == 1


def test_what_lives_when_the_next_boss_starts_counts_once() -> None:
    script = BossScript(vm_hours_per_day=1.0).pool("p", maximum=1, idle_s=7200.0)
    script.ask("instantiate_worker", n=1)
    (vm_no,) = started(script)
    made(script, vm_no)
    script.wait(60.0)
    vm_worker(script, vm_no)
    script.start()
    vms = script.boss.vms
    assert vms.spending.hours(vms.rows, script.now) == pytest.approx(60.0 / 3600.0)


def test_a_vm_that_a_list_shows_counts_at_once() -> None:
    """The boss died before the cloud answered, and another one begins an hour later."""
    script = BossScript(vm_hours_per_day=1.0).pool("p", maximum=2, idle_s=7200.0)
    script.ask("instantiate_worker", n=1)
    (vm_no,) = started(script)
    script.now += 4000.0
    script.start()
    script.handle()
    script.handle(cloud_lists("p", {vm_no: f"cloud-{vm_no}"}))
    script.push("r", task("a"), task("b"))
    assert started(script) == []
    assert script.store.tables.pools["p"].closed.startswith("the budget of 1 VM-hours in 24 hours is used up")


def plan_of(script: BossScript) -> dict[str, list[str]]:
    answer = script.ask("plan")
    assert isinstance(answer, wire.RequestDone)
    return msgspec.json.decode(answer.text, type=dict[str, list])  # type: ignore[type-arg]


def test_plan_tells_what_would_be_done_and_changes_nothing() -> None:
    script = BossScript().pool("p", maximum=1)
    script.push("r", task("a"), task("b"), task("wide", resources={"cpus": 64.0}))
    started(script)
    before = dict(script.store.vms)
    told = plan_of(script)
    assert script.store.vms == before
    assert started(script) == []
    assert told["starts"] == []
    assert "pool p is at its maximum of 1 VM" in told["notes"]
    assert "1 task of 64 cpus fits no pool" in told["notes"]
    assert told["lines"][0] == "start nothing, end nothing"


def test_a_cloud_that_queues_is_waited_for_and_a_boot_counts_from_the_end_of_the_queue() -> None:
    script = BossScript().pool("p", maximum=1, queues=True)
    script.push("r", task("a"))
    (vm_no,) = started(script)
    made(script, vm_no)
    pending = cloud_lists("p", {vm_no: "cloud-1"}, {vm_no: ("pending", "Resources")})
    for _ in range(1_000):
        script.handle(pending)
        script.wait(10.0)
    assert script.store.vms[vm_no].state == "booting"
    assert script.store.vms[vm_no].said == "Resources"
    script.handle(cloud_lists("p", {vm_no: "cloud-1"}))  # it left the queue, and never reports
    script.wait(280.0)
    assert script.store.vms[vm_no].state == "booting"
    script.wait(30.0)
    assert script.store.vms[vm_no].state == "ending"
    assert "no worker reported within 300 s" in script.store.vms[vm_no].reason


def test_vms_start_for_tasks_that_will_be_ready_before_these_are_up() -> None:
    script = BossScript(ahead_max=0).pool("p", maximum=9, boot_s=60.0)
    worker = script.worker("w1", cpus=2.0)
    wave = [task(f"b{number}", after="a", runtime_s=600.0) for number in range(4)]
    script.push("r", task("alone", runtime_s=50.0), task("a", runtime_s=100.0), *wave)
    script.starts(worker, "alone", "a").started(worker, "alone", "a")
    assert started(script) == [], "they are ready in 100 s, and a VM is up in 60 s"
    for _ in range(10):
        script.wait(5.0).beats(worker)
    assert len(started(script)) == 3, "one of them continues in the slot of a"
