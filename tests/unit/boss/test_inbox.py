"""The boss's inbox while its loop stands still: no peer fills it, none crowds out another, and no event is lost."""

from __future__ import annotations

import queue

import pytest

from boss.shell import inbox
from boss.shell.inbox import MAX_PEER_MESSAGES, Inbox


def taken(box: Inbox[str]) -> list[object]:
    """All that waits."""
    found: list[object] = []
    while not box.is_empty:
        found.append(box.get(0.0))
    return found


def test_events_and_messages_come_in_their_order() -> None:
    box: Inbox[str] = Inbox()
    box.put("one")
    box.put_message("boss/w1", b"two")
    box.put(None)
    assert taken(box) == ["one", ("boss/w1", b"two"), None]
    with pytest.raises(queue.Empty):
        box.get(0.001)


def test_a_peer_that_shouts_loses_its_own_messages_and_no_other_s() -> None:
    box: Inbox[str] = Inbox()
    for _ in range(MAX_PEER_MESSAGES + 5):
        box.put_message("boss/loud", b"x")
    box.put_message("boss/w1", b"y")
    box.put("event")
    assert box.dropped == 5
    found = taken(box)
    assert found[-2:] == [("boss/w1", b"y"), "event"]
    assert len(found) == MAX_PEER_MESSAGES + 2
    box.put_message("boss/loud", b"again")
    assert taken(box) == [("boss/loud", b"again")], "it is heard again when the loop has caught up"


def test_what_waits_is_bounded_in_bytes_of_each_and_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MAX_PEER_BYTES", 100)
    monkeypatch.setattr(inbox, "MAX_BYTES", 500)
    box: Inbox[str] = Inbox()
    for number in range(100):
        for _ in range(5):
            box.put_message(f"boss/w{number}", b"x" * 60)
    messages = taken(box)
    assert len(messages) == 9, "two of each peer, until all have 500 bytes"
    assert box.dropped == 500 - 9
    assert (box._bytes, box._of_topic) == (0, {})
    for _ in range(3):
        box.put_message("boss/w1", b"")
        assert len(taken(box)) == 1
