"""Alarms of the core: when they ring, and of those with a key only the earliest."""

from __future__ import annotations

from boss.core.model.timers import Timers


def test_an_alarm_rings_once_when_it_is_due() -> None:
    timers, rung = Timers(), list[float]()
    timers.set(2.0, rung.append)
    timers.ring(1.9)
    assert (rung, timers.next) == ([], 2.0)
    timers.ring(2.5)
    timers.ring(3.0)
    assert (rung, timers.next) == ([2.5], None)


def test_of_one_key_the_earliest_counts_and_the_others_are_void() -> None:
    timers, rung = Timers(), list[str]()
    timers.once("a", 5.0, lambda now: rung.append("first"))
    timers.once("a", 6.0, lambda now: rung.append("later"))
    timers.once("a", 3.0, lambda now: rung.append("earlier"))
    assert timers.next == 3.0
    timers.ring(3.0)
    assert rung == ["earlier"]
    assert timers.next is None, "a void alarm makes no batch"
    timers.ring(10.0)
    assert rung == ["earlier"]


def test_after_it_rang_the_next_one_counts_also_one_that_it_sets_itself() -> None:
    timers, rung = Timers(), list[float]()

    def again(now: float) -> None:
        rung.append(now)
        timers.once("a", now + 1.0, again)

    timers.once("a", 1.0, again)
    for now in (1.0, 1.5, 2.0, 3.0):
        timers.ring(now)
    assert rung == [1.0, 2.0, 3.0]


def test_an_alarm_that_was_replaced_does_not_ring_for_one_set_later_for_the_same_time() -> None:
    timers, rung = Timers(), list[str]()
    timers.once("a", 5.0, lambda now: rung.append("replaced"))
    timers.once("a", 1.0)
    timers.ring(1.0)
    timers.once("a", 5.0, lambda now: rung.append("new"))
    timers.ring(5.0)
    assert len(rung) == 1


def test_keys_do_not_touch_each_other() -> None:
    timers, rung = Timers(), list[str]()
    timers.once("a", 1.0, lambda now: rung.append("a"))
    timers.once("b", 2.0, lambda now: rung.append("b"))
    timers.ring(2.0)
    assert rung == ["a", "b"]
