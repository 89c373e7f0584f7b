"""What this worker transfers now, for status: how many files of which tasks, how many bytes, how fast.

Owns sums and decides nothing. The code that moves bytes counts them, so bytes that are sent again after an interruption
count again, and a cache hit counts as moved when its task has it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datastore.directory import DirectoryDatastore
from datastore.ssh.connection import Connection
from ecloud.model.transfer_status import Moving

TASKS_NAMED = 8


class Meter:
    """Counts transfers, which report their begin and end from any thread; the loop reads the sums. `stopped`: called,
    from any thread, when the last transfer that `read` reported has ended."""

    def __init__(self) -> None:
        self.stopped: Callable[[], None] = lambda: None
        self.is_far = True
        """Whether to count bytes over SSH, or else local copies: never both, because the cache copies as well."""
        self._lock = threading.Lock()
        self._tickets = itertools.count()
        self._under_way: dict[int, tuple[int, float]] = {}
        """The task and the start of each transfer, oldest first."""
        self._files = {"fetch": 0, "store": 0}
        self._total = 0
        self._ended = 0
        self._counted_from = 0
        self._seen = (time.monotonic(), 0)
        self._was_read = False

    def _moved_bytes(self) -> int:
        """Bytes moved by this process since it started."""
        return Connection.moved_bytes if self.is_far else DirectoryDatastore.copied_bytes

    @contextmanager
    def moving(self, way: str, files: int, size: int, task_no: int = 0) -> Iterator[None]:
        """Count a transfer of this many files and bytes while the context is open. `way`: fetch or store."""
        ticket = next(self._tickets)
        with self._lock:
            if not self._under_way:
                self._total = self._ended = 0
                self._counted_from = self._moved_bytes()
                self._seen = (time.monotonic(), self._counted_from)
            self._under_way[ticket] = (task_no, time.monotonic())
            self._files[way] += files
            self._total += size
        try:
            yield
        finally:
            with self._lock:
                del self._under_way[ticket]
                self._files[way] -= files
                self._ended += size
                self._counted_from = self._moved_bytes()
                over = self._was_read and not self._under_way
                self._was_read = self._was_read and not over
            if over:
                self.stopped()

    def read(self) -> Moving | None:
        """Return the current transfers, with the speed since the last call; None without any."""
        with self._lock:
            if not self._under_way:
                return None
            self._was_read = True
            now_s, moved = time.monotonic(), self._moved_bytes()
            seen_s, seen = self._seen
            self._seen = (now_s, moved)
            under_way = max(0, self._ended + moved - self._counted_from)
            self._total = max(
                self._total, under_way if self._files["store"] else 0
            )  # directories: their files were not counted before
            tasks = {task_no: None for task_no, _ in self._under_way.values() if task_no}
            return Moving(
                fetching=self._files["fetch"],
                storing=self._files["store"],
                bytes=self._total,
                moved_bytes=min(self._total, under_way),
                bytes_per_s=int((moved - seen) / max(0.001, now_s - seen_s)),
                tasks=tuple(tasks)[:TASKS_NAMED],
                since_s=round(now_s - min(began for _, began in self._under_way.values()), 3),
            )
