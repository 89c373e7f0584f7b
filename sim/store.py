"""The store in memory: the same methods, answers and refusals; passes the same contract suite.

Holds committed rows: they are copied in and out, so that changes that the core makes to its own rows have no effect
here. Two stores over the same `Tables` are two bosses on one database.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any, TypeVar

from msgspec.json import decode
from msgspec.structs import replace

from boss.core.clients.calls import call_ended
from boss.core.model.effects import LoadCalls, LoadRun, LoadValues, Reads, SelectTasks
from boss.core.model.history import next_epoch
from boss.core.model.rows import (
    ArrayRow,
    AttemptRow,
    BootRow,
    PoolRow,
    PushAnswered,
    RunImage,
    RunRow,
    Snapshot,
    SuspectRow,
    TaskRow,
    VmRow,
    WorkerRow,
    Writes,
)
from boss.core.tasks.arrays import join_elements
from boss.core.tasks.manifests import declared_results
from boss.store.call_values import how_many
from boss.store.loading import PAST_VMS
from boss.store.reaching import parts_of
from boss.store.selecting import Found, FoundArray, choose
from boss.store.store import LEADER_SILENT_S, AnotherBossLeads, CommitRefused, Deposed
from ecloud.model.ranges import Indices, Ranges
from ecloud.model.tasks import ATTEMPT_OVER, ENDED, AttemptState, Call, Cause, Condition, TaskDefinition, TaskState
from ecloud.model.vm_states import VmState
from ecloud.model.wire import CallEnded, CallValue
from ecloud.model.worker_states import ON_DUTY, WorkerState

CLUSTER_ID = "simulated"

_Row = TypeVar("_Row")


class Tables:
    """The contents of the database's disk: committed rows only."""

    def __init__(self) -> None:
        self.epoch = 0
        self.batch = 0
        self.epoch_ends: dict[int, int] = {}
        self.holder = ""
        self.renewed_at = 0.0
        self.next_task_no = self.next_run_no = self.next_vm_no = 1
        self.runs: dict[int, RunRow] = {}
        self.tasks: dict[int, TaskRow] = {}
        self.ids: dict[tuple[int, str], int] = {}
        """Task numbers by run and id."""
        self.changed_at: dict[int, float] = {}
        self.stored: dict[int, bytes] = {}
        self.labels: dict[int, tuple[str, ...]] = {}
        self.arrays: dict[int, ArrayRow] = {}
        self.attempts: dict[tuple[int, int], AttemptRow] = {}
        self.workers: dict[str, WorkerRow] = {}
        self.vms: dict[int, VmRow] = {}
        self.pools: dict[str, PoolRow] = {}
        self.boots: dict[int, BootRow] = {}
        self.pushes: dict[str, PushAnswered] = {}
        self.answered_at: dict[str, float] = {}
        """Time of the answer, by push."""
        self.context: dict[str, str] = {"cluster_id": CLUSTER_ID}
        self.revoked_keys: set[str] = set()
        self.suspects: dict[int, SuspectRow] = {}
        self.archived_runs: dict[int, dict[str, int]] = {}


