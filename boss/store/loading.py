"""Reads the tables back into the core's rows. Streams: a million unfinished tasks are loaded without a second copy in
memory."""

from __future__ import annotations

import itertools
import operator
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from boss.core.model.effects import LoadCalls, LoadRun, Reads, SelectTasks
from boss.core.model.rows import (
    ArrayRow,
    AttemptRow,
    BootRow,
    PushAnswered,
    RunImage,
    RunRow,
    Snapshot,
    SuspectRow,
    TaskRow,
    VmRow,
    WorkerRow,
)
from boss.core.tasks.arrays import join_elements
from boss.core.tasks.manifests import declared_results
from boss.store.reaching import parts_of
from boss.store.selecting import Found, FoundArray, choose
from boss.store.statements import Statements, in_list, read
from ecloud.db import schema
from ecloud.model.boot_diagnosis import Visit
from ecloud.model.ranges import Indices, Ranges
from ecloud.model.tasks import (
    ATTEMPT_OVER,
    ENDED,
    AttemptState,
    Cause,
    Condition,
    ManifestEntry,
    Outcome,
    Resources,
    Result,
    Retries,
    TaskState,
)
from ecloud.model.transfer_status import Moving
from ecloud.model.vm_states import VmState
from ecloud.model.wire import CallEnded, Hello
from ecloud.model.worker_states import ON_DUTY, WorkerState

IDS_COMPARED = 20_000
"""Maximum ids that are searched for a near miss."""
IDS_A_QUERY = 500
IDS_TOGETHER, LONG_ID = 2_000, 100
"""At most this many ids of at most this many characters are in the query of `read_heads`."""
_Item = TypeVar("_Item")
TASKS_A_LIST = 2_000
"""Tasks whose dependencies one query reads."""
SPARSE = 4
"""If the range of task numbers is at least this many times the number of tasks, the query lists the numbers instead of
the range."""
LIST_BYTES = 8 * 1024 * 1024
"""Maximum size of a list that the server joins. A longer one is read row by row."""

STATES = [state.value for state in TaskState]
"""All of them: the index `tasks_in_state` begins with the state."""
_UNFINISHED = [state.value for state in TaskState if state not in ENDED]
_LIVE_ATTEMPTS = [state.value for state in AttemptState if state not in ATTEMPT_OVER]
_ON_DUTY = sorted(str(state) for state in ON_DUTY)


class _Parsed:
    """Parses JSON texts with few distinct values: each distinct text once."""

    def __init__(self, kind: Any) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self._known: dict[str | bytes, Any] = {}

    def __call__(self, text: str | bytes) -> Any:
        value = self._known.get(text)
        if value is None:
            value = self._known[text] = self._decoder.decode(text)
        return value


def load(connection: Connection, epoch: int) -> Snapshot:
    """The state that a boss starts from."""
    tasks, runs, attempts = schema.tasks, schema.runs, schema.attempts
    going_on = sa.select(runs.c.run_no).where(runs.c.ended_at.is_(None))
    rows = _tasks(connection, tasks.c.state.in_(_UNFINISHED))
    _add_ended_init_tasks(connection, rows, list(connection.execute(going_on).scalars()))
    _add_open_dependencies(connection, rows)
    element_ends = _add_arrays(connection, rows)
    context = load_context(connection)
    leader = connection.execute(sa.select(schema.leader)).one()
    live_attempts = _attempts(connection, attempts.c.state.in_(_LIVE_ATTEMPTS))
    return Snapshot(
        cluster_id=context["cluster_id"],
        epoch=epoch,
        next_task_no=leader.next_task_no,
        next_run_no=leader.next_run_no,
        next_vm_no=leader.next_vm_no,
        runs=[_run(row) for row in connection.execute(sa.select(runs).order_by(runs.c.run_no))],
        tasks=[rows[task_no] for task_no in sorted(rows)],
        attempts=live_attempts,
        declared=_declared(connection, live_attempts),
        init_attempts=_init_attempts(connection, going_on),
        workers=_workers(connection),
        killed=_killed(connection),
        vms=_vms(connection),
        past_vms=_past_vms(connection),
        boots=_boots(connection),
        states=_counts(connection),
        context=context,
        revoked_keys={row.name for row in connection.execute(sa.select(schema.revoked_keys))},
        suspects=[
            SuspectRow(row.task_no, row.run_no, row.lost, bool(row.failed), row.reason, row.at)
            for row in connection.execute(sa.select(schema.suspects).order_by(schema.suspects.c.task_no))
        ],
        dropped_pushes=_dropped_pushes(connection),
        epoch_ends={row.epoch: row.batch for row in connection.execute(sa.select(schema.epochs))},
        element_ends=element_ends,
    )


