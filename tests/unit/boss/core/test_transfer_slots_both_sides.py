"""Lanes in the two cores: a worker that has files to move over SSH, and the boss that lets it."""

from __future__ import annotations

from boss_script import BossScript
from worker_script import WorkerScript

from boss.core.workers.transfer_slots import SLICE_S
from ecloud.model import wire
from worker.core.events import TransfersChanged
from worker.core.transfer_slot import IDLE_S


def moving(waiting: int = 0, under_way: int = 0, size: int = 0) -> TransfersChanged:
    return TransfersChanged(waiting, under_way, size)


# --- the worker ---------------------------------------------------------------------------------------


def test_a_worker_asks_once_and_keeps_its_lane_while_no_other_waits() -> None:
    script = WorkerScript().on_duty()
    script.handle(moving(waiting=1, size=7))
    assert script.take(wire.TransfersWanted).bytes == 7
    script.handle(moving(waiting=2, size=9)).nothing_else()
    assert not script.core.lane.is_open
    script.hear(wire.TransfersGranted(1)).nothing_else()
    assert script.core.lane.is_open
    script.handle(moving(under_way=2)).handle(moving()).handle(moving(under_way=1)).handle(moving()).nothing_else()
    script.wait(IDLE_S - 1.0).forget_all().wait(2.0)
    assert script.take(wire.TransfersEnded).lane == 1
    assert not script.core.lane.is_open


def test_a_lane_that_is_called_back_is_used_to_its_end_and_asked_for_again() -> None:
    script = WorkerScript().on_duty()
    script.handle(moving(waiting=3)).take(wire.TransfersWanted)
    script.hear(wire.TransfersGranted(4)).handle(moving(waiting=2, under_way=1))
    script.hear(wire.TransfersGranted(4, 3.0)).nothing_else()
    script.wait(2.9)
    assert script.core.lane.is_open
    script.wait(0.2).nothing_else()
    assert not script.core.lane.is_open, "nothing more begins, running transfers continue"
    script.handle(moving(waiting=2))
    assert script.take(wire.TransfersEnded).lane == 4
    script.take(wire.TransfersWanted)
    script.hear(wire.TransfersGranted(4, 0.0)).take(wire.TransfersEnded)
    script.nothing_else()


def test_an_idle_lane_that_others_wait_for_is_given_back_at_once() -> None:
    script = WorkerScript().on_duty()
    script.handle(moving(waiting=1)).take(wire.TransfersWanted)
    script.hear(wire.TransfersGranted(1)).handle(moving(under_way=1)).handle(moving()).nothing_else()
    script.hear(wire.TransfersGranted(1, 5.0)).take(wire.TransfersEnded)
    script.nothing_else()


def test_heartbeats_tell_the_lane_that_is_held_or_wanted() -> None:
    script = WorkerScript().on_duty()
    script.handle(moving(waiting=1, size=7)).forget_all().wait(5.0)
    heartbeat = script.beats()
    assert (heartbeat.lane, heartbeat.wants_bytes) == (0, 7)
    script.hear(wire.TransfersGranted(3)).handle(moving(under_way=1)).forget_all().wait(5.0)
    heartbeat = script.beats()
    assert (heartbeat.lane, heartbeat.wants_bytes) == (3, None)
    script.lose().connect().welcome()
    assert script.beats().lane == 3, "running transfers continue in a new session"
    script.handle(moving()).wait(IDLE_S + 1.0)
    script.forget_all().wait(5.0)
    assert script.beats().lane == 0


# --- the boss -----------------------------------------------------------------------------------------


def test_the_boss_gives_as_many_lanes_as_there_are_and_calls_back_for_those_who_wait() -> None:
    script = BossScript(transfer_lanes=1)
    w1, w2 = script.worker("w1"), script.worker("w2")
    script.hear(w1, wire.TransfersWanted(5))
    assert script.take(w1, wire.TransfersGranted) == wire.TransfersGranted(1)
    script.hear(w2, wire.TransfersWanted(5))
    assert script.take(w1, wire.TransfersGranted) == wire.TransfersGranted(1, SLICE_S)
    holds, waits = script.store.load().workers
    assert (holds.lane_since, waits.lane_wanted_since) == (script.now, script.now), "it is to be seen in the database"
    script.hear(w1, wire.TransfersEnded(1))
    assert script.take(w2, wire.TransfersGranted) == wire.TransfersGranted(2)
    assert [row.lane_since for row in script.store.load().workers] == [None, script.now]


def test_a_lane_ends_with_its_worker() -> None:
    script = BossScript(transfer_lanes=1)
    w1, w2 = script.worker("w1"), script.worker("w2")
    script.hear(w1, wire.TransfersWanted()).hear(w2, wire.TransfersWanted()).hear(w1, wire.Goodbye("enough"))
    assert script.take(w2, wire.TransfersGranted).lane == 2


def test_a_new_boss_learns_who_moves_files_before_it_lets_others() -> None:
    script = BossScript(transfer_lanes=1, heartbeat_s=5.0)
    w1, w2 = script.worker("w1"), script.worker("w2")
    script.hear(w1, wire.TransfersWanted())
    assert script.take(w1, wire.TransfersGranted).lane == 1
    script.start()
    script.hello(w2, resources={"cpus": 1.0}, home="home-w2").beats(w2, wants_bytes=1)
    script.hello(w1, resources={"cpus": 1.0}, home="home-w1").beats(w1, lane=1)
    script.wait(10.0)
    assert script.take(w1, wire.TransfersGranted).lane == 1, "called back, for the other waits"
    assert not [send for send in script.said if isinstance(send.envelope.message, wire.TransfersGranted)]
    script.hear(w1, wire.TransfersEnded(1))
    assert script.take(w2, wire.TransfersGranted).lane == 2
