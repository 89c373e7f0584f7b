"""Tasks that may have killed the workers they ran on: counted, isolated, and finally failed.

A lost worker charges the tasks that ran on it, unless the boss ordered it to leave, it reported the end of its machine,
or it never sent this boss a message. If some of these tasks were charged before, only those are charged again: the
others were bystanders. In a chain, the attempt that is known to have started last is charged: those before it had
succeeded there, recorded or not. A charged task is never chained, so that the next loss is less ambiguous.

A task that is one short of the limit runs alone on a worker: so a task that fails for this reason was alone with the
worker that it lost, and no bystander fails.
"""

from __future__ import annotations

from collections.abc import Container

import msgspec

from boss.core.model.graph import Node, Shape
from boss.core.model.outbox import Outbox
from boss.core.model.rows import SuspectRow
from boss.core.model.worker import Attempt, Worker
from boss.core.tasks.taskbook import TaskBook
from ecloud.model.tasks import AttemptState, TaskState
from ecloud.model.text import counted

_RAN = frozenset({AttemptState.ASSIGNED, AttemptState.STARTED})


class Suspects:
    """Rows by task. `limit`: a task fails after losing this many workers; 0 for any number."""

    def __init__(self, outbox: Outbox, book: TaskBook, limit: int) -> None:
        self._outbox = outbox
        self._book = book
        self._limit = limit
        self.rows: dict[int, SuspectRow] = {}
        self._nodes: dict[int, Node] = {}
        """The tasks as they were when they were charged: a redone task is another node."""

    def load(self, rows: list[SuspectRow]) -> None:
        """Load rows after a start, before anything is placed."""
        for row in rows:
            self.rows[row.task_no] = row
            node = self._book.graph.nodes.get(row.task_no)
            if node is not None and not row.failed:
                self._suspect(node, row)

    def _suspect(self, node: Node, row: SuspectRow) -> None:
        self._nodes[node.task_no] = node
        node.suspect, node.apart = True, self._runs_apart(row)

    def _runs_apart(self, row: SuspectRow) -> bool:
        return bool(self._limit) and row.lost >= self._limit - 1

    def shape_on(self, worker: Worker, node: Node) -> Shape:
        """What an attempt of the task occupies there: the whole worker if it must run alone."""
        return self._book.graph.shapes.of(worker.capacity) if node.apart else node.shape

    def charge(
        self, worker: Worker, ended: Container[tuple[int, int]], reason: str, now: float
    ) -> list[tuple[Node, str]]:
        """Charge the tasks of a lost worker. Returns the tasks that have lost too many workers now, each with a
        sentence. `ended`: attempts whose outcomes have arrived."""
        if not self._limit:
            return []
        done = _succeeded_there(worker)
        ran = [
            node
            for key, attempt in worker.held.items()
            if key not in done and key not in ended and (node := self._ran(worker, attempt)) is not None
        ]
        known = [node for node in ran if node.task_no in self.rows]
        where = f"worker {worker.name}" + (f" on {worker.row.hello.host}" if worker.row.hello.host else "")
        over = []
        for node in known or ran:
            before = self.rows.get(node.task_no)
            lost = 1 if before is None else before.lost + 1
            # It fails only when the ends above it are recorded: one that was chained to them gets another try, alone.
            failed = lost >= self._limit and node.state is not TaskState.WAITING
            row = SuspectRow(node.task_no, node.run_no, lost, failed, f"{where}: {reason}", now)
            self._write(row)
            self._suspect(node, row)
            if row.failed:
                text = f"{counted(lost, 'worker')} {'was' if lost == 1 else 'were'} lost while running it"
                over.append((node, f"{text}; the last was {where}: {reason}"))
        return over

    def _ran(self, worker: Worker, attempt: Attempt) -> Node | None:
        """The task of an attempt that started or occupied resources and still counts. None while the worker still has
        an init task of the run, which comes first."""
        node = self._book.graph.nodes.get(attempt.task_no)
        if node is None or attempt.init or attempt.state not in _RAN:
            return None
        if not attempt.in_slot and attempt.state is not AttemptState.STARTED:
            return None
        waits = any(other.init and other.run_no == attempt.run_no for other in worker.held.values())
        return None if waits or node.assigned != attempt.number else node

    def settle(self) -> None:
        """At the end of a batch: forget tasks that ended otherwise, or are done again."""
        for task_no, row in tuple(self.rows.items()):
            node = self._book.graph.nodes.get(task_no)
            if (node is not None) if row.failed else (node is None or node is not self._nodes.get(task_no)):
                self._forget(task_no)

    def forget_run(self, run_no: int) -> None:
        """Forget the rows of a dropped run."""
        self.forget_tasks({row.task_no for row in self.rows.values() if row.run_no == run_no})

    def forget_tasks(self, task_nos: set[int]) -> None:
        """Forget the rows of dropped tasks."""
        for task_no in self.rows.keys() & task_nos:
            self._forget(task_no)

    def _forget(self, task_no: int) -> None:
        del self.rows[task_no]
        node = self._nodes.pop(task_no, None)
        if node is not None:
            node.suspect = node.apart = False
        self._outbox.writes.suspects[task_no] = None

    def _write(self, row: SuspectRow) -> None:
        self.rows[row.task_no] = row
        self._outbox.writes.suspects[row.task_no] = msgspec.structs.replace(row)


def _succeeded_there(worker: Worker) -> set[tuple[int, int]]:
    """Attempts whose commands succeeded although their outcomes are not recorded: a chained attempt that waited for
    them has started, even if it is being stopped."""
    found: set[tuple[int, int]] = set()
    started = [one for one in worker.held.values() if one.chained and one.started_at is not None]
    while started:
        for key in started.pop().after:
            before = worker.held.get(key)
            if before is not None and key not in found:
                found.add(key)
                started.append(before)
    return found
