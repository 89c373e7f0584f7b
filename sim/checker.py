"""What must always be true, looked at after every commit, word and start; and what must become true at last.

Looks at what is committed (`Tables`), said, started and published; never into what a core thinks. Each look is as large
as what changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from boss.core.config import BossConfig
from boss.core.rows import AttemptRow, TaskMoved, TaskRow, Writes
from boss.store import Deposed
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
from sim.fleet_checker import FleetChecker
from sim.invariants import Violation
from sim.store import ON_DUTY, Tables
from sim.world import World

Key = tuple[int, int]
_ROUNDING = 1e-6
RECORDED = ATTEMPT_OVER | {AttemptState.PROMOTING}
MOST_NAMED = 100
"""Rows of one batch that a story tells by name."""
GIVEN_UP = (AttemptState.LOST, AttemptState.RETURNED)


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

    def __init__(self, world: World, tables: Tables, datastore: Datastore, config: BossConfig) -> None:
        self.world = world
        self.tables = tables
        self.datastore = datastore
        datastore.on_published = self.on_published
        self.fleet = FleetChecker(world, tables, config)
        self.outcomes: dict[Key, Outcome] = {}
        self.came_to: dict[Key, Outcome] = {}
        """What workers came to, whether anybody heard of it or not."""
        self.spools_lost: set[str] = set()
        """Homes, and processes on them, whose disks lost what they held."""
        self.running: dict[str, dict[Key, Resources]] = {}
        self.gpus: dict[str, dict[int, Key]] = {}
        self.prepared: dict[str, set[int]] = {}
        """Init tasks that succeeded, by worker process."""
        self.allowed: set[int] = set()
        """Tasks that were given while their dependencies allowed it, and have not ended or been made to wait since."""
        self.started: dict[Key, str] = {}
        self.taken: set[str] = set()
        """Pushes that were committed."""
        self.accepted: dict[str, str] = {}
        """Runs by push that were said to be accepted."""
        self.completions = 0
        self.looked = world.looked

    # --- what is committed -----------------------------------------------------------------------

    @contextmanager
    def committing(self, boss: str, epoch: int, writes: Writes) -> Iterator[None]:
        """Around a commit: the moves from what was to what is."""
        tables = self.tables
        known, given = tables.tasks, tables.attempts
        tasks = {no: row.state for no in writes.tasks if (row := known.get(no)) is not None}
        stored = {task.row.task_no for task in writes.stored}
        before = [given.get(key) for key in writes.attempts]
        batch = tables.batch
        try:
            yield
        except Deposed:
            self.looked["one-boss"] += 1
            raise
        if tables.batch == batch:
            return  # it had landed before
        if epoch != tables.epoch:
            raise Violation("one-boss", f"{boss} writes in epoch {epoch}, which is over: {tables.epoch} leads")
        self.world.tell(boss, f"commits batch {tables.batch}{_sizes(writes)}")
        self.allowed -= stored
        for task_no, moved in writes.tasks.items():
            waits_anew = moved.state is TaskState.WAITING and tasks.get(task_no) is not TaskState.RUNNING
            if waits_anew or moved.state in ENDED:
                self.allowed.discard(task_no)
            task = known.get(task_no)
            if task is not None:
                self._task_moved(task, tasks.get(task_no) if task_no not in stored else None, moved)
        for (key, attempt), was in zip(writes.attempts.items(), before, strict=True):
            self._attempt_moved(key, None if was is None else was.state, attempt)
        for push in writes.pushes:
            self.looked["wanted"] += 1
            if push.push_id in self.taken:
                raise Violation("push-once", f"{boss} takes push {push.push_id} a second time")
            self.taken.add(push.push_id)
        for worker in writes.workers.values():
            self.fleet.on_worker_row(boss, worker)
        if writes.vms:
            self.fleet.on_vm_rows(boss, writes.vms)
        self.fleet.on_boot_rows(boss, writes.boots)
        if writes.dropped_tasks or writes.dropped_runs:
            self._forget_dropped()

    def _forget_dropped(self) -> None:
        tasks = self.tables.tasks
        self.outcomes = {key: value for key, value in self.outcomes.items() if key[0] in tasks}
        self.came_to = {key: value for key, value in self.came_to.items() if key[0] in tasks}
        self.started = {key: value for key, value in self.started.items() if key[0] in tasks}

    def _attempt_moved(self, key: Key, before: AttemptState | None, row: AttemptRow) -> None:
        self.looked["legal-moves"] += 1
        if before is not None and before is not row.state and (before, row.state) not in _ATTEMPT_MOVES:
            raise Violation("legal-moves", f"attempt {_name(key)} moved from {before} to {row.state}")
        if before is row.state and before in ATTEMPT_OVER and self.outcomes.get(key) != row.outcome:
            raise Violation("one-outcome", f"attempt {_name(key)} was {before} and is changed")
        if before is None:
            self._given(key, row)
        if row.state in GIVEN_UP:
            self._given_up(key, row)
        if row.outcome is not None:
            if before not in RECORDED and self.came_to.get(key) != row.outcome and key in self.started:
                raise Violation("true-outcome", f"attempt {_name(key)} is recorded with what it did not come to")
            self.looked["true-outcome"] += 1
            self.looked["one-outcome"] += key in self.outcomes
            known = self.outcomes.setdefault(key, row.outcome)
            if known is not row.outcome and known != row.outcome:
                raise Violation("one-outcome", f"attempt {_name(key)} has two outcomes: {known} and {row.outcome}")
        elif row.state in (AttemptState.PROMOTING, AttemptState.ENDED):
            raise Violation("one-outcome", f"attempt {_name(key)} is {row.state} without an outcome")

    def _given_up(self, key: Key, row: AttemptRow) -> None:
        """Work that was done is not thrown away while the worker that did it is on duty."""
        self.looked["fenced"] += key not in self.started
        if key not in self.started:
            return
        on_duty = self._holder(key, row.worker)
        self.looked["outcome-kept"] += bool(on_duty)
        if key in self.came_to and on_duty and on_duty not in self.spools_lost:
            raise Violation("outcome-kept", f"attempt {_name(key)} came to an outcome, and is {row.state}")

    def _holder(self, key: Key, given_to: str) -> str:
        """Which process on duty has it: the one it was given to, or one that came later and said so in its Hello."""
        workers = self.tables.workers
        if given_to in workers and workers[given_to].state in ON_DUTY:
            return given_to
        for row in workers.values():
            if row.state in ON_DUTY and any((item.task_no, item.number) == key for item in row.hello.attempts):
                return row.worker
        return ""

    def _given(self, key: Key, row: AttemptRow) -> None:
        """A new attempt: what its task waits for must allow it."""
        task = self.tables.tasks.get(key[0])
        if task is None or row.state is not AttemptState.ASSIGNED:
            return
        if task.state in ENDED and not task.init:
            raise Violation("dependencies", f"attempt {_name(key)} is given although task {task.id} is {task.state}")
        self.looked["dependencies"] += bool(task.dependencies)
        self.looked["one-attempt"] += key[1] > 1 and not task.init
        for other_no, condition in task.dependencies:
            other = self.tables.tasks[other_no]
            # One that ran already when its dependency was done again runs on, and is tried again however that one ends.
            ran_on = other.state in ENDED and key[0] in self.allowed
            if not (other.state in ENDED and condition.met_by(other.state)) and not ran_on:
                raise Violation(
                    "dependencies",
                    f"attempt {_name(key)} is given although {other.id} is {other.state}, not {condition}",
                )
        self.allowed.add(key[0])
        for number in range(max(1, key[1] - 8), key[1]) if not task.init else ():
            found = self.tables.attempts.get((key[0], number))
            if found is not None and found.state in (AttemptState.ASSIGNED, AttemptState.STARTED):
                raise Violation("one-attempt", f"attempt {_name(key)} is given although attempt {number} of it goes on")

    def _task_moved(self, task: TaskRow, before: TaskState | None, moved: TaskMoved) -> None:
        if before is not None and before is not moved.state and (before, moved.state) not in _TASK_MOVES:
            raise Violation("legal-moves", f"task {task.task_no} moved from {before} to {moved.state}")
        if moved.state not in ENDED or before is moved.state:
            return
        self.completions += 1
        if moved.state is TaskState.SUCCEEDED and not task.init and not moved.reason.startswith("skipped"):
            self._succeeded(task.task_no, moved.attempts)

    def _succeeded(self, task_no: int, attempts: int) -> None:
        for number in range(attempts, 0, -1):
            row = self.tables.attempts.get((task_no, number))
            outcome = row.outcome if row is not None and row.state is AttemptState.ENDED else None
            if outcome is not None and outcome.cause is Cause.SUCCESS:
                break
        else:
            raise Violation("files-whole", f"task {task_no} succeeded without an attempt that did")
        self.looked["files-whole"] += bool(outcome.manifest)
        for entry in outcome.manifest:
            found = self.datastore.final.get(entry.path)
            if found != entry.sha256:
                raise Violation(
                    "files-whole", f"task {task_no} succeeded, but {entry.path} is of {found}, not of {entry.sha256}"
                )

    # --- what is said ----------------------------------------------------------------------------

    def on_said(self, boss: str, envelope: Envelope) -> None:
        """Nothing is said that is not committed."""
        message = envelope.message
        attempts = self.tables.attempts
        if isinstance(message, wire.StartTasks):
            self.looked["write-then-speak"] += 1
            for order in message.attempts:
                if (order.task_no, order.number) not in attempts and order.task_no in self.tables.tasks:
                    raise Violation(
                        "write-then-speak",
                        f"{boss} orders attempt {_name((order.task_no, order.number))}: not committed",
                    )
        elif isinstance(message, wire.OutcomesStored):
            for name in message.attempts:
                row = attempts.get((name.task_no, name.number))
                if row is not None and row.state not in RECORDED:
                    raise Violation(
                        "write-then-speak",
                        f"{boss} says that the outcome of {_name((name.task_no, name.number))} is stored",
                    )
        elif isinstance(message, wire.RunRejected):
            raise Violation("wanted", f"{boss} rejects push {message.push_id}: {message.problems[0]}")
        elif isinstance(message, wire.RunAccepted):
            if message.push_id not in self.tables.pushes and message.run_no in self.tables.runs:
                raise Violation("write-then-speak", f"{boss} accepts push {message.push_id}: not committed")
            self.looked["push-once"] += message.push_id in self.accepted
            self.accepted[message.push_id] = message.run

    # --- what workers do -------------------------------------------------------------------------

    def on_started(self, worker: str, order: AttemptOrder, capacity: Resources, gpus: tuple[int, ...] = ()) -> None:
        """A worker starts only what was committed for it, and never more than it has room for."""
        key = (order.task_no, order.number)
        row = self.tables.attempts.get(key)
        if row is None and order.task_no in self.tables.tasks:
            raise Violation("ordered", f"{worker} starts attempt {_name(key)}, which is not committed")
        if row is not None and row.worker != worker:
            raise Violation("ordered", f"{worker} starts attempt {_name(key)}, which is {row.worker}'s")
        if key in self.started:
            raise Violation("ordered", f"{worker} starts attempt {_name(key)} twice")
        self.looked["ordered"] += 1
        self.started[key] = worker
        if row is not None and row.state in GIVEN_UP:
            raise Violation("fenced", f"{worker} starts attempt {_name(key)}, which was recorded as {row.state}")
        self._must_be_prepared(worker, order)
        running = self.running.setdefault(worker, {})
        self.looked["resources"] += bool(running)
        running[key] = order.asks
        for resource in order.asks:  # of others no more is taken than before
            amount, taken = capacity.get(resource, 0.0), 0.0
            for asks in running.values():
                taken += asks.get(resource, 0.0)
            if taken > amount + _ROUNDING:
                raise Violation("resources", f"{worker} uses {taken:g} {resource} of {amount:g}")
        held = self.gpus.setdefault(worker, {}) if gpus else {}
        if len(gpus) != int(order.asks.get("gpus", 0)):
            raise Violation("resources", f"{worker} gives {len(gpus)} GPUs to attempt {_name(key)}")
        for gpu in gpus:
            if held.setdefault(gpu, key) != key:
                raise Violation("resources", f"{worker} gives GPU {gpu} to {_name(key)} and to {_name(held[gpu])}")

    def _must_be_prepared(self, worker: str, order: AttemptOrder) -> None:
        if order.init:
            self.prepared.setdefault(worker, set()).discard(order.task_no)
        if not order.after_init:
            return
        self.looked["prepared"] += 1
        missing = [task_no for task_no in order.after_init if task_no not in self.prepared.get(worker, ())]
        if missing:
            name = _name((order.task_no, order.number))
            raise Violation("prepared", f"{worker} starts {name} before init task {missing[0]} succeeded there")

    def on_came_to(self, worker: str, order: AttemptOrder, outcome: Outcome) -> None:
        """An attempt ended at a worker."""
        self.came_to[(outcome.task_no, outcome.number)] = outcome
        if order.init and outcome.cause is Cause.SUCCESS:
            self.prepared.setdefault(worker, set()).add(order.task_no)

    def on_over(self, worker: str, key: Key) -> None:
        """It runs no more."""
        self.running.get(worker, {}).pop(key, None)
        held = self.gpus.get(worker)
        if held:
            self.gpus[worker] = {gpu: by for gpu, by in held.items() if by != key}

    def on_worker_dead(self, worker: str) -> None:
        """Nothing of it runs any more."""
        self.running.pop(worker, None)
        self.gpus.pop(worker, None)
        self.prepared.pop(worker, None)
        self.fleet.on_dead(worker)

    def on_no_access(self, worker: str, credential: str) -> None:
        """It goes to the datastore with a certificate that is not for its own key."""
        raise Violation("access", f"{worker} goes to the datastore with {credential!r}")

    def on_published(self, path: str, content: str) -> None:
        """Something comes under its final name: of an attempt whose outcome is recorded."""
        task_no, number = content.rpartition(":")[2].split("-")
        key = (int(task_no), int(number))
        row = self.tables.attempts.get(key)
        self.looked["published-by-record"] += key[0] in self.tables.tasks
        if key[0] in self.tables.tasks and (row is None or row.state not in RECORDED):
            state = "not known" if row is None else row.state
            raise Violation("published-by-record", f"{path} is published of attempt {_name(key)}, which is {state}")

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
                raise Violation("promised-there", f"{worker} lacks {path} for {_name(key)}")

    # --- in the end ------------------------------------------------------------------------------

    def at_last(self) -> None:
        """Every task that succeeded has its files, and from its last attempt that did."""
        for task_no, task in self.tables.tasks.items():
            if task.state is TaskState.SUCCEEDED and not task.init and not task.reason.startswith("skipped"):
                self._succeeded(task_no, task.attempts)


def _name(key: Key) -> str:
    return f"{key[0]}-{key[1]}"


def _sizes(writes: Writes) -> str:
    """What a batch holds, in words; single rows by name, for the story, where they are not too many to read."""
    parts = [f" {len(writes.attempts)} attempts", f" {len(writes.tasks)} tasks"]
    if len(writes.attempts) + len(writes.tasks) <= MOST_NAMED:
        parts = [f" {_name(key)}:{row.state!s}" for key, row in writes.attempts.items()]
        parts += [f" task{no}:{moved.state!s}" for no, moved in writes.tasks.items()]
    parts += [f" {row.worker}:{row.state}" for row in writes.workers.values()]
    parts += [f" vm{row.vm_no}:{row.state}" for row in writes.vms.values()]
    parts += [f" +{len(writes.stored)} tasks" if writes.stored else ""]
    return ":" + "".join(parts) if any(parts) else ""
