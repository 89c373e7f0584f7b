"""Removes stages from the datastore that belong to no living attempt. Owns only the schedule."""

from __future__ import annotations

from boss.core.model.config import BossConfig
from boss.core.model.effects import DropStages, ListStages
from boss.core.model.outbox import Outbox
from boss.core.model.timers import Timers
from boss.core.tasks.attempts import Attempts, stage_name

PEOPLES = "put/"
"""Prefix of the stages of users' uploads, which may take hours and be resumed."""
PEOPLES_LIFE_S = 86_400.0


class StagingSweeper:
    """Removes stages without an unfinished attempt, once two sweeps in a row have found them."""

    def __init__(self, outbox: Outbox, attempts: Attempts, timers: Timers, config: BossConfig) -> None:
        self._outbox = outbox
        self._attempts = attempts
        self._timers = timers
        self._every_s = config.sweep_every_s
        self._suspects: set[str] = set()
        self._peoples: dict[str, float] = {}
        """When each upload stage was first seen."""

    def begin(self, now: float) -> None:
        """Start sweeping, each `sweep_every_s`."""
        self._timers.set(now + self._every_s, self._look)

    def _look(self, now: float) -> None:
        self._outbox.call(ListStages())
        self._timers.set(now + self._every_s, self._look)

    def on_listed(self, stages: tuple[str, ...], now: float) -> None:
        """Drop stages that belonged to no attempt at the previous sweep either, and uploads that are too old."""
        living = {stage_name(attempt.worker, key) for key, attempt in self._attempts.active.items()}
        orphans = {stage for stage in stages if stage not in living and not stage.startswith(PEOPLES)}
        doomed = orphans & self._suspects
        self._suspects = orphans - doomed
        peoples = {stage: self._peoples.get(stage, now) for stage in stages if stage.startswith(PEOPLES)}
        doomed |= {stage for stage, seen_at in peoples.items() if now - seen_at >= PEOPLES_LIFE_S}
        self._peoples = {stage: seen_at for stage, seen_at in peoples.items() if stage not in doomed}
        if doomed:
            self._outbox.call(DropStages(tuple(sorted(doomed))))
