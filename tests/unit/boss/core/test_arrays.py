"""Arrays: elements are made when they are about to run, and an array is a task that ends after all of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from boss.core.model.effects import PromoteFiles
from ecloud.formats.arrays import as_array
from ecloud.model import wire
from ecloud.model.tasks import (
    ArrayOf,
    Cause,
    Condition,
    Dependency,
    Entry,
    ManifestEntry,
    Outcome,
    Result,
    TaskDefinition,
)
from tests.support.boss_script import BossScript, Peer, task


@pytest.fixture
def script() -> BossScript:
    """A boss that needs several windows for some elements."""
    return BossScript(array_window=5)


def array(id: str, count: int, *dependencies: Dependency, **fields: Any) -> TaskDefinition:
    fields.setdefault("commands", ("run {}",))
    return TaskDefinition(id, dependencies=dependencies, array=ArrayOf(f"1-{count}"), **fields)


def task_(id: str, *dependencies: Dependency) -> TaskDefinition:
    return TaskDefinition(id, ("true",), dependencies)


def works(script: BossScript, worker: Peer, most: int = 1_000, fail: frozenset[str] = frozenset()) -> list[str]:
    """The worker ends its tasks, at most this many, those of `fail` with exit 1; their ids in order."""
    done: list[str] = []
    while len(done) < most:
        for send in [send for send in script.said if send.envelope.peer == worker.name]:
            script.said.remove(send)
            worker.seen = max(worker.seen, send.envelope.number)
            if isinstance(send.envelope.message, wire.StartTasks):
                for order in send.envelope.message.attempts:
                    worker.holds[(order.task_no, order.number)] = "queued"
            if isinstance(send.envelope.message, wire.StopTasks):
                stopped = [Outcome(name.task_no, name.number, Cause.STOPPED) for name in send.envelope.message.attempts]
                script.hear(worker, wire.TasksEnded(tuple(stopped)))
                for name in send.envelope.message.attempts:
                    worker.holds.pop((name.task_no, name.number), None)
        held = sorted(worker.holds)[: most - len(done)]
        if not held:
            deadline = script.boss.next_deadline()
            if deadline is None or deadline > script.now:
                break
            script.handle()  # elements that the last batch left to this one
            continue
        outcomes = []
        for key in held:
            id = script.store.tasks[key[0]].id
            done.append(id)
            cause = Cause.EXIT if id in fail else Cause.SUCCESS
            outcomes.append(Outcome(*key, cause, exit_code=int(id in fail), error="exit 1" if id in fail else ""))
            del worker.holds[key]
        script.hear(worker, wire.TasksEnded(tuple(outcomes)))
    return done


def rows(script: BossScript, array_id: str) -> Counter[str]:
    """States of the elements that have rows."""
    return Counter(str(row.state) for row in script.store.tasks.values() if row.id.startswith(f"{array_id}["))


def counts(script: BossScript, array_id: str) -> dict[str, int]:
    """All elements by state, as the array's row has it."""
    return script.store.tables.arrays[script.names[array_id]].states


def ids(name: str, *numbers: int) -> list[str]:
    return [f"{name}[{number}]" for number in numbers]


def test_a_large_array_is_one_row_until_its_elements_are_about_to_run(script: BossScript) -> None:
    answer = script.push("r", array("a", 1_000_000, Dependency("first")), task_("first"))
    assert answer.states == {"waiting": 1_000_000, "ready": 1}
    assert len(script.store.tasks) == 2
    worker = script.worker("w", cpus=1)
    assert works(script, worker, 1) == ["first"]
    assert len(script.store.tasks) < 12
    assert sum(counts(script, "a").values()) == 1_000_000


def test_every_element_runs_once_in_order_and_then_what_waits_for_the_array(script: BossScript) -> None:
    script.push("r", array("a", 20), task_("after", Dependency("a")))
    worker = script.worker("w", cpus=2)
    script.states(a="ready", after="waiting")
    assert rows(script, "a").total() < 20
    assert works(script, worker) == [*ids("a", *range(1, 21)), "after"]
    script.states(a="succeeded", after="succeeded")
    assert counts(script, "a") == {"succeeded": 20}
    assert script.reason("a") == ""
    assert script.store.tables.arrays[script.names["a"]].pending == ""


