"""A database that was restored from a backup: peers that know more than it holds learn it, and nothing is mixed up."""

from __future__ import annotations

import copy

import pytest
from boss_script import BossScript, task

from boss.core.boss import RESTORED_NOTE
from boss.core.model.effects import TellPerson
from boss.core.model.history import MAX_AHEAD_S, History, next_epoch
from ecloud.model import wire


def test_what_a_peer_heard_is_part_of_this_history_up_to_where_each_epoch_ended() -> None:
    history = History(30, {10: 5, 20: 9})
    assert all(history.has(*heard) for heard in ((0, 0), (10, 5), (20, 3), (30, 10**9)))
    assert not any(history.has(*heard) for heard in ((10, 6), (15, 1), (40, 1)))


def test_an_epoch_never_repeats_also_after_a_restore() -> None:
    assert next_epoch(7, 100.0, 5) == 100_005
    assert next_epoch(200_000, 100.0, 5) == 200_006
    assert next_epoch(7, 100.0, 5) != next_epoch(7, 50.0, 5), "time has passed"
    assert next_epoch(200_000, 100.0, 5) != next_epoch(200_000, 150.0, 6), "the clock is behind: chance"


def test_a_peer_that_heard_a_later_epoch_makes_the_boss_lead_above_it_unless_it_lies() -> None:
    history = History(1_000, {})
    assert history.is_behind(1_001, 1.0)
    assert not history.is_behind(1_000, 1.0)
    assert not history.is_behind(int((1.0 + MAX_AHEAD_S) * 1000) + 1, 1.0)


@pytest.fixture
def restored() -> tuple[BossScript, tuple[int, int]]:
    """A boss on a backup; and what a worker heard of the one after the backup was made."""
    script = BossScript()
    script.worker("w1")
    backup = copy.deepcopy(script.store.tables)
    script.push("r", task("a"))
    heard = (script.boss.history.epoch, script.store.last_batch())
    script.store.tables.__dict__.update(backup.__dict__)
    script.store = type(script.store)(script.store.tables)
    script.now += 100.0
    script.start()
    return script, heard


def say_hello(script: BossScript, name: str, kind: str, epoch: int, batch: int) -> wire.Welcome:
    hello = wire.Hello(name, kind, home=name, resources={"cpus": 1.0}, epoch=epoch, batch=batch)
    script.handle(script.message(name, hello))
    (welcome,) = [
        send.envelope.message
        for send in script.said
        if send.envelope.peer == name and isinstance(send.envelope.message, wire.Welcome)
    ]
    return welcome


def test_a_worker_of_the_lost_history_starts_again_and_operators_are_notified_once(
    restored: tuple[BossScript, tuple[int, int]],
) -> None:
    script, heard = restored
    welcome = say_hello(script, "w1", "worker", *heard)
    assert (welcome.other_history, welcome.session) == (True, "")
    assert script.store.tables.context[RESTORED_NOTE].endswith(" w1")
    assert "restored from a backup" in script.call(TellPerson).text
    say_hello(script, "w2", "worker", *heard)
    assert not [call for call in script.calls if isinstance(call, TellPerson)]
    assert not say_hello(script, "w3", "worker", 0, 0).other_history, "a new process has heard of nothing"


def test_a_client_of_the_lost_history_continues_and_is_notified(restored: tuple[BossScript, tuple[int, int]]) -> None:
    script, heard = restored
    welcome = say_hello(script, "c9", "client", *heard)
    assert welcome.other_history
    assert welcome.session


def test_who_heard_no_more_than_the_backup_has_is_of_the_same_history(
    restored: tuple[BossScript, tuple[int, int]],
) -> None:
    script, (epoch, _) = restored
    assert not say_hello(script, "w1", "worker", epoch, 1).other_history


def test_a_boss_whose_clock_is_behind_leads_above_what_a_peer_heard() -> None:
    script = BossScript()
    before = script.boss.history.epoch
    hello = wire.Hello("n", "worker", epoch=before + 500, batch=7)
    script.handle(script.message("w1", hello))
    assert script.boss.history.epoch == before + 501
    assert script.said == [], "the peer would ignore it, and says Hello again"
    assert say_hello(script, "w1", "worker", before + 500, 7).other_history
