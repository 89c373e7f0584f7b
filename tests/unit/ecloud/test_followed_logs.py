"""Whose output `logs -f` shows: that of the worker which holds the attempt, even if others send lines to the topic."""

from __future__ import annotations

from ecloud.client.client import PENDING_LINES, Client, _Following, _Holder
from ecloud.config.secrets import AccessFile, derive_key
from ecloud.model import wire
from ecloud.model.topics import logs_topic
from ecloud.model.wire import Envelope, LogLines

SECRET = b"s" * 32
TOPIC = logs_topic("c", 7)


def following(*holders: _Holder) -> _Following:
    client = Client(AccessFile("c", "127.0.0.1", 1, "client", "00" * 32))
    followed = _Following(client, "a", SECRET, "", None)
    followed._task_no = 7
    followed._holders.update(holders)
    return followed


def say(followed: _Following, peer: str, key_name: str, text: str, number: int = 1) -> None:
    envelope = Envelope(wire.PROTOCOL_VERSION, peer, "", 0, LogLines(7, number, "stdout", 0, text))
    followed._take(TOPIC, wire.encode(envelope, TOPIC, key_name, derive_key(SECRET, key_name)))


def test_lines_of_the_holder_are_shown_and_of_no_other_key_or_peer() -> None:
    followed = following(_Holder(1, "w1", "worker-1"))
    say(followed, "w2", "worker-2", "forged by another worker")
    say(followed, "w1", "worker-2", "forged in its name")
    say(followed, "w2", "worker-1", "another process of the key")
    say(followed, "w1", "worker-1", "of another attempt", number=2)
    say(followed, "w1", "worker-1", "true")
    assert [lines.text for lines in followed._arrived()] == ["true"]


def test_lines_that_come_before_the_boss_names_their_worker_are_shown_then() -> None:
    followed = following()
    say(followed, "w1", "worker-1", "early")
    assert list(followed._arrived()) == []
    followed._holders.add(_Holder(1, "w1", "worker-1"))
    assert [lines.text for lines in followed._arrived()] == ["early"]


def test_a_flood_of_lines_of_others_is_bounded() -> None:
    followed = following()
    for number in range(PENDING_LINES + 50):
        say(followed, "w2", "worker-2", str(number))
    assert len(followed._pending) == PENDING_LINES
