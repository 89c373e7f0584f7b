"""Pools that an operator holds: the boss starts no VM of a held pool until the operator releases it.

Owns the reason and the start of each hold, stored in the context for the next boss. Existing VMs of a held pool
continue.
"""

from __future__ import annotations

from collections.abc import Mapping

from boss.core.model.outbox import Outbox

NOTE = "held/"
"""Prefix of a name in the context, followed by the pool. The value: since when, epoch seconds, and the reason."""


class HeldPools:
    """Which pools are held, since when, and why."""

    def __init__(self, outbox: Outbox, context: Mapping[str, str]) -> None:
        self._outbox = outbox
        self._holds: dict[str, tuple[float, str]] = {}
        for name, value in context.items():
            if name.startswith(NOTE):
                since, _, reason = value.partition(" ")
                self._holds[name.removeprefix(NOTE)] = (float(since), reason)

    def __contains__(self, pool: object) -> bool:
        """Whether an operator holds this pool."""
        return pool in self._holds

    def why(self, pool: str) -> str:
        """Why the pool starts no VM, with the remedy; empty if it is not held."""
        if pool not in self._holds:
            return ""
        _, reason = self._holds[pool]
        return f"held by an operator{f' ({reason})' if reason else ''}; python admin.py release_pool {pool}"

    def since(self, pool: str) -> float | None:
        """Start of the hold, in epoch seconds; None if the pool is not held."""
        return self._holds[pool][0] if pool in self._holds else None

    def hold(self, pool: str, reason: str, now: float) -> None:
        """Hold the pool, or give its hold another reason."""
        since, _ = self._holds.get(pool, (now, ""))
        self._holds[pool] = (since, reason)
        self._outbox.writes.context[NOTE + pool] = f"{since} {reason}"

    def release(self, pool: str) -> bool:
        """Release the pool. Returns whether it was held."""
        if self._holds.pop(pool, None) is None:
            return False
        self._outbox.writes.context[NOTE + pool] = None
        return True
