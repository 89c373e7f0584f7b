"""The graph of unfinished tasks: who waits for whom, and what an end sets free or makes impossible.

Owns `Node`s and their edges. Knows nothing of runs, workers or messages. A task that has ended is not in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from weakref import WeakValueDictionary

import msgspec

from boss.core.model.rows import TaskRow
from ecloud.model.tasks import ENDED, Condition, Resources, Retries, TaskState
from ecloud.model.transfer_status import BIG_INPUT_BYTES

_WAITING, _READY = TaskState.WAITING, TaskState.READY


class Shape(msgspec.Struct, frozen=True, eq=False):
    """What tasks ask of a worker. Interned by `Shapes`: compared and hashed by identity."""

    asks: tuple[tuple[str, float], ...]
    weight: float
    """What a task counts for in the fair sharing between runs: its CPUs, or a little where it asks for none."""

    @property
    def as_resources(self) -> Resources:
        """The same as amounts by name."""
        return dict(self.asks)


class Shapes:
    """The few different shapes of many tasks."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, float], ...], Shape] = {}

    def of(self, asks: Resources) -> Shape:
        """The one `Shape` of these amounts. Amounts of 0 ask for nothing."""
        key = tuple(sorted([(name, float(amount)) for name, amount in asks.items() if amount]))
        shape = self._known.get(key)
        if shape is None:
            shape = self._known[key] = Shape(key, dict(key).get("cpus", 0.01))
        return shape


class Input(msgspec.Struct, eq=False, weakref=True):
    """A path that several tasks require, or a worker keeps. `bytes`: as far as it is known, -1 where it is not;
    `holders`: workers that have it or are fetching it. Kept by `boss.core.tasks.input_locality`."""

    path: str
    bytes: int = -1
    holders: dict[str, None] = msgspec.field(default_factory=dict)

    def worth(self, unknown: int) -> int:
        """What it saves not to fetch it: its bytes where it is big, else nothing."""
        return self.bytes if self.bytes >= BIG_INPUT_BYTES else unknown if self.bytes < 0 else 0


class Inputs(msgspec.Struct, eq=False, weakref=True):
    """The requirements of a task that others have, too."""

    parts: tuple[Input, ...]

    @property
    def is_small(self) -> bool:
        """Whether they are known not to be worth a thought where a task goes."""
        return not any(part.bytes < 0 or part.bytes >= BIG_INPUT_BYTES for part in self.parts)

    def big_bytes(self, unknown: int) -> int:
        """Of the big ones together; one whose size is not known counts as `unknown` bytes."""
        return sum([part.worth(unknown) for part in self.parts])

    def held_bytes(self, worker: str, unknown: int) -> int:
        """So much of that has this worker."""
        return sum([part.worth(unknown) for part in self.parts if worker in part.holders])


class KnownInputs:
    """Each path and each set of them once, while a task or a worker has it."""

    def __init__(self) -> None:
        self._parts: WeakValueDictionary[str, Input] = WeakValueDictionary()
        self._sets: WeakValueDictionary[tuple[str, ...], Inputs] = WeakValueDictionary()

    def __contains__(self, path: str) -> bool:
        return path in self._parts

    def part(self, path: str) -> Input:
        """The one `Input` of this path."""
        part = self._parts.get(path)
        if part is None:
            part = self._parts[path] = Input(path)
        return part

    def of(self, paths: tuple[str, ...]) -> Inputs:
        """The one `Inputs` of these paths."""
        inputs = self._sets.get(paths)
        if inputs is None:
            inputs = self._sets[paths] = Inputs(tuple([self.part(path) for path in paths]))
        return inputs


class Node(msgspec.Struct, gc=False):
    """An unfinished task in memory: about 400 bytes with its id and two edges.

    `unmet` counts the dependencies still open; `dependents` are (task_no, condition) of those that wait for this one.
    `assigned`: number of its attempt that is assigned or started, 0 without one. `unstarted`: how many of its attempts
    were given back before they started, since this boss began.
    """

    task_no: int
    run_no: int
    id: str
    state: TaskState
    shape: Shape
    retries: Retries
    label: str
    reason: str = ""
    priority: int = 0
    attempts: int = 0
    retries_used: int = 0
    not_before: float = 0.0
    runtime_s: float | None = None
    body_bytes: int = 0
    unmet: int = 0
    assigned: int = 0
    unstarted: int = 0
    init: bool = False
    keep_dir: bool = False
    apart: bool = False
    """It may have killed workers: it runs alone on one."""
    suspect: bool = False
    """It may have killed a worker: it is chained to nothing, and nothing to it."""
    dependents: list[tuple[int, Condition]] | None = None
    inputs: Inputs | None = None
    makes: int = 0
    unchained: bool = False
    """It is not chained: a worker returned such an attempt of it, or it is an array. It waits for what the boss
    records."""
    array: int = 0
    """Number of the array whose element it is."""
    is_array: bool = False


