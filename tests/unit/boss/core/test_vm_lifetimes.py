"""A VM's life is what its cloud's own list says, by the cloud's clock; and nothing waits for a time by that clock."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from boss_script import BossScript, task
from vm_script import cloud_lists, made, started, vm_worker

from boss.core.model.effects import EndVm, ListVms, StartVm
from boss.core.model.events import VmsListed
from boss.core.model.rows import VmRow
from ecloud.model import wire

EMPTY = cloud_lists("p")
AN_HOUR_S = 3600.0


def shown(*vm_nos: int, **more: Any) -> VmsListed:
    """A list that shows these VMs."""
    ids = {vm_no: f"cloud-{vm_no}" for vm_no in vm_nos}
    return cloud_lists("p", ids, **more)


def life(vm: VmRow) -> tuple[float | None, float | None]:
    return vm.started_at, vm.gone_at


# --- from when to when ----------------------------------------------------------------------------


def test_a_life_is_from_when_to_when_the_cloud_says() -> None:
    script = BossScript().pool("p", maximum=1)
    script.push("r", task("a"))
    (vm_no,) = started(script)
    script.wait(3.0)
    made(script, vm_no)
    assert life(script.store.vms[vm_no]) == (1003.0, None), "until the cloud tells it is when we heard of it"
    script.handle(shown(vm_no, since={"cloud-1": 1001.0}))
    assert life(script.store.vms[vm_no]) == (1001.0, None)
    script.wait(60.0)
    script.handle(cloud_lists("p", gone={"cloud-1": 1}, since={"cloud-1": 1001.0}, ended={"cloud-1": 1040.0}))
    assert life(script.store.vms[vm_no]) == (1001.0, 1040.0)


def test_where_the_cloud_does_not_say_it_is_when_we_heard_of_it() -> None:
    script = BossScript().pool("p", maximum=1)
    script.push("r", task("a"))
    (vm_no,) = started(script)
    made(script, vm_no)
    script.wait(60.0)
    script.handle(EMPTY)
    assert life(script.store.vms[vm_no]) == (1000.0, 1060.0)


def test_a_list_proves_nothing_of_a_vm_that_it_was_not_asked_about() -> None:
    """The VM was made after the list was ordered, and is gone already: the next list is asked when."""
    script = BossScript().pool("p", maximum=1)
    script.push("r", task("a"))
    (vm_no,) = started(script)
    made(script, vm_no)
    script.handle(cloud_lists("p", asked=frozenset()))
    assert script.store.vms[vm_no].state == "booting"
    script.wait(20.0)
    asked = [call for call in script.calls if isinstance(call, ListVms)][-1]
    assert asked.known == {"cloud-1": vm_no}
    script.handle(
        cloud_lists(
            "p",
            asked=frozenset(asked.known),
            gone={"cloud-1": 1},
            since={"cloud-1": 1000.0},
            ended={"cloud-1": 1001.0},
        )
    )
    assert life(script.store.vms[vm_no]) == (1000.0, 1001.0)


def test_one_that_was_never_answered_and_is_gone_already_is_looked_for_before_it_is_given_up() -> None:
    script = BossScript().pool("p", maximum=1)
    script.push("r", task("a"))
    (vm_no,) = started(script)
    script.start()  # the boss was killed in the middle of the call
    script.wait(100.0)
    asked = [call for call in script.calls if isinstance(call, ListVms)][-1]
    assert asked.lost == {vm_no: script.store.vms[vm_no].boot_nonce}
    script.handle(cloud_lists("p", sought=frozenset()))
    assert script.store.vms[vm_no].state == "intended", "that list was not asked about it"
    gone = {"gone": {"x": vm_no}, "since": {"x": 1002.0}, "ended": {"x": 1050.0}}
    script.handle(cloud_lists("p", sought=frozenset(asked.lost), **gone))
    vm = script.store.vms[vm_no]
    assert (vm.state, vm.cloud_id, life(vm)) == ("gone", "x", (1002.0, 1050.0))


def test_what_is_gone_under_the_number_of_an_intent_that_is_being_asked_for_is_not_its_vm() -> None:
    """A directory of a worker process that an earlier database knew."""
    script = BossScript().pool("p", maximum=1)
    script.push("r", task("a"))
    (vm_no,) = started(script)
    gone = {"gone": {"old": vm_no}, "since": {"old": 2.0}, "ended": {"old": 50.0}}
    script.handle(cloud_lists("p", starting=frozenset({vm_no}), **gone))
    made(script, vm_no)
    vm = script.store.vms[vm_no]
    assert (vm.state, vm.cloud_id, life(vm)) == ("booting", "cloud-1", (1000.0, None))


# --- VMs whose intent was given up ----------------------------------------------------------------


def given_up(script: BossScript) -> int:
    """An intent that was never answered, and no list showed its VM."""
    script.push("r", task("a"))
    (vm_no,) = started(script)
    script.wait(200.0)
    script.handle(EMPTY)
    assert script.store.vms[vm_no].cause == "unanswered"
    script.ask("cancel", run="r")
    started(script)
    return vm_no


def test_what_is_made_after_its_intent_was_given_up_has_a_life_too() -> None:
    script = BossScript().pool("p", maximum=1)
    vm_no = given_up(script)
    late = cloud_lists("p", {vm_no: "late"}, since={"late": 1190.0})
    script.handle(late)
    vm = script.store.vms[vm_no]
    assert (vm.state, vm.cause, vm.cloud_id, life(vm)) == ("gone", "unanswered", "late", (1190.0, None))
    script.start()  # an earlier boss saw it
    script.wait(1.0)
    asked = [call for call in script.calls if isinstance(call, ListVms)]
    script.wait(100.0)
    asked = [call for call in script.calls if isinstance(call, ListVms)]
    assert asked[-1].known == {"late": vm_no}
    script.handle(late)
    script.wait(100.0)
    script.handle(late)
    assert [call.cloud_id for call in script.calls if isinstance(call, EndVm)] == ["late"]
    script.handle(cloud_lists("p", gone={"late": vm_no}, ended={"late": 1500.0}))
    assert life(script.store.vms[vm_no]) == (1190.0, 1500.0)
    script.start()
    script.wait(700.0)
    asked = [call for call in script.calls if isinstance(call, ListVms)]
    assert asked[-1].known == {}


# --- the cloud's clock ----------------------------------------------------------------------------


class Story:
    """What happens to the VMs of a cloud whose clock is off, and all that the boss does meanwhile."""

    def __init__(self, ahead_s: float) -> None:
        self.ahead_s = ahead_s
        config = {"vm_hours_per_day": 0.2, "vm_hours_per_run": 0.15, "lease_s": 10_000.0}
        self.script = BossScript(**config).pool("p", maximum=1, idle_s=30.0)
        self.since: dict[int, float] = {}
        self.told: list[object] = []
        self.vm_no = 0

    def cloud_s(self) -> float:
        return float(int(self.script.now + self.ahead_s))

    def starts(self) -> VmRow:
        """The boss asks for one, as soon as it does, and the cloud makes it."""
        script = self.script
        for _ in range(100):
            if any(isinstance(call, StartVm) for call in script.calls):
                break
            script.wait(10.0)
            script.handle(EMPTY)
            self.note()
        (self.vm_no,) = started(script)
        script.wait(1.0)
        self.since[self.vm_no] = self.cloud_s()
        made(script, self.vm_no)
        return script.store.vms[self.vm_no]

    def wait(self, seconds: float, **more: Any) -> None:
        """The cloud is asked for its list every ten seconds."""
        script, vm_no = self.script, self.vm_no
        until = script.now + seconds
        while script.now < until:
            script.wait(min(10.0, until - script.now))
            listed = shown(vm_no, since={f"cloud-{vm_no}": self.since[vm_no]}, **more)
            self.note()
            script.handle(listed)
            self.note()

    def ends(self) -> None:
        vm_no, id = self.vm_no, f"cloud-{self.vm_no}"
        ended = {"since": {id: self.since[vm_no]}, "ended": {id: self.cloud_s()}}
        self.script.handle(cloud_lists("p", gone={id: vm_no}, asked=frozenset({id}), **ended))
        vm = self.script.store.vms[vm_no]
        assert life(vm) == (self.since[vm_no], self.cloud_s())
        self.note()

    def note(self) -> None:
        """All that is asked of the cloud, said to people, and written but for the cloud's own times."""
        script = self.script
        calls = [call for call in script.calls if isinstance(call, (StartVm, EndVm))]
        script.calls = [call for call in script.calls if isinstance(call, StartVm)]
        rows = [msgspec.structs.replace(vm, started_at=None, gone_at=None) for vm in script.store.vms.values()]
        plan = script.ask("plan")
        assert isinstance(plan, wire.RequestDone)
        spending, runs = script.boss.vms.spending, script.boss.run_budgets
        hours = round(spending.hours(script.boss.vms.rows, script.now), 2)
        pools = [msgspec.structs.replace(pool) for pool in script.store.tables.pools.values()]
        self.told.append((script.now, calls, rows, plan.text, hours, round(runs.spent_s(1) / 36, 0), pools))