def test_a_boss_that_dies_between_windows_makes_each_element_once(script: BossScript) -> None:
    script.push("r", array("a", 30))
    worker = script.worker("w", cpus=2)
    done: list[str] = []
    while len(done) < 30:
        done += works(script, worker, 4)
        script.start()
        script.hello(worker, resources={"cpus": 2.0}, home="home-w")
        script.beats(worker)
    assert sorted(done) == sorted(ids("a", *range(1, 31)))
    script.states(a="succeeded")


def test_entries_are_filled_in(script: BossScript) -> None:
    lines = [Entry(number, f"line {number}") for number in (1, 2, 4, 5, 9)]
    script.push("r", as_array(task("a", commands=("echo {} %03d",)), lines))
    worker = script.worker("w", cpus=8)
    assert works(script, worker) == ids("a", 1, 2, 4, 5, 9)
    number = next(row.task_no for row in script.store.tasks.values() if row.id == "a[9]")
    stored = script.store.definitions([number])[number]
    assert b"echo 'line 9' 009" in stored
    assert b'"array"' not in stored


def test_an_array_of_which_elements_failed_fails_and_is_tried_again(script: BossScript) -> None:
    script.push("r", array("a", 10), task_("after", Dependency("a")), task_("any", Dependency("a", Condition.ANY)))
    worker = script.worker("w", cpus=2)
    assert "after" not in works(script, worker, fail=frozenset(ids("a", 3, 7)))
    script.states(a="failed", after="aborted", any="succeeded")
    assert script.reason("a") == "of 10 elements 2 failed"
    answer = script.ask("retry_failed", ids=["a"])
    assert isinstance(answer, wire.RequestDone)
    assert answer.count == 3  # a[3], a[7] and `after`
    script.states(a="ready", after="waiting")
    assert works(script, worker) == [*ids("a", 3, 7), "after"]
    script.states(a="succeeded", after="succeeded")


def test_element_by_element(script: BossScript) -> None:
    each = Dependency("a", each=True)
    script.push("r", array("a", 12), array("b", 12, each), task_("end", Dependency("b")))
    assert script.store.tasks[script.names["b"]].dependencies == ()
    worker = script.worker("w", cpus=1)
    done = works(script, worker)
    assert all(done.index(f"a[{number}]") < done.index(f"b[{number}]") for number in range(1, 13))
    assert done.index("b[1]") < done.index("a[12]")
    assert done[-1] == "end"
    assert len(done) == 25


def test_elements_whose_counterparts_failed_do_not_run_until_these_succeed(script: BossScript) -> None:
    script.push("r", array("a", 6), array("b", 6, Dependency("a", each=True)))
    worker = script.worker("w", cpus=2)
    done = works(script, worker, fail=frozenset(ids("a", 2)))
    assert sorted(done) == sorted([*ids("a", *range(1, 7)), *ids("b", 1, 3, 4, 5, 6)])
    script.states(a="failed", b="aborted")
    assert counts(script, "b") == {"succeeded": 5, "aborted": 1}
    assert "1 of 6 elements cannot run: the elements of a" in script.reason("b")
    script.ask("retry_failed", ids=["a[2]"])
    assert works(script, worker) == ["a[2]", "b[2]"]
    script.states(a="succeeded", b="succeeded")


