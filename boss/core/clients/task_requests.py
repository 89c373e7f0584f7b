"""Requests about tasks: cancel, retry, redo, drop, follow their output.

Each works on run images that the store read for it, updated from the graph. They hold the tasks that the request can
affect (`reads_for`), not the whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set

from boss.core.autoscale.owed_vms import ASKED_FOR
from boss.core.clients.calls import Calls
from boss.core.clients.request_answers import Answer, RequestRefused, text_of
from boss.core.model.arrays import Array
from boss.core.model.effects import Reads, RemoveFiles
from boss.core.model.fleet import Fleet
from boss.core.model.graph import Node
from boss.core.model.outbox import Outbox
from boss.core.model.rows import RunImage, TaskRow
from boss.core.tasks.apply_merge import apply
from boss.core.tasks.arrays import made_in, make
from boss.core.tasks.attempts import Attempts
from boss.core.tasks.merging import Merge, as_change, count_states, replant
from boss.core.tasks.taskbook import Run, TaskBook
from ecloud.model.calls import calls_directory
from ecloud.model.ranges import Indices, Ranges
from ecloud.model.tasks import ENDED, TaskState
from ecloud.model.text import counted
from ecloud.model.wire import Request, StreamLogs

STREAM_LOGS_S = 30.0
"""How long a worker streams a task's output unless the request is repeated."""


