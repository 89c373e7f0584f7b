"""How long a worker lives when a task begins there: a task is given only to a worker that lives for its `runtime_s`.

Compared is what users state, not what was learned: a task that usually takes a second may need its hour once. What is
in front of a queued attempt counts as far as it is known. Owns nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from boss.core.model.worker import Attempt, Worker

LOOKED_AT = 64
"""Maximum attempts of a worker that are checked for the one that ends first."""


def remaining_s(attempt: Attempt, now: float) -> float:
    """Seconds that a running attempt has left of the run time that its task states; 0 if it states none."""
    if not attempt.runtime_s:
        return 0.0
    began_at = attempt.started_at if attempt.started_at is not None else attempt.assigned_at
    return max(0.0, began_at + attempt.runtime_s - now)


def queued_left_s(worker: Worker, now: float) -> float:
    """Seconds that the worker has left when something begins that is queued there now."""
    runs = [attempt for attempt in islice(worker.held.values(), LOOKED_AT) if attempt.in_slot]
    first_s = min([remaining_s(attempt, now) for attempt in runs], default=0.0)
    return worker.left_s(now) - first_s - worker.ahead_s


def chained_left_s(worker: Worker, predecessors: Iterable[Attempt], now: float) -> float:
    """Seconds that the worker has left when these attempts there have ended."""
    last_s = max([remaining_s(attempt, now) for attempt in predecessors], default=0.0)
    return worker.left_s(now) - last_s - worker.ahead_s
