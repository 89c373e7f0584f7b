"""The record of a boot: who is visited when, what is kept of it, and what it is said to have failed of."""

from __future__ import annotations

from typing import Any

import msgspec
from boss_script import BossScript, Peer
from vm_script import cloud_lists, made, started

from boss.core.autoscale.boot_log import LOOK_AGAIN_S, VISIT_AGAIN_S
from boss.core.model.config import PoolConfig
from boss.core.model.effects import VisitVm
from boss.core.model.events import MessageArrived, VmVisited
from boss.core.model.rows import BootRow
from ecloud.model import wire
from ecloud.model.boot_diagnosis import Visit
from ecloud.model.wire import Envelope

HERE = "10.0.0.7"
OLD_PYTHON: dict[str, Any] = {"contact": "ok", "clock_s": 0.0, "python": "3.9", "vm": "1", "by_ssh": True}


def boss_of(gets_code: bool = True, **config: Any) -> BossScript:
    """A boss of one pool, one VM of which was made."""
    pool = PoolConfig("big", {"cpus": 1.0, "memory_mb": 500.0}, maximum=2, visited=True, gets_code=gets_code)
    made_boss = BossScript(pools=(pool,), **config)
    made_boss.ask("instantiate_worker", n=1)
    assert started(made_boss) == [1]
    made(made_boss, 1)
    return made_boss


def lists(boss: BossScript, address: str = HERE) -> None:
    boss.handle(cloud_lists("big", {1: "cloud-1"}, addresses={1: address} if address else {}))


def visits(boss: BossScript) -> list[VisitVm]:
    """Visits that were asked for since the last look."""
    asked = [call for call in boss.calls if isinstance(call, VisitVm)]
    boss.calls = [call for call in boss.calls if not isinstance(call, VisitVm)]
    return asked


def answer(boss: BossScript, visit: Visit, host_key: str = "ssh-ed25519 A", **ago_s: float) -> None:
    boss.handle(VmVisited(1, HERE, host_key, visit, ago_s))


def row(boss: BossScript) -> BootRow:
    return boss.store.tables.boots[1]


def test_a_vm_is_visited_as_soon_as_it_runs_somewhere_and_again_until_its_worker_runs() -> None:
    boss = boss_of()
    lists(boss, "")
    assert visits(boss) == []
    lists(boss)
    nonce = boss.store.vms[1].boot_nonce
    assert visits(boss) == [VisitVm(1, "big", HERE, nonce, "", True)]
    lists(boss)
    assert visits(boss) == []  # the first is under way
    answer(boss, Visit("shut"), host_key="")
    boss.wait(6)
    assert [visit.host_key for visit in visits(boss)] == [""]
    answer(boss, Visit("ok", agent=True), ssh=3.0, code=1.0)
    boss.wait(6)
    assert visits(boss) == []
    boss.wait(30)
    assert [visit.host_key for visit in visits(boss)] == ["ssh-ed25519 A"]


def test_the_first_host_key_is_kept_whatever_is_shown_later() -> None:
    boss = boss_of()
    lists(boss)
    answer(boss, Visit("ok"))
    answer(boss, Visit("changed"), host_key="ssh-ed25519 B")
    assert row(boss).host_key == "ssh-ed25519 A"
    visits(boss)
    lists(boss, "10.0.0.8")
    (visit,) = visits(boss)
    assert (visit.address, visit.host_key) == ("10.0.0.8", "ssh-ed25519 A")


def test_of_another_vm_that_is_met_at_its_address_neither_key_nor_steps_are_taken() -> None:
    boss = boss_of()
    lists(boss)
    answer(boss, Visit("ok", vm="7", boot_nonce="1-7"), ssh=1.0)
    assert (row(boss).host_key, "ssh" in row(boss).steps) == ("", False)
    assert row(boss).visit is not None, "the reason why it is no worker yet comes from that"
    answer(boss, Visit("ok", vm="1", boot_nonce=boss.store.vms[1].boot_nonce), host_key="ssh-ed25519 B", ssh=1.0)
    assert (row(boss).host_key, "ssh" in row(boss).steps) == ("ssh-ed25519 B", True)


