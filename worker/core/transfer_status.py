"""When the boss hears between heartbeats what this worker moves: where it takes long, for people to see. Pure.

Never a word per task: what moves for less than `LONG_S` is told by heartbeats alone.
"""

from __future__ import annotations

from collections.abc import Callable

from ecloud.model.transfer_status import Moving
from ecloud.model.wire import Message, MovingChanged

LONG_S = 1.0
AGAIN_S = 2.0
"""What continues moving is told again after this."""


class Shown:
    """What moves, and what of it was told."""

    def __init__(self, say: Callable[[Message], None]) -> None:
        self._say = say
        self.moving: Moving | None = None
        self._told_at: float | None = None

    def on_measured(self, moving: Moving | None, now: float) -> None:
        """It was looked at."""
        self.moving = moving
        if moving is None:
            if self._told_at is not None:
                self._say(MovingChanged(None))
                self._told_at = None
        elif moving.since_s >= LONG_S and (self._told_at is None or now >= self._told_at + AGAIN_S):
            self._say(MovingChanged(moving))
            self._told_at = now

    def on_heartbeat(self, now: float) -> None:
        """A heartbeat tells it."""
        self._told_at = None if self.moving is None else now
