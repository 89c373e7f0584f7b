"""Queries of users, answered from the database alone: they work while the boss is down and never delay it.

Each query reads one snapshot and releases it. Nothing here writes. `ecloud.queries.lookup` has the details of a single
task, `ecloud.queries.why` the reason for its state.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from datastore.problem import Problem
from ecloud.config.settings import Settings
from ecloud.db import schema
from ecloud.db.database import (
    ANSWER_S,
    DatabaseAway,
    database_now,
    database_url,
    explain,
    make_engine,
    require_schema,
    where,
)
from ecloud.model.tasks import TaskState
from ecloud.model.vm_states import VmState
from ecloud.model.wire import Hello
from ecloud.queries import boot_history
from ecloud.queries.arrays import array_views, pending_counts, small_arrays
from ecloud.queries.producers import with_maker
from ecloud.queries.suspects import suspect_tasks
from ecloud.queries.transfers import transfers
from ecloud.queries.views import (
    UNFINISHED,
    BossStatus,
    Failure,
    RunStatus,
    Status,
    TaskLine,
    TaskPage,
    VmView,
    WorkerView,
)

BOSS_SILENT_S = 15.0
"""A boss without a write for this long is assumed not to lead."""
RATE_ENDS = 1_000
RATE_LEAST_S = 10.0
"""Window of the rate: the last thousand ends, or this many seconds if that is longer; never more than an hour."""
RATE_MOST_S = 3_600.0
RATE_ROWS = 4_000
"""Maximum number of ends to count."""
GUESSED_TASKS = 200_000
"""Maximum number of tasks whose guessed run-times are summed if none has ended yet."""
TAIL_CHARS = 2_000
"""Characters of an error output in a list of failures."""

RUNNING_ATTEMPTS = ("started", "promoting", "stopping")


class NoSuchRun(Problem):
    """There is no run of that name; the text lists similar names."""


# --- asking ------------------------------------------------------------------------------------


def open_database(settings: Settings, answer_s: float = ANSWER_S, any_schema: bool = False) -> Engine:
    """Open the database named in the settings; a database server has `answer_s` for each answer. Raises `DatabaseAway`
    if there is no database, `SchemaWrong`."""
    url = database_url(settings)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        if os.environ.get("ECLOUD_ACCESS"):  # it reaches the boss, and not its database
            raise DatabaseAway(
                f"this command reads the cluster's database, and {where(url)} does not exist",
                "run it on the boss's machine, or set DATABASE_URL in the settings to the boss's database",
            )
        raise DatabaseAway(f"{where(url)} does not exist: no boss has run here yet", "python admin.py start")
    engine = make_engine(url, answer_s)
    if not any_schema:
        require_schema(engine)
    return engine


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """Open a connection that sees one state of the database. Raises `DatabaseAway`."""
    try:
        with engine.connect() as connection, connection.begin():
            yield connection
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseAway(explain(error, engine.url)) from None


# --- status ------------------------------------------------------------------------------------


def status(engine: Engine, now: float | None = None) -> Status:
    """Return counts, runs, workers, VMs and the boss. Raises `DatabaseAway`."""
    with snapshot(engine) as connection:
        now = database_now(connection) if now is None else now
        boss = boss_status(connection, now)
        runs = _runs(connection, boss, now)
        workers = _counts(connection, schema.workers.c.state)
        on_duty = connection.execute(
            sa.select(
                schema.workers.c.worker, schema.workers.c.trouble, schema.workers.c.lane_since,
                schema.workers.c.lane_wanted_since,
            )
            .where(schema.workers.c.state.in_(("up", "draining")))
            .order_by(schema.workers.c.worker)
        ).all()  # fmt: skip
        return Status(
            tasks={state.value: sum(run.states.get(state.value, 0) for run in runs) for state in TaskState},
            init_tasks=_added(run.inits for run in runs),
            workers={"up": 0, "draining": 0, **workers},
            vms=_counts(connection, schema.vms.c.state),
            runs=runs,
            boss=boss,
            left_s=_left_of_all(runs),
            transfers=transfers(connection),
            transfers_turns=sum(row.lane_since is not None for row in on_duty),
            transfers_waiting=sum(row.lane_wanted_since is not None for row in on_duty),
            troubles=[f"worker {row.worker}: {row.trouble}" for row in on_duty if row.trouble],
            suspects=suspect_tasks(connection),
            cloud_troubles=boot_history.troubles(connection, now) if boss.leads else [],
            at=now,
        )


def boss_status(connection: Connection, now: float) -> BossStatus:
    """Return who leads, according to the leader's row. `now`: by the clock of that row (`database_now`)."""
    row = connection.execute(sa.select(schema.leader)).first()
    if row is None:
        return BossStatus(False)
    silent_s = max(0.0, now - row.renewed_at) if row.holder else None
    leads = silent_s is not None and silent_s < BOSS_SILENT_S
    seen_at = row.renewed_at or None
    return BossStatus(leads, row.holder, row.epoch, row.since, seen_at, silent_s)


