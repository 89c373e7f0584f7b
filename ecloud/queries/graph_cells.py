"""A run's graph in cells: all tasks of one level and one kind (label) together. Read once, then folded for a picture.

Computes the levels itself, without networkx: a million tasks with two million edges take seconds and 100 MB in arrays,
but minutes and gigabytes as a graph of objects.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ecloud.db import schema
from ecloud.db.database import database_now
from ecloud.queries.status import find_run, snapshot

KINDS = 24
"""Number of distinct kinds; rarer kinds become `OTHER`."""
OTHER = "other tasks"
SAMPLE = 48
"""Tasks of a cell whose ids are kept."""
EDGES_KEPT = 20_000
"""Dependencies of a run that are kept individually."""
LEVELS = 4_000
"""Number of distinct levels; in a longer chain, neighbouring levels are merged."""
_NUMBERS = re.compile(r"\d+")


class CellTask(msgspec.Struct, frozen=True):
    """A task with its id."""

    task_no: int
    id: str
    state: str


class Cell(msgspec.Struct):
    """All tasks of one level and kind. `states`: their number by state; `sample`: the first of them."""

    level: int
    kind: str
    states: dict[str, int] = {}
    sample: list[CellTask] = []

    @property
    def count(self) -> int:
        """Number of tasks in the cell."""
        return sum(self.states.values())


class GraphCells(msgspec.Struct):
    """A run's graph at time `at` (seconds since 1970). `edges`: number of dependencies from one cell to another, by
    their positions in `cells`."""

    cells: list[Cell]
    edges: dict[tuple[int, int], int]
    tasks: int
    at: float
    task_edges: list[tuple[int, int]] = []
    """Dependencies between tasks by task_no, (first, after); empty for a large graph."""


def graph_cells(engine: Engine, run: str) -> GraphCells:
    """Read a run's whole graph. Raises `NoSuchRun`, `DatabaseAway`."""
    with snapshot(engine) as connection:
        run_no = find_run(connection, run)
        rows = _tasks(connection, run_no)
        position = {row.task_no: at for at, row in enumerate(rows)}
        sources, targets = _edges(connection, position)
        at = database_now(connection)
    levels = _levels(len(rows), sources, targets)
    kinds = _kinds([_kind(row.labels, row.id) for row in rows])
    found: dict[tuple[int, str], int] = {}
    cells: list[Cell] = []
    of_task = array("l")
    for level, kind, row in zip(levels, kinds, rows):
        place = found.setdefault((level, kind), len(cells))
        if place == len(cells):
            cells.append(Cell(level, kind, {}, []))
        cell = cells[place]
        cell.states[row.state] = cell.states.get(row.state, 0) + 1
        if len(cell.sample) < SAMPLE:
            cell.sample.append(CellTask(row.task_no, row.id, row.state))
        of_task.append(place)
    edges = Counter((of_task[source], of_task[target]) for source, target in zip(sources, targets))
    numbers = [row.task_no for row in rows] if len(sources) <= EDGES_KEPT else []
    task_edges = [(numbers[source], numbers[target]) for source, target in zip(sources, targets)] if numbers else []
    return GraphCells(cells, dict(edges), len(rows), at, task_edges)


def _tasks(connection: Connection, run_no: int) -> list[Any]:
    tasks = schema.tasks.c
    query = (
        sa.select(tasks.task_no, tasks.id, tasks.labels, tasks.state)
        .where(tasks.run_no == run_no, tasks.init == 0)
        .order_by(tasks.task_no)
    )
    return list(connection.execute(query))


def _edges(connection: Connection, position: dict[int, int]) -> tuple[array[int], array[int]]:
    """Return dependencies as two columns: positions of the tasks that must end first, and of those that wait for
    them."""
    sources, targets = array("l"), array("l")
    if not position:
        return sources, targets
    edges = schema.dependencies.c
    query = sa.select(edges.on_task_no, edges.task_no).where(edges.task_no.between(min(position), max(position)))
    for source, target in connection.execute(query):
        if source in position and target in position:
            sources.append(position[source])
            targets.append(position[target])
    return sources, targets


def _levels(count: int, sources: array[int], targets: array[int]) -> list[int]:
    """Return the longest path from a task without dependencies to each task, in edges."""
    waits, first = array("l", bytes(8 * count)), array("l", bytes(8 * (count + 1)))
    for source, target in zip(sources, targets):
        waits[target] += 1
        first[source + 1] += 1
    for at in range(count):
        first[at + 1] += first[at]
    place, after = array("l", first), array("l", bytes(8 * len(sources)))
    for source, target in zip(sources, targets):
        after[place[source]] = target
        place[source] += 1
    levels = [0] * count
    ready = [at for at in range(count) if not waits[at]]
    for at in ready:  # grows during the loop
        for target in after[first[at] : first[at + 1]]:
            levels[target] = max(levels[target], levels[at] + 1)
            waits[target] -= 1
            if not waits[target]:
                ready.append(target)
    together = 1 + max(levels, default=0) // LEVELS
    return levels if together == 1 else [level // together for level in levels]


def _kind(labels: str, id: str) -> str:
    """Return what related tasks have in common: their labels, else their id without its numbers."""
    names = msgspec.json.decode(labels, type=list[str]) if labels not in ("", "[]") else []
    return ", ".join(names) or _NUMBERS.sub("#", id)


def _kinds(all_kinds: list[str]) -> list[str]:
    known = Counter(all_kinds)
    if len(known) <= KINDS:
        return all_kinds
    kept = {kind for kind, _ in known.most_common(KINDS - 1)}
    return [kind if kind in kept else OTHER for kind in all_kinds]
