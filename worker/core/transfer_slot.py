"""This worker's lane to a datastore over SSH: when to request one, when to return it. Owns no connection.

The shell reports how much waits and is under way (`TransfersChanged`) and begins transfers only while `is_open`.
"""

from __future__ import annotations

from collections.abc import Callable

from ecloud.model.wire import Message, TransfersEnded, TransfersWanted
from worker.core.events import TransfersChanged

IDLE_S = 30.0
"""A lane without transfers is returned after this, even if no other worker waits for it."""


class Lane:
    """The one lane that a worker may hold. `number` 0: none."""

    def __init__(self, say: Callable[[Message], None]) -> None:
        self.number = 0
        self.transfers = TransfersChanged()
        self._say = say
        self._until: float | None = None
        self._closed = False
        self._asked = False
        self._ended = 0
        self._idle_since: float | None = None
        self.sleeps = False
        """Whether there is nothing to do until something changes."""

    @property
    def is_open(self) -> bool:
        """Whether transfers may begin now."""
        return bool(self.number) and not self._closed

    @property
    def wants_bytes(self) -> int | None:
        """Size of what waits for a lane; None if nothing waits."""
        return self.transfers.bytes if self.transfers.waiting and not self.number else None

    def on_changed(self, transfers: TransfersChanged) -> None:
        """A transfer began, ended, or waits. `look` decides what to do, after the whole batch of events."""
        self.transfers = transfers
        self.sleeps = False

    def on_granted(self, number: int, lives_s: float | None, now: float) -> None:
        """The boss grants a lane, or limits its time."""
        if number <= self._ended:
            self._say(TransfersEnded(number))  # the grant crossed the return of this lane
            return
        self.sleeps = False
        if number != self.number:
            self._idle_since, self._closed = now, False
        self.number, self._asked = number, False
        self._until = None if lives_s is None else now + lives_s

    def on_session(self) -> None:
        """In a new session, whose first heartbeat reports lane and demand; the boss numbers lanes again."""
        self._ended = 0
        self._asked = self.wants_bytes is not None
        self.sleeps = False

    def look(self, now: float) -> None:
        """Return a lane that is due, request one if needed."""
        busy = bool(self.transfers.waiting or self.transfers.under_way)
        self._idle_since = None if busy else now if self._idle_since is None else self._idle_since
        if self.number:
            self._closed = self._closed or (self._until is not None and (now >= self._until or not busy))
            idle = self._idle_since is not None and now >= self._idle_since + IDLE_S
            if (self._closed or idle) and not self.transfers.under_way:
                self._say(TransfersEnded(self.number))
                self._ended, self.number, self._until = self.number, 0, None
        if not self.number and self.transfers.waiting and not self._asked:
            self._asked = True
            self._say(TransfersWanted(self.transfers.bytes))
        if not self.transfers.waiting:
            self._asked = False
        self.sleeps = not (busy or self.number or self._asked)

    @property
    def deadline(self) -> float | None:
        """When to `look` again."""
        if not self.number or self._closed:
            return None
        if self._until is not None:
            return self._until
        return None if self._idle_since is None else self._idle_since + IDLE_S

    def check(self) -> None:
        """Invariants: what is under way has a lane."""
        assert not self._closed or not self.is_open
