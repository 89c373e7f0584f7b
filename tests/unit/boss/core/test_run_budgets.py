"""A run's budget in VM-hours, told as stories of the whole core."""

from __future__ import annotations

import msgspec
import pytest
from boss_script import BossScript, Peer, task
from vm_script import cloud_lists, made, started, vm_worker

from boss.core.model.events import MessageArrived
from ecloud.model import wire
from ecloud.model.tasks import Cause, Outcome
from ecloud.model.vm_life import MICRO, Ran, VmLife, divide
from ecloud.model.wire import Envelope

HOUR_S = 3600.0


def hear(script: BossScript, worker: Peer, message: wire.Message) -> None:
    """A VM's worker says something."""
    worker.number += 1
    envelope = Envelope(1, worker.name, worker.session, worker.number, message)
    script.handle(MessageArrived(envelope, f"vm-{worker.name.removeprefix('w')}"))


def beats(script: BossScript, workers: list[Peer], seconds: float) -> None:
    """Time passes; the workers are heard, with what they hold."""
    until = script.now + seconds
    while script.now < until:
        script.wait(min(30.0, until - script.now))
        for worker in workers:
            held = script.boss.fleet.workers[worker.name].held
            inventory = tuple(wire.HeldAttempt(*key, "running") for key in held)
            hear(script, worker, wire.Heartbeat(1_000_000, inventory))
        alive = {vm.vm_no: vm.cloud_id for vm in script.store.vms.values() if vm.state != "gone" and vm.cloud_id}
        script.handle(cloud_lists("p", alive))


def ends(script: BossScript, worker: Peer, id: str) -> None:
    hear(script, worker, wire.TasksEnded((Outcome(*script.key(id), Cause.SUCCESS),)))


def spent_h(script: BossScript, run_no: int = 1) -> float:
    script.wait(6.0)
    return script.boss.run_budgets.spent_s(run_no) / HOUR_S


def plan_notes(script: BossScript) -> list[str]:
    answer = script.ask("plan")
    assert isinstance(answer, wire.RequestDone)
    return list(msgspec.json.decode(answer.text)["notes"])


def test_a_budget_stops_starts_for_its_run_and_no_other_and_running_work_continues() -> None:
    script = BossScript(vm_hours_per_run=1.0).pool("p", maximum=10)
    script.push("film", *(task(f"f{i}", runtime_s=4000.0) for i in range(2)))
    asked = started(script)
    assert len(asked) == 2
    made(script, *asked)
    workers = [vm_worker(script, no) for no in asked]
    beats(script, workers, 2000.0)
    script.push("film", *(task(f"f{i}", runtime_s=4000.0) for i in range(4)))
    assert started(script) == [], "two VMs for half an hour each are an hour"
    (note,) = [note for note in plan_notes(script) if "budget" in note]
    assert note.startswith("no VM starts for a run: the budget of 1 VM-hours of run film is used up (VM_HOURS_PER_RUN")
    assert script.store.tables.context["budget/1"] in note
    assert script.states(f0="running", f1="running")
    # Another run is not stopped by it.
    script.push("other", task("o", runtime_s=4000.0))
    assert len(started(script)) == 1
    # What becomes free is used: nothing new starts for it.
    ends(script, workers[0], "f0")
    assert script.state("f2").value in ("ready", "running")
    assert script.boss.fleet.workers["w1"].held


def test_a_push_may_ask_for_more_or_for_less() -> None:
    script = BossScript().pool("p", maximum=4)
    script.push("film", task("a", runtime_s=8000.0), vm_hours=1.0)
    made(script, *(asked := started(script)))
    workers = [vm_worker(script, no) for no in asked]
    beats(script, workers, HOUR_S + 10)
    script.push("film", task("a", runtime_s=8000.0), task("b", runtime_s=8000.0))
    assert started(script) == []
    assert "(set by its push)" in script.store.tables.context["budget/1"]
    script.push("film", task("a", runtime_s=8000.0), task("b", runtime_s=8000.0), vm_hours=10.0)
    beats(script, workers, 30.0)
    assert len(started(script)) == 1
    assert "budget/1" not in script.store.tables.context


