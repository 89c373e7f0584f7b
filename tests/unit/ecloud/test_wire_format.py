"""Messages on the wire: signed, readable text; everything else is one error with its reason."""

from __future__ import annotations

import json

import msgspec
import pytest

from ecloud.config.secrets import derive_key
from ecloud.model import wire
from ecloud.model.tasks import Cause, Outcome, TaskBody, TaskDefinition
from ecloud.model.topics import boss_topic, logs_topic, peer_topic, presence_topic
from ecloud.model.wire import (
    MAX_MESSAGE_BYTES,
    MAX_NAME_CHARS,
    PROTOCOL_VERSION,
    AttemptName,
    AttemptOrder,
    Envelope,
    Goodbye,
    Heartbeat,
    HeldAttempt,
    PushOptions,
    StartTasks,
    SubmitTasks,
    TasksEnded,
    TasksReturned,
    Unreadable,
    decode,
    encode,
)

SECRET = b"s" * 32
TOPIC = boss_topic("cluster", "w1")


def key_of(name: str) -> bytes | None:
    """Keys of all peers, except strangers."""
    return None if name == "stranger" else derive_key(SECRET, name)


def said(message: object, topic: str = TOPIC, key_name: str = "vm-1", **fields: object) -> bytes:
    """A message as peer w1 sends it."""
    envelope = Envelope(**{"v": PROTOCOL_VERSION, "peer": "w1", "session": "s", "number": 1, **fields}, message=message)  # type: ignore[arg-type]
    return encode(envelope, topic, key_name, derive_key(SECRET, key_name))


def signed(text: bytes, topic: str = TOPIC, key_name: str = "vm-1") -> bytes:
    """Any text under a signature that holds."""
    key = derive_key(SECRET, key_name)
    return b"ecloud " + key_name.encode() + b" " + wire._signature(key, topic, text) + b"\n" + text


def why(payload: bytes, topic: str = TOPIC) -> str:
    """Why those bytes are no message."""
    with pytest.raises(Unreadable) as problem:
        decode(payload, topic, key_of)
    assert str(problem.value)
    assert len(str(problem.value)) < 1_000, "a sentence, not the message"
    return problem.value.why


# --- what is right --------------------------------------------------------------------------------


def test_a_message_comes_back_with_the_name_of_its_key() -> None:
    message = Heartbeat(7, (HeldAttempt(1, 2, "running"),), spooled=3, trouble="the disk is full")
    envelope, key_name = decode(said(message), TOPIC, key_of)
    assert (envelope.message, key_name) == (message, "vm-1")
    assert (envelope.peer, envelope.session, envelope.number, envelope.epoch) == ("w1", "s", 1, 0)


def test_a_message_is_one_line_of_signature_and_readable_json() -> None:
    head, _, text = said(TasksReturned((AttemptName(5, 1),), "no room")).partition(b"\n")
    assert head.startswith(b"ecloud vm-1 ")
    assert json.loads(text) == {
        "v": 1,
        "peer": "w1",
        "session": "s",
        "number": 1,
        "message": {"type": "TasksReturned", "attempts": [[5, 1]], "reason": "no room"},
    }


def test_a_stored_definition_travels_as_a_workers_body() -> None:
    # The boss puts a task's stored JSON into the order without looking at it; the worker leaves out what it needs not.
    stored = msgspec.json.encode(TaskDefinition("a", ("echo",), priority=3, labels=("x",)))
    order = AttemptOrder(1, 1, "r", 1, {"cpus": 1.0}, body=msgspec.Raw(stored))  # type: ignore[arg-type]
    envelope, _ = decode(said(StartTasks((order,))), TOPIC, key_of)
    assert isinstance(envelope.message, StartTasks)
    assert envelope.message.attempts[0].body == TaskBody("a", ("echo",))


def test_the_largest_task_fits_into_a_message() -> None:
    task = TaskDefinition("big", ("\x01" * 1_000_000,))  # each character is escaped six-fold
    payload = said(SubmitTasks("p", 0, 1, PushOptions("r"), (task,)))
    assert len(payload) > 6_000_000
    envelope, _ = decode(payload, TOPIC, key_of)
    assert isinstance(envelope.message, SubmitTasks)
    assert envelope.message.tasks == (task,)


