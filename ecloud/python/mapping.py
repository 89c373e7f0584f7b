"""`map` over many items: chooses how many go into one call, and yields their values in order.

With automatic chunks, the first calls have one item each. Their run time determines the size of the next ones.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ecloud.python.future import CallFuture
from ecloud.python.link import Link

TARGET_S = 0.25
"""Target run time of a chunk: long compared with the cost of a call, short compared with the cost of a worker's
death."""
MOST = 2_000
"""Limit for the items in one chunk."""
SHARES = 4
"""Chunks for each worker, at least: the last chunks should not delay the end of the map."""
PROBES = 4

_Items = list[tuple[Any, ...]]


class Mapped:
    """One `map`. Takes and submits all items immediately, or, with `buffersize`, only that many ahead of the
    consumer."""

    def __init__(
        self,
        submit: Callable[[_Items], CallFuture],
        link: Link,
        items: Iterator[tuple[Any, ...]],
        chunksize: int | None,
        buffersize: int | None,
        timeout: float | None,
    ) -> None:
        self._submit = submit
        self._link = link
        self._items = items
        self._chunksize = chunksize
        self._buffersize = buffersize
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._futures: deque[CallFuture] = deque()
        self._left: _Items = []
        """Items not submitted yet, because the time that one takes is not known."""
        self._ahead = 0
        self._each_s: float | None = None
        self._error: BaseException | None = None
        self._lock = threading.RLock()
        try:
            if buffersize is None:
                self._left = list(items)
                self._left.reverse()
                self._submit_more()
            else:
                self._fill()
        except BaseException:
            self.drop()
            raise

    def _submit_more(self) -> None:
        """Submit the waiting items: all of them if the chunk size is known, else probes of one item each."""
        with self._lock:
            if self._chunksize is None and self._each_s is None:
                probes = max(PROBES, 2 * self._link.workers)
                for _ in range(min(probes, len(self._left))):
                    self._submit_chunk(1)
                return
            while self._left:
                self._submit_chunk(self._chunksize or self._automatic)

    @property
    def _automatic(self) -> int:
        share = -(-len(self._left) // (SHARES * max(1, self._link.workers)))
        by_time = MOST if not self._each_s else int(TARGET_S / self._each_s)
        return max(1, min(MOST, by_time, share))

    def _submit_chunk(self, size: int) -> None:
        items = self._left[-size:]
        items.reverse()
        del self._left[-size:]
        future = self._submit(items)
        self._futures.append(future)
        if self._chunksize is None and self._each_s is None:
            future.add_done_callback(self._measure)

    def _measure(self, future: Any) -> None:
        """Measure the first probe that ended, and submit the rest. Runs on the thread of callbacks."""
        ended = future._ended
        with self._lock:
            if self._each_s is None:
                self._each_s = ended.run_s if ended is not None else TARGET_S
                try:
                    self._submit_more()
                # an item that cannot be pickled: `values` raises this after the values before it
                except BaseException as error:
                    self._error = error
                    self._left.clear()

    def _fill(self) -> None:
        """Take items, up to the size of the buffer."""
        assert self._buffersize is not None
        size = self._chunksize or 1
        while self._ahead < self._buffersize:
            chunk: _Items = []
            for item in self._items:
                chunk.append(item)
                if len(chunk) == size:
                    break
            if not chunk:
                return
            self._ahead += len(chunk)
            self._futures.append(self._submit(chunk))

    def values(self) -> Iterator[Any]:
        """Yield the values in order; raise the exception of a call in its place. A consumer that stops early cancels
        the rest; after Ctrl-C, the executor decides."""
        is_interrupted = False
        try:
            while True:
                with self._lock:
                    future = self._futures.popleft() if self._futures else None
                    waits = bool(self._left)
                if future is None:
                    if not waits:
                        if self._error is not None:
                            raise self._error
                        return
                    self._wait_for_probe()
                    continue
                yield from self._values_of(future)
        except KeyboardInterrupt:
            is_interrupted = True
            raise
        finally:
            if not is_interrupted:
                self.drop()

    def __bool__(self) -> bool:
        """Whether items wait to be submitted."""
        return bool(self._left)

    def submit_all(self) -> None:
        """Submit the waiting items now, although the time that one takes may be unknown."""
        with self._lock, contextlib.suppress(Exception):  # an item that cannot be pickled: no consumer is left
            while self._left:
                self._submit_chunk(self._chunksize or self._automatic)

    def drop(self) -> None:
        """Submit nothing more, and cancel what was."""
        if self._link.is_foreign:
            return
        with self._lock:
            self._left.clear()
            for future in self._futures:
                future.cancel()

    def _wait_for_probe(self) -> None:
        with self._link.condition:
            self._link.condition.wait(0.05)

    def _values_of(self, future: CallFuture) -> Iterator[Any]:
        left_s = None if self._deadline is None else self._deadline - time.monotonic()
        error = future.exception(left_s)
        values = future.values_before_failure() if error is not None else future.take()
        if self._buffersize is not None:
            self._ahead -= len(values)
            self._fill()
        del future
        # Reversed, so that each value is let go when it was given out.
        values.reverse()
        while values:
            yield values.pop()
        if error is not None:
            raise error
