"""The store: the only writer. One transaction per batch, bulk statements only, and the leader's row locked in each.

Hot statements are plain SQL with bare placeholders: that is what the drivers turn into one statement for many rows (facts: 9 to 24 us
per outcome instead of 174). Reading back is in `boss.loading`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from boss import loading
from boss.core.effects import SelectTasks
from boss.core.rows import AttemptRow, RunImage, Snapshot, TaskStored, VmRow, WorkerRow, Writes
from ecloud.database import explain
from ecloud.schema import to_database
from ecloud.tasks import definition_json

LEADER_SILENT_S = 15.0
"""A leader that has not written for this long is taken for dead, where nothing better is known."""
ROWS_A_STATEMENT = 1_000
DELETES_A_STATEMENT = 5_000
BYTES_A_STATEMENT = 4 * 1024 * 1024
"""Definitions of one statement: well below max_allowed_packet (16 MB by default)."""

_encode = msgspec.json.encode


class StoreAway(Exception):
    """The database can't be written now. The same batch is committed again later."""


class CommitRefused(Exception):
    """The database will never take this batch. A fault of ours: the boss starts anew from the store."""


class Deposed(Exception):
    """Another boss leads. Nothing was written; this one leaves."""


class AnotherBossLeads(Exception):
    """Another boss leads and lives; the text says who, where and since when."""


