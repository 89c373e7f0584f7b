"""Decides which ready task goes to which worker. The cost of a batch depends on the number of assignments, not of
waiting tasks.

Order: priority first; within a priority the run that holds the fewest CPUs; within a run the order of the list. Tasks
that can start immediately are placed first, then short queues ahead, then chains (waiting tasks that follow the
attempts of their dependencies at one worker). A large task without room gets a worker reserved, so that small tasks do
not starve it.

A task prefers a worker that has its big inputs, if that worker has room now; otherwise the next worker in turn may take
a task from close behind whose inputs it has. No worker and no task waits for this, and a task is overtaken a bounded
number of times.

A worker whose machine ends gets no task that states a longer run time than the worker has left (`lifetimes`). Tasks
behind it that state less go first there.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from boss.core.model.config import BossConfig
from boss.core.model.fleet import Fleet
from boss.core.model.graph import Inputs, Node, Shape
from boss.core.model.ready_tasks import Bucket, Group, ReadyTasks
from boss.core.model.runtime_estimates import Runtimes
from boss.core.model.worker import Attempt, Worker, covers
from boss.core.placement.capacity_index import REFILLED_BELOW, CapacityIndex
from boss.core.placement.lifetimes import chained_left_s, queued_left_s
from boss.core.tasks.chains import Chains
from ecloud.model.tasks import Resources, fits
from ecloud.model.transfer_status import BIG_INPUT_BYTES

SHORT = 8
"""A task that is expected to take longer than this many `ahead_s` is not queued ahead: it would wait behind a slow
one."""
HOLDERS = 16
"""How many of the workers that have a task's inputs are checked for free resources."""
BEHIND = 64
"""How many entries, from the first, are searched for a task whose inputs a worker has. No task is overtaken by more
tasks than this."""
LONG_LOOKED_AT = 256
"""How many runs one pass searches for a task that is short enough to be queued ahead."""
CPUS_ROUNDED = 0.001
"""A group whose free CPUs are short by less than this is compared exactly."""


Assign = Callable[[Worker, Node, float], None]
"""Make an attempt of the node on the worker. The float is its expected run time in seconds."""
AssignChained = Callable[[Worker, Node, float, tuple[tuple[int, int], ...], Attempt | None], None]
"""The same before its dependencies have ended: the attempts that it waits for there, and the attempt that it
replaces."""
Refuses = Callable[[Worker, int], bool]