def run_status(engine: Engine, name: str, now: float | None = None) -> RunStatus:
    """Return one run. Raises `NoSuchRun`, `DatabaseAway`."""
    with snapshot(engine) as connection:
        run_no = find_run(connection, name)
        now = database_now(connection) if now is None else now
        return next(run for run in _runs(connection, boss_status(connection, now), now) if run.run_no == run_no)


def find_run(connection: Connection, name: str) -> int:
    """Return the number of a run. Raises `NoSuchRun`."""
    runs, archived = schema.runs, schema.archived_runs
    run_no = connection.execute(sa.select(runs.c.run_no).where(runs.c.name == name)).scalar()
    if run_no is not None:
        return int(run_no)
    old = connection.execute(
        sa.select(archived).where(archived.c.name == name).order_by(archived.c.run_no.desc())
    ).first()
    if old is not None:
        raise NoSuchRun(f"run {name!r} was archived after KEEP_RUNS_DAYS; its tasks were: {_states(old.states)}")
    known = [row.name for row in connection.execute(sa.select(runs.c.name).order_by(runs.c.run_no.desc()).limit(1000))]
    raise NoSuchRun(f"there is no run {name!r}" + near(name, known), "python admin.py status --all shows all runs")


def _states(counts: str) -> str:
    states = msgspec.json.decode(counts, type=dict[str, int])
    return ", ".join(f"{count:,} {state}" for state, count in sorted(states.items()))


def near(name: str, known: Sequence[str]) -> str:
    """Return the most similar known names, as the end of a sentence."""
    import difflib

    nearest = difflib.get_close_matches(name, known, 3)
    return f"; near to it: {', '.join(nearest)}" if nearest else ""


def _counts(connection: Connection, column: sa.Column[Any]) -> dict[str, int]:
    return {row[0]: row[1] for row in connection.execute(sa.select(column, sa.func.count()).group_by(column))}


