"""What must always be true, looked at after every commit, word and start; and what must become true at last.

Looks at what is committed (`Tables`), said, started and published; never into what a core thinks. Each look is as large
as what changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from boss.core.rows import AttemptRow, TaskMoved, Writes
from ecloud import wire
from ecloud.tasks import (
    ATTEMPT_OVER,
    ENDED,
    LEGAL_ATTEMPT_MOVES,
    LEGAL_TASK_MOVES,
    AttemptState,
    Cause,
    Outcome,
    Resources,
    TaskBody,
    TaskState,
)
from ecloud.wire import AttemptOrder, Envelope
from sim.datastore import Datastore
from sim.store import Tables
from sim.world import World

Key = tuple[int, int]
_ROUNDING = 1e-6
RECORDED = ATTEMPT_OVER | {AttemptState.PROMOTING}


class Violation(AssertionError):
    """Something that must never be. Its text says what."""


def _closure(moves: frozenset[tuple[AttemptState, AttemptState]]) -> frozenset[tuple[AttemptState, AttemptState]]:
    """Several moves in one batch are seen as one."""
    known = set(moves)
    while True:
        more = {(a, d) for a, b in known for c, d in known if b is c} - known
        if not more:
            return frozenset(known)
        known |= more


_ATTEMPT_MOVES = _closure(LEGAL_ATTEMPT_MOVES)
_TASK_MOVES = LEGAL_TASK_MOVES | {(a, d) for a, b in LEGAL_TASK_MOVES for c, d in LEGAL_TASK_MOVES if b is c}
"""Two events of one batch may move a task twice (ended and done anew, made ready and cancelled)."""


class Checker:
    """Raises `Violation`. Owns what was recorded of each attempt, and what runs where."""

    def __init__(self, world: World, tables: Tables, datastore: Datastore) -> None:
        self.world = world
        self.tables = tables
        self.datastore = datastore
        self.outcomes: dict[Key, Outcome] = {}
        self.running: dict[str, dict[Key, Resources]] = {}
        self.allowed: set[int] = set()
        """Tasks that were given while their dependencies allowed it, and have not ended or been made to wait since."""
        self.started: set[tuple[str, Key]] = set()
        self.accepted: dict[str, str] = {}
        """Runs by push that were said to be accepted."""
        self.completions = 0

    # --- what is committed -----------------------------------------------------------------------

    @contextmanager
    def committing(self, boss: str, writes: Writes) -> Iterator[None]:
        """Around a commit: the moves from what was to what is."""
        tables = self.tables
        tasks = {no: tables.tasks[no].state for no in writes.tasks if no in tables.tasks}
        stored = {task.row.task_no for task in writes.stored}
        attempts = {key: tables.attempts[key].state for key in writes.attempts if key in tables.attempts}
        batch = tables.batch
        yield
        if tables.batch == batch:
            return  # it had landed before
        self.world.tell(boss, f"commits batch {tables.batch}{_sizes(writes)}")
        self.allowed -= stored
        for task_no, moved in writes.tasks.items():
            waits_anew = moved.state is TaskState.WAITING and tasks.get(task_no) is not TaskState.RUNNING
            if waits_anew or moved.state in ENDED:
                self.allowed.discard(task_no)
            if task_no in tables.tasks:
                before = tasks.get(task_no) if task_no not in stored else None
                self._task_moved(task_no, before, moved)
        for key, row in writes.attempts.items():
            self._attempt_moved(key, attempts.get(key), row)
        dropped = set(writes.dropped_tasks)
        if dropped or writes.dropped_runs:
            self.outcomes = {key: value for key, value in self.outcomes.items() if key[0] in tables.tasks}

    def _attempt_moved(self, key: Key, before: AttemptState | None, row: AttemptRow) -> None:
        if before is not None and before is not row.state and (before, row.state) not in _ATTEMPT_MOVES:
            raise Violation(f"attempt {_name(key)} moved from {before} to {row.state}")
        if before is row.state and before in ATTEMPT_OVER and self.outcomes.get(key) != row.outcome:
            raise Violation(f"attempt {_name(key)} was {before} and is changed")
        if before is None:
            self._given(key, row)
        if row.outcome is not None:
            known = self.outcomes.setdefault(key, row.outcome)
            if known != row.outcome:
                raise Violation(f"attempt {_name(key)} has two outcomes: {known} and {row.outcome}")
        elif row.state in (AttemptState.PROMOTING, AttemptState.ENDED):
            raise Violation(f"attempt {_name(key)} is {row.state} without an outcome")

    def _given(self, key: Key, row: AttemptRow) -> None:
        """A new attempt: what its task waits for must allow it."""
        task = self.tables.tasks.get(key[0])
        if task is None or row.state is not AttemptState.ASSIGNED:
            return
        if task.state in ENDED and not task.init:
            raise Violation(f"attempt {_name(key)} is given although task {task.id} is {task.state}")
        for other_no, condition in task.dependencies:
            other = self.tables.tasks[other_no]
            # One that ran already when its dependency was done again runs on, and is tried again however that one ends.
            ran_on = other.state in ENDED and key[0] in self.allowed
            if not (other.state in ENDED and condition.met_by(other.state)) and not ran_on:
                raise Violation(f"attempt {_name(key)} is given although {other.id} is {other.state}, not {condition}")
        self.allowed.add(key[0])
        live = [
            number
            for number in range(1, key[1])
            if (found := self.tables.attempts.get((key[0], number))) is not None
            and found.state in (AttemptState.ASSIGNED, AttemptState.STARTED)
        ]
        if live and not task.init:
            raise Violation(f"attempt {_name(key)} is given although attempt {live[0]} of the task goes on")

    def _task_moved(self, task_no: int, before: TaskState | None, moved: TaskMoved) -> None:
        if before is not None and before is not moved.state and (before, moved.state) not in _TASK_MOVES:
            raise Violation(f"task {task_no} moved from {before} to {moved.state}")
        if moved.state not in ENDED or before is moved.state:
            return
        self.completions += 1
        task = self.tables.tasks[task_no]
        if moved.state is TaskState.SUCCEEDED and not task.init and not moved.reason.startswith("skipped"):
            self._succeeded(task_no, moved.attempts)

    def _succeeded(self, task_no: int, attempts: int) -> None:
        ended = [
            row
            for number in range(attempts, 0, -1)
            if (row := self.tables.attempts.get((task_no, number))) is not None
            and row.state is AttemptState.ENDED
            and row.outcome is not None
            and row.outcome.cause is Cause.SUCCESS
        ]
        if not ended:
            raise Violation(f"task {task_no} succeeded without an attempt that did")
        outcome = ended[0].outcome
        assert outcome is not None
        for entry in outcome.manifest:
            found = self.datastore.final.get(entry.path)
            if found != entry.sha256:
                raise Violation(f"task {task_no} succeeded, but {entry.path} is of {found}, not of {entry.sha256}")

    # --- what is said ----------------------------------------------------------------------------

    def on_said(self, boss: str, envelope: Envelope) -> None:
        """Nothing is said that is not committed."""
        message = envelope.message
        attempts = self.tables.attempts
        if isinstance(message, wire.StartTasks):
            for order in message.attempts:
                if (order.task_no, order.number) not in attempts and order.task_no in self.tables.tasks:
                    raise Violation(f"{boss} orders attempt {_name((order.task_no, order.number))}: not committed")
        elif isinstance(message, wire.OutcomesStored):
            for name in message.attempts:
                row = attempts.get((name.task_no, name.number))
                if row is not None and row.state not in RECORDED:
                    raise Violation(f"{boss} says that the outcome of {_name((name.task_no, name.number))} is stored")
        elif isinstance(message, wire.RunRejected):
            raise Violation(f"{boss} rejects push {message.push_id}: {message.problems[0]}")
        elif isinstance(message, wire.RunAccepted):
            if message.push_id not in self.tables.pushes and message.run_no in self.tables.runs:
                raise Violation(f"{boss} accepts push {message.push_id}: not committed")
            self.accepted[message.push_id] = message.run

    # --- what workers do -------------------------------------------------------------------------

    def on_started(self, worker: str, order: AttemptOrder, capacity: Resources) -> None:
        """A worker starts only what was committed for it, and never more than it has room for."""
        key = (order.task_no, order.number)
        row = self.tables.attempts.get(key)
        if row is None and order.task_no in self.tables.tasks:
            raise Violation(f"{worker} starts attempt {_name(key)}, which is not committed")
        if row is not None and row.worker != worker:
            raise Violation(f"{worker} starts attempt {_name(key)}, which is {row.worker}'s")
        if (worker, key) in self.started:
            raise Violation(f"{worker} starts attempt {_name(key)} twice")
        self.started.add((worker, key))
        running = self.running.setdefault(worker, {})
        running[key] = order.asks
        for resource, amount in capacity.items():
            taken = sum(asks.get(resource, 0.0) for asks in running.values())
            if taken > amount + _ROUNDING:
                raise Violation(f"{worker} uses {taken:g} {resource} of {amount:g}")

    def on_over(self, worker: str, key: Key) -> None:
        """It runs no more."""
        self.running.get(worker, {}).pop(key, None)

    def on_worker_dead(self, worker: str) -> None:
        """Nothing of it runs any more."""
        self.running.pop(worker, None)

    def on_missing(self, worker: str, order: AttemptOrder, paths: list[str]) -> None:
        """A required file is not published. What a task that it waits for promises must be."""
        key = (order.task_no, order.number)
        row = self.tables.attempts.get(key)
        if row is None or row.state not in (AttemptState.ASSIGNED, AttemptState.STARTED):
            return
        before = [self.tables.stored[number] for number, _ in self.tables.tasks[order.task_no].dependencies]
        promised = {result.path for stored in before for result in msgspec.json.decode(stored, type=TaskBody).results}
        for path in paths:
            if path in promised:
                raise Violation(f"{worker} lacks {path} for {_name(key)}")

    # --- in the end ------------------------------------------------------------------------------

    def at_last(self) -> None:
        """Every task that succeeded has its files, and from its last attempt that did."""
        for task_no, task in self.tables.tasks.items():
            if task.state is TaskState.SUCCEEDED and not task.init and not task.reason.startswith("skipped"):
                self._succeeded(task_no, task.attempts)


def _name(key: Key) -> str:
    return f"{key[0]}-{key[1]}"


def _sizes(writes: Writes) -> str:
    """What a batch holds, in words; single rows by name, for the story."""
    parts = [f" {_name(key)}:{row.state.value}" for key, row in writes.attempts.items()]
    parts += [f" task{no}:{moved.state.value}" for no, moved in writes.tasks.items()]
    parts += [f" {row.worker}:{row.state}" for row in writes.workers.values()]
    parts += [f" vm{row.vm_no}:{row.state}" for row in writes.vms.values()]
    parts += [f" +{len(writes.stored)} tasks" if writes.stored else ""]
    return ":" + "".join(parts) if any(parts) else ""
