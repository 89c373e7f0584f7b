"""The simulated world: one clock, one heap of what is to come, one seed. Owns the trace and its hash; knows no boss.

Everything that happens is an action taken from the heap; whoever wants something later puts it there. All chance comes
from `World.random`, so that the same seed gives the same trace to the last bit.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections import Counter, deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from sim.invariants import INVARIANTS

STORY_LINES = 2_000
"""Lines of the trace that are kept for the story of a failure."""
HASHED_AT_ONCE = 500
"""Lines that go into the trace's hash together."""
_TIME = struct.Struct("<d")
TICK_S = 1e-6
"""What a deadline loses by the rounding between two clocks is less than this."""
START = 1_000_000.0
"""Seconds of the simulated clock when a world begins."""
SLICES_A_SECOND = 200
"""What comes later than in the slice of time at hand lies in a list for its slice, and becomes the heap when that
begins: one heap of all that waits is large, and each look into it costs a walk through cold memory."""

Action = Callable[[], None]
_Coming = tuple[float, int, Action]
"""When something happens, its number among all that was put, and what."""


class World:
    """Time, chance and the record of what happened."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = START
        self.steps = 0
        self.fired: Counter[str] = Counter()
        """Faults that truly happened, by name."""
        self.looked = dict.fromkeys(INVARIANTS, 0)
        """Invariants by how often there was something that could have broken them."""
        self._lines: deque[tuple[float, str, str | Callable[[], str]]] = deque(maxlen=STORY_LINES)
        self._heap: list[_Coming] = []
        """What comes in the slice at hand."""
        self._slice = int(START * SLICES_A_SECOND)
        self._later: dict[int, list[_Coming]] = {}
        """What comes after it, by slice, and the slices in which anything does."""
        self._slices: list[int] = []
        self._sequence = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._told: list[bytes] = []
        """What is not in the hash yet."""

    @property
    def passed_s(self) -> float:
        """Seconds since the world began."""
        return self.now - START

    @property
    def trace_hash(self) -> str:
        """Of everything told so far."""
        self._hash_told()
        return self._hash.hexdigest()

    def at(self, when: float, action: Action) -> None:
        """Let `action` happen at `when`, or now where that has passed. What is put first happens first."""
        if when < self.now:
            when = self.now
        self._sequence += 1
        number = int(when * SLICES_A_SECOND)
        if number <= self._slice:
            heappush(self._heap, (when, self._sequence, action))
            return
        coming = self._later.get(number)
        if coming is None:
            self._later[number] = [(when, self._sequence, action)]
            heappush(self._slices, number)
        else:
            coming.append((when, self._sequence, action))

    def after(self, seconds: float, action: Action) -> None:
        """Let `action` happen in `seconds`, which are not negative."""
        self.at(self.now + seconds, action)

    def step(self) -> bool:
        """Let the next thing happen; False when nothing is left."""
        if not self._heap and not self._next_slice():
            return False
        self.now, _, action = heappop(self._heap)
        self.steps += 1
        action()
        return True

    def run(self, until: float, most_steps: int) -> None:
        """Let things happen up to the first at or after `until`, or beyond so many steps."""
        pop = heappop
        while self._heap or self._next_slice():
            heap = self._heap
            while heap:
                if self.now >= until or self.steps > most_steps:
                    return
                self.now, _, action = pop(heap)
                self.steps += 1
                action()

    def _next_slice(self) -> bool:
        """Begin the next slice in which anything comes; False where there is none."""
        if not self._slices:
            return False
        self._slice = heappop(self._slices)
        self._heap = self._later.pop(self._slice)
        heapify(self._heap)
        return True

    @property
    def lines(self) -> tuple[tuple[float, str, str], ...]:
        """The last that were told: when, who, what."""
        return tuple([(at, who, text if isinstance(text, str) else text()) for at, who, text in self._lines])

    def tell(self, who: str, text: str) -> None:
        """Write a line of the trace."""
        now = self.now
        self._lines.append((now, who, text))
        self._told.append(f"{now:.6f} {who} {text}\n".encode())

    def note(self, mark: bytes, who: str, words: Callable[[], str] | None) -> None:
        """Something that happens often: `mark` is what the hash knows of it, beside when it happened; `words`, where it
        is worth telling to a person, are made when someone reads them."""
        now = self.now
        if words is not None:
            self._lines.append((now, who, words))
        self._told.append(_TIME.pack(now) + mark)
        if len(self._told) >= HASHED_AT_ONCE:
            self._hash_told()

    def _hash_told(self) -> None:
        self._hash.update(b"".join(self._told))
        self._told.clear()

    def chance(self, probability: float) -> bool:
        """Whether something of that probability happens now. Draws nothing where it is impossible."""
        return probability > 0 and self.random.random() < probability

    def fault(self, name: str, probability: float) -> bool:
        """The same, counted as a fault where it happens."""
        if probability > 0 and self.random.random() < probability:
            self.fired[name] += 1
            return True
        return False