class TaskRequests:
    """Carries out requests about tasks. `verbs`: by name, called with the request, the images of the runs concerned,
    the tasks selected in them, and `now`."""

    def __init__(self, outbox: Outbox, book: TaskBook, attempts: Attempts, fleet: Fleet, calls: Calls) -> None:
        self._outbox = outbox
        self._book = book
        self._attempts = attempts
        self._fleet = fleet
        self._calls = calls
        self.verbs: dict[str, Callable[[Request, list[RunImage], frozenset[int], float], Answer]] = {
            "cancel": self._cancel,
            "retry_failed": self._retry_failed,
            "redo_task": self._redo,
            "drop_tasks": self._drop,
            "logs": self._logs,
        }

    def _cancel(self, request: Request, images: list[RunImage], task_nos: frozenset[int], now: float) -> Answer:
        reason = f"cancelled: {text_of(request, 'reason', ASKED_FOR)}"
        task_nos = with_elements(images, task_nos)
        pending = self._pending_of(images, task_nos)
        cancelled = self._cancel_nodes(task_nos, reason, now)
        names = [node.id for node in cancelled if not node.is_array]
        count = len(names) + sum(self._whole(node) for node in cancelled if node.is_array)
        for array, positions in pending:
            make(self._outbox, self._book, array, positions, now, TaskState.CANCELLED, reason)
            names += [f"{array.template.id}[{array.indices[position]}]" for position in positions]
            count += len(positions)
        return count, f"{count} cancelled", tuple(names)

    def cancel_run(self, run_no: int, reason: str, now: float) -> int:
        """Cancel what is unfinished of a run; return the number of tasks."""
        task_nos = [node.task_no for node in self._book.graph.nodes.values() if node.run_no == run_no]
        return len(self._cancel_nodes(task_nos, reason, now))

    def _whole(self, node: Node) -> int:
        """Number of a cancelled array's elements that had no row."""
        return self._book.arrays[node.task_no].pending.count

    def _pending_of(self, images: list[RunImage], task_nos: Iterable[int]) -> list[tuple[Array, list[int]]]:
        """Which of these are elements without a row, of arrays that the request does not name as a whole."""
        runs = {image.run.run_no for image in images}
        wanted = set(task_nos)
        found = []
        for array in self._book.arrays.values():
            if array.run_no not in runs or array.task_no in wanted:
                continue
            positions = list(array.pending.intersection(_places(wanted, array.first_no, array.indices.count)))
            if positions:
                found.append((array, positions))
        return found

    def _cancel_nodes(self, task_nos: Iterable[int], reason: str, now: float) -> list[Node]:
        cancelled = []
        # Dependents first (they mostly have higher numbers), so that they are cancelled, not aborted.
        for task_no in sorted(task_nos, reverse=True):
            node = self._book.graph.nodes.get(task_no)
            if node is None or node.init or (task_no, node.assigned) in self._attempts.promoting:
                continue  # its results are being published: it has practically succeeded
            if node.assigned:
                self._attempts.stop([self._attempts.active[(task_no, node.assigned)]], reason)
                node.assigned = 0
            self._book.end(node, TaskState.CANCELLED, reason, now)
            cancelled.append(node)
        return cancelled

    def _retry_failed(self, request: Request, images: list[RunImage], task_nos: frozenset[int], now: float) -> Answer:
        count, names = 0, []
        task_nos = with_elements(images, task_nos)
        for image in images:
            targets = {
                row.task_no
                for row in image.tasks
                if row.state is TaskState.FAILED and (row.task_no in task_nos or row.init)
            }
            names += [row.id for row in image.tasks if row.task_no in targets and row.elements is None]
            count += self._again(image, targets, False, now)
        return count, _again_text(len(names), "failed task", count), tuple(names)

    def _redo(self, request: Request, images: list[RunImage], task_nos: frozenset[int], now: float) -> Answer:
        count, names = 0, []
        task_nos = with_elements(images, task_nos)
        for image in images:
            targets = {row.task_no for row in image.tasks if row.task_no in task_nos and row.state in ENDED}
            names += [row.id for row in image.tasks if row.task_no in targets and row.elements is None]
            count += self._again(image, targets, bool(request.arguments.get("below")), now)
        return count, _again_text(len(names), "task", count), tuple(names)

    def _again(self, image: RunImage, targets: set[int], below: bool, now: float) -> int:
        if not targets:
            return 0
        rows = {row.task_no: row for row in image.tasks}
        states = ENDED if below else frozenset({TaskState.ABORTED})
        targets = _with_arrays(rows, targets)
        fresh = _with_arrays(rows, targets | _below(image.tasks, targets, states))
        merged, before = Merge(), count_states(image)
        replant(merged, image.tasks, fresh, around=image.around)
        if image.is_part:
            as_change(merged, before)
        apply(merged, image, self._outbox, self._book, self._attempts, now)
        return sum(rows[task_no].elements is None for task_no in fresh)

    def _drop(self, request: Request, images: list[RunImage], task_nos: frozenset[int], now: float) -> Answer:
        dropped: list[str] = []
        dropped_nos: set[int] = set()
        unused: list[str] = []
        """Directories of the calls of dropped runs. Programs that still wait for calls of a run may know its files."""
        task_nos = with_elements(images, task_nos)
        for array, positions in self._pending_of(images, task_nos):
            for position in positions:
                array.pending.discard(position)
                array.due.discard(position)
            self._book.count_dropped(array, pending=len(positions))
            dropped += [f"{array.template.id}[{array.indices[position]}]" for position in positions]
        for image in images:
            meant = {row.task_no for row in image.tasks if row.task_no in task_nos}
            self._cancel_nodes(meant, "cancelled: dropped", now)
            run = self._book.run_of(image.run)
            writes = self._outbox.writes
            for row in image.tasks:
                if row.task_no not in meant or row.task_no in self._book.graph.nodes:
                    continue
                moved = writes.tasks.pop(row.task_no, None)
                state = moved.state if moved is not None else row.state
                if row.elements is not None:
                    self._drop_array(row, run)
                elif not row.init:
                    run.states[state] = run.states.get(state, 0) - 1
                    if row.array in self._book.arrays:
                        self._book.count_dropped(self._book.arrays[row.array], made=state)
                    dropped.append(row.id)
                else:
                    dropped.append(row.id)
                dropped_nos.add(row.task_no)
                writes.dropped_tasks.append(row.task_no)
            dropped += self._drop_from_ended(image, task_nos, dropped_nos, run)
            for row in image.tasks:  # elements whose results are being published, when their array was dropped
                node = self._book.graph.nodes.get(row.task_no)
                if node is not None and node.array not in self._book.arrays:
                    node.array = 0
            if not any(run.states.values()):
                if not self._calls.is_watched(image.run.run_no):
                    unused.append(calls_directory(image.run.name))
                dropped_nos |= self._drop_run(image.run.run_no)
        if unused:
            self._outbox.call(RemoveFiles(tuple(unused)))
        self._attempts.forget_tasks(dropped_nos)
        return len(dropped), f"{len(dropped)} tasks dropped", tuple(dropped)

    def _drop_from_ended(self, image: RunImage, task_nos: frozenset[int], dropped_nos: Set[int], run: Run) -> list[str]:
        """Drop elements without a row from arrays that have ended, and write the counts of arrays that lost elements.

        The task book does not hold these arrays: the image does. Returns the ids of the elements that had no row.
        """
        dropped: list[str] = []
        reduced = {row.array for row in image.tasks if row.task_no in dropped_nos}
        made = made_in(row for row in image.tasks if row.task_no not in dropped_nos)
        for row in image.tasks:
            elements = row.elements
            if elements is None or row.task_no in self._book.arrays or row.task_no in dropped_nos:
                continue
            indices, pending = Indices.of(elements.indices), Ranges.of(elements.pending)
            positions = list(pending.intersection(_places(task_nos, elements.first_no, indices.count)))
            if not positions and row.task_no not in reduced:
                continue
            for position in positions:
                pending.discard(position)
            elements.pending = str(pending)
            run.states[row.state] = run.states.get(row.state, 0) - len(positions)
            dropped += [f"{row.id}[{indices[position]}]" for position in positions]
            self._book.write_ended(elements, row.state, made.get(row.task_no, {}))
        return dropped

    def _drop_array(self, row: TaskRow, run: Run) -> None:
        """Drop the array itself, with its elements that have no row."""
        elements = row.elements
        assert elements is not None
        array = self._book.arrays.get(row.task_no)
        pending = array.pending if array is not None else Ranges.of(elements.pending)
        state = array.node.state if array is not None else row.state
        run.states[state] = run.states.get(state, 0) - pending.count
        self._book.drop_array(row.task_no)

    def _drop_run(self, run_no: int) -> set[int]:
        run = self._book.forget_run(run_no)
        self._outbox.writes.runs.pop(run_no, None)
        self._book.graph.remove(run.inits)
        for task_no in run.inits:
            self._outbox.writes.tasks.pop(task_no, None)
        self._outbox.writes.dropped_runs.append(run_no)
        self._attempts.forget_run(run_no)
        return set(run.inits)

    def _logs(self, request: Request, images: list[RunImage], task_nos: frozenset[int], now: float) -> Answer:
        if len(task_nos) != 1:
            raise RequestRefused("request", f"logs follows one task, not {len(task_nos)}")
        (task_no,) = task_nos
        node = self._book.graph.nodes.get(task_no)
        if node is None or not node.assigned:
            row = next((row for image in images for row in image.tasks if row.task_no == task_no), None)
            if row is None:
                return 0, TaskState.WAITING.value, (str(task_no),)  # an element without a row
            return 0, row.state.value, (str(task_no),)
        attempt = self._attempts.active[(task_no, node.assigned)]
        worker = self._fleet.workers.get(self._attempts.holder(attempt))
        if worker is None:
            return 1, node.state.value, (str(task_no),)
        if worker.conversation is not None:
            self._outbox.say(worker.conversation, StreamLogs(task_no, attempt.number, STREAM_LOGS_S))
        # Name the worker whose lines are genuine: any peer of the broker can publish to the task's topic.
        return 1, node.state.value, (str(task_no), str(attempt.number), worker.name, worker.row.key_name)


