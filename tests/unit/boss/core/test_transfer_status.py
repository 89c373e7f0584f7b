"""What a worker reports of its transfers: soon if one takes long, once when it has ended, no message per task; and what
the boss believes of it."""

from __future__ import annotations

import math
from pathlib import Path

from boss_script import BossScript

from boss.core.clients.watchers import MAX_COUNT, TASKS_NAMED
from datastore.directory import DirectoryDatastore
from ecloud.model import wire
from ecloud.model.transfer_status import Moving
from ecloud.model.wire import Heartbeat, Message, MovingChanged
from worker.core.transfer_status import Shown
from worker.shell.meter import Meter


def test_long_transfers_are_reported_now_and_then_and_their_end_at_once() -> None:
    said: list[Message] = []
    shown = Shown(said.append)
    for second in range(10):
        shown.on_measured(Moving(1, 0, 100, 10 * second, since_s=float(second)), float(second))
    told = [message.moving for message in said if isinstance(message, MovingChanged)]
    assert [moving and moving.moved_bytes for moving in told] == [10, 30, 50, 70, 90]
    shown.on_measured(None, 10.2)
    shown.on_measured(None, 11.2)
    assert said[5:] == [MovingChanged(None)]


def test_many_short_transfers_are_reported_by_heartbeats_alone() -> None:
    said: list[Message] = []
    shown = Shown(said.append)
    for second in range(100):
        shown.on_measured(Moving(4, 0, 100, 50, since_s=0.3) if second % 2 else None, float(second))
    assert said == []
    shown.on_measured(Moving(4, 0, 100, 50, since_s=0.3), 100.0)
    shown.on_heartbeat(100.0)  # it reports them: so their end is reported
    shown.on_measured(None, 101.0)
    assert said == [MovingChanged(None)]


def test_of_a_directory_what_is_copied_counts(tmp_path: Path) -> None:
    root, local = tmp_path / "root", tmp_path / "local"
    store = DirectoryDatastore(root).make()
    local.write_bytes(b"x" * 3_000_000)
    meter = Meter()
    meter.is_far = False
    with meter.moving("store", 2, 6_000_000):
        store.store("w1/1-1", local, "out")
        told = meter.read()
        assert told is not None
        assert (told.bytes, told.moved_bytes) == (6_000_000, 3_000_000)


def test_a_meter_calls_when_all_transfers_that_it_reported_have_ended() -> None:
    meter, calls = Meter(), []
    meter.stopped = lambda: calls.append(meter.read())
    with meter.moving("fetch", 1, 10, 7):
        pass
    assert calls == [], "no report named it"
    with meter.moving("fetch", 1, 10, 7):
        with meter.moving("store", 2, 10, 8):
            told = meter.read()
        assert calls == []
    assert told is not None
    assert (told.tasks, told.fetching, told.storing) == ((7, 8), 1, 2)
    assert calls == [None]


# --- the boss -----------------------------------------------------------------------------------------


def test_the_boss_keeps_what_was_told_last_and_answers_nothing() -> None:
    script = BossScript()
    w1 = script.worker("w1")
    moving = Moving(1, 0, 100, 10, tasks=(7,), since_s=2.0)
    script.hear(w1, MovingChanged(moving)).nothing_else()
    (row,) = script.store.load().workers
    assert (row.moving, row.moving_at) == (moving, script.now)
    script.start()
    script.hello(w1, resources={"cpus": 1.0}, home="home-w1").beats(w1)
    (row,) = script.store.load().workers
    assert row.moving is None, "a heartbeat without transfers corrects what an older boss knew"
    script.hear(w1, MovingChanged(moving)).hear(w1, wire.Goodbye("enough"))
    assert script.store.load().workers == []


def test_a_boss_believes_within_bounds() -> None:
    huge = Moving(-5, 2**60, 2**62, 2**63 - 1, -1, tuple(range(10_000)), math.inf)
    for told in (MovingChanged(huge), Heartbeat(orders_seen=0, moving=huge)):
        script = BossScript()
        script.hear(script.worker("w1"), told)
        (row,) = script.store.load().workers
        assert row.moving == Moving(0, MAX_COUNT, MAX_COUNT, MAX_COUNT, 0, tuple(range(TASKS_NAMED)), 0.0)
