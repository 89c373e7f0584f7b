"""Queries over a whole large run: a helper process runs them one at a time; meanwhile pages are shown without them.

The helper has a lower priority, and its own memory and connection; it ends with this process. It answers new questions
at once, and repeats known ones for a small share of the time, those with the oldest answers first.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import msgspec
from sqlalchemy.engine import Engine

from ecloud.db.database import make_engine

REST_FACTOR = 9.0
"""Known questions are repeated for a tenth of the time."""
SHORT_WAIT_S = 0.05
"""How long a page waits for the first answer to a question."""
KEPT_S = 2.0
ASKED_S = 10.0
"""A question that no viewer asked for this long is not repeated."""
MOST_ANSWERS = 64
NICE = 10
ANSWER_S = 600.0


class _Known(msgspec.Struct):
    """`version`: of the data that the answer is about, None if they may change at any time."""

    answer: Any
    found_at: float
    asked_at: float
    version: object


class Heavy:
    """Recent answers by question. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._known: OrderedDict[object, _Known] = OrderedDict()
        self._coming: dict[object, tuple[object, Future[tuple[float, Any]]]] = {}
        self._rests_until = 0.0
        """When the helper may repeat a known question."""

    def ask(
        self,
        engine: Engine,
        function: Callable[..., Any],
        *arguments: object,
        version: object = None,
        wait_s: float = SHORT_WAIT_S,
    ) -> Any:
        """Return a recent result of `function(engine, *arguments)`; None if it is not known yet. `version`: if not
        None, the result is the same as long as this value is. `function` must be at module level. Raises what it
        raises."""
        question = (function.__module__, function.__qualname__, arguments)
        now = time.monotonic()
        with self._lock:
            self._collect(question)
            known = self._known.get(question)
            if known is not None:
                known.asked_at = now
            if question not in self._coming and (known is None or self._is_due(known, version, now)):
                self._coming[question] = (version, self._submit(engine, function, arguments))
            if known is not None:
                return known.answer
            is_next = len(self._coming) == 1
            future = self._coming[question][1]
        try:
            future.exception(wait_s if is_next else 0.0)
        except NotYet:
            return None
        with self._lock:
            self._collect(question)
            known = self._known.get(question)
        return known.answer if known is not None else None

    def _is_due(self, known: _Known, version: object, now: float) -> bool:
        """Whether to ask a known question again: its data have changed; or they may have, the helper has rested, and no
        recent question has an older answer."""
        if known.version is not None or version is not None:
            return known.version != version
        return now >= max(self._rests_until, known.found_at + KEPT_S) and not any(
            one.found_at < known.found_at and one.version is None and now - one.asked_at < ASKED_S
            for one in self._known.values()
        )

    def close(self) -> None:
        """End the helper."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, engine: Engine, function: Callable[..., Any], arguments: tuple[object, ...]) -> Future[Any]:
        url = engine.url.render_as_string(hide_password=False)
        for _ in range(2):
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, context, _begin)
            try:
                return self._pool.submit(_answer, url, function, arguments)
            except BrokenProcessPool:  # the process was killed, perhaps by the out-of-memory killer
                self._pool = None
        raise RuntimeError("the helper process of the monitor does not start")

    def _collect(self, question: object) -> None:
        """Store an answer that has arrived. Raises what its question raised."""
        version, future = self._coming.get(question, (None, None))
        if future is None or not future.done():
            return
        del self._coming[question]
        if future.cancelled() or isinstance(future.exception(), BrokenProcessPool):
            self._pool = None
            return
        took_s, answer = future.result()
        now = time.monotonic()
        self._rests_until = max(self._rests_until, now) + REST_FACTOR * took_s
        self._known[question] = _Known(answer, now, now, version)
        self._known.move_to_end(question)
        while len(self._known) > MOST_ANSWERS:
            self._known.popitem(last=False)


# --- in the helper ------------------------------------------------------------------------------------

_engines: dict[str, Engine] = {}


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the monitor, which ends the helper
    os.nice(NICE)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(0)

    threading.Thread(target=follow, daemon=True).start()


def _answer(url: str, function: Callable[..., Any], arguments: tuple[object, ...]) -> tuple[float, Any]:
    """Return how long it took in seconds, and the answer."""
    if url not in _engines:
        _engines[url] = make_engine(url, ANSWER_S)
    began = time.monotonic()
    answer = function(_engines[url], *arguments)
    return time.monotonic() - began, answer