def test_fields_that_a_later_version_adds_are_passed_over() -> None:
    text = b'{"v":1,"peer":"w1","session":"s","number":1,"later":[1],"message":{"type":"Goodbye","also":{"x":1}}}'
    assert decode(signed(text), TOPIC, key_of)[0].message == Goodbye()


def test_topics_differ_by_cluster_peer_and_direction() -> None:
    topics = {
        make(cluster, peer)
        for make in (boss_topic, peer_topic, presence_topic)
        for cluster in ("a", "b")
        for peer in ("w1", "w2")
    }
    assert len(topics | {logs_topic("a", 1)}) == 13


# --- who says it ----------------------------------------------------------------------------------


def test_a_message_on_another_topic_is_not_believed() -> None:
    payload = said(Goodbye())
    assert why(payload, boss_topic("cluster", "w2")) == "signature"
    assert why(payload, peer_topic("cluster", "w1")) == "signature"
    assert why(payload, boss_topic("other", "w1")) == "signature"


def test_nothing_is_remembered_of_topics_that_anybody_invents() -> None:
    wire._begun.cache_clear()
    for letter in "abc":
        assert why(said(wire.Undrain()), letter * 60_000) == "signature"
    assert wire._begun.cache_info().currsize == 1, "only what was said on our own topic"
    invented = "x" * 60_000
    assert decode(said(wire.Undrain(), invented), invented, key_of)[0].message == wire.Undrain()


def test_a_message_under_anothers_name_is_not_believed() -> None:
    assert why(said(Goodbye()).replace(b" vm-1 ", b" client ")) == "signature"


def test_a_message_of_a_revoked_or_unknown_key_is_not_read() -> None:
    assert why(said(Goodbye(), key_name="stranger")) == "unknown_key"
    assert why(said(Goodbye(), key_name="k" * (MAX_NAME_CHARS + 1))) == "unknown_key"


def test_a_changed_message_is_not_believed() -> None:
    payload = said(Goodbye("I leave"))
    assert why(payload.replace(b"I leave", b"I stay.")) == "signature"
    assert why(payload + b" ") == "signature"
    assert why(payload[:-1]) == "signature"
    head, _, text = payload.partition(b"\n")
    assert why(head[:-1] + b"\n" + text) == "signature"
    assert why(head.upper().replace(b"ECLOUD VM-1", b"ecloud vm-1") + b"\n" + text) == "signature"


# --- what is no message ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\n",
        b"hello",
        b"ecloud\n{}",
        b"ecloud vm-1\n{}",
        b"ecloud vm-1 abc def\n{}",
        b"mqtt vm-1 abc\n{}",
        b"ecloud \xff abc\n{}",
        b"ecloud " + b"x" * 1_000 + b" abc\n{}",
        b"ecloud vm-1 abc",
        b"\x00" * 100_000,
    ],
)
def test_bytes_without_a_signature_line_are_no_message(payload: bytes) -> None:
    assert why(payload) == "malformed"


def test_a_signature_that_is_no_hex_is_a_wrong_one() -> None:
    assert why(b"ecloud vm-1 \xff\xfe\n{}") == "signature"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"{",
        b"\xff",
        b'{"v":"1"}',
        b'{"v":null}',
        b'{"v":1}',
        b'{"v":1.5}',
        b'{"v":1e999}',
        b'{"v":1,"peer":"w1","session":"s","number":1,"message":{"type":"Nonsense"}}',
        b'{"v":1,"peer":"w1","session":"s","number":1,"message":{}}',
        b'{"v":1,"peer":"w1","session":"s","number":1,"message":[]}',
        b'{"v":1,"peer":"w1","session":"s","number":"1","message":{"type":"Goodbye"}}',
        b'{"v":1,"peer":"w1","session":"s","number":99999999999999999999,"message":{"type":"Goodbye"}}',
        b'{"v":1,"peer":1,"session":"s","number":1,"message":{"type":"Goodbye"}}',
        b'{"v":1,"peer":"\\ud800","session":"s","number":1,"message":{"type":"Goodbye"}}',
        b'{"v":1,"peer":"\xed\xa0\x80","session":"s","number":1,"message":{"type":"Goodbye"}}',
        b'{"v":1,"peer":"w1","session":"s","number":1,"message":{"type":"TasksReturned","attempts":[[1]]}}',
        b'{"v":1,"peer":"w1","session":"s","number":1,"message":{"type":"TasksStarted","attempts":[[1,1,1e999]]}}',
        b'{"v":1,"peer":"w1","session":"s","number":1,"message":{"type":"TasksStarted","attempts":[[1,1,NaN]]}}',
    ],
)
def test_signed_text_that_is_no_message_is_malformed(text: bytes) -> None:
    assert why(signed(text)) == "malformed"


