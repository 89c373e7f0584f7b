"""VMs that an operator requested and the cloud had no host for: the boss requests them again.

Owns their number by pool, stored in the context for the next boss. Starts nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from boss.core.model.outbox import Outbox

ASKED_FOR = "an operator requested it"
"""The reason of such VMs; it identifies them."""
NOTE = "owed/"
"""Prefix of a name in the context, followed by the pool. The value: how many may end when idle, and how many not."""


class OwedVms:
    """How many VMs are owed."""

    def __init__(self, outbox: Outbox, context: Mapping[str, str]) -> None:
        self._outbox = outbox
        self._counts: Counter[tuple[str, bool]] = Counter()
        for name, value in context.items():
            if name.startswith(NOTE):
                plain, kept = value.split()
                pool = name.removeprefix(NOTE)
                self._counts.update({(pool, False): int(plain), (pool, True): int(kept)})

    def __bool__(self) -> bool:
        """Whether any VM is owed."""
        return any(self._counts.values())

    def count(self, pool: str, keep_alive: bool) -> int:
        """Number of VMs that the pool owes, among those that may end when idle or those that may not."""
        return self._counts[pool, keep_alive]

    def of(self, pool: str) -> int:
        """Number of VMs that the pool owes in all."""
        return self._counts[pool, False] + self._counts[pool, True]

    def add(self, pool: str, keep_alive: bool) -> None:
        """Add one VM."""
        self._counts[pool, keep_alive] += 1
        self._write(pool)

    def take(self, pool: str, keep_alive: bool, count: int) -> None:
        """Request this many again."""
        if count:
            self._counts[pool, keep_alive] -= count
            self._write(pool)

    def clear(self) -> None:
        """Remove all: the operator no longer wants them."""
        for pool in {pool for pool, _ in self._counts}:
            self._counts[pool, False] = self._counts[pool, True] = 0
            self._write(pool)

    def _write(self, pool: str) -> None:
        plain, kept = self.count(pool, False), self.count(pool, True)
        self._outbox.writes.context[NOTE + pool] = f"{plain} {kept}" if plain or kept else None
