"""Writes a batch's rows: bulk statements only, none per task. Runs inside the store's transaction.

No content of a peer's message may produce a row that the database refuses: this module cuts and repairs texts and
bounds numbers. Runs and tasks are inserted, never upserted: `ON DUPLICATE KEY` would change whichever row has the same
name, which may be another one's. An existing row is first deleted by its number. Numbers below the next numbers, which
the leader's row has, belong to existing rows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec

from boss.core.model.rows import (
    ArrayRow,
    AttemptRow,
    BootRow,
    PoolRow,
    RunRow,
    TaskRow,
    TaskStored,
    VmRow,
    VmSpan,
    WorkerRow,
    Writes,
)
from boss.store.statements import BYTES_A_STATEMENT, ROWS_A_STATEMENT, StatementQueue, Statements, in_list
from ecloud.db import schema
from ecloud.model.ranges import Indices
from ecloud.model.tasks import FAILURE_TAIL_BYTES, AttemptState, Cause, Outcome, Retries
from ecloud.model.wire import MAX_NAME_CHARS

TASKS_A_PART = 5_000
"""Stored tasks whose values are prepared together."""
TEXTS_KEPT = 10_000
MOVES_ALIKE = 20
"""At least this many tasks with the same move get a statement of their own."""
CASES_A_STATEMENT = 100
MAX_COMMAND_CHARS = 4 * 1024 * 1024
MAX_ERROR_CHARS = 64 * 1024
MAX_REASON_CHARS = 4 * 1024
MAX_CLOUD_ID_CHARS = 128
_MAX_INT = 2**31 - 1
_MAX_FLOAT = 1e300
MAX_STAMPS_BYTES = 64 * 1024

_MOVE = "UPDATE tasks SET state = ?, reason = ?, attempts = ?, retries_used = ?, not_before = ?, changed_at = ? "
_RUN_COLUMNS = ("run_no", "name", "created_at", "held", "ended_at")
_TASK_COLUMNS = (
    "task_no", "run_no", "id", "state", "reason", "attempts", "retries_used", "not_before", "changed_at", "init",
    "priority", "asks", "runtime_s", "labels", "retries", "keep_dir", "body_bytes", "definition_hash", "inputs",
    "makes",
)  # fmt: skip
_ATTEMPT_COLUMNS = (
    "task_no", "number", "run_no", "worker", "state", "assigned_at", "started_at", "ended_at", "reason", "cause",
    "exit_code", "signal", "error", "command", "stdout", "stderr", "fetch_s", "run_s", "store_s", "max_rss_mb",
    "manifest", "fetch_bytes", "cached_bytes", "value", "stamps",
)  # fmt: skip
_WORKER_COLUMNS = (
    "worker", "key_name", "state", "since", "heard_at", "hello", "vm_no", "reason", "trouble", "lane_since",
    "lane_wanted_since", "moving", "moving_at", "killed_at",
)  # fmt: skip
_VM_COLUMNS = (
    "vm_no", "pool", "state", "since", "size", "boot_nonce", "cloud_id", "worker", "keep_alive", "reason",
    "intended_at", "hello_at", "gone_at", "started_at", "first_task_at", "ending_at", "end_asked", "cause", "said",
)  # fmt: skip
_BOOT_COLUMNS = ("vm_no", "address", "host_key", "steps", "visit")
_POOL_COLUMNS = ("pool", "closed", "since", "until", "boots", "boot_s_p50", "boot_s_p95")
_PUSH_COLUMNS = ("push_id", "run_no", "states", "decisions", "answered_at")
_SUSPECT_COLUMNS = ("task_no", "run_no", "lost", "failed", "reason", "at")
_ARCHIVE_COLUMNS = ("run_no", "name", "created_at", "ended_at", "states")
_GIVEN_COLUMNS = _ATTEMPT_COLUMNS[:9]
_STOPPING_COLUMNS = (*_GIVEN_COLUMNS, "asks")
_SHORT_COLUMNS = (
    *_GIVEN_COLUMNS, "cause", "exit_code", "fetch_s", "run_s", "store_s", "max_rss_mb", "fetch_bytes", "cached_bytes",
)  # fmt: skip
_ARRAY_COLUMNS = (
    "task_no", "run_no", "first_no", "indices", "pending", "pending_count", "pending_state", "states", "each_of",
)  # fmt: skip
_PROMOTING = AttemptState.PROMOTING

_NO_RETRIES = Retries()
_Values = tuple[Any, ...]
NextNumbers = tuple[int, int, int]
"""The next numbers of tasks, runs and VMs, as the leader's row keeps them."""