class Store:
    """The tables behind one boss."""

    def __init__(self, engine: Engine, archive: bool = True) -> None:
        self.engine = engine
        self._archive = archive
        self._dialect = engine.dialect.name
        self._epoch = 0
        self._sql = _Statements(self._dialect)

    # --- leading ------------------------------------------------------------------------------------

    def lead(self, holder: str, now: float, replace: bool = False) -> int:
        """Become the leader: a new epoch. Raises `AnotherBossLeads` where one wrote lately, unless it is to be replaced."""
        with self._transaction() as connection:
            query = "SELECT epoch, holder, since, renewed_at FROM leader WHERE id = 1"
            row = connection.exec_driver_sql(query + self._sql.for_update).first()
            if row is None:
                values = (1, 1, 0, self._text(holder), now, now)
                insert = self._sql.insert("leader", ("id", "epoch", "batch", "holder", "since", "renewed_at"))
                connection.exec_driver_sql(insert, values)
                self._epoch = 1
                return 1
            held_by = row.holder.decode() if isinstance(row.holder, bytes) else row.holder
            if not replace and held_by and now - row.renewed_at < LEADER_SILENT_S:
                raise AnotherBossLeads(f"a boss leads already: {held_by}, heard {max(0, now - row.renewed_at):.0f} s ago")
            self._epoch = row.epoch + 1
            update = "UPDATE leader SET epoch = ?, holder = ?, since = ?, renewed_at = ? WHERE id = 1"
            connection.exec_driver_sql(self._sql(update), (self._epoch, self._text(holder), now, now))
            return self._epoch

    def renew(self, now: float) -> None:
        """Say that the leader lives, when there is nothing to commit. Raises `Deposed`, `StoreAway`."""
        with self._transaction() as connection:
            self._lock_leader(connection, None, now)

    def resign(self) -> None:
        """The next boss need not wait."""
        with self._transaction() as connection:
            update = "UPDATE leader SET holder = ?, renewed_at = 0 WHERE id = 1 AND epoch = ?"
            connection.exec_driver_sql(self._sql(update), (self._text(""), self._epoch))

    def last_batch(self) -> int:
        """The number of the last batch that was committed: did my commit land?"""
        with self._transaction() as connection:
            return int(connection.exec_driver_sql("SELECT batch FROM leader WHERE id = 1").scalar() or 0)

    def _lock_leader(self, connection: Connection, batch: int | None, now: float) -> None:
        if batch is None:
            update, values = "UPDATE leader SET renewed_at = ? WHERE id = 1 AND epoch = ?", (now, self._epoch)
        else:
            update = "UPDATE leader SET batch = ?, renewed_at = ? WHERE id = 1 AND epoch = ?"
            values = (batch, now, self._epoch)  # type: ignore[assignment]
        if connection.exec_driver_sql(self._sql(update), values).rowcount != 1:
            raise Deposed(f"epoch {self._epoch} is over: another boss leads")

    # --- one batch ----------------------------------------------------------------------------------

    def commit(self, batch: int, writes: Writes, now: float) -> None:
        """Write a batch as one transaction. Raises `StoreAway`, `CommitRefused`, `Deposed`; nothing is written then.

        With `StoreAway` the commit may have landed all the same: `last_batch` tells.
        """
        with self._transaction() as connection:
            self._lock_leader(connection, batch, now)
            self._write_runs(connection, writes)
            self._write_stored(connection, writes.stored, now)
            self._write_moves(connection, writes, now)
            self._write_attempts(connection, writes.attempts.values())
            self._write_workers(connection, writes.workers.values())
            self._write_vms(connection, writes.vms.values())
            self._write_small(connection, writes)
            self._drop(connection, writes, now)

    def _write_runs(self, connection: Connection, writes: Writes) -> None:
        columns = ("run_no", "name", "created_at", "held", "ended_at")
        rows = [
            (run.run_no, self._text(run.name), run.created_at, self._text(run.held), run.ended_at)
            for run in writes.runs.values()
        ]
        self._many(connection, self._sql.upsert("runs", columns, ("run_no",)), rows)

    def _write_stored(self, connection: Connection, stored: Sequence[TaskStored], now: float) -> None:
        if not stored:
            return
        text = self._text
        columns = (
            "task_no", "run_no", "id", "state", "reason", "attempts", "retries_used", "not_before", "changed_at",
            "init", "priority", "asks", "runtime_s", "labels", "retries", "keep_dir", "body_bytes", "definition_hash",
        )  # fmt: skip
        rows = []
        edges = []
        numbers = []
        definitions = []
        for task in stored:
            row = task.row
            numbers.append(row.task_no)
            definitions.append((row.task_no, definition_json(task.definition)))
            edges += [(row.task_no, on_task_no, met_by.value) for on_task_no, met_by in row.dependencies]
            rows.append((
                row.task_no, row.run_no, text(row.id), row.state.value, text(row.reason), row.attempts,
                row.retries_used, row.not_before, now, int(row.init), row.priority, text(_json(row.asks)),
                row.runtime_s, text(_json(task.definition.labels)), text(_json(row.retries)), int(row.keep_dir),
                row.body_bytes, row.definition_hash,
            ))  # fmt: skip
        self._delete(connection, "dependencies", "task_no", numbers)
        self._many(connection, self._sql.upsert("tasks", columns, ("task_no",)), rows)
        upsert = self._sql.upsert("definitions", ("task_no", "definition"), ("task_no",))
        for part in _by_bytes(definitions):
            self._many(connection, upsert, part)
        self._many(connection, self._sql.insert("dependencies", ("task_no", "on_task_no", "met_by")), edges)

    def _write_moves(self, connection: Connection, writes: Writes, now: float) -> None:
        """One statement for all tasks that moved alike: nearly always one or two in a batch."""
        groups: dict[tuple[str, str, int, int, float], list[int]] = {}
        for task_no, move in writes.tasks.items():
            key = (move.state.value, move.reason, move.attempts, move.retries_used, move.not_before)
            groups.setdefault(key, []).append(task_no)
        singles = []
        for (state, reason, attempts, retries_used, not_before), numbers in groups.items():
            values = (state, self._text(reason), attempts, retries_used, not_before, now)
            if len(numbers) == 1:
                singles.append((*values, numbers[0]))
                continue
            for start in range(0, len(numbers), ROWS_A_STATEMENT):
                part = numbers[start : start + ROWS_A_STATEMENT]
                marks = ", ".join("?" * len(part))
                connection.exec_driver_sql(self._sql(_MOVE + f"WHERE task_no IN ({marks})"), (*values, *part))
        if singles:
            self._move_one_by_one(connection, singles)

    def _move_one_by_one(self, connection: Connection, singles: list[tuple[Any, ...]]) -> None:
        """Tasks that moved each with a reason of its own: one statement by CASE for hundreds, whatever the dialect."""
        columns = ("state", "reason", "attempts", "retries_used", "not_before")
        for start in range(0, len(singles), 100):
            part = singles[start : start + 100]
            cases, values = [], []
            for index, column in enumerate(columns):
                cases.append(f"{column} = CASE task_no " + "WHEN ? THEN ? " * len(part) + "END")
                for single in part:
                    values += [single[6], single[index]]
            marks = ", ".join("?" * len(part))
            statement = f"UPDATE tasks SET {', '.join(cases)}, changed_at = ? WHERE task_no IN ({marks})"
            numbers = [single[6] for single in part]
            connection.exec_driver_sql(self._sql(statement), (*values, part[0][5], *numbers))

    def _write_attempts(self, connection: Connection, attempts: Iterable[AttemptRow]) -> None:
        """All in one statement. Rows without outputs stay small; the rest is split by size."""
        rows = [self._attempt_values(attempt) for attempt in attempts]
        statement = self._sql.upsert("attempts", _ATTEMPT_COLUMNS, ("task_no", "number"))
        for part in _by_bytes(rows):
            self._many(connection, statement, part)

    def _attempt_values(self, attempt: AttemptRow) -> tuple[Any, ...]:
        text, outcome = self._text, attempt.outcome
        base = (
            attempt.task_no, attempt.number, attempt.run_no, text(attempt.worker), attempt.state.value,
            attempt.assigned_at, attempt.started_at, attempt.ended_at,
            text(attempt.reason) if attempt.reason else None,
        )  # fmt: skip
        if outcome is None:
            return base + (None,) * (len(_ATTEMPT_COLUMNS) - len(base))
        return (
            *base, outcome.cause.value, outcome.exit_code, outcome.signal,
            text(outcome.error) if outcome.error else None,
            text(outcome.command) if outcome.command else None,
            text(outcome.stdout) if outcome.stdout else None,
            text(outcome.stderr) if outcome.stderr else None,
            outcome.fetch_s, outcome.run_s, outcome.store_s, outcome.max_rss_mb,
            _encode(outcome.manifest) if outcome.manifest else None,
        )  # fmt: skip

    def _write_workers(self, connection: Connection, workers: Iterable[WorkerRow]) -> None:
        text = self._text
        columns = ("worker", "key_name", "state", "since", "heard_at", "hello", "vm_no", "reason", "trouble")
        rows = [
            (
                text(row.worker), text(row.key_name), row.state, row.since, row.heard_at, _encode(row.hello), row.vm_no,
                text(row.reason), text(row.trouble),
            )
            for row in workers
        ]  # fmt: skip
        self._many(connection, self._sql.upsert("workers", columns, ("worker",)), rows)

    def _write_vms(self, connection: Connection, vms: Iterable[VmRow]) -> None:
        text = self._text
        columns = (
            "vm_no", "pool", "state", "since", "size", "boot_nonce", "cloud_id", "worker", "keep_alive", "reason",
            "intended_at", "hello_at", "gone_at",
        )  # fmt: skip
        rows = [
            (
                row.vm_no, text(row.pool), row.state, row.since, text(_json(row.size)), text(row.boot_nonce),
                text(row.cloud_id), text(row.worker), int(row.keep_alive), text(row.reason), row.intended_at,
                row.hello_at, row.gone_at,
            )
            for row in vms
        ]  # fmt: skip
        self._many(connection, self._sql.upsert("vms", columns, ("vm_no",)), rows)

    def _write_small(self, connection: Connection, writes: Writes) -> None:
        text = self._text
        pushes = [
            (text(push.push_id), push.run_no, text(_json(push.states)), text(_json(push.decisions)))
            for push in writes.pushes
        ]
        columns = ("push_id", "run_no", "states", "decisions")
        self._many(connection, self._sql.upsert("pushes", columns, ("push_id",)), pushes)
        kept = [(text(name), text(value)) for name, value in writes.context.items() if value is not None]
        self._many(connection, self._sql.upsert("context", ("name", "value"), ("name",)), kept)
        gone = [text(name) for name, value in writes.context.items() if value is None]
        self._delete(connection, "context", "name", gone)
        revoked = [(text(name),) for name in writes.revoked_keys]
        self._many(connection, self._sql.upsert("revoked_keys", ("name",), ("name",)), revoked)
        self._delete(connection, "workers", "worker", [text(name) for name in writes.dropped_workers])

    def _drop(self, connection: Connection, writes: Writes, now: float) -> None:
        numbers = list(writes.dropped_tasks)
        for run_no in writes.dropped_runs:
            query = self._sql("SELECT task_no FROM tasks WHERE run_no = ?")
            numbers += [row[0] for row in connection.exec_driver_sql(query, (run_no,))]
            if self._archive:
                self._archive_run(connection, run_no)
        for table in ("tasks", "definitions", "dependencies", "attempts"):
            self._delete(connection, table, "task_no", numbers)
        self._delete(connection, "pushes", "run_no", writes.dropped_runs)
        self._delete(connection, "runs", "run_no", writes.dropped_runs)

    def _archive_run(self, connection: Connection, run_no: int) -> None:
        run = connection.exec_driver_sql(
            self._sql("SELECT name, created_at, ended_at FROM runs WHERE run_no = ?"), (run_no,)
        ).first()
        query = self._sql("SELECT state, COUNT(*) FROM tasks WHERE run_no = ? AND init = 0 GROUP BY state")
        states = {row[0]: row[1] for row in connection.exec_driver_sql(query, (run_no,))}
        if run is not None and states:
            columns = ("run_no", "name", "created_at", "ended_at", "states")
            values = [(run_no, run.name, run.created_at, run.ended_at, self._text(_json(states)))]
            self._many(connection, self._sql.upsert("archived_runs", columns, ("run_no",)), values)

    # --- reading for the core -----------------------------------------------------------------------

    def load(self) -> Snapshot:
        """Everything unfinished, for a boss that starts."""
        with self._transaction(writes=False) as connection:
            return loading.load(connection, self._epoch)

    def load_run(self, name: str) -> RunImage | None:
        """A run whole; None where there is none of that name."""
        with self._transaction(writes=False) as connection:
            return loading.load_run(connection, name)

    def select(self, wanted: SelectTasks) -> tuple[list[RunImage], set[int], str]:
        """The runs in which a selection lies, the tasks meant, and a sentence where none could be found."""
        with self._transaction(writes=False) as connection:
            return loading.select(connection, wanted)

    def definitions(self, task_nos: Sequence[int]) -> dict[int, bytes]:
        """The stored definition of each task, as JSON."""
        found: dict[int, bytes] = {}
        with self._transaction(writes=False) as connection:
            for start in range(0, len(task_nos), ROWS_A_STATEMENT):
                part = tuple(task_nos[start : start + ROWS_A_STATEMENT])
                marks = ", ".join("?" * len(part))
                query = self._sql(f"SELECT task_no, definition FROM definitions WHERE task_no IN ({marks})")
                found.update({row[0]: row[1] for row in connection.exec_driver_sql(query, part)})
        return found

    # --- statements ---------------------------------------------------------------------------------

    def _text(self, text: str) -> str | bytes:
        return to_database(text, self._dialect)

    def _many(self, connection: Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            connection.exec_driver_sql(statement, list(rows))

    def _delete(self, connection: Connection, table: str, column: str, values: Sequence[Any]) -> None:
        for start in range(0, len(values), DELETES_A_STATEMENT):
            part = tuple(values[start : start + DELETES_A_STATEMENT])
            marks = ", ".join("?" * len(part))
            connection.exec_driver_sql(self._sql(f"DELETE FROM {table} WHERE {column} IN ({marks})"), part)

    def _transaction(self, writes: bool = True) -> _Transaction:
        return _Transaction(self.engine, writes)


class _Transaction:
    """Begin and commit, with the driver's errors told apart by what can be done."""

    def __init__(self, engine: Engine, writes: bool) -> None:
        self._engine = engine
        self._writes = writes
        self._connection: Connection | None = None

    def __enter__(self) -> Connection:
        try:
            self._connection = self._engine.connect()
            if self._writes and self._engine.dialect.name == "sqlite":
                self._connection = self._connection.execution_options(writes=True)
            self._connection.begin()
        except sa.exc.SQLAlchemyError as error:
            self._close()
            raise self._told_apart(error) from error
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        assert self._connection is not None
        try:
            if error is None:
                self._connection.commit()
            else:
                self._connection.rollback()
        except sa.exc.SQLAlchemyError as failure:
            raise self._told_apart(error if error is not None else failure) from failure
        finally:
            self._close()
        if isinstance(error, sa.exc.SQLAlchemyError):
            raise self._told_apart(error) from error

    def _close(self) -> None:
        if self._connection is not None:
            try:
                self._connection.close()
            except sa.exc.SQLAlchemyError:
                self._connection.invalidate()

    def _told_apart(self, error: BaseException) -> Exception:
        sentence = explain(error, self._engine.url)
        if isinstance(error, (sa.exc.DataError, sa.exc.IntegrityError, sa.exc.ProgrammingError)):
            return CommitRefused(sentence)
        return StoreAway(sentence)


_MOVE = (
    "UPDATE tasks SET state = ?, reason = ?, attempts = ?, retries_used = ?, not_before = ?, changed_at = ? "
)
_ATTEMPT_COLUMNS = (
    "task_no", "number", "run_no", "worker", "state", "assigned_at", "started_at", "ended_at", "reason", "cause",
    "exit_code", "signal", "error", "command", "stdout", "stderr", "fetch_s", "run_s", "store_s", "max_rss_mb",
    "manifest",
)  # fmt: skip


class _Statements:
    """SQL for one dialect; made once."""

    def __init__(self, dialect: str) -> None:
        self._sqlite = dialect == "sqlite"
        self._made: dict[object, str] = {}
        self.for_update = "" if self._sqlite else " FOR UPDATE"

    def __call__(self, sql: str) -> str:
        """Question marks as this driver wants them."""
        return sql if self._sqlite else sql.replace("?", "%s")

    def insert(self, table: str, columns: Sequence[str]) -> str:
        """A row that is not there."""
        return self._cached((table, columns), lambda: self._insert(table, columns))

    def _insert(self, table: str, columns: Sequence[str]) -> str:
        marks = ", ".join("?" * len(columns))
        return self(f"INSERT INTO {table} ({', '.join(_quoted(columns))}) VALUES ({marks})")

    def upsert(self, table: str, columns: Sequence[str], key: Sequence[str]) -> str:
        """A row that may be there. `VALUES()` keeps PyMySQL's way of joining rows into one statement."""
        return self._cached((table, columns, key), lambda: self._upsert(table, columns, key))

    def _upsert(self, table: str, columns: Sequence[str], key: Sequence[str]) -> str:
        others = [column for column in _quoted(columns) if column not in key] or list(key)
        if self._sqlite:
            changes = ", ".join(f"{column} = excluded.{column}" for column in others)
            return self._insert(table, columns) + f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"
        changes = ", ".join(f"{column} = VALUES({column})" for column in others)
        return self._insert(table, columns) + f" ON DUPLICATE KEY UPDATE {changes}"

    def _cached(self, key: object, make: Callable[[], str]) -> str:
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = make()
        return made


_RESERVED = frozenset({"signal"})


def _quoted(columns: Sequence[str]) -> list[str]:
    """MySQL reserves `signal`; SQLite takes backticks too."""
    return [f"`{column}`" if column in _RESERVED else column for column in columns]


def _json(value: object) -> str:
    return _encode(value).decode()


def _by_bytes(rows: Sequence[tuple[Any, ...]]) -> Iterable[list[tuple[Any, ...]]]:
    """Rows in parts whose texts and blobs stay below `BYTES_A_STATEMENT`."""
    part: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        row_size = sum(len(value) for value in row if isinstance(value, (str, bytes)))
        if part and size + row_size > BYTES_A_STATEMENT:
            yield part
            part, size = [], 0
        part.append(row)
        size += row_size
    if part:
        yield part