def load_context(connection: Connection) -> dict[str, str]:
    """The cluster's values by name."""
    return {row.name: row.value for row in connection.execute(sa.select(schema.context))}


def _add_ended_init_tasks(connection: Connection, rows: dict[int, TaskRow], run_nos: Sequence[int]) -> None:
    """Add the ended init tasks of unfinished runs. The condition on state makes the query use the index over (state,
    run_no, init)."""
    tasks, ended = schema.tasks, [state.value for state in ENDED]
    found: dict[int, TaskRow] = {}
    for some in _parts(run_nos):
        part = tasks.c.run_no.in_(some)
        found.update(_tasks(connection, sa.and_(tasks.c.state.in_(ended), part, tasks.c.init == 1)))
    if found:
        both = sorted({**rows, **found}.items())
        rows.clear()
        rows.update(both)


def _declared(connection: Connection, live_attempts: Sequence[AttemptRow]) -> dict[int, tuple[Result, ...]]:
    """The results that attempts may still publish. Attempts that are being promoted are omitted: their manifests were
    checked when they ended."""
    definitions = schema.definitions
    task_nos = sorted({row.task_no for row in live_attempts if row.state is not AttemptState.PROMOTING})
    declared: dict[int, tuple[Result, ...]] = {}
    for some in _parts(task_nos):
        part = definitions.c.task_no.in_(some)
        for task_no, definition in connection.execute(sa.select(definitions).where(part)):
            results = declared_results(definition)
            if results:
                declared[task_no] = results
    return declared


def _dropped_pushes(connection: Connection) -> set[str]:
    pushes, runs = schema.pushes.c, schema.runs.c
    is_dropped = pushes.run_no.not_in(sa.select(runs.run_no))
    return set(connection.execute(sa.select(pushes.push_id).where(is_dropped)).scalars())


def _counts(connection: Connection) -> dict[int, dict[str, int]]:
    tasks = schema.tasks
    keys = (tasks.c.state, tasks.c.run_no, tasks.c.init)  # in the order of the index
    counts: dict[int, dict[str, int]] = {}
    for state, run_no, init, count in connection.execute(sa.select(*keys, sa.func.count()).group_by(*keys)):
        if not init:
            counts.setdefault(run_no, {})[state] = count
    arrays = schema.arrays.c
    pending = sa.select(arrays.run_no, arrays.pending_state, arrays.pending_count).where(arrays.pending_count > 0)
    for run_no, state, count in connection.execute(pending):
        states = counts.setdefault(run_no, {})
        states[state] = states.get(state, 0) + count
    return counts


def _init_attempts(connection: Connection, going_on: sa.Select[Any]) -> list[AttemptRow]:
    """Attempts that show which workers on duty are prepared, and how often preparation failed in unfinished runs."""
    attempts, workers = schema.attempts, schema.workers
    on_duty = sa.select(workers.c.worker).where(workers.c.state.in_(_ON_DUTY))
    failed = sa.and_(attempts.c.run_no.in_(going_on), attempts.c.cause.is_not(None), attempts.c.cause != "success")
    told = sa.or_(attempts.c.worker.in_(on_duty), failed)
    found: list[AttemptRow] = []
    inits = list(connection.execute(sa.select(schema.tasks.c.task_no).where(schema.tasks.c.init == 1)).scalars())
    for some in _parts(inits):
        part = attempts.c.task_no.in_(some)
        found += _attempts(connection, sa.and_(part, attempts.c.state == AttemptState.ENDED.value, told))
    return found


class Heads(msgspec.Struct):
    """What one query tells of several runs and pushes: the leader's epoch, the runs that exist by name, the results of
    pushes by id, which of the requested tasks exist, as (name of the run, id), and the ids of init tasks by run."""

    epoch: int = 0
    runs: dict[str, RunRow] = {}
    answered: dict[str, PushAnswered] = {}
    tasks: set[tuple[str, str]] = set()
    inits: dict[str, list[str]] = {}


