"""A message as its receiver reads it: signed, encoded and decoded by the product."""

from __future__ import annotations

from ecloud.model import wire
from ecloud.model.wire import Envelope

TOPIC, KEY = "topic", b"k" * 32


def as_received(envelope: Envelope, key_name: str = "key") -> Envelope:
    """Raises `wire.Unreadable` for a message that its receiver would drop."""
    received, _ = wire.decode(wire.encode(envelope, TOPIC, key_name, KEY), TOPIC, lambda name: KEY)
    return received