def tell(ahead_s: float) -> list[object]:
    """One VM never boots, one waits for a place for ever, one works over two starts of the boss, until the budgets are
    used up; then a day passes."""
    story = Story(ahead_s)
    script = story.script
    script.push("r", task("a", runtime_s=900.0), task("b", runtime_s=900.0))
    vm = story.starts()
    story.wait(330.0)
    assert script.store.vms[vm.vm_no].state == "ending", "its boot has a deadline by our clock"
    story.ends()
    vm = story.starts()
    story.wait(130.0, seen={vm.vm_no: ("pending", "no host has room")})
    assert script.store.vms[vm.vm_no].cause == "no_place"
    story.ends()
    vm = story.starts()
    story.wait(40.0)
    vm_worker(script, vm.vm_no)
    story.wait(100.0)
    script.start()
    story.wait(100.0)
    vm_worker(script, vm.vm_no)
    story.wait(100.0)
    assert "budget" in script.store.tables.pools["p"].closed
    script.ask("kill_worker", name=f"w{vm.vm_no}")
    story.wait(10.0)
    story.ends()
    assert started(script) == []
    script.start()
    for _ in range(50):
        script.wait(2_000.0)
        script.handle(EMPTY)
        story.note()
    assert started(script), "hours fall out of the last 24"
    return story.told


@pytest.mark.parametrize("ahead_s", [AN_HOUR_S, -AN_HOUR_S, 0.7, -900_000.0])
def test_a_cloud_whose_clock_is_off_makes_nothing_else_happen(ahead_s: float) -> None:
    assert tell(ahead_s) == tell(0.0)
