"""Calls that wait at the host of a running call: when they are handed over, and how they come back."""

from __future__ import annotations

import msgspec
from worker_script import WorkerScript, call, names_of, order

from ecloud.model import wire
from ecloud.model.tasks import Cause, Requirement
from worker.core.prefetched import AHEAD_BYTES, AHEAD_MOST, AHEAD_S, RECALL_S, is_prefetchable


def with_waiting_calls() -> WorkerScript:
    """Call 2 runs, calls 3, 4 and 5 wait at its host."""
    script = WorkerScript().on_duty().forget_all()
    script.orders(*map(call, (1, 2, 3, 4, 5))).begins(1).nothing_else()
    # How long a call takes is known when the first one has ended.
    script.ends(1, run_s=0.01).begins(2).prefetches(3, 4, 5, behind=2)
    return script.forget_all()


def test_short_calls_wait_at_the_host_of_the_one_before_them() -> None:
    script = with_waiting_calls()
    script.goes_on(2, 3).spools(2).nothing_else()
    assert {held.task_no: held.state for held in script.core.inventory if held.task_no > 2} == {
        3: "running", 4: "queued", 5: "queued"
    }  # fmt: skip
    script.goes_on(3, 4).goes_on(4, 5).ends(5).spools(3, 4, 5)
    assert script.core.attempts.free["cpus"] == 1.0


def test_long_calls_are_not_prefetched_and_few_of_those_that_are_not_so_short() -> None:
    script = WorkerScript().on_duty().forget_all()
    script.orders(*map(call, range(1, 100))).begins(1)
    script.ends(1, run_s=AHEAD_S * 1.1).begins(2)
    assert not script.done.prefetches
    script = WorkerScript().on_duty().forget_all()
    script.orders(*map(call, range(1, 100))).begins(1)
    script.ends(1, run_s=AHEAD_S / 3.5).begins(2).prefetches(3, 4, 5, behind=2)
    script = WorkerScript().on_duty().forget_all()
    script.orders(*map(call, range(1, 100))).begins(1)
    script.ends(1, run_s=0.0).begins(2).prefetches(*range(3, 3 + AHEAD_MOST), behind=2)


def test_a_host_gets_more_when_half_of_what_it_had_is_done() -> None:
    script = WorkerScript().on_duty().forget_all()
    script.orders(*map(call, range(1, 20))).begins(1)
    script.ends(1, run_s=AHEAD_S / 4).begins(2).prefetches(3, 4, 5, 6, behind=2).forget_all()
    script.goes_on(2, 3, run_s=AHEAD_S / 4).spools(2).nothing_else()
    script.goes_on(3, 4, run_s=AHEAD_S / 4).spools(3).prefetches(7, 8, behind=4).nothing_else()


def test_a_call_behind_another_sees_the_gpus_of_its_task_only() -> None:
    for gpus, seen in ((("0",), ()), ((), None)):
        script = WorkerScript(gpus=gpus).on_duty().forget_all()
        script.orders(*map(call, (1, 2, 3))).ends(1, run_s=0.01)
        (prefetched,) = script.done.prefetches
        assert prefetched.gpus == seen, "None: the environment of the worker applies"


def test_hosts_share_what_waits() -> None:
    script = WorkerScript(cpus=2.0).on_duty().forget_all()
    script.orders(*map(call, range(1, 7))).begins(1, 2)
    script.ends(1, run_s=0.01).begins(3)
    behind = [(at.order.task_no, at.behind[0]) for at in script.done.prefetches]
    assert behind == [(4, 2), (5, 3), (6, 2)]


def test_the_order_of_the_queue_holds() -> None:
    script = WorkerScript().on_duty().forget_all()
    script.orders(call(1), call(2), call(3), order(4), call(5)).begins(1)
    script.ends(1, run_s=0.01).begins(2).prefetches(3, behind=2)  # task 4 is not a call: call 5 waits behind it


def test_calls_behind_a_long_one_are_recalled_and_start_where_there_is_room() -> None:
    script = WorkerScript(cpus=2.0).on_duty().forget_all()
    script.orders(call(1), order(9), call(2), call(3), call(4)).begins(1, 9)
    script.ends(1, run_s=0.01).begins(2).prefetches(3, 4, behind=2).forget_all()
    script.wait(RECALL_S).recalls(3, 4)
    script.forget_all()
    script.recalled(3, 4).nothing_else()
    script.ends(9).begins(3).spools(9).prefetches(4, behind=3)


def test_a_stop_recalls_a_call_and_stops_it_if_it_has_begun() -> None:
    script = with_waiting_calls()
    script.hear(wire.StopTasks(names_of(3, 4), 1.0, "cancelled")).recalls(3, 4).nothing_else()
    script.goes_on(2, 3).stops(3)  # the host was quicker
    script.recalled(4, 5).returns(4)
    script.forget_all().ends(3, cause=Cause.STOPPED).begins(5)


def test_a_call_that_the_boss_wants_back_returns_only_if_it_has_not_begun() -> None:
    script = with_waiting_calls()
    script.hear(wire.ReturnTasks(names_of(3, 5))).recalls(3, 5).nothing_else()
    script.goes_on(2, 3).spools(2).nothing_else()
    script.recalled(4, 5).returns(5).nothing_else()


def test_a_host_that_dies_costs_the_calls_behind_it_nothing() -> None:
    script = with_waiting_calls()
    script.recalled(3, 4, 5).nothing_else()
    script.ends(2, cause=Cause.SIGNAL).spools(2).begins(3)
    script.prefetches(4, 5, behind=3)


def test_a_worker_that_drains_recalls_and_returns_them() -> None:
    script = with_waiting_calls()
    script.hear(wire.Drain("maintenance")).recalls(3, 4, 5).nothing_else()
    script.recalled(3, 4, 5).returns(3, 4, 5).nothing_else()


def test_nothing_is_handed_over_when_the_lease_is_about_to_end() -> None:
    script = WorkerScript().on_duty(lease_s=5.5, heartbeat_s=5.0).forget_all()
    script.orders(*map(call, (1, 2, 3))).begins(1)
    script.wait(4.9).ends(1, run_s=0.01).begins(2)
    assert not script.done.prefetches


def test_a_call_that_fetches_or_waits_or_is_large_is_not_prefetched() -> None:
    first = call(1)
    body = first.body
    assert body is not None
    assert body.call is not None
    large = msgspec.structs.replace(body.call, arguments=b"x" * AHEAD_BYTES)
    shared = msgspec.structs.replace(body.call, shared=("hash",))
    file = (Requirement("calls/r/hash", "hash"),)
    assert is_prefetchable(first)
    assert is_prefetchable(call(1, body=msgspec.structs.replace(body, call=shared, requirements=file)))
    assert not is_prefetchable(call(1, body=msgspec.structs.replace(body, requirements=file)))
    assert not is_prefetchable(call(1, body=msgspec.structs.replace(body, call=large)))
    assert not is_prefetchable(call(1, after_init=(7,)))
    assert not is_prefetchable(call(1, gpus=1))
    assert not is_prefetchable(order(1))