class Store:
    """One boss's connection to the tables. Tests may read `runs`, `tasks`, `attempts`, …, but not change them."""

    def __init__(
        self, tables: Tables | None = None, archive: bool = True, chance: Callable[[], int] = lambda: 0
    ) -> None:
        self.tables = tables if tables is not None else Tables()
        self.runs = self.tables.runs
        self.tasks = self.tables.tasks
        self.attempts = self.tables.attempts
        self.workers = self.tables.workers
        self.vms = self.tables.vms
        self._archive = archive
        self._chance = chance
        self._epoch = 0

    # --- leading ---------------------------------------------------------------------------------

    def lead(self, holder: str, now: float, replace: bool = False) -> int:
        """Become the leader, in a new epoch. Raises `AnotherBossLeads` if another one wrote recently, unless it is to
        be replaced."""
        tables = self.tables
        silent_s = now - tables.renewed_at
        if not replace and tables.holder and silent_s < LEADER_SILENT_S:
            raise AnotherBossLeads(f"a boss already leads: {tables.holder}, heard {max(0.0, silent_s):.0f} s ago")
        return self._begin_epoch(next_epoch(tables.epoch, now, self._chance()), holder, now)

    def _begin_epoch(self, epoch: int, holder: str, now: float) -> int:
        tables = self.tables
        tables.epoch_ends[tables.epoch] = tables.batch
        tables.epoch, tables.holder, tables.renewed_at = epoch, holder, now
        self._epoch = epoch
        return epoch

    def lead_above(self, epoch: int, now: float) -> int:
        """Continue to lead, in an epoch above `epoch`. Raises `Deposed`."""
        self._require_leading()
        return self._begin_epoch(next_epoch(max(epoch, self._epoch), now, self._chance()), self.tables.holder, now)

    def renew(self, now: float) -> None:
        """Renew the leadership. Raises `Deposed`."""
        self._require_leading()
        self.tables.renewed_at = now

    @property
    def epoch(self) -> int:
        """Epoch in which this boss became the leader."""
        return self._epoch

    def leads(self) -> bool:
        """Whether this boss still leads."""
        return self.tables.epoch == self._epoch

    def resign(self) -> None:
        """Give up the lead, so that the next boss need not wait."""
        if self.tables.epoch == self._epoch:
            self.tables.holder, self.tables.renewed_at = "", 0.0

    def last_batch(self) -> int:
        """Number of the last committed batch."""
        return self.tables.batch

    def _require_leading(self) -> None:
        if self.tables.epoch != self._epoch:
            raise Deposed(f"epoch {self._epoch} has ended: another boss leads")

    # --- one batch -------------------------------------------------------------------------------

    def commit(self, batch: int, writes: Writes, now: float) -> None:
        """Commit all writes or none. Raises `Deposed`, `CommitRefused`; accepts a batch that was committed before."""
        self._require_leading()
        tables = self.tables
        if batch == tables.batch:
            return
        if batch != tables.batch + 1:
            raise CommitRefused(f"batch {batch} does not follow {tables.batch}")
        self._refuse_double_names(writes)
        tables.batch, tables.renewed_at = batch, now
        self._write_runs(writes)
        self._write_tasks(writes, now)
        tables.attempts.update(writes.attempts)
        tables.workers.update({name: replace(row) for name, row in writes.workers.items()})
        tables.vms.update({vm_no: replace(row) for vm_no, row in writes.vms.items()})
        for span in writes.spans.values():
            row = tables.vms.get(span.vm_no)
            same = row is not None and span.boot_nonce in ("", row.boot_nonce)
            if row is not None and same and row.state is VmState.GONE and row.cloud_id in ("", span.cloud_id):
                row.cloud_id, row.started_at, row.gone_at = span.cloud_id, span.started_at, span.ended_at
        tables.pools.update({name: replace(row) for name, row in writes.pools.items()})
        tables.boots.update({vm_no: replace(row) for vm_no, row in writes.boots.items()})
        tables.next_vm_no = max([tables.next_vm_no, *(vm_no + 1 for vm_no in writes.vms)])
        self._write_small(writes, now)
        self._drop(writes)

    def _refuse_double_names(self, writes: Writes) -> None:
        if not writes.runs and not writes.stored:
            return
        names = {row.name: run_no for run_no, row in self.runs.items()}
        for run_no, run in writes.runs.items():
            if names.setdefault(run.name, run_no) != run_no:
                raise CommitRefused(f"there are two runs named {run.name!r}")
        known, ids = self.tables.ids, dict[tuple[int, str], int]()
        for task in writes.stored:
            key = (task.row.run_no, task.row.id)
            if ids.setdefault(key, known.get(key, task.row.task_no)) != task.row.task_no:
                raise CommitRefused(f"run {task.row.run_no} has two tasks {task.row.id!r}")

    def _write_runs(self, writes: Writes) -> None:
        tables = self.tables
        for run_no, row in writes.runs.items():
            tables.runs[run_no] = replace(row)
            tables.next_run_no = max(tables.next_run_no, run_no + 1)

    def _write_tasks(self, writes: Writes, now: float) -> None:
        tables = self.tables
        for task in writes.stored:
            task_no = task.row.task_no
            tables.tasks[task_no] = replace(task.row, array=0, elements=None)
            tables.ids[task.row.run_no, task.row.id] = task_no
            tables.arrays.pop(task_no, None)
            if task.row.elements is not None:
                tables.arrays[task_no] = replace(task.row.elements, template=task.json)
            tables.changed_at[task_no] = now
            tables.stored[task_no] = task.json
            tables.labels[task_no] = task.labels
        if writes.stored:
            tables.next_task_no = max(tables.next_task_no, 1 + max([_last_no(task.row) for task in writes.stored]))
        for task_no, moved in writes.tasks.items():
            row = tables.tasks.get(task_no)
            if row is None:
                continue  # an UPDATE of a missing row changes nothing
            row.state, row.reason, row.attempts = moved.state, moved.reason, moved.attempts
            row.retries_used, row.not_before = moved.retries_used, moved.not_before
            tables.changed_at[task_no] = now
        for task_no, asks in writes.grown.items():
            if task_no in tables.tasks:
                tables.tasks[task_no].asks = dict(asks)
        for array_no, changed in writes.arrays.items():
            array = tables.arrays.get(array_no)
            if array is not None:
                array.pending, array.states = changed.pending, dict(changed.states)
                array.pending_count, array.pending_state = changed.pending_count, changed.pending_state

    def _write_small(self, writes: Writes, now: float) -> None:
        tables = self.tables
        tables.pushes.update({push.push_id: copy(push) for push in writes.pushes})
        tables.answered_at.update({push.push_id: now for push in writes.pushes})
        for name, value in writes.context.items():
            if value is None:
                tables.context.pop(name, None)
            else:
                tables.context[name] = value
        tables.revoked_keys |= writes.revoked_keys
        for task_no, suspect in writes.suspects.items():
            if suspect is None:
                tables.suspects.pop(task_no, None)
            else:
                tables.suspects[task_no] = replace(suspect)
        for worker in writes.dropped_workers:
            tables.workers.pop(worker, None)
        over = [vm for vm in tables.vms.values() if vm.state is VmState.GONE and vm.since < writes.gone_before]
        for vm in over if writes.gone_before else ():
            del tables.vms[vm.vm_no]
            tables.boots.pop(vm.vm_no, None)
        if writes.answered_before:
            for push in [push for push in tables.pushes.values() if push.run_no not in tables.runs]:
                if tables.answered_at[push.push_id] < writes.answered_before:
                    del tables.pushes[push.push_id], tables.answered_at[push.push_id]
        if writes.gone_before:
            left = [row for row in tables.workers.values() if row.state not in ON_DUTY]
            for row in left:
                if row.since < writes.gone_before:
                    del tables.workers[row.worker]

    def _drop(self, writes: Writes) -> None:
        tables = self.tables
        self._drop_tasks({task_no for task_no in writes.dropped_tasks if task_no in tables.tasks})
        runs = set(writes.dropped_runs)
        for run_no in writes.dropped_runs:
            counts = self.counts().get(run_no)
            if self._archive and counts and run_no in tables.runs:
                tables.archived_runs[run_no] = counts
            tables.runs.pop(run_no, None)
        if runs:
            self._drop_tasks({row.task_no for row in tables.tasks.values() if row.run_no in runs})

    def _drop_tasks(self, task_nos: set[int]) -> None:
        if not task_nos:
            return
        tables = self.tables
        runs = {tables.tasks[task_no].run_no for task_no in task_nos}
        for task_no in task_nos:
            del tables.ids[tables.tasks[task_no].run_no, tables.tasks[task_no].id]
            for table in (tables.tasks, tables.changed_at, tables.stored, tables.labels, tables.arrays):
                table.pop(task_no, None)
        for key in [key for key in tables.attempts if key[0] in task_nos]:
            del tables.attempts[key]
        for row in tables.tasks.values():
            if row.run_no in runs and any(edge[0] in task_nos for edge in row.dependencies):
                row.dependencies = tuple(edge for edge in row.dependencies if edge[0] not in task_nos)

    # --- reading ---------------------------------------------------------------------------------

    def load(self) -> Snapshot:
        """Load everything unfinished, for a boss that starts."""
        tables = self.tables
        open_nos = {row.task_no for row in tables.tasks.values() if row.state not in ENDED}
        going_on = {row.run_no for row in tables.runs.values() if row.ended_at is None}
        tasks = []
        closed = self._closed_arrays(open_nos)
        for row in _in_order(tables.tasks):
            if row.task_no in open_nos or row.task_no in closed or (row.init and row.run_no in going_on):
                row.dependencies = tuple(edge for edge in row.dependencies if edge[0] in open_nos)
                tasks.append(row)
        element_ends = self._add_arrays({row.task_no: row for row in tasks}, open_nos)
        attempts = [row for row in _in_order(tables.attempts) if row.state not in ATTEMPT_OVER]
        checked = AttemptState.PROMOTING  # its manifest was checked when it ended
        live = {row.task_no for row in attempts if row.state is not checked} & tables.stored.keys()
        declared = {task_no: declared_results(tables.stored[task_no]) for task_no in sorted(live)}
        return Snapshot(
            cluster_id=tables.context["cluster_id"],
            epoch=self._epoch,
            next_task_no=tables.next_task_no,
            next_run_no=tables.next_run_no,
            next_vm_no=tables.next_vm_no,
            runs=_in_order(tables.runs),
            tasks=tasks,
            attempts=attempts,
            declared={task_no: results for task_no, results in declared.items() if results},
            init_attempts=self._init_attempts(going_on),
            workers=[row for row in _in_order(tables.workers) if row.state in ON_DUTY],
            killed={
                row.worker: row.since
                for row in _in_order(tables.workers)
                if row.state == WorkerState.LOST and row.killed_at is not None
            },
            vms=[row for row in _in_order(tables.vms) if row.state is not VmState.GONE],
            boots=[row for row in _in_order(tables.boots) if tables.vms[row.vm_no].state is not VmState.GONE],
            past_vms=_past(tables),
            states=self.counts(),
            context=dict(tables.context),
            revoked_keys=set(tables.revoked_keys),
            suspects=_in_order(tables.suspects),
            dropped_pushes={push_id for push_id, push in tables.pushes.items() if push.run_no not in tables.runs},
            epoch_ends=dict(tables.epoch_ends),
            element_ends=element_ends,
        )

    def _add_arrays(self, rows: dict[int, TaskRow], open_nos: set[int]) -> dict[int, tuple[str, str]]:
        """Add the unfinished arrays among the rows, with their elements; return the ends of elements on which others
        depend."""
        sources: set[int] = set()
        for array_no, array in self.tables.arrays.items():
            row = rows.get(array_no)
            if row is not None:
                row.elements = replace(array, each=self._each(array))
                sources |= {no for no, _ in row.elements.each}
        join_elements(rows)
        for row in rows.values():
            if row.array:
                row.dependencies = tuple(edge for edge in row.dependencies if edge[0] in open_nos)
        return {array_no: self._element_ends(self.tables.arrays[array_no]) for array_no in sorted(sources)}

    def _closed_arrays(self, open_nos: set[int]) -> set[int]:
        """Return the arrays that were cancelled or aborted before all their elements had ended."""
        return {
            array_no
            for array_no, array in self.tables.arrays.items()
            if array_no not in open_nos
            and any(array.first_no + at in open_nos for at in range(Indices.of(array.indices).count))
        }

    def _each(self, array: ArrayRow) -> tuple[tuple[int, Condition], ...]:
        """Return the arrays that it waits for element by element, without dropped ones."""
        return tuple(edge for edge in array.each if edge[0] in self.tables.arrays)

    def _element_ends(self, array: ArrayRow) -> tuple[str, str]:
        good: list[tuple[int, int]] = []
        bad = Ranges.of(array.pending).ranges if self.tasks[array.task_no].state in ENDED else []
        for position in range(Indices.of(array.indices).count):
            row = self.tasks.get(array.first_no + position)
            if row is not None and row.state in ENDED:
                (good if row.state is TaskState.SUCCEEDED else bad).append((position, position))
        return str(Ranges(good)), str(Ranges(bad))

    def _init_attempts(self, going_on: set[int]) -> list[AttemptRow]:
        tables = self.tables
        on_duty = {row.worker for row in tables.workers.values() if row.state in ON_DUTY}
        inits = {row.task_no for row in tables.tasks.values() if row.init}
        found = []
        for row in _in_order({key: row for key, row in tables.attempts.items() if key[0] in inits}):
            if row.state is not AttemptState.ENDED:
                continue
            failed = row.outcome is not None and row.outcome.cause is not Cause.SUCCESS
            if row.worker in on_duty or (failed and row.run_no in going_on):
                found.append(row)
        return found

    def counts(self) -> dict[int, dict[str, int]]:
        counts: dict[int, Counter[str]] = {}
        for row in self.tasks.values():
            if not row.init and row.task_no not in self.tables.arrays:
                counts.setdefault(row.run_no, Counter())[row.state.value] += 1
        for array in self.tables.arrays.values():
            if array.pending_count:
                counts.setdefault(array.run_no, Counter())[array.pending_state] += array.pending_count
        return {run_no: dict(states) for run_no, states in counts.items()}

    def load_runs(self, wanted: Sequence[LoadRun]) -> list[tuple[RunImage | None, PushAnswered | None]]:
        """Return, for the first ones, the run and the result of the push. Raises `Deposed`."""
        self._require_leading()
        found: list[tuple[RunImage | None, PushAnswered | None]] = []
        for item in wanted:
            answered = self.tables.pushes.get(item.push_id)
            image = self._run_image(item.name, item.ids) if answered is None else None
            found.append((image, None if answered is None else copy(answered)))
            if image is not None and image.tasks:
                break
        return found

    def _run_image(self, name: str, ids: Sequence[str] | None) -> RunImage | None:
        run = next((run for run in self.runs.values() if run.name == name), None)
        if run is None or ids is None:
            return None if run is None else self._image(run.run_no)
        own = {no: row for no, row in self.tasks.items() if row.run_no == run.run_no and (row.init or row.id in ids)}
        return RunImage(copy(run), _in_order(own), is_part=True)

    def load_calls(self, wanted: LoadCalls) -> tuple[list[CallEnded], bool]:
        """Return the states of a run's calls, and whether there are more. Raises `Deposed`."""
        self._require_leading()
        run = next((run for run in self.runs.values() if run.name == wanted.run), None)
        rows = [] if run is None else _in_order({no: row for no, row in self.tasks.items() if row.run_no == run.run_no})
        if wanted.ids is None:
            rows = [row for row in rows if row.task_no > wanted.after][: wanted.limit]
        else:
            rows = [row for row in rows if row.id in wanted.ids]
        calls = [self._call(row, with_value=wanted.ids is not None) for row in rows]
        return calls, wanted.ids is None and len(calls) == wanted.limit

    def _call(self, row: TaskRow, with_value: bool) -> CallEnded:
        definition = decode(self.tables.stored[row.task_no], type=TaskDefinition)
        call = definition.call or Call("", "")
        attempt = self.attempts.get((row.task_no, row.attempts))
        if row.state not in ENDED or attempt is None or attempt.outcome is None:
            base = CallEnded(row.task_no, row.id, row.state.value, row.attempts, error=row.reason)
            return replace(base, fingerprint=call.fingerprint, many=call.many)
        ended = call_ended(row.task_no, row.id, row.state.value, row.reason, attempt.worker, attempt.outcome)
        value = ended.value if with_value else b""
        return replace(ended, fingerprint=call.fingerprint, many=call.many, value=value)

    def _image(self, run_no: int) -> RunImage:
        tasks = _in_order({no: row for no, row in self.tasks.items() if row.run_no == run_no})
        for row in tasks:
            array = self.tables.arrays.get(row.task_no)
            if array is not None:
                keeps = row.state in ENDED and array.pending
                row.elements = replace(array, entries=array.entries if keeps else (), each=self._each(array))
        join_elements({row.task_no: row for row in tasks})
        return RunImage(copy(self.runs[run_no]), tasks)

    def select(self, wanted: SelectTasks) -> tuple[list[RunImage], set[int], str]:
        """Return the runs of a selection, the selected tasks, and an error message if none was found.

        Raises `Deposed`.
        """
        self._require_leading()
        chosen = choose(wanted, _Finder(self.tables))
        images: dict[int, RunImage] = {}
        if wanted.reads is not Reads.WHOLE:
            with_arrays = {array.run_no for array in self.tables.arrays.values()}
            runs = [copy(self.runs[run_no]) for run_no in chosen.run_nos if run_no not in with_arrays]
            parts = parts_of(_Reader(self.tables), runs, chosen.of_run, wanted.reads)
            images = {image.run.run_no: image for image in parts}
        return (
            [images.get(run_no) or self._image(run_no) for run_no in chosen.run_nos],
            chosen.task_nos,
            chosen.problem,
        )

    def needed_values(self, task_nos: Sequence[int], most_bytes: int) -> dict[int, tuple[CallValue, ...] | None]:
        """Return the values of the calls that these tasks depend on, by task_no; None if they need more bytes."""
        found = {task_no: self._values(task_no) for task_no in task_nos}
        return {
            task_no: tuple(values) if sum(value.json_bytes for value in values) <= most_bytes else None
            for task_no, values in found.items()
            if values
        }

    def load_values(self, wanted: LoadValues) -> tuple[list[CallValue], bool]:
        """Return a page of the values that a task needs, and whether there are more. Raises `Deposed`."""
        self._require_leading()
        found = sorted(self._values(wanted.task_no), key=lambda value: value.id)
        values = [value for value in found if value.id > wanted.after]
        count = how_many([value.json_bytes for value in values], wanted.most_bytes)
        return values[:count], count < len(values)

    def _values(self, task_no: int) -> list[CallValue]:
        found = []
        row = self.tasks.get(task_no)
        for on_task_no in sorted([on_task_no for on_task_no, _ in row.dependencies] if row is not None else []):
            on = self.tasks[on_task_no]
            attempt = self.attempts.get((on_task_no, on.attempts))
            if attempt is not None and attempt.outcome is not None:
                outcome = attempt.outcome
                found.append(CallValue(on.id, outcome.value, outcome.manifest[0].path if outcome.manifest else ""))
        return found

    def definitions(self, task_nos: Sequence[int]) -> dict[int, bytes]:
        """Return the stored definition of each task, as JSON."""
        return {task_no: self.tables.stored[task_no] for task_no in task_nos if task_no in self.tables.stored}


