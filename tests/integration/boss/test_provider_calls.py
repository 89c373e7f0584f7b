"""Calls to a cloud that take their time, made side by side: what comes of them is true together, not only each for
itself."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest
from opennebula_double import OpenNebula
from services import HOST, wait_until

from boss.core.model.effects import AskRoom, EndVm, ListVms, StartVm
from boss.core.model.events import Event, RoomSeen, VmRefused, VmsListed, VmStarted
from boss.providers.opennebula.provider import Connection, OpenNebulaCloud
from boss.providers.opennebula.transport import Endpoint
from boss.shell.calls import Calls
from boss.shell.storage import Storage
from boss.store.statements import StoreAway
from ecloud.config.home import Home
from ecloud.config.secrets import AccessFile

DEADLINE_S = 30.0


class Desk:
    """The boss's calls, with the inbox that it would read."""

    def __init__(self, directory: Path) -> None:
        self.double = OpenNebula(directory / "cloud").start()
        self.double.add_worker_template()
        self.double.faults.unplugged = True
        cloud = OpenNebulaCloud(
            Connection(Endpoint(self.double.url, "alice", "PASSWORD")),
            "c0ffee",
            "worker",
            lambda name: AccessFile("c0ffee", HOST, 1883, name, "00" * 32),
            60.0,
        )
        small = OpenNebulaCloud(cloud._connection, "c0ffee", "worker", lambda name: cloud._access_of(name), 60.0)
        self.leads: bool | None = True
        self.looked = 0
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        storage = Storage(Home(directory), "c0ffee")
        storage.use(f"dir:{directory}/datastore")
        self.calls = Calls(
            storage, {"big": cloud, "small": small}, {"big": ("fast",)}, self._inbox.put, leads=self._leads
        )

    def _leads(self) -> bool:
        self.looked += 1
        if self.leads is None:
            raise StoreAway("the database does not answer")
        return self.leads

    def start(self, vm_no: int, pool: str = "big") -> None:
        self.calls.make(StartVm(vm_no, pool, {"cpus": 1.0}, f"1-{vm_no}"))

    def next(self) -> Event:
        """What comes into the inbox next."""
        return self._inbox.get(timeout=DEADLINE_S)

    def listed(self) -> dict[int, str]:
        """The VMs of the list that comes next."""
        listed = self.next()
        assert isinstance(listed, VmsListed)
        assert listed.pool == "big"
        return {vm.vm_no: vm.cloud_id for vm in listed.vms if not vm.is_gone}

    def end(self) -> None:
        self.double.let_go.set()
        self.calls.close()
        self.double.end()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.end()


def test_a_vm_that_is_younger_than_a_slow_list_is_not_taken_for_gone(desk: Desk) -> None:
    desk.double.faults.next_calls.append(("vmpool.info", "late"))
    desk.calls.make(ListVms("big"))
    wait_until(lambda: desk.double.calls["vmpool.info"] == 1, what="the list is made, and on its way")
    desk.start(1)
    started = desk.next()
    assert started == VmStarted(1, "0")
    desk.double.let_go.set()
    listed = desk.next()
    assert isinstance(listed, VmsListed)
    assert (listed.vms, listed.asked) == ((), frozenset()), "it was not asked about the VM, and proves nothing of it"


def test_a_start_whose_answer_was_lost_is_no_refusal(desk: Desk) -> None:
    desk.double.faults.next_calls.append(("template.instantiate", "lost"))
    desk.start(1)
    wait_until(lambda: desk.double.vms, what="the VM is made")
    desk.calls.make(ListVms("big"))
    assert desk.listed() == {1: "0"}


def test_a_refusal_says_when_the_pool_may_be_asked_again(desk: Desk) -> None:
    desk.double.alice.quota["VMS"] = "0"
    desk.start(1)
    quota = desk.next()
    assert isinstance(quota, VmRefused)
    desk.double.templates.clear()
    desk.double.alice.quota.clear()
    desk.start(2)
    lost = desk.next()
    assert isinstance(lost, VmRefused)
    assert (quota.vm_no, lost.vm_no) == (1, 2)
    assert quota.retry_s < lost.retry_s
    assert (quota.cause, lost.cause) == ("less", "pool")