class Freed(msgspec.Struct, frozen=True):
    """What the end of one task means for another: ready, or aborted for `reason`."""

    node: Node
    state: TaskState
    reason: str = ""


class TaskGraph:
    """All unfinished tasks by `task_no`."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.shapes = Shapes()
        self.known_inputs = KnownInputs()

    def add(self, rows: Iterable[TaskRow]) -> list[Node]:
        """Take in unfinished tasks. Dependencies on tasks that are not in the graph (after all rows are in) count as
        met."""
        rows = list(rows)
        nodes = self.nodes
        added = []
        for row in rows:
            node = self.node_of(row)
            nodes[row.task_no] = node
            added.append(node)
        self.rewire(rows)
        return added

    def node_of(self, row: TaskRow) -> Node:
        """A node for this row, outside of the graph and without edges."""
        return Node(
            task_no=row.task_no,
            run_no=row.run_no,
            id=row.id,
            state=row.state,
            shape=self.shapes.of(row.asks),
            retries=row.retries,
            label=row.label,
            reason=row.reason,
            priority=row.priority,
            attempts=row.attempts,
            retries_used=row.retries_used,
            not_before=row.not_before,
            runtime_s=row.runtime_s,
            body_bytes=row.body_bytes,
            init=row.init,
            keep_dir=row.keep_dir,
            inputs=self.known_inputs.of(row.inputs) if row.inputs else None,
            makes=row.makes,
            unchained=row.elements is not None,
            array=row.array,
            is_array=row.elements is not None,
        )

    def rewire(self, rows: Iterable[TaskRow]) -> None:
        """Let these, to which no edges lead, wait for their dependencies that are in the graph."""
        nodes = self.nodes
        for row in rows:
            unmet = 0
            for on_task_no, condition in row.dependencies:
                other = nodes.get(on_task_no)
                if other is not None:
                    unmet += 1
                    if other.dependents is None:
                        other.dependents = []
                    other.dependents.append((row.task_no, condition))
            nodes[row.task_no].unmet = unmet

    def end(self, task_no: int, state: TaskState, because: str) -> list[Freed]:
        """Take a task that ended in `state` out; what this frees or aborts, in order, those aborted below included.

        `because` names it and how it ended ("task a failed"); everything aborted below carries it on.
        The caller moves the freed ones; aborted ones are out of the graph already.
        """
        freed: list[Freed] = []
        todo = deque([(task_no, state, because)])
        nodes = self.nodes
        while todo:
            number, ended, reason = todo.popleft()
            node = nodes.pop(number, None)
            if node is None or node.dependents is None:
                continue
            for dependent_no, condition in node.dependents:
                dependent = nodes.get(dependent_no)
                if dependent is None or dependent.unmet < 0:
                    continue
                if condition.met_by(ended) or dependent.state is not _WAITING:
                    # One that runs already (its dependency was done again) is not disturbed.
                    dependent.unmet -= 1
                    if dependent.unmet == 0 and dependent.state is _WAITING:
                        freed.append(Freed(dependent, _READY))
                else:
                    why = reason if ended is not TaskState.SUCCEEDED else f"{reason}; this one runs only if it does not"
                    freed.append(Freed(dependent, TaskState.ABORTED, why))
                    todo.append((dependent_no, TaskState.ABORTED, why))
                    # Marked at once, so that a second dependency that ends badly does not abort it twice.
                    dependent.unmet = -1
        return [item for item in freed if item.node.unmet == 0 or item.state is TaskState.ABORTED]

    def remove(self, task_nos: Iterable[int]) -> None:
        """Forget tasks without any effect on others (they are replanted or dropped by the caller)."""
        for number in tuple(task_nos):
            node = self.nodes.pop(number, None)
            if node is not None:
                node.state = TaskState.CANCELLED  # whoever still has it in a queue sees that it is void

    def cut_edges_into(self, task_nos: set[int]) -> None:
        """Remove the edges that lead into these tasks: they are about to be added anew with other dependencies."""
        for node in self.nodes.values() if task_nos else ():
            if node.dependents:
                node.dependents = [edge for edge in node.dependents if edge[0] not in task_nos] or None

    def check(self) -> None:
        """Invariants: counts agree with edges; whoever waits has something to wait for; nothing in here has ended."""
        unmet: dict[int, int] = {}
        for node in self.nodes.values():
            assert node.init or node.state not in ENDED, f"task {node.id} ended but is in the graph"
            for dependent_no, _ in node.dependents or ():
                if dependent_no in self.nodes:
                    unmet[dependent_no] = unmet.get(dependent_no, 0) + 1
        for node in self.nodes.values():
            if node.state is _WAITING:
                assert node.unmet == unmet.get(node.task_no, 0) > 0, f"task {node.id} waits for {node.unmet}"
