"""Why a ready task has not started, by the rules that the boss itself uses to place tasks and plan capacity.

Reads everything, changes nothing. The functions that decide also answer: `fits`, `InitTasks.refuses`, the pools, the
budgets and the capacity plan. The database explains tasks in other states (`ecloud/queries/why_task.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

from boss.core.autoscale.autoscaler import Autoscaler
from boss.core.autoscale.run_budgets import RunBudgets
from boss.core.autoscale.scaling import PoolNow
from boss.core.autoscale.vms import Vms
from boss.core.model.fleet import Fleet
from boss.core.model.graph import Node, Shape
from boss.core.model.ready_tasks import ReadyTasks
from boss.core.model.worker import Worker
from boss.core.tasks.attempts import Attempts
from boss.core.tasks.taskbook import TaskBook
from ecloud.model.tasks import TaskState, fits
from ecloud.model.text import about, amounts, counted, duration
from ecloud.model.worker_states import WorkerState

NAMED = 5
COUNTED = 10_000
"""Ready tasks of a group that are counted one by one; beyond it, the queue's length is used."""


class WhyReady:
    """Explains why a ready task waits."""

    def __init__(
        self,
        book: TaskBook,
        attempts: Attempts,
        fleet: Fleet,
        ready: ReadyTasks,
        vms: Vms,
        autoscaler: Autoscaler,
        budgets: RunBudgets,
    ) -> None:
        self._book = book
        self._attempts = attempts
        self._fleet = fleet
        self._ready = ready
        self._vms = vms
        self._autoscaler = autoscaler
        self._budgets = budgets

    def layers(self, task_no: int, now: float) -> list[str]:
        """Sentences, the nearest reason first; empty if the task is not ready, or a worker already has it."""
        node = self._book.graph.nodes.get(task_no)
        if node is None or node.init or node.state is not TaskState.READY or node.assigned:
            return []
        return list(self._layers(node, now))

    def nobody_fits(self, node: Node, now: float) -> str:
        """What a ready task lacks that no worker fits."""
        name = f"task {node.id}"
        end = self._end_too_soon(node, now)
        return self._nobody_lives(node, name, now) if end else self._nobody_fits(node, name, now)

    def longest_s(self, shape: Shape, now: float) -> float:
        """The longest time that a worker, or a new VM of a pool, lives that such a task fits; -infinity if it fits
        none."""
        lives = [worker.left_s(now) for worker in self._fitting(shape)]
        return max([*lives, *(pool.lives_s for pool in self._fitting_pools(shape, now))], default=-math.inf)

    def _fitting(self, shape: Shape) -> list[Worker]:
        return [one for one in self._fleet.workers.values() if fits(one.capacity, shape.asks)]

    def _fitting_pools(self, shape: Shape, now: float) -> list[PoolNow]:
        pools = self._autoscaler.pools_now(now)
        return [pool for pool in pools if pool.config.maximum and fits(pool.config.size, shape.asks)]

    def _layers(self, node: Node, now: float) -> Iterator[str]:
        name, run = f"task {node.id}", self._book.runs[node.run_no]
        if run.row.held:
            yield f"{name} waits because its run is held: {run.row.held}"
        elif run.stuck:
            yield f"{name} waits: {run.stuck}"
        if node.not_before > now:
            last = f": {node.reason}" if node.reason else ""
            yield f"{name} is tried again in {duration(node.not_before - now)}{last}"
        fitting = self._fitting(node.shape)
        lasting = [one for one in fitting if not node.needs_s or node.needs_s <= one.left_s(now)]
        if lasting:
            yield from self._workers(node, name, lasting)
        elif self._end_too_soon(node, now):
            yield self._nobody_lives(node, name, now)
        else:
            yield self._nobody_fits(node, name, now)
        yield from self._pools(node, now)
        suspect = self._attempts.suspects.rows.get(node.task_no)
        if suspect is not None:
            lost = f"{counted(suspect.lost, 'worker')} {'was' if suspect.lost == 1 else 'were'} lost while it ran"
            yield f"{lost}, the last {suspect.reason}" + ("; it runs alone on the next" if node.apart else "")
        if node.reason and node.not_before <= now:
            yield f"{name} came back: {node.reason}"

    # --- workers ---------------------------------------------------------------------------------

    def _workers(self, node: Node, name: str, fitting: list[Worker]) -> Iterator[str]:
        takers = [worker for worker in fitting if worker.takes_tasks]
        closed = [f"{worker.name} {_why_closed(worker)}" for worker in fitting if not worker.takes_tasks]
        able = [worker for worker in takers if not self._attempts.inits.refuses(worker, node.run_no)]
        if not takers:
            yield f"{name} waits: none of the workers that it fits takes tasks now: {_some(closed)}"
            return
        if not able:
            failed = [worker.name for worker in takers]
            yield f"{name} waits: its run cannot be prepared on any worker that it fits ({_some(failed)})"
        else:
            yield self._turn(node, name, able)
        if closed:
            yield f"some of the workers that it fits take no tasks: {_some(closed)}"

    def _turn(self, node: Node, name: str, able: list[Worker]) -> str:
        if node.apart:
            idle = [worker for worker in able if not worker.held]
            if not idle:
                return f"{name} must run alone, since it may have killed workers, and all workers are busy"
        roomy = [worker for worker in able if fits(worker.free, node.shape.asks)]
        ahead = self._ahead(node)
        if roomy and not ahead:
            return f"{name} is ready and worker {roomy[0].name} is free: the boss assigns it with its next decision"
        if not roomy and (shared := next((one for one in able if _waits_for_machine(one, node)), None)):
            host = shared.row.hello.host or "its machine"
            text = f"{name} waits its turn: worker {shared.name} is free, but other workers on {host} use the machine"
            return text + "".join(f"; {part}" for part in ahead)
        fit = f"{counted(len(able), 'worker')} that {'fits' if len(able) == 1 else 'fit'} it"
        state = "have room" if roomy else "are all busy" if len(able) > 1 else "is busy"
        return f"{name} waits its turn: {fit} {state}" + "".join(f"; {part}" for part in ahead)

    def _ahead(self, node: Node) -> list[str]:
        """What goes first: higher priorities, then earlier tasks of its run."""
        higher = before = 0
        for group in self._ready.placeable():
            due = sum(group.is_due(one) for one in islice(group.nodes, COUNTED)) + max(0, len(group.nodes) - COUNTED)
            if group.priority > node.priority:
                higher += due
            elif group.run_no == node.run_no and group.priority == node.priority:
                first = islice(group.nodes, COUNTED)
                before += sum(group.is_due(one) and one.task_no < node.task_no for one in first)
        parts = []
        if higher:
            parts.append(f"{counted(higher, 'ready task')} of higher priority {'goes' if higher == 1 else 'go'} first")
        if before:
            parts.append(f"{counted(before, 'task')} of its run {'is' if before == 1 else 'are'} before it")
        return parts

    def _nobody_fits(self, node: Node, name: str, now: float) -> str:
        workers, pools = self._fleet.workers.values(), self._autoscaler.pools_now(now)
        able = self._fitting_pools(node.shape, now)
        if able:
            has = "no worker fits" if self._fleet.workers else "no worker is up"
            return f"{name} waits: {has}; {self._who_starts(node, able)}"
        lacking = []
        for wanted, amount in node.shape.asks:
            most = max((worker.capacity.get(wanted, 0.0) for worker in workers), default=0.0)
            offered = max((pool.config.size.get(wanted, 0.0) for pool in pools), default=0.0)
            if max(most, offered) < amount:
                pool = f"the largest pool offers {amounts({wanted: offered})}" if offered else "no pool has any"
                has = f"the largest worker has {amounts({wanted: most})}" if workers else "no worker is up"
                lacking.append(f"needs {amounts({wanted: amount})}; {has}, {pool}")
        if not lacking:
            return f"{name} needs {amounts(node.shape.as_resources)} in one worker: no worker and no pool has all of it"
        return f"{name} {'; '.join(lacking)}"

    def _end_too_soon(self, node: Node, now: float) -> bool:
        """Whether the stated run time is what keeps the task from workers or pools that it fits."""
        lives = [worker.left_s(now) for worker in self._fitting(node.shape)]
        lives += [pool.lives_s for pool in self._fitting_pools(node.shape, now)]
        return node.needs_s > 0 and any(seconds < node.needs_s for seconds in lives)

    def _nobody_lives(self, node: Node, name: str, now: float) -> str:
        """Why none of the workers that it fits lives for its stated run time, and what to do."""
        left_s = max([worker.left_s(now) for worker in self._fitting(node.shape)], default=-math.inf)
        has = "no worker that it fits is up"
        if left_s > -math.inf:
            has = f"the longest-lived worker that it fits ends in {about(left_s)}"
        waits = f"{name} waits: its runtime_s is {node.needs_s:g} ({duration(node.needs_s)}), and {has}"
        pools = self._fitting_pools(node.shape, now)
        able = [pool for pool in pools if node.needs_s <= pool.lives_s]
        if able:
            return f"{waits}; {self._who_starts(node, able)}"
        if pools:
            longest = max(pools, key=lambda pool: pool.lives_s)
            what = f"workers of pool {longest.config.name} live for {duration(longest.lives_s)}"
            return f"{waits}; {what}: raise the pool's time_limit, or lower runtime_s"
        return f"{waits}, and no pool can start another: start a worker that lives longer, or lower runtime_s"

    # --- pools -----------------------------------------------------------------------------------

    def _who_starts(self, node: Node, able: list[PoolNow]) -> str:
        if broke := self._budgets.exhausted.get(node.run_no):
            return f"no VM starts for it: {broke}"
        opened = [pool for pool in able if not pool.closed]
        if not opened:
            return f"no VM of pool {able[0].config.name} starts: {able[0].closed}"
        return f"pool {opened[0].config.name} can start one that fits"

    def _pools(self, node: Node, now: float) -> Iterator[str]:
        if broke := self._budgets.exhausted.get(node.run_no):
            yield f"no VM starts for it: {broke}"
        pools = self._autoscaler.pools_now(now)
        for pool in pools:
            name = pool.config.name
            if not (pool.config.maximum and pool.can_run(node.shape, node.needs_s)):
                continue
            told = []
            if pool.closed:
                told.append(f"no VM of pool {name} starts: {pool.closed}")
            elif pool.alive >= pool.config.maximum:
                told.append(f"pool {name} is at its maximum of {counted(pool.config.maximum, 'VM')}")
            elif pool.room_bounds:
                told.append(pool.room)
            coming = [vm for vm in self._vms.alive.values() if vm.row.pool == name and vm.is_coming]
            if coming:
                boot = f"{counted(len(coming), 'VM')} of pool {name} {'boots' if len(coming) == 1 else 'boot'}"
                said = sorted({vm.row.said for vm in coming if vm.row.said})
                told.append(f"{boot} (its cloud says: {', '.join(said)})" if said else boot)
            if told:
                yield "; ".join(told)
        plan = self._autoscaler.plan(now)
        able = {pool.config.name for pool in pools if pool.can_run(node.shape, node.needs_s)}
        starts = [start for start in plan.starts if start.pool in able]
        if starts:
            vms = f"{counted(len(starts), 'VM')} of pool {starts[0].pool}"
            yield f"the boss is about to start {vms}: {starts[0].reason}"


def _waits_for_machine(worker: Worker, node: Node) -> bool:
    return worker.shares_machine and fits(worker.own, node.shape.asks)


def _why_closed(worker: Worker) -> str:
    if worker.row.state is not WorkerState.UP:
        return f"is {worker.row.state}" + (f" ({worker.row.reason})" if worker.row.reason else "")
    if worker.row.trouble:
        return f"reports: {worker.row.trouble}"
    return "was not heard since the boss started"


def _some(texts: list[str]) -> str:
    shown = "; ".join(texts[:NAMED])
    return shown if len(texts) <= NAMED else f"{shown}; and {len(texts) - NAMED} more"
