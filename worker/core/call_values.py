"""Attempts at calls whose values did not fit into their order: asks the boss for the values, page by page.

Owns these attempts until all their values are here; then they join the queue of `attempts`. Asks for one attempt at a
time. Messages may be lost or arrive twice: a page is asked for again, and one that was not asked for is ignored.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ecloud.model.wire import AttemptOrder, CallValue, CallValues, Message, ValuesWanted

AGAIN_S = 5.0
"""A request without an answer is repeated after this time."""
KEPT_BYTES = 64 * 1024 * 1024
"""While values of this size wait in the queue, the worker asks for none of another attempt."""

Key = tuple[int, int]


class MissingValues:
    """Attempts that wait for their values, in the order of their arrival. The first one is being asked for."""

    def __init__(self, say: Callable[[Message], None]) -> None:
        self.waiting: dict[Key, AttemptOrder] = {}
        self._say = say
        self._values: list[CallValue] = []
        """Those of the first attempt that are here."""
        self._asked_at: float | None = None
        self._queued: dict[Key, int] = {}
        """Attempts in the worker's queue that had waited here, with the size of their values."""

    def __contains__(self, key: Key) -> bool:
        return key in self.waiting

    def add(self, key: Key, order: AttemptOrder) -> None:
        """Wait for the values of an attempt."""
        self.waiting[key] = order

    def remove(self, key: Key) -> AttemptOrder | None:
        """An attempt is given back, or leaves the queue. Returns its order if its values were missing."""
        self._queued.pop(key, None)
        if key in self.waiting and key == next(iter(self.waiting)):
            self._values, self._asked_at = [], None
        return self.waiting.pop(key, None)

    def on_values(self, page: CallValues) -> tuple[Key, AttemptOrder] | None:
        """Add a page. Returns the attempt if its values are complete now."""
        key = (page.task_no, page.number)
        if self._asked_at is None or key != next(iter(self.waiting), None) or page.after != self._last:
            return None
        self._values += page.values
        self._asked_at = None
        if page.more:
            return None
        values = tuple(self._values)
        order = msgspec.structs.replace(self.waiting[key], values=values, values_apart=False)
        self.remove(key)
        self._queued[key] = sum([len(value.value) for value in values])
        return key, order

    def on_session(self) -> None:
        """A new session: the boss may not have received what was asked in the old one."""
        self._asked_at = None

    def ask(self, now: float) -> None:
        """Ask for the next page, in a session, if that is due."""
        if self._sleeps or (self._asked_at is not None and now < self._asked_at + AGAIN_S):
            return
        self._asked_at = now
        self._say(ValuesWanted(*next(iter(self.waiting)), self._last))

    @property
    def _last(self) -> str:
        return self._values[-1].id if self._values else ""

    @property
    def deadline(self) -> float | None:
        """When a request must be repeated."""
        return None if self._asked_at is None or self._sleeps else self._asked_at + AGAIN_S

    @property
    def _sleeps(self) -> bool:
        return not self.waiting or (not self._values and sum(self._queued.values()) >= KEPT_BYTES)

    def check(self, queue: dict[Key, AttemptOrder]) -> None:
        """Invariants: an attempt in the queue has its values; nothing is asked for without an attempt."""
        assert self._queued.keys() <= queue.keys(), "an attempt that left the queue still counts"
        assert not any(order.values_apart for order in queue.values()), "an attempt is queued without its values"
        assert self.waiting or (not self._values and self._asked_at is None), "values wait for no attempt"
