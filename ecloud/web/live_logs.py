"""Live output of running tasks by byte offset: one follower per task serves all viewers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import msgspec

from datastore.problem import Problem
from ecloud.client.client import Client

FORGOTTEN_S = 20.0
"""A follower without a request for this long ends."""
KEPT_BYTES = 512_000
"""Bytes kept of each stream; `admin.py logs` has older output."""
PIECE_BYTES = 64_000
MOST_FOLLOWED = 16

Boss = Callable[[Callable[[], None]], AbstractContextManager[Client]]
"""Opens a connection to the boss; takes a watchdog that may raise."""


class Piece(msgspec.Struct, frozen=True):
    """Output from `start` on; `next` is the offset of the next request. `ended`: no more output will come."""

    start: int
    next: int
    data: bytes
    ended: bool


class _Stream:
    """Buffered output: `data` begins at byte `first`; the worker has sent everything before byte `told`."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.told = first
        self.data = bytearray()

    def add(self, start: int, text: str) -> None:
        """Append text that begins `start` bytes after the stream's beginning."""
        if start > self.told:
            self.data += b"\n[some output was missed]\n"
        data = text.encode()
        self.data += data
        self.told = max(self.told, start + len(data))
        cut = max(0, len(self.data) - KEPT_BYTES)
        del self.data[:cut]
        self.first += cut


class _Forgotten(Problem):
    """No viewer reads this output any longer."""


class LiveLogs:
    """Followers by (run, task). Thread-safe."""

    def __init__(self, boss: Boss, secret: Callable[[], bytes]) -> None:
        self._boss = boss
        self._secret = secret
        self._lock = threading.Lock()
        self._followers: dict[tuple[str, str], Follower] = {}

    def read(self, run: str, task: str, stream: str, offset: int) -> Piece:
        """Return a stream's output from byte `offset` on. Raises `Problem` if the boss cannot be reached or too many
        tasks are followed."""
        with self._lock:
            follower = self._followers.get((run, task))
            if follower is None or follower.is_over:
                self._followers = {key: one for key, one in self._followers.items() if not one.is_over}
                if len(self._followers) >= MOST_FOLLOWED:
                    raise Problem(f"the output of {MOST_FOLLOWED} tasks is followed already", "close one of the pages")
                follower = Follower(self._boss, self._secret, run, task)
                self._followers[run, task] = follower
                follower.start()
        return follower.read(stream, offset)


class Follower:
    """Output of one task; a thread collects it while viewers read it."""

    def __init__(self, boss: Boss, secret: Callable[[], bytes], run: str, task: str) -> None:
        self._boss = boss
        self._secret = secret
        self._run = run
        self._task = task
        self._lock = threading.Lock()
        self._asked_at = time.monotonic()
        self._streams: dict[str, _Stream] = {}
        self._number = 0
        self._problem: Problem | None = None
        self._ended = False

    @property
    def is_over(self) -> bool:
        """Whether the follower may be replaced: it failed or ended without viewers."""
        return self._problem is not None

    def start(self) -> None:
        """Start following."""
        threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def read(self, stream: str, offset: int) -> Piece:
        """See `LiveLogs.read`."""
        with self._lock:
            self._asked_at = time.monotonic()
            if self._problem is not None and not isinstance(self._problem, _Forgotten):
                raise self._problem
            kept = self._streams.get(stream) or _Stream(0)
            end = kept.first + len(kept.data)
            start = max(kept.first, offset) if offset <= end else kept.first  # a new attempt has less output
            found = bytes(kept.data[start - kept.first : start - kept.first + PIECE_BYTES])
            return Piece(start, start + len(found), found, self._ended and start + len(found) == end)

    def take(self, number: int, stream: str, start: int, text: str) -> None:
        """Add output of attempt `number` that begins `start` bytes after the stream's beginning."""
        with self._lock:
            if number > self._number:
                self._number, self._streams = number, {}
            if number == self._number:
                self._streams.setdefault(stream, _Stream(start)).add(start, text)

    def _follow(self) -> None:
        try:
            with self._boss(self._watch) as client:
                for lines in client.logs(self._task, self._secret(), self._run):
                    self.take(lines.number, lines.stream, lines.start, lines.text)
            self._ended = True
            while time.monotonic() - self._asked_at < FORGOTTEN_S:
                time.sleep(1.0)
            self._problem = _Forgotten("forgotten")
        except Problem as error:
            self._problem = error

    def _watch(self) -> None:
        if time.monotonic() - self._asked_at > FORGOTTEN_S:
            raise _Forgotten("forgotten")
