"""Analyses the dependency graph of a task list: order, cycles, which task precedes which. Changes nothing.

Lists have up to two million tasks, so the order is computed here in one pass (networkx takes 8 s and 1 GB for a million
tasks). Only the rest, tasks on cycles and behind them, goes to networkx.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from ecloud.model.tasks import TaskDefinition

MARKS_PER_PASS = 256
"""Tasks whose dependents are followed in one pass: one bit each."""
MAX_VISITS = 20_000_000
"""Most visits that `unordered` makes: a few seconds."""


class Outline:
    """The graph of a list, which is read once: the ids of the tasks, and of those that each waits for. `position`: of
    each id; of equal ones, the last."""

    def __init__(self, tasks: Iterable[TaskDefinition] = ()) -> None:
        self.ids: list[str] = []
        self.wanted: list[tuple[str, ...]] = []
        self.position: dict[str, int] = {}
        self._order: list[int] | None = None
        for task in tasks:
            self.add(task.id, [dependency.id for dependency in task.dependencies])

    def add(self, id: str, wanted: Iterable[str]) -> None:
        """Add the next task."""
        self.position[id] = len(self.ids)
        self.ids.append(id)
        self.wanted.append(tuple(wanted))

    def predecessors(self) -> list[tuple[int, ...]]:
        """For each task the positions of its dependencies, without unknown ids and the task itself."""
        position = self.position
        found: list[tuple[int, ...]] = []
        for index, names in enumerate(self.wanted):
            if names:
                wanted = {position.get(name, index) for name in names}
                wanted.discard(index)
                found.append(tuple(wanted))
            else:
                found.append(())
        return found

    def order(self) -> list[int]:
        """`dependency_order` of the tasks. Call it when all are added."""
        if self._order is None:
            self._order = dependency_order(self.predecessors())
        return self._order


def predecessors_of(tasks: Iterable[TaskDefinition]) -> list[tuple[int, ...]]:
    """For each task the positions of its dependencies, without unknown ids and the task itself."""
    return Outline(tasks).predecessors()


def dependency_order(predecessors: Sequence[Collection[int]]) -> list[int]:
    """Positions, dependencies first (Kahn). Tasks on cycles, and tasks that depend on these, are missing."""
    dependents: list[list[int]] = [[] for _ in predecessors]
    for index, found in enumerate(predecessors):
        for other in found:
            dependents[other].append(index)
    unmet = [len(found) for found in predecessors]
    order = [index for index, count in enumerate(unmet) if count == 0]
    for index in order:
        for dependent in dependents[index]:
            unmet[dependent] -= 1
            if unmet[dependent] == 0:
                order.append(dependent)
    return order


def find_cycles(outline: Outline) -> Iterator[list[str]]:
    """One cycle of each strongly connected component: ids in execution order, the first repeated at the end."""
    order = outline.order()
    if len(order) == len(outline.ids):
        return
    import networkx

    predecessors = outline.predecessors()
    left = sorted(set(range(len(predecessors))).difference(order))
    graph = networkx.DiGraph()
    graph.add_nodes_from(left)
    inside = set(left)
    graph.add_edges_from((other, index) for index in left for other in sorted(predecessors[index]) if other in inside)
    knots = [component for component in networkx.strongly_connected_components(graph) if len(component) > 1]
    for component in sorted(knots, key=min):
        cycle = [edge[0] for edge in networkx.find_cycle(graph.subgraph(component), min(component))]
        yield [outline.ids[index] for index in (*cycle, cycle[0])]


def unordered(
    predecessors: Sequence[Collection[int]], order: Sequence[int], pairs: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Those of `pairs` (a, b) in which neither task comes before the other, directly or through other tasks.

    If a large list would take more than `MAX_VISITS` visits, the last pairs are left out.
    """
    left = _without_path(predecessors, order, pairs)
    return [(a, b) for b, a in _without_path(predecessors, order, [(b, a) for a, b in left])]


def _without_path(
    predecessors: Sequence[Collection[int]], order: Sequence[int], pairs: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Those of `pairs` (first, last) in which `first` is not an ancestor of `last`."""
    lasts: dict[int, list[int]] = {}
    for first, last in pairs:
        lasts.setdefault(first, []).append(last)
    firsts = list(lasts)
    looked_at = MARKS_PER_PASS * max(1, MAX_VISITS // max(1, len(order)))
    found = []
    for start in range(0, min(len(firsts), looked_at), MARKS_PER_PASS):
        bits = {index: 1 << number for number, index in enumerate(firsts[start : start + MARKS_PER_PASS])}
        above = [0] * len(predecessors)
        for index in order:
            mask = 0
            for other in predecessors[index]:
                mask |= above[other] | bits.get(other, 0)
            above[index] = mask
        found += [(first, last) for first, bit in bits.items() for last in lasts[first] if not above[last] & bit]
    return found
