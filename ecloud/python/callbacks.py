"""The thread that calls the callbacks of futures: they may wait for an answer, which the link's thread receives.

Unlike a `ThreadPoolExecutor`, it also works at the end of the program, which waits for calls and their callbacks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger("ecloud")


class Callbacks:
    """Functions in the order in which they were given."""

    def __init__(self) -> None:
        self._given: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._is_closed = False
        self._lock = threading.Lock()
        # Started before the end of the program, when no thread can be.
        self._thread = threading.Thread(target=self._run, name="ecloud-callbacks", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def give(self, function: Callable[[], object]) -> bool:
        """Have the thread call `function`; False after `close`."""
        with self._lock:
            if not self._is_closed:
                self._given.put(function)
            return not self._is_closed

    def close(self, wait: bool) -> None:
        """Take no more. `wait`: until those given have returned, unless one of them calls this."""
        with self._lock:
            self._is_closed = True
            self._given.put(None)
        if wait and self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while (function := self._given.get()) is not None:
            try:
                function()
            except BaseException:  # such as SystemExit: it ends neither this thread nor the program
                log.exception("a callback of a call failed")
