"""Queries over a whole large run: a helper process runs them one at a time; meanwhile pages are shown without them.

The helper has a lower priority, and its own memory and connection; it ends with this process.
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

from sqlalchemy.engine import Engine

from ecloud.db.database import make_engine
from ecloud.web.answers import SLOW_FACTOR

SHORT_WAIT_S = 0.05
"""How long a page waits for the first answer to a question."""
KEPT_S = 2.0
MOST_ANSWERS = 64
NICE = 10
ANSWER_S = 600.0


class Heavy:
    """Recent answers by question. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._known: OrderedDict[object, tuple[float, Any]] = OrderedDict()
        self._coming: dict[object, tuple[float, Future[Any]]] = {}

    def ask(
        self, engine: Engine, function: Callable[..., Any], *arguments: object, wait_s: float = SHORT_WAIT_S
    ) -> Any:
        """Return a recent result of `function(engine, *arguments)`; None if it is not known yet. `function` must be at
        module level. Raises what it raises."""
        question = (function.__module__, function.__qualname__, arguments)
        now = time.monotonic()
        with self._lock:
            self._collect(question)
            known = self._known.get(question)
            if known is not None and now <= known[0]:
                return known[1]
            if question not in self._coming:
                self._coming[question] = (now, self._submit(engine, function, arguments))
            future = self._coming[question][1]
        if known is not None:
            return known[1]
        try:
            future.exception(wait_s)
        except NotYet:
            return None
        with self._lock:
            self._collect(question)
            known = self._known.get(question)
        return known[1] if known is not None else None

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
        began, future = self._coming.get(question, (0.0, None))
        if future is None or not future.done():
            return
        del self._coming[question]
        if future.cancelled() or isinstance(future.exception(), BrokenProcessPool):
            self._pool = None
            return
        answer = future.result()
        now = time.monotonic()
        self._known[question] = (now + max(KEPT_S, SLOW_FACTOR * (now - began)), answer)
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


def _answer(url: str, function: Callable[..., Any], arguments: tuple[object, ...]) -> Any:
    if url not in _engines:
        _engines[url] = make_engine(url, ANSWER_S)
    return function(_engines[url], *arguments)
