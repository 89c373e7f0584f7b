"""Calls whose values did not fit into their order: the worker asks for them before it queues the attempt."""

from __future__ import annotations

import pytest
from worker_script import WorkerScript, call, names_of, order

from ecloud.model import wire
from ecloud.model.wire import CallValue, CallValues, ValuesWanted
from worker.core import call_values
from worker.core.call_values import AGAIN_S


def asked(script: WorkerScript) -> tuple[int, str]:
    """The task whose values it asks for, and the last one that it has."""
    wanted = script.take(ValuesWanted)
    return wanted.task_no, wanted.after


def page(task_no: int, after: str, *ids: str, more: bool = False) -> CallValues:
    return CallValues(task_no, 1, after, tuple([CallValue(id, id.encode()) for id in ids]), more)


def waiting(*task_nos: int) -> WorkerScript:
    """A worker with these orders, each without its values."""
    script = WorkerScript(cpus=2.0).on_duty().forget_all()
    return script.orders(*[call(task_no, values_apart=True) for task_no in task_nos]).begins()


def test_it_asks_page_by_page_and_starts_with_all_values() -> None:
    script = waiting(1)
    assert asked(script) == (1, "")
    script.hear(page(1, "", "a", "b", more=True)).begins()
    assert asked(script) == (1, "b")
    script.hear(page(1, "b", "c"))
    (start,) = script.done.starts
    assert [value.id for value in start.order.values] == ["a", "b", "c"]
    script.begins(1).nothing_else()


def test_what_it_waits_for_is_in_its_inventory_and_holds_nothing_up() -> None:
    script = waiting(1)
    script.orders(order(2)).begins(2).forget_all()
    script.wait(5.0).beats(t1="queued", t2="running")


def test_it_asks_for_one_attempt_after_another() -> None:
    script = waiting(1, 2)
    assert asked(script) == (1, "")
    script.nothing_else().hear(page(1, "", "a")).begins(1)
    assert asked(script) == (2, "")
    script.hear(page(2, "", "b")).begins(2).nothing_else()


def test_it_asks_again_and_ignores_a_page_that_it_did_not_ask_for() -> None:
    script = waiting(1).forget_all()
    script.wait(AGAIN_S)
    assert asked(script) == (1, "")
    script.forget_all().hear(page(1, "", "a", more=True))
    assert asked(script) == (1, "a")
    script.hear(page(1, "", "a", more=True)).hear(page(2, "a", "x")).hear(page(9, "")).nothing_else()
    script.hear(page(1, "a", "b"))
    assert [value.id for value in script.done.starts[0].order.values] == ["a", "b"]


def test_in_a_new_session_it_continues_where_it_was() -> None:
    script = waiting(1).forget_all()
    script.hear(page(1, "", "a", more=True)).forget_all()
    script.lose().nothing_else()
    script.connect().welcome()
    assert asked(script) == (1, "a")


def test_an_attempt_that_is_taken_back_is_asked_for_no_more() -> None:
    script = waiting(1, 2)
    assert asked(script) == (1, "")
    script.hear(page(1, "", "a", more=True)).forget_all()
    script.hear(wire.StopTasks(names_of(1), 1.0)).returns(1)
    assert asked(script) == (2, "")
    script.hear(page(1, "a", "b")).begins()
    script.hear(wire.Drain()).returns(2).nothing_else()
    script.wait(4.0).nothing_else()


def test_with_many_values_in_its_queue_it_asks_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_values, "KEPT_BYTES", 3)
    script = waiting(1, 2, 3, 4, 5)
    for task_no in (1, 2, 3):
        assert asked(script) == (task_no, "")
        script.hear(page(task_no, "", "abc"))
    script.begins(1, 2).nothing_else()  # the values of 3 wait in the queue
    script.ends(1).begins(3).spools(1)
    assert asked(script) == (4, "")