def read_heads(engine: Engine, sql: Statements, wanted: Sequence[LoadRun]) -> Heads:
    """Ask for all in one round trip. Plain SQL: compiling this query would cost more than it does. Raises
    `StoreAway`."""
    parts = ["SELECT 0, epoch, '', '', '', 0.0, 0.0 FROM leader WHERE id = 1"]
    values = [item.name for item in wanted]
    names = _marks(values)
    parts.append(f"SELECT 1, run_no, name, held, '', created_at, ended_at FROM runs WHERE name IN ({names})")
    if push_ids := [item.push_id for item in wanted if item.push_id]:
        columns = "2, run_no, push_id, states, decisions, 0.0, 0.0"
        parts.append(f"SELECT {columns} FROM pushes WHERE push_id IN ({_marks(push_ids)})")
        values += push_ids
    found = Heads()
    room = IDS_TOGETHER
    for number, item in enumerate(wanted):
        room -= len(item.ids or ())
        if item.ids and (room < 0 or max(map(len, item.ids)) > LONG_ID):
            found.tasks.update((item.name, id) for id in item.ids)  # as if they existed: they are read in parts
        elif item.ids:
            run_no = "(SELECT run_no FROM runs WHERE name = ?)"
            columns = f"3, {number}, id, '', '', 0.0, 0.0"
            parts.append(f"SELECT {columns} FROM tasks WHERE run_no = {run_no} AND id IN ({_marks(item.ids)})")
            values += [item.name, *item.ids]
        if item.ids:
            which = f"init = 1 AND run_no = (SELECT run_no FROM runs WHERE name = ?) AND state IN ({_marks(STATES)})"
            parts.append(f"SELECT 4, {number}, id, '', '', 0.0, 0.0 FROM tasks WHERE {which}")
            values += [item.name, *STATES]
    for kind, number, name, first, second, begin, end in read(
        engine, sql(" UNION ALL ".join(parts)), [sql.text(value) for value in values]
    ):
        if kind == 0:
            found.epoch = int(number)
        elif kind == 1:
            found.runs[_text(name)] = RunRow(number, _text(name), begin, _text(first), end)
        elif kind == 2:
            states, decisions = msgspec.json.decode(first), msgspec.json.decode(second)
            found.answered[_text(name)] = PushAnswered(_text(name), number, states, decisions)
        elif kind == 3:
            found.tasks.add((wanted[number].name, _text(name)))
        else:
            found.inits.setdefault(wanted[number].name, []).append(_text(name))
    return found


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def load_run(connection: Connection, name: str, ids: Sequence[str] | None = None) -> RunImage | None:
    """A run with all its tasks, or only `ids`, and their dependencies."""
    row = connection.execute(sa.select(schema.runs).where(schema.runs.c.name == name)).first()
    if row is None:
        return None
    return _image(connection, _run(row)) if ids is None else _part(connection, _run(row), ids)


def _part(connection: Connection, run: RunRow, ids: Sequence[str]) -> RunImage:
    tasks, dependencies = schema.tasks, schema.dependencies
    rows: dict[int, TaskRow] = {}
    for names in _parts(ids):
        named = tasks.c.id.in_(names)
        rows.update(_tasks(connection, sa.and_(tasks.c.run_no == run.run_no, named)))
    numbers = sorted(rows)
    for some in _parts(numbers):
        part = dependencies.c.task_no.in_(some)
        _attach(rows, connection.execute(_in_order(sa.select(dependencies).where(part))))
    return RunImage(run, [rows[number] for number in numbers], is_part=True)


def load_calls(connection: Connection, wanted: LoadCalls) -> tuple[list[CallEnded], bool]:
    """The states of calls: see `LoadCalls`. The last attempt is read only for tasks that have ended."""
    tasks, attempts, definitions = schema.tasks, schema.attempts, schema.definitions
    last = sa.and_(attempts.c.task_no == tasks.c.task_no, attempts.c.number == tasks.c.attempts)
    joined = tasks.join(schema.runs, schema.runs.c.run_no == tasks.c.run_no).outerjoin(attempts, last)
    columns = [
        tasks.c.task_no, tasks.c.id, tasks.c.state, tasks.c.reason, tasks.c.attempts, attempts.c.worker,
        attempts.c.cause, attempts.c.error, attempts.c.exit_code, attempts.c.signal, attempts.c.run_s,
        attempts.c.manifest, definitions.c.definition,
    ]  # fmt: skip
    query = sa.select(*columns, *([attempts.c.value] if wanted.ids is not None else []))
    query = query.select_from(joined.join(definitions, definitions.c.task_no == tasks.c.task_no))
    query = query.where(schema.runs.c.name == wanted.run).order_by(tasks.c.task_no)
    if wanted.ids is None:
        query = query.where(tasks.c.task_no > wanted.after).limit(wanted.limit)
    else:
        query = query.where(tasks.c.id.in_(wanted.ids))
    calls = [_call(row) for row in connection.execute(query)]
    return calls, wanted.ids is None and len(calls) == wanted.limit


class _Fingerprinted(msgspec.Struct):
    fingerprint: str = ""
    many: bool = False


class _OfCall(msgspec.Struct):
    call: _Fingerprinted | None = None


_CALLS = msgspec.json.Decoder(_OfCall)