@pytest.mark.parametrize("how", ["push", "redo"])
@pytest.mark.parametrize("dies", [False, True])
def test_an_element_that_was_cancelled_early_waits_again_for_its_counterpart(
    script: BossScript, how: str, dies: bool
) -> None:
    each = [Dependency("first", Condition.ANY)]
    tasks = (
        task_("first"), array("a", 12, *each), array("b", 12, Dependency("a", Condition.ANY, each=True)),
        array("c", 12, Dependency("b", Condition.ANY, each=True)),
    )  # fmt: skip
    script.push("r", *tasks)
    script.ask("cancel", ids=["b[7]", "c[7]"])
    if how == "push":
        script.push("r", *tasks)
    else:
        script.ask("redo_task", ids=["b[7]", "c[7]"])
    assert [counts(script, id) for id in "bc"] == [{"waiting": 12}] * 2
    if dies:
        script.start()
    done = works(script, script.worker("w", cpus=2))
    for first, then in (("a", "b"), ("b", "c")):
        assert all(done.index(f"{first}[{number}]") < done.index(f"{then}[{number}]") for number in range(1, 13))
    assert len(done) == 37
    script.states(a="succeeded", b="succeeded", c="succeeded")


def test_what_each_condition_means_element_by_element(script: BossScript) -> None:
    script.push(
        "r",
        array("a", 5),
        array("bad", 5, Dependency("a", Condition.FAILURE, each=True)),
        array("any", 5, Dependency("a", Condition.ANY, each=True)),
    )
    worker = script.worker("w", cpus=2)
    done = works(script, worker, fail=frozenset(ids("a", 2, 4)))
    assert {id for id in done if id.startswith("bad")} == set(ids("bad", 2, 4))
    assert {id for id in done if id.startswith("any")} == set(ids("any", 1, 2, 3, 4, 5))


def test_element_by_element_survives_a_boss_that_dies(script: BossScript) -> None:
    script.push(
        "r", array("a", 15), array("b", 15, Dependency("a", each=True)), array("c", 15, Dependency("b", each=True))
    )
    worker = script.worker("w", cpus=2)
    done: list[str] = []
    for _ in range(60):
        done += works(script, worker, 3, fail=frozenset(["a[5]"]))
        script.start()
        script.hello(worker, resources={"cpus": 2.0}, home="home-w")
        script.beats(worker)
    assert len(done) == len(set(done)) == 15 + 14 + 14
    script.states(a="failed", b="aborted", c="aborted")


def test_a_cancelled_array_ends_with_all_its_elements(script: BossScript) -> None:
    script.push("r", array("a", 1_000), task_("after", Dependency("a", Condition.ANY)))
    worker = script.worker("w", cpus=2)
    works(script, worker, 5)
    answer = script.ask("cancel", ids=["a"])
    assert isinstance(answer, wire.RequestDone)
    assert answer.count == 995
    assert counts(script, "a") == {"succeeded": 5, "cancelled": 995}
    assert rows(script, "a").total() < 20
    assert works(script, worker) == ["after"]
    script.states(a="cancelled")
    script.ask("redo_task", ids=["a[2]"])  # one of an array that was cancelled: the others stay as they are
    assert works(script, worker, 2)[0] == "a[2]"


def test_an_array_that_is_cancelled_while_an_element_is_published_is_known_until_that_ends(script: BossScript) -> None:
    """Seed 1301005291: the array was forgotten when another task of its run was redone."""
    script.push("r", array("a", 20, results=(Result("out", "out/{}"),)), task_("t"))
    worker = script.worker("w", cpus=1)
    (element,) = [row for row in script.store.tasks.values() if row.id == "a[1]"]
    made = Outcome(element.task_no, 1, Cause.SUCCESS, manifest=(ManifestEntry("out/1", 1, "aa"),))
    script.hear(worker, wire.TasksEnded((made,)))
    assert [call for call in script.calls if isinstance(call, PromoteFiles)]
    script.ask("cancel", run="r")
    script.ask("redo_task", ids=["t"], below=False)
    script.boss.check()
    assert script.boss.book.arrays[script.names["a"]].unfinished == 1


def test_arrays_that_end_together_are_all_forgotten(script: BossScript) -> None:
    """Seed 1301002313: the second one ended the first, which had been checked before it."""
    script.push("r", array("b", 6, Dependency("a")), array("a", 6))
    script.push("r", array("a", 6, priority=1))
    assert [array.template.id for array in script.boss.book.arrays.values()] == ["b", "a"]
    works(script, script.worker("w", cpus=2), fail=frozenset({"a[3]"}))
    script.states(a="failed", b="aborted")
    assert not script.boss.book.arrays


