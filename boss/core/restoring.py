"""Restores a boss's state from the store: everything unfinished, workers that should return, VMs with their intents."""

from __future__ import annotations

from boss.core.autoscale.vms import Vms
from boss.core.model.fleet import Fleet
from boss.core.model.packed import drained
from boss.core.model.rows import AttemptRow, Snapshot, TaskRow
from boss.core.model.worker import Attempt, Worker, believed
from boss.core.tasks.arrays import load_arrays
from boss.core.tasks.attempts import MAX_BACKOFF_S, Attempts
from boss.core.tasks.taskbook import TaskBook
from boss.core.workers.leases import Leases
from ecloud.model.tasks import ENDED, AttemptState, TaskState
from ecloud.model.wire import MACHINE_ENDS, ORDERED_TO_LEAVE
from ecloud.model.worker_states import ON_DUTY


def restore(
    snapshot: Snapshot, book: TaskBook, attempts: Attempts, fleet: Fleet, leases: Leases, vms: Vms, now: float
) -> None:
    """Fill the parts of a new core. Workers get a lease in which to report; attempts of workers that are gone are lost
    immediately. Takes the tasks out of the snapshot: a million rows are freed while they become nodes."""
    for run in snapshot.runs:
        loaded = book.run_of(run)
        counts = snapshot.states.get(run.run_no, {})
        loaded.states = {TaskState(state): count for state, count in counts.items() if count}
        if run.held:
            book.ready.hold(run.run_no)
    for task in snapshot.tasks:
        # The clock of the boss that wrote it may have been hours ahead of this one's.
        task.not_before = min(task.not_before, now + MAX_BACKOFF_S)
    arrays = [row for row in snapshot.tasks if row.elements is not None]
    closed = {row.task_no for row in arrays if row.state in ENDED}
    book.graph.add(row for row in drained(snapshot.tasks) if row.task_no not in closed)
    load_arrays(book, arrays, snapshot.element_ends, _made(arrays), closed)
    attempts.suspects.load(snapshot.suspects)
    _restore_workers(snapshot, fleet, leases, now)
    taken_over = _taken_over(fleet)
    for attempt in snapshot.attempts:
        holder = fleet.workers.get(attempt.worker) or taken_over.get((attempt.task_no, attempt.number))
        _restore_attempt(attempt, holder, book, attempts, fleet)
        attempts.on_declared({(attempt.task_no, attempt.number): snapshot.declared.get(attempt.task_no, ())})
    for attempt in snapshot.init_attempts:
        attempts.inits.restore(attempt)
    for node in book.graph.nodes.values():
        if node.init:
            book.runs[node.run_no].inits[node.task_no] = node
            if node.state is TaskState.SUCCEEDED:
                book.runs[node.run_no].init_done.add(node.task_no)
        elif node.state is TaskState.READY and not node.assigned:
            book.offer(node, now)
    attempts.restore_chains()
    attempts.roll_forward()
    attempts.lose_orphans(now)
    vms.boots.load(snapshot.boots)
    vms.load(snapshot.vms, snapshot.past_vms, now)


def _made(arrays: list[TaskRow]) -> dict[int, dict[TaskState, int]]:
    """Number of made elements of each array, by state: all but the pending ones."""
    found: dict[int, dict[TaskState, int]] = {}
    for row in arrays:
        elements = row.elements
        assert elements is not None
        counts = {TaskState(state): count for state, count in elements.states.items()}
        if elements.pending_count:
            counts[TaskState(elements.pending_state)] -= elements.pending_count
        found[row.task_no] = counts
    return found


def _restore_workers(snapshot: Snapshot, fleet: Fleet, leases: Leases, now: float) -> None:
    leases.killed.update(snapshot.killed)
    for row in snapshot.workers:
        if row.state in ON_DUTY:
            capacity = believed(row.hello.resources)
            leaving = row.killed_at is not None or row.reason in (ORDERED_TO_LEAVE, MACHINE_ENDS)
            worker = Worker(row.worker, row, capacity, dict(capacity), now, idle_since=now, leaving=leaving)
            fleet.add(worker)
            leases.expect(worker, now)


def _taken_over(fleet: Fleet) -> dict[tuple[int, int], Worker]:
    """Attempts that worker processes took over from earlier processes of their homes; their rows name the earlier
    process."""
    workers = fleet.workers.values()
    return {(item.task_no, item.number): worker for worker in workers for item in worker.row.hello.attempts}


def _restore_attempt(row: AttemptRow, worker: Worker | None, book: TaskBook, attempts: Attempts, fleet: Fleet) -> None:
    node = book.graph.nodes.get(row.task_no)
    shape = book.graph.shapes.of(row.asks or {})
    if row.asks is None and node is not None and not node.init:
        shape = attempts.suspects.shape_on(worker, node) if worker is not None else node.shape
    # An attempt that counts has its task in the graph, except for an init task whose run has ended.
    is_init = node.init if node is not None else row.state in (AttemptState.ASSIGNED, AttemptState.STARTED)
    attempt = Attempt(
        task_no=row.task_no,
        number=row.number,
        run_no=row.run_no,
        worker=row.worker,
        shape=shape,
        state=row.state,
        assigned_at=row.assigned_at,
        started_at=row.started_at,
        init=is_init,
        apart=node is not None and node.apart,
        reason=row.reason,
        outcome=row.outcome,
        runtime_s=0.0 if node is None else node.runtime_s or 0.0,
    )
    key = (row.task_no, row.number)
    attempts.active[key] = attempt
    if node is not None:
        node.attempts = max(node.attempts, row.number)  # a task's row lacks the number of its assigned attempt
    # An attempt that is still being published although its task is to be redone no longer counts: the task does not
    # run.
    published_only = row.state is AttemptState.PROMOTING and (node is None or node.state is not TaskState.RUNNING)
    if node is not None and not node.init and row.state is not AttemptState.STOPPING and not published_only:
        node.assigned = max(node.assigned, row.number)
    if row.state is AttemptState.PROMOTING:
        attempts.promoting[key] = attempt
        return
    if worker is not None:
        attempt.chained = (
            node is not None and node.state is TaskState.WAITING and node.assigned == row.number and not node.init
        )
        fleet.give(worker, attempt)
        if attempt.init and worker.name == row.worker:
            attempts.inits.note(worker, row.run_no, row.task_no, "given")
