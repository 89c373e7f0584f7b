"""A run's graph folded to at most 60 nodes: bands of levels from left to right, kinds from top to bottom. Users open
nodes step by step.

Pure: takes the cells read from the database (`graph_cells`), returns the contents of a picture.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from ecloud.queries.graph_cells import Cell, GraphCells

MOST_NODES = 60
MOST_BANDS = 12
"""Columns of the picture."""


class Zoom(msgspec.Struct, frozen=True):
    """The visible part of the graph: one kind (empty: all) and a range of levels, both ends included."""

    kind: str = ""
    first: int = 0
    last: int = 1 << 30

    def holds(self, cell: Cell) -> bool:
        """Whether a cell is in the visible part."""
        return self.first <= cell.level <= self.last and self.kind in ("", cell.kind)


class FoldNode(msgspec.Struct, frozen=True):
    """Tasks drawn as one node. `task`: the id if it is a single task, else empty; `zoom`: the zoom after the node is
    opened; `column`, `row`: its position."""

    title: str
    task: str
    zoom: Zoom
    states: dict[str, int]
    column: int
    row: int

    @property
    def count(self) -> int:
        """Number of tasks in the node."""
        return sum(self.states.values())


class Folded(msgspec.Struct, frozen=True):
    """A picture. `edges`: (from, to, number of dependencies) by positions in `nodes`; `left_out`: tasks of the zoom
    that are not drawn, if single tasks are shown; `tasks`: number of tasks in the zoom."""

    nodes: list[FoldNode]
    edges: list[tuple[int, int, int]]
    tasks: int
    left_out: int = 0


WHOLE = Zoom()


def fold(graph: GraphCells, zoom: Zoom = WHOLE) -> Folded:
    """Compute the picture of `zoom`."""
    inside = [at for at, cell in enumerate(graph.cells) if zoom.holds(cell)]
    tasks = sum(graph.cells[at].count for at in inside)
    if len(inside) == 1 or tasks <= MOST_NODES // 4:
        return _single_tasks(graph, inside, tasks)
    band_of = _bands(graph, inside)
    groups: dict[tuple[int, str], list[int]] = {}
    for at in inside:
        cell = graph.cells[at]
        groups.setdefault((band_of[cell.level], cell.kind), []).append(at)
    nodes: list[FoldNode] = []
    node_of: dict[int, int] = {}
    rows: Counter[int] = Counter()
    for (band, kind), members in sorted(groups.items(), key=lambda item: (item[0][0], -_count(graph, item[1]))):
        node_of.update(dict.fromkeys(members, len(nodes)))
        nodes.append(_node(graph, kind, members, band, rows[band]))
        rows[band] += 1
    edges: Counter[tuple[int, int]] = Counter()
    for (source, target), count in graph.edges.items():
        if source in node_of and target in node_of and node_of[source] != node_of[target]:
            edges[node_of[source], node_of[target]] += count
    return Folded(nodes, [(source, target, count) for (source, target), count in edges.items()], tasks)


def _count(graph: GraphCells, members: list[int]) -> int:
    return sum(graph.cells[at].count for at in members)


def _bands(graph: GraphCells, inside: list[int]) -> dict[int, int]:
    """Assign each level to a column, with as many columns as the limit on nodes allows."""
    levels = sorted({graph.cells[at].level for at in inside})
    for bands in range(min(MOST_BANDS, len(levels)), 0, -1):
        band_of = {level: at * bands // len(levels) for at, level in enumerate(levels)}
        if len({(band_of[graph.cells[at].level], graph.cells[at].kind) for at in inside}) <= MOST_NODES:
            break
    return band_of


def _node(graph: GraphCells, kind: str, members: list[int], column: int, row: int) -> FoldNode:
    cells = [graph.cells[at] for at in members]
    states: Counter[str] = Counter()
    for cell in cells:
        states.update(cell.states)
    zoom = Zoom(kind, min(cell.level for cell in cells), max(cell.level for cell in cells))
    single = cells[0].sample[0].id if sum(states.values()) == 1 else ""
    return FoldNode(single or kind, single, zoom, dict(states), column, row)


def _single_tasks(graph: GraphCells, inside: list[int], tasks: int) -> Folded:
    """Draw single tasks, as far as the cells know them."""
    levels = sorted({graph.cells[at].level for at in inside})
    nodes: list[FoldNode] = []
    rows: Counter[int] = Counter()
    # Spread the tasks of one level over several columns, to avoid one high column.
    columns = 6 if len(levels) == 1 else 1
    node_of: dict[int, int] = {}
    for at in sorted(inside, key=lambda at: graph.cells[at].level):
        cell = graph.cells[at]
        for task in cell.sample[: MOST_NODES - len(nodes)]:
            node_of[task.task_no] = len(nodes)
            level = levels.index(cell.level)
            column = level * columns + rows[level] % columns
            zoom = Zoom(cell.kind, cell.level, cell.level)
            nodes.append(FoldNode(task.id, task.id, zoom, {task.state: 1}, column, rows[level] // columns))
            rows[level] += 1
    edges = [
        (node_of[source], node_of[target], 1)
        for source, target in graph.task_edges
        if source in node_of and target in node_of
    ]
    return Folded(nodes, edges, tasks, tasks - len(nodes))