class Placement:
    """Places ready tasks on workers with room. Owns the index, and no other state beyond one call of `place`."""

    def __init__(self, ready: ReadyTasks, fleet: Fleet, runtimes: Runtimes, config: BossConfig) -> None:
        self._ready = ready
        self._fleet = fleet
        self._runtimes = runtimes
        self._config = config
        self.capacity_index = CapacityIndex(fleet, config)
        self._side_by_side: dict[Shape, int] = {}
        self.reserved: dict[str, Group] = {}
        """Workers reserved since the last `place`, by name, with the group whose tasks wait for them."""
        self._hopeless: set[tuple[Shape, float]] = set()
        """Shapes that found no room in this pass, each with a class of stated run times."""
        self.now = 0.0
        """The time of this call."""
        self.some_end = False
        """Whether the machine of any worker ends at a known time."""

    def place(self, assign: Assign, refuses: Refuses, now: float) -> None:
        """Assign all tasks that fit. `refuses(worker, run_no)`: whether the worker may not have tasks of this run."""
        self.now, self.some_end = now, bool(self._fleet.ending)
        self.capacity_index.settle()
        self._side_by_side = {}
        self.reserved = {}
        by_priority: dict[int, list[Bucket]] = {}
        for bucket in self._ready.buckets.values():
            by_priority.setdefault(bucket.priority, []).append(bucket)
        for in_slots in (True, False):
            self._hopeless.clear()
            for priority in sorted(by_priority, reverse=True):
                self._place_priority(by_priority[priority], in_slots, assign, refuses)
                if in_slots:  # free resources changed; queues ahead are checked in turn
                    self.capacity_index.settle()

    def _place_priority(self, buckets: list[Bucket], in_slots: bool, assign: Assign, refuses: Refuses) -> None:
        held = self._fleet.held_cpus
        # (CPUs that the run holds, run, oldest task): the fair order; a group comes back until it finds no room.
        queue: list[_Entry] = []
        for bucket in buckets:
            _Turns(self, self._ready, bucket, held, queue, in_slots, refuses).begin()
        while queue:
            _, run_no, _, group, room, turns = heapq.heappop(queue)
            turns.go_on(run_no)
            alone = not queue
            while (node := self._ready.first(group)) is not None:
                worker = None
                # Ask for the run time first: an estimate counts as believed from its first use.
                wanted = in_slots or (self.is_short(node) and not group.apart)
                if wanted and (group.shape, group.least_s) not in self._hopeless:
                    worker = room.next_worker()
                    if worker is None and not room.refused:
                        self._give_up(group)
                if worker is None:
                    self._pass_over(group, turns, in_slots, wanted, refuses)
                    break
                index = room.index
                if index:
                    node = group.nodes[index]
                if node.inputs is not None:
                    worker, index = room.nearer(worker, node)
                node = group.take(index) if index != room.index else group.take_out(index)
                assign(worker, node, self.guess_s(node))
                if not alone:
                    following = self._ready.first(group)
                    if following is not None:
                        entry = (held.get(run_no, 0.0), run_no, following.task_no, group, room, turns)
                        heapq.heappush(queue, entry)
                    break

    def _pass_over(self, group: Group, turns: _Turns, in_slots: bool, wanted: bool, refuses: Refuses) -> None:
        """Nothing of this group is placed now. The other groups of its bucket get their turn only if they may fare
        better."""
        may_fare_better = (group.shape, group.least_s) not in self._hopeless
        if in_slots:
            may_fare_better |= self._reserve(group, refuses)
        elif not wanted:
            turns.long_ones += 1
            may_fare_better &= turns.long_ones < LONG_LOOKED_AT
        if not may_fare_better:
            turns.stop()

    # --- chains ----------------------------------------------------------------------------------

    def place_chained(self, chains: Chains, assign: AssignChained, refuses: Refuses, now: float) -> None:
        """After `place`: chain waiting tasks to their dependencies if a worker's queue ahead has room.

        Ready tasks go first: those that found no room keep their claim against chains of lower priority, and against
        chains of a run that holds more CPUs.
        """
        self.now, self.some_end = now, bool(self._fleet.ending)
        touched, chains.touched = chains.touched, {}
        for name in touched:
            worker = self._fleet.workers.get(name)
            if worker is None or not worker.takes_tasks or not worker.row.hello.chains:
                continue
            if worker.ahead_s < REFILLED_BELOW * self._config.ahead_s and self.may_wait_at(worker):
                self._chain(worker, chains, assign, refuses)
        chains.touched.clear()  # these assignments were checked already

    def _chain(self, worker: Worker, chains: Chains, assign: AssignChained, refuses: Refuses) -> None:
        candidates = chains.candidates(worker)
        while candidates.found and self.may_wait_at(worker):
            node, predecessors = candidates.found.popleft()
            if not self.is_short(node) or self._must_wait(worker, node, refuses):
                continue
            if self.some_end and node.needs_s and chained_left_s(worker, predecessors, self.now) < node.needs_s:
                continue
            heir_of = next((one for one in predecessors if not one.has_heir and covers(one.shape, node.shape)), None)
            if heir_of is None and self._has_room_elsewhere(worker, node):
                continue  # it starts sooner there, once it is ready
            after = chains.after(predecessors)
            if after is not None:
                assign(worker, node, self.guess_s(node), after, heir_of)
                candidates.add(worker.held[(node.task_no, node.assigned)])

    def _has_room_elsewhere(self, worker: Worker, node: Node) -> bool:
        for free_group in self.capacity_index.groups:
            others = len(free_group.workers) - (worker.name in free_group.workers)
            if others and fits(free_group.free, node.shape.asks):
                if not (self.some_end and node.needs_s):
                    return True
                if any(node.needs_s <= other.left_s(self.now) for other in free_group.workers.values()):
                    return True
        return False

    def _must_wait(self, worker: Worker, node: Node, refuses: Refuses) -> bool:
        """Whether ready tasks go before this one at the worker, or the worker may not have it."""
        if not fits(worker.capacity, node.shape.asks) or refuses(worker, node.run_no):
            return True
        if node.run_no in self._ready.held_runs:
            return True
        keeper = self.reserved.get(worker.name)
        if keeper is not None and keeper.shape is not node.shape and keeper.priority >= node.priority:
            return True
        held = self._fleet.held_cpus
        mine = held.get(node.run_no, 0.0)
        for bucket in tuple(self._ready.buckets.values()):
            if bucket.priority < node.priority or not fits(worker.capacity, bucket.shape.asks):
                continue
            if bucket.least_s and bucket.least_s > worker.left_s(self.now):
                continue
            for group in self._ready.placeable_in(bucket):
                if bucket.priority > node.priority:
                    return True
                if mine <= 0.0:
                    break
                if group.run_no != node.run_no and held.get(group.run_no, 0.0) < mine:
                    return True
        return False

    # --- room ------------------------------------------------------------------------------------

    def _give_up(self, group: Group) -> None:
        """Note that tasks like these, and all that ask for at least as much for at least as long, have no room in this
        pass: room only shrinks."""
        least_s = group.least_s if self.some_end else 0.0
        for _, shape, _, other_s in self._ready.buckets:
            if other_s >= least_s and covers(shape, group.shape):
                self._hopeless.add((shape, other_s))

    def _reserve(self, group: Group, refuses: Refuses) -> bool:
        """Reserve the worker that will have room soonest for a task that found none; once per shape and call. Returns
        whether none was reserved since workers may not run this run's tasks."""
        shape, reserved = group.shape, self.reserved
        for name, other in reserved.items():
            if other.shape is shape and other.apart == group.apart and self._may_outlive(self.worker(name), group):
                return False
        best, best_share, refused = "", -1.0, False
        for free_group in self.capacity_index.groups:
            share = _share(free_group.free, shape, best_share)
            if share <= best_share or not fits(free_group.kind.capacity, shape.asks):
                continue
            for name, worker in free_group.workers.items():
                if name in reserved:
                    continue
                if refuses(worker, group.run_no):
                    refused = True
                    continue
                if self.some_end and not self._may_outlive(worker, group):
                    refused = refused or group.least_s <= worker.left_s(self.now)
                    continue
                best, best_share = name, share
                break
        if best:
            reserved[best] = group
            worker = self._fleet.workers[best]
            for name in self._fleet.machine_of(worker).workers if worker.shares_machine else ():
                reserved.setdefault(name, group)  # else small tasks of these take what it waits for
        return refused and not best

    def _may_outlive(self, worker: Worker, group: Group) -> bool:
        """Whether the worker lives long enough for one of these tasks, once it has room."""
        return not (self.some_end and group.least_s) or group.first_within(queued_left_s(worker, self.now)) is not None

    def worker(self, name: str) -> Worker:
        """The worker of that name."""
        return self._fleet.workers[name]

    def guess_s(self, node: Node) -> float:
        """Expected run time in seconds: what the user stated, what was learned, or one second."""
        side_by_side = self._side_by_side.get(node.shape)
        if side_by_side is None:
            side_by_side = self._side_by_side[node.shape] = self.capacity_index.side_by_side(node.shape)
        return self._runtimes.guess_s(node, side_by_side)

    def is_short(self, node: Node) -> bool:
        """Whether it may be queued behind another."""
        return self.guess_s(node) <= SHORT * self._config.ahead_s

    def may_wait_at(self, worker: Worker) -> bool:
        """Whether another short task that the worker could run may be queued there beyond what runs. Never on a shared
        machine: the worker would start it without asking whether the machine has room."""
        config = self._config
        has_room = worker.ahead_s < config.ahead_s and worker.waiting < config.ahead_max
        return has_room and not worker.slow and not worker.alone and not worker.shares_machine


