"""What there is to do and who is there to do it, as `scaling.plan` wants to be told. Reads everything, changes nothing.

Looks at a bounded number of tasks: a batch must not cost more where more tasks wait.
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
"""Ready tasks of a kind that are counted one by one in a batch; of more, void entries in the queue are counted too."""
GUESSED = 20
"""Tasks of a kind whose run-times are asked for: they are alike."""
LOOKED_AHEAD = 1_000
"""Running attempts, and edges below each, that are followed to see what will be ready."""
LOOK_AHEAD_FROM_S = 5.0
"""Where VMs are there within this, nothing is gained by thinking ahead of them."""
NOBODY_KNOWS_S = 1e9


class DemandEstimate:
    """The state, seen by whoever plans capacity."""

    def __init__(
        self, fleet: Fleet, book: TaskBook, attempts: Attempts, runtimes: Runtimes, run_budgets: RunBudgets
    ) -> None:
        self.run_budgets = run_budgets
        self._fleet = fleet
        self._book = book
        self._attempts = attempts
        self._runtimes = runtimes

    def situation(self, vms: Iterable[VmRow], pools: list[PoolNow], now: float) -> FleetSnapshot:
        """Everything a plan is made of."""
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
        """Why nothing starts for what is ready all the same."""
        broke = self.run_budgets.exhausted
        ready = {group.run_no for group in self._book.ready.placeable()} if broke else set()
        return [f"no VM starts for a run: {broke[run_no]}" for run_no in sorted(ready & broke.keys())]

    # --- work ------------------------------------------------------------------------------------

    def _ready(self) -> list[Demand]:
        counts: dict[tuple[int, Shape], tuple[int, float | None]] = {}
        for group in self._book.ready.placeable():
            if group.run_no in self.run_budgets.exhausted:
                continue  # what is there works on; nothing starts for it
            nodes = [node for node in islice(group.nodes, COUNTED_READY) if _waits(node)]
            count = len(nodes) + max(0, len(group.nodes) - COUNTED_READY)
            if not count:
                continue  # nothing of it waits: it says nothing of how long the others take
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
        ordered = sorted(counts.items(), key=lambda item: item[0][0])
        return [Demand(shape, count, task_s) for (_, shape), (count, task_s) in ordered]

    def _mean_s(self, nodes: list[Node]) -> float | None:
        """What one of these may take; None where nobody knows of some."""
        known = [self._runtimes.known_s(node) for node in nodes[:GUESSED]]
        told = [seconds for seconds in known if seconds is not None]
        return sum(told) / len(told) if told and len(told) == len(known) else None

    def _soon(self, horizon_s: float, now: float) -> list[Demand]:
        """What will be ready within the horizon, beyond what the ends that make it ready make way for."""
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
        """How much longer it may run; None where nobody knows."""
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
        """Init tasks that failed somewhere, of runs that continue all the same."""
        return [task_no for run_no in self._book.failing_runs for task_no in self._book.runs[run_no].init_failures]

    def _busy_s(self, worker: Worker, now: float) -> float:
        """When it is likely to begin something new."""
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
                # One in which a run can't be prepared is not kept for what waits: its place may be another's.
                offers = worker.capacity if _is_prepared(worker, failing) else {}
                idle.append(IdleVm(vm.vm_no, vm.pool, now - worker.idle_since, offers))
        return idle


def _up_in_s(vm: VmRow, boot_s: float, now: float) -> float:
    """When a VM that boots is likely up. Another boss may have begun it, with a clock that was set otherwise."""
    return min(boot_s, max(0.0, vm.intended_at + boot_s - now))


def _is_prepared(worker: Worker, failing: list[int]) -> bool:
    """No room for a run's tasks is where the run can't be prepared: another process may do better."""
    return not any(worker.inits.get(task_no) == "failed" for task_no in failing)


def _will_be_ready(node: Node, ended: int) -> bool:
    """Whether the task waits for so many ends and has no chained attempt yet."""
    return node.state is TaskState.WAITING and node.unmet == ended and not node.assigned


def _waits(node: Node) -> bool:
    return node.state is TaskState.READY and not node.assigned
