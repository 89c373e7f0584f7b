"""A connection to a gate that comes back: connects when needed, again after a cut, and sends pending requests again.

Every request of the gate may be asked again. So a transfer that is cut resumes where it was, and only who waits longer
than its patience without any progress gets the error.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from datastore.backoff import Backoff
from datastore.port import AccessRefused, BadName, DatastoreAway, NotThere, Unfit
from datastore.ssh.carrier import Lost, Start
from datastore.ssh.connection import Answer, Connection

BACKOFF = Backoff(0.1, 3.0)
"""Between tries without progress, with jitter."""
WINDOW_BYTES = 6 << 20
"""Bytes under way at once: enough for 0.15 s at 40 MB/s, few enough to be sent again."""
WINDOW_COUNT = 32


class Again(Exception):
    """The gate asks to begin this transfer again from its start."""


class Link:
    """The living connection to a gate: made when needed, and again after a cut. What `start` starts may differ each
    time, as an access is renewed. `stall_s`, `patience_s`: see `SshDatastore`."""

    def __init__(self, start: Start, where: str, stall_s: float, patience_s: float) -> None:
        self._start = start
        self._where = where
        self._stall_s = stall_s
        self.patience_s = patience_s
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def connected(self) -> Connection:
        """The living connection, made if there is none. Raises `Lost`."""
        with self._lock:
            if self._connection is not None:
                if self._connection.is_alive:
                    return self._connection
                self._connection.close()
            self._connection = Connection(self._start, self._where, self._stall_s)
            self._connection.greet()
            return self._connection

    def close(self) -> None:
        """End the connection; the next request makes another."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


class Patience:
    """How long to continue without progress. Pauses are doubled, with jitter: many are cut off at the same moment."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.progressed()

    def progressed(self) -> None:
        """Something was answered: start again."""
        self._deadline_s = time.monotonic() + self._patience_s
        self._failures = 0

    def pause(self, lost: Lost) -> None:
        """Wait before the next try. Raises `DatastoreAway` when it ends."""
        pause_s = BACKOFF.jittered_s(self._failures)
        self._failures += 1
        if lost.for_good or time.monotonic() + pause_s > self._deadline_s:
            raise (AccessRefused if lost.is_refusal else DatastoreAway)(lost.text, lost.remedy) from lost
        time.sleep(pause_s)


@dataclass
class _Sent:
    request: dict[str, Any]
    body: bytes | memoryview
    name: str
    note: Any
    weight: int
    answer: Future[Answer]


class Pipeline:
    """Requests of one caller, answered in their order. Not for several threads."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._patience = Patience(link.patience_s)
        self._sent: deque[_Sent] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def is_full(self) -> bool:
        """Whether an answer should be taken before more is sent."""
        return self._bytes >= WINDOW_BYTES or len(self._sent) >= WINDOW_COUNT

    def send(
        self, request: dict[str, Any], body: bytes | memoryview = b"", name: str = "", note: Any = None, weight: int = 0
    ) -> None:
        """Ask. `name`: what it is about, for errors; `note` comes back with the answer; `weight`: bytes awaited."""
        sent = _Sent(request, body, name, note, len(body) + weight, Future())
        self._bytes += sent.weight
        self._sent.append(sent)
        try:
            sent.answer = self._link.connected().ask(request, body)
        except Lost as lost:
            sent.answer.set_exception(lost)

    def take(self) -> tuple[list[dict[str, Any]], bytearray, Any]:
        """The oldest answer: its frames, the bytes of the last, the note. Raises what the gate told as `port` names it,
        `Again`, and `DatastoreAway`."""
        while True:
            try:
                frames, body = self._sent[0].answer.result()
                break
            except Lost as lost:
                self._patience.pause(lost)
                self._ask_again()
        self._patience.progressed()
        sent = self._sent.popleft()
        self._bytes -= sent.weight
        if "error" in frames[-1]:
            raise _raised(frames[-1], sent.name)
        return frames, body, sent.note

    def _ask_again(self) -> None:
        try:
            connection = self._link.connected()
        except Lost as lost:
            for sent in self._sent:
                sent.answer = Future()
                sent.answer.set_exception(lost)
            return
        for sent in self._sent:
            sent.answer = connection.ask(sent.request, sent.body)


def ask(link: Link, request: dict[str, Any], name: str = "") -> list[dict[str, Any]]:
    """One request and its answer."""
    pipeline = Pipeline(link)
    pipeline.send(request, name=name)
    return pipeline.take()[0]


def _raised(told: dict[str, Any], name: str) -> Exception:
    code, text = told["error"], told.get("text", "")
    if code == "not_there":
        return NotThere(name)
    if code == "bad_name":
        return BadName(text)
    if code == "unfit":
        return Unfit(text)
    if code == "away":
        return DatastoreAway(text)
    if code in ("changed", "gap", "torn"):
        return Again(text)
    return OSError(told.get("errno", 5), text, name or None)