def _share(free: Resources, shape: Shape, least: float) -> float:
    """How often the scarcest resource that a task of `shape` asks for is free. Stops early, with a number of at most
    `least`, if the answer is not above `least`."""
    share = math.inf if shape.asks else 1.0
    for name, amount in shape.asks:
        part = free.get(name, 0.0) / amount
        if part < share:
            share = part
            if share <= least:
                break
    return share


def _is_empty(worker: Worker) -> bool:
    """Whether it can be given all of itself, as a task that runs alone takes: also from the machine that it shares."""
    return not worker.held and (not worker.shares_machine or fits(worker.free, worker.capacity.items()))


_Entry = tuple[float, int, int, Group, "_Room", "_Turns"]
"""CPUs that the run holds, run, first task, and what belongs to it."""


class _Turns:
    """Puts the groups of one bucket into the queue in fair order: those of runs that hold CPUs, which are few, at once;
    of the others, in the order of their runs, one at a time. Thousands of runs that find no room cost nothing."""

    def __init__(
        self,
        placement: Placement,
        ready: ReadyTasks,
        bucket: Bucket,
        held: Mapping[int, float],
        queue: list[_Entry],
        in_slots: bool,
        refuses: Refuses,
    ) -> None:
        self._placement = placement
        self._ready = ready
        self._bucket = bucket
        self._held = held
        self._queue = queue
        self._in_slots = in_slots
        self._refuses = refuses
        self._holding: set[int] = set()
        self._at = -1
        """The last run of those that hold nothing that had its turn; that of the one in the queue."""
        self._is_over = False
        self.long_ones = 0
        """Groups that were passed over because their first task takes long."""

    def begin(self) -> None:
        """Enqueue the first ones."""
        groups, held = self._bucket.groups, self._held
        few, many = (groups, held) if len(groups) < len(held) else (held, groups)
        for run_no in [run_no for run_no in few if run_no in many and held[run_no] > 0]:
            self._holding.add(run_no)
            self._enqueue(run_no)
        self._enqueue_next()

    def go_on(self, run_no: int) -> None:
        """The group of this run has its turn: enqueue the next one."""
        if run_no == self._at and not self._is_over:
            self._enqueue_next()

    def stop(self) -> None:
        """Enqueue no more groups."""
        self._is_over = True

    def _enqueue_next(self) -> None:
        run_no = self._bucket.after(self._at)
        while run_no is not None:
            self._at = run_no
            if run_no not in self._holding and self._enqueue(run_no) and self._held.get(run_no, 0.0) <= 0:
                return
            run_no = self._bucket.after(run_no)

    def _enqueue(self, run_no: int) -> bool:
        """Returns whether the run has a task to place."""
        group = self._bucket.groups[run_no]
        node = self._ready.first(group) if run_no not in self._ready.held_runs else None
        if node is None:
            return False
        room = _Room(self._placement, group, self._placement.reserved, self._in_slots, self._refuses)
        heapq.heappush(self._queue, (self._held.get(run_no, 0.0), run_no, node.task_no, group, room, self))
        return True


