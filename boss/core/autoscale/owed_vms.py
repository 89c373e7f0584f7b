"""VMs that a person asked for and whose cloud found no place for them: they are asked for again.

Owns their number by pool, kept in the context so that the next boss knows it too. Starts nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from boss.core.model.outbox import Outbox

ASKED_FOR = "a person asked for it"
"""The reason of such a VM, by which it is known."""
NOTE = "owed/"
"""Before the pool, as a name in the context; the value: how many that may end when they idle, how many that may not."""


class OwedVms:
    """How many VMs are owed to people."""

    def __init__(self, outbox: Outbox, context: Mapping[str, str]) -> None:
        self._outbox = outbox
        self._counts: Counter[tuple[str, bool]] = Counter()
        for name, value in context.items():
            if name.startswith(NOTE):
                plain, kept = value.split()
                pool = name.removeprefix(NOTE)
                self._counts.update({(pool, False): int(plain), (pool, True): int(kept)})

    def __bool__(self) -> bool:
        """Whether any is owed."""
        return any(self._counts.values())

    def count(self, pool: str, keep_alive: bool) -> int:
        """How many of that pool, which may end when they idle, or may not."""
        return self._counts[pool, keep_alive]

    def of(self, pool: str) -> int:
        """How many of that pool in all."""
        return self._counts[pool, False] + self._counts[pool, True]

    def add(self, pool: str, keep_alive: bool) -> None:
        """One more."""
        self._counts[pool, keep_alive] += 1
        self._write(pool)

    def take(self, pool: str, keep_alive: bool, count: int) -> None:
        """So many were asked for again."""
        if count:
            self._counts[pool, keep_alive] -= count
            self._write(pool)

    def clear(self) -> None:
        """A person wants none any more."""
        for pool in {pool for pool, _ in self._counts}:
            self._counts[pool, False] = self._counts[pool, True] = 0
            self._write(pool)

    def _write(self, pool: str) -> None:
        plain, kept = self.count(pool, False), self.count(pool, True)
        self._outbox.writes.context[NOTE + pool] = f"{plain} {kept}" if plain or kept else None
