"""Exponential backoff: how long to wait before the next try."""

from __future__ import annotations

import random
from typing import NamedTuple

_CHANCE = random.SystemRandom()
"""Not the module's generator: a program that seeds that one must not find it advanced by a thread of ECLOUD."""

_DOUBLINGS = 64
"""No backoff here doubles more often before it reaches its longest wait; a float overflows at 1,024."""


class Backoff(NamedTuple):
    """Waits that double with each failure in a row, from `first_s` up to `longest_s` (seconds)."""

    first_s: float
    longest_s: float

    def wait_s(self, failures: int) -> float:
        """Seconds to wait if this many tries in a row had failed before the last one failed."""
        return min(self.longest_s, self.first_s * 2.0 ** min(failures, _DOUBLINGS))

    def jittered_s(self, failures: int) -> float:
        """Half to all of `wait_s`, at random: many peers that were cut off at one moment must not return together."""
        return self.wait_s(failures) * _CHANCE.uniform(0.5, 1.0)
