"""The queries of each page. A handler reads through `ecloud.queries` in a thread; the helper process (`heavy`) runs
queries over a whole large run, and the page omits their results until they arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

from sqlalchemy.engine import Engine
from starlette.requests import Request
from starlette.responses import Response

from ecloud.model.finding import Finding
from ecloud.model.vm_states import VmState
from ecloud.queries import status as queries
from ecloud.queries.boot_history import pool_views
from ecloud.queries.browse import browse
from ecloud.queries.critical_path import critical_path
from ecloud.queries.failures import failure_groups
from ecloud.queries.folded_graph import FoldNode, Zoom, fold
from ecloud.queries.graph_cells import graph_cells
from ecloud.queries.ledger import Ledger, ledger_now
from ecloud.queries.ledger_history import SLICES, ledger_history
from ecloud.queries.load import load
from ecloud.queries.lookup import task
from ecloud.queries.machines import machine_counts, machines_page
from ecloud.queries.neighbourhood import neighbourhood
from ecloud.queries.sweep import sweep_tasks
from ecloud.queries.sweep_table import SweepTable, as_float, last_sweep_table, sorted_by
from ecloud.queries.timeline import timeline
from ecloud.queries.views import RunStatus, Status
from ecloud.queries.why import why
from ecloud.queries.why_task import Pool
from ecloud.web import charts, graph_charts, sweep_charts
from ecloud.web.health import Health
from ecloud.web.heavy import Heavy
from ecloud.web.rendering import Rendering, aligned

PAGE_ROWS = 100
RUNS_SHOWN = 50
GROUPS_SHOWN = 50
ARRAYS_SHOWN = 50
MACHINES_SHOWN = 60
GONE_SHOWN = 20
SERVERS = ("broker", "database", "datastore")
SMALL = 20_000
"""Maximum number of tasks (of a run) or attempts (of a cluster) that a handler reads while the page waits."""
SWEEP_ROWS = 200
PATH_ROWS = 40

Sweep = Callable[[str], SweepTable]


class Pages:
    """Handlers. `sweep` makes the table of a run's parameters and numbers; it must be a module-level function, since
    the helper process calls it. None: from the database alone."""

    def __init__(self, rendering: Rendering, health: Health, pools: Sequence[Pool], sweep: Sweep | None) -> None:
        self._rendering = rendering
        self._health = health
        self._pools = pools
        self._sweep = sweep
        self._heavy = Heavy()
        self._has_many = False

    def _status(self, engine: Engine) -> Status:
        """The state of everything. With many tasks it is the slowest query of most pages, and they share its answer."""

        def find() -> Status:
            return queries.status(engine)

        found = self._rendering.answers.ask("status", find) if self._has_many else find()
        self._has_many = sum(found.tasks.values()) > SMALL
        return found

    def find_run(self, engine: Engine, name: str) -> RunStatus:
        """One run. Raises `NoSuchRun`, `DatabaseAway`."""
        known = next((run for run in self._status(engine).runs if run.name == name), None)
        return queries.run_status(engine, name) if known is None else known

    def _ask(
        self, engine: Engine, tasks: int, version: object, function: Callable[..., Any], *arguments: object
    ) -> Any:
        """Return the answer, or None while it is being computed. Raises what `function` raises. `version`: as in
        `Heavy.ask`."""
        if tasks <= SMALL:
            return function(engine, *arguments)
        return self._heavy.ask(engine, function, *arguments, version=version)

    def _of_vms(self, engine: Engine, function: Callable[..., Any], *arguments: object) -> Any:
        """Return an answer about the lives of all VMs, or None while it is being computed. It stays the same once all
        VMs are gone and no task changes."""
        now = self._status(engine)
        is_over = not any(count for state, count in now.vms.items() if state != VmState.GONE)
        version = (tuple(now.vms.items()), tuple(now.tasks.items())) if is_over else None
        return self._ask(engine, sum(now.tasks.values()), version, function, *arguments)

    def books(self, engine: Engine, run: str = "") -> Ledger | None:
        """Return the ledger, or None while it is being computed."""
        found: Ledger | None = self._of_vms(engine, ledger_now, run)
        return found

    async def overview(self, request: Request) -> Response:
        """Overview of the cluster on one screen."""

        def find(engine: Engine) -> dict[str, Any]:
            now = self._status(engine)
            findings, looked_at = self._health.findings()
            with queries.snapshot(engine) as connection:
                machines = machine_counts(connection, self._pools)
            troubles = [("workers", now.troubles), ("machines", now.cloud_troubles)]
            wrong = [Finding(part, text) for part, texts in troubles for text in texts]
            known = {one.text for one in wrong}
            wrong += [one for one in findings if not one.is_ok and one.text not in known]
            return {
                "now": now,
                "machines": machines,
                "parts": _parts(findings),
                "runs": now.runs[:RUNS_SHOWN],
                "more_runs": max(0, len(now.runs) - RUNS_SHOWN),
                "findings": wrong,
                "fine": sorted({one.part for one in findings} - {one.part for one in findings if not one.is_ok}),
                "looked_at": looked_at,
            }

        return await self._rendering.show(request, "overview.html", find)

    async def run(self, request: Request) -> Response:
        """One run: counts, groups of failures, timeline, graph, critical path."""
        name = request.path_params["name"]
        zoom = _zoom(request)

        def find(engine: Engine) -> dict[str, Any]:
            run = self.find_run(engine, name)

            def ask(function: Callable[..., Any]) -> Any:
                return self._ask(engine, run.total, _version(run), function, name)

            failures, path, times, counts = ask(failure_groups), ask(critical_path), ask(timeline), ask(load)
            cells = ask(graph_cells)
            folded = None if cells is None else fold(cells, zoom)
            return {
                "pending": None in (times, counts, cells, failures, path),
                "run": run,
                "failures": failures,
                "groups_shown": GROUPS_SHOWN,
                "arrays_shown": ARRAYS_SHOWN,
                "times": times,
                "lanes": None if times is None else charts.lanes(times),
                "load": counts,
                "few_lanes": charts.FEW_LANES,
                "steps": charts.steps,
                "zoom": zoom if zoom != Zoom() else None,
                "folded": folded,
                "cells": cells,
                "graph": folded and graph_charts.folded_graph(folded, name, lambda node: _opened(name, node)),
                "path": path,
                "path_rows": PATH_ROWS,
            }

        return await self._rendering.show(request, "run.html", find)

    async def tasks(self, request: Request) -> Response:
        """A page of a list of tasks."""
        asked = request.query_params
        after = asked.get("after", "0")
        state = asked.get("state", "")

        def find(engine: Engine) -> dict[str, Any]:
            page = browse(
                engine, asked.get("run", ""), (state,) if state else (), asked.get("label", ""), asked.get("text", ""),
                int(after) if after.isdecimal() and len(after) < 18 else 0, PAGE_ROWS,
            )  # fmt: skip
            more = {name: asked.get(name, "") for name in ("run", "state", "label", "text") if asked.get(name)}
            return {"page": page, "more": urlencode({**more, "after": page.more_after})}

        return await self._rendering.show(request, "tasks.html", find)

    async def task(self, request: Request) -> Response:
        """All details of one task, and the reason for its state."""
        name, run = request.query_params.get("id", ""), request.query_params.get("run", "")

        def find(engine: Engine) -> dict[str, Any]:
            found = task(engine, name, run)
            near = None
            if found.dependencies or found.dependents:
                near = graph_charts.neighbours(neighbourhood(engine, found.id, found.run))
            return {"task": found, "why": why(engine, found.id, found.run, self._pools), "near": near}

        return await self._rendering.show(request, "task.html", find)

    async def sweep(self, request: Request) -> Response:
        """A sweep: parameters and numbers as a table and as charts."""
        name, asked = request.path_params["name"], request.query_params

        def find(engine: Engine) -> dict[str, Any]:
            run = self.find_run(engine, name)
            # The numbers may be in datastore files; the helper reads them.
            table = self._heavy.ask(engine, _sweep_table, self._sweep, name, version=_version(run))
            if table is None:
                return {"run": run, "table": None, "pending": True}
            return {"run": run, **_sweep_values(table, asked.get("sort", ""), asked)}

        return await self._rendering.show(request, "sweep.html", find)

    async def machines(self, request: Request) -> Response:
        """Workers, their hosts, pools, and machines by kind."""
        number = request.query_params.get("page", "")
        page = int(number) if number.isdecimal() and len(number) < 6 else 0

        def find(engine: Engine) -> dict[str, Any]:
            found = machines_page(engine, self._pools, page, MACHINES_SHOWN, GONE_SHOWN)
            with queries.snapshot(engine) as connection:
                pools = list(pool_views(connection).values())
            return {"page": found, "pools": pools}

        return await self._rendering.show(request, "machines.html", find)

    async def ledger(self, request: Request) -> Response:
        """Use of every VM-second."""
        run = request.query_params.get("run", "")

        def find(engine: Engine) -> dict[str, Any]:
            if run:
                self.find_run(engine, run)  # reports an unknown name immediately
            books = self.books(engine, run)
            history = None if run else self._of_vms(engine, ledger_history)
            return {
                "pending": books is None or (history is None and not run),
                "ledger": books,
                "history": history,
                "slices": SLICES,
                "stacked": charts.stacked,
            }

        return await self._rendering.show(request, "ledger.html", find)


def _parts(findings: Sequence[Finding]) -> dict[str, Finding]:
    """Return what the doctor found about the three servers: of each its first problem, or what it says of it first."""
    found: dict[str, Finding] = {}
    for one in sorted(findings, key=lambda finding: finding.is_ok):
        if one.part in SERVERS:
            found.setdefault(one.part, one)
    return {part: found[part] for part in SERVERS if part in found}


def _version(run: RunStatus) -> object:
    """What stays the same as long as an ended run does; None while it continues."""
    return None if run.left or run.ended_at is None else (run.run_no, run.ended_at, tuple(run.states.items()))


def _zoom(request: Request) -> Zoom:
    """Return the opened part of the graph, from the URL."""
    asked = request.query_params

    def level(name: str, otherwise: int) -> int:
        text = asked.get(name, "")
        return int(text) if text.isdecimal() and len(text) < 9 else otherwise

    whole = Zoom()
    return Zoom(asked.get("kind", ""), level("from", whole.first), level("to", whole.last))


def _opened(run: str, node: FoldNode) -> str:
    """Return the URL of a graph node: its task, or its contents."""
    if node.task:
        return "/task?" + urlencode({"run": run, "id": node.task})
    zoom = {"kind": node.zoom.kind, "from": node.zoom.first, "to": node.zoom.last}
    return "?" + urlencode(zoom) + "#graph"


def _sweep_table(engine: Engine, sweep: Sweep | None, run: str) -> SweepTable:
    return last_sweep_table(sweep_tasks(engine, run)) if sweep is None else sweep(run)


def _sweep_values(table: SweepTable, sort: str, asked: Any) -> dict[str, Any]:
    """Return the table's first rows in the requested order, and its charts."""
    if sort.removeprefix("-") in table.columns or sort in table.columns:
        table = sorted_by(table, sort)
    known = table.parameters + table.metrics
    axes = [axis for name in known if (axis := sweep_charts.axis_of(table, name)) is not None]
    by_title = {axis.title: axis for axis in axes}
    # A parameter with a single value is not informative.
    varied = [axis for axis in axes if len(axis.ticks) > 1]
    numbers = [axis for axis in varied if axis.title in table.metrics]
    x = by_title.get(asked.get("x", "")) or next((axis for axis in varied if axis.title in table.parameters), None)
    y = by_title.get(asked.get("y", "")) or (numbers[0] if numbers else None)
    rows = table.rows[:SWEEP_ROWS]
    columns = [table.column(name) for name in ("run_s", *table.metrics)]
    return {
        "table": table,
        "rows": rows,
        "numbers": {at: aligned([as_float(row[at]) for row in rows]) for at in columns},
        "sort": sort,
        "axes": axes,
        "x": x,
        "y": y,
        "scatter": sweep_charts.scatter(table, x, y) if x and y else None,
        "parallel": sweep_charts.parallel(sorted(varied, key=lambda axis: axis == y), table),
    }
