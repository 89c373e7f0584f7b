"""Why a task is in its state: layers of reasons, the nearest first. Reads one snapshot, never writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ecloud.db import schema
from ecloud.model.ranges import Indices, Ranges
from ecloud.model.tasks import ENDED, ROUNDING, AttemptState, Condition, Resources, TaskState, fits
from ecloud.model.text import amounts, counted, duration, when
from ecloud.model.vm_states import COMING, VmState
from ecloud.model.worker_states import WorkerState
from ecloud.queries import boot_history
from ecloud.queries.arrays import array_of_element, array_row
from ecloud.queries.lookup import attempts_of
from ecloud.queries.producers import with_maker
from ecloud.queries.status import RUNNING_ATTEMPTS, boss_status, vm_views, worker_views
from ecloud.queries.suspects import lost_workers
from ecloud.queries.views import UNFINISHED, AttemptView, BossStatus, Neighbour, Reasons, VmView, WorkerView
from ecloud.queries.why_edges import Upwards

STEPS = 100_000
"""Tasks followed upwards in the search for the task that blocks all others."""
ON_THE_WAY = 3
"""Tasks named at each end of a long path."""
NAMED = 5
LINES = 5
"""Last lines of an error output to show."""
SLOW_PROMOTION_S = 10.0


class Pool(msgspec.Struct, frozen=True):
    """VMs that the boss may start: the resources of each, their maximum number, and the cloud that makes them."""

    name: str
    offers: Resources
    maximum: int
    cloud: str = "local"


AskBoss = Callable[[int], "list[str] | str"]
"""Asks the boss why a ready task (by its number) has not started. Returns sentences, an empty list if the task is no
longer ready, or one sentence on why the boss cannot be asked."""


_KINDS = {schema.TASK: "task", schema.INIT: "init task", schema.ARRAY: "array"}


class TaskReasons:
    """One query about tasks; caches what it reads. `ask`: asks the boss about ready tasks, if it is reachable."""

    def __init__(self, connection: Connection, pools: Sequence[Pool], now: float, ask: AskBoss | None = None) -> None:
        self._ask = ask
        self.connection = connection
        self.pools = pools
        self.now = now
        self.boss = boss_status(connection, now)
        self.workers = worker_views(connection)
        self.vms = vm_views(connection)
        self.pool_views = boot_history.pool_views(connection)

    def of(self, row: Any) -> Reasons:
        """Return the reasons for a task's state, nearest first."""
        layers = list(self._layers(row))
        return Reasons(
            f"{'array' if row.init == schema.ARRAY else 'task'} {row.id}", row.state, layers[0], tuple(layers[1:])
        )

    def _layers(self, row: Any) -> Iterator[str]:
        name = f"{_KINDS[row.init]} {row.id}"
        if hasattr(row, "array_no"):
            yield from self._unmade(row)
        elif row.init == schema.ARRAY and row.state == TaskState.READY.value:
            yield from self._unfinished_array(row, name)
        elif row.state == TaskState.WAITING.value:
            yield from self._waiting(row, name)
        elif row.state == TaskState.READY.value:
            yield from self._ready(row, name)
        elif row.state == TaskState.RUNNING.value:
            yield from self._running(row, name)
        elif row.state == TaskState.FAILED.value:
            yield from self._failed(row, name)
        elif row.state == TaskState.ABORTED.value:
            yield from self._aborted(row, name)
        elif row.state == TaskState.CANCELLED.value:
            yield f"{name} was {row.reason or 'cancelled'} at {when(row.changed_at, self.now)}"
        else:
            yield self._succeeded(row, name)

    # --- waiting ----------------------------------------------------------------------------------

    def _waiting(self, row: Any, name: str) -> Iterator[str]:
        upwards = Upwards(self.connection, UNFINISHED)
        unmet, total = upwards.all_of(row.task_no, NAMED + 1)
        if not unmet:
            array = array_of_element(self.connection, row)
            if array is not None and array.state == TaskState.WAITING.value:
                yield f"{name} waits for the dependencies of its array"
                yield from self._layers(array)
                return
            yield f"{name} no longer waits for anything; the boss makes it ready with its next decision"
            yield from self._no_boss()
            return
        first = unmet[0]
        sentence = f"{name} waits for task {first.id} ({first.state}) to {_wish(first)}"
        if total > 1:
            sentence += f" and for {counted(total - 1, 'other task')}"
        root = self._root(first, upwards)
        layers = list(self._layers(root)) if root is not None else []
        if root is None:
            sentence += f"; the cause was not found in time: ask why {first.id} waits"
        else:
            sentence += f"; {layers[0]}" if root.task_no == first.task_no else f"; at the root, {layers[0]}"
        yield sentence
        yield from self._no_boss()
        for other in unmet[1 : NAMED + 1]:
            yield f"it waits for task {other.id} ({other.state}) to {_wish(other)}"
        told = tuple(self._no_boss())
        yield from [layer for layer in layers[1:] if not layer.startswith(told)]

    def _unfinished_dependencies(self, task_no: int, upwards: Upwards) -> list[Neighbour]:
        found = upwards.of(task_no)
        # Running tasks make progress: list the other ones first.
        return sorted(found, key=lambda other: other.state == TaskState.RUNNING.value)

    def _root(self, first: Neighbour, upwards: Upwards) -> Any:
        """Return the first task upwards from `first` that waits for no other task; None if the search exceeds its time
        limit."""
        at = first
        for _ in range(STEPS):
            if at.state != TaskState.WAITING.value:
                break
            further = self._unfinished_dependencies(at.task_no, upwards)
            if not further:
                break
            if upwards.is_over:
                return None
            at = further[0]
        else:
            return None
        return self.connection.execute(sa.select(schema.tasks).where(schema.tasks.c.task_no == at.task_no)).first()

    # --- arrays -----------------------------------------------------------------------------------

    def _unmade(self, row: Any) -> Iterator[str]:
        """Explain the state of an element without a row: the state of its array."""
        array = array_of_element(self.connection, row)
        name = f"element {row.id}"
        if array.state == TaskState.READY.value:
            unmade = Ranges.of(array_row(self.connection, array.task_no).pending)
            before = sum(max(0, min(last + 1, row.position) - first) for first, last in unmade.ranges)
            yield f"{name} is {row.state}; the boss makes a task of it shortly before it runs" + (
                f": {counted(before, 'element')} of array {array.id} {'is' if before == 1 else 'are'} before it"
                if before
                else ""
            )
        else:
            yield f"{name} is {row.state}, as its array is"
        yield from self._layers(array)

    def _unfinished_array(self, row: Any, name: str) -> Iterator[str]:
        array = array_row(self.connection, row.task_no)
        states = msgspec.json.decode(array.states)
        shown = ", ".join(f"{count:,} {state}" for state, count in states.items())
        yield f"{name} ends when all of its elements have ended: {shown}"
        each = [other_no for other_no, _ in msgspec.json.decode(array.each_of)]
        if array.pending_count and each:
            tasks = schema.tasks.c
            names = self.connection.execute(sa.select(tasks.id).where(tasks.task_no.in_(each))).scalars().all()
            yield f"elements wait for those of array {' and '.join(sorted(names))} one by one"
        first = self._first_unfinished(array)
        if first is not None:
            yield from self._layers(first)
        else:
            yield from self._no_boss()

    def _first_unfinished(self, array: Any) -> Any:
        """Return the first element that has a row and has not ended."""
        tasks = schema.tasks.c
        last = array.first_no + Indices.of(array.indices).count - 1
        for state in (TaskState.READY, TaskState.RUNNING, TaskState.WAITING):
            query = sa.select(schema.tasks).where(
                tasks.run_no == array.run_no,
                tasks.init == schema.TASK,
                tasks.state == state.value,
                tasks.task_no.between(array.first_no, last),
            )
            found = self.connection.execute(query.order_by(tasks.task_no).limit(1)).first()
            if found is not None:
                return found
        return None

    # --- ready ------------------------------------------------------------------------------------

    def _ready(self, row: Any, name: str) -> Iterator[str]:
        if row.init == schema.INIT:
            yield from self._no_boss()
            yield f"{name} is an init task: it runs in each worker process before the first task of its run"
            return
        told = self._ask(row.task_no) if self._ask is not None and self.boss.leads else []
        if told and not isinstance(told, str):
            yield from told
            return
        found = list(self._ready_layers(row, name))
        if told:
            found.append(f"this is what the database shows: the boss did not answer ({told})")
        yield from found or [f"{name} is ready; the boss assigns it with its next decision"]

    def _ready_layers(self, row: Any, name: str) -> Iterator[str]:
        attempt = self._live_attempt(row.task_no)
        if attempt is not None:
            yield self._given(row, name, attempt)
        yield from self._no_boss()
        held = self._run(row.run_no).held
        if held:
            yield f"{name} waits because its run is held: {held}"
        if row.not_before > self.now:
            last = self._last_words(row)
            yield f"{name} is tried again in {duration(row.not_before - self.now)}{f': {last}' if last else ''}"
        if attempt is None:
            yield from self._no_room(row, name, msgspec.json.decode(row.asks, type=dict[str, float]))
        if row.reason and row.not_before <= self.now:
            yield f"{name} came back: {row.reason}"
        yield from self._suspicion(row)

    def _suspicion(self, row: Any) -> Iterator[str]:
        lost = lost_workers(self.connection, row.task_no)
        if lost:
            yield f"{lost}; it may kill them: its last try runs alone, then it fails (MAX_LOST_WORKERS)"

    def _given(self, row: Any, name: str, attempt: AttemptView) -> str:
        worker = next((worker for worker in self.workers if worker.worker == attempt.worker), None)
        host = f" on {worker.host}" if worker is not None and worker.host else ""
        if attempt.state == "stopping":
            return f"{name}: an earlier attempt is being stopped on worker {attempt.worker}{host}"
        inits = self._inits_at(row.run_no, attempt.worker)
        if inits:
            return f"{name} waits at worker {attempt.worker}{host} until init task {inits[0]} has prepared it"
        busy = (
            f" behind {counted(len(worker.running), 'running task')}" if worker is not None and worker.running else ""
        )
        past = self._past(attempt.assigned_at)
        return f"{name} was given to worker {attempt.worker}{host} {past} ago and waits there{busy}"

    def _inits_at(self, run_no: int, worker: str) -> list[str]:
        """List init tasks of the run that the worker still has to run."""
        attempts, rows = schema.attempts, schema.tasks
        query = (
            sa.select(rows.c.id)
            .select_from(attempts)
            .join(rows, rows.c.task_no == attempts.c.task_no)
            .where(rows.c.run_no == run_no, rows.c.init == 1, attempts.c.worker == worker)
            .where(attempts.c.state.in_(("assigned", "started")))
            .order_by(rows.c.task_no)
        )
        return [row.id for row in self.connection.execute(query)]

    def _no_boss(self) -> Iterator[str]:
        if not self.boss.leads:
            yield no_boss(self.boss, self.now)

    def _no_room(self, row: Any, name: str, asks: Resources) -> Iterator[str]:
        fitting = [worker for worker in self.workers if fits(worker.resources, asks.items())]
        pools = [pool for pool in self.pools if pool.maximum > 0 and fits(pool.offers, asks.items())]
        if not fitting:
            yield self._nobody_fits(name, asks, pools, row.run_no)
            yield from self._boots(pools, row.run_no)
            return
        takers = [worker for worker in fitting if worker.state == WorkerState.UP and not worker.trouble]
        if not takers:
            told = [f"{worker.worker} {_why_not(worker)}" for worker in fitting]
            yield f"{name} waits: none of the workers that it fits takes tasks now: {some(told)}"
            yield from self._boots(pools, row.run_no)
            return
        failed = self._init_failures(row.run_no, [worker.worker for worker in takers])
        takers = [worker for worker in takers if worker.worker not in failed]
        if not takers:
            yield f"{name} waits: its init task failed on every worker that it fits: {some(list(failed.values()))}"
        else:
            yield self._busy(row, name, asks, takers)
        idle = [
            f"{worker.worker} {_why_not(worker)}"
            for worker in fitting
            if worker.state != WorkerState.UP or worker.trouble
        ]
        if idle:
            yield f"some of the workers that it fits take no tasks: {some(idle)}"
        yield from self._boots(pools, row.run_no)

    def _nobody_fits(self, name: str, asks: Resources, pools: Sequence[Pool], run_no: int) -> str:
        if not self.workers and pools:
            return f"{name} waits: no worker is up; {self._who_can_start(pools, run_no)}"
        lacking = []
        for wanted, amount in asks.items():
            most = max((worker.resources.get(wanted, 0.0) for worker in self.workers), default=0.0)
            if most + ROUNDING >= amount:
                continue
            offered = max((pool.offers.get(wanted, 0.0) for pool in self.pools), default=0.0)
            pool = "no pool has any" if not offered else f"the largest pool offers {_amount(wanted, offered)}"
            has = f"the largest worker has {_amount(wanted, most)}" if self.workers else "no worker is up"
            lacking.append(f"needs {_amount(wanted, amount)}; {has}, {pool}")
        if not lacking:
            return f"{name} needs {amounts(asks)} in one worker, and no worker has all of it"
        return f"{name} {'; '.join(lacking)}"

    def _who_can_start(self, pools: Sequence[Pool], run_no: int) -> str:
        """Report which of these pools can start a VM for the run, or why none does."""
        broke = boot_history.budgets(self.connection).get(run_no)
        if broke:
            return f"no VM starts for it: {broke}"
        rests = [view for pool in pools if (view := self.pool_views.get(pool.name)) is not None and view.closed]
        if len(rests) == len(pools):
            return boot_history.closed(rests[0], self.now)
        able = next(pool for pool in pools if pool.name not in {view.pool for view in rests})
        return f"pool {able.name} can start one that fits"

    def _boots(self, pools: Sequence[Pool], run_no: int) -> Iterator[str]:
        """Report on the VMs that could run the task."""
        broke = boot_history.budgets(self.connection).get(run_no)
        if broke:
            yield f"no VM starts for it: {broke}"
        for pool in pools:
            alive = [vm for vm in self.vms if vm.pool == pool.name]
            coming = [vm for vm in alive if vm.state in COMING]
            view = self.pool_views.get(pool.name)
            told = []
            if len(alive) >= pool.maximum:
                told.append(boot_history.full(pool.name, pool.maximum, alive, self.now))
            elif view is not None and view.closed:
                told.append(boot_history.closed(view, self.now))
            if coming:
                told.append(boot_history.coming(coming, view, self.now))
            if told:
                yield "; ".join(told)
            yield from self._troubles(coming)
            refused = self._last_refusal(pool.name)
            if refused and not any(vm.state == VmState.RUNNING for vm in alive):
                yield f"the last VM of pool {pool.name} did not start: {refused}"

    def _troubles(self, coming: Sequence[VmView]) -> Iterator[str]:
        """Report what SSH visits to booting VMs found."""
        records = boot_history.boot_views(self.connection, [vm.vm_no for vm in coming[:NAMED]])
        for vm in coming[:NAMED]:
            trouble = boot_history.trouble(vm, records.get(vm.vm_no))
            if trouble:
                yield f"VM {vm.vm_no}: {trouble}"

    def _last_refusal(self, pool: str) -> str:
        rows = schema.vms
        is_gone = rows.c.state == VmState.GONE.value
        query = sa.select(rows).where(rows.c.pool == pool, is_gone).order_by(rows.c.vm_no.desc())
        row = self.connection.execute(query.limit(1)).first()
        return str(row.reason) if row is not None and row.hello_at is None else ""

    def _init_failures(self, run_no: int, names: Sequence[str]) -> dict[str, str]:
        """Return those of these workers on which an init task of the run failed, with its error."""
        attempts, rows = schema.attempts, schema.tasks
        query = (
            sa.select(attempts.c.worker, rows.c.id, attempts.c.error)
            .select_from(rows)
            .join(attempts, attempts.c.task_no == rows.c.task_no)
            .where(rows.c.run_no == run_no, rows.c.init == 1, attempts.c.worker.in_(names))
            .where(attempts.c.cause.not_in(("success", "stopped")))
        )
        return {row.worker: f"{row.id} on {row.worker}: {row.error}" for row in self.connection.execute(query)}

    def _busy(self, row: Any, name: str, asks: Resources, takers: Sequence[WorkerView]) -> str:
        free = self._free(takers)
        roomy = [worker for worker in takers if fits(free[worker.worker], asks.items())]
        rows = schema.tasks.c
        ready = sa.select(sa.func.count()).where(rows.state == TaskState.READY.value, rows.init == 0)
        higher = int(self.connection.execute(ready.where(rows.priority > row.priority)).scalar() or 0)
        same = (rows.run_no == row.run_no) & (rows.priority == row.priority) & (rows.task_no < row.task_no)
        before = int(self.connection.execute(ready.where(same)).scalar() or 0)
        ahead = []
        if higher:
            ahead.append(f"{counted(higher, 'ready task')} of higher priority {'goes' if higher == 1 else 'go'} first")
        if before:
            ahead.append(f"{counted(before, 'task')} of its run {'is' if before == 1 else 'are'} before it")
        if roomy and not ahead:
            return f"{name} is ready and worker {roomy[0].worker} is free: the boss assigns it with its next decision"
        fit_it = f"{counted(len(takers), 'worker')} that {'fits' if len(takers) == 1 else 'fit'} it"
        state = "have room" if roomy else "are all busy" if len(takers) > 1 else "is busy"
        return f"{name} waits its turn: {fit_it} {state}" + "".join(f"; {part}" for part in ahead)

    def _free(self, takers: Sequence[WorkerView]) -> dict[str, Resources]:
        """Return the free resources of each worker, after all its assigned tasks."""
        free = {worker.worker: dict(worker.resources) for worker in takers}
        attempts, rows = schema.attempts, schema.tasks
        query = (
            sa.select(attempts.c.worker, rows.c.asks)
            .select_from(attempts)
            .join(rows, rows.c.task_no == attempts.c.task_no)
            .where(attempts.c.state.in_(("assigned", "started", "stopping")), rows.c.init == 0)
        )
        for row in self.connection.execute(query):
            left = free.get(row.worker)
            if left is not None:
                for wanted, amount in msgspec.json.decode(row.asks, type=dict[str, float]).items():
                    left[wanted] = left.get(wanted, 0.0) - amount
        return free

    # --- running and ended -----------------------------------------------------------------------

    def _running(self, row: Any, name: str) -> Iterator[str]:
        attempt = self._live_attempt(row.task_no)
        if attempt is None:
            yield f"{name} has run; the boss has not recorded its outcome yet"
        elif attempt.state == "promoting":
            since_s = self.now - max(attempt.started_at or 0.0, row.changed_at)
            sentence = f"the commands of {name} succeeded and its results are being put into the datastore"
            slow = since_s > SLOW_PROMOTION_S + (attempt.run_s or 0.0)
            if attempt.reason:
                yield f"{sentence} when possible: {attempt.reason}"
                return
            yield sentence + ("; this takes long: check the datastore with python admin.py doctor" if slow else "")
        elif attempt.state == "stopping":
            yield f"{name} is being stopped on worker {attempt.worker}: {attempt.reason}"
        else:
            host = f" on {attempt.host}" if attempt.host else ""
            number = f" (attempt {attempt.number})" if attempt.number > 1 else ""
            since = self._past(attempt.started_at or attempt.assigned_at)
            worker = next((worker for worker in self.workers if worker.worker == attempt.worker), None)
            trouble = f"; the worker reports: {worker.trouble}" if worker is not None and worker.trouble else ""
            yield f"{name} runs{number} on worker {attempt.worker}{host} for {since} now{trouble}"
            if worker is not None and worker.lane_wanted_since is not None:
                moving = sum(other.lane_since is not None for other in self.workers)
                has = counted(moving, "worker has", "workers have")
                past = self._past(worker.lane_wanted_since)
                yield f"worker {worker.worker} has waited for its turn to move files for {past}: {has} theirs now"
        yield from self._suspicion(row)
        if not self.boss.leads:
            yield f"{no_boss(self.boss, self.now)}; its worker keeps the outcome until a boss is back"

    def _failed(self, row: Any, name: str) -> Iterator[str]:
        attempts = attempts_of(self.connection, row.task_no)
        last = next((attempt for attempt in reversed(attempts) if attempt.cause is not None), None)
        if attempts and attempts[-1].state == AttemptState.LOST and row.reason:
            last = None  # it failed since it lost workers
        error = (last.error if last is not None else "") or row.reason or "no reason was recorded"
        yield f"{name} failed: {with_maker(self.connection, row.task_no, last.cause if last else None, error)}"
        if last is None:
            return
        where = f"worker {last.worker}" + (f" on {last.host}" if last.host else "")
        at = when(last.ended_at, self.now)
        yield f"attempt {last.number} on {where} ended at {at}; retries used: {row.retries_used}"
        if last.command:
            yield f"the command was: {last.command}"
        tail = [line for line in last.stderr.splitlines() if line.strip()][-LINES:]
        if tail:
            yield "its last error output: " + " | ".join(tail)

    def _aborted(self, row: Any, name: str) -> Iterator[str]:
        path = self._culprit(row)
        if not path:
            yield f"{name} was aborted: {row.reason}"
            return
        culprit = self.connection.execute(
            sa.select(schema.tasks).where(schema.tasks.c.task_no == path[-1].task_no)
        ).one()
        layers = list(self._layers(culprit))
        if path[-1].on == Condition.FAILURE.value and culprit.state == TaskState.SUCCEEDED.value:
            yield f"{name} was aborted: {row.reason}"
        else:
            yield f"{name} was aborted because {layers[0]}"
        if len(path) > 1:
            steps = _shortened([f"{one.id} ({one.state})" for one in reversed(path)])
            yield "the chain of causes: " + " <- ".join([*steps, row.id])
        yield from layers[1:]

    def _culprit(self, row: Any) -> list[Neighbour]:
        """Return the path up to the nearest ended task that prevents this one from running; empty if the search exceeds
        its time limit."""
        upwards = Upwards(self.connection, (state.value for state in ENDED))
        below: dict[int, Neighbour | None] = {row.task_no: None}
        """Visited tasks, each with its entry in the dependencies of its dependent."""
        came_from: dict[int, int] = {}
        todo = deque([row.task_no])
        while todo and len(below) < STEPS and not upwards.is_over:
            at = todo.popleft()
            for other in upwards.of(at):
                if other.task_no in below or Condition(other.on).met_by(TaskState(other.state)):
                    continue
                below[other.task_no] = other
                came_from[other.task_no] = at
                if other.state != TaskState.ABORTED.value:
                    return _way(other, below, came_from)
                todo.append(other.task_no)
        return []

    def _succeeded(self, row: Any, name: str) -> str:
        if row.reason:
            return f"{name} succeeded: {row.reason}"
        attempts = attempts_of(self.connection, row.task_no)
        if not attempts:
            return f"{name} succeeded at {when(row.changed_at, self.now)}"
        last = attempts[-1]
        took = f" in {duration(last.run_s)}" if last.run_s is not None else ""
        return f"{name} succeeded{took} on worker {last.worker} at {when(last.ended_at, self.now)}"

    # --- rows -------------------------------------------------------------------------------------

    def _live_attempt(self, task_no: int) -> AttemptView | None:
        live = [a for a in attempts_of(self.connection, task_no) if a.state in (*RUNNING_ATTEMPTS, "assigned")]
        return live[-1] if live else None

    def _last_words(self, row: Any) -> str:
        ended = [attempt for attempt in attempts_of(self.connection, row.task_no) if attempt.cause]
        return f"attempt {ended[-1].number} failed: {ended[-1].error}" if ended else str(row.reason)

    def _run(self, run_no: int) -> Any:
        return self.connection.execute(sa.select(schema.runs).where(schema.runs.c.run_no == run_no)).one()

    def _past(self, at: float) -> str:
        return duration(self.now - at)


