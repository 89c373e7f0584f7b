"""Reading the tables back into the core's rows. Streams: a million unfinished tasks are loaded without being held twice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from boss.core.effects import SelectTasks
from boss.core.rows import AttemptRow, PushAnswered, RunImage, RunRow, Snapshot, TaskRow, VmRow, WorkerRow
from ecloud import schema
from ecloud.tasks import (
    ATTEMPT_OVER,
    ENDED,
    AttemptState,
    Cause,
    Condition,
    ManifestEntry,
    Outcome,
    Retries,
    TaskState,
)
from ecloud.wire import Hello

IDS_COMPARED = 20_000
"""Ids looked through for a near miss."""
IDS_A_QUERY = 500

_UNFINISHED = [state.value for state in TaskState if state not in ENDED]
_LIVE_ATTEMPTS = [state.value for state in AttemptState if state not in ATTEMPT_OVER]
_Value = TypeVar("_Value")


class _Parsed:
    """JSON texts of which there are few different ones: parsed once each."""

    def __init__(self, kind: Any) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self._known: dict[str, Any] = {}

    def __call__(self, text: str) -> Any:
        value = self._known.get(text)
        if value is None:
            value = self._known[text] = self._decoder.decode(text)
        return value


def load(connection: Connection, epoch: int) -> Snapshot:
    """Everything a boss starts from."""
    tasks, runs = schema.tasks, schema.runs
    live_runs = sa.select(runs.c.run_no).where(runs.c.ended_at.is_(None))
    unfinished = tasks.c.state.in_(_UNFINISHED)
    rows = _tasks(connection, sa.or_(unfinished, sa.and_(tasks.c.init == 1, tasks.c.run_no.in_(live_runs))))
    _add_dependencies(connection, rows)
    counts: dict[int, dict[str, int]] = {}
    query = (
        sa.select(tasks.c.run_no, tasks.c.state, sa.func.count())
        .where(tasks.c.init == 0)
        .group_by(tasks.c.run_no, tasks.c.state)
    )
    for run_no, state, count in connection.execute(query):
        counts.setdefault(run_no, {})[state] = count
    context = {row.name: row.value for row in connection.execute(sa.select(schema.context))}
    attempts = schema.attempts
    inits = [row.task_no for row in rows.values() if row.init]
    return Snapshot(
        cluster_id=context.get("cluster_id", ""),
        epoch=epoch,
        next_task_no=_next(connection, tasks.c.task_no),
        next_run_no=max(_next(connection, runs.c.run_no), _next(connection, schema.archived_runs.c.run_no)),
        next_vm_no=_next(connection, schema.vms.c.vm_no),
        runs=[_run(row) for row in connection.execute(sa.select(runs))],
        tasks=list(rows.values()),
        attempts=_attempts(connection, attempts.c.state.in_(_LIVE_ATTEMPTS), outputs=False),
        init_attempts=_attempts(
            connection, sa.and_(attempts.c.task_no.in_(inits), attempts.c.state == "ended"), outputs=False
        ),
        workers=_workers(connection),
        vms=_vms(connection),
        states=counts,
        context=context,
        revoked_keys={row.name for row in connection.execute(sa.select(schema.revoked_keys))},
    )


def load_run(connection: Connection, name: str) -> RunImage | None:
    """A run with all its tasks and dependencies."""
    row = connection.execute(sa.select(schema.runs).where(schema.runs.c.name == name)).first()
    if row is None:
        return None
    tasks = _tasks(connection, schema.tasks.c.run_no == row.run_no)
    dependencies = schema.dependencies
    joined = dependencies.join(schema.tasks, schema.tasks.c.task_no == dependencies.c.task_no)
    query = sa.select(dependencies).select_from(joined).where(schema.tasks.c.run_no == row.run_no)
    _attach(tasks, connection.execute(query))
    pushes = [
        PushAnswered(
            push.push_id,
            push.run_no,
            msgspec.json.decode(push.states),
            msgspec.json.decode(push.decisions),
        )
        for push in connection.execute(sa.select(schema.pushes).where(schema.pushes.c.run_no == row.run_no))
    ]
    return RunImage(_run(row), list(tasks.values()), pushes)


def select(connection: Connection, wanted: SelectTasks) -> tuple[list[RunImage], set[int], str]:
    """What a person meant: runs, task numbers, or a sentence on why nothing could be found."""
    names = {row.run_no: row.name for row in connection.execute(sa.select(schema.runs.c.run_no, schema.runs.c.name))}
    numbers_of = {name: run_no for run_no, name in names.items()}
    if wanted.run and wanted.run not in numbers_of:
        return [], set(), f"there is no run {wanted.run!r}{_near(wanted.run, names.values())}"
    run_no = numbers_of.get(wanted.run)
    if wanted.ids:
        found, problem = _find_ids(connection, wanted.ids, run_no, names)
        if problem:
            return [], set(), problem
    else:
        found = {}
        tasks = schema.tasks
        query = sa.select(tasks.c.task_no, tasks.c.run_no).where(tasks.c.init == 0)
        query = query.where(tasks.c.run_no == run_no) if run_no is not None else query
        query = query.where(tasks.c.state == wanted.state) if wanted.state else query
        if wanted.label:
            query = query.where(labelled(wanted.label))
        found = {row.task_no: row.run_no for row in connection.execute(query)}
    images = [load_run(connection, names[number]) for number in sorted(set(found.values()))]
    if run_no is not None and not images:
        images = [load_run(connection, wanted.run)]
    return [image for image in images if image is not None], set(found), ""


def labelled(label: str) -> sa.ColumnElement[bool]:
    """Tasks with that label."""
    text = msgspec.json.encode(label).decode()
    return sa.func.instr(schema.tasks.c.labels, sa.bindparam(None, text, type_=schema.Utf8())) > 0


def _find_ids(
    connection: Connection, ids: Iterable[str], run_no: int | None, names: dict[int, str]
) -> tuple[dict[int, int], str]:
    found: dict[int, int] = {}
    ids = list(ids)
    tasks = schema.tasks
    by_id: dict[str, list[Any]] = {}
    for start in range(0, len(ids), IDS_A_QUERY):
        part = ids[start : start + IDS_A_QUERY]
        bare = [name.partition(":")[2] for name in part if ":" in name]
        query = sa.select(tasks.c.task_no, tasks.c.run_no, tasks.c.id).where(tasks.c.id.in_([*part, *bare]))
        for row in connection.execute(query):
            by_id.setdefault(row.id, []).append(row)
    for name in ids:
        matches = [row for row in by_id.get(name, ()) if run_no is None or row.run_no == run_no]
        if not matches and ":" in name:
            run_name, _, bare_id = name.partition(":")
            matches = [row for row in by_id.get(bare_id, ()) if names.get(row.run_no) == run_name]
        if not matches:
            known = connection.execute(sa.select(tasks.c.id).limit(IDS_COMPARED)).scalars()
            return {}, f"there is no task {name!r}{_near(name, known)}"
        if len(matches) > 1:
            runs = ", ".join(f"{names[row.run_no]}:{row.id}" for row in matches[:5])
            return {}, f"task {name!r} is in {len(matches)} runs: name one of {runs}"
        found[matches[0].task_no] = matches[0].run_no
    return found, ""


def _near(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), 3)
    return f"; near to it: {', '.join(nearest)}" if nearest else ""


def _next(connection: Connection, column: sa.Column[Any]) -> int:
    return int(connection.execute(sa.select(sa.func.max(column))).scalar() or 0) + 1


def _run(row: Any) -> RunRow:
    return RunRow(row.run_no, row.name, row.created_at, row.held, row.ended_at)


def _tasks(connection: Connection, condition: sa.ColumnElement[bool]) -> dict[int, TaskRow]:
    asks, retries, labels = _Parsed(dict[str, float]), _Parsed(Retries), _Parsed(tuple[str, ...])
    states = {state.value: state for state in TaskState}
    tasks = schema.tasks
    found: dict[int, TaskRow] = {}
    for row in connection.execution_options(stream_results=True).execute(sa.select(tasks).where(condition)):
        names = labels(row.labels)
        found[row.task_no] = TaskRow(
            task_no=row.task_no,
            run_no=row.run_no,
            id=row.id,
            state=states[row.state],
            reason=row.reason,
            attempts=row.attempts,
            retries_used=row.retries_used,
            not_before=row.not_before,
            init=bool(row.init),
            priority=row.priority,
            asks=asks(row.asks),
            runtime_s=row.runtime_s,
            label=names[0] if names else "",
            retries=retries(row.retries),
            keep_dir=bool(row.keep_dir),
            body_bytes=row.body_bytes,
            definition_hash=row.definition_hash,
        )
    return found


def _add_dependencies(connection: Connection, rows: dict[int, TaskRow]) -> None:
    """Only those on unfinished tasks: the others are met, or the task would have been aborted with them."""
    dependencies, waiting, other = schema.dependencies, schema.tasks.alias(), schema.tasks.alias()
    joined = dependencies.join(waiting, waiting.c.task_no == dependencies.c.task_no).join(
        other, other.c.task_no == dependencies.c.on_task_no
    )
    query = (
        sa.select(dependencies)
        .select_from(joined)
        .where(waiting.c.state == TaskState.WAITING.value, other.c.state.in_(_UNFINISHED))
    )
    _attach(rows, connection.execution_options(stream_results=True).execute(query))


def _attach(rows: dict[int, TaskRow], edges: Iterable[Any]) -> None:
    conditions = {condition.value: condition for condition in Condition}
    gathered: dict[int, list[tuple[int, Condition]]] = {}
    for edge in edges:
        gathered.setdefault(edge.task_no, []).append((edge.on_task_no, conditions[edge.met_by]))
    for task_no, found in gathered.items():
        row = rows.get(task_no)
        if row is not None:
            row.dependencies = tuple(found)


def _attempts(connection: Connection, condition: sa.ColumnElement[bool], outputs: bool) -> list[AttemptRow]:
    return [attempt_row(row) for row in connection.execute(sa.select(schema.attempts).where(condition))]


def attempt_row(row: Any) -> AttemptRow:
    """One row of `attempts` as a value."""
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
    )


def _workers(connection: Connection) -> list[WorkerRow]:
    workers = schema.workers
    query = sa.select(workers).where(workers.c.state.in_(["up", "draining"]))
    return [
        WorkerRow(
            worker=row.worker,
            key_name=row.key_name,
            state=row.state,
            since=row.since,
            heard_at=row.heard_at,
            hello=msgspec.json.decode(row.hello, type=Hello),
            vm_no=row.vm_no,
            reason=row.reason,
            trouble=row.trouble,
        )
        for row in connection.execute(query)
    ]


def _vms(connection: Connection) -> list[VmRow]:
    vms = schema.vms
    return [
        VmRow(
            vm_no=row.vm_no,
            pool=row.pool,
            state=row.state,
            since=row.since,
            size=msgspec.json.decode(row.size),
            boot_nonce=row.boot_nonce,
            cloud_id=row.cloud_id,
            worker=row.worker,
            keep_alive=bool(row.keep_alive),
            reason=row.reason,
            intended_at=row.intended_at,
            hello_at=row.hello_at,
            gone_at=row.gone_at,
        )
        for row in connection.execute(sa.select(vms).where(vms.c.state != "gone"))
    ]
