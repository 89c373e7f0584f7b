"""Cached answers for all viewers: each question goes to the database at most once per second."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import msgspec

KEPT_S = 1.0
"""Maximum age of an answer."""
SLOW_FACTOR = 12.0
"""A slow question is repeated only after this many times its duration: one viewer or fifty use at most a twelfth of a
database core."""
LATE_S = 3.0
"""For this long after that, an old answer is still shown while the next one is computed."""
MOST_ANSWERS = 256
REFRESHERS = 4

Answer = TypeVar("Answer")


class _Known(msgspec.Struct, frozen=True):
    fresh_until: float
    usable_until: float
    answer: object


class Answers:
    """Recent answers by question. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking: dict[object, threading.Lock] = {}
        self._known: OrderedDict[object, _Known] = OrderedDict()
        self._refreshing: set[object] = set()
        self._refreshers = ThreadPoolExecutor(REFRESHERS, "refresh")

    def ask(
        self, question: object, find: Callable[[], Answer], is_whole: Callable[[Answer], bool] = lambda answer: True
    ) -> Answer:
        """Return a recent or new result of `find`. A viewer who reloads once a second does not wait: the page shows the
        previous answer while the next one is computed. An incomplete answer (`is_whole`) is kept for at most one
        second. Raises what `find` raises."""
        now = time.monotonic()
        with self._lock:
            known = self._known.get(question)
            if known is not None and now <= known.usable_until:
                self._known.move_to_end(question)
                if now > known.fresh_until and question not in self._refreshing:
                    self._refreshing.add(question)
                    self._refreshers.submit(self._refresh, question, find, is_whole)
                return cast(Answer, known.answer)
            asking = self._asking.setdefault(question, threading.Lock())
        with asking:
            with self._lock:
                known = self._known.get(question)
            if known is None or time.monotonic() > known.fresh_until:
                known = self._find(question, find, is_whole)
        return cast(Answer, known.answer)

    def forget(self) -> None:
        """Drop all answers, since a change may have made them wrong."""
        with self._lock:
            self._known.clear()

    def _refresh(self, question: object, find: Callable[[], Answer], is_whole: Callable[[Answer], bool]) -> None:
        try:
            self._find(question, find, is_whole)
        except Exception:  # the next call of ask() repeats the question and raises the error
            with self._lock:
                self._known.pop(question, None)
        finally:
            with self._lock:
                self._refreshing.discard(question)

    def _find(self, question: object, find: Callable[[], Answer], is_whole: Callable[[Answer], bool]) -> _Known:
        began = time.monotonic()
        answer = find()
        ended = time.monotonic()
        fresh_until = ended + (max(KEPT_S, SLOW_FACTOR * (ended - began)) if is_whole(answer) else KEPT_S)
        known = _Known(fresh_until, fresh_until + LATE_S, answer)
        with self._lock:
            self._known[question] = known
            self._known.move_to_end(question)
            while len(self._known) > MOST_ANSWERS:
                old, _ = self._known.popitem(last=False)
                self._asking.pop(old, None)
        return known
