"""One answer per second serves all viewers: each question to the database is asked once, and its answer kept."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

KEPT_S = 1.0
"""How old an answer may be."""
SLOW_FACTOR = 4.0
"""A question that took long is asked again after this many times as long: a large run does not fill the database."""
MOST_ANSWERS = 256

Answer = TypeVar("Answer")


class Answers:
    """Recent answers by question. For use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking: dict[object, threading.Lock] = {}
        self._known: OrderedDict[object, tuple[float, object]] = OrderedDict()

    def ask(self, question: object, find: Callable[[], Answer]) -> Answer:
        """What `find` gives, now or within the last second. Raises what `find` raises."""
        with self._lock:
            asking = self._asking.setdefault(question, threading.Lock())
        with asking:
            known = self._known.get(question)
            if known is None or time.monotonic() > known[0]:
                began = time.monotonic()
                answer = find()
                took_s = time.monotonic() - began
                known = (time.monotonic() + max(KEPT_S, SLOW_FACTOR * took_s), answer)
        with self._lock:
            self._known[question] = known
            self._known.move_to_end(question)
            while len(self._known) > MOST_ANSWERS:
                old, _ = self._known.popitem(last=False)
                self._asking.pop(old, None)
        return known[1]  # type: ignore[return-value]
