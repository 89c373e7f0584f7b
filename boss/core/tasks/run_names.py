"""Names of runs, and of tasks of runs that grow, so that a push of new ones is decided without reading the store.

A push that repeats an earlier one must get the earlier answer, also after its run was dropped: then the store knows the
push, and nothing else tells of it. So names of dropped runs are remembered for as long as the store keeps pushes.
"""

from __future__ import annotations

from collections.abc import Iterable

IDS_KEPT = 50_000
"""Maximum ids of tasks of all growing runs: some 5 MB. A program that pushed more pushes many at a time, so that a look
into the store costs each of them little."""


class RunNames:
    """Present and dropped runs by name. Complete: only the leader makes and drops runs."""

    def __init__(self, dropped_pushes: Iterable[str], now: float) -> None:
        """`dropped_pushes`: ids of stored pushes whose runs had been dropped when this boss began."""
        self._present: dict[str, int] = {}
        """Numbers of runs by name."""
        self._dropped: set[str] = set(dropped_pushes)
        """Names of dropped runs, and ids of pushes."""
        self._dropped_earlier: set[str] = set()
        self._turned_at = now
        self._ids: dict[str, set[str]] = {}
        """All tasks of runs that this boss saw from their first push on, and that were only extended."""
        self._id_count = 0

    def add(self, name: str, run_no: int) -> None:
        """The run exists."""
        self._present[name] = run_no

    def number(self, name: str) -> int | None:
        """The run of that name; None if there is none."""
        return self._present.get(name)

    def drop(self, name: str) -> None:
        """The run was dropped."""
        self._present.pop(name, None)
        self._dropped.add(name)
        self.change(name)

    def is_new(self, name: str, push_id: str) -> bool:
        """Whether the store has neither a run of that name nor a push of that id for it."""
        return name not in self._present and not self._may_repeat(name, push_id)

    def _may_repeat(self, name: str, push_id: str) -> bool:
        """Whether the push may be one that a dropped run of that name had."""
        return any(key in known for key in (name, push_id) for known in (self._dropped, self._dropped_earlier))

    def extend(self, name: str, ids: Iterable[str], is_first: bool) -> None:
        """A push extended the run by these tasks, or made it (`is_first`)."""
        if is_first:
            self._ids[name] = set()
        known = self._ids.get(name)
        if known is None:
            return
        self._id_count -= len(known)
        known.update(ids)
        self._id_count += len(known)
        if self._id_count > IDS_KEPT:
            self._ids.clear()
            self._id_count = 0

    def change(self, name: str) -> None:
        """The run was changed otherwise: its tasks are no longer known."""
        self._id_count -= len(self._ids.pop(name, ()))

    def lacks(self, name: str, push_id: str, ids: Iterable[str]) -> bool:
        """Whether the run is known to have, and to have had, no task of these ids, and no dropped run of that name had
        the push."""
        known = self._ids.get(name)
        return known is not None and known.isdisjoint(ids) and not self._may_repeat(name, push_id)

    def forget_dropped(self, kept_s: float, now: float) -> None:
        """Forget what was dropped more than `kept_s` ago, or a little later."""
        if now - self._turned_at > kept_s:
            self._dropped_earlier, self._dropped = self._dropped, set()
            self._turned_at = now
