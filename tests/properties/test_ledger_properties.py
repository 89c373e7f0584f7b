"""The ledger balances: the parts of a VM's life add up to it exactly, whatever ran there and whenever it ended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boss.core.model.rows import VmRow
from ecloud.model.vm_life import MICRO, PARTS, Ran, VmLife, ahead_s, divide, micros
from sim import books
from sim.cloud import Cloud
from sim.faults import Faults
from sim.simulation import Simulation
from sim.store import Tables
from sim.world import World

EPOCH = 1_700_000_000.0
moments = st.floats(0.0, 5_000.0).map(lambda seconds: EPOCH + seconds)
perhaps = st.none() | moments
spans = st.floats(0.0, 3_000.0)
attempts = st.builds(Ran, st.integers(1, 3), moments, perhaps, st.booleans(), spans, st.none() | spans)
ahead = st.sampled_from((0.0, 3_600.0, -3_600.0, 0.3))
lives = st.builds(VmLife, st.just(1), st.just("p"), moments, perhaps, perhaps, perhaps, ahead)


@given(lives, st.lists(attempts, max_size=12), moments)
def test_the_parts_are_the_life(vm: VmLife, ran: list[Ran], now: float) -> None:
    parts = divide(vm, ran, now).parts
    end = micros(vm.gone_at) if vm.gone_at is not None else micros(now) + micros(vm.ahead_s)
    assert sum(parts.values()) == max(0, end - micros(vm.started_at))
    assert set(parts) == set(PARTS)
    assert all(amount >= 0 for amount in parts.values())


@given(lives, st.lists(attempts, max_size=12), moments)
def test_a_life_is_that_of_the_runs_whose_attempts_were_there(vm: VmLife, ran: list[Ran], now: float) -> None:
    division = divide(vm, ran, now)
    assert all(amount >= 0 for parts in division.runs.values() for amount in parts.values())
    if division.runs:
        assert sum(sum(parts.values()) for parts in division.runs.values()) == sum(division.parts.values())
        for part in ("booting", "idle", "draining"):
            assert sum(parts[part] for parts in division.runs.values()) == division.parts[part]
        assert set(division.runs) <= {attempt.run_no for attempt in ran}
    else:
        assert division.parts["running"] == division.parts["staging"] == 0


def in_seconds(parts: dict[str, int]) -> dict[str, float]:
    return {name: amount / MICRO for name, amount in parts.items() if amount}


def test_a_life_in_its_parts() -> None:
    vm = VmLife(1, "p", started_at=100.0, hello_at=160.0, ending_at=300.0, gone_at=310.0)
    ran = [Ran(1, 170.0, 200.0), Ran(1, 190.0, 230.0), Ran(2, 240.0, 250.0, lost=True)]
    division = divide(vm, ran, now=1_000.0)
    assert in_seconds(division.parts) == {
        "booting": 60.0,
        "running": 60.0,
        "idle": 70.0,
        "draining": 10.0,
        "lost": 10.0,
    }
    # It booted for the first run, and was idle for the last one.
    assert in_seconds(division.runs[1]) == {"booting": 60.0, "running": 60.0, "idle": 20.0}
    assert in_seconds(division.runs[2]) == {"lost": 10.0, "idle": 50.0, "draining": 10.0}


@pytest.mark.parametrize("off_s", [3_600.0, -3_600.0])
def test_a_life_by_a_clock_that_is_an_hour_off_has_the_same_parts(off_s: float) -> None:
    ran = [Ran(1, 170.0, 200.0), Ran(2, 240.0, 250.0, lost=True)]
    right = VmLife(1, "p", 101.0, 160.0, 300.0, 310.0, ahead_s(100.0, 101.0, 160.0))
    off = VmLife(1, "p", 100.0 + off_s, 160.0, 300.0, 309.0 + off_s, ahead_s(100.0, 100.0 + off_s, 160.0))
    assert (right.ahead_s, off.ahead_s) == (0.0, off_s)
    same = {"running": 30.0, "idle": 100.0, "lost": 10.0}
    assert in_seconds(divide(right, ran, 999.0).parts) == {"booting": 59.0, **same, "draining": 10.0}
    assert in_seconds(divide(off, ran, 999.0).parts) == {"booting": 60.0, **same, "draining": 9.0}
    # While it exists its life continues by that clock, too.
    boots = VmLife(1, "p", 100.0 + off_s, ahead_s=ahead_s(100.0, 100.0 + off_s, 130.0))
    assert in_seconds(divide(boots, [], 130.0).parts) == {"booting": 30.0}


def test_fetching_and_storing_is_staging_where_nothing_else_runs() -> None:
    vm = VmLife(1, "p", started_at=100.0, hello_at=100.0)
    one = Ran(1, 100.0, 130.0, fetch_s=5.0, run_s=15.0)
    assert in_seconds(divide(vm, [one], now=140.0).parts) == {"staging": 15.0, "running": 15.0, "idle": 10.0}
    other = Ran(1, 100.0, 110.0, run_s=10.0)
    assert in_seconds(divide(vm, [one, other], now=130.0).parts) == {"running": 20.0, "staging": 10.0}


def test_runs_at_the_same_time_share_by_their_attempts() -> None:
    vm = VmLife(1, "p", started_at=100.0, hello_at=130.0)
    ran = [Ran(1, 130.0, 160.0), Ran(2, 130.0, 160.0), Ran(2, 130.0, 160.0)]
    division = divide(vm, ran, now=160.0)
    assert in_seconds(division.runs[1]) == {"booting": 10.0, "running": 10.0}
    assert in_seconds(division.runs[2]) == {"booting": 20.0, "running": 20.0}


def test_a_vm_that_never_reported_was_lost_and_one_that_boots_is_not() -> None:
    gone = VmLife(1, "p", started_at=100.0, ending_at=400.0, gone_at=410.0)
    assert divide(gone, [], now=500.0).parts["lost"] == 310 * MICRO
    boots = VmLife(2, "p", started_at=100.0)
    assert divide(boots, [], now=130.0).parts["booting"] == 30 * MICRO


def test_the_books_of_simulated_clusters_balance() -> None:
    """Whatever went wrong there: VMs that were refused, never came up or vanished, clocks that differ, bosses that
    died. Each scenario checks its books in the end; this test checks that there is something in them."""
    lives = ran = 0
    for seed in range(1, 30):
        world = Simulation(seed)
        result = world.run()
        assert not result.problem
        assert list(books.wrong(world.tables, world.cloud, world.checker.fleet.lost)) == []
        lives += sum(vm.started_at is not None for vm in world.tables.vms.values())
        ran += sum(worker.vm_no is not None for worker in world.tables.workers.values())
    assert lives > 10
    assert ran > 10


def test_books_that_do_not_balance_are_found() -> None:
    world = World(1)
    cloud, tables = Cloud(world, Faults(), lambda *_: lambda: None), Tables()
    row = tables.vms[1] = VmRow(1, "p", "gone", 100.0, {}, "n", cloud_id="vm1")
    assert list(books.wrong(tables, cloud)) == [
        "VM 1 was made by its cloud at an unknown time",
        "VM 1 is vm1, which its cloud never made",
    ]
    assert cloud.start(1, "p", {}, "n") == "vm1"
    since = cloud.lives["vm1"].since
    row.started_at, row.gone_at = float(since), None
    assert list(books.wrong(tables, cloud)) == []
    cloud.vanish("vm1")
    (told,) = books.wrong(tables, cloud)
    assert told.startswith(f"VM 1 lived from {since}.0 to None, by the cloud's own list Life(")
    row.gone_at = float(since)
    assert list(books.wrong(tables, cloud)) == []
    del tables.vms[1]
    assert list(books.wrong(tables, cloud)) == ["vm1 (intent 1) is in no row"]
    assert list(books.wrong(tables, cloud, {"vm1"})) == [], "only a lost history knew it"
