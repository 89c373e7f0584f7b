"""Controls when Python's garbage collector searches the boss's memory for cycles, so that it never blocks the loop for
long.

The core makes no cycles (a test counts them): reference counting frees its objects immediately. A search of everything
it holds therefore finds nothing, and costs 25 ms for each 100,000 objects. Young objects are searched as usual, in
about a millisecond; old ones are excluded (`gc.freeze`), and searched only when the boss holds few objects and has no
events to handle.
"""

from __future__ import annotations

import gc

YOUNG, MIDDLE = 700, 10
"""Python's own thresholds: new objects before a search of the youngest generation, and such searches before one of the
next generation."""
NEVER = 1_000_000_000
SET_ASIDE_AFTER = 10
"""Searches of the middle generation, each of some thousand objects, before the surviving objects are frozen."""
SEARCHED_EVERY_S = 600.0
FEW_OBJECTS = 150_000
"""A complete search of this many takes less than 50 ms."""


class Cycles:
    """The collector of this process."""

    def __init__(self) -> None:
        gc.set_threshold(YOUNG, MIDDLE, NEVER)
        self._looked_at = 0.0

    def begin(self, now: float) -> None:
        """Search everything and freeze it: call when everything is loaded and nothing waits yet."""
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._looked_at = now

    def after_batch(self) -> None:
        """Freeze old objects: takes microseconds, whatever their number."""
        if gc.get_count()[2] >= SET_ASIDE_AFTER:
            gc.freeze()

    def at_rest(self, now: float) -> None:
        """While nothing waits: search everything, if that was not done lately and is quick. Libraries make cycles
        too."""
        if now - self._looked_at < SEARCHED_EVERY_S:
            return
        self._looked_at = now  # counting visits all objects: 10 ms and more for a million
        if gc.get_freeze_count() <= FEW_OBJECTS:
            self.begin(now)
