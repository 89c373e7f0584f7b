"""Ready tasks without a worker, in groups of one run, priority and shape."""

from __future__ import annotations

from collections import deque

import msgspec

from boss.core.model.graph import Node, Shape
from ecloud.model.tasks import Retries, TaskState

_READY = TaskState.READY
_VOID = Node(0, 0, "", TaskState.CANCELLED, Shape((), 0.0), Retries(), "")
"""Replaces an entry that was taken from the middle of a group."""


class Group(msgspec.Struct, eq=False):
    """Ready tasks of one run, priority and shape, in order. Entries may be void (cancelled, assigned), which is checked
    when they are taken."""

    priority: int
    run_no: int
    shape: Shape
    nodes: deque[Node]
    apart: bool = False
    """Each of these tasks runs alone on a worker (`Suspects`)."""

    def is_due(self, node: Node) -> bool:
        """Whether the entry is not void."""
        return (
            node.state is _READY
            and not node.assigned
            and node.priority == self.priority
            and node.shape is self.shape
            and node.apart == self.apart
        )

    def take(self, index: int) -> Node:
        """Take the entry at `index`, which is placed. A void entry replaces an entry in the middle, so that the
        positions of the others stay the same while the first entry stays."""
        if not index:
            return self.nodes.popleft()
        node, self.nodes[index] = self.nodes[index], _VOID
        return node


class ReadyTasks:
    """All ready tasks, grouped."""

    def __init__(self) -> None:
        self.groups: dict[tuple[int, int, Shape, bool], Group] = {}
        self.held_runs: set[int] = set()

    def put(self, node: Node) -> None:
        """Add a task that became ready."""
        key = (node.priority, node.run_no, node.shape, node.apart)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(node.priority, node.run_no, node.shape, deque(), node.apart)
        group.nodes.append(node)

    def count(self, node: Node) -> int:
        """Number of tasks in this task's group; includes void entries."""
        group = self.groups.get((node.priority, node.run_no, node.shape, False))
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
        self.groups.pop((group.priority, group.run_no, group.shape, group.apart), None)
        return None

    def placeable(self) -> list[Group]:
        """Groups with tasks to place, of runs that are not held."""
        return [
            group
            for group in tuple(self.groups.values())
            if group.run_no not in self.held_runs and self.first(group) is not None
        ]
