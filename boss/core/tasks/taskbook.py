"""The state of every unfinished task and of its run; the only way to change it.

Owns runs, their counts and the graph. Each move is checked against the table in `ecloud.model.tasks`, written, counted
and passed on to placement. Knows nothing of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

import msgspec

from boss.core.model.arrays import Array
from boss.core.model.graph import Node, TaskGraph
from boss.core.model.outbox import Outbox
from boss.core.model.ready_tasks import ReadyTasks
from boss.core.model.rows import ArrayRow, RunRow, TaskMoved, TaskRow
from boss.core.model.timers import Timers
from boss.core.tasks.run_names import RunNames
from ecloud.model.ranges import Ranges
from ecloud.model.tasks import ENDED, LEGAL_TASK_MOVES, TaskState
from ecloud.model.wire import TaskEnded

MAX_ENDED_HINTS = 20
"""Maximum ended tasks named in one `RunChanged`; the database has all."""
MAX_REASON_CHARS = 400
"""Maximum characters of a reason, which is a sentence; the attempt has the whole text."""

_READY, _WAITING, _RUNNING = TaskState.READY, TaskState.WAITING, TaskState.RUNNING


class Run(msgspec.Struct, eq=False):
    """A run in memory. `states` counts its tasks, without init tasks; `inits` are its init tasks in order.

    `init_failures`: worker processes in which an init task failed; `init_done`: init tasks that succeeded somewhere.
    """

    row: RunRow
    states: dict[TaskState, int] = msgspec.field(default_factory=dict)
    inits: dict[int, Node] = msgspec.field(default_factory=dict)
    init_failures: dict[int, set[str]] = msgspec.field(default_factory=dict)
    stuck: str = ""
    """Why none of its tasks can start now, though it is not held: its init task failed wherever it was tried."""
    init_done: set[int] = msgspec.field(default_factory=set)
    changed: bool = False
    ended_hints: deque[TaskEnded] = msgspec.field(default_factory=lambda: deque(maxlen=MAX_ENDED_HINTS))

    @property
    def left(self) -> int:
        """Tasks that have not ended."""
        states = self.states
        return states.get(_WAITING, 0) + states.get(_READY, 0) + states.get(_RUNNING, 0)


class TaskEnd(msgspec.Struct, frozen=True):
    """A task of a watched run ended. `attempts`: the number of its last attempt, 0 without one."""

    task_no: int
    id: str
    state: TaskState
    reason: str
    attempts: int


class TaskBook:
    """Runs and tasks. The core moves tasks only through it."""

    def __init__(self, outbox: Outbox, timers: Timers, ready: ReadyTasks, names: RunNames) -> None:
        self._outbox = outbox
        self._timers = timers
        self.graph = TaskGraph()
        self.ready = ready
        self.runs: dict[int, Run] = {}
        self.names = names
        self.arrays: dict[int, Array] = {}
        """Arrays that have not ended, by the number of their task."""
        self._changed_arrays: dict[int, Array] = {}
        self._each_of: dict[int, list[Array]] = {}
        """Arrays that wait for another array element by element, by the number of that other one."""
        self.changed_runs: set[int] = set()
        self.failing_runs: set[int] = set()
        """Runs that are not held, in which an init task failed somewhere."""
        self.ends: dict[int, list[TaskEnd]] = {}
        """Tasks that ended in this batch, for the runs that are keys here: a client waits for the values of their
        calls."""
        self.on_satisfied: Callable[[Node], None] = lambda node: None
        """Called with a task that already has an attempt when its dependencies are recorded."""

    # --- moves -----------------------------------------------------------------------------------

    def move(self, node: Node, state: TaskState, reason: str = "") -> None:
        """Make one legal move. An end goes through `end`."""
        before = node.state
        if before is not state:
            assert (before, state) in LEGAL_TASK_MOVES, f"task {node.id}: {before} to {state}"
            run = self.runs[node.run_no]
            if node.is_array:
                self._move_pending(run, node, before, state)
            elif not node.init:
                run.states[before] = run.states.get(before, 0) - 1
                run.states[state] = run.states.get(state, 0) + 1
                if node.array:
                    self._move_element(node, before, state)
            run.changed = True
            self.changed_runs.add(node.run_no)
            node.state = state
        node.reason = reason[:MAX_REASON_CHARS]
        self.write(node)

    def _move_pending(self, run: Run, node: Node, before: TaskState, state: TaskState) -> None:
        """Count elements without a row in the state of their array."""
        array = self.arrays[node.task_no]
        left, entered = array.pending_state(before), array.pending_state(state)
        run.states[left] = run.states.get(left, 0) - array.pending.count
        run.states[entered] = run.states.get(entered, 0) + array.pending.count
        self._changed_arrays[node.task_no] = array

    def _move_element(self, node: Node, before: TaskState, state: TaskState) -> None:
        array = self.arrays[node.array]
        array.made[before] = array.made.get(before, 0) - 1
        array.made[state] = array.made.get(state, 0) + 1
        self._changed_arrays[node.array] = array
        if state in ENDED and node.array in self._each_of:
            index = array.indices[node.task_no - array.first_no]
            for other in self._each_of[node.array]:
                other.note_end(node.array, index, state)

    def write(self, node: Node) -> None:
        """Write the task's row in its present state."""
        self._outbox.writes.tasks[node.task_no] = TaskMoved(
            node.state, node.reason, node.attempts, node.retries_used, node.not_before
        )

    def make_ready(self, node: Node, now: float, reason: str = "") -> None:
        """Make a task ready; it is placed when its back-off ends. A task whose dependency is being redone waits for
        that."""
        self.move(node, _WAITING if node.unmet > 0 else _READY, reason)
        if node.state is _READY and node.assigned:
            self.on_satisfied(node)
        elif node.state is _READY and not node.init:
            self.offer(node, now)

    def offer(self, node: Node, now: float) -> None:
        """Offer a ready task for placement, now or when its back-off ends. No worker gets an array."""
        if node.is_array:
            return
        if node.not_before > now:
            self._timers.set(node.not_before, lambda at: self._offer_later(node, at))
        else:
            self.ready.put(node)

    def _offer_later(self, node: Node, now: float) -> None:
        if self.graph.nodes.get(node.task_no) is node and node.state is _READY and not node.assigned:
            self.offer(node, now)

    def end(self, node: Node, state: TaskState, reason: str, now: float) -> None:
        """End a task; its dependents continue or are aborted."""
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
        """Note an ended task for clients that wait for the calls of its run."""
        ends = self.ends.get(task.run_no)
        if ends is not None:
            ends.append(TaskEnd(task.task_no, task.id, task.state, task.reason, task.attempts))

    def _hint(self, node: Node, reason: str) -> None:
        self.runs[node.run_no].ended_hints.append(
            TaskEnded(node.task_no, node.id, node.state.value, reason[:MAX_REASON_CHARS])
        )

    # --- adding tasks ----------------------------------------------------------------------------

    def plant(self, rows: Iterable[TaskRow], now: float) -> None:
        """Add unfinished tasks to the graph. The caller maintains their counts; ready ones are offered."""
        for node in self.graph.add(rows):
            if node.init:
                self.runs[node.run_no].inits[node.task_no] = node
            elif node.state is _READY:
                self.offer(node, now)

    def run_of(self, row: RunRow) -> Run:
        """The run, which is loaded into memory if necessary."""
        run = self.runs.get(row.run_no)
        if run is None:
            run = self.runs[row.run_no] = Run(row)
            self.names.add(row.name, row.run_no)
        return run

    def run_named(self, name: str) -> Run | None:
        """The run of that name, if there is one."""
        run_no = self.names.number(name)
        return None if run_no is None else self.runs[run_no]

    def recount(self, run: Run, states: dict[TaskState, int]) -> None:
        """Set the counts of a run after a push, redo or drop."""
        run.states = {state: count for state, count in states.items() if count}
        run.changed = True
        self.changed_runs.add(run.row.run_no)

    # --- arrays ----------------------------------------------------------------------------------

    def keep_array(self, array: Array) -> None:
        """Add an array that has not ended."""
        self.arrays[array.task_no] = array
        self._changed_arrays[array.task_no] = array
        for source in array.sources:
            self._each_of.setdefault(source.array_no, []).append(array)

    def forget_array(self, array_no: int) -> None:
        """Remove an array that has ended, or whose run is dropped."""
        array = self.arrays.pop(array_no, None)
        for source in array.sources if array is not None else ():
            left = [other for other in self._each_of.get(source.array_no, ()) if other is not array]
            if left:
                self._each_of[source.array_no] = left
            else:
                self._each_of.pop(source.array_no, None)

    def drop_array(self, array_no: int) -> None:
        """Drop an array: arrays that wait for its elements stop waiting for them."""
        for other in self._each_of.pop(array_no, ()):
            run, left = self.runs[other.run_no], other.pending_state(other.node.state)
            other.sources = [source for source in other.sources if source.array_no != array_no]
            other.find_due()
            entered = other.pending_state(other.node.state)
            run.states[left] = run.states.get(left, 0) - other.pending.count
            run.states[entered] = run.states.get(entered, 0) + other.pending.count
            self._changed_arrays[other.task_no] = other
        self.forget_array(array_no)

    def waiting_for(self, array_no: int) -> list[Array]:
        """Arrays that wait for this one element by element."""
        return list(self._each_of.get(array_no, ()))

    def count_made(self, array: Array, count: int, state: TaskState) -> None:
        """Count `count` of its pending elements as tasks in `state`."""
        run = self.runs[array.run_no]
        left = array.pending_state(array.node.state)
        run.states[left] = run.states.get(left, 0) - count
        run.states[state] = run.states.get(state, 0) + count
        array.made[state] = array.made.get(state, 0) + count
        run.changed = True
        self.changed_runs.add(array.run_no)
        self._changed_arrays[array.task_no] = array

    def count_dropped(self, array: Array, pending: int = 0, made: TaskState | None = None) -> None:
        """Count dropped elements: `pending` ones without a row, or one in state `made`."""
        run = self.runs[array.run_no]
        if made is not None:
            array.made[made] = array.made.get(made, 0) - 1
        if pending:
            left = array.pending_state(array.node.state)
            run.states[left] = run.states.get(left, 0) - pending
        run.changed = True
        self.changed_runs.add(array.run_no)
        self._changed_arrays[array.task_no] = array

    def write_ended(self, row: ArrayRow, state: TaskState, made: Mapping[TaskState, int]) -> None:
        """Write the counts of an array that has ended, after a decision about its run."""
        row.pending_count = Ranges.of(row.pending).count
        row.pending_state = state.value if row.pending_count else ""
        row.states = {state.value: count for state, count in made.items() if count}
        if row.pending_count:
            row.states[state.value] = row.states.get(state.value, 0) + row.pending_count
        self._outbox.writes.arrays[row.task_no] = row

    def _write_arrays(self) -> None:
        for array in self._changed_arrays.values():
            self._outbox.writes.arrays[array.task_no] = array.row
        self._changed_arrays.clear()

    # --- runs ------------------------------------------------------------------------------------

    def forget_run(self, run_no: int) -> Run:
        """Forget a dropped run."""
        self.changed_runs.discard(run_no)
        self.failing_runs.discard(run_no)
        for array_no in [array.task_no for array in self.arrays.values() if array.run_no == run_no]:
            self.forget_array(array_no)
        self._changed_arrays = {no: item for no, item in self._changed_arrays.items() if item.run_no != run_no}
        run = self.runs.pop(run_no)
        self.names.drop(run.row.name)
        return run

    def hold(self, run: Run, reason: str) -> None:
        """Start nothing of this run until an operator acts."""
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
        """Set why no task of this run can start now; empty if one can. Sent to watchers, not written."""
        if run.stuck != reason:
            run.stuck = reason
            run.changed = True
            self.changed_runs.add(run.row.run_no)

    def _write_run(self, run: Run) -> None:
        self._outbox.writes.runs[run.row.run_no] = run.row
        run.changed = True
        self.changed_runs.add(run.row.run_no)

    def settle(self, now: float) -> None:
        """After a batch: note which runs have ended or resumed."""
        self._write_arrays()
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
        """An ended run prepares no more worker processes: end its init tasks."""
        for node in tuple(run.inits.values()):
            if node.state is _READY:
                self.move(node, TaskState.SUCCEEDED, "skipped: no other task needs its results")
            if node.state is not _RUNNING:
                self.write(node)  # the number of its last attempt, which may still run
                self.graph.remove([node.task_no])
                del run.inits[node.task_no]
        self._forget_init_failures(run)

    def check(self) -> None:
        """Check invariants: counts agree with the graph, all states are legal."""
        self.graph.check()
        left: dict[int, int] = {}
        made: dict[int, int] = {}
        for node in self.graph.nodes.values():
            assert node.run_no in self.runs, f"task {node.id} without its run"
            if node.is_array:
                left[node.run_no] = left.get(node.run_no, 0) + self.arrays[node.task_no].pending.count
            elif node.array:
                made[node.array] = made.get(node.array, 0) + 1
            if not node.init and not node.is_array:
                left[node.run_no] = left.get(node.run_no, 0) + 1
        for run_no, run in self.runs.items():
            assert run.left == left.get(run_no, 0), (
                f"run {run.row.name}: {run.left} counted, {left.get(run_no, 0)} known"
            )
            assert all(count >= 0 for count in run.states.values())
        for array in self.arrays.values():
            is_open = array.task_no in self.graph.nodes or array.unfinished
            assert is_open, f"array {array.template.id} has ended but is in memory"
            assert array.unfinished == made.pop(array.task_no, 0), f"array {array.template.id}: {array.made}"
            assert all(position in array.pending for position, _ in array.due.ranges), "an element is made twice"
        assert not made, "elements without their array"
        waiting: dict[int, list[int]] = {}
        for array in self.arrays.values():
            for source in array.sources:
                waiting.setdefault(source.array_no, []).append(array.task_no)
        known = {array_no: sorted([other.task_no for other in others]) for array_no, others in self._each_of.items()}
        assert known == {array_no: sorted(others) for array_no, others in waiting.items()}, "an ended array waits"
