"""One connection to a gate: an `ssh` process, frames in and out of it, many requests on their way at once.

It never connects again: who holds it makes a new one (`datastore/link.py`). It ends what stalls, counted from the last
progress, and says in the user's words why it ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import tempfile
import threading
import time
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


class Connection:
    """Starts `command` and speaks with the gate at its other end. Any thread may `ask`."""

    def __init__(self, command: list[str], where: str, stall_s: float) -> None:
        self.where = where
        self.stall_s = stall_s
        self.hello: dict[str, Any] = {}
        self._errors = tempfile.TemporaryFile()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[Answer], int]] = deque()
        self._under_way = 0
        self._progress_s = time.monotonic()
        self._stalled = False
        self._lost: Lost | None = None
        self._greeted: Future[dict[str, Any]] = Future()
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

    def greet(self) -> None:
        """Wait for the gate's first frame. Raises `Lost`."""
        self.hello = self._greeted.result()
        if self.hello.get("gate") != VERSION:
            found = self.hello.get("gate")
            text = f"the gate of {self.where} is of version {found}, not {VERSION}: python admin.py set_datastore again"
            self.close()
            raise Lost(text, True)

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._lost is None

    def ask(self, request: dict[str, Any], body: bytes | memoryview = b"") -> Future[Answer]:
        """Send a request; its answer will come, or `Lost`. Blocks while what is on its way fills the pipe."""
        future: Future[Answer] = Future()
        text = json.dumps(request, separators=(",", ":")).encode("ascii")
        head = HEAD.pack(len(text), len(body)) + text
        length = len(head) + len(body)
        with self._lock:
            if self._lost is not None:
                future.set_exception(self._lost)
                return future
            if not self._waiting:
                self._progress_s = time.monotonic()
            self._waiting.append((future, length))
            self._under_way += length
            with suppress(OSError):  # the reader finds out why, and tells all that wait
                if body and length <= SLICE:
                    self._write(head + body)
                else:
                    self._write(head)
                    self._write(body)
        return future

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._in, view[:SLICE]) :]
            self._progress_s = time.monotonic()

    # --- the reader's thread ------------------------------------------------------------------------------

    def _read_all(self) -> None:
        try:
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
                    self._under_way -= length
                    with_length.set_result((frames, body))
                    frames = []
        except (EOFError, OSError, ValueError, IndexError):
            self._end()

    def _skip_greeting(self) -> None:
        seen = b""
        while not seen.endswith(MAGIC):
            if len(seen) > GREETING_BYTES:
                raise ValueError
            # Byte by byte only until the mark has been seen.
            seen += bytes(self._read(1))

    def _read_frame(self) -> tuple[dict[str, Any], bytearray]:
        length, body_length = HEAD.unpack(self._read(HEAD.size))
        if length > MAX_JSON or body_length > MAX_BODY:
            raise ValueError
        return json.loads(self._read(length)), self._read(body_length)

    def _read(self, length: int) -> bytearray:
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
            self._progress_s = time.monotonic()
            view = view[count:]
        return data

    def _look_for_stall(self) -> None:
        waits = self._waiting or not self._greeted.done()
        silent_s = time.monotonic() - self._progress_s
        if waits and silent_s > self.stall_s + self._under_way / SLOWEST:
            self._stalled = True
            self._process.kill()

    def _end(self) -> None:
        self._process.kill()
        with self._lock:
            self._process.wait()
            self._lost = self._why()
            waiting, self._waiting = self._waiting, deque()
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            with suppress(OSError):
                self._process.stdin.close()
            self._process.stdout.close()
            self._errors.close()
        if not self._greeted.done():
            self._greeted.set_exception(self._lost)
        for future, _ in waiting:
            future.set_exception(self._lost)

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


def explain(where: str, told: str) -> Lost:
    """What `ssh` printed before it ended, as a reason."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    last = lines[-1] if lines else "the connection was cut"
    if "HOST IDENTIFICATION HAS CHANGED" in told or "Host key verification failed" in told:
        offered = next((line for line in lines if "SHA256:" in line), "an unknown one").strip(" .")
        return Lost(
            f"REFUSED: the host key of {where} is not the one that was pinned ({offered} is offered now)."
            " Somebody may be in between, or the machine was installed anew."
            " If you know that it was: python admin.py set_datastore again",
            for_good=True,
        )
    if ("Permission denied" in told and "publickey" in told) or "Too many authentication failures" in told:
        return Lost(f"{where} refuses this key or certificate: it is not authorised there, or it expired", True)
    if "Could not resolve hostname" in told:
        return Lost(f"the name of {where} can't be resolved: {last}")
    if "can't open file" in told or "python3: not found" in told or "command not found" in told:
        return Lost(f"{where} has no gate or no python3 ({last}): python admin.py set_datastore again", True)
    return Lost(f"{where}: {last}")
