"""Peers with good keys that lie, shout or repeat what others said: what the boss believes, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
from boss_script import BossScript, Peer, task

from boss.core.clients import pushes
from boss.core.model.effects import DropStages
from boss.core.model.events import MessageArrived
from boss.core.workers import sessions
from boss.core.workers.hellos import MAX_ATTEMPTS, MAX_ITEMS, bounded
from ecloud.model import wire
from ecloud.model.tasks import INLINE_BYTES, Cause, ManifestEntry, Outcome
from ecloud.model.wire import Envelope, HeldAttempt, Hello


def raw_hello(script: BossScript, peer: str, key_name: str, nonce: str, **fields: Any) -> None:
    """A Hello as it comes from the broker; a peer that recorded it can send it again."""
    hello = Hello(nonce=nonce, kind=fields.pop("kind", "worker"), **fields)
    script.handle(MessageArrived(Envelope(wire.PROTOCOL_VERSION, peer, "", 0, hello), key_name))


def liar(script: BossScript, name: str, key_name: str, **fields: Any) -> Peer:
    """A worker on duty that signs with this key and says this in its Hello."""
    peer = script.peers[name] = Peer(name, "worker")
    peer.key_name = key_name
    script.hello(peer, **{"resources": {"cpus": 1.0}, **fields})
    script.hear(peer, wire.Heartbeat(0))
    return peer


# --- homes and keys ---------------------------------------------------------------------------------


def test_the_holder_of_another_key_takes_nothing_over_by_naming_a_home() -> None:
    script = BossScript()
    honest = script.worker("w1", home="h1")
    script.push("r", task("a"))
    script.starts(honest, "a")
    key = next(iter(honest.holds))
    other = liar(script, "w2", "key-of-another", home="h1", attempts=(HeldAttempt(*key, "running"),))
    assert script.boss.fleet.workers["w1"].held.keys() == {key}
    script.hear(other, wire.TasksEnded((Outcome(*key, Cause.SUCCESS),)))
    assert script.state("a") == "ready", "an outcome of an attempt that another worker holds changes nothing"
    script.ended(honest, "a")
    assert script.state("a") == "succeeded"


def test_a_list_of_attempts_in_a_hello_gives_a_worker_nothing_after_a_restart() -> None:
    script = BossScript()
    honest = script.worker("w1", home="h1")
    script.push("r", task("a"))
    script.starts(honest, "a")
    key = next(iter(honest.holds))
    liar(script, "w2", "key-of-another", home="h2", attempts=(HeldAttempt(*key, "running"),))
    script.start()
    assert script.boss.fleet.workers["w2"].held == {}
    assert script.boss.fleet.workers["w1"].held.keys() == {key}


def test_a_home_after_another_boot_is_taken_over_once_its_last_process_is_silent() -> None:
    script = BossScript()
    old = liar(script, "p1", "key-h", home="h", boot_id="b1")
    new = Peer("p2", "worker")
    new.key_name = "key-h"
    script.hello(new, resources={"cpus": 1.0}, home="h", boot_id="b2").hear(new, wire.Heartbeat(0))
    assert script.take(new, wire.Refused).code == "home_unsure"
    script.wait(3 * script.config.heartbeat_s)
    script.hello(new, resources={"cpus": 1.0}, home="h", boot_id="b2").hear(new, wire.Heartbeat(0))
    script.take(new, wire.HeartbeatAnswered)
    assert set(script.boss.fleet.workers) == {"p2"}
    assert script.store.workers[old.name].state == "gone"


def test_a_copied_home_replaces_no_worker_and_is_ordered_to_take_another() -> None:
    script = BossScript()
    old = liar(script, "p1", "key-h", home="h", boot_id="b1", host="one")
    script.push("r", task("a"))
    script.starts(old, "a")
    clone = Peer("p2", "worker")
    clone.key_name = "key-h"
    for code in ("home_unsure", "home", "home"):
        script.hello(clone, resources={"cpus": 1.0}, home="h", boot_id="b2").hear(clone, wire.Heartbeat(0))
        refused = script.take(clone, wire.Refused)
        assert refused.code == code
        script.wait(1.0).beats(old)
    assert "worker p1 on one uses this home" in refused.reason
    assert "another --home" in refused.reason
    assert set(script.boss.fleet.workers) == {"p1"}
    script.hello(clone, resources={"cpus": 1.0}, home="h-2", boot_id="b2").hear(clone, wire.Heartbeat(0))
    assert set(script.boss.fleet.workers) == {"p1", "p2"}
    script.ended(old, "a")
    assert script.state("a") == "succeeded"


# --- names and roles --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["put", "PUT", "..", ".x", "a b", "x" * 65, "", "ü", "boss"])
def test_a_peer_is_not_called_what_means_something_else(name: str) -> None:
    script = BossScript()
    raw_hello(script, name, "admin-1", "n")
    assert [type(send.envelope.message) for send in script.said] == [wire.Refused]
    assert script.boss.sessions.ignored["peer"] == 1


@pytest.mark.parametrize(
    ("key_name", "kind", "welcome"),
    [
        ("worker-1", "worker", True), ("worker-1", "client", False), ("vm-1", "client", False),
        ("submit-1", "client", True), ("submit-1", "worker", False),
        ("admin-1", "client", True), ("admin-1", "worker", True), ("invite-1", "client", True),
        ("client", "client", True),
    ],
)  # fmt: skip
def test_a_key_opens_what_its_role_allows(key_name: str, kind: str, welcome: bool) -> None:
    script = BossScript()
    raw_hello(script, "p", key_name, "n", kind=kind)
    (send,) = script.said
    assert isinstance(send.envelope.message, wire.Welcome if welcome else wire.Refused)
    if not welcome:
        assert send.envelope.message.code == "role"


def test_who_may_submit_may_not_change_what_all_share() -> None:
    script = BossScript()
    client = script.peers["c"] = Peer("c", "client")
    client.key_name = "submit-1"
    script.hello(client)
    for verb in ("end_vms", "set_datastore", "revoke_key", "drop_tasks", "kill_worker", "set_context"):
        script.hear(client, wire.Request(f"r-{verb}", verb, {"key": "a", "value": "b"}))
        refused = script.take(client, wire.Refused)
        assert (refused.code, refused.about) == ("role", f"r-{verb}")
    assert script.store.tables.context.get("a") is None
    script.hear(client, wire.Request("r", "cancel", {"ids": ["nothing"]}))
    assert script.take(client, wire.Refused).code == "no_such_task"


def test_a_revoked_key_is_dropped_at_once() -> None:
    script = BossScript()
    out = liar(script, "w1", "worker-1", home="h1")
    script.push("r", task("a"))
    script.starts(out, "a")
    stays = script.worker("w2")
    raw_hello(script, "w3", "worker-1", "n3")
    script.said.clear()
    client = script.client()
    script.hear(client, wire.Request("r", "revoke_key", {"name": "worker-1"}))
    assert script.take(client, wire.RequestDone).text == "worker-1 is revoked; disconnected: 1 worker"
    assert script.take(out, wire.Exit).reason == "its key was revoked"
    row = script.store.workers["w1"]
    assert (row.state, row.reason) == ("gone", "its key was revoked")
    assert not script.boss.sessions._pending
    script.starts(stays, "a")


def test_a_revoked_key_stays_revoked_after_a_restart() -> None:
    script = BossScript()
    liar(script, "w1", "worker-1", home="h1")
    client = script.client()
    script.hear(client, wire.Request("r", "revoke_key", {"name": "worker-1"}))
    script.said.clear()
    script.start()
    raw_hello(script, "w2", "worker-1", "n2", home="h2")
    assert script.said == []
    assert script.boss.revoked_keys == {"worker-1"}, "the keys of which no message is read"
    raw_hello(script, "w3", "worker-2", "n3", home="h3")
    assert [type(send.envelope.message) for send in script.said] == [wire.Welcome]


def test_a_client_whose_key_is_revoked_is_dropped_at_once() -> None:
    script = BossScript()
    other = script.peers["c2"] = Peer("c2", "client")
    other.key_name = "submit-1"
    script.hello(other).hear(other, wire.Heartbeat(0))
    client = script.client()
    script.hear(client, wire.Request("r", "revoke_key", {"name": "submit-1"}))
    refused = script.take(other, wire.Refused)
    assert (refused.code, refused.reason.partition(":")[0]) == ("revoked", "its access file was revoked")
    assert "1 client" in script.take(client, wire.RequestDone).text
    assert set(script.boss.clients) == {"c1"}


# --- Hellos -----------------------------------------------------------------------------------------


def test_a_hello_that_is_repeated_does_not_push_out_the_session_of_a_newcomer() -> None:
    script = BossScript()
    raw_hello(script, "w1", "worker-1", "w1-1")  # recorded by a stranger at the broker, long ago
    newcomer = Peer("w1", "worker")
    newcomer.key_name = "worker-1"
    script.hello(newcomer, resources={"cpus": 1.0}, home="h")
    raw_hello(script, "w1", "worker-1", "w1-1")
    script.said.clear()
    script.hear(newcomer, wire.Heartbeat(0))
    script.take(newcomer, wire.HeartbeatAnswered)
    assert "w1" in script.boss.fleet.workers


def test_a_hello_that_arrives_twice_opens_one_session() -> None:
    script = BossScript()
    for _ in range(1_000):
        raw_hello(script, "w1", "worker-1", "w1-1")
    assert len({send.envelope.session for send in script.said}) == 1
    assert len(script.boss.sessions._pending) == 1


def test_pending_hellos_are_bounded_in_count_bytes_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_PENDING", 50)
    monkeypatch.setattr(sessions, "MAX_PENDING_BYTES", 40_000)
    script = BossScript()
    raw_hello(script, "modest", "worker-2", "n")
    for number in range(200):
        raw_hello(script, f"w{number}", "worker-1", "n", addresses=("a" * 200,) * 10)
    held = script.boss.sessions
    assert "modest" in {pending.conversation.peer for pending in held._pending.values()}, "each key pushes out its own"
    assert len(held._pending) <= 50
    script.wait(sessions.PENDING_S)
    raw_hello(script, "late", "worker-2", "n")
    assert [pending.conversation.peer for pending in held._pending.values()] == ["late"]


def test_a_hello_is_kept_within_limits() -> None:
    kept = bounded(
        Hello(
            "n", "worker", software="s" * 10**6, host="h" * 10**6, addresses=("a" * 10**5,) * 1_000,
            resources={f"r{n}": 1e300 for n in range(1_000)}, labels=("l" * 10**5,) * 1_000, lives_s=1e300,
            attempts=(HeldAttempt(1, 1, "x" * 10**5),) * (2 * MAX_ATTEMPTS), ssh_key="k" * 10**6,
            boot_s={f"b{n}" * 1_000: -1e300 for n in range(1_000)}, home="h" * 1_000, boot_id="b" * 10**6,
        )
    )  # fmt: skip
    assert len(kept.attempts) == MAX_ATTEMPTS
    assert len(kept.resources) == MAX_ITEMS
    assert max(kept.resources.values()) == 1e9
    assert kept.attempts[0].state == "running"
    assert len(wire._encoder.encode(kept)) < 600_000


# --- heartbeats and outcomes ------------------------------------------------------------------------


def test_a_heartbeat_with_the_largest_numbers_stops_no_other_worker() -> None:
    script = BossScript(transfer_lanes=1)
    mean, honest = script.worker("w1"), script.worker("w2")
    most = 2**63 - 1
    script.hear(mean, wire.Heartbeat(most, spooled=most, free_disk_mb=1e300, load=1e300, lane=most, wants_bytes=most))
    script.hear(honest, wire.TransfersWanted(1_000))
    script.wait(3 * script.config.heartbeat_s)
    assert script.take(honest, wire.TransfersGranted).lane == 1
    assert "w1" not in script.boss.transfer_slots.lanes, "a lane that was not granted is not believed"


def test_who_wants_the_most_holds_up_the_others_for_a_while_only() -> None:
    script = BossScript(transfer_lanes=2)
    greedy, honest = script.worker("w1"), script.worker("w2")
    script.hear(greedy, wire.TransfersWanted(2**63 - 1))
    lane = script.take(greedy, wire.TransfersGranted).lane
    script.hear(honest, wire.TransfersWanted(1_000_000))
    for _ in range(30):
        script.wait(5.0)
        script.hear(greedy, wire.Heartbeat(99, lane=lane)).hear(honest, wire.Heartbeat(99, wants_bytes=1_000_000))
        if "w2" in script.boss.transfer_slots.lanes:
            break
    assert "w2" in script.boss.transfer_slots.lanes


@pytest.mark.parametrize(("cause", "state"), [(Cause.SUCCESS, "failed"), (Cause.EXIT, "failed")])
def test_a_value_that_should_travel_as_a_file_is_not_kept(cause: Cause, state: str) -> None:
    """The database would refuse the row, and with it all that was decided beside it, again and again."""
    script = BossScript()
    worker = script.worker("w1")
    script.push("r", task("a"))
    script.starts(worker, "a").ended(worker, "a", cause=cause, value=b"x" * (INLINE_BYTES + 1), error="")
    script.stored(worker, "a").states(a=state)
    kept = script.store.attempts[script.key("a")]
    assert kept.outcome is not None
    assert kept.outcome.value == b""
    if cause is Cause.SUCCESS:
        assert f"a value of {INLINE_BYTES + 1:,} bytes" in kept.reason


def test_a_value_that_fits_is_kept() -> None:
    script = BossScript()
    worker = script.worker("w1")
    script.push("r", task("a"))
    script.starts(worker, "a").ended(worker, "a", value=b"x" * INLINE_BYTES).stored(worker, "a").states(a="succeeded")
    kept = script.store.attempts[script.key("a")].outcome
    assert kept is not None
    assert len(kept.value) == INLINE_BYTES


def test_long_sentences_are_cut() -> None:
    script = BossScript()
    worker = script.worker("w1")
    script.hear(worker, wire.Heartbeat(0, trouble="t" * 10**6))
    assert len(script.store.workers["w1"].trouble) == 1_001
    script.hear(worker, wire.Heartbeat(0))
    script.hear(worker, wire.DrainWanted("d" * 10**6))
    assert len(script.store.workers["w1"].reason) == 1_001
    script.hear(worker, wire.Goodbye("g" * 10**6))
    assert len(script.store.workers["w1"].reason) <= 1_001


def test_an_inventory_of_attempts_that_no_boss_gave_is_answered_with_a_bounded_number_of_orders() -> None:
    script = BossScript()
    worker = script.worker("w1")
    script.said.clear()
    script.hear(worker, wire.Heartbeat(0, attempts=tuple(HeldAttempt(n, 1, "running") for n in range(100_000))))
    stops = [send.envelope.message for send in script.said if isinstance(send.envelope.message, wire.StopTasks)]
    assert 0 < sum(len(stop.attempts) for stop in stops) <= 4 * wire.BATCH_COUNT
    assert all(len(stop.attempts) <= wire.BATCH_COUNT for stop in stops)


def test_stages_of_others_are_not_dropped_by_naming_their_attempts() -> None:
    script = BossScript()
    honest = script.worker("w1")
    script.push("r", task("a", results=["out"]))
    script.starts(honest, "a")
    key = next(iter(honest.holds))
    other = script.worker("w2")
    manifest = (ManifestEntry("out", 1, "0" * 64),)
    script.hear(other, wire.TasksEnded((Outcome(*key, Cause.SUCCESS, manifest=manifest),)))
    assert script.call(DropStages).stages == (f"w2/{key[0]}-{key[1]}",), "its own, and no other"


def test_what_a_worker_returns_unasked_and_without_a_reason_it_is_not_given_again_at_once() -> None:
    script = BossScript()
    worker = script.worker("w1")
    script.push("r", task("a"))
    script.starts(worker, "a").returned(worker, "a").nothing_else().states(a="ready")
    script.beats(worker).starts(worker, "a")
    assert script.key("a")[1] == 2


# --- pushes -----------------------------------------------------------------------------------------


def chunk_of(script: BossScript, push_id: str, k: int, n: int, size: int, *tasks: Any) -> type:
    """A client pushes a chunk of this many bytes; the kind of answer."""
    client = script.client()
    client.number += 1
    message = wire.SubmitTasks(push_id, k, n, wire.PushOptions("r"), tasks or (task(f"{push_id}-{k}"),))
    envelope = Envelope(wire.PROTOCOL_VERSION, client.name, client.session, client.number, message)
    script.handle(MessageArrived(envelope, client.key_name, size))
    (answer,) = [send.envelope.message for send in script.said if send.envelope.peer == client.name]
    script.said.clear()
    return type(answer)


def test_a_push_is_refused_before_the_boss_holds_more_of_it_than_it_may() -> None:
    script = BossScript(max_tasks_per_push=3)
    assert chunk_of(script, "p", 0, 9, 100, task("a"), task("b")) is wire.ChunkReceived
    assert chunk_of(script, "p", 1, 9, 100, task("c"), task("d")) is wire.RunRejected
    assert chunk_of(script, "q", 0, 9, pushes.MAX_OPEN_BYTES + 1) is wire.RunRejected
    assert not script.boss.pushes._open


def test_pushes_under_way_are_bounded_together() -> None:
    script = BossScript()
    half = pushes.MAX_OPEN_BYTES // 2
    assert chunk_of(script, "p", 0, 9, half) is wire.ChunkReceived
    assert chunk_of(script, "q", 0, 9, half) is wire.ChunkReceived
    assert chunk_of(script, "s", 0, 9, 10) is wire.Refused, "busy: it is said again in a moment"
    assert chunk_of(script, "p", 0, 9, half) is wire.ChunkReceived, "what it holds already costs nothing more"
    assert chunk_of(script, "x" * 1_000, 0, 1, 10) is wire.Refused
