"""The states of a worker process for the boss, and the legal changes. The diagram in docs/states.md is drawn from this
table."""

from __future__ import annotations

from enum import Enum


class WorkerState(str, Enum):
    """The state of a worker process."""

    UP = "up"
    DRAINING = "draining"
    LOST = "lost"
    GONE = "gone"

    __str__ = str.__str__


ON_DUTY = frozenset({WorkerState.UP, WorkerState.DRAINING})
"""Workers that may hold attempts."""

WORKER_MOVES: tuple[tuple[WorkerState, WorkerState, str], ...] = (
    (WorkerState.UP, WorkerState.DRAINING, "drain_worker or kill_worker, SIGTERM, the end of its machine"),
    (WorkerState.DRAINING, WorkerState.DRAINING, "the worker is ordered to leave, or for another reason"),
    (WorkerState.DRAINING, WorkerState.UP, "undrain_worker"),
    (WorkerState.UP, WorkerState.LOST, "silent until its lease and the margin ended"),
    (WorkerState.DRAINING, WorkerState.LOST, "silent until its lease and the margin ended"),
    (WorkerState.UP, WorkerState.GONE, "Goodbye, a newer process of its home, its VM ended, its key revoked"),
    (WorkerState.DRAINING, WorkerState.GONE, "Goodbye, a newer process of its home, its VM ended, its key revoked"),
    (WorkerState.LOST, WorkerState.UP, "it follows a new Hello up"),
    (WorkerState.GONE, WorkerState.UP, "it follows a new Hello up"),
)
"""(from, to, by)."""

LEGAL_WORKER_MOVES = frozenset((before, after) for before, after, _ in WORKER_MOVES)
