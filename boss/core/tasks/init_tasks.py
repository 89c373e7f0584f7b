"""Init tasks: they prepare a worker process for a run. Owns which worker processes are prepared.

An init task runs once in each worker process, before the first task of its run there. It succeeds or fails in each of
them separately; after `INIT_FAILURES_ALLOWED` failures without a success the run is held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from boss.core.model.fleet import Fleet
from boss.core.model.graph import Node
from boss.core.model.rows import AttemptRow
from boss.core.model.worker import Attempt, Worker
from boss.core.tasks.taskbook import MAX_REASON_CHARS, Run, TaskBook
from ecloud.model.tasks import INIT_FAILURES_ALLOWED, Cause, Outcome, TaskState

_READY, _RUNNING = TaskState.READY, TaskState.RUNNING


class InitTasks:
    """The state of each init task in each worker process (`Worker.inits`), and its effect on the run."""

    def __init__(self, book: TaskBook, fleet: Fleet) -> None:
        self._book = book
        self._fleet = fleet
        self._of_run: dict[int, set[int]] = {}
        """Init tasks that workers were given, by run: forgotten together with the run."""

    # --- placing ---------------------------------------------------------------------------------

    def take_missing(self, worker: Worker, run_no: int) -> Iterator[Node]:
        """Init tasks of the run that this worker process has not been given yet. Notes them as given."""
        for init in self._book.runs[run_no].inits.values():
            if init.task_no not in worker.inits:
                self.note(worker, run_no, init.task_no, "given")
                yield init

    def refuses(self, worker: Worker, run_no: int) -> bool:
        """Whether the worker may not have tasks of the run: an init task failed there, or it returned tasks of the run
        since its last heartbeat."""
        if run_no in worker.resting:
            return True
        known = worker.inits
        return bool(known) and any(known.get(task_no) == "failed" for task_no in self._book.runs[run_no].inits)

    def note(self, worker: Worker, run_no: int, task_no: int, stands: str) -> None:
        """Note the state of an init task in a worker process: "given", "succeeded" or "failed"."""
        worker.inits[task_no] = stands
        self._of_run.setdefault(run_no, set()).add(task_no)

    # --- results ---------------------------------------------------------------------------------

    def on_ended(self, worker: Worker, attempt: Attempt, outcome: Outcome) -> None:
        """An attempt of an init task ended."""
        run = self._book.runs.get(attempt.run_no)
        node = self._book.graph.nodes.get(attempt.task_no)
        own = attempt.worker == worker.name  # otherwise an earlier process of this home was prepared, not this one
        if own and (run is None or outcome.cause is Cause.STOPPED):
            worker.inits.pop(attempt.task_no, None)
        elif own:
            stands = "succeeded" if outcome.cause is Cause.SUCCESS else "failed"
            self.note(worker, attempt.run_no, attempt.task_no, stands)
        if run is None or node is None or not node.init:
            return
        if outcome.cause is Cause.SUCCESS:
            run.init_done.add(node.task_no)
            if node.state is _READY:
                self._book.move(node, _RUNNING)
            if node.state is _RUNNING:
                self._book.move(node, TaskState.SUCCEEDED)
        elif outcome.cause is Cause.STOPPED:
            if node.state is _RUNNING:
                self._book.move(node, _READY)
        elif node.state in (_READY, _RUNNING, TaskState.SUCCEEDED):
            self._failed(run, node, worker.name, outcome.error)
        self._book.write(node)

    def _failed(self, run: Run, node: Node, worker: str, error: str) -> None:
        """Count the failure. At the limit, without a success anywhere, hold the run."""
        failures = run.init_failures.setdefault(node.task_no, set())
        failures.add(worker)
        self._book.failing_runs.add(run.row.run_no)
        if len(failures) >= INIT_FAILURES_ALLOWED and node.task_no not in run.init_done:
            self._book.move(node, TaskState.FAILED, error)
            reason = f"init task {node.id} failed in {len(failures)} worker processes: {error}"
            self._book.hold(run, reason[:MAX_REASON_CHARS])
        elif node.state is not TaskState.SUCCEEDED:  # else it succeeded elsewhere
            self._book.move(node, _READY, error)

    def on_taken_back(self, worker: Worker, attempt: Attempt) -> None:
        """An attempt of an init task was returned or lost: the worker process is not prepared."""
        if attempt.worker == worker.name:
            worker.inits.pop(attempt.task_no, None)
        init = self._book.graph.nodes.get(attempt.task_no)
        if init is not None and init.init:
            if init.state is _RUNNING:
                self._book.move(init, _READY)
            self._book.write(init)

    def on_worker_lost(self, worker: Worker, attempt: Attempt, reason: str) -> None:
        """The worker was lost during its preparation, without another explanation: this counts as a failure there."""
        run = self._book.runs.get(attempt.run_no)
        node = self._book.graph.nodes.get(attempt.task_no)
        if run is not None and node is not None and node.init and node.state is not TaskState.FAILED:
            self._failed(run, node, worker.name, f"worker {worker.name} was lost while it ran: {reason}")
            self._book.write(node)

    def on_unprepared(self, worker: Worker, run_no: int) -> None:
        """The worker returned tasks because it is not prepared: it gets no tasks of this run until its next heartbeat.
        It may have forgotten an earlier success."""
        worker.resting.add(run_no)
        run = self._book.runs.get(run_no)
        for task_no in run.inits if run is not None else ():
            if worker.inits.get(task_no) == "succeeded":
                del worker.inits[task_no]

    def stuck_reason(self, run: Run) -> str:
        """Why no present worker can take tasks of the run; empty if one can, or if nothing failed."""
        failed = {task_no: where for task_no, where in run.init_failures.items() if task_no in run.inits}
        # Two init tasks may each have failed where the other succeeded: then no worker is prepared for the run.
        able = any(
            worker.takes_tasks and not any(worker.inits.get(task_no) == "failed" for task_no in run.inits)
            for worker in self._fleet.workers.values()
        )
        if not failed or able:
            return ""
        where = set().union(*failed.values())
        nodes = [run.inits[task_no] for task_no in failed]
        what = f"init task{'s' if len(nodes) > 1 else ''} {', '.join(node.id for node in nodes)}"
        count = f"{len(where)} worker process{'es' if len(where) > 1 else ''}, all there are"
        why = next((node.reason for node in nodes if node.reason), "")
        return f"{what} failed in {count}" + (f": {why}" if why else "")

    # --- forgetting ------------------------------------------------------------------------------

    def forget_run(self, run_no: int) -> None:
        """The run is dropped: forget its prepared workers."""
        self.forget(self._of_run.pop(run_no, set()))

    def forget(self, task_nos: set[int]) -> None:
        """Do these init tasks again in every worker process."""
        if not task_nos:
            return
        for known in self._of_run.values():
            known -= task_nos
        for worker in self._fleet.workers.values():
            for task_no in task_nos:
                worker.inits.pop(task_no, None)

    def try_again(self, task_nos: Iterable[int]) -> None:
        """Allow another try of these init tasks in the worker processes in which they failed."""
        failed = set(task_nos)
        for worker in self._fleet.workers.values():
            for task_no in [no for no, stands in worker.inits.items() if stands == "failed" and no in failed]:
                del worker.inits[task_no]

    # --- starting --------------------------------------------------------------------------------

    def restore(self, row: AttemptRow) -> None:
        """Restore from an ended attempt, after a start: the state of its init task in its worker process, and of its
        run."""
        if row.outcome is None or row.outcome.cause is Cause.STOPPED:
            return
        worker = self._fleet.workers.get(row.worker)
        if worker is not None:
            stands = "succeeded" if row.outcome.cause is Cause.SUCCESS else "failed"
            self.note(worker, row.run_no, row.task_no, stands)
        run = self._book.runs.get(row.run_no)
        if run is None:
            return
        if row.outcome.cause is Cause.SUCCESS:
            run.init_done.add(row.task_no)
        else:
            run.init_failures.setdefault(row.task_no, set()).add(row.worker)
            if not run.row.held:
                self._book.failing_runs.add(row.run_no)