def test_an_answer_from_an_address_that_it_has_no_more_is_not_taken_for_it() -> None:
    boss = boss_of()
    lists(boss)
    lists(boss, "10.0.0.8")
    answer(boss, Visit("ok"), ssh=1.0)
    assert (row(boss).host_key, "ssh" in row(boss).steps) == ("", False)


def test_a_vm_with_the_code_inside_is_visited_only_when_it_is_late() -> None:
    boss = boss_of(gets_code=False)
    lists(boss)
    assert visits(boss) == []
    boss.wait(46)
    lists(boss)
    (visit,) = visits(boss)
    assert not visit.prepare


def test_steps_are_those_of_list_visit_and_worker() -> None:
    boss = boss_of()
    boss.wait(10)
    lists(boss)
    boss.wait(10)
    answer(boss, Visit("ok", agent=True), ssh=2.0, code=1.0)
    boss.wait(10)
    steps = {"context": 25.0, "broker": 0.0, "python": 5e9, "nonsense": 1.0, "code": -3.0}
    hello = wire.Hello("n", "worker", resources=boss.store.vms[1].size, boot_nonce=boss.store.vms[1].boot_nonce)
    hello = msgspec.structs.replace(hello, home="h", boot_s=steps)
    boss.handle(MessageArrived(Envelope(1, "w1", "", 0, hello), "vm-1"))
    session = boss.take(Peer("w1", "worker"), wire.Welcome).session
    boss.handle(MessageArrived(Envelope(1, "w1", session, 1, wire.Heartbeat(0)), "vm-1"))
    asked = boss.store.vms[1].intended_at
    after = {step: round(at - asked) for step, at in row(boss).steps.items()}
    assert after == {"address": 10, "ssh": 18, "code": 19, "context": 5, "broker": 30}


def test_what_a_visit_found_is_why_the_boot_failed() -> None:
    boss = boss_of(boot_deadline_s=60.0)
    lists(boss)
    nonce = boss.store.vms[1].boot_nonce
    answer(boss, Visit(**OLD_PYTHON, boot_nonce=nonce, log="its last lines"))
    boss.wait(61)
    vm = boss.store.vms[1]
    assert vm.cause == "python"
    assert vm.reason.startswith("no worker reported within 60 s: its Python is 3.9")
    boss.handle(cloud_lists("big"))
    assert boss.store.vms[1].state == "gone"
    kept = row(boss).visit
    assert kept is not None
    assert kept.log == "its last lines"
    assert boss.boss.vms.boots.rows == {}


def test_without_a_visit_it_is_silent() -> None:
    boss = boss_of(boot_deadline_s=60.0)
    boss.wait(61)
    assert boss.store.vms[1].cause == "silent"


def test_the_next_boss_continues_with_the_pinned_key() -> None:
    boss = boss_of()
    lists(boss)
    answer(boss, Visit("shut"))
    visits(boss)
    boss.start()
    lists(boss)
    assert [visit.host_key for visit in visits(boss)] == ["ssh-ed25519 A"]


def test_the_key_of_a_vm_dies_with_its_intent() -> None:
    boss = boss_of(boot_deadline_s=60.0)
    nonce = boss.store.vms[1].boot_nonce
    boss.wait(61)
    boss.handle(cloud_lists("big"))
    hello = wire.Hello("n", "worker", resources={"cpus": 1.0}, boot_nonce=nonce, home="h")
    boss.handle(MessageArrived(Envelope(1, "w1", "", 0, hello), "vm-1"))
    assert boss.said == []
    assert boss.boss.sessions.ignored["key"] == 1
    boss.start()
    boss.handle(MessageArrived(Envelope(1, "w1", "", 0, hello), "vm-1"))
    assert boss.said == []
    # One of a database that was lost belongs to no intent: its agent may finish, and leaves.
    boss.handle(MessageArrived(Envelope(1, "w2", "", 0, hello), "vm-77"))
    boss.take(Peer("w2", "worker"), wire.Welcome)


def test_a_vm_that_shows_another_host_key_is_visited_less_often() -> None:
    """Time alone does not solve that."""
    boss = boss_of()
    lists(boss)
    visits(boss)
    answer(boss, Visit("changed"), host_key="ssh-ed25519 B")
    boss.wait(VISIT_AGAIN_S + 1)
    assert visits(boss) == []
    boss.wait(LOOK_AGAIN_S)
    assert len(visits(boss)) == 1
