"""What must be true after the database was restored from a backup: nothing counts that was ordered and then
forgotten. A part of `checker.Checker`.

Owns which attempts were ordered in the history that the database holds, and what came of those that it lacks.
"""

from __future__ import annotations

from ecloud.model.tasks import Outcome, TaskState
from sim.invariants import Violation
from sim.store import Tables
from sim.world import World

Key = tuple[int, int]


class HistoryChecker:
    """Raises `Violation`."""

    def __init__(self, world: World, tables: Tables) -> None:
        self.looked = world.looked
        self.tables = tables
        self.restored = 0
        """How often the database was restored."""
        self.earlier: set[str] = set()
        """Worker processes that were there when it was restored last."""
        self.ordered: set[tuple[str, Key]] = set()
        """What was ordered since, by worker process."""
        self.in_backup: set[Key] = set()
        """Attempts that the restored database knew."""
        self.lost: dict[Key, list[Outcome]] = {}
        """What attempts came to that a restored database did not know."""
        self.kept: set[int] = set()
        """Tasks that had succeeded in it: their files may be of a later attempt, which it lacks."""

    def on_restored(self, processes: set[str], came_to: dict[Key, Outcome]) -> None:
        """The tables are those of a backup. `processes`: the worker processes there are; `came_to`: outcomes by
        attempt, recorded or not."""
        self.restored += 1
        self.earlier |= processes
        self.ordered.clear()
        self.in_backup = set(self.tables.attempts)
        for key, outcome in came_to.items():
            if key not in self.in_backup:
                self.lost.setdefault(key, []).append(outcome)
        self.kept = {row.task_no for row in self.tables.tasks.values() if row.state is TaskState.SUCCEEDED}

    def on_ordered(self, worker: str, keys: list[Key]) -> None:
        """A boss says these orders."""
        if self.restored:
            self.ordered |= {(worker, key) for key in keys}

    def is_earlier(self, worker: str, key: Key) -> bool:
        """Whether this attempt was ordered before the database was restored."""
        return bool(self.restored) and worker in self.earlier and (worker, key) not in self.ordered

    def is_forgotten(self, worker: str, key: Key) -> bool:
        """Whether the restored database does not know that this attempt was ordered."""
        return self.is_earlier(worker, key) and key not in self.in_backup

    def on_came_to(self, key: Key, outcome: Outcome) -> None:
        """An attempt ended that is forgotten."""
        self.lost.setdefault(key, []).append(outcome)

    def on_recorded(self, key: Key, outcome: Outcome) -> None:
        """An outcome is recorded for the first time. No two outcomes of a world are equal."""
        if key in self.lost:
            self.looked["history"] += 1
            if outcome in self.lost[key]:
                name = f"{key[0]}-{key[1]}"
                raise Violation("history", f"attempt {name} is recorded with what came of it in a lost history")