def test_a_range_is_cancelled_before_it_has_rows(script: BossScript) -> None:
    script.push("r", array("a", 40))
    answer = script.ask("cancel", ids=["a[20-29]"])
    assert isinstance(answer, wire.RequestDone)
    assert answer.count == 10
    assert answer.names[0] == "a[20]"
    worker = script.worker("w", cpus=4)
    done = works(script, worker)
    assert sorted(done) == sorted(ids("a", *range(1, 20), *range(30, 41)))
    assert counts(script, "a") == {"succeeded": 30, "cancelled": 10}
    script.states(a="failed")
    script.ask("redo_task", ids=["a[20-29]"])
    assert sorted(works(script, worker)) == ids("a", *range(20, 30))
    script.states(a="succeeded")


def test_elements_are_dropped(script: BossScript) -> None:
    script.push("r", array("a", 20))
    answer = script.ask("drop_tasks", ids=["a[1-2]", "a[15-20]"])
    assert isinstance(answer, wire.RequestDone)
    assert answer.count == 8
    worker = script.worker("w", cpus=4)
    assert sorted(works(script, worker)) == sorted(ids("a", *range(3, 15)))
    assert counts(script, "a") == {"succeeded": 12}
    script.ask("drop_tasks", ids=["a"])
    assert script.store.tasks == {}
    assert script.store.tables.arrays == {}
    assert script.store.runs == {}


def test_an_array_that_has_ended_counts_dropped_elements_no_longer(script: BossScript) -> None:
    script.push("r", array("a", 10), array("b", 10), task_("end", Dependency("a")))
    worker = script.worker("w", cpus=4)
    works(script, worker, fail=frozenset(ids("b", 1, 2)))
    answer = script.ask("drop_tasks", ids=["a[3-5]", "b[2]"])
    assert isinstance(answer, wire.RequestDone)
    assert answer.count == 4
    assert counts(script, "a") == {"succeeded": 7}
    assert counts(script, "b") == {"succeeded": 8, "failed": 1}
    script.ask("retry_failed", ids=["b"])
    assert works(script, worker) == ["b[1]"]
    assert counts(script, "b") == {"succeeded": 9}


def test_elements_of_an_array_that_ended_before_they_had_rows_are_dropped(script: BossScript) -> None:
    script.push("r", array("a", 1_000))
    worker = script.worker("w", cpus=2)
    works(script, worker, 5)
    script.ask("cancel", ids=["a"])
    works(script, worker)
    answer = script.ask("drop_tasks", ids=["a[4-7]", "a[500-519]"])
    assert isinstance(answer, wire.RequestDone)
    assert answer.count == 24
    assert counts(script, "a") == {"succeeded": 3, "cancelled": 973}
    script.start()
    script.ask("drop_tasks", run="r", state="cancelled")
    assert counts(script, "a") == {"succeeded": 3}
    assert script.store.tables.arrays[script.names["a"]].pending == ""
    script.ask("drop_tasks", ids=["a[1-3]"])
    assert script.store.runs == {}, "nothing is left of it"


def test_a_push_again_keeps_what_is_the_same(script: BossScript) -> None:
    script.push("r", array("a", 12))
    worker = script.worker("w", cpus=2)
    works(script, worker, fail=frozenset(["a[4]"]))
    answer = script.push("r", array("a", 12))
    assert answer.states == {"succeeded": 11, "ready": 1}
    assert works(script, worker) == ["a[4]"]
    script.states(a="succeeded")
    answer = script.push("r", array("a", 12))
    assert answer.decisions == {"kept": 12}


def test_a_push_of_another_array_of_that_name_replaces_all_elements(script: BossScript) -> None:
    script.push("r", array("a", 12), task_("after", Dependency("a")))
    worker = script.worker("w", cpus=2)
    works(script, worker, 5)
    script.push("r", array("a", 8, commands=("other",)), task_("after", Dependency("a")))
    assert sorted(works(script, worker)) == sorted([*ids("a", *range(1, 9)), "after"])
    assert rows(script, "a") == {"succeeded": 8}