def _call(row: Any) -> CallEnded:
    call = _CALLS.decode(row.definition).call
    base = CallEnded(row.task_no, row.id, row.state, row.attempts)
    if call is not None:
        base = msgspec.structs.replace(base, fingerprint=call.fingerprint, many=call.many)
    if row.state in _UNFINISHED or row.cause is None:
        return msgspec.structs.replace(base, error=row.reason or "")
    manifest = msgspec.json.decode(row.manifest, type=tuple[ManifestEntry, ...]) if row.manifest else ()
    return msgspec.structs.replace(
        base,
        worker=row.worker,
        cause=row.cause,
        error=row.reason or row.error or "",
        exit_code=row.exit_code,
        signal=row.signal,
        run_s=row.run_s or 0.0,
        value=getattr(row, "value", None) or b"",
        path=manifest[0].path if manifest else "",
    )


def _image(connection: Connection, run: RunRow) -> RunImage:
    rows = _tasks(connection, schema.tasks.c.run_no == run.run_no)
    _add_dependencies(connection, rows)
    arrays = load_array_rows(connection, schema.arrays.c.run_no == run.run_no)
    for array in arrays.values():
        array.each = tuple([edge for edge in array.each if edge[0] in arrays])
        row = rows[array.task_no]
        row.elements = array
        if row.state in ENDED and array.pending:
            _add_entries(connection, array)
    join_elements(rows)
    return RunImage(run, list(rows.values()))


def load_array_rows(connection: Connection, condition: sa.ColumnElement[bool]) -> dict[int, ArrayRow]:
    """Arrays by number, without their entries."""
    arrays, definitions = schema.arrays, schema.definitions
    joined = arrays.join(definitions, definitions.c.task_no == arrays.c.task_no)
    query = sa.select(arrays, definitions.c.definition).select_from(joined).where(condition)
    each = tuple[tuple[int, Condition], ...]
    return {
        row.task_no: ArrayRow(
            row.task_no,
            row.run_no,
            row.first_no,
            row.indices,
            row.pending,
            msgspec.json.decode(row.states),
            row.pending_count,
            row.pending_state,
            msgspec.json.decode(row.each_of, type=each),
            row.definition,
        )
        for row in connection.execute(query.order_by(arrays.c.task_no))
    }


def _add_entries(connection: Connection, array: ArrayRow) -> None:
    parts = schema.array_entries.c
    query = sa.select(parts.entries).where(parts.task_no == array.task_no).order_by(parts.part)
    array.entries = tuple(bytes(part) for part in connection.execute(query).scalars())


def _add_arrays(connection: Connection, rows: dict[int, TaskRow]) -> dict[int, tuple[str, str]]:
    """Add unfinished arrays with their entries to the rows, and link their elements. Returns how the elements ended,
    for arrays that others wait for element by element."""
    arrays, tasks = schema.arrays, schema.tasks
    joined = sa.select(tasks.c.task_no).where(tasks.c.init == schema.ARRAY, tasks.c.state.in_(_UNFINISHED))
    found = load_array_rows(connection, arrays.c.task_no.in_(joined))
    found.update(_add_closed_arrays(connection, rows, set(found)))
    run_nos = {array.run_no for array in found.values()}
    known = set(connection.execute(sa.select(arrays.c.task_no).where(arrays.c.run_no.in_(run_nos))).scalars())
    for array_no, array in found.items():
        array.each = tuple([edge for edge in array.each if edge[0] in known])  # the others were dropped
        rows[array_no].elements = array
        _add_entries(connection, array)
    join_elements(rows)
    open_nos = {task_no for task_no, row in rows.items() if row.state not in ENDED}
    for row in rows.values() if found else ():
        if row.array:
            row.dependencies = tuple([edge for edge in row.dependencies if edge[0] in open_nos])
    sources = sorted({array_no for array in found.values() for array_no, _ in array.each})
    return {array_no: _element_ends(connection, array_no) for array_no in sources}


def _add_closed_arrays(connection: Connection, rows: dict[int, TaskRow], known: set[int]) -> dict[int, ArrayRow]:
    """Arrays that were cancelled or aborted before all their elements had ended."""
    arrays = schema.arrays
    numbers = sorted(task_no for task_no, row in rows.items() if row.state not in ENDED and not row.init)
    runs = {rows[task_no].run_no for task_no in numbers}
    query = sa.select(arrays.c.task_no, arrays.c.first_no, arrays.c.indices).where(arrays.c.run_no.in_(runs))
    closed = []
    for array_no, first_no, indices in connection.execute(query) if runs else ():
        if array_no not in known:
            at = bisect_left(numbers, first_no)
            if at < len(numbers) and numbers[at] < first_no + Indices.of(indices).count:
                closed.append(array_no)
    if not closed:
        return {}
    rows.update(_tasks(connection, schema.tasks.c.task_no.in_(closed)))
    return load_array_rows(connection, arrays.c.task_no.in_(closed))


