"""The wire: every message comes back as it was; no bytes do more than be refused."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from msgspec import inspect as shapes

from ecloud.config.secrets import derive_key
from ecloud.model import wire
from ecloud.model.tasks import TaskDefinition, definition_json
from ecloud.model.topics import boss_topic
from ecloud.model.wire import MAX_NAME_CHARS, PROTOCOL_VERSION, Envelope, Unreadable, decode, encode

SECRET = b"s" * 32
TOPIC = boss_topic("cluster", "w1")
KEYS = {name: derive_key(SECRET, name) for name in ("client", "vm-1", "invite-0011aabb")}
REASONS = {"oversized", "malformed", "unknown_key", "signature", "version"}
MESSAGES = typing.get_args(wire.Message)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=MAX_NAME_CHARS)
numbers = st.integers(-(2**63), 2**63 - 1)
amounts = st.floats(allow_nan=False, allow_infinity=False)


def values(shape: shapes.Type) -> SearchStrategy[Any]:
    """Any value of a field's type."""
    match shape:
        case shapes.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: values(field.type) for field in fields})
        case shapes.UnionType(types=types):
            return st.one_of(*map(values, types))
        case shapes.VarTupleType(item_type=item):
            return st.lists(values(item), max_size=3).map(tuple)
        case shapes.ListType(item_type=item):
            return st.lists(values(item), max_size=3)
        case shapes.DictType(key_type=key, value_type=value):
            return st.dictionaries(values(key), values(value), max_size=3)
        case shapes.EnumType(cls=cls):
            return st.sampled_from(list(cls))
        case shapes.IntType(ge=least, le=most):
            return st.integers(least, most)
    simple: dict[type, SearchStrategy[Any]] = {
        shapes.StrType: texts,
        shapes.BytesType: st.binary(max_size=12),
        shapes.FloatType: amounts,
        shapes.BoolType: st.booleans(),
        shapes.NoneType: st.none(),
    }
    return simple[type(shape)]


def envelopes(message: type) -> SearchStrategy[Envelope]:
    """Any envelope with a message of that kind."""
    return st.builds(
        Envelope,
        v=st.just(PROTOCOL_VERSION),
        peer=names,
        session=names,
        number=numbers,
        message=values(shapes.type_info(message)),
        epoch=numbers,
    )


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | amounts | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def is_read_or_refused(payload: bytes) -> None:
    """Whatever the bytes are, there is a message or the one error."""
    try:
        envelope, key_name = decode(payload, TOPIC, KEYS.get)
    except Unreadable as refusal:
        why, text = refusal.why, str(refusal).encode()
        assert why in REASONS
        assert text
    else:
        assert key_name in KEYS
        assert isinstance(envelope.message, MESSAGES)
        encode(envelope, TOPIC, key_name, KEYS[key_name])


def signed(text: bytes, key_name: str = "vm-1") -> bytes:
    """Any text under a signature that holds: a peer with a key may send whatever it likes."""
    return b"ecloud %b %b\n%b" % (key_name.encode(), wire._signature(KEYS[key_name], TOPIC, text), text)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.__name__)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_message_comes_back_as_it_was(message: type, data: st.DataObject) -> None:
    envelope = data.draw(envelopes(message))
    key_name = data.draw(st.sampled_from(sorted(KEYS)))
    assert decode(encode(envelope, TOPIC, key_name, KEYS[key_name]), TOPIC, KEYS.get) == (envelope, key_name)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_are_read_or_refused(payload: bytes) -> None:
    is_read_or_refused(payload)
    is_read_or_refused(b"ecloud vm-1 " + payload)
    is_read_or_refused(signed(payload))


@given(anything)
@settings(max_examples=200, deadline=None)
def test_signed_values_of_any_shape_are_read_or_refused(value: Any) -> None:
    is_read_or_refused(signed(msgspec.json.encode(value)))
    is_read_or_refused(signed(msgspec.json.encode({"v": PROTOCOL_VERSION, "message": value})))


@given(st.sampled_from(MESSAGES).flatmap(envelopes), st.data())
@settings(max_examples=200, deadline=None)
def test_a_message_with_one_field_replaced_is_read_or_refused(envelope: Envelope, data: st.DataObject) -> None:
    plain = msgspec.to_builtins(envelope)
    where: Any = data.draw(st.sampled_from([plain, plain["message"]]))
    where[data.draw(st.sampled_from(sorted(where)))] = data.draw(anything)
    is_read_or_refused(signed(msgspec.json.encode(plain)))


@given(st.sampled_from(MESSAGES).flatmap(envelopes), st.data())
@settings(max_examples=200, deadline=None)
def test_a_message_with_bytes_changed_is_refused_or_still_a_message(envelope: Envelope, data: st.DataObject) -> None:
    payload = encode(envelope, TOPIC, "vm-1", KEYS["vm-1"])
    start = data.draw(st.integers(0, len(payload)))
    end = data.draw(st.integers(start, min(len(payload), start + 8)))
    inserted = data.draw(st.binary(max_size=8))
    changed = payload[:start] + inserted + payload[end:]
    if changed != payload:
        with pytest.raises(Unreadable):  # no change goes through, with the same key or another
            decode(changed, TOPIC, KEYS.get)
    text_start = payload.index(b"\n") + 1
    text = payload[text_start:]
    is_read_or_refused(signed(text[:start] + inserted + text[end:]))


@given(st.sampled_from(MESSAGES).flatmap(envelopes), st.sampled_from(sorted(KEYS)), names)
@settings(max_examples=100, deadline=None)
def test_a_message_counts_on_its_own_topic_alone(envelope: Envelope, key_name: str, peer: str) -> None:
    payload = encode(envelope, TOPIC, key_name, KEYS[key_name])
    other = boss_topic("cluster", peer)
    if other != TOPIC:
        with pytest.raises(Unreadable) as problem:
            decode(payload, other, KEYS.get)
        assert problem.value.why == "signature"


@given(values(shapes.type_info(TaskDefinition)))
@settings(max_examples=100, deadline=None)
def test_a_definition_is_the_same_text_on_its_way_to_the_boss_and_back(definition: TaskDefinition) -> None:
    text = definition_json(definition)
    again = msgspec.json.decode(msgspec.json.encode(definition), type=TaskDefinition)
    assert again == definition
    assert definition_json(again) == text
