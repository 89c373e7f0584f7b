"""Where every unfinished task and its run stand, and the only way to move them.

Owns runs, their counts and the graph. Each move is checked against the table in `ecloud.model.tasks`, written,
counted and told to whoever places tasks. Knows nothing of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from boss.core.model.graph import Node, TaskGraph
from boss.core.model.outbox import Outbox
from boss.core.model.ready_tasks import ReadyTasks
from boss.core.model.rows import RunRow, TaskMoved, TaskRow
from boss.core.model.timers import Timers
from ecloud.model.tasks import LEGAL_TASK_MOVES, TaskState
from ecloud.model.wire import TaskEnded

MAX_ENDED_HINTS = 20
"""Ended tasks named in one `RunChanged`; the database knows all."""
MAX_REASON_CHARS = 400
"""A reason is a sentence; the whole text is in the attempt."""

_READY, _WAITING, _RUNNING = TaskState.READY, TaskState.WAITING, TaskState.RUNNING


class Run(msgspec.Struct, eq=False):
    """A run in memory. `states` counts its tasks, init tasks left out; `inits` are its init tasks in order.

    `init_failures`: worker processes in which an init task failed; `init_done`: init tasks that succeeded somewhere.
    """

    row: RunRow
    states: dict[TaskState, int] = msgspec.field(default_factory=dict)
    inits: dict[int, Node] = msgspec.field(default_factory=dict)
    init_failures: dict[int, set[str]] = msgspec.field(default_factory=dict)
    stuck: str = ""
    """Why nothing of it can start just now, though it is not held: its init task failed wherever it could be tried."""
    init_done: set[int] = msgspec.field(default_factory=set)
    changed: bool = False
    ended_hints: deque[TaskEnded] = msgspec.field(default_factory=lambda: deque(maxlen=MAX_ENDED_HINTS))

    @property
    def left(self) -> int:
        """Tasks that have not ended."""
        states = self.states
        return states.get(_WAITING, 0) + states.get(_READY, 0) + states.get(_RUNNING, 0)


class TaskEnd(msgspec.Struct, frozen=True):
    """A task of a watched run ended. `attempts`: the number of its last attempt, 0 where it had none."""

    task_no: int
    id: str
    state: TaskState
    reason: str
    attempts: int


class TaskBook:
    """Runs and tasks. Parts of the core move tasks through it and through nothing else."""

    def __init__(self, outbox: Outbox, timers: Timers, ready: ReadyTasks) -> None:
        self._outbox = outbox
        self._timers = timers
        self.graph = TaskGraph()
        self.ready = ready
        self.runs: dict[int, Run] = {}
        self.changed_runs: set[int] = set()
        self.failing_runs: set[int] = set()
        """Runs that are not held, in which an init task failed somewhere."""
        self.ends: dict[int, list[TaskEnd]] = {}
        """Tasks that ended in this batch, of the runs that are keys here: somebody waits for the values of their
        calls."""
        self.on_satisfied: Callable[[Node], None] = lambda node: None
        """Told of a task whose dependencies are recorded when it has an attempt already."""

    # --- moves -----------------------------------------------------------------------------------

    def move(self, node: Node, state: TaskState, reason: str = "") -> None:
        """One legal move. An end goes through `end`."""
        before = node.state
        if before is not state:
            assert (before, state) in LEGAL_TASK_MOVES, f"task {node.id}: {before} to {state}"
            run = self.runs[node.run_no]
            if not node.init:
                run.states[before] = run.states.get(before, 0) - 1
                run.states[state] = run.states.get(state, 0) + 1
            run.changed = True
            self.changed_runs.add(node.run_no)
            node.state = state
        node.reason = reason[:MAX_REASON_CHARS]
        self.write(node)

    def write(self, node: Node) -> None:
        """Write the task as it stands."""
        self._outbox.writes.tasks[node.task_no] = TaskMoved(
            node.state, node.reason, node.attempts, node.retries_used, node.not_before
        )

    def make_ready(self, node: Node, now: float, reason: str = "") -> None:
        """Ready again or at last; placed when its back-off ends. One whose dependency is done again waits for it."""
        self.move(node, _WAITING if node.unmet > 0 else _READY, reason)
        if node.state is _READY and node.assigned:
            self.on_satisfied(node)
        elif node.state is _READY and not node.init:
            self.offer(node, now)

    def offer(self, node: Node, now: float) -> None:
        """Offer a ready task for placement, now or when its back-off ends."""
        if node.not_before > now:
            self._timers.set(node.not_before, lambda at: self._offer_later(node, at))
        else:
            self.ready.put(node)

    def _offer_later(self, node: Node, now: float) -> None:
        if self.graph.nodes.get(node.task_no) is node and node.state is _READY and not node.assigned:
            self.offer(node, now)

    def end(self, node: Node, state: TaskState, reason: str, now: float) -> None:
        """A task ends; what waits for it continues or is aborted."""
        self.move(node, state, reason)
        if node.init:
            return
        self.note_end(node)
        if state is not TaskState.SUCCEEDED:
            self._hint(node, reason)
        because = f"task {node.id} {'succeeded' if state is TaskState.SUCCEEDED else state.value}"
        for freed in self.graph.end(node.task_no, state, because):
            if freed.state is _READY:
                self.make_ready(freed.node, now)
            else:
                self.move(freed.node, freed.state, freed.reason)
                self.note_end(freed.node)
                self._hint(freed.node, freed.reason)

    def note_end(self, task: Node | TaskRow) -> None:
        """It has ended: for those who wait for the calls of its run."""
        ends = self.ends.get(task.run_no)
        if ends is not None:
            ends.append(TaskEnd(task.task_no, task.id, task.state, task.reason, task.attempts))

    def _hint(self, node: Node, reason: str) -> None:
        self.runs[node.run_no].ended_hints.append(
            TaskEnded(node.task_no, node.id, node.state.value, reason[:MAX_REASON_CHARS])
        )

    # --- tasks that come and go ------------------------------------------------------------------

    def plant(self, rows: Iterable[TaskRow], now: float) -> None:
        """Take unfinished tasks into the graph. Their counts are the caller's; ready ones are offered."""
        for node in self.graph.add(rows):
            if node.init:
                self.runs[node.run_no].inits[node.task_no] = node
            elif node.state is _READY:
                self.offer(node, now)

    def run_of(self, row: RunRow) -> Run:
        """The run, taken into memory where it is not yet."""
        run = self.runs.get(row.run_no)
        if run is None:
            run = self.runs[row.run_no] = Run(row)
        return run

    def recount(self, run: Run, states: dict[TaskState, int]) -> None:
        """Set the counts of a run that was pushed into, redone or dropped from."""
        run.states = {state: count for state, count in states.items() if count}
        run.changed = True
        self.changed_runs.add(run.row.run_no)

    # --- runs ------------------------------------------------------------------------------------

    def forget_run(self, run_no: int) -> Run:
        """The run is dropped: nothing here names it any more."""
        self.changed_runs.discard(run_no)
        self.failing_runs.discard(run_no)
        return self.runs.pop(run_no)

    def hold(self, run: Run, reason: str) -> None:
        """Nothing of this run starts until a person does something."""
        run.row = msgspec.structs.replace(run.row, held=reason)
        self._write_run(run)
        self.ready.hold(run.row.run_no)
        self.failing_runs.discard(run.row.run_no)

    def release(self, run: Run) -> None:
        """A held run continues: its init tasks may fail in three more worker processes, or once more in the same."""
        self._forget_init_failures(run)
        if run.row.held:
            run.row = msgspec.structs.replace(run.row, held="")
            self._write_run(run)
            self.ready.release(run.row.run_no)

    def _forget_init_failures(self, run: Run) -> None:
        run.init_failures.clear()
        run.stuck = ""
        self.failing_runs.discard(run.row.run_no)

    def say_stuck(self, run: Run, reason: str) -> None:
        """Why nothing of this run can start just now; empty when that ends. Told to those who watch, not written."""
        if run.stuck != reason:
            run.stuck = reason
            run.changed = True
            self.changed_runs.add(run.row.run_no)

    def _write_run(self, run: Run) -> None:
        self._outbox.writes.runs[run.row.run_no] = run.row
        run.changed = True
        self.changed_runs.add(run.row.run_no)

    def settle(self, now: float) -> None:
        """After a batch: note which runs ended, or no longer did."""
        for run_no in tuple(self.changed_runs):
            run = self.runs.get(run_no)
            if run is None:
                continue
            if run.left == 0 and (run.row.ended_at is None or run.inits):
                run.row = msgspec.structs.replace(run.row, ended_at=run.row.ended_at or now, held="")
                self._write_run_quietly(run)
                self._end_inits(run)
            elif run.left and run.row.ended_at is not None:
                run.row = msgspec.structs.replace(run.row, ended_at=None)
                self._write_run_quietly(run)

    def _write_run_quietly(self, run: Run) -> None:
        self._outbox.writes.runs[run.row.run_no] = run.row

    def _end_inits(self, run: Run) -> None:
        """A run that ended prepares no more worker processes."""
        for node in tuple(run.inits.values()):
            if node.state is _READY:
                self.move(node, TaskState.SUCCEEDED, "skipped: nothing needed it")
            if node.state is not _RUNNING:
                self.write(node)  # the number of its last attempt, which may still be going on
                self.graph.remove([node.task_no])
                del run.inits[node.task_no]
        self._forget_init_failures(run)

    def check(self) -> None:
        """Invariants: counts agree with the graph, legal states only."""
        self.graph.check()
        left: dict[int, int] = {}
        for node in self.graph.nodes.values():
            assert node.run_no in self.runs, f"task {node.id} without its run"
            if not node.init:
                left[node.run_no] = left.get(node.run_no, 0) + 1
        for run_no, run in self.runs.items():
            assert run.left == left.get(run_no, 0), (
                f"run {run.row.name}: {run.left} counted, {left.get(run_no, 0)} known"
            )
            assert all(count >= 0 for count in run.states.values())
