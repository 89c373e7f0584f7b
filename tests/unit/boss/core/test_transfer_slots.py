"""Lanes: who may move files over SSH. The boss's rule alone, then against a thousand real worker sides and a network
that loses messages."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st

from boss.core.workers.transfer_slots import SLICE_S, Said, TransferSlots
from ecloud.model import wire
from worker.core.events import TransfersChanged
from worker.core.transfer_slot import IDLE_S, Lane


class Rule:
    """The rule alone: its answers, in order."""

    def __init__(
        self, lanes: int = 2, most_bytes: int = 100, opens_at: float = 0.0, holders: tuple[str, ...] = ()
    ) -> None:
        self.said: list[tuple[str, int, float | None]] = []
        self.numbers: Counter[str] = Counter()
        self.permits = TransferSlots(self.say, lanes, most_bytes, opens_at, holders)

    def say(self, worker: str, message: wire.Message) -> Said:
        assert isinstance(message, wire.TransfersGranted)
        self.said.append((worker, message.lane, message.lives_s))
        self.numbers[worker] += 1
        return Said("s", self.numbers[worker])

    def wants(self, *workers: str, size: int = 0, now: float = 0.0) -> Rule:
        for worker in workers:
            self.permits.on_wanted(worker, size, now)
        return self.grants(now)

    def ends(self, worker: str, now: float = 0.0) -> Rule:
        self.permits.on_ended(worker, self.permits.lanes[worker].number)
        return self.grants(now)

    def beats(self, worker: str, lane: int = 0, wants: int | None = None, seen: int = 99, now: float = 0.0) -> Rule:
        heartbeat = wire.Heartbeat(seen, lane=lane, wants_bytes=wants)
        self.permits.on_heartbeat(worker, "s", heartbeat, now)
        return self.grants(now)

    def grants(self, now: float) -> Rule:
        self.permits.grant(now)
        self.permits.check()
        return self

    def says(self, *expected: tuple[str, int, float | None]) -> Rule:
        said, self.said = self.said, []
        assert said == list(expected)
        return self


def test_lanes_go_to_who_came_first_and_are_called_back_when_others_wait() -> None:
    rule = Rule().wants("a", "b").says(("a", 1, None), ("b", 2, None))
    rule.wants("c", now=4.0).says(("a", 1, SLICE_S - 4.0))
    rule.wants("d", now=4.0).says(("b", 2, SLICE_S - 4.0))
    rule.wants("e", now=5.0).says()
    # Two more wait, and the two lanes that are left are called back already or last from the start for one slice.
    rule.ends("b", 6.0).says(("c", 3, SLICE_S))
    rule.ends("a", 7.0).says(("d", 4, None))
    rule.ends("c", 8.0).says(("e", 5, None))


def test_who_has_much_to_move_waits_for_room_and_is_not_overtaken() -> None:
    rule = Rule(lanes=3).wants("a", size=60).says(("a", 1, None))
    rule.wants("much", size=500).says(("a", 1, SLICE_S))
    rule.wants("little", size=1).says()
    rule.ends("a", 1.0).says(("much", 2, SLICE_S))
    rule.grants(2.0).says()
    assert list(rule.permits.waiting) == ["little"]


def test_a_heartbeat_replaces_what_was_lost_on_the_way() -> None:
    rule = Rule(lanes=1).wants("a").says(("a", 1, None))
    rule.beats("a", lane=0, wants=5, seen=0).says()  # the grant is on its way
    rule.beats("a", lane=0, wants=5, seen=1).says(("a", 2, None))  # it was lost
    rule.beats("a", lane=2).says()
    rule.beats("b", wants=7, now=20.0).says(("a", 2, 0.0))  # its asking was lost
    rule.beats("a", lane=2, now=21.0).says(("a", 2, 0.0))  # told again: the calling back was lost
    rule.beats("a", lane=0).says(("b", 3, None))  # its giving back was lost
    rule.beats("b", lane=3).beats("c", wants=1).beats("c").says(("b", 3, SLICE_S))
    assert not rule.permits.waiting


def test_a_lane_ends_with_its_worker() -> None:
    rule = Rule(lanes=1).wants("a", "b", "c").says(("a", 1, SLICE_S))
    rule.permits.settle({"c"}, 1.0)
    rule.says(("c", 2, None))


def test_a_boss_that_restarts_learns_the_lanes_there_are_before_it_grants_more() -> None:
    rule = Rule(lanes=2, opens_at=10.0, holders=("b", "c")).wants("a", now=1.0).says()
    rule.beats("b", lane=7, now=2.0).beats("c", lane=9, now=3.0).says()
    rule.grants(10.0).says(("b", 7, SLICE_S - 8.0))
    rule.permits.on_ended("b", 7)
    rule.grants(11.0).says(("a", 10, None))


def test_a_lane_that_no_boss_granted_is_believed_of_no_worker() -> None:
    rule = Rule(lanes=2, opens_at=10.0, holders=("b",)).wants("a", now=1.0)
    rule.beats("x", lane=2**63 - 1, now=2.0).beats("b", lane=7, now=3.0).beats("y", lane=7, now=3.0)
    assert set(rule.permits.lanes) == {"b"}
    rule.grants(10.0).says(("a", 8, None))
    rule.beats("a", lane=9, now=11.0)
    assert "a" not in rule.permits.lanes, "it was granted another one"


class Peer:
    """A worker that has transfers to make, one after the other, each some seconds long."""

    def __init__(self, sea: Sea, name: str, transfers: int) -> None:
        self.sea, self.name, self.left = sea, name, transfers
        self.lane = Lane(lambda message: sea.to_boss(self, message))
        self.moves = False
        self.seen = 0
        self.first_at: float | None = None

    def turn(self) -> None:
        """What the loop of a worker does after each event."""
        for _ in range(2):
            self.lane.on_changed(TransfersChanged(self.left if not self.moves else 0, int(self.moves), self.left))
            self.lane.look(self.sea.now)
            if self.lane.is_open and self.left and not self.moves:
                self.moves = True
                self.left -= 1
                if self.first_at is None:
                    self.first_at = self.sea.now
                self.sea.after(self.sea.random.uniform(0.5, 4.0), self.moved)
        (self.sea.holding.add if self.moves or self.lane.number else self.sea.holding.discard)(self.name)
        if (at := self.lane.deadline) is not None:
            self.sea.after(max(0.0, at - self.sea.now) + 0.001, self.turn)

    def moved(self) -> None:
        self.moves = False
        self.turn()

    def hear(self, number: int, message: wire.TransfersGranted) -> None:
        if number > self.seen:
            self.seen = number
            self.lane.on_granted(message.lane, message.lives_s, self.sea.now)
            self.turn()

    def beat(self) -> None:
        self.sea.beat(self)
        self.sea.after(5.0, self.beat)


class Sea:
    """A boss's rule, its workers, and what is between them: late, and lost now and then."""

    def __init__(self, workers: int, lanes: int, transfers: int, loses: float, seed: int) -> None:
        self.random = random.Random(seed)
        self.loses = loses
        self.now = 0.0
        self._heap: list[tuple[float, int, object]] = []
        self._order = itertools.count()
        self.numbers: Counter[str] = Counter()
        self.permits = TransferSlots(self.to_worker, lanes, 1 << 60)
        self.messages = 0
        self.most = 0
        self.holding: set[str] = set()
        self.peers = {f"w{i}": Peer(self, f"w{i}", transfers) for i in range(workers)}
        for peer in self.peers.values():
            self.after(self.random.uniform(0.0, 1.0), peer.turn)
            self.after(self.random.uniform(0.0, 5.0), peer.beat)

    def after(self, seconds: float, action: object) -> None:
        heapq.heappush(self._heap, (self.now + seconds, next(self._order), action))

    def _travels(self, action: object) -> None:
        self.messages += 1
        if self.random.random() >= self.loses:
            self.after(0.02, action)

    def to_boss(self, peer: Peer, message: wire.Message) -> None:
        def arrive() -> None:
            if isinstance(message, wire.TransfersWanted):
                self.permits.on_wanted(peer.name, message.bytes, self.now)
            else:
                assert isinstance(message, wire.TransfersEnded)
                self.permits.on_ended(peer.name, message.lane)
            self._settle()

        self._travels(arrive)

    def beat(self, peer: Peer) -> None:
        heartbeat = wire.Heartbeat(peer.seen, lane=peer.lane.number, wants_bytes=peer.lane.wants_bytes)

        def arrive() -> None:
            self.permits.on_heartbeat(peer.name, "s", heartbeat, self.now)
            self._settle()

        # A heartbeat's answer is a message as well: all that was said before it has been seen or is lost.
        self.numbers[peer.name] += 1
        number = self.numbers[peer.name]
        self._travels(arrive)
        self._travels(lambda: setattr(peer, "seen", max(peer.seen, number)))
        self.messages -= 2

    def _settle(self) -> None:
        self.permits.settle(self.peers, self.now)
        self.permits.check()

    def to_worker(self, worker: str, message: wire.Message) -> Said:
        assert isinstance(message, wire.TransfersGranted)
        granted, peer = message, self.peers[worker]
        self.numbers[worker] += 1
        number = self.numbers[worker]
        self._travels(lambda: peer.hear(number, granted))
        return Said("s", number)

    def sail(self, until: float) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()  # type: ignore[operator]
            self.most = max(self.most, len(self.holding))
        self.now = until


