"""Who may move files over SSH now: lanes, one per worker, so that the datastore is not drowned.

Owns the lanes held and the workers that wait, in the order of asking. It is told what workers say and says its answers
through `say`; it never looks at tasks. The words are those of docs/protocol.md.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from typing import NamedTuple

import msgspec

from ecloud.model.wire import Heartbeat, Message, TransfersGranted

SLICE_S = 10.0
"""A lane lasts at least so long, although others wait: a connection costs about 0.2 s to make."""
OVERDUE_S = 60.0
"""After a lane was called back and this has passed, the bytes that it was granted for hold nobody up any more: its
worker may have claimed any number."""
MAX_LANE = 2**53
"""No lane has a higher number. Lanes are granted one at a time, by adding one."""
REMEMBERED = 10_000
"""Lanes of workers that are gone, which may come back and hold them still."""


class Said(NamedTuple):
    """Where something was said: a worker's session, and the number of the message in it."""

    session: str
    number: int


Say = Callable[[str, Message], "Said | None"]
"""Tells a worker; None where it can't be told anything now."""


class Waiting(NamedTuple):
    """A worker without a lane: what it has to move, as far as it is known, and since when."""

    bytes: int
    since: float


class Lane(msgspec.Struct, eq=False):
    """A worker's leave to hold a connection. `until`: when it begins nothing more on it, None while nobody waits."""

    worker: str
    number: int
    bytes: int
    since: float
    said: Said
    until: float | None = None

    def is_overdue(self, now: float) -> bool:
        """Whether it was to be given back long ago."""
        return self.until is not None and now > self.until + OVERDUE_S


class TransferSlots:
    """At most `most_lanes` at once, and of those that have `most_bytes` before them together.

    A worker that has more than `most_bytes` on its own gets its lane when it is the only one. `opens_at`: nothing is
    granted before: workers may hold lanes that an earlier boss granted, and have not told of them yet.
    `holders`: the workers to which it granted them, as recorded; a lane that nobody granted is believed of no worker.
    """

    def __init__(
        self, say: Say, most_lanes: int, most_bytes: int, opens_at: float = 0.0, holders: Iterable[str] = ()
    ) -> None:
        self._say = say
        self._most_lanes = most_lanes
        self._most_bytes = most_bytes
        self._opens_at = opens_at
        self._count = 0
        self._granted_before = set(holders)
        self._granted: OrderedDict[str, int] = OrderedDict()
        """The last lane granted to each worker, until it gave it back: it may be lost and come back."""
        self.lanes: dict[str, Lane] = {}
        self.waiting: dict[str, Waiting] = {}
        """By worker, who came first is first."""

    def on_wanted(self, worker: str, wanted_bytes: int, now: float) -> None:
        """It has something to move. Who holds a lane gave it back before: messages come in their order."""
        self._forget(worker)
        self._wait(worker, wanted_bytes, now)

    def _forget(self, worker: str) -> None:
        """It holds no lane, as it says itself."""
        self.lanes.pop(worker, None)
        self._granted.pop(worker, None)
        self._granted_before.discard(worker)

    def _wait(self, worker: str, wanted_bytes: int, now: float) -> None:
        before = self.waiting.get(worker)
        self.waiting[worker] = Waiting(min(max(0, wanted_bytes), self._most_bytes), before.since if before else now)

    def on_ended(self, worker: str, number: int) -> None:
        """It gave a lane back."""
        lane = self.lanes.get(worker)
        if lane is not None and lane.number == number:
            self._forget(worker)

    def on_heartbeat(self, worker: str, session: str, heartbeat: Heartbeat, now: float) -> None:
        """What it holds and wants is what it says, but for a grant that it has not heard yet."""
        lane = self.lanes.get(worker)
        if lane is not None and lane.number != heartbeat.lane:
            if session == lane.said.session and heartbeat.orders_seen < lane.said.number:
                return  # on its way
            del self.lanes[worker]
            lane = None
        if heartbeat.lane:
            self.waiting.pop(worker, None)
            if lane is None:
                if not self._was_granted(worker, heartbeat.lane):
                    return
                self._count = max(self._count, heartbeat.lane)
                self.lanes[worker] = Lane(worker, heartbeat.lane, 0, now, Said(session, 0))
            elif lane.until is not None:
                self._tell(lane, now)
        else:
            self._forget(worker)
            if heartbeat.wants_bytes is None:
                self.waiting.pop(worker, None)
            else:
                self._wait(worker, heartbeat.wants_bytes, now)

    def _was_granted(self, worker: str, number: int) -> bool:
        """Whether this boss granted that lane to the worker, or an earlier one some lane: which, is not recorded."""
        if worker in self._granted_before and 0 < number <= MAX_LANE:
            self._granted_before.discard(worker)
            self._granted[worker] = number
        return self._granted.get(worker) == number

    def settle(self, workers: Container[str], now: float) -> None:
        """The end of a batch: who is gone holds and wants nothing; then grant."""
        for gone in [worker for worker in (*self.lanes, *self.waiting) if worker not in workers]:
            self.lanes.pop(gone, None)
            self.waiting.pop(gone, None)
        self.grant(now)

    def grant(self, now: float) -> None:
        """Give lanes to those who came first; where some still wait, call back those that are held longest."""
        if now < self._opens_at:
            return
        held = sum(lane.bytes for lane in self.lanes.values() if not lane.is_overdue(now))
        fresh: list[Lane] = []
        while self.waiting and len(self.lanes) < self._most_lanes:
            worker, (wanted_bytes, _) = next(iter(self.waiting.items()))
            if held and held + wanted_bytes > self._most_bytes:
                break  # nobody overtakes: who has much to move would never get its turn
            del self.waiting[worker]
            held += wanted_bytes
            self._count += 1
            self.lanes[worker] = Lane(worker, self._count, wanted_bytes, now, Said("", 0))
            self._granted[worker] = self._count
            self._granted.move_to_end(worker)
            if len(self._granted) > REMEMBERED:
                self._granted.popitem(last=False)
            fresh.append(self.lanes[worker])
        called_back = self._call_back(now)
        for lane in {lane.number: lane for lane in (*fresh, *called_back)}.values():
            if not self._tell(lane, now):
                del self.lanes[lane.worker]

    def _call_back(self, now: float) -> list[Lane]:
        """As many as there are workers that wait, those first that are held longest."""
        kept = [lane for lane in self.lanes.values() if lane.until is None]
        missing = len(self.waiting) - (len(self.lanes) - len(kept))
        if missing <= 0:
            return []
        called_back = sorted(kept, key=lambda lane: lane.since)[:missing]
        for lane in called_back:
            lane.until = max(now, lane.since + SLICE_S)
        return called_back

    def _tell(self, lane: Lane, now: float) -> bool:
        left_s = None if lane.until is None else max(0.0, lane.until - now)
        said = self._say(lane.worker, TransfersGranted(lane.number, left_s))
        # What was said of a lane again changes nothing of when it was granted: that number is the one to be seen.
        if said is not None and not lane.said.number:
            lane.said = said
        return said is not None

    def check(self) -> None:
        """Invariants: nobody holds and waits."""
        assert not self.lanes.keys() & self.waiting.keys(), "a worker that holds a lane waits for one"
