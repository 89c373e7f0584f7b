"""Names of runs, so that the push of a new run is decided without reading the store.

A push that repeats an earlier one must get the earlier answer, also after its run was dropped: then the store knows the
push, and nothing else tells of it. So names of dropped runs are remembered for as long as the store keeps pushes.
"""

from __future__ import annotations

from collections.abc import Iterable


class RunNames:
    """Present and dropped runs by name. Complete: only the leader makes and drops runs."""

    def __init__(self, dropped_pushes: Iterable[str], now: float) -> None:
        """`dropped_pushes`: ids of stored pushes whose runs had been dropped when this boss began."""
        self._present: set[str] = set()
        self._dropped: set[str] = set(dropped_pushes)
        """Names of dropped runs, and ids of pushes."""
        self._dropped_earlier: set[str] = set()
        self._turned_at = now

    def add(self, name: str) -> None:
        """The run exists."""
        self._present.add(name)

    def drop(self, name: str) -> None:
        """The run was dropped."""
        self._present.discard(name)
        self._dropped.add(name)

    def is_new(self, name: str, push_id: str) -> bool:
        """Whether the store has neither a run of that name nor a push of that id for it."""
        if name in self._present:
            return False
        return not any(key in known for key in (name, push_id) for known in (self._dropped, self._dropped_earlier))

    def forget_dropped(self, kept_s: float, now: float) -> None:
        """Forget what was dropped more than `kept_s` ago, or a little later."""
        if now - self._turned_at > kept_s:
            self._dropped_earlier, self._dropped = self._dropped, set()
            self._turned_at = now