def _element_ends(connection: Connection, array_no: int) -> tuple[str, str]:
    """Positions of elements that succeeded, and of those that ended otherwise."""
    arrays, tasks = schema.arrays.c, schema.tasks.c
    array = connection.execute(sa.select(schema.arrays).where(arrays.task_no == array_no)).one()
    last = array.first_no + Indices.of(array.indices).count - 1
    ended = [state.value for state in ENDED]
    query = (
        sa.select(tasks.task_no, tasks.state)
        .where(tasks.run_no == array.run_no, tasks.init == schema.TASK, tasks.state.in_(ended))
        .where(tasks.task_no.between(array.first_no, last))
    )
    good: list[tuple[int, int]] = []
    bad = Ranges.of(array.pending).ranges if array.pending_state in ended else []
    for task_no, state in connection.execute(query):
        position = task_no - array.first_no
        (good if state == TaskState.SUCCEEDED.value else bad).append((position, position))
    return str(Ranges(good)), str(Ranges(bad))


def select(connection: Connection, wanted: SelectTasks) -> tuple[list[RunImage], set[int], str]:
    """The tasks that a user's selection means: runs, task numbers, or a sentence on why nothing could be found."""
    chosen = choose(wanted, _Finder(connection))
    runs, arrays = schema.runs, schema.arrays.c
    rows = connection.execute(sa.select(runs).where(runs.c.run_no.in_(chosen.run_nos)).order_by(runs.c.run_no)).all()
    images: dict[int, RunImage] = {}
    if wanted.reads is not Reads.WHOLE:
        with_arrays = set(
            connection.execute(sa.select(arrays.run_no).where(arrays.run_no.in_(chosen.run_nos))).scalars()
        )
        runs_ = [_run(row) for row in rows if row.run_no not in with_arrays]
        parts = parts_of(_Reader(connection), runs_, chosen.of_run, wanted.reads)
        images = {image.run.run_no: image for image in parts}
    return [images.get(row.run_no) or _image(connection, _run(row)) for row in rows], chosen.task_nos, chosen.problem


class _Reader:
    """The tables as a `Reader` of `boss.store.reaching`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rows(self, task_nos: Sequence[int]) -> dict[int, TaskRow]:
        found: dict[int, TaskRow] = {}
        for part in _parts(task_nos):
            found.update(_tasks(self._connection, schema.tasks.c.task_no.in_(part)))
        return found

    def add_dependencies(self, rows: dict[int, TaskRow]) -> None:
        _add_dependencies(self._connection, rows)

    def dependents(self, task_nos: Sequence[int], states: Iterable[TaskState]) -> dict[int, TaskState]:
        edges, tasks = schema.dependencies.c, schema.tasks.c
        joined = schema.dependencies.join(schema.tasks, tasks.task_no == edges.task_no)
        query = sa.select(tasks.task_no, tasks.state).distinct().select_from(joined)
        query = query.where(tasks.state.in_(sorted(state.value for state in states)))
        found: dict[int, TaskState] = {}
        for part in _parts(task_nos):
            rows = self._connection.execute(query.where(edges.on_task_no.in_(part)))
            found.update((task_no, TaskState(state)) for task_no, state in rows)
        return found

    def init_tasks(self, run_nos: Sequence[int]) -> list[int]:
        tasks = schema.tasks.c
        states = [state.value for state in TaskState]  # so that the index over (state, run_no, init) serves
        found: list[int] = []
        for part in _parts(run_nos):
            query = sa.select(tasks.task_no).where(tasks.state.in_(states), tasks.run_no.in_(part))
            found += self._connection.execute(query.where(tasks.init == schema.INIT)).scalars()
        return found


def _parts(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """Cut a list into parts that a query may name."""
    for start in range(0, len(items), IDS_A_QUERY):
        yield items[start : start + IDS_A_QUERY]


class _Finder:
    """The tables as a `Finder` of `boss.store.selecting`. Always queries by run: the index of ids begins with the
    run."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def runs(self) -> dict[str, int]:
        runs = schema.runs
        return {row.name: row.run_no for row in self._connection.execute(sa.select(runs.c.name, runs.c.run_no))}

    def named(self, run_nos: Sequence[int], ids: Sequence[str]) -> Iterator[Found]:
        tasks = schema.tasks
        for part in _parts(ids):
            yield from self._ask(sa.and_(tasks.c.run_no.in_(run_nos), tasks.c.id.in_(part)))

    def arrays(self, run_nos: Sequence[int]) -> Iterator[FoundArray]:
        arrays, tasks = schema.arrays.c, schema.tasks.c
        query = (
            sa.select(schema.arrays, tasks.id, tasks.labels)
            .select_from(schema.arrays.join(schema.tasks, tasks.task_no == arrays.task_no))
            .where(arrays.run_no.in_(run_nos), arrays.pending_count > 0)
        )
        for row in self._connection.execute(query):
            labels = msgspec.json.decode(row.labels, type=tuple[str, ...])
            yield FoundArray(row.run_no, row.id, row.first_no, row.indices, row.pending, row.pending_state, labels)

    def elements(self, run_nos: Sequence[int], name: str) -> Iterator[Found]:
        ids = schema.tasks.c.id  # compared byte by byte: ids that begin with `name[` are adjacent in the index
        yield from self._ask(sa.and_(schema.tasks.c.run_no.in_(run_nos), ids >= f"{name}[", ids < f"{name}\\"))

    def matching(self, run_nos: Sequence[int], state: str, label: str) -> Iterator[Found]:
        tasks = schema.tasks
        conditions: list[sa.ColumnElement[bool]] = [tasks.c.run_no.in_(run_nos)]
        conditions += [tasks.c.state == state] if state else []
        conditions += [schema.labelled(label)] if label else []
        query = sa.select(tasks.c.task_no, tasks.c.run_no, tasks.c.state, tasks.c.init).where(*conditions)
        for row in self._connection.execute(query):
            yield Found(row.task_no, row.run_no, "", row.state, row.init == schema.INIT, (), row.init == schema.ARRAY)

    def some_ids(self, run_nos: Sequence[int]) -> Iterator[str]:
        tasks = schema.tasks
        query = sa.select(tasks.c.id).where(tasks.c.run_no.in_(run_nos)).limit(IDS_COMPARED)
        yield from self._connection.execute(query).scalars()

    def _ask(self, condition: sa.ColumnElement[bool]) -> Iterator[Found]:
        tasks = schema.tasks
        columns = (tasks.c.task_no, tasks.c.run_no, tasks.c.id, tasks.c.state, tasks.c.init, tasks.c.labels)
        for row in self._connection.execute(sa.select(*columns).where(condition)):
            labels = msgspec.json.decode(row.labels, type=tuple[str, ...])
            is_array = row.init == schema.ARRAY
            yield Found(row.task_no, row.run_no, row.id, row.state, row.init == schema.INIT, labels, is_array)


