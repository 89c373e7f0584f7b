"""When the worker reports its transfers between heartbeats: if they take long, for users to see. Pure.

Sends no message per task: transfers shorter than `LONG_S` are reported by heartbeats alone.
"""

from __future__ import annotations

from collections.abc import Callable

from ecloud.model.transfer_status import Moving
from ecloud.model.wire import Message, MovingChanged

LONG_S = 1.0
AGAIN_S = 2.0
"""Transfers in progress are reported again after this."""


class Shown:
    """The present transfers, and the last report about them."""

    def __init__(self, say: Callable[[Message], None]) -> None:
        self._say = say
        self.moving: Moving | None = None
        self._told_at: float | None = None

    def on_measured(self, moving: Moving | None, now: float) -> None:
        """Take a new measurement."""
        self.moving = moving
        if moving is None:
            if self._told_at is not None:
                self._say(MovingChanged(None))
                self._told_at = None
        elif moving.since_s >= LONG_S and (self._told_at is None or now >= self._told_at + AGAIN_S):
            self._say(MovingChanged(moving))
            self._told_at = now

    def on_heartbeat(self, now: float) -> None:
        """A heartbeat reports them."""
        self._told_at = None if self.moving is None else now