def _way(last: Neighbour, reached: dict[int, Neighbour | None], came_from: dict[int, int]) -> list[Neighbour]:
    """Return the path from the requested task (exclusive) to `last`."""
    way, at = [last], came_from[last.task_no]
    while (step := reached[at]) is not None:
        way.append(step)
        at = came_from[at]
    return way[::-1]


def _shortened(names: list[str]) -> list[str]:
    if len(names) <= 2 * ON_THE_WAY + 1:
        return names
    left_out = len(names) - 2 * ON_THE_WAY
    return [*names[:ON_THE_WAY], f"{left_out:,} more", *names[-ON_THE_WAY:]]


def _wish(other: Neighbour) -> str:
    return {"success": "succeed", "failure": "fail"}.get(other.on, "end")


def _amount(name: str, amount: float) -> str:
    return amounts({name: amount})


def some(texts: Sequence[str]) -> str:
    shown = "; ".join(texts[:NAMED])
    return shown if len(texts) <= NAMED else f"{shown}; and {len(texts) - NAMED} more"


def _why_not(worker: WorkerView) -> str:
    if worker.state != WorkerState.UP:
        return f"is {worker.state}" + (f" ({worker.reason})" if worker.reason else "")
    return f"reports: {worker.trouble}"


def no_boss(boss: BossStatus, now: float) -> str:
    if boss.seen_at is None:
        return "no boss leads: python admin.py start"
    return f"no boss leads (the last was heard {duration(now - boss.seen_at)} ago): python admin.py start"
