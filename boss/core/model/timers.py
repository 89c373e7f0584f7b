"""Deadlines of the core: a heap that is checked at the end of each batch. Owns no clock."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable

Alarm = Callable[[float], None]
"""Called with `now`. Checks its deadline again, which may have moved or become void."""


def only_wake(now: float) -> None:
    """An alarm that only causes a batch, at whose end each part checks its own deadlines."""


class Timers:
    """Alarms by time. Setting one is cheap. An alarm that was `set` cannot be cancelled: when called, it checks whether
    it still applies. Of `once` alarms with the same key only the earliest counts."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Alarm, Hashable]] = []
        self._sequence = itertools.count()
        self._once: dict[Hashable, float] = {}
        """Due time of the alarm of each key."""

    def set(self, when: float, alarm: Alarm) -> None:
        """Call `alarm` in the first batch at or after `when`."""
        heapq.heappush(self._heap, (when, next(self._sequence), alarm, None))

    def once(self, key: Hashable, when: float, alarm: Alarm = only_wake) -> None:
        """Set a deadline that is updated often: only one alarm of that key is due at a time. A later one changes
        nothing, an earlier one replaces it. After it has rung, the next one counts."""
        due = self._once.get(key)
        if due is None or when < due:
            self._once[key] = when
            heapq.heappush(self._heap, (when, next(self._sequence), alarm, key))

    @property
    def next(self) -> float | None:
        """Due time of the next alarm; None without any."""
        while self._heap and self._is_void(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _is_void(self, entry: tuple[float, int, Alarm, Hashable]) -> bool:
        when, _, _, key = entry
        return key is not None and self._once.get(key) != when

    def ring(self, now: float) -> None:
        """Call the alarms that are due. An alarm set meanwhile for a time that has passed rings in the next batch."""
        due: list[Alarm] = []
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if not self._is_void(entry):
                if entry[3] is not None:
                    del self._once[entry[3]]
                due.append(entry[2])
        for alarm in due:
            alarm(now)
