"""One answer per second serves all viewers: each question to the database is asked once, and its answer kept."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import msgspec

KEPT_S = 1.0
"""How old an answer may be."""
SLOW_FACTOR = 12.0
"""A question that took long is asked again after this many times as long: one viewer or fifty cost the database at most
a twelfth of a core."""
LATE_S = 3.0
"""For so long after that an old answer is still shown, while the next one is being found."""
MOST_ANSWERS = 256
REFRESHERS = 4

Answer = TypeVar("Answer")


class _Known(msgspec.Struct, frozen=True):
    fresh_until: float
    usable_until: float
    answer: object


class Answers:
    """Recent answers by question. For use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking: dict[object, threading.Lock] = {}
        self._known: OrderedDict[object, _Known] = OrderedDict()
        self._refreshing: set[object] = set()
        self._refreshers = ThreadPoolExecutor(REFRESHERS, "refresh")

    def ask(
        self, question: object, find: Callable[[], Answer], is_whole: Callable[[Answer], bool] = lambda answer: True
    ) -> Answer:
        """What `find` gives, now or lately. A viewer who looks once a second never waits for it: the answer of a second
        ago is shown while the next one is found. One that is not whole yet is not kept longer than a second. Raises
        what `find` raises."""
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
        """Something was changed: what is known may be wrong."""
        with self._lock:
            self._known.clear()

    def _refresh(self, question: object, find: Callable[[], Answer], is_whole: Callable[[Answer], bool]) -> None:
        try:
            self._find(question, find, is_whole)
        except Exception:  # whoever asks next finds it out, and is told
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
