"""Invariants that are checked after every commit, message and start, and conditions at the end.

Reads what is committed (`Tables`), sent, started and published; never the state of a core. The cost of each check is
proportional to the change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from math import inf

import msgspec

from boss.core.model.config import BossConfig
from boss.core.model.events import Event
from boss.core.model.graph import compared_s
from boss.core.model.rows import AttemptRow, SuspectRow, TaskMoved, TaskRow, WorkerRow, Writes
from boss.shell.inbox import Inbox
from boss.store.store import Deposed
from ecloud.model import wire
from ecloud.model.tasks import (
    ATTEMPT_OVER,
    ENDED,
    LEGAL_ATTEMPT_MOVES,
    LEGAL_TASK_MOVES,
    SIGTERM,
    AttemptState,
    Cause,
    Condition,
    Outcome,
    Resources,
    TaskBody,
    TaskState,
)
from ecloud.model.wire import AttemptOrder, Envelope
from ecloud.model.worker_states import ON_DUTY, WorkerState
from sim.array_checker import ArrayChecker
from sim.datastore import Datastore
from sim.fleet_checker import FleetChecker
from sim.history_checker import HistoryChecker, home_of
from sim.invariants import Violation
from sim.run_checker import RunChecker
from sim.store import Tables
from sim.world import World
from worker.core.report_size import LARGE_BYTES

Key = tuple[int, int]
_ROUNDING = 1e-6
RECORDED = ATTEMPT_OVER | {AttemptState.PROMOTING}
MOST_NAMED = 100
"""Largest number of rows in a batch that the story lists by name."""
_RUNS = (AttemptState.ASSIGNED, AttemptState.STARTED)
GIVEN_UP = (AttemptState.LOST, AttemptState.RETURNED)
_WAITING, _RUNNING, _SUCCEEDED = TaskState.WAITING, TaskState.RUNNING, TaskState.SUCCEEDED
_ASSIGNED, _STARTED = AttemptState.ASSIGNED, AttemptState.STARTED
_PROMOTING, _ENDED = AttemptState.PROMOTING, AttemptState.ENDED


def _closure(moves: frozenset[tuple[AttemptState, AttemptState]]) -> frozenset[tuple[AttemptState, AttemptState]]:
    """Transitive closure: several moves within one batch appear as one."""
    known = set(moves)
    while True:
        more = {(a, d) for a, b in known for c, d in known if b is c} - known
        if not more:
            return frozenset(known)
        known |= more


_ATTEMPT_MOVES = _closure(LEGAL_ATTEMPT_MOVES)
_TASK_MOVES = LEGAL_TASK_MOVES | {(a, d) for a, b in LEGAL_TASK_MOVES for c, d in LEGAL_TASK_MOVES if b is c}
"""Two events of one batch may move a task twice (ended and run again, made ready and cancelled)."""


class Seen(msgspec.Struct, eq=False):
    """Observations of one attempt: whether a worker started it, its outcome there (received or not), and the recorded
    outcome."""

    given_in: int = 0
    """The batch in which it was assigned."""
    started: bool = False
    started_in: int = 0
    """The last batch that was committed when it started."""
    came_to: Outcome | None = None
    succeeded_at: str = ""
    """Worker at which it succeeded, with complete results."""
    chained: bool = False
    """Whether it started before the ends of its dependencies were recorded."""
    after: tuple[Key, ...] = ()
    """Attempts to which its order chained it."""
    read: dict[str, str] = {}
    """Contents that it read of its requirements, by path."""
    recorded: Outcome | None = None


class Busy(msgspec.Struct, eq=False):
    """Attempts that a worker process runs, with the resources of each and their sum."""

    asks: dict[Key, Resources] = {}
    taken: Resources = {}


class Checker:
    """Checks tasks, attempts and messages. Raises `Violation`. Owns the recorded outcome of each attempt, and what runs
    where."""

    def __init__(self, world: World, tables: Tables, datastore: Datastore, config: BossConfig) -> None:
        self.world = world
        self.tables = tables
        self.config = config
        self.datastore = datastore
        datastore.on_published = self.on_published
        self.fleet = FleetChecker(world, tables, config)
        self.history = HistoryChecker(world, tables)
        self.seen: dict[Key, Seen] = {}
        self.spools_lost: set[str] = set()
        """Homes, and processes on them, whose disks lost their data."""
        self.busy: dict[str, Busy] = {}
        self.machine_of: dict[str, str] = {}
        """Machine of each home that shares one."""
        self.machine_has: dict[str, Resources] = {}
        self.gpus: dict[str, dict[str, Key]] = {}
        self.prepared: dict[str, set[int]] = {}
        """Succeeded init tasks, by worker process."""
        self.ran_at_death: dict[str, set[Key]] = {}
        """Attempts that ran in a worker process when it died."""
        self.shut_down: set[str] = set()
        """Worker processes whose machine shuts down."""
        self._told: set[str] = set()
        """Those of them that left by the boss's records before the current commit."""
        self.liars: set[str] = set()
        """Peers that send false claims. The boss answers that the outcomes they claim are stored, so that they drop
        them; none of these is theirs."""
        self.allowed: set[int] = set()
        """Tasks that were assigned while their dependencies allowed it, and have not ended or returned to waiting
        since."""
        self.published_in: dict[Key, int] = {}
        """Batch in which each attempt with results ended, after they were published."""
        self.values = {b""}
        """All recorded values of calls."""
        self.met_in: dict[int, int] = {}
        """Batch in which the dependencies of a task were last recorded as met."""
        self.void: set[Key] = set()
        """Chained attempts that ended although their dependencies did not succeed."""
        self.arrays = ArrayChecker(world, tables)
        self.runs = RunChecker(world, tables)
        self.taken: set[str] = set()
        """Committed pushes."""
        self.accepted: dict[str, str] = {}
        """Runs of pushes whose acceptance the boss sent, by push."""
        self.completions = 0
        self.looked = world.looked

    def on_inbox(self, boss: str, inbox: Inbox[Event], size: int) -> None:
        """Check what waits at a boss after a message of this size arrived."""
        count, waiting = inbox.waiting
        self.looked["inbox"] += bool(inbox.dropped)
        if count > inbox.max_peer_messages or waiting - size >= inbox.max_bytes:
            raise Violation("inbox", f"{count} messages of one peer, and {waiting} bytes of all, wait at {boss}")

    # --- restore ---------------------------------------------------------------------------------

    def on_restored(self, processes: set[str], bosses: set[str]) -> None:
        """Note that the tables were replaced by a backup. `processes`: all worker processes, which may drop their
        attempts; `bosses`: those that were ended before."""
        tables = self.tables
        came_to = {key: seen.came_to for key, seen in self.seen.items() if seen.came_to is not None}
        self.history.on_restored(processes, came_to)
        self.spools_lost |= processes
        seen, self.seen = self.seen, {}
        for key, row in tables.attempts.items():
            known = self.seen[key] = seen.get(key) or Seen()
            known.recorded = row.outcome
        self.void &= set(tables.attempts)
        self.published_in = {key: batch for key, batch in self.published_in.items() if batch <= tables.batch}
        self.met_in = {task_no: batch for task_no, batch in self.met_in.items() if batch <= tables.batch}
        self.taken = set(tables.pushes)
        self.accepted = {push_id: run for push_id, run in self.accepted.items() if push_id in tables.pushes}
        self.allowed |= {row.task_no for row in tables.tasks.values() if row.state not in ENDED}
        self.fleet.on_restored(bosses)

    # --- commits ---------------------------------------------------------------------------------

    def _charged(self, boss: str, task_no: int, lost: list[Key]) -> None:
        """Check that of a chain the attempt that started last is charged, as far as the boss knows of its start."""
        attempts = self.tables.attempts
        for key in [key for key in lost if attempts[key].started_at is not None]:
            before = [(number, no) for number, no in self._seen(key).after if number == task_no]
            self.looked["suspects"] += bool(before)
            if any(one in lost and self._seen(one).succeeded_at == attempts[key].worker for one in before):
                raise Violation("suspects", f"{boss} charges task {task_no}, which {_name(key)} had followed there")

    def _failed_for_lost_workers(self, boss: str, suspect: SuspectRow) -> None:
        """Check that a task fails for lost workers only after the allowed number, and that no other task may have ended
        the last one."""
        self.looked["suspects"] += 1
        attempts = self.tables.attempts
        lost = [key for key in attempts if key[0] == suspect.task_no and attempts[key].state is AttemptState.LOST]
        if len(lost) < self.config.max_lost_workers:
            raise Violation("suspects", f"{boss} fails task {suspect.task_no}, which lost {len(lost)} workers")
        last = max(lost)
        beside = self.ran_at_death.get(attempts[last].worker, set()) - {last}
        if beside:
            others = ", ".join(map(_name, sorted(beside)))
            raise Violation("suspects", f"{boss} fails task {suspect.task_no} for a worker that {others} ran on, too")

    @contextmanager
    def committing(self, boss: str, epoch: int, writes: Writes) -> Iterator[None]:
        """Context of a commit: checks the moves from the old to the new rows."""
        tables = self.tables
        known, given = tables.tasks, tables.attempts
        stored = {task.row.task_no for task in writes.stored}
        tasks_before = [None if (row := known.get(task_no)) is None else row.state for task_no in writes.tasks]
        attempts_before = [None if (was := given.get(key)) is None else was.state for key in writes.attempts]
        batch = tables.batch
        self._told = {name for name in self.shut_down if name in tables.workers and _leaves(tables.workers[name])}
        self.arrays.before(writes)
        self.runs.before(writes)
        try:
            yield
        except Deposed:
            self.looked["one-boss"] += 1
            raise
        if tables.batch == batch:
            return  # the batch was committed before
        if epoch != tables.epoch:
            raise Violation("one-boss", f"{boss} writes in epoch {epoch}, which has ended: {tables.epoch} leads")
        self.world.tell(boss, f"commits batch {tables.batch}{_sizes(writes)}")
        self.allowed -= stored
        self.arrays.after(boss, writes)
        self.runs.after(boss, writes)
        for (task_no, moved), state in zip(writes.tasks.items(), tasks_before, strict=True):
            if moved.state is _WAITING and state is not _RUNNING:
                self.allowed.discard(task_no)
            task = known.get(task_no)
            if task is not None:
                self._task_moved(task, state if task_no not in stored else None, moved)
            if moved.state in ENDED:
                self.allowed.discard(task_no)
        self.looked["legal-moves"] += len(writes.attempts)
        for (key, attempt), before in zip(writes.attempts.items(), attempts_before, strict=True):
            self._attempt_moved(boss, key, before, attempt)
        for suspect in writes.suspects.values():
            if suspect is not None:
                lost = [key for key, row in writes.attempts.items() if row.state is AttemptState.LOST]
                self._charged(boss, suspect.task_no, lost)
            if suspect is not None and suspect.failed:
                self._failed_for_lost_workers(boss, suspect)
        for push in writes.pushes:
            self.looked["wanted"] += 1
            if push.push_id in self.taken:
                raise Violation("push-once", f"{boss} takes push {push.push_id} a second time")
            self.taken.add(push.push_id)
        for worker in writes.workers.values():
            self.fleet.on_worker_row(boss, worker)
        if writes.vms:
            self.fleet.on_vm_rows(boss, writes.vms)
        self.fleet.note_holds()
        self.fleet.on_boot_rows(boss, writes.boots)
        if writes.dropped_tasks or writes.dropped_runs:
            self._forget_dropped()

    def _forget_dropped(self) -> None:
        tasks = self.tables.tasks
        self.seen = {key: seen for key, seen in self.seen.items() if key[0] in tasks}

    def _seen(self, key: Key) -> Seen:
        seen = self.seen.get(key)
        if seen is None:
            seen = self.seen[key] = Seen()
        return seen

    def _attempt_moved(self, boss: str, key: Key, before: AttemptState | None, row: AttemptRow) -> None:
        state, outcome = row.state, row.outcome
        if before is None:
            self._given(boss, key, row)
            self.fleet.on_given(boss, row)
        elif before is not state and (before, state) not in _ATTEMPT_MOVES:
            raise Violation("legal-moves", f"attempt {_name(key)} moved from {before} to {state}")
        if state in GIVEN_UP:
            self._given_up(key, row)
        if outcome is None:
            if state is _PROMOTING or state is _ENDED:
                raise Violation("one-outcome", f"attempt {_name(key)} is {state} without an outcome")
            if before is not state:
                return
        seen, looked = self._seen(key), self.looked
        if before is state and state in ATTEMPT_OVER and seen.recorded != outcome:
            raise Violation("one-outcome", f"attempt {_name(key)} was {before} and is changed")
        if outcome is None:
            return
        if value := _value(row):
            self.values.add(value)
        if before is _PROMOTING and state is _ENDED:
            self.published_in.setdefault(key, self.tables.batch)
        if state is _ENDED and before not in RECORDED and seen.chained:
            self._note_void(key)
        if before not in RECORDED and seen.started and seen.came_to != outcome:
            raise Violation("true-outcome", f"attempt {_name(key)} is recorded with what it did not come to")
        looked["true-outcome"] += 1
        if before not in RECORDED:
            self.history.on_recorded(key, outcome)
        if row.worker in self._told and _is_term(outcome) and before in _RUNS and not self._is_cancelled(key[0]):
            looked["shutdown"] += 1
            if state not in GIVEN_UP:  # that of an init task which started is lost
                raise Violation("shutdown", f"attempt {_name(key)}, which a shutdown of its machine ended, is {state}")
        if seen.recorded is None:
            seen.recorded = outcome
            return
        looked["one-outcome"] += 1
        if seen.recorded is not outcome and seen.recorded != outcome:
            raise Violation("one-outcome", f"attempt {_name(key)} has two outcomes: {seen.recorded} and {outcome}")

    def _given_up(self, key: Key, row: AttemptRow) -> None:
        """Check that a finished attempt is not discarded while its worker is on duty."""
        seen = self._seen(key)
        self.looked["fenced"] += not seen.started
        if not seen.started:
            return
        on_duty = self._holder(key, row.worker)
        self.looked["outcome-kept"] += bool(on_duty)
        shut_down = row.worker in self.shut_down and seen.came_to is not None and _is_term(seen.came_to)
        if seen.came_to is not None and on_duty and on_duty not in self.spools_lost and not shut_down:
            raise Violation("outcome-kept", f"attempt {_name(key)} came to an outcome, and is {row.state}")

    def _holder(self, key: Key, given_to: str) -> str:
        """Return the process on duty that holds the attempt: its assignee, or a later one whose Hello lists it."""
        workers = self.tables.workers
        if given_to in workers and workers[given_to].state in ON_DUTY:
            return given_to
        for row in workers.values():
            if row.state in ON_DUTY and any((item.task_no, item.number) == key for item in row.hello.attempts):
                return row.worker
        return ""

    def _given(self, boss: str, key: Key, row: AttemptRow) -> None:
        """Check that the dependencies of a newly assigned attempt's task allow it, and the worker's remaining life."""
        task_no, last = key
        tasks, attempts, looked = self.tables.tasks, self.tables.attempts, self.looked
        task = tasks.get(task_no)
        if task is None or row.state is not _ASSIGNED:
            return
        self._seen(key).given_in = self.tables.batch
        if task.state in ENDED and not task.init:
            raise Violation("dependencies", f"attempt {_name(key)} is given although task {task.id} is {task.state}")
        if (needs_s := compared_s(task.runtime_s)) and not task.init:
            self.fleet.check_life(boss, row.worker, f"attempt {_name(key)}", needs_s)
        self._gets_init_tasks(key, row, task)
        waits_for = self.arrays.dependencies_of(task)
        looked["dependencies"] += bool(waits_for)
        chained = False
        for other_no, condition in waits_for:
            other = tasks[other_no]
            # If it already ran when its dependency was run again, it continues, and is retried however that one ends.
            ran_on = other.state in ENDED and task_no in self.allowed
            if other.state in ENDED and condition.met_by(other.state):
                continue
            if condition is Condition.SUCCESS and self._is_held_by(row.worker, other_no):
                looked["chain-start"] += 1
                chained = True
                continue
            if not ran_on:
                raise Violation(
                    "dependencies",
                    f"attempt {_name(key)} is given although {other.id} is {other.state}, not {condition}",
                )
        if not chained:
            self.allowed.add(task_no)
        if last == 1 or task.init:
            return
        looked["one-attempt"] += 1
        for number in range(max(1, last - 8), last):
            found = attempts.get((task_no, number))
            if found is not None and (found.state is _ASSIGNED or found.state is _STARTED):
                raise Violation("one-attempt", f"attempt {_name(key)} is given although attempt {number} of it runs")

    def _gets_init_tasks(self, key: Key, row: AttemptRow, task: TaskRow) -> None:
        """Check that a worker process gets the init tasks of a run with or before its first task."""
        inits = [] if task.init else [other for other in self.tables.tasks.values() if other.init]
        for init in inits:
            if init.run_no == task.run_no:
                self.looked["prepared"] += 1
                if not any(row.worker == given.worker for given in self._attempts_of(init.task_no)):
                    raise Violation("prepared", f"{row.worker} gets {_name(key)}, and never got {init.id}")

    def _is_held_by(self, worker: str, task_no: int) -> bool:
        """Return whether an attempt of the task is assigned to this worker and may succeed."""
        return any(row.worker == worker and row.state in (_ASSIGNED, _STARTED) for row in self._attempts_of(task_no))

    def _attempts_of(self, task_no: int) -> Iterator[AttemptRow]:
        number = 1
        while (row := self.tables.attempts.get((task_no, number))) is not None:
            yield row
            number += 1

    def _may_begin(self, worker: str, order: AttemptOrder, seen: Seen) -> None:
        """Check that the predecessors of a chained attempt have succeeded: as recorded, or as seen at this worker."""
        task = self.tables.tasks.get(order.task_no)
        if task is None or not order.after:
            return
        seen.after = tuple([(name.task_no, name.number) for name in order.after])
        here = {name.task_no: self._seen((name.task_no, name.number)).succeeded_at == worker for name in order.after}
        for other_no, condition in task.dependencies:
            other = self.tables.tasks[other_no]
            recorded = other.state in ENDED and condition.met_by(other.state)
            seen.chained = seen.chained or not recorded
            if here.get(other_no, recorded) or recorded:
                self.looked["chain-start"] += 1
                continue
            row = self.tables.attempts.get((order.task_no, order.number))
            if row is not None and row.state in (_ASSIGNED, _STARTED):
                name = _name((order.task_no, order.number))
                raise Violation("chain-start", f"{worker} starts {name} although {other.id} is {other.state}")

    def _in_order(self, task: TaskRow) -> None:
        """Check that a success is recorded after those of all its dependencies."""
        if task.task_no in self.allowed:
            return  # it was assigned after them; later reruns of them do not matter
        for other_no, condition in task.dependencies:
            other = self.tables.tasks[other_no]
            self.looked["chain-record"] += 1
            if not (other.state in ENDED and condition.met_by(other.state)):
                raise Violation("chain-record", f"task {task.id} succeeded, and {other.id} is {other.state}")

    def _read_right(self, task_no: int, key: Key) -> None:
        """Check that the inputs of a chained attempt were made by attempts that are recorded as successes."""
        seen = self._seen(key)
        if not seen.chained:
            return
        for path, content in seen.read.items():
            maker = _made_by(content)
            if maker[0] not in self.tables.tasks or self.history.is_forgotten(content.rpartition(":")[0], maker):
                continue
            if maker in self.history.lost and maker not in self.tables.attempts:
                continue  # by an attempt of a worker that was gone when a restore lost it
            if self._was_skipped(maker[0]):
                continue  # the file was there when its task was pushed: made in a history that a restore has lost
            self.looked["chain-inputs"] += 1
            row = self.tables.attempts.get(maker)
            outcome = None if row is None or row.state is not _ENDED else row.outcome
            if outcome is None or outcome.cause is not Cause.SUCCESS or self._is_outdated(maker, path, key):
                raise Violation(
                    "chain-inputs", f"task {task_no} read {path} of {_name(maker)}, which is not its success"
                )

    def _was_skipped(self, task_no: int) -> bool:
        """Return whether a task succeeded without an attempt that did: its results existed."""
        if self.tables.tasks[task_no].state is not _SUCCEEDED:
            return False
        outcomes = [row.outcome for row in self._attempts_of(task_no) if row.state is _ENDED]
        return not any(outcome is not None and outcome.cause is Cause.SUCCESS for outcome in outcomes)

    def _is_outdated(self, maker: Key, path: str, reader: Key) -> bool:
        """Return whether a later attempt that made this path was recorded as the success before the reader started and
        before its dependencies counted as met. (If a user reruns the task after that, the reader continues unchanged.
        If a push takes the path out of the task's results, the file stays as the earlier attempt made it.)"""
        met_in = min(self.met_in.get(reader[0], self.tables.batch), self._seen(reader).started_in)
        return any(
            row.number > maker[1] and row.outcome is not None and _made(row.outcome, path)
            for row in self._attempts_of(maker[0])
            if self.published_in.get((row.task_no, row.number), inf) <= met_in
        )

    def _note_void(self, key: Key) -> None:
        """Note a chained attempt that ended although its dependencies are not recorded as required: it must use up no
        retry."""
        task = self.tables.tasks.get(key[0])
        if self.met_in.get(key[0], -1) > self._seen(key).given_in:
            return  # it was no longer chained: a dependency was done again later
        for other_no, condition in task.dependencies if task is not None else ():
            other = self.tables.tasks[other_no]
            if not (other.state in ENDED and condition.met_by(other.state)) and self._seen(key).chained:
                self.void.add(key)

    def _costs_right(self, task: TaskRow, moved: TaskMoved) -> None:
        ended = [row for row in self._attempts_of(task.task_no) if row.state is _ENDED and row.outcome is not None]
        void = [row for row in ended if (row.task_no, row.number) in self.void]
        self.looked["chain-cost"] += bool(void)
        if moved.retries_used > len(ended) - len(void):
            raise Violation(
                "chain-cost",
                f"task {task.id} used {moved.retries_used} retries, with {len(ended)} ends, {len(void)} of them void",
            )

    def _is_cancelled(self, task_no: int) -> bool:
        task = self.tables.tasks.get(task_no)
        return task is None or task.state is TaskState.CANCELLED

    def _task_moved(self, task: TaskRow, before: TaskState | None, moved: TaskMoved) -> None:
        state = moved.state
        if moved.retries_used:
            self._costs_right(task, moved)
        if before is state:
            return
        if before is not None and (before, state) not in _TASK_MOVES:
            raise Violation("legal-moves", f"task {task.task_no} moved from {before} to {state}")
        if before is _WAITING and (state is TaskState.READY or state is _RUNNING):
            self.allowed.add(task.task_no)  # the dependencies of its chained attempt are recorded
            self.met_in[task.task_no] = self.tables.batch
        if state not in ENDED:
            return
        self.completions += 1
        self.history.kept.discard(task.task_no)
        is_array = task.task_no in self.tables.arrays
        if state is _SUCCEEDED and not task.init and not is_array and not moved.reason.startswith("skipped"):
            self._in_order(task)
            self._read_right(task.task_no, (task.task_no, self._succeeded(task.task_no, moved.attempts)))

    def _succeeded(self, task_no: int, attempts: int) -> int:
        """Check that the task's files are complete; return the number of the attempt that made them."""
        for number in range(attempts, 0, -1):
            row = self.tables.attempts.get((task_no, number))
            outcome = row.outcome if row is not None and row.state is _ENDED else None
            if outcome is not None and outcome.cause is Cause.SUCCESS:
                break
        else:
            raise Violation("files-whole", f"task {task_no} succeeded without an attempt that did")
        if outcome.manifest:
            self._files_whole((task_no, number), outcome)
        return number

    def _files_whole(self, key: Key, outcome: Outcome) -> None:
        self.looked["files-whole"] += 1
        final = self.datastore.final
        for entry in outcome.manifest:
            found = final.get(entry.path)
            if found is not None and self.history.may_be_of(key, _made_by(found)):
                self.history.kept.add(key[0])
            elif found != entry.sha256:
                raise Violation(
                    "files-whole", f"task {key[0]} succeeded, but {entry.path} is of {found}, not of {entry.sha256}"
                )

    # --- messages --------------------------------------------------------------------------------

    def on_said(self, boss: str, envelope: Envelope) -> None:
        """Check that a message contains only committed facts."""
        message = envelope.message
        attempts = self.tables.attempts
        if isinstance(message, wire.StartTasks):
            self.looked["write-then-speak"] += 1
            self.history.on_ordered(envelope.peer, [(order.task_no, order.number) for order in message.attempts])
            for order in message.attempts:
                if (order.task_no, order.number) not in attempts and order.task_no in self.tables.tasks:
                    raise Violation(
                        "write-then-speak",
                        f"{boss} orders attempt {_name((order.task_no, order.number))}: not committed",
                    )
        elif isinstance(message, wire.CallValues):
            self.looked["call-values"] += 1
            row = attempts.get((message.task_no, message.number))
            if row is not None and row.worker != envelope.peer:
                key = _name((message.task_no, message.number))
                raise Violation("call-values", f"{boss} sends {envelope.peer} the values for {key} of {row.worker}")
        elif isinstance(message, wire.OutcomesStored) and envelope.peer not in self.liars:
            for name in message.attempts:
                row = attempts.get((name.task_no, name.number))
                if row is not None and row.state not in RECORDED:
                    raise Violation(
                        "write-then-speak",
                        f"{boss} says that the outcome of {_name((name.task_no, name.number))} is stored",
                    )
        elif isinstance(message, wire.RunRejected) and "waits for the elements of" not in message.problems[0]:
            if not self.runs.on_rejected(boss, message):
                raise Violation("wanted", f"{boss} rejects push {message.push_id}: {message.problems[0]}")
        elif isinstance(message, wire.RequestDone) and message.request_id.startswith("kill_worker"):
            self.fleet.on_killed(message.names)
        elif isinstance(message, wire.CallsEnded):
            self.runs.on_calls(boss, message)
        elif isinstance(message, wire.RunAccepted):
            if message.push_id not in self.tables.pushes and message.run_no in self.tables.runs:
                raise Violation("write-then-speak", f"{boss} accepts push {message.push_id}: not committed")
            self.looked["push-once"] += message.push_id in self.accepted
            self.accepted[message.push_id] = message.run

    # --- workers ---------------------------------------------------------------------------------

    def on_started(self, worker: str, order: AttemptOrder, capacity: Resources, gpus: tuple[str, ...] = ()) -> None:
        """Check that a worker starts only attempts that were committed for it, and within its resources."""
        key = (order.task_no, order.number)
        if self.history.is_forgotten(worker, key):
            return
        row = self.tables.attempts.get(key)
        if row is None and order.task_no in self.tables.tasks:
            raise Violation("ordered", f"{worker} starts attempt {_name(key)}, which is not committed")
        if row is not None and row.worker != worker:
            raise Violation("ordered", f"{worker} starts attempt {_name(key)}, which is {row.worker}'s")
        seen = self._seen(key)
        if seen.started:
            raise Violation("ordered", f"{worker} starts attempt {_name(key)} twice")
        self.looked["ordered"] += 1
        seen.started, seen.started_in = True, self.tables.batch
        if row is not None and row.state in GIVEN_UP:
            raise Violation("fenced", f"{worker} starts attempt {_name(key)}, which was recorded as {row.state}")
        self._may_begin(worker, order, seen)
        self._has_its_values(order)
        if order.init or order.after_init:
            self._must_be_prepared(worker, order)
        busy = self.busy.get(worker)
        if busy is None:
            busy = self.busy[worker] = Busy()
        if busy.asks:
            self.looked["resources"] += 1
        else:
            busy.taken.clear()  # clear rounding errors of fractions
        asks, taken = order.asks, busy.taken
        busy.asks[key] = asks
        for resource, asked in asks.items():
            taken[resource] = total = taken.get(resource, 0.0) + asked
            if total > capacity.get(resource, 0.0) + _ROUNDING:
                raise Violation("resources", f"{worker} uses {total:g} {resource} of {capacity.get(resource, 0.0):g}")
        self._fits_machine(worker, order)
        wanted = int(asks.get("gpus", 0))
        if not wanted and not gpus:
            return
        held = self.gpus.setdefault(worker, {})
        if len(gpus) != wanted:
            raise Violation("resources", f"{worker} gives {len(gpus)} GPUs to attempt {_name(key)}")
        for gpu in gpus:
            if held.setdefault(gpu, key) != key:
                raise Violation("resources", f"{worker} gives GPU {gpu} to {_name(key)} and to {_name(held[gpu])}")

    def _has_its_values(self, order: AttemptOrder) -> None:
        """Check that the values a call starts with are those of recorded successes."""
        call = order.body.call if order.body is not None else None
        if call is None or not call.needs:
            return
        self.looked["call-values"] += 1
        # The order contains those of all dependencies; some may have failed, if the call waits for any end, and
        # some may have been dropped since it was sent.
        got = {value.id: value.value for value in order.values if value.id in call.needs}
        if not got.keys() >= set(call.needs) & self._with_value(order.run_no) or not self.values.issuperset(
            got.values()
        ):
            raise Violation("call-values", f"{_name((order.task_no, order.number))} needs {call.needs} and gets {got}")

    def _with_value(self, run_no: int) -> set[str]:
        """Return the tasks of a run that have a recorded value: others were dropped, or skipped as their results
        exist."""
        made = {row.task_no for row in self.tables.attempts.values() if row.run_no == run_no and _value(row)}
        return {row.id for row in self.tables.tasks.values() if row.task_no in made}

    def _fits_machine(self, worker: str, order: AttemptOrder) -> None:
        """Check that the workers of one machine together use no more than it has, counting attempts that are not
        recorded as ended. The boss cannot know what runs of a history that a restore has lost."""
        machine = self.machine_of.get(home_of(worker))
        if machine is None:
            return
        taken: Resources = {}
        for other, busy in self.busy.items():
            if self.machine_of.get(home_of(other)) != machine:
                continue
            for key, asks in busy.asks.items():
                row = self.tables.attempts.get(key)
                if row is None or row.state in RECORDED | set(GIVEN_UP) or home_of(row.worker) != home_of(other):
                    continue
                for resource, asked in asks.items():
                    taken[resource] = taken.get(resource, 0.0) + asked
        self.looked["machine"] += 1
        for resource, amount in self.machine_has[machine].items():
            if taken.get(resource, 0.0) > amount + _ROUNDING:
                name = _name((order.task_no, order.number))
                text = f"{worker} starts {name}: {taken[resource]:g} {resource} of {amount:g} on {machine} are in use"
                raise Violation("machine", text)

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

    def on_complete(self, worker: str, key: Key) -> None:
        """Note that an attempt's commands succeeded and its results are complete at the worker: it uses no resources
        now."""
        if not self.history.is_forgotten(worker, key):
            self._seen(key).succeeded_at = worker
        self.on_over(worker, key)

    def on_came_to(self, worker: str, order: AttemptOrder, outcome: Outcome, read: dict[str, str]) -> None:
        """Note an attempt's outcome at a worker, and the contents that it read."""
        key = (outcome.task_no, outcome.number)
        if not self.history.is_forgotten(worker, key):
            seen = self._seen(key)
            seen.came_to, seen.read = outcome, read
            if outcome.cause is Cause.SUCCESS:
                seen.succeeded_at = worker
        else:
            self.history.on_came_to(key, outcome)
        if order.init and outcome.cause is Cause.SUCCESS:
            self.prepared.setdefault(worker, set()).add(order.task_no)

    def on_spooled(self, worker: str, outcome: Outcome) -> None:
        """Note a short outcome in place of one whose report no broker takes."""
        key = (outcome.task_no, outcome.number)
        seen = self._seen(key)
        if seen.came_to is not None and len(seen.came_to.stdout) >= LARGE_BYTES and not outcome.stdout:
            seen.came_to = outcome

    def on_over(self, worker: str, key: Key) -> None:
        """Note that an attempt runs no more."""
        busy = self.busy.get(worker)
        if busy is not None:
            for resource, asked in busy.asks.pop(key, {}).items():
                busy.taken[resource] -= asked
        held = self.gpus.get(worker)
        if held:
            self.gpus[worker] = {gpu: by for gpu, by in held.items() if by != key}

    def on_worker_dead(self, worker: str, ran: set[Key]) -> None:
        """Note that a worker process died. `ran`: the attempts that ran in it."""
        self.ran_at_death[worker] = ran
        self.busy.pop(worker, None)
        self.gpus.pop(worker, None)
        self.prepared.pop(worker, None)
        self.fleet.on_dead(worker)

    def on_no_access(self, worker: str, credential: str) -> None:
        """Report that a worker accesses the datastore with a certificate for another key."""
        raise Violation("access", f"{worker} goes to the datastore with {credential!r}")

    def on_published(self, path: str, content: str) -> None:
        """Check that a file gets its final name only from an attempt whose outcome is recorded."""
        key = _made_by(content)
        if key[0] not in self.tables.tasks:
            return
        if self.history.is_earlier(content.rpartition(":")[0], key):
            return  # a late call of a dead boss, or an attempt that is older than the backup
        self.looked["published-by-record"] += 1
        row = self.tables.attempts.get(key)
        if row is None or row.state not in RECORDED:
            state = "not known" if row is None else row.state
            raise Violation("published-by-record", f"{path} is published of attempt {_name(key)}, which is {state}")

    def on_missing(self, worker: str, order: AttemptOrder, paths: list[str]) -> None:
        """Check a missing requirement: files that the task's dependencies promise must be published."""
        key = (order.task_no, order.number)
        row = self.tables.attempts.get(key)
        if row is None or row.state not in (AttemptState.ASSIGNED, AttemptState.STARTED):
            return
        if self.history.is_forgotten(worker, key):
            return
        near = self._succeeded_before(order.task_no)
        if order.after:
            near |= {number for task_no in near for number in self._succeeded_before(task_no)}
        before = [self.tables.stored[number] for number in near]
        promised = {result.path for stored in before for result in msgspec.json.decode(stored, type=TaskBody).results}
        for path in paths:
            if path in promised:
                raise Violation("promised-there", f"{worker} lacks {path} for {_name(key)}")

    def _succeeded_before(self, task_no: int) -> set[int]:
        """Tasks that succeeded before this one ran. Skipped tasks, whose results existed, never ran."""
        task = self.tables.tasks[task_no]
        if task.reason.startswith("skipped"):
            return set()
        return {number for number, condition in task.dependencies if condition is Condition.SUCCESS}

    # --- at the end ------------------------------------------------------------------------------

    def at_last(self) -> None:
        """Check that every succeeded task has its files, from its last successful attempt."""
        self.arrays.at_last()
        for task_no, task in self.tables.tasks.items():
            if task_no in self.tables.arrays:
                continue
            skipped = task.init or task.reason.startswith("skipped") or task_no in self.history.kept
            if task.state is TaskState.SUCCEEDED and not skipped:
                self._succeeded(task_no, task.attempts)


