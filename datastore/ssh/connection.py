"""One connection to a gate: frames in and out of a carrier, many requests under way at once.

It never reconnects: its owner makes a new one (`datastore/ssh/link.py`). It ends a connection that stalls, counted from
the last progress, and says in plain words why it ended.
"""

from __future__ import annotations

import json
import struct
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from datastore.gate import HEAD, MAGIC, MAX_BODY, MAX_JSON, VERSION
from datastore.ssh.carrier import Lost, Start, stalled

SLICE = 1 << 16
"""Bytes written at once: the grain at which progress is seen."""
SLOWEST = 100_000
"""Bytes per second: data under way may take this long before silence counts as a stall."""
GREETING_BYTES = 1 << 16
"""Most that a login shell may print before the gate's first frame."""
LOOK_S = 1.0
"""How often to check for silence."""

Answer = tuple[list[dict[str, Any]], bytearray]
"""The frames of one answer, and the bytes of the last."""


class Connection:
    """Starts a carrier and talks to the gate at its remote end. A thread reads until the connection ends or stalls. Any
    thread may `ask`."""

    moved_bytes = 0
    """Bytes of all connections of this process, both ways; approximate, as threads may count at the same moment."""

    def __init__(self, start: Start, where: str, stall_s: float) -> None:
        self.where = where
        self.stall_s = stall_s
        self.hello: dict[str, Any] = {}
        self.under_way = 0
        """Bytes under way, in both directions."""
        self.lost: Lost | None = None
        self._waiting: deque[tuple[Future[Answer], int]] = deque()
        self._greeted: Future[dict[str, Any]] = Future()
        self._lock = threading.Lock()
        self._stalled = False
        self._carrier = start()
        self._progressed()
        self._reader = threading.Thread(target=self._read_all, name="datastore", daemon=True)
        self._reader.start()

    @property
    def is_alive(self) -> bool:
        """Whether it accepts requests."""
        return self.lost is None

    def greet(self) -> None:
        """Wait for the gate's first frame. Raises `Lost`."""
        self.hello = self._greeted.result()
        self.hello["ahead_s"] = float(self.hello.get("clock_s", time.time())) - time.time()
        if self.hello.get("gate") != VERSION:
            found = self.hello.get("gate")
            text = (
                f"the gate of {self.where} has version {found}, not {VERSION}: run python admin.py set_datastore again"
            )
            self.close()
            raise Lost(text, True)

    def ask(self, request: dict[str, Any], body: bytes | memoryview = b"") -> Future[Answer]:
        """Send a request; the future receives its answer, or `Lost`. Blocks while the pipe is full."""
        future: Future[Answer] = Future()
        text = json.dumps(request, separators=(",", ":")).encode("ascii")
        head = HEAD.pack(len(text), len(body)) + text
        length = len(head) + len(body)
        with self._lock:
            if self.lost is not None:
                future.set_exception(self.lost)
                return future
            if not self._waiting:
                self._progressed()
            self._waiting.append((future, length))
            self.under_way += length
            if body and length <= SLICE:
                self._write(head + body)
            else:
                self._write(head, body)
        return future

    def _progressed(self) -> None:
        """Note progress."""
        self._progress_s = time.monotonic()

    def _write(self, *parts: bytes | memoryview) -> None:
        """Write with the lock held. Blocks while the pipe is full."""
        with suppress(OSError):  # the reader learns why, and tells all that wait
            for data in parts:
                view = memoryview(data)
                while view:
                    count = self._carrier.write(view[:SLICE])
                    view = view[count:]
                    Connection.moved_bytes += count
                    self._progressed()

    # --- the reader's thread ------------------------------------------------------------------------------

    def _read_all(self) -> None:
        try:
            self._converse()
        except (EOFError, OSError, ValueError, LookupError, struct.error):
            self._end()

    def _read(self, length: int) -> bytearray:
        """Read this many bytes. Raises `EOFError`."""
        data = bytearray(length)
        view = memoryview(data)
        while view:
            count = self._carrier.read_into(view, LOOK_S)
            if count is None:
                self._look_for_stall()
                continue
            if not count:
                raise EOFError
            Connection.moved_bytes += count
            self._progressed()
            view = view[count:]
        return data

    def _look_for_stall(self) -> None:
        silent_s = time.monotonic() - self._progress_s
        if self._waits() and silent_s > self.stall_s + self.under_way / SLOWEST:
            self._stalled = True
            self._carrier.kill()

    def _end(self) -> None:
        self._carrier.kill()
        with self._lock:
            told = self._carrier.bury()
            self.lost = stalled(self.where, self.stall_s) if self._stalled else told
        self._tell_all(self.lost)

    def close(self) -> None:
        """End it; requests that wait get `Lost`. May be called again."""
        self._carrier.kill()
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def _waits(self) -> bool:
        """Whether silence is a stall."""
        return bool(self._waiting) or not self._greeted.done()

    def _converse(self) -> None:
        """Read answers for the waiting requests. Never returns; raises `EOFError`, `OSError`, `ValueError` at the
        end."""
        self._skip_greeting()
        self._greeted.set_result(self._read_frame()[0])
        frames: list[dict[str, Any]] = []
        while True:
            frame, body = self._read_frame()
            if "busy" in frame:
                continue
            frames.append(frame)
            if "more" not in frame:
                with_length, length = self._waiting.popleft()
                self.under_way -= length
                with_length.set_result((frames, body))
                frames = []

    def _skip_greeting(self) -> None:
        seen = b""
        while not seen.endswith(MAGIC):
            if len(seen) > GREETING_BYTES:
                raise ValueError
            # Byte by byte only until the mark appears.
            seen += bytes(self._read(1))

    def _read_frame(self) -> tuple[dict[str, Any], bytearray]:
        length, body_length = HEAD.unpack(self._read(HEAD.size))
        if length > MAX_JSON or body_length > MAX_BODY:
            raise ValueError
        frame = json.loads(self._read(length))
        if not isinstance(frame, dict):
            raise ValueError
        return frame, self._read(body_length)

    def _tell_all(self, lost: Lost) -> None:
        """Fail all waiting requests."""
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        if not self._greeted.done():
            self._greeted.set_exception(lost)
        for future, _ in waiting:
            future.set_exception(lost)