def test_an_end_that_is_refused_says_nothing_to_the_boss(desk: Desk) -> None:
    """It asks again, until a list confirms it."""
    desk.double.faults.never_boots = True
    desk.start(1)
    desk.next()
    wait_until(lambda: desk.double.vms[0].lcm == 2, what="the VM boots")
    desk.calls.make(EndVm(1, "big", "0"))
    wait_until(lambda: desk.double.calls["vm.action"] == 1)
    desk.calls.make(ListVms("big"))
    assert desk.listed() == {1: "0"}


def test_one_list_shows_the_vms_of_all_pools_of_a_cloud(desk: Desk) -> None:
    desk.start(1, "big")
    desk.start(2, "small")
    started = {desk.next(), desk.next()}
    assert {event.vm_no for event in started if isinstance(event, VmStarted)} == {1, 2}
    desk.calls.make(ListVms("big"))
    assert set(desk.listed()) == {1, 2}
    assert desk.double.calls["vmpool.info"] == 1


def test_a_list_says_which_starts_are_still_under_way(desk: Desk) -> None:
    desk.double.faults.next_calls.append(("template.instantiate", "late"))
    desk.start(1)
    wait_until(lambda: desk.double.vms, what="the VM is made, and its answer on its way")
    desk.calls.make(ListVms("big"))
    listed = desk.next()
    assert isinstance(listed, VmsListed)
    (vm,) = listed.vms
    assert (vm.vm_no, vm.cloud_id, listed.starting) == (1, "0", frozenset({1}))
    assert vm.since == desk.double.vms[0].made_at
    desk.double.let_go.set()
    assert desk.next() == VmStarted(1, "0")
    desk.calls.make(ListVms("big"))
    listed = desk.next()
    assert isinstance(listed, VmsListed)
    assert listed.starting == frozenset()


def test_a_list_tells_of_those_that_it_was_asked_about_when_they_were_gone(desk: Desk) -> None:
    for vm_no, cloud_id in ((1, "0"), (2, "1")):
        desk.start(vm_no)
        assert desk.next() == VmStarted(vm_no, cloud_id)
    gone = desk.double.vms[0]
    desk.double.vanish(gone)
    desk.calls.make(ListVms("big", {"0": 1, "1": 2}, {7: "1-7"}))
    listed = desk.next()
    assert isinstance(listed, VmsListed)
    told = {vm.cloud_id: vm for vm in listed.vms}
    assert {cloud_id: (vm.vm_no, vm.is_gone) for cloud_id, vm in told.items()} == {"0": (1, True), "1": (2, False)}
    assert (told["0"].since, told["0"].ended) == (gone.made_at, gone.ended_at)
    assert (listed.asked, listed.sought) == (frozenset({"0", "1"}), frozenset({7}))


def test_a_deposed_boss_makes_no_call_that_was_queued(desk: Desk) -> None:
    desk.start(1)
    assert desk.next() == VmStarted(1, "0")
    desk.leads = False
    desk.start(2)
    desk.calls.make(EndVm(1, "big", "0"))
    desk.calls.make(ListVms("big"))
    desk.calls.make(AskRoom("big"))
    wait_until(lambda: desk.looked == 5, what="each call looks who leads")
    desk.leads = True
    desk.start(3)
    assert desk.next() == VmStarted(3, "1")
    assert desk.double.calls["template.instantiate"] == 2
    assert desk.double.calls["vm.action"] == 0
    assert desk.double.calls["vmpool.info"] == 0


def test_while_the_database_can_t_tell_who_leads_nothing_is_asked_of_the_cloud(desk: Desk) -> None:
    desk.leads = None
    desk.start(1)
    refused = desk.next()
    assert isinstance(refused, VmRefused)
    assert refused.reason == "the database cannot tell whether this boss still leads: the database does not answer"
    desk.calls.make(AskRoom("big"))
    assert desk.next() == RoomSeen("big", None)
    assert not desk.double.vms


def test_capacity_is_reported_with_its_reason_and_what_cannot_be_read_bounds_nothing(desk: Desk) -> None:
    desk.double.alice.quota["VMS"] = "3"
    desk.calls.make(AskRoom("big"))
    assert desk.next() == RoomSeen("big", 3, "user alice has a quota of 3 for VMS")
    desk.double.faults.next_calls.append(("user.info", "500"))
    desk.calls.make(AskRoom("big"))
    assert desk.next() == RoomSeen("big", None)