def _run(row: Any) -> RunRow:
    return RunRow(row.run_no, row.name, row.created_at, row.held, row.ended_at)


def _tasks(connection: Connection, condition: sa.ColumnElement[bool]) -> dict[int, TaskRow]:
    """Rows by number, in order. Texts come unconverted from the driver: the types' own conversion would double the
    time."""
    shared = _Shared()
    states = {state.value: state for state in TaskState}
    rows = _joined_values(connection, condition) if connection.dialect.name != "sqlite" else None
    found: dict[int, TaskRow] = {}
    for (
        task_no, run_no, state, attempts, retries_used, not_before, init, priority, runtime_s, keep_dir, body_bytes,
        definition_hash, makes, id, reason, *texts,
    ) in _plain_values(connection, condition) if rows is None else rows:  # fmt: skip
        asks, retries, label, inputs = shared(*texts)
        found[task_no] = TaskRow(
            task_no, run_no, _text(id), states[state], _text(reason), attempts, retries_used, not_before, init == 1,
            priority, asks, runtime_s, label, retries, keep_dir == 1, body_bytes, definition_hash, inputs=inputs,
            makes=makes,
        )  # fmt: skip
    return found


_PLAIN = (
    "task_no", "run_no", "state", "attempts", "retries_used", "not_before", "init", "priority", "runtime_s", "keep_dir",
    "body_bytes", "definition_hash", "makes",
)  # fmt: skip
_OWN = ("id", "reason")
_ALIKE = ("asks", "retries", "labels", "inputs")
_STREAM = {"stream_results": True, "max_row_buffer": 10_000}


class _Shared:
    """Columns that many tasks have in common: each distinct combination is parsed once."""

    def __init__(self) -> None:
        self._asks, self._retries = _Parsed(dict[str, float]), _Parsed(Retries)
        self._labels, self._inputs = _Parsed(tuple[str, ...]), _Parsed(tuple[str, ...])
        self._known: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def __call__(self, *texts: Any) -> tuple[Any, ...]:
        """Resources, retries, first label, inputs. `texts`: as stored, or all in one text with a line for each."""
        known = self._known.get(texts)
        if known is None:
            parts = texts if len(texts) > 1 else texts[0].split(b"\n")
            asks, retries, labels, inputs = parts
            names = self._labels(labels)
            wanted = self._inputs(inputs) if inputs else ()
            known = self._asks(asks), self._retries(retries), names[0] if names else "", wanted
            self._known[texts] = known
        return known


def _plain_values(connection: Connection, condition: sa.ColumnElement[bool]) -> Iterator[Sequence[Any]]:
    tasks = schema.tasks
    columns = [sa.type_coerce(tasks.c[name], sa.types.NullType()).label(name) for name in (*_OWN, *_ALIKE)]
    query = sa.select(*[tasks.c[name] for name in _PLAIN], *columns).where(condition).order_by(tasks.c.task_no)
    yield from connection.execute(query, execution_options=_STREAM)


