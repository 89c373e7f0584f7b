"""Describes waiting work and available capacity for `scaling.plan`. Reads everything, changes nothing.

Checks a bounded number of tasks, so that a batch costs no more when more tasks wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from boss.core.autoscale.run_budgets import RunBudgets
from boss.core.autoscale.scaling import Demand, FleetSnapshot, IdleVm, PoolNow, Spot
from boss.core.model.fleet import Fleet, Worker
from boss.core.model.graph import Node, Shape
from boss.core.model.rows import VmRow
from boss.core.model.runtime_estimates import Runtimes
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
        demands = self._ready()
        if horizon_s >= LOOK_AHEAD_FROM_S:
            demands += self._soon(horizon_s, now)
        rooms = [
            Spot(dict(vm.size), vm.size, _up_in_s(vm, boots[vm.pool].boot_s, now), vm.pool)
            for vm in vms
            if vm.state in COMING and vm.pool in boots
        ]
        if demands:
            rooms = [*self._workers(now), *rooms]
        return FleetSnapshot(demands, rooms, pools, self._idle(vms, now), self._notes())

    def _notes(self) -> list[str]:
        """Why nothing starts although tasks are ready."""
        broke = self.run_budgets.exhausted
        ready = {group.run_no for group in self._book.ready.placeable()} if broke else set()
        return [f"no VM starts for a run: {broke[run_no]}" for run_no in sorted(ready & broke.keys())]

    # --- work ------------------------------------------------------------------------------------

    def _ready(self) -> list[Demand]:
        counts: dict[tuple[int, Shape], tuple[int, float | None]] = {}
        for group in self._book.ready.placeable():
            if group.run_no in self.run_budgets.exhausted:
                continue  # existing workers take these; no VM starts for them
            nodes = [node for node in islice(group.nodes, COUNTED_READY) if _waits(node)]
            count = len(nodes) + max(0, len(group.nodes) - COUNTED_READY)
            if not count:
                continue  # no task of the group waits: it must not affect the mean run time
            task_s = self._mean_s(nodes)
            key = (-group.priority, group.shape)
            if key in counts:
                before, before_s = counts[key]
                if task_s is not None and before_s is not None:
                    task_s = (before * before_s + count * task_s) / (before + count)
                else:
                    task_s = None
                count += before
            counts[key] = (count, task_s)
        self._add_pending(counts)
        ordered = sorted(counts.items(), key=lambda item: item[0][0])
        return [Demand(shape, count, task_s) for (_, shape), (count, task_s) in ordered]

    def _add_pending(self, counts: dict[tuple[int, Shape], tuple[int, float | None]]) -> None:
        """Elements of arrays that may run and have no row yet."""
        for array in self._book.arrays.values():
            node = array.node
            waits = node.state is not TaskState.READY or not array.due
            if waits or array.run_no in self.run_budgets.exhausted or array.run_no in self._book.ready.held_runs:
                continue
            key = (-node.priority, node.shape)
            count, task_s = counts.get(key, (0, self._runtimes.known_s(node)))
            counts[key] = (count + array.due.count, task_s)

    def _mean_s(self, nodes: list[Node]) -> float | None:
        """The expected run time of one of these tasks in seconds; None if unknown for some."""
        known = [self._runtimes.known_s(node) for node in nodes[:GUESSED]]
        told = [seconds for seconds in known if seconds is not None]
        return sum(told) / len(told) if told and len(told) == len(known) else None

    def _soon(self, horizon_s: float, now: float) -> list[Demand]:
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
        waves: dict[Shape, list[Node]] = {}
        for task_no, count in met.items():
            dependent = nodes.get(task_no)
            if dependent is not None and _will_be_ready(dependent, count):
                waves.setdefault(dependent.shape, []).append(dependent)
        demands = []
        for shape, wave in waves.items():
            way = sum(1 for parent in parents.values() if fits(parent.as_resources, shape.asks))
            if len(wave) > way:
                in_s = sum(ready_in[node.task_no] for node in wave) / len(wave)
                demands.append(Demand(shape, len(wave) - way, self._mean_s(wave), max(0.001, in_s)))
        return demands

    def _left_s(self, node: Node, started_at: float | None, now: float) -> float | None:
        """How much longer a task may run, in seconds; None if unknown."""
        known = self._runtimes.known_s(node)
        return None if known is None or started_at is None else max(0.0, started_at + known - now)

    # --- room ------------------------------------------------------------------------------------

    def _workers(self, now: float) -> list[Spot]:
        failing = self._failing_inits()
        return [
            Spot(worker.free, worker.capacity, self._busy_s(worker, now))
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
                idle.append(IdleVm(vm.vm_no, vm.pool, now - worker.idle_since, offers))
        return idle


def _up_in_s(vm: VmRow, boot_s: float, now: float) -> float:
    """Seconds until a booting VM is probably up. A boss with another clock may have started it."""
    return min(boot_s, max(0.0, vm.intended_at + boot_s - now))


def _is_prepared(worker: Worker, failing: list[int]) -> bool:
    """Whether the worker can serve every run: one on which an init task failed offers no room for that run's tasks."""
    return not any(worker.inits.get(task_no) == "failed" for task_no in failing)


def _will_be_ready(node: Node, ended: int) -> bool:
    """Whether the task waits for this many ends and has no chained attempt yet."""
    return node.state is TaskState.WAITING and node.unmet == ended and not node.assigned


def _waits(node: Node) -> bool:
    return node.state is TaskState.READY and not node.assigned
