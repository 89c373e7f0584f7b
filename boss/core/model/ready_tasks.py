"""Ready tasks without a worker, in groups of one run, priority, shape and class of stated run times."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator

import msgspec

from boss.core.model.graph import COMPARED_S, Node, Shape
from ecloud.model.tasks import Retries, TaskState

_READY = TaskState.READY
_VOID = Node(0, 0, "", TaskState.CANCELLED, Shape((), 0.0, {}), Retries(), "")
"""Replaces an entry that was taken from the middle of a group."""


def least_needed_s(needs_s: float) -> float:
    """The class of a stated run time: its lower bound in seconds, half the upper one; 0 if none is compared."""
    return math.ldexp(COMPARED_S, math.frexp(needs_s / COMPARED_S)[1] - 1) if needs_s else 0.0


class Group(msgspec.Struct, eq=False):
    """Ready tasks of one run, priority, shape and class of stated run times, in order. Entries may be void (cancelled,
    assigned), which is checked when they are taken."""

    priority: int
    run_no: int
    shape: Shape
    nodes: deque[Node]
    apart: bool = False
    """Each of these tasks runs alone on a worker (`Suspects`)."""
    least_s: float = 0.0
    """A worker must have this many seconds left to get any of these; it may need up to twice as many."""
    shortest_s: float = math.inf
    """None of these needs less than this."""

    def is_due(self, node: Node) -> bool:
        """Whether the entry is not void."""
        return (
            node.state is _READY
            and not node.assigned
            and node.priority == self.priority
            and node.shape is self.shape
            and node.apart == self.apart
        )

    def first_within(self, left_s: float) -> int | None:
        """Index of the first entry for which a worker that lives for `left_s` lives long enough; None if there is
        none."""
        if left_s < self.shortest_s:
            return None
        shortest_s = math.inf
        for index, node in enumerate(self.nodes):
            if self.is_due(node):
                if node.needs_s <= left_s:
                    return index
                shortest_s = min(shortest_s, node.needs_s)
        self.shortest_s = shortest_s
        return None

    def take(self, index: int) -> Node:
        """Take the entry at `index`, which is placed. A void entry replaces an entry in the middle, so that the
        positions of the others stay the same while the first entry stays."""
        if not index:
            return self.nodes.popleft()
        node, self.nodes[index] = self.nodes[index], _VOID
        return node

    def take_out(self, index: int) -> Node:
        """Take the entry at `index`, and close the gap: entries before it may wait for long."""
        node = self.nodes[index]
        del self.nodes[index]
        return node


class Bucket(msgspec.Struct, eq=False):
    """Groups of one priority, shape, `apart` and `least_s`, by run. `run_nos`: their runs in ascending order."""

    priority: int
    shape: Shape
    apart: bool
    least_s: float
    groups: dict[int, Group]
    run_nos: list[int]

    def after(self, run_no: int) -> int | None:
        """The next run with a group here; None if there is none."""
        index = bisect_right(self.run_nos, run_no)
        return self.run_nos[index] if index < len(self.run_nos) else None


class ReadyTasks:
    """All ready tasks, in buckets of groups: thousands of runs whose tasks ask for the same are one bucket."""

    def __init__(self) -> None:
        self.buckets: dict[tuple[int, Shape, bool, float], Bucket] = {}
        self.held_runs: set[int] = set()

    def put(self, node: Node) -> None:
        """Add a task that became ready."""
        least_s = least_needed_s(node.needs_s) if node.needs_s else 0.0
        key = (node.priority, node.shape, node.apart, least_s)
        bucket = self.buckets.get(key)
        if bucket is None:
            bucket = self.buckets[key] = Bucket(*key, {}, [])
        group = bucket.groups.get(node.run_no)
        if group is None:
            group = Group(node.priority, node.run_no, node.shape, deque(), node.apart, least_s)
            bucket.groups[node.run_no] = group
            insort(bucket.run_nos, node.run_no)
        group.nodes.append(node)
        if node.needs_s < group.shortest_s:
            group.shortest_s = node.needs_s

    def count(self, node: Node) -> int:
        """Number of tasks in this task's group; includes void entries."""
        bucket = self.buckets.get((node.priority, node.shape, False, least_needed_s(node.needs_s)))
        group = bucket.groups.get(node.run_no) if bucket is not None else None
        return len(group.nodes) if group is not None else 0

    def hold(self, run_no: int) -> None:
        """Do not place tasks of this run."""
        self.held_runs.add(run_no)

    def release(self, run_no: int) -> None:
        """Place this run's tasks again."""
        self.held_runs.discard(run_no)

    def first(self, group: Group) -> Node | None:
        """The first entry that is still ready and not assigned; drops void entries before it. Removes the group if
        empty."""
        nodes = group.nodes
        while nodes:
            node = nodes[0]
            if group.is_due(node):
                return node
            nodes.popleft()
        self._remove(group)
        return None

    def _remove(self, group: Group) -> None:
        key = (group.priority, group.shape, group.apart, group.least_s)
        bucket = self.buckets.get(key)
        if bucket is None or bucket.groups.get(group.run_no) is not group:
            return
        del bucket.groups[group.run_no], bucket.run_nos[bisect_left(bucket.run_nos, group.run_no)]
        if not bucket.groups:
            del self.buckets[key]

    def placeable(self) -> list[Group]:
        """Groups with tasks to place, of runs that are not held."""
        return [group for bucket in tuple(self.buckets.values()) for group in self.placeable_in(bucket)]

    def placeable_in(self, bucket: Bucket) -> Iterator[Group]:
        """The same of one bucket, in the order of runs."""
        run_no = bucket.after(-1)
        while run_no is not None:
            group = bucket.groups[run_no]
            if run_no not in self.held_runs and self.first(group) is not None:
                yield group
            run_no = bucket.after(run_no)
