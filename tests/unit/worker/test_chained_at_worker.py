"""Chained attempts at a worker: what waits, what starts, which messages in which order."""

from __future__ import annotations

from typing import Any

import msgspec
from worker_script import WorkerScript, order

from ecloud.model import wire
from ecloud.model.tasks import Cause, ManifestEntry, Requirement
from ecloud.model.wire import UNCHAINED, AttemptName, AttemptOrder
from worker.core.events import ResultsComplete


def after(task_no: int, *others: int, needs: tuple[str, ...] = (), **fields: Any) -> AttemptOrder:
    """An order of a chained attempt, with requirements."""
    one = order(task_no, after=tuple(AttemptName(other, 1) for other in others), **fields)
    assert one.body is not None
    requirements = tuple(Requirement(path, path) for path in needs)
    return msgspec.structs.replace(one, body=msgspec.structs.replace(one.body, requirements=requirements))


def complete(script: WorkerScript, task_no: int, *files: str, others: tuple[str, ...] = ()) -> WorkerScript:
    return script.handle(ResultsComplete(task_no, 1, dict.fromkeys(files, "00"), others))


def test_it_starts_when_what_it_follows_has_succeeded_with_no_word_in_between() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(order(1), after(2, 1), after(3, 2)).begins(1)
    script.ends(1).begins(2)
    script.ends(2).begins(3)
    script.ends(3).says_ended(1, 2, 3)


def test_it_starts_when_results_are_complete_though_they_are_not_staged() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(order(1), after(2, 1, needs=("out",))).begins(1)
    complete(script, 1, "out")
    (start,) = script.done.starts
    assert start.own == {"out": (1, 1)}
    script.begins(2)


def test_an_order_that_comes_when_results_are_complete_and_not_staged_starts_at_once() -> None:
    script = WorkerScript(cpus=1).on_duty()
    complete(script.orders(1).begins(1), 1, "out")
    script.orders(after(2, 1, needs=("out",)))
    assert script.done.starts[0].own == {"out": (1, 1)}
    script.begins(2)


def test_an_outcome_is_said_after_those_of_what_it_followed() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(order(1), after(2, 1)).begins(1)
    complete(script, 1, "out").begins(2)
    script.ends(2).spools(2).wait(1.0)
    assert not [one for one in script.done.says if isinstance(one.message, wire.TasksEnded)]
    script.ends(1, manifest=(ManifestEntry("out"),))
    assert sorted(outcome.task_no for outcome in script.take(wire.TasksEnded).outcomes) == [1, 2]


def test_what_follows_a_failure_does_not_start_and_is_given_back_when_it_is_stopped() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(order(1), after(2, 1)).begins(1)
    script.ends(1, cause=Cause.EXIT).begins().says_ended(1)
    script.hear(wire.StopTasks((AttemptName(2, 1),), 1.0, "void")).returns(2)
    assert script.core.attempts.is_idle


def test_a_join_waits_for_all() -> None:
    script = WorkerScript(cpus=2).on_duty()
    script.orders(order(1), order(2), after(3, 1, 2)).begins(1, 2)
    script.ends(2).begins()
    script.ends(1).begins(3)


def test_what_came_too_late_for_the_results_is_given_back() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(1).begins(1).ends(1, manifest=(ManifestEntry("out"),))
    script.orders(after(2, 1, needs=("out",))).begins().returns(2, reason=UNCHAINED)
    script.orders(after(3, 1, needs=("other",))).begins(3)


def test_directories_and_what_holds_results_come_from_the_datastore() -> None:
    for needs, others in (("dir", ("dir",)), ("dir/x", ("dir",)), ("all", ()), ("all/out/deep", ())):
        script = WorkerScript(cpus=1).on_duty()
        script.orders(order(1), after(2, 1, needs=(needs,))).begins(1)
        complete(script, 1, "all/out", others=others).begins().returns(2, reason=UNCHAINED)


def test_results_are_kept_until_all_that_need_them_have_started() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(order(1), after(2, 1, needs=(".//out",)), after(3, 1, 2, needs=("out",)), after(4, 3)).begins(1)
    complete(script, 1, "out")
    assert script.done.starts[0].own == {".//out": (1, 1)}, "however the path is written"
    script.begins(2)
    followers = script.core.attempts.followers
    assert followers.is_followed((1, 1))
    script.ends(2).begins(3)
    assert not followers.is_followed((1, 1))
    assert followers.is_followed((3, 1))


def test_an_attempt_that_follows_an_unknown_one_is_given_back() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(after(2, 1)).begins().returns(2, reason=UNCHAINED)


def test_a_worker_that_is_to_rest_gives_chains_back() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(order(1), after(2, 1)).begins(1)
    script.hear(wire.Drain("a person asked", False)).returns(2)


def test_the_inventory_tells_of_chains() -> None:
    script = WorkerScript(cpus=1).on_duty()
    script.orders(order(1), after(2, 1)).begins(1)
    script.wait(5.0).beats(t1="running", t2="queued")
