"""Controls when Python's garbage collector searches the boss's memory for cycles, so that it never blocks the loop for
long.

The core makes no cycles (a test counts them): reference counting frees its objects immediately. A search of everything
it holds therefore finds nothing, and costs 25 ms for each 100,000 objects. Python's own searches would also take a
sixth of the time in which many tasks are loaded. So they are switched off. Between batches new objects are searched, in
a millisecond or two; old ones are excluded (`gc.freeze`), and searched only when the boss holds few objects and has no
events to handle.
"""

from __future__ import annotations

import gc

YOUNG = 5_000
"""New objects that are searched after a batch."""
MANY = 40_000
"""After this many new objects the surviving ones are excluded. If one batch made as many, as a large push does, they
are not searched first. So a search visits at most twice as many, which takes 20 ms."""
SEARCHED_EVERY_S = 600.0
FEW_OBJECTS = 150_000
"""A complete search of this many takes less than 50 ms."""


class Cycles:
    """The collector of this process."""

    def __init__(self) -> None:
        gc.collect()
        gc.disable()
        self._looked_at = 0.0
        self._not_excluded = 0
        """Objects that were new since the last exclusion; some are gone."""

    def begin(self, now: float) -> None:
        """Freeze everything: call when everything is loaded and nothing waits yet."""
        gc.freeze()
        self._looked_at = now

    def after_batch(self) -> None:
        """Search new objects if there are enough, or freeze them if there are many."""
        new = gc.get_count()[0]
        if new < YOUNG:
            return
        self._not_excluded += new
        is_full = self._not_excluded >= MANY
        if new < MANY:
            gc.collect(1 if is_full else 0)
        if is_full:
            gc.freeze()
            self._not_excluded = 0

    def at_rest(self, now: float) -> None:
        """While nothing waits: search everything, if that was not done lately and is quick. Libraries make cycles
        too."""
        if now - self._looked_at < SEARCHED_EVERY_S:
            return
        self._looked_at = now  # counting visits all objects: 10 ms and more for a million
        if gc.get_freeze_count() <= FEW_OBJECTS:
            self.search()

    def search(self) -> None:
        """Search everything: 25 ms for each 100,000 objects. A core that was given up is a cycle."""
        gc.unfreeze()
        gc.collect()
        gc.freeze()
