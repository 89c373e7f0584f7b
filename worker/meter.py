"""What this worker moves over SSH now, for people to see: how many files, how many bytes of them, how fast.

Owns sums, and decides nothing. Bytes on their way are counted by the connections; so a cut that sends some again
counts them again, and what was in the cache counts as moved when its task has it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from datastore.connection import Channel
from ecloud.wire import Moving


class Meter:
    """Transfers tell it when they begin and end, from any thread; the loop asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files = {"fetch": 0, "store": 0}
        self._total = 0
        self._ended = 0
        self._counted_from = 0
        self._seen = (time.monotonic(), 0)

    @contextmanager
    def moving(self, way: str, files: int, size: int) -> Iterator[None]:
        """While so many files of so many bytes are on their way. `way`: fetch or store."""
        with self._lock:
            if not any(self._files.values()):
                self._total = self._ended = 0
                self._counted_from = Channel.moved_bytes
                self._seen = (time.monotonic(), Channel.moved_bytes)
            self._files[way] += files
            self._total += size
        try:
            yield
        finally:
            with self._lock:
                self._files[way] -= files
                self._ended += size
                self._counted_from = Channel.moved_bytes

    def read(self) -> Moving | None:
        """As it is now; the speed is that since it was read last. None while nothing moves."""
        with self._lock:
            if not any(self._files.values()):
                return None
            now_s, moved = time.monotonic(), Channel.moved_bytes
            seen_s, seen = self._seen
            self._seen = (now_s, moved)
            under_way = max(0, self._ended + moved - self._counted_from)
            self._total = max(
                self._total, under_way if self._files["store"] else 0
            )  # directories: nobody counted before
            return Moving(
                fetching=self._files["fetch"],
                storing=self._files["store"],
                bytes=self._total,
                moved_bytes=min(self._total, under_way),
                bytes_per_s=int((moved - seen) / max(0.001, now_s - seen_s)),
            )