def _joined_values(connection: Connection, condition: sa.ColumnElement[bool]) -> Iterator[Sequence[Any]]:
    """The same values from four columns: PyMySQL takes a microsecond per column, whatever its content. No text of
    `_ALIKE` has a line break: they are JSON."""
    tasks, raw = schema.tasks, sa.types.NullType()
    numbers = [sa.func.ifnull(tasks.c[name], "") if name == "runtime_s" else tasks.c[name] for name in _PLAIN]
    alike = [sa.func.ifnull(sa.type_coerce(tasks.c[name], raw), "") for name in _ALIKE]
    own = [sa.type_coerce(tasks.c[name], raw).label(name) for name in _OWN]
    joined_numbers = sa.type_coerce(sa.func.concat_ws(",", *numbers), raw)
    joined_alike = sa.type_coerce(sa.func.concat_ws("\n", *alike), raw)
    columns: list[Any] = [joined_numbers, *own, joined_alike]
    result = connection.execute(
        sa.select(*columns).where(condition).order_by(tasks.c.task_no), execution_options=_STREAM
    )
    for joined, id, reason, texts in result:
        (
            task_no, run_no, state, attempts, retries_used, not_before, init, priority, runtime_s, keep_dir, body_bytes,
            definition_hash, makes,
        ) = _text(joined).split(",")  # fmt: skip
        yield (
            int(task_no), int(run_no), state, int(attempts), int(retries_used), float(not_before), int(init),
            int(priority), float(runtime_s) if runtime_s else None, int(keep_dir), int(body_bytes), definition_hash,
            int(makes), id, reason, texts,
        )  # fmt: skip


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _add_open_dependencies(connection: Connection, rows: dict[int, TaskRow]) -> None:
    """Add only dependencies between unfinished tasks: the others are met, or the task would have been aborted with
    them."""
    open_nos = {task_no for task_no, row in rows.items() if row.state not in ENDED}
    for edges in _edge_lists(connection, sorted(open_nos)):
        _attach(rows, sorted([edge for edge in edges if edge[0] in open_nos and edge[1] in open_nos]))


def _add_dependencies(connection: Connection, rows: dict[int, TaskRow]) -> None:
    """Add all dependencies of these tasks."""
    for edges in _edge_lists(connection, sorted(rows)):
        _attach(rows, sorted([edge for edge in edges if edge[0] in rows]))


def _edge_lists(connection: Connection, task_nos: Sequence[int]) -> Iterator[Iterable[tuple[int, int, str]]]:
    """The dependencies of these tasks, and perhaps of others, in parts. `task_nos` ascend."""
    most_bytes = _longest_list(connection) if task_nos else 0
    for start in range(0, len(task_nos), TASKS_A_LIST):
        yield _edges(connection, task_nos[start : start + TASKS_A_LIST], most_bytes)


def _longest_list(connection: Connection) -> float:
    """Maximum length of a list that the server joins without cutting it."""
    if connection.dialect.name == "sqlite":
        return inf
    connection.exec_driver_sql(f"SET SESSION group_concat_max_len = {LIST_BYTES}")
    limits = connection.exec_driver_sql("SELECT @@group_concat_max_len, @@max_allowed_packet").one()
    return min(map(int, limits)) - 1


def _edges(connection: Connection, task_nos: Sequence[int], most_bytes: float) -> Iterable[tuple[int, int, str]]:
    """The dependencies of these tasks, and perhaps of others with numbers between theirs: three lists in one row, since
    a row for each edge costs PyMySQL 8 us. `task_nos` ascend."""
    first, last = task_nos[0], task_nos[-1]
    dense = last - first < SPARSE * len(task_nos)
    chosen = f"task_no BETWEEN {first} AND {last}" if dense else f"task_no IN ({in_list(task_nos)})"
    columns = ("task_no", "on_task_no", "met_by")
    lists = ", ".join([f"GROUP_CONCAT({column})" for column in columns])
    row = connection.exec_driver_sql(f"SELECT {lists} FROM dependencies WHERE {chosen}").one()
    if row[0] is None:
        return ()
    texts = [_text(value) for value in row]
    if max(map(len, texts)) >= most_bytes:  # the server may have cut them
        query = f"SELECT {', '.join(columns)} FROM dependencies WHERE {chosen}"
        return [tuple(edge) for edge in connection.exec_driver_sql(query)]
    numbers = [map(int, text.split(",")) for text in texts[:2]]
    return zip(*numbers, texts[2].split(","), strict=True)


