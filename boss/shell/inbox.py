"""The queue of the boss's loop: events of its own threads, and messages from the broker.

Messages are bounded: the loop may stop for minutes while the database is away, and a peer may send without end. Dropped
messages are sent again, because every message is repeated until it is answered.
"""

from __future__ import annotations

import queue
import threading
from typing import Generic, TypeVar

from ecloud.model import wire

MAX_BYTES = 512 * 1024 * 1024
"""Maximum bytes of all waiting messages."""
MAX_PEER_BYTES = 4 * wire.MAX_MESSAGE_BYTES
"""Maximum bytes of one topic, and so of one peer: four of the largest messages, as many as a client sends of a push
before an answer."""
MAX_PEER_MESSAGES = 10_000
"""Maximum messages of one peer, behind which the others wait: a second or two of the loop."""

Message = tuple[str, bytes]
_Event = TypeVar("_Event")


class Inbox(Generic[_Event]):
    """Any thread puts, one takes. Events are never dropped; None wakes the loop."""

    def __init__(self) -> None:
        self.max_bytes, self.max_peer_bytes, self.max_peer_messages = MAX_BYTES, MAX_PEER_BYTES, MAX_PEER_MESSAGES
        """Its limits, which tests and the simulation lower."""
        self._items: queue.SimpleQueue[_Event | Message | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._bytes = 0
        self._of_topic: dict[str, tuple[int, int]] = {}
        """Number and bytes of waiting messages, by topic."""
        self.dropped = 0
        """Number of messages dropped so far."""

    def put(self, event: _Event | None) -> None:
        """Put an event."""
        self._items.put(event)

    def put_message(self, topic: str, payload: bytes) -> None:
        """Put a message; drop it if too many messages of its topic, or in all, wait."""
        with self._lock:
            count, size = self._of_topic.get(topic, (0, 0))
            if self._bytes >= self.max_bytes or size >= self.max_peer_bytes or count >= self.max_peer_messages:
                self.dropped += 1
                return
            self._of_topic[topic] = (count + 1, size + len(payload))
            self._bytes += len(payload)
        self._items.put((topic, payload))

    def get(self, timeout_s: float) -> _Event | Message | None:
        """The next item; waits for it. Raises `queue.Empty`."""
        item = self._items.get(timeout=timeout_s) if timeout_s > 0 else self._items.get_nowait()
        if isinstance(item, tuple):
            topic, payload = item
            with self._lock:
                count, size = self._of_topic[topic]
                self._bytes -= len(payload)
                if count == 1:
                    del self._of_topic[topic]
                else:
                    self._of_topic[topic] = (count - 1, size - len(payload))
        return item

    @property
    def count(self) -> int:
        """Number of waiting events and messages."""
        return self._items.qsize()

    @property
    def waiting(self) -> tuple[int, int]:
        """Most messages of one peer that wait, and bytes of all waiting messages."""
        with self._lock:
            return max((count for count, _ in self._of_topic.values()), default=0), self._bytes

    @property
    def is_empty(self) -> bool:
        """Whether the inbox is empty."""
        return self._items.empty()