def test_a_thousand_workers_share_eight_lanes() -> None:
    sea = Sea(workers=1000, lanes=8, transfers=1, loses=0.0, seed=1)
    sea.sail(600.0)
    assert sea.most <= 8
    assert all(peer.left == 0 for peer in sea.peers.values())
    assert sea.messages <= 4 * 1000, "asking, a grant, at most one calling back, giving back"


def test_no_worker_starves_although_all_want_more_than_there_is() -> None:
    sea = Sea(workers=200, lanes=8, transfers=1000, loses=0.0, seed=2)
    sea.sail(2 * 200 / 8 * (SLICE_S + 5.0))
    done = [1000 - peer.left for peer in sea.peers.values()]
    assert min(done) >= 3, "each had its turn"
    assert max(done) <= 6 * min(done), "and no worker had much more than others"
    assert sea.most <= 8


def test_messages_that_are_lost_cost_time_and_nothing_else() -> None:
    for seed in range(3):
        sea = Sea(workers=100, lanes=8, transfers=3, loses=0.3, seed=seed)
        sea.sail(3600.0)
        assert sea.most <= 8
        assert all(peer.left == 0 for peer in sea.peers.values())
        sea.loses = 0.0
        sea.sail(3600.0 + IDLE_S + 20.0)
        assert not sea.permits.lanes, "idle lanes are given back"
        assert not sea.permits.waiting


