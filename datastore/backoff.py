"""Exponential backoff: how long to wait before the next try."""

from __future__ import annotations

from typing import NamedTuple

_DOUBLINGS = 64
"""No backoff here doubles more often before it reaches its longest wait; a float overflows at 1,024."""


class Backoff(NamedTuple):
    """Waits that double with each failure in a row, from `first_s` up to `longest_s` (seconds)."""

    first_s: float
    longest_s: float

    def wait_s(self, failures: int) -> float:
        """Seconds to wait, where so many tries in a row had failed before the last one failed."""
        return min(self.longest_s, self.first_s * 2.0 ** min(failures, _DOUBLINGS))
