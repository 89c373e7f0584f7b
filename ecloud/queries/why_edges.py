"""Follow dependencies upwards, many tasks per query: walks a chain of any depth within a bounded time."""

from __future__ import annotations

import time
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ecloud.db import schema
from ecloud.queries.views import Neighbour

WINDOW = 5_000
"""Task numbers whose edges one query reads. Tasks are numbered in list order, so that a task's dependencies mostly have
slightly smaller numbers."""
MOST_EDGES = 20_000
"""Maximum number of edges that one query reads."""
WALK_S = 0.6
"""Time limit of a search upwards."""


class Upwards:
    """Dependencies in one of `states`. Reads windows of edges and caches them."""

    def __init__(self, connection: Connection, states: Iterable[str]) -> None:
        self._connection = connection
        self._states = tuple(states)
        self._edges: dict[int, list[Neighbour]] = {}
        self._read: list[tuple[int, int]] = []
        """Ranges of task numbers (exclusive start, inclusive end) whose edges are cached."""
        self._until = time.monotonic() + WALK_S

    @property
    def is_over(self) -> bool:
        """Whether the search has reached its time limit."""
        return time.monotonic() > self._until

    def of(self, task_no: int) -> list[Neighbour]:
        """Return the dependencies of a task that are in one of the states, by number."""
        if not any(low < task_no <= high for low, high in self._read):
            self._fetch(task_no)
        return self._edges.get(task_no, [])

    def _fetch(self, task_no: int) -> None:
        """Read the edges of the tasks around this one that are not cached."""
        below = max((high for _, high in self._read if high < task_no), default=0)
        above = min((low for low, _ in self._read if low >= task_no), default=task_no + WINDOW)
        self._fetch_range(max(below, task_no - WINDOW), task_no, downwards=True)
        if above > task_no:
            self._fetch_range(task_no, min(above, task_no + WINDOW), downwards=False)

    def _fetch_range(self, low: int, high: int, downwards: bool) -> None:
        edges, rows = schema.dependencies, schema.tasks
        query = (
            sa.select(edges.c.task_no.label("dependent"), edges.c.met_by, rows.c.task_no, rows.c.id, rows.c.state)
            .select_from(edges)
            .join(rows, rows.c.task_no == edges.c.on_task_no)
            .where(edges.c.task_no > low, edges.c.task_no <= high, rows.c.state.in_(self._states))
            .order_by(edges.c.task_no.desc() if downwards else edges.c.task_no, edges.c.on_task_no)
        )
        found = self._connection.execute(query.limit(MOST_EDGES)).all()
        if len(found) == MOST_EDGES:
            # The last task's edges may be incomplete. For the requested task itself, these are enough.
            last = found[-1].dependent
            if downwards:
                low = min(last, high - 1)
            else:
                high = max(last - 1, low)
        for row in found:
            if low < row.dependent <= high:
                neighbour = Neighbour(row.task_no, row.id, row.state, row.met_by)
                self._edges.setdefault(row.dependent, []).append(neighbour)
        self._read.append((low, high))