@given(
    sizes=st.lists(st.integers(0, 150), min_size=1, max_size=1000),
    lanes=st.integers(1, 16),
    order=st.randoms(use_true_random=False),
)
@example(sizes=[0] * 1000, lanes=8, order=random.Random(1))
@example(sizes=[1, 150] * 500, lanes=8, order=random.Random(2))
@settings(max_examples=30, deadline=None)
def test_all_that_start_at_once_are_served_in_their_order_and_never_more_than_there_is_room_for(
    sizes: list[int], lanes: int, order: random.Random
) -> None:
    rule = Rule(lanes=lanes, most_bytes=100)
    for number, size in enumerate(sizes):
        rule.permits.on_wanted(f"w{number}", size, 0.0)
    rule.grants(0.0)
    served: list[str] = []
    while rule.permits.lanes or rule.permits.waiting:
        held = list(rule.permits.lanes.values())
        assert 0 < len(held) <= lanes, "a worker always has a turn"
        assert len(held) == 1 or sum(lane.bytes for lane in held) <= 100
        served += [lane.worker for lane in held if lane.worker not in served[-lanes:] and lane.worker not in served]
        rule.ends(order.choice(held).worker)
    assert sorted(served, key=lambda name: int(name[1:])) == [f"w{number}" for number in range(len(sizes))]
    granted = [lane for _, lane, _ in rule.said]
    first_words = {name: lane for name, lane, _ in reversed(rule.said)}
    assert max(granted) == len(sizes), "one lane each"
    assert [first_words[f"w{number}"] for number in range(len(sizes))] == list(range(1, len(sizes) + 1))