class _Room:
    """Workers with room for one group, in turn: emptiest first; those with rare resources that the group does not need
    last. Checks no more workers than necessary."""

    def __init__(
        self, placement: Placement, group: Group, reserved: dict[str, Group], in_slots: bool, refuses: Refuses
    ) -> None:
        self._placement = placement
        self._group = group
        self._reserved = reserved
        self._in_slots = in_slots
        self._refuses = refuses
        self._turn: deque[Worker] = deque()
        """Workers that had their turn and may still have room."""
        self._fresh: Iterator[Worker] | None = None
        self.refused = False
        """Whether some workers have room but may not run this run's tasks, or end too soon, or are reserved for others,
        which may queue there. (A group with a reserved worker found no room, so this does not matter to it.)"""
        self._is_compared = placement.some_end and group.least_s > 0.0
        """Whether the stated run times are compared with the time that workers have left."""
        self.index = 0
        """Index of the first task for which the worker that was returned last lives long enough."""

    def next_worker(self) -> Worker | None:
        """The next worker in turn that still has room; None if none has."""
        if self._fresh is None:
            self._fresh = self._in_order()
        run_no, turn = self._group.run_no, self._turn
        for worker in self._fresh:
            if self._reserved and self._is_kept(worker):
                continue
            if self._refuses(worker, run_no) or (self._group.apart and not _is_empty(worker)):
                self.refused = True
                continue
            if self._is_compared and not self._find(worker):
                continue
            turn.append(worker)
            return worker
        while turn:
            worker = turn[0]
            if self._has_room(worker) and (not self._is_compared or self._find(worker)):
                turn.rotate(-1)
                return worker
            turn.popleft()
        return None

    def _find(self, worker: Worker) -> bool:
        """Find the first task for which this worker lives long enough."""
        left_s = self._left_s(worker)
        if left_s < self._group.least_s:
            return False
        index = self._group.first_within(left_s)
        if index is None or not (self._in_slots or self._placement.is_short(self._group.nodes[index])):
            self.refused = True
            return False
        self.index = index
        return True

    def _left_s(self, worker: Worker) -> float:
        now = self._placement.now
        return worker.left_s(now) if self._in_slots else queued_left_s(worker, now)

    def _outlives(self, worker: Worker, node: Node) -> bool:
        return not self._is_compared or node.needs_s <= self._left_s(worker)

    def nearer(self, worker: Worker, node: Node) -> tuple[Worker, int]:
        """Choose by inputs, when `worker` could take `node`, the task at `index`. Returns another worker with room that
        has more of its inputs, and `index`; or `worker` and the index of a later task whose inputs it has, if it has
        none of this task's; else `worker` and `index`."""
        inputs = node.inputs
        assert inputs is not None
        for part in inputs.parts:
            if worker.name not in part.holders:
                break
        else:
            return worker, self.index
        if inputs.is_small:
            return worker, self.index
        unknown = 0 if self._in_slots else BIG_INPUT_BYTES
        wanted, held = inputs.big_bytes(unknown), inputs.held_bytes(worker.name, unknown)
        if held < wanted:
            other = self._holder(worker, node, unknown, held, wanted)
            if other is not None:
                return other, self.index
        if not worker.fetched or inputs.held_bytes(worker.name, BIG_INPUT_BYTES):
            return worker, self.index
        return worker, self._behind(worker)

    def _holder(self, worker: Worker, node: Node, unknown: int, held: int, wanted: int) -> Worker | None:
        """Among the workers that have some of its inputs, the one with room that has most, and more than `held`."""
        inputs = node.inputs
        assert inputs is not None
        index, needs = self._placement.capacity_index, {name for name, _ in self._group.shape.asks}
        rare = len((index.rare_at(worker.name) or frozenset()) - needs)
        best: Worker | None = None
        for part in inputs.parts:
            if not part.worth(unknown):
                continue
            for name in itertools.islice(part.holders, HOLDERS):
                here = inputs.held_bytes(name, unknown)
                offers = index.rare_at(name) if here > held else None
                if offers is not None and len(offers - needs) <= rare:
                    other = self._placement.worker(name)
                    may = self._has_room(other) and not self._refuses(other, self._group.run_no)
                    if may and self._outlives(other, node):
                        if here == wanted:
                            return other
                        best, held = other, here
        return best

    def _behind(self, worker: Worker) -> int:
        """The index of a task close behind the first of which the worker has all inputs, or else some; `index` if there
        is none."""
        some = self.index
        has: dict[Inputs, int] = {}
        for index, later in enumerate(itertools.islice(self._group.nodes, BEHIND)):
            inputs = later.inputs
            if inputs is None:
                continue
            held = has.get(inputs)
            if held is None:
                here = inputs.held_bytes(worker.name, BIG_INPUT_BYTES)
                held = has[inputs] = 0 if not here else 2 if here == inputs.big_bytes(BIG_INPUT_BYTES) else 1
            may_take = held and (held == 2 or some == self.index) and self._group.is_due(later)
            may_take = may_take and self._outlives(worker, later)
            if may_take and (self._in_slots or self._placement.is_short(later)):
                if held == 2:
                    return index
                some = index
        return some

    def _in_order(self) -> Iterator[Worker]:
        """Workers that had room when this pass began and still have it, including those reserved for others."""
        shape, needs = self._group.shape, {name for name, _ in self._group.shape.asks}
        if self._in_slots:
            cpus = next((amount for name, amount in shape.asks if name == "cpus"), 0.0)
            candidates = [
                (len(free_group.kind.rare - needs), -free_group.cpus, number, free_group.workers)
                for number, free_group in enumerate(self._placement.capacity_index.groups)
                if free_group.cpus >= cpus - CPUS_ROUNDED and fits(free_group.free, shape.asks)
            ]
        else:
            candidates = [
                (len(kind.rare - needs), 0.0, number, kind.hungry)
                for number, kind in enumerate(self._placement.capacity_index.kinds)
                if kind.hungry and fits(kind.capacity, shape.asks)
            ]
        candidates.sort()
        # Groups iterate over the same workers, most of which other groups have filled meanwhile.
        may_wait_at = self._placement.may_wait_at
        for *_, workers in candidates:
            for worker in workers.values():
                if fits(worker.free, shape.asks) if self._in_slots else may_wait_at(worker):
                    yield worker

    def _is_kept(self, worker: Worker) -> bool:
        """Whether the worker is reserved for another group that goes before this one."""
        keeper = self._reserved.get(worker.name)
        same = keeper is not None and keeper.shape is self._group.shape and keeper.apart == self._group.apart
        if keeper is None or same or keeper.priority < self._group.priority:
            return False
        self.refused = self.refused or not self._in_slots
        return True

    def _has_room(self, worker: Worker) -> bool:
        if (self._reserved and self._is_kept(worker)) or (self._group.apart and not _is_empty(worker)):
            return False
        if self._in_slots:
            return fits(worker.free, self._group.shape.asks)
        return self._placement.may_wait_at(worker) and fits(worker.capacity, self._group.shape.asks)
