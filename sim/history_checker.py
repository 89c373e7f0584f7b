"""Invariants after a restore of the database from a backup: attempts whose order was forgotten do not count. Part of
`checker.Checker`.

Owns the attempts that were ordered in the history of the current database, and the outcomes that it lacks.
"""

from __future__ import annotations

from ecloud.model.tasks import ATTEMPT_OVER, Outcome, TaskState
from sim.invariants import Violation
from sim.store import Tables
from sim.world import World

Key = tuple[int, int]


class HistoryChecker:
    """Checks restores. Raises `Violation`."""

    def __init__(self, world: World, tables: Tables) -> None:
        self.looked = world.looked
        self.tables = tables
        self.restored = 0
        """Number of restores."""
        self.earlier: set[str] = set()
        """Worker processes that existed at the last restore."""
        self.ordered: set[tuple[str, Key]] = set()
        """Attempts ordered since then, by worker process."""
        self.in_backup: dict[Key, str] = {}
        """Attempts in the restored database, with the homes of their workers."""
        self.lost: dict[Key, list[Outcome]] = {}
        """Outcomes of attempts that a restored database did not contain."""
        self.kept: set[int] = set()
        """Tasks that had succeeded in it: their files may be those of a later attempt, which it lacks."""

        self.open: set[Key] = set()
        """Attempts that had not ended in it. Their files may be published already, and later attempts may have run."""

    def on_restored(self, processes: set[str], came_to: dict[Key, Outcome]) -> None:
        """Note that the tables were replaced by a backup. `processes`: all worker processes; `came_to`: outcomes by
        attempt, recorded or not."""
        self.restored += 1
        self.earlier |= processes
        self.ordered.clear()
        self.in_backup = {key: home_of(row.worker) for key, row in self.tables.attempts.items()}
        for key, outcome in came_to.items():
            if key not in self.in_backup:
                self.lost.setdefault(key, []).append(outcome)
        self.open = {key for key, row in self.tables.attempts.items() if row.state not in ATTEMPT_OVER}
        self.kept = {row.task_no for row in self.tables.tasks.values() if row.state is TaskState.SUCCEEDED}

    def on_ordered(self, worker: str, keys: list[Key]) -> None:
        """Note the orders that a boss sends."""
        if self.restored:
            self.ordered |= {(worker, key) for key in keys}

    def is_earlier(self, worker: str, key: Key) -> bool:
        """Return whether this attempt was ordered before the database was restored."""
        return bool(self.restored) and worker in self.earlier and (worker, key) not in self.ordered

    def is_forgotten(self, worker: str, key: Key) -> bool:
        """Return whether the restored database lacks the order of this attempt to this worker."""
        return self.is_earlier(worker, key) and self.in_backup.get(key) != home_of(worker)

    def may_be_of(self, key: Key, maker: Key) -> bool:
        """Return whether a file of this recorded success may be that of `maker`: a later attempt, now unknown, of this
        task or of one that was pushed under its name after it was dropped."""
        return key in self.open and ((maker[0] == key[0] and maker[1] > key[1]) or maker in self.lost)

    def on_came_to(self, key: Key, outcome: Outcome) -> None:
        """Note the outcome of a forgotten attempt."""
        self.lost.setdefault(key, []).append(outcome)

    def on_recorded(self, key: Key, outcome: Outcome) -> None:
        """Check an outcome that is recorded for the first time. No two outcomes of a world are equal."""
        if key in self.lost:
            self.looked["history"] += 1
            if outcome in self.lost[key]:
                name = f"{key[0]}-{key[1]}"
                raise Violation("history", f"attempt {name} is recorded with an outcome from before the restore")


def home_of(worker: str) -> str:
    """Return the home of a worker process, from the name of the process."""
    return worker.rpartition("p")[0]