def _made(outcome: Outcome, path: str) -> bool:
    return outcome.cause is Cause.SUCCESS and any(entry.path == path for entry in outcome.manifest)


def _value(row: AttemptRow) -> bytes:
    """Return the recorded value of a call; empty if there is none."""
    outcome = row.outcome
    succeeded = row.state is _ENDED and outcome is not None and outcome.cause is Cause.SUCCESS
    return outcome.value if succeeded and outcome is not None else b""


def _is_term(outcome: Outcome) -> bool:
    return outcome.cause is Cause.SIGNAL and outcome.signal == SIGTERM


def _leaves(row: WorkerRow) -> bool:
    return row.state is WorkerState.DRAINING and row.reason == wire.ORDERED_TO_LEAVE


@lru_cache(maxsize=1_000)
def _made_by(content: str) -> Key:
    """Return the attempt that made this content."""
    task_no, number = content.rpartition(":")[2].split("-")
    return int(task_no), int(number)


def _name(key: Key) -> str:
    return f"{key[0]}-{key[1]}"


def _sizes(writes: Writes) -> str:
    """Describe a batch for the story; lists single rows if they are not too many."""
    parts = [f" {len(writes.attempts)} attempts", f" {len(writes.tasks)} tasks"]
    if len(writes.attempts) + len(writes.tasks) <= MOST_NAMED:
        parts = [f" {_name(key)}:{row.state!s}" for key, row in writes.attempts.items()]
        parts += [f" task{no}:{moved.state!s}" for no, moved in writes.tasks.items()]
    parts += [f" {row.worker}:{row.state}" for row in writes.workers.values()]
    parts += [f" vm{row.vm_no}:{row.state}" for row in writes.vms.values()]
    parts += [f" +{len(writes.stored)} tasks" if writes.stored else ""]
    return ":" + "".join(parts) if any(parts) else ""
