"""Pushes that extend a run: what they may name, and how they are answered."""

from __future__ import annotations

import pytest
from boss_script import BossScript, Peer, task

from boss.core.model.events import MessageArrived
from ecloud.model import wire
from ecloud.model.tasks import ArrayOf, Call, Cause, TaskDefinition
from ecloud.model.wire import Envelope, PushOptions


def extend(script: BossScript, *tasks: TaskDefinition, **options: bool) -> dict[str, int]:
    """Push tasks into run r, which takes them."""
    return script.push("r", *tasks, merge_strategy="extend", **options).decisions


def refused(script: BossScript, *tasks: TaskDefinition, **options: bool) -> tuple[str, ...]:
    """Push tasks into run r, which refuses them; nothing is stored."""
    stored = dict(script.store.tasks)
    client = script.client()
    options_ = PushOptions("r", "extend", **options)
    script.hear(client, wire.SubmitTasks(f"p{client.number}", 0, 1, options_, tasks))
    assert script.store.tasks == stored
    problems = script.take(client, wire.RunRejected).problems
    assert isinstance(problems, tuple)
    return problems


def big_array(id: str, **fields: object) -> TaskDefinition:
    """An array of three elements, whose elements are made one after another."""
    return task(id, array=ArrayOf("1-3"), **fields)


def test_tasks_that_extend_an_ended_run_start_after_its_init_tasks() -> None:
    script = BossScript()
    first = script.worker("w1")
    script.push("r", task("i", init=True), task("a"))
    script.ended(first, "i").ended(first, "a").states(a="succeeded")
    script.wait(1.0).said.clear()
    assert extend(script, task("b")) == {"new": 1}
    script.starts(first, "b")
    second = script.worker("w2")
    extend(script, task("c"))
    orders = script.take(second, wire.StartTasks).attempts
    assert [(order.init, order.after_init) for order in orders] == [(True, ()), (False, (script.names["i"],))]


def test_a_task_that_extends_a_run_may_name_its_init_task_as_a_dependency() -> None:
    script = BossScript()
    script.push("r", task("i", init=True), task("a"))
    extend(script, task("b", after="i a"))
    assert script.store.tasks[script.names["b"]].dependencies == (
        (script.names["a"], task("b", after="a").dependencies[0].on),
    )


def test_each_of_several_pushes_of_one_client_is_answered_at_once() -> None:
    script = BossScript()
    client = script.client()
    chunks = [wire.SubmitTasks(f"p{k}", 0, 1, PushOptions("r", "extend"), (task(f"t{k}"),)) for k in range(3)]
    script.handle(*[arrived(client, chunk) for chunk in chunks])
    assert [script.take(client, wire.RunAccepted).push_id for _ in chunks] == ["p0", "p1", "p2"]


def arrived(client: Peer, message: wire.Message) -> MessageArrived:
    """The next message of a client in its session."""
    client.number += 1
    return MessageArrived(
        Envelope(wire.PROTOCOL_VERSION, client.name, client.session, client.number, message), client.key_name
    )


def test_a_run_whose_calls_a_client_waits_for_may_be_dropped() -> None:
    script = BossScript()
    client = script.client()
    extend(script, task("a", commands=(), call=Call("f", "f", code=b"f")))
    assert isinstance(script.ask("drop_tasks", run="r"), wire.RequestDone)
    assert not script.store.runs
    script.hear(client, wire.Request("q", "calls", {"run": "r", "ids": ["a"]}))
    assert script.take(client, wire.Refused).code == "no_such_run"


def test_a_list_that_would_make_tasks_wait_for_each_other_is_refused() -> None:
    script = BossScript()
    worker = script.worker("w1")
    extend(script, task("a"), task("b", after="a"))
    script.ended(worker, "a", cause=Cause.EXIT).states(a="failed", b="aborted")
    text = "task b: dependencies: these tasks wait for each other: b -> a -> b"
    extend(script, task("a"), task("b", after="a"))
    assert refused(script, task("a", after="b"), replace_changed=True) == (text,)
    script.states(a="ready", b="waiting")


def test_tasks_that_have_ended_count_for_that_since_they_may_be_done_again() -> None:
    script = BossScript()
    worker = script.worker("w1")
    extend(script, task("a"), task("b", after="a"))
    script.ended(worker, "a").ended(worker, "b").states(a="succeeded", b="succeeded")
    text = "task b: dependencies: these tasks wait for each other: b -> a -> b"
    assert refused(script, task("a", after="b"), replace_changed=True) == (text,)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (task("x", after="many[2]"), "task x: dependencies: many[2] is an element of array many: name the array"),
        (task("many[2]"), "task many[2]: array many of run r has an element of this id: choose another one"),
        (big_array("a"), "array a: run r has a task a[2]: choose another id for the array"),
        (task("i"), "task i: an init task of run r has this id: choose another one"),
        (task("x", after="many[7]"), "task x: dependencies: there is no task many[7] in run r"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value.id,
)
@pytest.mark.parametrize("made", [True, False], ids=["elements made", "elements not made"])
def test_what_does_not_fit_a_run_is_refused(made: bool, more: TaskDefinition, problem: str) -> None:
    script = BossScript()
    script.push("r", task("i", init=True), task("a[2]"), big_array("many", after="" if made else "a[2]"))
    assert refused(script, more) == (problem,)


def test_a_task_that_extends_a_run_waits_for_an_array_of_it() -> None:
    script = BossScript()
    worker = script.worker("w1", cpus=3)
    script.push("r", big_array("many"))
    script.push("r", task("x", after="many"), merge_strategy="extend")
    script.states(x="waiting")
    script.ended(worker, "many[1]", "many[2]", "many[3]").states(many="succeeded", x="ready")
    counts = script.boss.book.runs[1].states
    assert {state.value: count for state, count in counts.items() if count} == {"succeeded": 3, "ready": 1}