def test_single_tasks_and_an_array_of_their_names_replace_each_other(script: BossScript) -> None:
    script.push("r", task("a[1]"), task("a[2]"))
    worker = script.worker("w", cpus=2)
    works(script, worker)
    script.push("r", array("a", 9))
    assert sorted(works(script, worker)) == ids("a", *range(1, 10))
    script.push("r", task("a[1]"), task("a[5]"))
    works(script, worker)
    assert sorted(row.id for row in script.store.tasks.values()) == ["a[1]", "a[5]"]
    assert script.store.tables.arrays == {}


def test_an_array_below_what_fails_is_aborted_whole(script: BossScript) -> None:
    script.push("r", task_("first"), array("a", 500, Dependency("first")), task_("after", Dependency("a")))
    worker = script.worker("w", cpus=2)
    assert works(script, worker, fail=frozenset(["first"])) == ["first"]
    script.states(a="aborted", after="aborted")
    assert counts(script, "a") == {"aborted": 500}
    assert rows(script, "a").total() == 0
    script.ask("retry_failed", ids=["first"])
    assert len(works(script, worker)) == 502
    script.states(a="succeeded", after="succeeded")


def test_what_is_redone_below_waits_again(script: BossScript) -> None:
    script.push("r", task_("first"), array("a", 6, Dependency("first")), array("b", 6, Dependency("a", each=True)))
    worker = script.worker("w", cpus=2)
    works(script, worker)
    script.ask("redo_task", ids=["first"], below=True)
    done = works(script, worker)
    assert done[0] == "first"
    assert len(done) == 13
    assert all(done.index(f"a[{number}]") < done.index(f"b[{number}]") for number in range(1, 7))
    script.states(a="succeeded", b="succeeded")


def test_a_held_run_makes_no_elements(script: BossScript) -> None:
    script.push("r", task("i", init=True, commands=("false",)), array("a", 50))
    workers = [script.worker(f"w{number}", cpus=1) for number in range(3)]
    for worker in workers:
        order = script.take(worker, wire.StartTasks).attempts[0]
        script.hear(worker, wire.TasksEnded((Outcome(order.task_no, order.number, Cause.EXIT, exit_code=1),)))
    run = next(iter(script.store.runs.values()))
    assert run.held
    made = rows(script, "a").total()
    script.wait(60)
    assert rows(script, "a").total() == made


def test_an_array_is_not_changed_under_one_that_waits_for_its_elements_and_is_not_listed(script: BossScript) -> None:
    script.push("r", array("a", 20), array("c", 20, Dependency("a", each=True)))
    worker = script.worker("w", cpus=1)
    assert works(script, worker, 3) == ids("a", 1, 2, 3)
    changed = array("a", 20, priority=3)
    client = script.client()
    script.hear(client, wire.SubmitTasks("p", 0, 1, wire.PushOptions(run="r"), (changed,)))
    assert script.take(client, wire.RunRejected).problems == (
        "array c waits for the elements of array a, which this list changes: add array c to the list, or cancel it "
        "first",
    )
    assert rows(script, "c")["ready"], "nothing was applied"
    script.push("r", changed, array("c", 20, Dependency("a", each=True)))
    assert sorted(works(script, worker)) == sorted([*ids("a", *range(1, 21)), *ids("c", *range(1, 21))])
    script.states(a="succeeded", c="succeeded")


def test_each_element_waits_for_its_counterparts_in_two_arrays() -> None:
    script = BossScript()
    each = Dependency("a", each=True), Dependency("b", each=True)
    script.push("r", array("a", 12, priority=9), array("b", 12), array("c", 12, *each))
    worker = script.worker("w", cpus=1)
    done = works(script, worker, 12)
    assert done == ids("a", *range(1, 13))
    script.states(a="succeeded", c="ready")  # the end of a says nothing about the elements of b
    done += works(script, worker)
    assert all(done.index(f"b[{number}]") < done.index(f"c[{number}]") for number in range(1, 13))
    script.states(c="succeeded")