def reads_for(request: Request) -> Reads:
    """The tasks that must be read for a request about tasks."""
    if request.verb == "cancel":
        return Reads.NUMBERS
    if request.verb == "retry_failed":
        return Reads.REDONE
    if request.verb == "redo_task":
        return Reads.REDONE_BELOW if request.arguments.get("below") else Reads.REDONE
    return Reads.SELECTED


def with_elements(images: list[RunImage], task_nos: frozenset[int]) -> frozenset[int]:
    """These tasks, plus the elements of the arrays among them."""
    rows = [row for image in images for row in image.tasks]
    if not any(row.elements is not None and row.task_no in task_nos for row in rows):
        return task_nos
    return task_nos | {row.task_no for row in rows if row.array in task_nos}


def _places(task_nos: Iterable[int], first_no: int, count: int) -> Ranges:
    """Positions of those of these tasks that are elements of an array, by the numbers that it has for elements."""
    return Ranges.holding(task_no - first_no for task_no in task_nos if first_no <= task_no < first_no + count)


def _with_arrays(rows: Mapping[int, TaskRow], task_nos: set[int]) -> set[int]:
    """These tasks, plus the ended arrays of the elements among them."""
    arrays = {rows[task_no].array for task_no in task_nos if rows[task_no].array}
    return task_nos | {array_no for array_no in arrays if rows[array_no].state in ENDED}


def _below(rows: Iterable[TaskRow], targets: set[int], states: frozenset[TaskState]) -> set[int]:
    """Tasks in one of `states` that depend on `targets`, directly or through tasks in those states."""
    state_of: dict[int, TaskState] = {}
    dependents: dict[int, list[int]] = {}
    for row in rows:
        state_of[row.task_no] = row.state
        for on_task_no, _ in (*row.dependencies, *(row.elements.each if row.elements is not None else ())):
            dependents.setdefault(on_task_no, []).append(row.task_no)
    found: set[int] = set()
    todo = list(targets)
    while todo:
        for dependent in dependents.get(todo.pop(), ()):
            if dependent not in found and dependent not in targets and state_of[dependent] in states:
                found.add(dependent)
                todo.append(dependent)
    return found


def _again_text(count: int, what: str, in_all: int) -> str:
    """For example "1 task is done again", "2 tasks are done again, with 3 below them"."""
    below = f", with {in_all - count:,} below {'it' if count == 1 else 'them'}" if in_all > count else ""
    return f"{counted(count, what)} {'is' if count == 1 else 'are'} done again{below}"