def test_without_any_budget_nothing_is_reckoned() -> None:
    script = BossScript().pool("p", maximum=1)
    script.push("film", task("a", runtime_s=8000.0))
    made(script, *started(script))
    beats(script, [vm_worker(script, 1)], 600.0)
    assert spent_h(script) == 0.0
    assert script.boss.fleet.follow is None


def test_the_next_boss_continues_the_account_and_does_not_forget() -> None:
    script = BossScript(vm_hours_per_run=1.0).pool("p", maximum=2)
    script.push("film", task("a", runtime_s=8000.0))
    made(script, *started(script))
    worker = vm_worker(script, 1)
    beats(script, [worker], 1800.0)
    before = spent_h(script)
    script.now += 600.0  # no boss leads for ten minutes
    script.start()
    assert spent_h(script) == pytest.approx(before + 600.0 / HOUR_S, rel=0.02)


def test_a_budget_that_is_set_no_more_when_the_next_boss_starts_stops_nothing() -> None:
    script = BossScript(vm_hours_per_run=1.0).pool("p", maximum=2)
    script.push("film", task("a", runtime_s=8000.0))
    made(script, *started(script))
    beats(script, [vm_worker(script, 1)], HOUR_S + 10)
    script.push("film", task("a", runtime_s=8000.0), task("b", runtime_s=8000.0))
    assert started(script) == []
    script.config = msgspec.structs.replace(script.config, vm_hours_per_run=0.0)
    script.start()
    assert len(started(script)) == 1
    assert not [name for name in script.store.tables.context if name.startswith(("budget/", "spent/"))]


def test_it_reckons_as_the_ledger_does() -> None:
    """Two runs on one VM: boot, alone, together, idle."""
    script = BossScript(vm_hours_per_run=100.0).pool("p", maximum=1, cpus=2.0, idle_s=7200.0)
    script.push("film", task("a", runtime_s=1000.0))
    script.wait(1.0)
    made(script, *started(script))
    script.wait(59.0)
    worker = vm_worker(script, 1)
    beats(script, [worker], 300.0)
    script.push("other", task("b", runtime_s=1000.0))
    beats(script, [worker], 600.0)
    ends(script, worker, "a")
    beats(script, [worker], 90.0)
    ends(script, worker, "b")
    script.push("film", task("c", after=""), task("never", resources={"cpus": 64.0}))
    script.push("other", task("unready", resources={"cpus": 64.0}))
    beats(script, [worker], 120.0)
    vm = script.store.vms[1]
    assert vm.started_at is not None
    reckoned = [script.boss.run_budgets.spent_s(no) for no in (1, 2)]
    ran = [
        Ran(row.run_no, row.assigned_at, row.ended_at) for row in script.store.attempts.values() if row.worker == "w1"
    ]
    life = VmLife(1, "p", vm.started_at, vm.hello_at)
    division = divide(life, ran, script.now)
    for run_no, seconds in zip((1, 2), reckoned):
        assert sum(division.runs[run_no].values()) / MICRO == pytest.approx(seconds, abs=6.0)
    assert sum(reckoned) == pytest.approx(script.now - vm.started_at, abs=6.0)


def test_no_client_can_set_the_boss_s_own_notes() -> None:
    script = BossScript(vm_hours_per_run=1.0).pool("p", maximum=1)
    answer = script.ask("set_context", key="spent/1", value="much")
    assert isinstance(answer, wire.Refused)
    assert script.start().store.tables.context.keys() == {"cluster_id"}


def test_a_dropped_run_leaves_no_budget_and_the_boss_writes_no_more_of_it() -> None:
    script = BossScript()
    script.push("film", task("a"), vm_hours=1.0)
    script.ask("drop_tasks", run="film")
    script.wait(6.0)
    assert script.store.tables.context.keys() == {"cluster_id"}
    written = script.store.last_batch()
    script.wait(60.0)
    assert script.store.last_batch() == written
