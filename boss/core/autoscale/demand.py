"""Describes waiting work and available capacity for `scaling.plan`. Reads everything, changes nothing.

Checks a bounded number of tasks, so that a batch costs no more when more tasks wait.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import islice

import msgspec

from boss.core.autoscale.run_budgets import RunBudgets
from boss.core.autoscale.scaling import Demand, FleetSnapshot, IdleVm, PoolNow, Spot
from boss.core.model.fleet import Fleet
from boss.core.model.graph import Node, Shape
from boss.core.model.ready_tasks import Group, least_needed_s
from boss.core.model.rows import VmRow
from boss.core.model.runtime_estimates import Runtimes
from boss.core.model.worker import Worker
from boss.core.tasks.attempts import Attempts
from boss.core.tasks.taskbook import TaskBook
from ecloud.model.tasks import AttemptState, TaskState, fits
from ecloud.model.vm_states import COMING, VmState

COUNTED_READY = 1_000
"""Ready tasks of one kind that are counted one by one; beyond it, void queue entries are counted too."""
GUESSED = 20
"""Tasks of one kind whose run times are looked up: they are alike."""
LOOKED_AHEAD = 1_000
"""Running attempts, and edges below each, that are followed to find tasks that will be ready soon."""
LOOK_AHEAD_FROM_S = 5.0
"""If VMs boot within this time, looking ahead gains nothing."""
NOBODY_KNOWS_S = 1e9


class _Kind(msgspec.Struct, frozen=True):
    """Tasks that fit the same workers and pools. `least_s`, `pools`: their class of stated run times, and how many
    pools end their VMs too soon for them; 0 where nothing ends."""

    before: int
    shape: Shape
    least_s: float = 0.0
    pools: int = 0


class _Waiting(msgspec.Struct):
    """`count` tasks of a kind. `needs_s`: the longest stated run time of those that were checked."""

    count: int = 0
    task_s: float | None = None
    needs_s: float = 0.0

    def add(self, count: int, task_s: float | None, needs_s: float) -> None:
        """Add `count` tasks that take `task_s` seconds each, None if unknown."""
        if self.count and task_s is not None:
            task_s = None if self.task_s is None else (self.count * self.task_s + count * task_s) / (self.count + count)
        self.count, self.task_s, self.needs_s = self.count + count, task_s, max(self.needs_s, needs_s)


class DemandEstimate:
    """The state as the capacity planner sees it."""

    def __init__(
        self, fleet: Fleet, book: TaskBook, attempts: Attempts, runtimes: Runtimes, run_budgets: RunBudgets
    ) -> None:
        self.run_budgets = run_budgets
        self._fleet = fleet
        self._book = book
        self._attempts = attempts
        self._runtimes = runtimes

    def situation(self, vms: Iterable[VmRow], pools: list[PoolNow], now: float) -> FleetSnapshot:
        """All inputs of a plan."""
        vms = list(vms)
        boots = {pool.config.name: pool for pool in pools}
        horizon_s = max((pool.boot_s for pool in pools), default=0.0)
        ends = sorted({pool.lives_s for pool in pools if pool.lives_s < math.inf})
        if self._fleet.ending and not ends:
            ends = [math.inf]
        demands = self._ready(ends)
        if horizon_s >= LOOK_AHEAD_FROM_S:
            demands += self._soon(horizon_s, ends, now)
        rooms = [_booting(vm, boots[vm.pool], now) for vm in vms if vm.state in COMING and vm.pool in boots]
        if demands:
            rooms = [*self._workers(now), *rooms]
        return FleetSnapshot(demands, rooms, pools, self._idle(vms, now), self._notes())

    def _notes(self) -> list[str]:
        """Why nothing starts although tasks are ready."""
        broke = self.run_budgets.exhausted
        ready = {group.run_no for group in self._book.ready.placeable()} if broke else set()
        return [f"no VM starts for a run: {broke[run_no]}" for run_no in sorted(ready & broke.keys())]

    # --- work ------------------------------------------------------------------------------------

    def _ready(self, ends: Sequence[float]) -> list[Demand]:
        """`ends`: how long VMs live, of pools that end them; empty if nothing ends."""
        found: dict[_Kind, _Waiting] = {}
        for group in self._book.ready.placeable():
            if group.run_no in self.run_budgets.exhausted:
                continue  # existing workers take these; no VM starts for them
            nodes = [node for node in islice(group.nodes, COUNTED_READY) if _waits(node)]
            for kind, (several, count) in _by_end(group, nodes, ends).items():
                if count:  # else no task of the group waits: it must not affect the mean run time
                    waiting = found.setdefault(kind, _Waiting())
                    waiting.add(count, self._mean_s(several), _longest_s(kind, several, group.shortest_s))
        self._add_pending(found, ends)
        ordered = sorted(found.items(), key=lambda item: item[0].before)
        return [Demand(kind.shape, one.count, one.task_s, needs_s=one.needs_s) for kind, one in ordered]

    def _add_pending(self, found: dict[_Kind, _Waiting], ends: Sequence[float]) -> None:
        """Elements of arrays that may run and have no row yet."""
        for array in self._book.arrays.values():
            node = array.node
            waits = node.state is not TaskState.READY or not array.due
            if waits or array.run_no in self.run_budgets.exhausted or array.run_no in self._book.ready.held_runs:
                continue
            kind = _kind(-node.priority, node.shape, node.needs_s, ends)
            waiting = found.setdefault(kind, _Waiting(0, self._runtimes.known_s(node)))
            waiting.count += array.due.count
            waiting.needs_s = max(waiting.needs_s, _longest_s(kind, [node]))

    def _mean_s(self, nodes: list[Node]) -> float | None:
        """The expected run time of one of these tasks in seconds; None if unknown for some."""
        known = [self._runtimes.known_s(node) for node in nodes[:GUESSED]]
        told = [seconds for seconds in known if seconds is not None]
        return sum(told) / len(told) if told and len(told) == len(known) else None

    def _soon(self, horizon_s: float, ends: Sequence[float], now: float) -> list[Demand]:
        """Tasks that will be ready within the horizon, less the slots that the ending tasks free."""
        nodes = self._book.graph.nodes
        met: dict[int, int] = {}
        ready_in: dict[int, float] = {}
        parents: dict[int, Shape] = {}
        for attempt in islice(self._attempts.active.values(), LOOKED_AHEAD):
            node = nodes.get(attempt.task_no)
            if node is None or not node.dependents or node.run_no in self.run_budgets.exhausted:
                continue
            left_s = self._left_s(node, attempt.started_at, now) if attempt.state is AttemptState.STARTED else None
            if left_s is None or left_s > horizon_s:
                continue
            parents[attempt.task_no] = node.shape
            for dependent_no, _ in islice(node.dependents, LOOKED_AHEAD):
                met[dependent_no] = met.get(dependent_no, 0) + 1
                ready_in[dependent_no] = max(left_s, ready_in.get(dependent_no, 0.0))
        waves: dict[_Kind, list[Node]] = {}
        for task_no, count in met.items():
            dependent = nodes.get(task_no)
            if dependent is not None and _will_be_ready(dependent, count):
                waves.setdefault(_kind(0, dependent.shape, dependent.needs_s, ends), []).append(dependent)
        demands = []
        for kind, wave in waves.items():
            way = sum(1 for parent in parents.values() if fits(parent.as_resources, kind.shape.asks))
            if len(wave) > way:
                in_s = sum(ready_in[node.task_no] for node in wave) / len(wave)
                needs_s = _longest_s(kind, wave)
                demands.append(Demand(kind.shape, len(wave) - way, self._mean_s(wave), max(0.001, in_s), needs_s))
        return demands

    def _left_s(self, node: Node, started_at: float | None, now: float) -> float | None:
        """How much longer a task may run, in seconds; None if unknown."""
        known = self._runtimes.known_s(node)
        return None if known is None or started_at is None else max(0.0, started_at + known - now)

    # --- room ------------------------------------------------------------------------------------

    def _workers(self, now: float) -> list[Spot]:
        failing = self._failing_inits()
        return [
            Spot(worker.free, worker.capacity, self._busy_s(worker, now), lives_s=worker.left_s(now))
            for worker in self._fleet.workers.values()
            if worker.takes_tasks and _is_prepared(worker, failing)
        ]

    def _failing_inits(self) -> list[int]:
        """Init tasks that failed on some worker, of runs that continue nevertheless."""
        return [task_no for run_no in self._book.failing_runs for task_no in self._book.runs[run_no].init_failures]

    def _busy_s(self, worker: Worker, now: float) -> float:
        """In how many seconds the worker will probably start something new."""
        nodes = self._book.graph.nodes
        left: list[float] = []
        for attempt in islice(worker.held.values(), GUESSED):
            if not attempt.in_slot:
                continue
            node = nodes.get(attempt.task_no)
            left_s = None if node is None else self._left_s(node, attempt.started_at or attempt.assigned_at, now)
            left.append(NOBODY_KNOWS_S if left_s is None else left_s)
        return (sum(left) + worker.ahead_s) / len(left) if left else 0.0

    def _idle(self, vms: Iterable[VmRow], now: float) -> list[IdleVm]:
        idle, failing = [], self._failing_inits()
        for vm in vms:
            worker = self._fleet.workers.get(vm.worker)
            if vm.state is not VmState.RUNNING or vm.keep_alive or worker is None or worker.leaving:
                continue
            if worker.idle_since is not None:
                # A worker that cannot be prepared for a run is not kept for that run's tasks: another may replace it.
                offers = worker.capacity if _is_prepared(worker, failing) else {}
                idle.append(IdleVm(vm.vm_no, vm.pool, now - worker.idle_since, offers, worker.left_s(now)))
        return idle


def _booting(vm: VmRow, pool: PoolNow, now: float) -> Spot:
    """A VM that boots. A boss with another clock may have started it."""
    up_in_s = min(pool.boot_s, max(0.0, vm.intended_at + pool.boot_s - now))
    return Spot(dict(vm.size), vm.size, up_in_s, vm.pool, up_in_s + pool.lives_s)


def _kind(before: int, shape: Shape, needs_s: float, ends: Sequence[float]) -> _Kind:
    if not (ends and needs_s):
        return _Kind(before, shape)
    return _Kind(before, shape, least_needed_s(needs_s), bisect_left(ends, needs_s))


def _by_end(group: Group, nodes: list[Node], ends: Sequence[float]) -> dict[_Kind, tuple[list[Node], int]]:
    """Divide a group's tasks by the pools whose VMs live long enough: the first ones, and how many in all. Those that
    are not checked count as the shortest of the group, so that a worker comes for it."""
    rest = max(0, len(group.nodes) - COUNTED_READY)
    if not (ends and group.least_s):
        return {_Kind(-group.priority, group.shape): (nodes, len(nodes) + rest)}
    found: dict[_Kind, list[Node]] = {}
    for node in nodes:
        found.setdefault(_kind(-group.priority, group.shape, node.needs_s, ends), []).append(node)
    shortest = _kind(-group.priority, group.shape, group.shortest_s, ends)
    found.setdefault(shortest, [])
    return {kind: (several, len(several) + rest * (kind == shortest)) for kind, several in found.items()}


def _longest_s(kind: _Kind, nodes: Iterable[Node], without: float = 0.0) -> float:
    """The longest stated run time of these tasks, if run times matter; `without`: the result for no tasks."""
    return max([node.needs_s for node in nodes], default=without) if kind.least_s else 0.0


def _is_prepared(worker: Worker, failing: list[int]) -> bool:
    """Whether the worker can serve every run: one on which an init task failed offers no room for that run's tasks."""
    return not any(worker.inits.get(task_no) == "failed" for task_no in failing)


def _will_be_ready(node: Node, ended: int) -> bool:
    """Whether the task waits for this many ends and has no chained attempt yet."""
    return node.state is TaskState.WAITING and node.unmet == ended and not node.assigned


def _waits(node: Node) -> bool:
    return node.state is TaskState.READY and not node.assigned
