"""Transfer slots (lanes): which workers may transfer files over SSH now, one lane each, so that the datastore is not
overloaded.

Owns the granted lanes and the waiting workers, in order of request. Receives the workers' reports, and answers through
`say`; knows nothing of tasks. docs/protocol.md describes the messages.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from typing import NamedTuple

import msgspec

from ecloud.model.wire import Heartbeat, Message, TransfersGranted

SLICE_S = 10.0
"""A lane lasts at least this long even if others wait: a connection takes about 0.2 s to open."""
OVERDUE_S = 60.0
"""This long after a lane was called back, its granted bytes no longer count against others: its worker may have claimed
any number."""
MAX_LANE = 2**53
"""Highest lane number. Each new lane adds one."""
REMEMBERED = 10_000
"""Lanes of absent workers that are remembered: those may return and still hold them."""


class Said(NamedTuple):
    """Where a message was sent: a worker's session, and the message's number in it."""

    session: str
    number: int


Say = Callable[[str, Message], "Said | None"]
"""Sends to a worker; returns None if it cannot be reached now."""


class Waiting(NamedTuple):
    """A worker without a lane: the bytes that it has to transfer, if known, and since when it waits."""

    bytes: int
    since: float


class Lane(msgspec.Struct, eq=False):
    """A worker's permission to hold a connection. `until`: when it must stop beginning transfers; None while no worker
    waits."""

    worker: str
    number: int
    bytes: int
    since: float
    said: Said
    until: float | None = None

    def is_overdue(self, now: float) -> bool:
        """Whether it should have been returned long ago."""
        return self.until is not None and now > self.until + OVERDUE_S


class TransferSlots:
    """Grants at most `most_lanes` together, to workers that have at most `most_bytes` to transfer together.

    A worker with more than `most_bytes` of its own gets a lane when no other worker has one. `opens_at`: no grant
    before this time, because workers may hold lanes of an earlier boss and have not reported them yet. `holders`:
    workers with recorded lanes; reports of lanes that were never granted are ignored.
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
        """The last lane granted to each worker, until it was returned: the worker may be lost and come back."""
        self.lanes: dict[str, Lane] = {}
        self.waiting: dict[str, Waiting] = {}
        """By worker, in order of request."""

    def on_wanted(self, worker: str, wanted_bytes: int, now: float) -> None:
        """The worker has files to transfer. It returned its earlier lane, if any, before: messages arrive in order."""
        self._forget(worker)
        self._wait(worker, wanted_bytes, now)

    def _forget(self, worker: str) -> None:
        """The worker reports that it holds no lane."""
        self.lanes.pop(worker, None)
        self._granted.pop(worker, None)
        self._granted_before.discard(worker)

    def _wait(self, worker: str, wanted_bytes: int, now: float) -> None:
        before = self.waiting.get(worker)
        self.waiting[worker] = Waiting(min(max(0, wanted_bytes), self._most_bytes), before.since if before else now)

    def on_ended(self, worker: str, number: int) -> None:
        """The worker returned a lane."""
        lane = self.lanes.get(worker)
        if lane is not None and lane.number == number:
            self._forget(worker)

    def on_heartbeat(self, worker: str, session: str, heartbeat: Heartbeat, now: float) -> None:
        """Take the worker's lane and wish from its report, unless a grant is still in transit."""
        lane = self.lanes.get(worker)
        if lane is not None and lane.number != heartbeat.lane:
            if session == lane.said.session and heartbeat.orders_seen < lane.said.number:
                return  # in transit
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
        """Whether this boss granted that lane to the worker, or an earlier boss granted it some lane (its number is not
        recorded)."""
        if worker in self._granted_before and 0 < number <= MAX_LANE:
            self._granted_before.discard(worker)
            self._granted[worker] = number
        return self._granted.get(worker) == number

    def settle(self, workers: Container[str], now: float) -> None:
        """At the end of a batch: drop absent workers, then grant."""
        for gone in [worker for worker in (*self.lanes, *self.waiting) if worker not in workers]:
            self.lanes.pop(gone, None)
            self.waiting.pop(gone, None)
        self.grant(now)

    def grant(self, now: float) -> None:
        """Grant lanes in order of request; if some still wait, call back the lanes that were held longest."""
        if now < self._opens_at:
            return
        held = sum(lane.bytes for lane in self.lanes.values() if not lane.is_overdue(now))
        fresh: list[Lane] = []
        while self.waiting and len(self.lanes) < self._most_lanes:
            worker, (wanted_bytes, _) = next(iter(self.waiting.items()))
            if held and held + wanted_bytes > self._most_bytes:
                break  # no overtaking: a worker with many bytes would never get its turn
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
        """Call back as many lanes as there are waiting workers, those held longest first."""
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
        # Repeating a lane's message does not change when it was granted: compare with the first number.
        if said is not None and not lane.said.number:
            lane.said = said
        return said is not None

    def check(self) -> None:
        """Invariants: no worker both holds a lane and waits."""
        assert not self.lanes.keys() & self.waiting.keys(), "a worker that holds a lane waits for one"
