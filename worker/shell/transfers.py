"""Decides when transfers begin: immediately for a datastore in a directory, over SSH only while this worker holds a
lane.

Owns the threads and the waiting transfers. Reports how much waits and is under way, as an event; the core requests a
lane.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from worker.core.events import TransfersChanged

FILE_THREADS = 4
T = TypeVar("T")


class _Waiting:
    """A transfer that waits for a lane."""

    def __init__(self, action: Callable[[], Any], size: int) -> None:
        self.action = action
        self.size = size
        self.future: Future[Any] = Future()


class Transfers:
    """Called only from the loop. `later` brings the end of a transfer back to the loop; `tell` receives each change."""

    def __init__(self, later: Callable[[Callable[[], None]], None], tell: Callable[[TransfersChanged], None]) -> None:
        self.pool = ThreadPoolExecutor(FILE_THREADS, "files")
        self.needs_lane = False
        self._later = later
        self._tell = tell
        self._waiting: deque[_Waiting] = deque()
        self._under_way = 0
        self._told = TransfersChanged()

    def submit(self, action: Callable[[], T], size: int = 0) -> Future[T]:
        """Run a transfer as soon as possible. `size`: its bytes, if known. A transfer that still waits can be
        cancelled."""
        waiting = _Waiting(action, size)
        self._waiting.append(waiting)
        if self.needs_lane:
            self._say()  # it begins in the next turn of the loop, when the core knows all transfers under way
        else:
            self.begin(False)
        return waiting.future

    def begin(self, lane_is_open: bool) -> None:
        """Begin the transfers that may begin now."""
        while self._waiting and (not self.needs_lane or (lane_is_open and self._under_way < FILE_THREADS)):
            waiting = self._waiting.popleft()
            if waiting.future.set_running_or_notify_cancel():
                counts = self.needs_lane
                self._under_way += counts
                self.pool.submit(self._run, waiting, counts)
        self._say()

    def _run(self, waiting: _Waiting, counts: bool) -> None:
        try:
            result = waiting.action()
        except BaseException as error:
            waiting.future.set_exception(error)
        else:
            waiting.future.set_result(result)
        if counts:
            self._later(self._ended)

    def _ended(self) -> None:
        self._under_way -= 1
        self._say()

    def _say(self) -> None:
        """Report the state that decides about the lane: whether any transfer waits, and whether any is under way."""
        if not self.needs_lane and self._told == TransfersChanged():
            return
        waits = [waiting for waiting in self._waiting if not waiting.future.cancelled()] if self.needs_lane else []
        now = TransfersChanged(len(waits), self._under_way, sum(waiting.size for waiting in waits))
        if (bool(now.waiting), bool(now.under_way)) != (bool(self._told.waiting), bool(self._told.under_way)):
            self._told = now
            self._tell(now)