def _last_no(row: TaskRow) -> int:
    return row.task_no if row.elements is None else row.elements.first_no + Indices.of(row.elements.indices).count - 1


def _past(tables: Tables) -> list[VmRow]:
    gone = [row for row in _in_order(tables.vms) if row.state is VmState.GONE]
    return [row for row in gone[:-PAST_VMS] if row.gone_at is None] + gone[-PAST_VMS:]


class _Reader:
    """The tables, with the queries of `boss.store.reaching`."""

    def __init__(self, tables: Tables) -> None:
        self._tasks = tables.tasks

    def rows(self, task_nos: Sequence[int]) -> dict[int, TaskRow]:
        rows = [self._tasks[task_no] for task_no in task_nos if task_no in self._tasks]
        return {row.task_no: replace(row, dependencies=()) for row in rows}

    def add_dependencies(self, rows: dict[int, TaskRow]) -> None:
        for task_no, row in rows.items():
            row.dependencies = self._tasks[task_no].dependencies

    def dependents(self, task_nos: Sequence[int], states: Iterable[TaskState]) -> dict[int, TaskState]:
        wanted, on = set(states), set(task_nos)
        return {
            row.task_no: row.state
            for row in self._tasks.values()
            if row.state in wanted and any(edge[0] in on for edge in row.dependencies)
        }

    def init_tasks(self, run_nos: Sequence[int]) -> list[int]:
        return [row.task_no for row in self._tasks.values() if row.init and row.run_no in run_nos]


