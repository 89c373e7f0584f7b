"""When Python looks for cycles in the boss's memory: never so long that the loop is held.

The core makes no cycles (a test counts them): what it forgets goes at once, by counting. So a search of all that it
remembers finds nothing, and costs 25 ms for each 100,000 objects. What is young is searched as ever, in about a
millisecond; what grew old is set aside (`gc.freeze`), and searched only when little is remembered and nothing waits.
"""

from __future__ import annotations

import gc

YOUNG, MIDDLE = 700, 10
"""Python's own: new objects before the young are searched, and searches of those before the next generation's."""
NEVER = 1_000_000_000
SET_ASIDE_AFTER = 10
"""Searches of the middle generation, each some thousand objects, until what came through them is set aside."""
SEARCHED_EVERY_S = 600.0
FEW_OBJECTS = 150_000
"""Searched whole in less than 50 ms."""


class Cycles:
    """The collector of this process, of which there is one."""

    def __init__(self) -> None:
        gc.set_threshold(YOUNG, MIDDLE, NEVER)
        self._looked_at = 0.0

    def begin(self, now: float) -> None:
        """All is loaded and nobody waits yet: search whatever there is, and set it aside."""
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._looked_at = now

    def after_batch(self) -> None:
        """Set aside what grew old: a matter of microseconds, however much it is."""
        if gc.get_count()[2] >= SET_ASIDE_AFTER:
            gc.freeze()

    def at_rest(self, now: float) -> None:
        """Nothing waits: search all, where it was not done lately and is soon done. Libraries make cycles too."""
        if now - self._looked_at < SEARCHED_EVERY_S:
            return
        self._looked_at = now  # counting walks all of them: 10 ms and more for a million
        if gc.get_freeze_count() <= FEW_OBJECTS:
            self.begin(now)
