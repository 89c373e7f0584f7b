"""Requests about tasks: cancel, retry, redo, drop, follow their output.

Each works on run images that the store read for it, corrected by what the graph knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from boss.core.clients.request_answers import Answer, RequestRefused, text_of
from boss.core.model.fleet import Fleet
from boss.core.model.graph import Node
from boss.core.model.outbox import Outbox
from boss.core.model.rows import RunImage, TaskRow
from boss.core.tasks.apply_merge import apply
from boss.core.tasks.attempts import Attempts
from boss.core.tasks.merging import Merge, replant
from boss.core.tasks.taskbook import TaskBook
from ecloud.model.tasks import ENDED, TaskState
from ecloud.model.wire import Request, StreamLogs

STREAM_LOGS_S = 30.0
"""How long a worker streams a task's output unless the request is repeated."""


class TaskRequests:
    """Carries out requests about tasks. `verbs`: by name, called with the request, the images of the runs concerned,
    the tasks selected in them, and `now`."""

    def __init__(self, outbox: Outbox, book: TaskBook, attempts: Attempts, fleet: Fleet) -> None:
        self._outbox = outbox
        self._book = book
        self._attempts = attempts
        self._fleet = fleet
        self.verbs: dict[str, Callable[[Request, list[RunImage], frozenset[int], float], Answer]] = {
            "cancel": self._cancel,
            "retry_failed": self._retry_failed,
            "redo_task": self._redo,
            "drop_tasks": self._drop,
            "logs": self._logs,
        }

    def _cancel(self, request: Request, images: list[RunImage], task_nos: frozenset[int], now: float) -> Answer:
        reason = text_of(request, "reason", "a person asked for it")
        cancelled = self._cancel_nodes(task_nos, f"cancelled: {reason}", now)
        return len(cancelled), f"{len(cancelled)} cancelled", tuple(node.id for node in cancelled)

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
        for image in images:
            targets = {
                row.task_no
                for row in image.tasks
                if row.state is TaskState.FAILED and (row.task_no in task_nos or row.init)
            }
            names += [row.id for row in image.tasks if row.task_no in targets]
            count += self._again(image, targets, False, now)
        return count, f"{len(names)} failed tasks are done again, with {count - len(names)} below them", tuple(names)

    def _redo(self, request: Request, images: list[RunImage], task_nos: frozenset[int], now: float) -> Answer:
        count, names = 0, []
        for image in images:
            targets = {row.task_no for row in image.tasks if row.task_no in task_nos and row.state in ENDED}
            names += [row.id for row in image.tasks if row.task_no in targets]
            count += self._again(image, targets, bool(request.arguments.get("below")), now)
        return count, f"{len(names)} tasks are done again, with {count - len(names)} below them", tuple(names)

    def _again(self, image: RunImage, targets: set[int], below: bool, now: float) -> int:
        if not targets:
            return 0
        fresh = targets | _below(image.tasks, targets, ENDED if below else frozenset({TaskState.ABORTED}))
        merged = Merge()
        replant(merged, image.tasks, fresh)
        apply(merged, image, self._outbox, self._book, self._attempts, now)
        return len(fresh)

    def _drop(self, request: Request, images: list[RunImage], task_nos: frozenset[int], now: float) -> Answer:
        dropped: list[str] = []
        dropped_nos: set[int] = set()
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
                if not row.init:
                    run.states[state] = run.states.get(state, 0) - 1
                dropped.append(row.id)
                dropped_nos.add(row.task_no)
                writes.dropped_tasks.append(row.task_no)
            if not any(run.states.values()):
                dropped_nos |= self._drop_run(image.run.run_no)
        self._attempts.forget_tasks(dropped_nos)
        return len(dropped), f"{len(dropped)} tasks dropped", tuple(dropped)

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
            row = next(row for image in images for row in image.tasks if row.task_no == task_no)
            return 0, row.state.value, (str(task_no),)
        attempt = self._attempts.active[(task_no, node.assigned)]
        worker = self._fleet.workers.get(self._attempts.holder(attempt))
        if worker is None:
            return 1, node.state.value, (str(task_no),)
        if worker.conversation is not None:
            self._outbox.say(worker.conversation, StreamLogs(task_no, attempt.number, STREAM_LOGS_S))
        # Name the worker whose lines are genuine: any peer of the broker can publish to the task's topic.
        return 1, node.state.value, (str(task_no), str(attempt.number), worker.name, worker.row.key_name)


def _below(rows: Iterable[TaskRow], targets: set[int], states: frozenset[TaskState]) -> set[int]:
    """Tasks in one of `states` that lie below `targets`, along tasks in those states."""
    state_of: dict[int, TaskState] = {}
    dependents: dict[int, list[int]] = {}
    for row in rows:
        state_of[row.task_no] = row.state
        for on_task_no, _ in row.dependencies:
            dependents.setdefault(on_task_no, []).append(row.task_no)
    found: set[int] = set()
    todo = list(targets)
    while todo:
        for dependent in dependents.get(todo.pop(), ()):
            if dependent not in found and dependent not in targets and state_of[dependent] in states:
                found.add(dependent)
                todo.append(dependent)
    return found
