"""Chained attempts: if one worker holds attempts of all unfinished dependencies of a waiting task, the boss may give
the task to that worker now.

Finds such tasks when a worker has room, from its attempts; remembers only which workers to check. `placement` decides
about room and fairness. `docs/protocol.md`, "Chained attempts", has the rules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice

from boss.core.model.graph import Node
from boss.core.model.rows import MAKES_RESULTS, MAKES_UNLESS_THERE
from boss.core.model.worker import Attempt, Worker
from ecloud.model.tasks import AttemptState, Condition, TaskState

MOST_AFTER = 32
"""Maximum attempts that an order may name as its predecessors: each order carries them."""
LOOKED_AT = 64
"""Maximum dependents of one attempt that are checked for chaining: more would not fit into a worker's queue ahead."""
EDGES_LOOKED_AT = 2_000
"""Maximum edges followed for one worker in a batch: dense graphs must not make batches expensive."""
Key = tuple[int, int]


class Candidates:
    """Waiting tasks that one worker could get, as (task, attempts of its unfinished dependencies)."""

    def __init__(self, nodes: Mapping[int, Node], worker: Worker) -> None:
        self._nodes = nodes
        self._worker = worker.name
        self._edges_left = EDGES_LOOKED_AT
        self._held: dict[int, list[Attempt]] = {}
        self.found: deque[tuple[Node, list[Attempt]]] = deque()
        for attempt in tuple(worker.held.values()):
            self.add(attempt)

    def add(self, attempt: Attempt) -> None:
        """Check the dependents of an attempt that the worker holds."""
        node = self._nodes.get(attempt.task_no)
        if node is None or node.dependents is None or node.assigned != attempt.number or not _may_succeed(attempt):
            return
        if node.suspect:
            return
        if attempt.worker != self._worker:
            return  # of an earlier process of this home: only its outcome remains
        self._edges_left -= min(LOOKED_AT, len(node.dependents))
        if self._edges_left < 0:
            return
        for dependent_no, condition in islice(node.dependents, LOOKED_AT):
            dependent = self._nodes.get(dependent_no)
            if dependent is None or condition is not Condition.SUCCESS or not _may_be_chained(dependent):
                continue
            held = self._held.setdefault(dependent_no, [])
            held.append(attempt)
            if len(held) == dependent.unmet:
                self.found.append((dependent, held))


class Chains:
    """`active`: all unfinished attempts. `touched`: workers whose attempts changed since their last check."""

    def __init__(self, nodes: Mapping[int, Node], active: Mapping[Key, Attempt]) -> None:
        self._nodes = nodes
        self._active = active
        self.touched: dict[str, None] = {}

    def candidates(self, worker: Worker) -> Candidates:
        """The tasks that could be chained at this worker."""
        return Candidates(self._nodes, worker)

    def after(self, predecessors: list[Attempt]) -> tuple[Key, ...] | None:
        """The attempts that an order names: the predecessors, and earlier attempts whose results are not recorded yet,
        since a task may require results of those. None if these are too many, or if chaining is not possible now."""
        keys: dict[Key, None] = {}
        for attempt in predecessors:
            for key in attempt.after:
                before = self._active.get(key)
                node = self._nodes.get(key[0])
                if before is not None and node is not None and node.makes == MAKES_RESULTS:
                    if not _may_succeed(before):
                        return None  # recorded but not published yet, which will be soon
                    keys[key] = None
            keys[(attempt.task_no, attempt.number)] = None
        return tuple(keys) if len(keys) <= MOST_AFTER else None


def _may_be_chained(node: Node) -> bool:
    return (
        node.state is TaskState.WAITING
        and not node.assigned
        and 0 < node.unmet <= MOST_AFTER
        and not node.init
        and not node.suspect
        and not node.unchained
        and node.makes != MAKES_UNLESS_THERE
    )


def _may_succeed(attempt: Attempt) -> bool:
    """Whether its worker may still finish it and the boss may record its success."""
    return attempt.state is AttemptState.ASSIGNED or attempt.state is AttemptState.STARTED
