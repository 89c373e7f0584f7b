"""When transfers begin: at once where the datastore is a directory, over SSH only while this worker holds a lane.

Owns the threads and who waits. It never asks for a lane: it tells how much waits and is under way, as an event.
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
    """A transfer that has no lane yet."""

    def __init__(self, action: Callable[[], Any], size: int) -> None:
        self.action = action
        self.size = size
        self.future: Future[Any] = Future()


class Transfers:
    """Called from the loop alone. `later` brings what a thread ends back to the loop; `tell` hears of each change."""

    def __init__(self, later: Callable[[Callable[[], None]], None], tell: Callable[[TransfersChanged], None]) -> None:
        self.pool = ThreadPoolExecutor(FILE_THREADS, "files")
        self.needs_lane = False
        self._later = later
        self._tell = tell
        self._waiting: deque[_Waiting] = deque()
        self._under_way = 0
        self._told = TransfersChanged()

    def submit(self, action: Callable[[], T], size: int = 0) -> Future[T]:
        """Run it as soon as that may be. `size`: its bytes, where they are known. One that still waits can be
        cancelled."""
        waiting = _Waiting(action, size)
        self._waiting.append(waiting)
        if self.needs_lane:
            self._say()  # and begin with the next turn of the loop, when the core has seen all that is under way
        else:
            self.begin(False)
        return waiting.future

    def begin(self, lane_is_open: bool) -> None:
        """Begin what may begin now."""
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
        """Tell what changed for the lane: whether anything waits, whether anything is under way."""
        if not self.needs_lane and self._told == TransfersChanged():
            return
        waits = [waiting for waiting in self._waiting if not waiting.future.cancelled()] if self.needs_lane else []
        now = TransfersChanged(len(waits), self._under_way, sum(waiting.size for waiting in waits))
        if (bool(now.waiting), bool(now.under_way)) != (bool(self._told.waiting), bool(self._told.under_way)):
            self._told = now
            self._tell(now)
