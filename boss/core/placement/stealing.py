"""Work stealing: retracts queued attempts from busy workers when others idle, no more than those have room for.

Owns the time of the last pass. Places nothing: a retracted task is ready again and is placed like any other.
"""

from __future__ import annotations

from boss.core.model.config import BossConfig
from boss.core.model.fleet import Fleet
from boss.core.model.graph import Shape, compared_s
from boss.core.model.timers import Timers
from boss.core.model.worker import Attempt, Worker
from boss.core.tasks.attempts import Attempts
from ecloud.model.tasks import AttemptState, Resources, fits

RETURN_AFTER_S = 1.0
"""A queued attempt that waits longer than this at a busy worker, while another idles, is retracted."""
STEAL_EVERY_S = 0.1
"""Minimum interval between two passes: each checks every worker."""

MOST_EACH = 32
"""Attempts retracted in one pass for each idle worker. Long queues mean that run times were guessed badly."""


class WorkStealing:
    """Runs at the end of a batch, after placement."""

    def __init__(self, fleet: Fleet, attempts: Attempts, timers: Timers, config: BossConfig) -> None:
        self._config = config
        self._fleet = fleet
        self._attempts = attempts
        self._timers = timers
        self._not_before = 0.0

    def settle(self, now: float) -> None:
        """Retract attempts that an idle worker would start immediately."""
        if now < self._not_before:
            return
        self._not_before = now + STEAL_EVERY_S
        waiting = [worker for worker in self._fleet.workers.values() if worker.ahead]
        if not waiting:
            return
        idle = [worker for worker in self._fleet.workers.values() if worker.takes_tasks and not worker.held]
        if not idle:
            return
        room = _Room(idle, self._config.ahead_s, now, bool(self._fleet.ending))
        for worker in waiting:  # count those that are already being returned
            for attempt in worker.ahead.values():
                if attempt.returning:
                    room.take(attempt)
        for worker in waiting:
            self._attempts.retract(worker, [a for a in worker.ahead.values() if _is_late(a, now) and room.take(a)])
        self._timers.once("work stealing", now + RETURN_AFTER_S)


def _is_late(attempt: Attempt, now: float) -> bool:
    return (
        attempt.state is AttemptState.ASSIGNED and not attempt.returning and now - attempt.assigned_at >= RETURN_AFTER_S
    )


class _Room:
    """Slots that idle workers could fill immediately, and room in their queues ahead."""

    def __init__(self, idle: list[Worker], ahead_s: float, now: float, some_end: bool) -> None:
        self._idle = idle
        self._left_s = [worker.left_s(now) for worker in idle] if some_end else None
        self._left = MOST_EACH * len(idle)
        self._free: list[Resources] = [dict(worker.free) for worker in idle]
        self._ahead_s = ahead_s * len(idle)
        self._first: dict[tuple[Shape, float], int] = {}
        """Index of the first idle worker that may have room for the shape and lives long enough: earlier ones only get
        fuller."""

    def take(self, attempt: Attempt) -> bool:
        """Whether there is room for the attempt. If so, takes the room."""
        self._left -= 1
        if self._left < 0:
            return False
        needs_s = compared_s(attempt.runtime_s) if self._left_s is not None else 0.0
        key = (attempt.shape, needs_s)
        for index in range(self._first.get(key, 0), len(self._free)):
            self._first[key] = index
            free = self._free[index]
            if self._lives(index, needs_s) and fits(free, attempt.shape.asks):
                for name, amount in attempt.shape.asks:
                    free[name] -= amount
                return True
        self._first[key] = len(self._free)
        able = (
            self._lives(index, needs_s) and fits(worker.capacity, attempt.shape.asks)
            for index, worker in enumerate(self._idle)
        )
        if self._ahead_s <= 0 or not any(able):
            return False
        self._ahead_s -= attempt.ahead_s
        return True

    def _lives(self, index: int, needs_s: float) -> bool:
        """Whether this idle worker lives long enough for a task that states so much."""
        return not needs_s or self._left_s is None or needs_s <= self._left_s[index]