class _Finder:
    """The tables, with the queries of `boss.store.selecting`."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def runs(self) -> dict[str, int]:
        return {run.name: run.run_no for run in self._tables.runs.values()}

    def named(self, run_nos: Sequence[int], ids: Sequence[str]) -> Iterable[Found]:
        wanted = set(ids)
        return [found for found in self._all(run_nos) if found.id in wanted]

    def elements(self, run_nos: Sequence[int], name: str) -> Iterable[Found]:
        return [found for found in self._all(run_nos) if found.id.startswith(f"{name}[")]

    def matching(self, run_nos: Sequence[int], state: str, label: str) -> Iterable[Found]:
        return [
            found
            for found in self._all(run_nos)
            if (not state or found.state == state) and (not label or label in found.labels)
        ]

    def arrays(self, run_nos: Sequence[int]) -> Iterable[FoundArray]:
        for array in self._tables.arrays.values():
            if array.run_no in run_nos and array.pending_count:
                row, labels = self._tables.tasks[array.task_no], self._tables.labels[array.task_no]
                yield FoundArray(
                    array.run_no, row.id, array.first_no, array.indices, array.pending, array.pending_state, labels
                )

    def some_ids(self, run_nos: Sequence[int]) -> Iterable[str]:
        return [found.id for found in self._all(run_nos)]

    def _all(self, run_nos: Sequence[int]) -> Iterable[Found]:
        wanted = set(run_nos)
        for row in self._tables.tasks.values():
            if row.run_no in wanted:
                labels = self._tables.labels[row.task_no]
                is_array = row.task_no in self._tables.arrays
                yield Found(row.task_no, row.run_no, row.id, row.state.value, row.init, labels, is_array)


def _in_order(table: dict[Any, _Row]) -> list[_Row]:
    """Return copies of the rows, sorted by key."""
    return [copy(table[key]) for key in sorted(table)]
