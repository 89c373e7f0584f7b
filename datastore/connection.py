"""One connection to a gate: an `ssh` process, frames in and out of it, many requests on their way at once.

It never connects again: who holds it makes a new one (`datastore/link.py`). It ends what stalls, counted from the last
progress, and says in the user's words why it ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import struct
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from datastore.gate import HEAD, MAGIC, MAX_BODY, MAX_JSON, PIECE, VERSION

SLICE = 1 << 16
"""Written at once: progress is seen at this grain."""
SLOWEST = 100_000
"""Bytes per second: what is on its way may take so long before silence counts as a stall."""
GREETING_BYTES = 1 << 16
"""What a login shell may print before the gate speaks."""
_SET_PIPE_SIZE = 1031

Answer = tuple[list[dict[str, Any]], bytearray]
"""The frames of one answer, and the bytes of the last."""


class Lost(Exception):
    """The connection is gone; the text says why. `for_good`: trying again is of no use."""

    def __init__(self, reason: str, for_good: bool = False) -> None:
        super().__init__(reason)
        self.for_good = for_good


class Channel(ABC):
    """Starts `command` and reads what it says in a thread of its own, until it ends or stalls.

    Who speaks over it says how: `greet` begins, `converse` reads without end, `waits` whether anything is awaited,
    `ended` tells all that wait why it is over.
    """

    moved_bytes = 0
    """Of all channels of this process, both ways: about, as threads may count at the same moment."""

    def __init__(self, command: list[str], where: str, stall_s: float) -> None:
        self.where = where
        self.stall_s = stall_s
        self.under_way = 0
        """Bytes on their way, in both directions."""
        self.lost: Lost | None = None
        self._errors = tempfile.TemporaryFile()
        self._lock = threading.Lock()
        self._stalled = False
        self.progressed()
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise Lost(f"{command[0]} can't be started: {error.strerror}; install the OpenSSH client", True) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        for handle in (self._in, self._out):
            with suppress(OSError):
                fcntl.fcntl(handle, _SET_PIPE_SIZE, PIECE)
        self._reader = threading.Thread(target=self._read_all, name="datastore", daemon=True)
        self._reader.start()

    @abstractmethod
    def greet(self) -> None:
        """Wait until it can be asked. Raises `Lost`."""

    @abstractmethod
    def converse(self) -> None:
        """Read, and answer who waits. Never returns; raises `EOFError`, `OSError`, `ValueError` at the end."""

    @abstractmethod
    def waits(self) -> bool:
        """Whether silence is a stall."""

    @abstractmethod
    def ended(self, lost: Lost) -> None:
        """Tell all that wait."""

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self.lost is None

    def progressed(self) -> None:
        """Something moved."""
        self._progress_s = time.monotonic()

    def write(self, *parts: bytes | memoryview) -> None:
        """With the lock held. Blocks while the pipe is full."""
        with suppress(OSError):  # the reader finds out why, and tells all that wait
            for data in parts:
                view = memoryview(data)
                while view:
                    count = os.write(self._in, view[:SLICE])
                    view = view[count:]
                    Channel.moved_bytes += count
                    self.progressed()

    # --- the reader's thread ------------------------------------------------------------------------------

    def _read_all(self) -> None:
        try:
            self.converse()
        except (EOFError, OSError, ValueError, LookupError, struct.error):
            self._end()

    def read(self, length: int) -> bytearray:
        """So many bytes. Raises `EOFError`."""
        data = bytearray(length)
        view, poll = memoryview(data), select.poll()
        poll.register(self._out, select.POLLIN)
        while view:
            if not poll.poll(1000):
                self._look_for_stall()
                continue
            count = os.readv(self._out, [view])
            if not count:
                raise EOFError
            Channel.moved_bytes += count
            self.progressed()
            view = view[count:]
        return data

    def _look_for_stall(self) -> None:
        silent_s = time.monotonic() - self._progress_s
        if self.waits() and silent_s > self.stall_s + self.under_way / SLOWEST:
            self._stalled = True
            self._process.kill()

    def _end(self) -> None:
        self._process.kill()
        with self._lock:
            self._process.wait()
            self.lost = self._why()
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            with suppress(OSError):
                self._process.stdin.close()
            self._process.stdout.close()
            self._errors.close()
        self.ended(self.lost)

    def _why(self) -> Lost:
        if self._stalled:
            return Lost(f"{self.where} stalled: nothing moved for {self.stall_s:g} s")
        self._errors.seek(0)
        return explain(self.where, self._errors.read(1 << 16).decode("utf-8", "replace"))

    def close(self) -> None:
        """End it; who waits gets `Lost`. May be called again."""
        self._process.kill()
        if threading.current_thread() is not self._reader:
            self._reader.join()


class Connection(Channel):
    """Speaks with the gate at the other end of `command`. Any thread may `ask`."""

    def __init__(self, command: list[str], where: str, stall_s: float) -> None:
        self.hello: dict[str, Any] = {}
        self._waiting: deque[tuple[Future[Answer], int]] = deque()
        self._greeted: Future[dict[str, Any]] = Future()
        super().__init__(command, where, stall_s)

    def greet(self) -> None:
        """Wait for the gate's first frame. Raises `Lost`."""
        self.hello = self._greeted.result()
        self.hello["ahead_s"] = float(self.hello.get("clock_s", time.time())) - time.time()
        if self.hello.get("gate") != VERSION:
            found = self.hello.get("gate")
            text = f"the gate of {self.where} is of version {found}, not {VERSION}: python admin.py set_datastore again"
            self.close()
            raise Lost(text, True)

    def ask(self, request: dict[str, Any], body: bytes | memoryview = b"") -> Future[Answer]:
        """Send a request; its answer will come, or `Lost`. Blocks while what is on its way fills the pipe."""
        future: Future[Answer] = Future()
        text = json.dumps(request, separators=(",", ":")).encode("ascii")
        head = HEAD.pack(len(text), len(body)) + text
        length = len(head) + len(body)
        with self._lock:
            if self.lost is not None:
                future.set_exception(self.lost)
                return future
            if not self._waiting:
                self.progressed()
            self._waiting.append((future, length))
            self.under_way += length
            if body and length <= SLICE:
                self.write(head + body)
            else:
                self.write(head, body)
        return future

    # --- the reader's thread ------------------------------------------------------------------------------

    def waits(self) -> bool:
        """See `Channel`."""
        return bool(self._waiting) or not self._greeted.done()

    def converse(self) -> None:
        """See `Channel`."""
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
            # Byte by byte only until the mark has been seen.
            seen += bytes(self.read(1))

    def _read_frame(self) -> tuple[dict[str, Any], bytearray]:
        length, body_length = HEAD.unpack(self.read(HEAD.size))
        if length > MAX_JSON or body_length > MAX_BODY:
            raise ValueError
        return json.loads(self.read(length)), self.read(body_length)

    def ended(self, lost: Lost) -> None:
        """See `Channel`."""
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        if not self._greeted.done():
            self._greeted.set_exception(lost)
        for future, _ in waiting:
            future.set_exception(lost)


def explain(where: str, told: str) -> Lost:
    """What `ssh` printed before it ended, as a reason."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    last = lines[-1] if lines else "the connection was cut"
    if "HOST IDENTIFICATION HAS CHANGED" in told or "Host key verification failed" in told:
        offered = next((line for line in lines if "SHA256:" in line), "an unknown one").strip(" .")
        return Lost(
            f"REFUSED: the host key of {where} is not the one that was pinned ({offered} is offered now)."
            " Somebody may be in between, or the machine was installed anew."
            " If you know that it was: python admin.py set_datastore ADDRESS --new_host_key",
            for_good=True,
        )
    if ("Permission denied" in told and "publickey" in told) or "Too many authentication failures" in told:
        return Lost(f"{where} refuses this key or certificate: it is not authorised there, or it expired", True)
    if "Could not resolve hostname" in told:
        return Lost(f"the name of {where} can't be resolved: {last}")
    if "can't open file" in told or "python3: not found" in told or "command not found" in told:
        return Lost(f"{where} has no gate or no python3 ({last}): python admin.py set_datastore again", True)
    return Lost(f"{where}: {last}")