class Writing:
    """Writes one batch into the tables."""

    def __init__(
        self, queue: StatementQueue, sql: Statements, archive: bool, numbers: NextNumbers | None = None
    ) -> None:
        """`numbers`: the next numbers, if known."""
        self._queue = queue
        self._sql = sql
        self._archive = archive
        self._numbers = numbers
        self._labels, self._asks = _Texts(sql), _Texts(sql)
        self._no_retries = sql.text(_json(_NO_RETRIES))
        self._command_chars = min(MAX_COMMAND_CHARS, sql.packet_bytes // 8)  # up to 4 bytes each

    def all(self, writes: Writes, now: float) -> NextNumbers | None:
        """Write everything, in the order of the fields of `Writes`. Returns the next numbers afterwards, if known."""
        if writes.stored or writes.runs or writes.vms:
            self._numbered(writes, now)
        self._moves(writes, now)
        self._queue.write_many(
            self._sql("UPDATE tasks SET asks = ? WHERE task_no = ?"),
            [(self._sql.text(_json(asks)), task_no) for task_no, asks in writes.grown.items()],
        )
        self._array_moves(writes)
        self._attempts(writes.attempts.values())
        self._workers(writes.workers.values())
        self._spans(writes.spans.values())
        self._pools(writes.pools.values())
        self._boots(writes.boots.values())
        self._small(writes, now)
        if writes.dropped_tasks or writes.dropped_runs:
            self._drop(writes)
        return self._numbers

    # --- rows with numbers that the boss assigns ---------------------------------------------------------------

    def _numbered(self, writes: Writes, now: float) -> None:
        next_task_no, next_run_no, next_vm_no = self._numbers or self._read_numbers()
        self._runs(writes.runs.values(), next_run_no)
        last_no = self._stored(writes.stored, next_task_no, now)
        self._vms(writes.vms.values())
        after = (
            max(next_task_no, last_no + 1),
            max([next_run_no, *(run_no + 1 for run_no in writes.runs)]),
            max([next_vm_no, *(vm_no + 1 for vm_no in writes.vms)]),
        )
        if after != (next_task_no, next_run_no, next_vm_no):
            update = "UPDATE leader SET next_task_no = ?, next_run_no = ?, next_vm_no = ? WHERE id = 1"
            self._queue.execute(self._sql(update), after)
        self._numbers = after

    def _read_numbers(self) -> NextNumbers:
        query = "SELECT next_task_no, next_run_no, next_vm_no FROM leader WHERE id = 1"
        [row] = self._queue.query(query)
        return int(row[0]), int(row[1]), int(row[2])

    def _put(self, table: str, columns: tuple[str, ...], rows: Sequence[_Values], replaced: Sequence[int]) -> None:
        """Insert rows whose first column is their number; `replaced`: numbers of those that may exist already."""
        self._queue.delete_rows(table, columns[0], replaced)
        self._queue.write_many(self._sql.insert(table, columns), rows)

    def _runs(self, runs: Collection[RunRow], next_no: int) -> None:
        text = self._sql.text
        rows = [(run.run_no, text(run.name), run.created_at, text(run.held), run.ended_at) for run in runs]
        self._put("runs", _RUN_COLUMNS, rows, [run.run_no for run in runs if run.run_no < next_no])

    def _stored(self, stored: Iterable[TaskStored], next_no: int, now: float) -> int:
        """In parts: the values of a million tasks would fill as much memory as the tasks. Returns the highest number
        of a task, 0 without any."""
        last_no, left = 0, iter(stored)
        while part := list(islice(left, TASKS_A_PART)):
            self._stored_part(part, next_no, now)
            last_no = max(last_no, *(_last_no(task.row) for task in part))
        return last_no

    def _stored_part(self, stored: Sequence[TaskStored], next_no: int, now: float) -> None:
        rows, definitions, edges, replaced = [], [], [], []
        for task in stored:
            row = task.row
            if row.task_no < next_no and not row.array:  # elements have their numbers before they have rows
                replaced.append(row.task_no)
            rows.append(self._task_values(task, now))
            definitions.append((row.task_no, task.json))
            edges += [(row.task_no, on_task_no, met_by.value) for on_task_no, met_by in row.dependencies]
        self._queue.delete_rows("dependencies", "task_no", replaced)
        self._put("tasks", _TASK_COLUMNS, rows, replaced)
        self._write_long("definitions", ("task_no", "definition"), ("task_no",), definitions)
        self._queue.write_many(self._sql.insert("dependencies", ("task_no", "on_task_no", "met_by")), edges)
        self._stored_arrays([task.row.elements for task in stored if task.row.elements is not None], replaced)

    def _task_values(self, task: TaskStored, now: float) -> _Values:
        row, text = task.row, self._sql.text
        return (
            row.task_no, row.run_no, text(row.id), row.state.value, self._reason(row.reason), row.attempts,
            row.retries_used, row.not_before, now, _kind(row), _whole(row.priority),
            self._asks.of(tuple(row.asks.items()), row.asks), _finite(row.runtime_s),
            self._labels.of(task.labels, task.labels),
            self._no_retries if row.retries == _NO_RETRIES else text(_json(row.retries)), int(row.keep_dir),
            row.body_bytes, row.definition_hash, text(_json(row.inputs)) if row.inputs else None,
            row.makes,
        )  # fmt: skip

    def _stored_arrays(self, arrays: Sequence[ArrayRow], replaced: Sequence[int]) -> None:
        for table in ("arrays", "array_entries"):
            self._queue.delete_rows(table, "task_no", replaced)
        if not arrays:
            return
        text = self._sql.text
        rows = [
            (
                row.task_no, row.run_no, row.first_no, text(row.indices), text(row.pending), row.pending_count,
                row.pending_state, text(_json(row.states)), text(_json(row.each)),
            )
            for row in arrays
        ]  # fmt: skip
        self._write_long("arrays", _ARRAY_COLUMNS, ("task_no",), rows)
        parts = [(row.task_no, part, entries) for row in arrays for part, entries in enumerate(row.entries)]
        self._write_long("array_entries", ("task_no", "part", "entries"), ("task_no", "part"), parts)

    def _array_moves(self, writes: Writes) -> None:
        """Write the changes of arrays. A dropped array is deleted at the end of the batch."""
        update = "UPDATE arrays SET pending = ?, pending_count = ?, pending_state = ?, states = ? WHERE task_no = ?"
        for row in writes.arrays.values():
            text = self._sql.text
            values = (text(row.pending), row.pending_count, row.pending_state, text(_json(row.states)), row.task_no)
            self._queue.execute(self._sql(update), values)

    def _vms(self, vms: Iterable[VmRow]) -> None:
        text = self._sql.text
        rows = [
            (
                row.vm_no, text(row.pool[:MAX_NAME_CHARS]), row.state.value, row.since, text(_json(row.size)),
                text(row.boot_nonce), text(row.cloud_id[:MAX_CLOUD_ID_CHARS]), text(row.worker), int(row.keep_alive),
                self._reason(row.reason), row.intended_at, row.hello_at, row.gone_at, row.started_at,
                row.first_task_at, row.ending_at, row.end_asked, row.cause, self._reason(row.said),
            )
            for row in vms
        ]  # fmt: skip
        self._queue.write_many(self._sql.upsert("vms", _VM_COLUMNS, ("vm_no",)), rows)

    def _spans(self, spans: Iterable[VmSpan]) -> None:
        update = self._sql(
            "UPDATE vms SET cloud_id = ?, started_at = ?, gone_at = ? WHERE vm_no = ? AND state = 'gone' AND "
            "(cloud_id = '' OR cloud_id = ?) AND (? = '' OR boot_nonce = ?)"
        )
        text = self._sql.text
        named = [(text(span.cloud_id[:MAX_CLOUD_ID_CHARS]), text(span.boot_nonce), span) for span in spans]
        rows = [
            (cloud_id, span.started_at, span.ended_at, span.vm_no, cloud_id, nonce, nonce)
            for cloud_id, nonce, span in named
        ]
        self._queue.write_many(update, rows)

    def _pools(self, pools: Iterable[PoolRow]) -> None:
        rows = [
            (
                self._sql.text(row.pool[:MAX_NAME_CHARS]), self._reason(row.closed), row.since, row.until, row.boots,
                row.boot_s_p50, row.boot_s_p95,
            )
            for row in pools
        ]  # fmt: skip
        self._queue.write_many(self._sql.upsert("pools", _POOL_COLUMNS, ("pool",)), rows)

    def _boots(self, boots: Iterable[BootRow]) -> None:
        text = self._sql.text
        rows = [
            (
                row.vm_no, text(row.address), text(row.host_key), text(_json(row.steps)),
                text(_json(row.visit)) if row.visit is not None else None,
            )
            for row in boots
        ]  # fmt: skip
        self._queue.write_many(self._sql.upsert("boots", _BOOT_COLUMNS, ("vm_no",)), rows)

    # --- changes of every batch --------------------------------------------------------------------

    def _moves(self, writes: Writes, now: float) -> None:
        """Write task moves: one statement for all tasks with the same move, which is nearly always one or two in a
        batch."""
        groups: dict[tuple[str, str, int, int, float], list[int]] = {}
        for task_no, move in writes.tasks.items():
            key = (move.state.value, move.reason, move.attempts, move.retries_used, move.not_before)
            groups.setdefault(key, []).append(task_no)
        unlike: list[tuple[int, _Values]] = []
        for (state, reason, *counts), numbers in groups.items():
            values = (state, self._reason(reason), *counts)
            if len(numbers) < MOVES_ALIKE and len(groups) > 1:
                unlike += [(number, values) for number in numbers]
                continue
            for start in range(0, len(numbers), ROWS_A_STATEMENT):
                part = in_list(numbers[start : start + ROWS_A_STATEMENT])
                self._queue.execute(self._sql(_MOVE + f"WHERE task_no IN ({part})"), (*values, now))
        piece: list[tuple[int, _Values]] = []
        size = 0
        for unlike_move in unlike:
            reason_bytes = 2 * len(unlike_move[1][1])  # escaped
            if piece and (len(piece) == CASES_A_STATEMENT or size + reason_bytes > BYTES_A_STATEMENT):
                self._move_unlike(piece, now)
                piece, size = [], 0
            piece.append(unlike_move)
            size += reason_bytes
        if piece:
            self._move_unlike(piece, now)

    def _move_unlike(self, moves: Sequence[tuple[int, _Values]], now: float) -> None:
        """Write many different moves in one statement with CASE, in SQL that all dialects support."""
        cases, values = [], []
        for index, column in enumerate(("state", "reason", "attempts", "retries_used", "not_before")):
            cases.append(f"{column} = CASE task_no " + "".join(f"WHEN {number} THEN ? " for number, _ in moves) + "END")
            values += [move[index] for _, move in moves]
        part = in_list([number for number, _ in moves])
        statement = f"UPDATE tasks SET {', '.join(cases)}, changed_at = ? WHERE task_no IN ({part})"
        self._queue.execute(self._sql(statement), (*values, now))

    def _attempts(self, attempts: Iterable[AttemptRow]) -> None:
        """Write attempts. Most have no outcome yet, or a short one: only the columns that they need are written."""
        groups: dict[tuple[str, ...], list[_Values]] = {
            columns: [] for columns in (_GIVEN_COLUMNS, _STOPPING_COLUMNS, _SHORT_COLUMNS, _ATTEMPT_COLUMNS)
        }
        for attempt in attempts:
            outcome = attempt.outcome
            if attempt.asks is not None:
                groups[_STOPPING_COLUMNS].append((*self._given_values(attempt), self._sql.text(_json(attempt.asks))))
            elif outcome is None:
                groups[_GIVEN_COLUMNS].append(self._given_values(attempt))
            elif _is_short(outcome):
                groups[_SHORT_COLUMNS].append(self._short_values(attempt, outcome))
            else:
                groups[_ATTEMPT_COLUMNS].append(self._attempt_values(attempt, outcome))
        for columns, rows in groups.items():
            self._write_long("attempts", columns, ("task_no", "number"), rows)

    def _given_values(self, attempt: AttemptRow) -> _Values:
        return (
            attempt.task_no, attempt.number, attempt.run_no, self._sql.text(attempt.worker), attempt.state.value,
            attempt.assigned_at, attempt.started_at, attempt.ended_at,
            self._reason(attempt.reason) if attempt.reason else None,
        )  # fmt: skip

    def _short_values(self, attempt: AttemptRow, outcome: Outcome) -> _Values:
        return (
            *self._given_values(attempt), outcome.cause.value, _whole(outcome.exit_code),
            _finite(outcome.fetch_s), _finite(outcome.run_s), _finite(outcome.store_s), _finite(outcome.max_rss_mb),
            max(0, outcome.fetch_bytes), max(0, outcome.cached_bytes),
        )  # fmt: skip

    def _attempt_values(self, attempt: AttemptRow, outcome: Outcome) -> _Values:
        text = self._sql.text
        return (
            *self._given_values(attempt), outcome.cause.value, _whole(outcome.exit_code), _whole(outcome.signal),
            text(outcome.error[:MAX_ERROR_CHARS]) if outcome.error else None,
            text(outcome.command[: self._command_chars]) if outcome.command else None,
            text(outcome.stdout[-FAILURE_TAIL_BYTES:]) if outcome.stdout else None,
            text(outcome.stderr[-FAILURE_TAIL_BYTES:]) if outcome.stderr else None,
            _finite(outcome.fetch_s), _finite(outcome.run_s), _finite(outcome.store_s), _finite(outcome.max_rss_mb),
            self._manifest(attempt, outcome),
            max(0, outcome.fetch_bytes), max(0, outcome.cached_bytes), outcome.value or None, _stamps(outcome),
        )  # fmt: skip

    def _manifest(self, attempt: AttemptRow, outcome: Outcome) -> bytes | None:
        """The manifest, which is needed until its files are published; if it is too long and nothing is to be
        published, it is omitted."""
        if not outcome.manifest:
            return None
        manifest, most = _encode(outcome.manifest), self._sql.value_bytes
        return None if most is not None and len(manifest) > most and attempt.state is not _PROMOTING else manifest

    def _reason(self, reason: str) -> str | bytes:
        return self._sql.text(reason[:MAX_REASON_CHARS])

    def _workers(self, workers: Iterable[WorkerRow]) -> None:
        text = self._sql.text
        rows = [
            (
                text(row.worker), text(row.key_name), str(row.state), row.since, row.heard_at, _encode(row.hello),
                row.vm_no, self._reason(row.reason), self._reason(row.trouble), row.lane_since, row.lane_wanted_since,
                text(_json(row.moving)) if row.moving is not None else None, row.moving_at,
                row.killed_at,
            )
            for row in workers
        ]  # fmt: skip
        self._write_long("workers", _WORKER_COLUMNS, ("worker",), rows)

    def _write_long(self, table: str, columns: tuple[str, ...], key: tuple[str, ...], rows: Sequence[_Values]) -> None:
        """Upsert rows that may hold values too long for one statement: the rest of such a value is appended in
        pieces."""
        statement = self._sql.upsert(table, columns, key)
        piece_bytes, value_bytes = self._sql.piece_bytes, self._sql.value_bytes
        longest = max(map(_longest, rows), default=0)
        if value_bytes is not None and longest > value_bytes:
            raise self._sql.too_long(f"a row of the table {table}", longest)
        if self._sql.sqlite or longest <= piece_bytes:
            self._queue.write_many(statement, rows)
            return
        heads, tails, short = [], [], []
        for row in rows:
            if _longest(row) <= piece_bytes:
                short.append(row)
                continue
            heads.append(tuple(value[:piece_bytes] if isinstance(value, bytes) else value for value in row))
            tails += [
                (column, value[start : start + piece_bytes], row[: len(key)])
                for column, value in zip(columns, row, strict=True)
                if isinstance(value, bytes)
                for start in range(piece_bytes, len(value), piece_bytes)
            ]
        self._queue.write_many(statement, short)
        for head in heads:
            self._queue.write_many(statement, [head])
        where = " AND ".join(f"{column} = ?" for column in key)
        for column, piece, numbers in tails:
            append = f"UPDATE {table} SET {column} = CONCAT({column}, ?) WHERE {where}"
            self._queue.execute(self._sql(append), (piece, *numbers))

    # --- occasional changes ------------------------------------------------------------------------

    def _small(self, writes: Writes, now: float) -> None:
        text, queue = self._sql.text, self._queue
        pushes = [
            (text(push.push_id), push.run_no, text(_json(push.states)), text(_json(push.decisions)), now)
            for push in writes.pushes
        ]
        queue.write_many(self._sql.upsert("pushes", _PUSH_COLUMNS, ("push_id",)), pushes)
        kept = [(text(name), text(value)) for name, value in writes.context.items() if value is not None]
        queue.write_many(self._sql.upsert("context", ("name", "value"), ("name",)), kept)
        gone = [(text(name),) for name, value in writes.context.items() if value is None]
        queue.write_many(self._sql("DELETE FROM context WHERE name = ?"), gone)
        revoked = [(text(name[:MAX_NAME_CHARS]),) for name in sorted(writes.revoked_keys)]
        queue.write_many(self._sql.insert_missing("revoked_keys", ("name",)), revoked)
        suspects = [
            (row.task_no, row.run_no, row.lost, int(row.failed), self._reason(row.reason), row.at)
            for row in writes.suspects.values()
            if row is not None
        ]
        queue.write_many(self._sql.upsert("suspects", _SUSPECT_COLUMNS, ("task_no",)), suspects)
        cleared = [task_no for task_no, row in writes.suspects.items() if row is None]
        queue.delete_rows("suspects", "task_no", cleared)
        for start in range(0, len(writes.dropped_workers), ROWS_A_STATEMENT):
            part = [text(name) for name in writes.dropped_workers[start : start + ROWS_A_STATEMENT]]
            marks = ", ".join("?" * len(part))
            queue.execute(self._sql(f"DELETE FROM workers WHERE worker IN ({marks})"), tuple(part))
        if writes.gone_before:
            self._forget_machines(writes.gone_before)
        if writes.answered_before:
            statement = (
                "DELETE FROM pushes WHERE COALESCE(answered_at, 0) < ? AND run_no NOT IN (SELECT run_no FROM runs)"
            )
            queue.execute(self._sql(statement), (writes.answered_before,))

    def _forget_machines(self, gone_before: float) -> None:
        over = "SELECT vm_no FROM vms WHERE state = 'gone' AND since < ?"
        for statement in (
            f"DELETE FROM boots WHERE vm_no IN ({over})",
            "DELETE FROM vms WHERE state = 'gone' AND since < ?",
            "DELETE FROM workers WHERE state IN ('gone', 'lost') AND since < ?",
        ):
            self._queue.execute(self._sql(statement), (gone_before,))

    def _drop(self, writes: Writes) -> None:
        self._drop_tasks(writes.dropped_tasks)
        for run_no in writes.dropped_runs:
            if self._archive:
                self._archive_run(run_no)
            query = self._sql("SELECT task_no FROM tasks WHERE run_no = ?")
            self._drop_tasks([row[0] for row in self._queue.query(query, (run_no,))])
        self._queue.delete_rows("runs", "run_no", writes.dropped_runs)

    def _drop_tasks(self, numbers: Sequence[int]) -> None:
        for table in ("tasks", "definitions", "dependencies", "attempts", "arrays", "array_entries"):
            self._queue.delete_rows(table, "task_no", numbers)
        self._queue.delete_rows("dependencies", "on_task_no", numbers)

    def _archive_run(self, run_no: int) -> None:
        query = self._sql("SELECT name, created_at, ended_at FROM runs WHERE run_no = ?")
        runs = self._queue.query(query, (run_no,))
        query = self._sql("SELECT state, COUNT(*) FROM tasks WHERE run_no = ? AND init = 0 GROUP BY state")
        states = {row[0]: row[1] for row in self._queue.query(query, (run_no,))}
        query = self._sql("SELECT pending_state, pending_count FROM arrays WHERE run_no = ? AND pending_count > 0")
        for row in self._queue.query(query, (run_no,)):
            states[row[0]] = states.get(row[0], 0) + int(row[1])
        for run in runs if states else ():
            values = [(run_no, run.name, run.created_at, run.ended_at, self._sql.text(_json(states)))]
            statement = self._sql.upsert("archived_runs", _ARCHIVE_COLUMNS, ("run_no",))
            self._queue.write_many(statement, values)


class _Texts:
    """The JSON of values that many tasks of a batch have in common: most are encoded once."""

    def __init__(self, sql: Statements) -> None:
        self._sql = sql
        self._known: dict[object, str | bytes] = {}

    def of(self, key: object, value: object) -> str | bytes:
        """The JSON of a value that differs from others as `key` does."""
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= TEXTS_KEPT:
                self._known.clear()
            known = self._known[key] = self._sql.text(_json(value))
        return known


def _is_short(outcome: Outcome) -> bool:
    """Whether it has neither texts nor files. Omitted columns keep their values: an outcome is recorded once, and later
    written with the same texts and files."""
    return not (
        outcome.stdout or outcome.stderr or outcome.manifest or outcome.error or outcome.command or outcome.value
        or outcome.signal is not None or outcome.stamps
    )  # fmt: skip


def _kind(row: TaskRow) -> int:
    return schema.ARRAY if row.elements is not None else int(row.init)


def _last_no(row: TaskRow) -> int:
    """The highest number that belongs to a task: an array's elements have their numbers from the beginning."""
    return row.task_no if row.elements is None else row.elements.first_no + Indices.of(row.elements.indices).count - 1


def _encode(value: object) -> bytes:
    """Encode as JSON. Repairs texts that are not valid Unicode, as `to_database` does."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value), ensure_ascii=False).encode("utf-8", "replace")


def _json(value: object) -> str:
    return _encode(value).decode()


def _longest(row: _Values) -> int:
    return max([len(value) for value in row if type(value) is bytes], default=0)


def _stamps(outcome: Outcome) -> bytes | None:
    """Those of a success; left out where a worker tells too much."""
    if not outcome.stamps or outcome.cause is not Cause.SUCCESS:
        return None
    data = _encode(outcome.stamps)
    return data if len(data) <= MAX_STAMPS_BYTES else None


def _whole(number: int | None) -> int | None:
    return None if number is None else max(-_MAX_INT, min(_MAX_INT, number))


def _finite(number: float | None) -> float | None:
    return number if number is None or -_MAX_FLOAT < number < _MAX_FLOAT else 0.0
