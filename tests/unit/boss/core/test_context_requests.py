"""Requests about the cluster as a whole: its notes, its datastore, its keys."""

from __future__ import annotations

import pytest
from boss_script import BossScript, Peer, task

from boss.core.model.effects import UseDatastore
from boss.core.model.events import FreeSpaceSeen
from boss.core.workers.datastore_access import FREE_SPACE
from ecloud.model import wire


def test_a_note_is_stored_and_dropped() -> None:
    script = BossScript()
    script.ask("set_context", key="boss_address", value="10.0.0.1")
    assert script.store.tables.context["boss_address"] == "10.0.0.1"
    script.ask("drop_context", keys=["boss_address"])
    assert "boss_address" not in script.store.tables.context


@pytest.mark.parametrize("key", ["", "cluster_id", "budget/1", "x" * 101])
def test_notes_that_belong_to_the_boss_and_long_names_are_refused(key: str) -> None:
    script = BossScript()
    before = dict(script.store.tables.context)
    answer = script.ask("set_context", key=key, value="mine")
    assert isinstance(answer, wire.Refused)
    assert script.store.tables.context == before


def test_a_datastore_is_stored_for_the_next_boss_and_the_free_space_of_the_old_one_is_forgotten() -> None:
    script = BossScript()
    script.handle(FreeSpaceSeen("", 5_000.0))
    assert FREE_SPACE in script.store.tables.context
    refused = script.ask("set_datastore", address="")
    assert isinstance(refused, wire.Refused)
    assert refused.code == "request"
    script.ask("set_datastore", address="u@host:/root", host_key="ssh-ed25519 AAAA")
    assert script.call(UseDatastore).address == "u@host:/root"
    context = dict(script.store.tables.context)
    del context["cluster_id"]
    assert context == {"datastore_address": "u@host:/root", "datastore_host_key": "ssh-ed25519 AAAA"}


def test_a_revoked_key_is_one_and_names_who_was_disconnected() -> None:
    script = BossScript()
    worker = Peer("w1", "worker")
    worker.key_name = "worker-1"
    script.hello(worker, resources={"cpus": 1.0}, home="home-w1").beats(worker)
    answer = script.ask("revoke_key", name="worker-1")
    assert isinstance(answer, wire.RequestDone)
    assert (answer.count, answer.names) == (1, ("worker-1",))
    assert script.take(worker, wire.Exit).reason == "its key was revoked"


def test_reasons_of_operators_are_kept_and_the_usual_one_is_a_sentence() -> None:
    script = BossScript()
    script.worker("w1")
    script.worker("w2")
    script.ask("drain_worker", workers=["w1"], reason="new disks")
    script.ask("drain_worker", workers=["w2"])
    assert [script.store.workers[name].reason for name in ("w1", "w2")] == ["new disks", "an operator requested it"]
    script.wait(30.0).ask("undrain_worker", workers=["w1"])
    row = script.store.workers["w1"]
    assert (str(row.state), row.reason, row.since) == ("up", "", script.now)
    script.push("r", task("a", resources={"cpus": 9.0}), task("b", resources={"cpus": 9.0}))
    script.ask("cancel", ids=["a"], reason="wrong input")
    script.ask("cancel", ids=["b"])
    assert [script.reason(id) for id in "ab"] == ["cancelled: wrong input", "cancelled: an operator requested it"]