def _in_order(edges: sa.Select[Any]) -> sa.Select[Any]:
    return edges.order_by(schema.dependencies.c.task_no, schema.dependencies.c.on_task_no)


def _attach(rows: dict[int, TaskRow], edges: Iterable[Any]) -> None:
    """Set the dependencies of each row. Edges are ordered by task."""
    conditions = {condition.value: condition for condition in Condition}
    for task_no, group in itertools.groupby(edges, key=operator.itemgetter(0)):
        rows[task_no].dependencies = tuple((on_task_no, conditions[met_by]) for _, on_task_no, met_by in group)


def _attempts(connection: Connection, condition: sa.ColumnElement[bool]) -> list[AttemptRow]:
    attempts = schema.attempts
    query = sa.select(attempts).where(condition).order_by(attempts.c.task_no, attempts.c.number)
    return [_attempt(row) for row in connection.execute(query)]


def _attempt(row: Any) -> AttemptRow:
    outcome = None
    if row.cause is not None:
        manifest = msgspec.json.decode(row.manifest, type=tuple[ManifestEntry, ...]) if row.manifest else ()
        outcome = Outcome(
            task_no=row.task_no,
            number=row.number,
            cause=Cause(row.cause),
            exit_code=row.exit_code,
            signal=row.signal,
            error=row.error or "",
            command=row.command or "",
            stdout=row.stdout or "",
            stderr=row.stderr or "",
            fetch_s=row.fetch_s,
            run_s=row.run_s,
            store_s=row.store_s,
            max_rss_mb=row.max_rss_mb,
            manifest=manifest,
            fetch_bytes=row.fetch_bytes or 0,
            cached_bytes=row.cached_bytes or 0,
            value=row.value or b"",
            stamps=msgspec.json.decode(row.stamps, type=dict[str, str]) if row.stamps else {},
        )
    return AttemptRow(
        task_no=row.task_no,
        number=row.number,
        run_no=row.run_no,
        worker=row.worker,
        state=AttemptState(row.state),
        assigned_at=row.assigned_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        reason=row.reason or "",
        outcome=outcome,
        asks=msgspec.json.decode(row.asks, type=Resources) if row.asks else None,
    )


def _killed(connection: Connection) -> dict[str, float]:
    workers = schema.workers.c
    lost = sa.and_(workers.state == WorkerState.LOST.value, workers.killed_at.is_not(None))
    query = sa.select(workers.worker, workers.since).where(lost)
    return {row.worker: row.since for row in connection.execute(query)}


def _workers(connection: Connection) -> list[WorkerRow]:
    workers = schema.workers
    query = sa.select(workers).where(workers.c.state.in_(_ON_DUTY)).order_by(workers.c.worker)
    return [
        WorkerRow(
            worker=row.worker,
            key_name=row.key_name,
            state=WorkerState(row.state),
            since=row.since,
            heard_at=row.heard_at,
            hello=msgspec.json.decode(row.hello, type=Hello),
            vm_no=row.vm_no,
            reason=row.reason,
            trouble=row.trouble,
            lane_since=row.lane_since,
            lane_wanted_since=row.lane_wanted_since,
            moving=msgspec.json.decode(row.moving, type=Moving) if row.moving else None,
            moving_at=row.moving_at,
            killed_at=row.killed_at,
        )
        for row in connection.execute(query)
    ]


PAST_VMS = 2_000
"""Maximum gone VMs to load: enough for boot times and a day's hours."""


def _vm_row(row: Any) -> VmRow:
    values = schema.vm_values(row)
    return VmRow(**{**values, "state": VmState(values["state"])})


def _vms(connection: Connection) -> list[VmRow]:
    vms = schema.vms
    query = sa.select(vms).where(vms.c.state != "gone").order_by(vms.c.vm_no)
    return [_vm_row(row) for row in connection.execute(query)]


def _boots(connection: Connection) -> list[BootRow]:
    boots, vms = schema.boots, schema.vms
    query = sa.select(boots).join(vms, vms.c.vm_no == boots.c.vm_no).where(vms.c.state != "gone")
    return [
        BootRow(
            vm_no=row.vm_no,
            address=row.address,
            host_key=row.host_key,
            steps=msgspec.json.decode(row.steps),
            visit=msgspec.json.decode(row.visit, type=Visit) if row.visit else None,
        )
        for row in connection.execute(query.order_by(boots.c.vm_no))
    ]


def _past_vms(connection: Connection) -> list[VmRow]:
    vms = schema.vms
    query = sa.select(vms).where(vms.c.state == "gone")
    last = query.order_by(vms.c.vm_no.desc()).limit(PAST_VMS)
    seen = query.where(vms.c.gone_at.is_(None))
    rows = {row.vm_no: row for one in (seen, last) for row in connection.execute(one)}
    return [_vm_row(row) for _, row in sorted(rows.items())]