def test_what_runs_after_any_end_of_its_counterpart_runs_after_one_that_was_never_made(script: BossScript) -> None:
    after = Dependency("a", Condition.ANY, each=True)
    script.push("r", task_("first"), array("a", 12, Dependency("first")), array("b", 12, after))
    script.ask("cancel", ids=["a"])
    done = works(script, script.worker("w", cpus=2))
    assert sorted(done) == sorted(["first", *ids("b", *range(1, 13))])
    script.states(a="cancelled", b="succeeded")


def test_an_array_of_some_indices_waits_for_those_of_another_also_with_the_next_boss(script: BossScript) -> None:
    some = TaskDefinition("b", ("run {}",), (Dependency("a", each=True),), array=ArrayOf("3-8"))
    script.push("r", array("a", 12), some)
    worker = script.worker("w", cpus=1)
    done = works(script, worker, 5)
    script.start()
    script.hello(worker, resources={"cpus": 1.0}, home="home-w").beats(worker)
    done += works(script, worker)
    assert sorted(done) == sorted([*ids("a", *range(1, 13)), *ids("b", *range(3, 9))])
    script.states(a="succeeded", b="succeeded")


def test_a_push_in_the_middle_knows_which_counterparts_succeeded(script: BossScript) -> None:
    tasks = array("a", 12), array("b", 12, Dependency("a", each=True))
    script.push("r", *tasks)
    worker = script.worker("w", cpus=1)
    done = works(script, worker, 7)
    script.push("r", *tasks, task_("more"))
    done += works(script, worker)
    assert sorted(done) == sorted([*ids("a", *range(1, 13)), *ids("b", *range(1, 13)), "more"])
    script.states(a="succeeded", b="succeeded")


def test_elements_whose_counterparts_are_dropped_wait_for_them_no_longer(script: BossScript) -> None:
    script.push("r", task_("first"), array("a", 12, Dependency("first")), array("b", 12, Dependency("a", each=True)))
    assert counts(script, "b") == {"waiting": 12}
    script.ask("drop_tasks", ids=["a"])
    assert script.boss.book.waiting_for(script.names["a"]) == []
    assert counts(script, "b").keys() == {"ready"}
    assert sum(counts(script, "b").values()) == 12
    done = works(script, script.worker("w", cpus=2))
    assert sorted(done) == sorted(["first", *ids("b", *range(1, 13))])


def test_a_request_for_one_run_and_for_parts_of_another_changes_both(script: BossScript) -> None:
    script.push("r", array("a", 30))
    script.push("s", array("b", 30), array("c", 30))
    answer = script.ask("cancel", run="s", ids=["c[20-29]"])
    assert isinstance(answer, wire.RequestDone)
    assert answer.count == 10
    assert counts(script, "c")["cancelled"] == 10
    answer = script.ask("drop_tasks", ids=["a", "b[11-30]"])
    assert isinstance(answer, wire.RequestDone)
    assert [run.name for run in script.store.runs.values()] == ["s"], "nothing is left of r"
    assert sum(counts(script, "b").values()) == 10


def test_of_ended_arrays_each_dropped_element_is_named_and_the_last_one_ends_the_run(script: BossScript) -> None:
    script.push("r", task_("first"), array("a", 12, Dependency("first")), array("b", 12, Dependency("first")))
    script.ask("cancel", run="r")
    answer = script.ask("drop_tasks", ids=["a[1-2]", "b[5]"])
    assert isinstance(answer, wire.RequestDone)
    assert (answer.count, answer.names) == (3, ("a[1]", "a[2]", "b[5]"))
    script.push("s", array("c", 5))
    works(script, script.worker("w", cpus=2), fail=frozenset(["c[2]"]))
    script.ask("drop_tasks", ids=["c[2]"])
    script.start()  # it counts the states that tasks are in: c failed, and none of its elements
    script.ask("drop_tasks", ids=["c[3]"])
    script.ask("drop_tasks", ids=["c[1]", "c[4-5]"])
    assert [run.name for run in script.store.runs.values()] == ["r"], "nothing is left of s"
