"""Cached answers for all viewers: each question goes to the database at most once per second, and all questions
together use a small share of it, however many viewers and pages there are."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import msgspec

KEPT_S = 1.0
"""Maximum age of an answer."""
SLOW_FACTOR = 16.0
"""Repeating all questions takes at most one part in this many of the time: one viewer or fifty use a sixteenth of a
database core at most."""
RECENT_S = 10.0
"""Questions that no viewer asked for this long do not count."""
LATE_S = 3.0
"""For this long after it is due for repetition, an old answer is still shown while the next one is computed."""
LATE_FACTOR = 30.0
"""The same for slow questions, in durations of the question: who comes back sees the old answer at once, and the next
one a second later."""
MOST_ANSWERS = 256
REFRESHERS = 4

Answer = TypeVar("Answer")


def period_s(took_s: float, all_took_s: Iterable[float]) -> float:
    """How long to keep the answer to a question that took `took_s`, if answers to all recent questions take
    `all_took_s`: together they then use 1 / SLOW_FACTOR of the time, and slower ones are repeated less often."""
    return max(KEPT_S, SLOW_FACTOR * math.sqrt(took_s) * sum(map(math.sqrt, all_took_s)))


class _Known(msgspec.Struct):
    took_s: float
    fresh_until: float
    usable_until: float
    asked_at: float
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
                known.asked_at = now
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
        took_s = ended - began
        with self._lock:
            before = self._known.get(question)
            others = [
                one.took_s for key, one in self._known.items() if key != question and one.asked_at > ended - RECENT_S
            ]
            kept_s = period_s(took_s, [took_s, *others]) if is_whole(answer) else KEPT_S
            late_s = max(LATE_S, LATE_FACTOR * took_s)
            asked_at = began if before is None else before.asked_at
            known = self._known[question] = _Known(took_s, ended + kept_s, ended + kept_s + late_s, asked_at, answer)
            self._known.move_to_end(question)
            while len(self._known) > MOST_ANSWERS:
                old, _ = self._known.popitem(last=False)
                self._asking.pop(old, None)
        return known
