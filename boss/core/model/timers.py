"""Deadlines of the core: a heap that is asked at the end of each batch. Owns no clock."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

Alarm = Callable[[float], None]
"""Called with `now`. Looks again at what it was set for: a deadline may have moved or become void since."""


class Timers:
    """Alarms by time. Setting one is cheap; none is ever cancelled: the alarm itself finds out that it is void."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Alarm]] = []
        self._sequence = itertools.count()

    def set(self, when: float, alarm: Alarm) -> None:
        """Call `alarm` in the first batch at or after `when`."""
        heapq.heappush(self._heap, (when, next(self._sequence), alarm))

    @property
    def next(self) -> float | None:
        """When the next alarm is due; None without any."""
        return self._heap[0][0] if self._heap else None

    def ring(self, now: float) -> None:
        """Call what is due. An alarm set meanwhile for a time that has passed rings in the next batch."""
        due: list[Alarm] = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        for alarm in due:
            alarm(now)
