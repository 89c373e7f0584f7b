"""The ledger balances: the parts of a VM's life add up to it exactly, whatever ran there and whenever it ended."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from boss.core.rows import VmRow
from ecloud.ledger import MICRO, PARTS, Ran, VmLife, divide, micros
from ecloud.tasks import AttemptState
from sim.simulation import Simulation
from sim.store import Tables

EPOCH = 1_700_000_000.0
moments = st.floats(0.0, 5_000.0).map(lambda seconds: EPOCH + seconds)
perhaps = st.none() | moments
attempts = st.builds(Ran, st.integers(1, 3), moments, perhaps, st.booleans())
lives = st.builds(VmLife, st.just(1), st.just("p"), moments, perhaps, perhaps, perhaps)


@given(lives, st.lists(attempts, max_size=12), moments)
def test_the_parts_are_the_life(vm: VmLife, ran: list[Ran], now: float) -> None:
    parts, _, _ = divide(vm, ran, now)
    end = vm.gone_at if vm.gone_at is not None else now
    assert sum(parts.values()) == max(0, micros(end) - micros(vm.started_at))
    assert set(parts) == set(PARTS)
    assert all(amount >= 0 for amount in parts.values())


@given(lives, st.lists(attempts, max_size=12), moments)
def test_the_runs_share_what_was_run(vm: VmLife, ran: list[Ran], now: float) -> None:
    parts, _, _ = divide(vm, ran, now)
    shares = [divide(vm, ran, now, run_no) for run_no in (1, 2, 3)]
    rounding = 6 * (len(ran) + 1)
    assert 0 <= parts["running"] - sum(of_run for _, of_run, _ in shares) <= rounding
    in_vain = sum(lost for _, _, lost in shares)
    assert in_vain <= parts["lost"]


def test_a_life_in_its_parts() -> None:
    vm = VmLife(1, "p", started_at=100.0, hello_at=160.0, ending_at=300.0, gone_at=310.0)
    ran = [Ran(1, 170.0, 200.0), Ran(1, 190.0, 230.0), Ran(2, 240.0, 250.0, lost=True)]
    parts, of_run, lost_of_run = divide(vm, ran, now=1_000.0, run_no=1)
    seconds = {name: amount / MICRO for name, amount in parts.items()}
    assert seconds == {"booting": 60.0, "running": 60.0, "idle": 70.0, "draining": 10.0, "lost": 10.0}
    assert (of_run / MICRO, lost_of_run) == (60.0, 0)


def test_a_vm_that_never_reported_was_lost_and_one_that_boots_is_not() -> None:
    gone = VmLife(1, "p", started_at=100.0, ending_at=400.0, gone_at=410.0)
    assert divide(gone, [], now=500.0)[0]["lost"] == 310 * MICRO
    boots = VmLife(2, "p", started_at=100.0)
    assert divide(boots, [], now=130.0)[0]["booting"] == 30 * MICRO


def test_the_books_of_simulated_clusters_balance() -> None:
    """Whatever went wrong there: VMs that were refused, never came up or vanished, clocks that differ, bosses that
    died."""
    lives = 0
    for seed in range(1, 40):
        world = Simulation(seed)
        if not world.config.pools:
            continue
        result = world.run()
        assert not result.problem
        for row in world.tables.vms.values():
            if row.cloud_id:
                lives += 1
                check_books(world.tables, row)
    assert lives > 10


def check_books(tables: Tables, row: VmRow) -> None:
    assert row.started_at is not None, "one that its cloud made has a life"
    homes = {worker.worker for worker in tables.workers.values() if worker.vm_no == row.vm_no}
    ran = [
        Ran(attempt.run_no, attempt.started_at, attempt.ended_at, attempt.state is AttemptState.LOST)
        for attempt in tables.attempts.values()
        if attempt.worker in homes and attempt.started_at is not None
    ]
    end = row.gone_at if row.gone_at is not None else row.since
    vm = VmLife(row.vm_no, row.pool, row.started_at, row.hello_at, row.ending_at, row.gone_at)
    parts, _, _ = divide(vm, ran, now=end)
    assert sum(parts.values()) == max(0, micros(end) - micros(row.started_at))
