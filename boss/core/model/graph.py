"""The graph of unfinished tasks: which task waits for which, and which tasks an end releases or aborts.

Owns `Node`s and their edges. Knows nothing of runs, workers or messages. Ended tasks are not in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from weakref import WeakValueDictionary

import msgspec

from boss.core.model.packed import drained
from boss.core.model.rows import TaskRow
from ecloud.model.tasks import ENDED, Condition, Resources, Retries, TaskState
from ecloud.model.transfer_status import BIG_INPUT_BYTES

_WAITING, _READY = TaskState.WAITING, TaskState.READY
COMPARED_S = 60.0
"""A stated run time above this is compared with the time that workers have left. A worker takes no tasks in its last
minute anyway."""


class Shape(msgspec.Struct, frozen=True, eq=False):
    """The resources that a task asks for. Interned by `Shapes`: compared and hashed by identity."""

    asks: tuple[tuple[str, float], ...]
    weight: float
    """Weight of a task in the fair sharing between runs: its CPUs, or a small number if it asks for none."""
    as_resources: Resources
    """The same amounts by name. Never changed."""


class Shapes:
    """Interns the shapes of tasks, which are few."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, float], ...], Shape] = {}

    def of(self, asks: Resources) -> Shape:
        """The one `Shape` of these amounts. Amounts of 0 are ignored."""
        key = tuple(sorted([(name, float(amount)) for name, amount in asks.items() if amount]))
        shape = self._known.get(key)
        if shape is None:
            by_name = dict(key)
            shape = self._known[key] = Shape(key, by_name.get("cpus", 0.01), by_name)
        return shape


def compared_s(runtime_s: float | None) -> float:
    """The stated run time that a worker must have left to get the task; 0 if any worker may get it."""
    return runtime_s if runtime_s is not None and runtime_s > COMPARED_S else 0.0


class Input(msgspec.Struct, eq=False, weakref=True):
    """A path that several tasks require, or that a worker caches. `bytes`: its size, -1 if unknown; `holders`: workers
    that have it or are fetching it. Maintained by `boss.core.tasks.input_locality`."""

    path: str
    bytes: int = -1
    holders: dict[str, None] = msgspec.field(default_factory=dict)

    def worth(self, unknown: int) -> int:
        """Bytes that a worker saves if it has this input: its size if big, `unknown` if the size is unknown, else 0."""
        return self.bytes if self.bytes >= BIG_INPUT_BYTES else unknown if self.bytes < 0 else 0


class Inputs(msgspec.Struct, eq=False, weakref=True):
    """The requirements that a task shares with others."""

    parts: tuple[Input, ...]

    @property
    def is_small(self) -> bool:
        """Whether all of them are known to be too small to influence placement."""
        return not any(part.bytes < 0 or part.bytes >= BIG_INPUT_BYTES for part in self.parts)

    def big_bytes(self, unknown: int) -> int:
        """Total size of the big ones; one of unknown size counts as `unknown` bytes."""
        return sum([part.worth(unknown) for part in self.parts])

    def held_bytes(self, worker: str, unknown: int) -> int:
        """How many of these bytes the worker has."""
        return sum([part.worth(unknown) for part in self.parts if worker in part.holders])