def _added(counts: Iterator[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for state, count in one.items():
            total[state] = total.get(state, 0) + count
    return total


def _runs(connection: Connection, boss: BossStatus, now: float) -> list[RunStatus]:
    """Return all runs, unended ones first, then the newest."""
    tasks = schema.tasks.c
    keys = (tasks.state, tasks.run_no, tasks.init)
    states: dict[int, dict[str, int]] = {}
    inits: dict[int, dict[str, int]] = {}
    # The index over these three columns covers the query; no row is read.
    for state, run_no, init, count in connection.execute(sa.select(*keys, sa.func.count()).group_by(*keys)):
        if init != schema.ARRAY:
            (inits if init else states).setdefault(run_no, {})[state] = count
    for run_no, pending in pending_counts(connection).items():
        states[run_no] = _added(iter((states.get(run_no, {}), pending)))
    arrays = array_views(connection)
    rows = connection.execute(sa.select(schema.runs)).all()
    totals = {row.run_no: sum(states.get(row.run_no, {}).values()) for row in rows if row.ended_at is None}
    for run_no, small in small_arrays(connection, totals).items():
        known = {array.id for array in arrays.get(run_no, ())}
        arrays.setdefault(run_no, []).extend(array for array in small if array.id not in known)
    rates = _rates(connection, now)
    unrunnable = boot_history.unrunnable(connection)
    found = []
    for row in rows:
        run = RunStatus(
            row.name,
            row.run_no,
            row.created_at,
            row.ended_at,
            row.held,
            states.get(row.run_no, {}),
            inits.get(row.run_no, {}),
            arrays=arrays.get(row.run_no, []),
        )
        found.append(_with_time_left(connection, run, boss, rates.get(row.run_no), unrunnable.get(row.run_no, "")))
    return sorted(found, key=lambda run: (run.left == 0, -run.run_no))


def _rates(connection: Connection, now: float) -> dict[int, float]:
    """Return each run's recent ends per second."""
    attempts = schema.attempts.c
    ended = sa.and_(attempts.state == "ended", attempts.ended_at.is_not(None))
    oldest = connection.execute(
        sa.select(attempts.ended_at).where(ended).order_by(attempts.ended_at.desc()).offset(RATE_ENDS - 1).limit(1)
    ).scalar()
    since = max(min(now - RATE_LEAST_S, oldest if oldest is not None else 0.0), now - RATE_MOST_S)
    # Reading a row is slow, since it also holds outputs: with many ends within seconds, count only the last ones.
    many = connection.execute(
        sa.select(attempts.ended_at).where(ended).order_by(attempts.ended_at.desc()).offset(RATE_ROWS - 1).limit(1)
    ).scalar()
    since = max(since, many if many is not None else 0.0)
    query = (
        sa.select(attempts.run_no, sa.func.count(), sa.func.min(attempts.ended_at), sa.func.min(attempts.assigned_at))
        .where(attempts.ended_at >= since, attempts.state == "ended", attempts.cause != "stopped")
        .group_by(attempts.run_no)
    )
    rates = {}
    for run_no, count, first_end, first_start in connection.execute(query):
        # If the run began within the window, count its time from its first start.
        began = max(since, min(first_end, first_start))
        rates[run_no] = count / max(1.0, now - began)
    return rates


def _with_time_left(
    connection: Connection, run: RunStatus, boss: BossStatus, rate: float | None, unrunnable: str
) -> RunStatus:
    if not run.left:
        return run
    left_s: float | None = None
    if run.held:
        left_from = "unknown: the run is held"
    elif not boss.leads:
        left_from = "unknown: no boss leads"
    elif unrunnable:
        left_from = f"unknown: {unrunnable}"
    elif rate:
        left_s, left_from = run.left / rate, "at the present rate"
    else:
        left_s, left_from = _guessed(connection, run)
    return msgspec.structs.replace(run, rate_per_s=rate, left_s=left_s, left_from=left_from)


def _guessed(connection: Connection, run: RunStatus) -> tuple[float | None, str]:
    """Estimate the remaining time from the user's guessed run-times, if all remaining tasks have one and some run."""
    running = run.states.get("running", 0)
    if not running:
        return None, "unknown: nothing runs"
    if run.left > GUESSED_TASKS:
        return None, "unknown: no task has ended lately"
    tasks = schema.tasks.c
    total, known = connection.execute(
        sa.select(sa.func.sum(tasks.runtime_s), sa.func.count(tasks.runtime_s)).where(
            tasks.run_no == run.run_no, tasks.init == 0, tasks.state.in_(UNFINISHED)
        )
    ).one()
    if known < run.left:
        return None, "unknown: no task has ended lately"
    return total / running, "by runtime_s of its tasks"


def _left_of_all(runs: Sequence[RunStatus]) -> float | None:
    """Return the longest remaining time, since runs share the workers; None if that of any run is unknown."""
    left = [run.left_s for run in runs if run.left]
    known = [seconds for seconds in left if seconds is not None]
    return max(known) if known and len(known) == len(left) else None


# --- lists ------------------------------------------------------------------------------------


def tasks(
    engine: Engine,
    states: Sequence[str] = (),
    run: str = "",
    label: str = "",
    limit: int = 50,
    offset: int = 0,
    newest: bool = False,
) -> TaskPage:
    """Return tasks that match all conditions. `newest`: the last of them first. Raises `NoSuchRun`, `DatabaseAway`."""
    rows, runs, attempts = schema.tasks, schema.runs, schema.attempts
    with snapshot(engine) as connection:
        conditions: list[sa.ColumnElement[bool]] = [schema.is_listed()]
        if run:
            conditions.append(rows.c.run_no == find_run(connection, run))
        if states:
            conditions.append(rows.c.state.in_(states))
        if label:
            conditions.append(schema.labelled(label))
        total = int(connection.execute(sa.select(sa.func.count()).select_from(rows).where(*conditions)).scalar() or 0)
        order = rows.c.task_no.desc() if newest else rows.c.task_no
        # Select the page first, then join its attempts: otherwise the database would read the attempts of all tasks.
        page = sa.select(rows).where(*conditions).order_by(order).limit(limit).offset(offset).subquery()
        query = (
            sa.select(
                page,
                runs.c.name.label("run_name"),
                attempts.c.worker,
                attempts.c.started_at,
                attempts.c.ended_at,
                attempts.c.run_s,
                _tries(page.c.task_no),
            )
            .select_from(page)
            .join(runs, runs.c.run_no == page.c.run_no)
            .outerjoin(attempts, (attempts.c.task_no == page.c.task_no) & (attempts.c.number == page.c.attempts))
            .order_by(page.c.task_no.desc() if newest else page.c.task_no)
        )
        return TaskPage([_task_line(row) for row in connection.execute(query)], total)


def _tries(task_no: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    """Count the started attempts of a task. A lost attempt may have started; one that was returned before has not."""
    tried = schema.attempts.alias("tried")
    unstarted = tried.c.state.in_(("assigned", "returned")) & tried.c.started_at.is_(None)
    query = sa.select(sa.func.count()).select_from(tried).where(tried.c.task_no == task_no, ~unstarted)
    return query.scalar_subquery().label("tries")


def _task_line(row: Any) -> TaskLine:
    return TaskLine(
        run=row.run_name,
        id=row.id,
        task_no=row.task_no,
        state=row.state,
        reason=row.reason,
        attempts=row.tries,
        changed_at=row.changed_at,
        priority=row.priority,
        init=row.init == schema.INIT,
        labels=msgspec.json.decode(row.labels, type=tuple[str, ...]),
        worker=row.worker or "",
        started_at=row.started_at,
        ended_at=row.ended_at,
        run_s=row.run_s,
    )


LOOKED_FOR = 5
"""Failures for which the whole run is searched for the producer of a file: in a large run a search takes a while."""


def failures(engine: Engine, run: str = "", limit: int = 50) -> list[Failure]:
    """Return failed tasks, each with what the user needs to repair it, in list order. Raises `NoSuchRun`,
    `DatabaseAway`."""
    rows, runs, attempts = schema.tasks, schema.runs, schema.attempts
    with snapshot(engine) as connection:
        conditions = [rows.c.state == TaskState.FAILED.value, rows.c.init != schema.ARRAY]
        if run:
            conditions.append(rows.c.run_no == find_run(connection, run))
        # Select the page first, then join its attempts: otherwise the database would sort all of them with their
        # outputs.
        page = sa.select(rows).where(*conditions).order_by(rows.c.task_no).limit(limit).subquery()
        query = (
            sa.select(
                runs.c.name, page.c.id, page.c.reason, _tries(page.c.task_no), attempts.c.error, attempts.c.command,
                attempts.c.exit_code, attempts.c.signal, attempts.c.stderr, attempts.c.worker, attempts.c.cause,
                page.c.task_no,
            )
            .select_from(page)
            .join(runs, runs.c.run_no == page.c.run_no)
            .outerjoin(attempts, (attempts.c.task_no == page.c.task_no) & (attempts.c.number == page.c.attempts))
            .order_by(page.c.task_no)
        )  # fmt: skip
        return [
            Failure(
                run=row.name,
                id=row.id,
                error=with_maker(connection, row.task_no, row.cause, row.error or row.reason, wide=index < LOOKED_FOR),
                command=row.command or "",
                exit_code=row.exit_code,
                signal=row.signal,
                stderr=(row.stderr or "")[-TAIL_CHARS:],
                attempts=row.tries,
                worker=row.worker or "",
            )
            for index, row in enumerate(connection.execute(query).all())
        ]


# --- workers, VMs, context --------------------------------------------------------------------


def workers(engine: Engine, states: Sequence[str] = ("up", "draining", "lost")) -> list[WorkerView]:
    """Return workers in these states and their tasks. Raises `DatabaseAway`."""
    with snapshot(engine) as connection:
        return worker_views(connection, states)


def worker_views(connection: Connection, states: Sequence[str] = ("up", "draining")) -> list[WorkerView]:
    """Return the same within a snapshot."""
    rows = schema.workers
    query = sa.select(rows).where(rows.c.state.in_(states)).order_by(rows.c.since, rows.c.worker)
    found = [(row, msgspec.json.decode(row.hello, type=Hello)) for row in connection.execute(query)]
    running, queued = _doing(connection)
    # The newer process of a home continues the tasks of the older one.
    on_duty = [(row, hello) for row, hello in found if hello.home and row.state in ("up", "draining")]
    heirs = {(row.key_name, hello.home): row.worker for row, hello in on_duty}
    homes = _homes(connection, set(running) | set(queued), {row.worker for row, _ in found})
    for worker, home in homes.items():
        heir = heirs.get(home)
        if heir is not None:
            running.setdefault(heir, []).extend(running.pop(worker, []))
            queued[heir] = queued.get(heir, 0) + queued.pop(worker, 0)
    return [_worker_view(row, hello, running.get(row.worker, []), queued.get(row.worker, 0)) for row, hello in found]


def _worker_view(row: Any, hello: Hello, running: list[str], queued: int) -> WorkerView:
    return WorkerView(
        worker=row.worker,
        state=row.state,
        since=row.since,
        heard_at=row.heard_at,
        host=hello.host,
        addresses=hello.addresses,
        pid=hello.pid,
        vm_no=row.vm_no,
        key_name=row.key_name,
        resources=hello.resources,
        labels=hello.labels,
        lives_s=hello.lives_s,
        reason=row.reason,
        trouble=row.trouble,
        running=running,
        queued=queued,
        lane_since=row.lane_since,
        lane_wanted_since=row.lane_wanted_since,
    )


def _homes(connection: Connection, holders: set[str], known: set[str]) -> dict[str, tuple[str, str]]:
    gone = sorted(holders - known)
    if not gone:
        return {}
    rows = schema.workers.c
    query = sa.select(rows.worker, rows.key_name, rows.hello).where(rows.worker.in_(gone))
    return {
        row.worker: (row.key_name, msgspec.json.decode(row.hello, type=Hello).home) for row in connection.execute(query)
    }


def _doing(connection: Connection) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return the running tasks of each worker (RUN:ID), and the number of its further assigned tasks."""
    attempts, rows, runs = schema.attempts, schema.tasks, schema.runs
    query = (
        sa.select(attempts.c.worker, runs.c.name, rows.c.id)
        .select_from(attempts)
        .join(rows, rows.c.task_no == attempts.c.task_no)
        .join(runs, runs.c.run_no == rows.c.run_no)
        .where(attempts.c.state.in_(RUNNING_ATTEMPTS))
        .order_by(attempts.c.started_at)
    )
    running: dict[str, list[str]] = {}
    for row in connection.execute(query):
        running.setdefault(row.worker, []).append(f"{row.name}:{row.id}")
    counted = (
        sa.select(attempts.c.worker, sa.func.count())
        .where(attempts.c.state == "assigned")
        .group_by(attempts.c.worker)
    )  # fmt: skip
    return running, {row[0]: row[1] for row in connection.execute(counted)}


def vms(engine: Engine, gone: bool = False) -> list[VmView]:
    """Return VMs, newest last; `gone`: include VMs that no longer exist. Raises `DatabaseAway`."""
    with snapshot(engine) as connection:
        return vm_views(connection, gone)


def unended_vms(engine: Engine) -> list[tuple[int, str]]:
    """Return number and state of VMs that have not ended, in a database of any schema. Raises `DatabaseAway`."""
    rows = schema.vms
    query = sa.select(rows.c.vm_no, rows.c.state).where(rows.c.state != VmState.GONE.value).order_by(rows.c.vm_no)
    with snapshot(engine) as connection:
        return [(row.vm_no, row.state) for row in connection.execute(query)]


def vm_views(connection: Connection, gone: bool = False) -> list[VmView]:
    """Return the same within a snapshot."""
    rows = schema.vms
    query = sa.select(rows).order_by(rows.c.vm_no)
    query = query if gone else query.where(rows.c.state != VmState.GONE.value)
    return [VmView(**schema.vm_values(row)) for row in connection.execute(query)]


def revoked_keys(engine: Engine) -> set[str]:
    """Return names of revoked keys. Raises `DatabaseAway`."""
    with snapshot(engine) as connection:
        return {row.name for row in connection.execute(sa.select(schema.revoked_keys))}


def context(engine: Engine) -> dict[str, str]:
    """Return the cluster's key/value table. Raises `DatabaseAway`."""
    with snapshot(engine) as connection:
        return {
            row.name: row.value for row in connection.execute(sa.select(schema.context).order_by(schema.context.c.name))
        }
