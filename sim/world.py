"""The simulated world: one clock, one heap of future events, one seed. Owns the trace and its hash; does not know
bosses.

Every event is an action taken from the heap; all parts put their future actions there. All random numbers come from
`World.random`, so that the same seed gives exactly the same trace.
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
"""Number of lines of the trace that are kept for the story of a failure."""
HASHED_AT_ONCE = 500
"""Number of lines that are hashed together."""
_TIME = struct.Struct("<d")
TICK_S = 1e-6
"""Upper bound of the rounding error of a deadline between two clocks."""
START = 1_000_000.0
"""Time of the simulated clock when a world starts, in seconds."""
SLICES_A_SECOND = 200
"""Events later than the current time slice are in a list for their slice, which becomes the heap when the slice begins.
One heap of all events would be large, and each access would read cold memory."""

Action = Callable[[], None]
_Coming = tuple[float, int, Action]
"""Time of an event, its sequence number, and its action."""


class World:
    """Time, random numbers and the record of events."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = START
        self.steps = 0
        self.fired: Counter[str] = Counter()
        """Faults that happened, by name."""
        self.looked = dict.fromkeys(INVARIANTS, 0)
        """How often each invariant was tested, by name."""
        self._lines: deque[tuple[float, str, str | Callable[[], str]]] = deque(maxlen=STORY_LINES)
        self._heap: list[_Coming] = []
        """Events of the current slice."""
        self._slice = int(START * SLICES_A_SECOND)
        self._later: dict[int, list[_Coming]] = {}
        """Later events, by slice, and the slices that have any."""
        self._slices: list[int] = []
        self._sequence = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._told: list[bytes] = []
        """Lines that are not in the hash yet."""

    @property
    def passed_s(self) -> float:
        """Seconds since the world started."""
        return self.now - START

    @property
    def trace_hash(self) -> str:
        """Hash of the trace so far."""
        self._hash_told()
        return self._hash.hexdigest()

    def at(self, when: float, action: Action) -> None:
        """Run `action` at `when`, or now if that time has passed. Actions of the same time run in the order of their
        calls."""
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
        """Run `action` in `seconds`, which must not be negative."""
        self.at(self.now + seconds, action)

    def step(self) -> bool:
        """Run the next action; False if none is left."""
        if not self._heap and not self._next_slice():
            return False
        self.now, _, action = heappop(self._heap)
        self.steps += 1
        action()
        return True

    def run(self, until: float, most_steps: int) -> None:
        """Run actions up to the first one at or after `until`, or up to this many steps."""
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
        """Begin the next slice that has events; False if there is none."""
        if not self._slices:
            return False
        self._slice = heappop(self._slices)
        self._heap = self._later.pop(self._slice)
        heapify(self._heap)
        return True

    @property
    def lines(self) -> tuple[tuple[float, str, str], ...]:
        """The last lines of the trace: time, actor, text."""
        return tuple([(at, who, text if isinstance(text, str) else text()) for at, who, text in self._lines])

    def tell(self, who: str, text: str) -> None:
        """Write a line to the trace."""
        now = self.now
        self._lines.append((now, who, text))
        self._told.append(f"{now:.6f} {who} {text}\n".encode())

    def note(self, mark: bytes, who: str, words: Callable[[], str] | None) -> None:
        """Record a frequent event: `mark` enters the hash, together with the time; `words` makes the line for the story
        when it is read, if it is worth a line."""
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
        """Draw whether an event of that probability happens. Draws nothing if it is impossible."""
        return probability > 0 and self.random.random() < probability

    def fault(self, name: str, probability: float) -> bool:
        """The same, and count it as a fault if it happens."""
        if probability > 0 and self.random.random() < probability:
            self.fired[name] += 1
            return True
        return False