@pytest.mark.parametrize("opening", [b"[", b'{"v":', b'{"v":1,"later":[', b'{"v":1,"message":[['])
def test_deep_nesting_is_malformed(opening: bytes) -> None:
    for depth in (500, 5_000, 500_000):
        assert why(signed(opening * depth)) == "malformed"


def test_deep_nesting_in_an_unknown_field_is_skipped() -> None:
    start = b'{"v":1,"peer":"w1","session":"s","number":1,"message":{"type":"Goodbye"},"later":'
    assert decode(signed(start + b"[" * 100 + b"]" * 100 + b"}"), TOPIC, key_of)[0].message == Goodbye()
    assert why(signed(start + b"[" * 500_000 + b"]" * 500_000 + b"}")) == "malformed"


@pytest.mark.parametrize(
    "message",
    [
        b'{"type":"TasksReturned","attempts":[[9223372036854775808,1]]}',
        b'{"type":"TasksReturned","attempts":[[1,2147483648]]}',
        b'{"type":"Heartbeat","orders_seen":1,"attempts":[[-9223372036854775809,1,"queued"]]}',
        b'{"type":"TasksEnded","outcomes":[{"task_no":1,"number":1,"cause":"exit","exit_code":4294967296}]}',
        b'{"type":"SubmitTasks","push_id":"p","k":0,"n":1,"options":{"run":"r"},"tasks":[{"id":"a","priority":1e10}]}',
        b'{"type":"Request","request_id":"r","verb":"cancel","arguments":{"ids":[99999999999999999999]}}',
    ],
)
def test_numbers_that_no_database_keeps_are_malformed(message: bytes) -> None:
    assert why(signed(b'{"v":1,"peer":"w1","session":"s","number":1,"message":%b}' % message)) == "malformed"


def test_oversized_bytes_are_not_even_read() -> None:
    assert why(b"x" * (MAX_MESSAGE_BYTES + 1)) == "oversized"
    assert why(b"x" * MAX_MESSAGE_BYTES) == "malformed"
    assert why(said(Goodbye("x" * MAX_MESSAGE_BYTES))) == "oversized"


def test_names_that_are_too_long_are_malformed() -> None:
    name = "x" * MAX_NAME_CHARS
    assert decode(said(Goodbye(), peer=name, session=name), TOPIC, key_of)[0].peer == name
    assert why(said(Goodbye(), peer=name + "x")) == "malformed"
    assert why(said(Goodbye(), session=name + "x")) == "malformed"


# --- other versions -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 99, -1])
def test_another_version_is_told_apart_so_that_the_peer_can_be_told(version: int) -> None:
    with pytest.raises(Unreadable) as problem:
        decode(signed(b'{"v":%d,"whatever":[1,2,3]}' % version), TOPIC, key_of)
    assert (problem.value.why, problem.value.key_name) == ("version", "vm-1")
    assert str(problem.value) == f"protocol version {version}; this side speaks {PROTOCOL_VERSION}"


def test_of_the_version_before_ours_outcomes_are_accepted_and_nothing_else() -> None:
    ended = TasksEnded((Outcome(1, 1, Cause.SUCCESS),))
    assert decode(said(ended, v=0), TOPIC, key_of)[0].message == ended
    assert why(said(Goodbye(), v=0)) == "version"
    assert why(signed(b'{"v":0,"hello":"from long ago"}')) == "version"


def test_a_stranger_is_not_told_which_version_we_speak() -> None:
    forged = b"ecloud vm-1 " + b"0" * 64 + b'\n{"v":99}'
    with pytest.raises(Unreadable) as problem:
        decode(forged, TOPIC, key_of)
    assert (problem.value.why, problem.value.key_name) == ("signature", "")