class KnownInputs:
    """Interns paths and sets of paths, while a task or a worker has them."""

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
    """An unfinished task in memory: about 600 bytes with its id, two edges and its place in tables.

    `unmet` counts the dependencies still open; `dependents` are (task_no, condition) of the tasks that wait for this
    one. `assigned`: number of its attempt that is assigned or started, 0 without one. `unstarted`: how many of its
    attempts workers returned unstarted since this boss began. `needs_s`: seconds that a worker must have left.
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
    needs_s: float = 0.0
    body_bytes: int = 0
    unmet: int = 0
    assigned: int = 0
    unstarted: int = 0
    init: bool = False
    keep_dir: bool = False
    apart: bool = False
    """It may have killed workers: it runs alone on a worker."""
    suspect: bool = False
    """It may have killed a worker: it takes part in no chain."""
    dependents: list[tuple[int, Condition]] | None = None
    inputs: Inputs | None = None
    makes: int = 0
    unchained: bool = False
    """It is not chained: a worker returned a chained attempt of it, or it is an array. It waits until its dependencies
    are recorded."""
    array: int = 0
    """Task number of the array that it is an element of."""
    is_array: bool = False


class Freed(msgspec.Struct, frozen=True):
    """The effect of a task's end on another task: it becomes ready, or is aborted for `reason`."""

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
        """Add unfinished tasks. Dependencies on tasks that are not in the graph (after all rows were added) count as
        met."""
        added, dependencies = [], []
        for row in rows:
            node = self.nodes[row.task_no] = self.node_of(row)
            added.append(node)
            dependencies.append(row.dependencies)
        for node, wanted in zip(added, drained(dependencies)):
            self.wait(node, wanted)
        return added

    def node_of(self, row: TaskRow) -> Node:
        """Make a node for this row, outside of the graph and without edges."""
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
            needs_s=compared_s(row.runtime_s),
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
        """Make these tasks, to which no edges lead, wait for their dependencies that are in the graph."""
        for row in rows:
            self.wait(self.nodes[row.task_no], row.dependencies)

    def wait(self, node: Node, dependencies: tuple[tuple[int, Condition], ...]) -> None:
        """Make a task, to which no edges lead, wait for its dependencies that are in the graph."""
        unmet = 0
        edge = (node.task_no, Condition.SUCCESS)  # one object for most of its dependencies
        for on_task_no, condition in dependencies:
            other = self.nodes.get(on_task_no)
            if other is not None:
                unmet += 1
                if other.dependents is None:
                    other.dependents = []
                other.dependents.append(edge if condition is edge[1] else (node.task_no, condition))
        node.unmet = unmet

    def end(self, task_no: int, state: TaskState, because: str) -> list[Freed]:
        """Remove a task that ended in `state`. Returns the tasks that this releases or aborts, in order, including
        indirectly aborted ones.

        `because` names the task and how it ended ("task a failed"); the reasons of all aborted tasks begin with it. The
        caller moves the released ones; aborted ones are out of the graph already.
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
                    # A task that already runs (its dependency is being redone) is left alone.
                    dependent.unmet -= 1
                    if dependent.unmet == 0 and dependent.state is _WAITING:
                        freed.append(Freed(dependent, _READY))
                else:
                    why = reason if ended is not TaskState.SUCCEEDED else f"{reason}; this one runs only if it does not"
                    freed.append(Freed(dependent, TaskState.ABORTED, why))
                    todo.append((dependent_no, TaskState.ABORTED, why))
                    # Marked now, so that a second dependency that ends badly does not abort it twice.
                    dependent.unmet = -1
        return [item for item in freed if item.node.unmet == 0 or item.state is TaskState.ABORTED]

    def remove(self, task_nos: Iterable[int]) -> None:
        """Forget tasks without any effect on others (the caller replants or drops them)."""
        for number in tuple(task_nos):
            node = self.nodes.pop(number, None)
            if node is not None:
                node.state = TaskState.CANCELLED  # entries in queues are void from now on

    def cut_edges_into(self, rows: Collection[TaskRow]) -> None:
        """Remove the edges that lead into these tasks: the caller adds them again, perhaps with other dependencies.
        `rows`: the tasks with the dependencies that they have now."""
        task_nos = {row.task_no for row in rows}
        for on_task_no in {on_task_no for row in rows for on_task_no, _ in row.dependencies}:
            node = self.nodes.get(on_task_no)
            if node is not None and node.dependents:
                node.dependents = [edge for edge in node.dependents if edge[0] not in task_nos] or None

    def check(self) -> None:
        """Check invariants: counts agree with edges; waiting tasks have open dependencies; no ended task is present."""
        unmet: dict[int, int] = {}
        for node in self.nodes.values():
            assert node.init or node.state not in ENDED, f"task {node.id} ended but is in the graph"
            for dependent_no, _ in node.dependents or ():
                if dependent_no in self.nodes:
                    unmet[dependent_no] = unmet.get(dependent_no, 0) + 1
        for node in self.nodes.values():
            if node.state is _WAITING:
                assert node.unmet == unmet.get(node.task_no, 0) > 0, f"task {node.id} waits for {node.unmet}"
