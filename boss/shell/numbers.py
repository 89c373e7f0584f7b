"""Counters of the boss's loop for `/metrics`: commits, batches, messages. Written to a file of its home at intervals.

Costs a few microseconds a batch; a failed write is skipped.
"""

from __future__ import annotations

import contextlib
import json
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WRITE_EVERY_S = 10.0
COMMIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
BATCH_EVENTS = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0)


class Histogram:
    """Number of observations per interval between bounds, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def document(self) -> dict[str, Any]:
        """Values for JSON. `counts`: observations between one bound and the next; the last is of all larger ones."""
        return {"bounds": list(self._bounds), "counts": self._counts, "sum": self._sum}


class Numbers:
    """Counters since this process started."""

    def __init__(self, file: Path | None, started_at: float) -> None:
        self._file = file
        self._started_at = started_at
        self._written_at = 0.0
        self.commit_s = Histogram(COMMIT_S)
        self.batch_events = Histogram(BATCH_EVENTS)
        self.received = 0
        self.sent = 0
        self.unreadable = 0
        self.broker_up = False

    def write(self, now: float) -> None:
        """Write the file if it is due. `now`: seconds since 1970."""
        if self._file is None or now < self._written_at + WRITE_EVERY_S:
            return
        self._written_at = now
        document = {
            "at": now,
            "started_at": self._started_at,
            "commit_s": self.commit_s.document(),
            "batch_events": self.batch_events.document(),
            "received": self.received,
            "sent": self.sent,
            "unreadable": self.unreadable,
            "broker_up": self.broker_up,
        }
        whole = self._file.with_suffix(".new")
        with contextlib.suppress(OSError):
            whole.write_text(json.dumps(document))
            whole.replace(self._file)
