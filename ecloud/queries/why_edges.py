"""Follow dependencies upwards, many tasks per query: walks a chain of any depth within a bounded time."""

from __future__ import annotations

import time
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ecloud.db import schema
from ecloud.model.tasks import TaskState
from ecloud.queries.views import Neighbour

WINDOW, LEAST_WINDOW = 5_000, 16
"""Task numbers whose edges one query reads. Tasks are numbered in list order, so that a task's dependencies often have
slightly smaller numbers. While they do, as in a chain, the window grows; in a graph of wide layers it stays small."""
USED = 0.25
"""If at least this share of a window was used, the next one is `GROWTH` times as large, otherwise smaller by that."""
GROWTH = 4
MOST_EDGES = 5_000
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
        self._window = LEAST_WINDOW
        self._used = 0
        """Tasks that were asked for since the last window was read."""

    @property
    def is_over(self) -> bool:
        """Whether the search has reached its time limit."""
        return time.monotonic() > self._until

    def of(self, task_no: int) -> list[Neighbour]:
        """Return the dependencies of a task that are in one of the states, by number."""
        if not any(low < task_no <= high for low, high in self._read):
            if self._read:
                grows = self._used >= USED * self._window
                self._window = (
                    min(WINDOW, GROWTH * self._window) if grows else max(LEAST_WINDOW, self._window // GROWTH)
                )
            self._used = 0
            self._fetch(task_no)
        self._used += 1
        return self._edges.get(task_no, [])

    def all_of(self, task_no: int, shown: int) -> tuple[list[Neighbour], int]:
        """Return the first `shown` dependencies of a task that are in one of the states, and the number of all. Running
        tasks make progress: they are last."""
        edges, rows = schema.dependencies, schema.tasks
        joined = edges.join(rows, rows.c.task_no == edges.c.on_task_no)
        condition = sa.and_(edges.c.task_no == task_no, rows.c.state.in_(self._states))
        total = self._connection.execute(sa.select(sa.func.count()).select_from(joined).where(condition)).scalar_one()
        query = (
            sa.select(rows.c.task_no, rows.c.id, rows.c.state, edges.c.met_by)
            .select_from(joined)
            .where(condition)
            .order_by(rows.c.state == TaskState.RUNNING.value, rows.c.task_no)
            .limit(shown)
        )
        return [Neighbour(*row) for row in self._connection.execute(query)], total

    def _fetch(self, task_no: int) -> None:
        """Read the edges of the tasks around this one that are not cached."""
        below = max((high for _, high in self._read if high < task_no), default=0)
        above = min((low for low, _ in self._read if low >= task_no), default=task_no + self._window)
        self._fetch_range(max(below, task_no - self._window), task_no, downwards=True)
        if above > task_no:
            self._fetch_range(task_no, min(above, task_no + self._window), downwards=False)

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
