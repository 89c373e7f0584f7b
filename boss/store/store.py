"""The store: the only writer of the tables. One transaction per batch, each of which locks the leader's row. Owns
leadership and commits.

`boss.store.writing` turns a batch into statements; `boss.store.loading` reads back. The simulation has a twin of this
class (`sim.store`); tests/contract runs one suite against both.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from boss.core.model.effects import LoadCalls, LoadRun, LoadValues, SelectTasks
from boss.core.model.history import EPOCH_CHANCES, next_epoch
from boss.core.model.rows import PushAnswered, RunImage, Snapshot, Writes
from boss.store import call_values, loading
from boss.store.statements import (
    ROWS_A_STATEMENT,
    CommitRefused,
    StatementQueue,
    Statements,
    StoreAway,
    in_list,
    read,
    transaction,
)
from boss.store.writing import NextNumbers, Writing
from datastore.problem import PartAway
from ecloud.model.wire import CallEnded, CallValue

__all__ = ["AnotherBossLeads", "CommitRefused", "Deposed", "Store", "StoreAway"]

EPOCHS_KEPT = 1_000
"""Maximum ends of epochs kept: a peer that knows none of these bosses counts as a peer of another history."""
FRESH_TASKS, FRESH_BYTES = 1_000, 1_000_000
"""Definitions of at most this many tasks stay in memory until they are ordered; at most this many bytes of one
batch."""
LONG_COMMIT_S = 1.0
LEADER_SILENT_S = 15.0
"""A leader that has not written for this long counts as dead, if nothing better is known."""


class Deposed(Exception):
    """Another boss leads. Nothing was written; this one must leave."""


class AnotherBossLeads(PartAway):
    """Another boss leads and is alive. The text says which, where and since when."""


class Store:
    """The tables behind one boss. Called from one thread. `archive`: keep a summary of dropped runs."""

    def __init__(self, engine: Engine, archive: bool = True) -> None:
        self.engine = engine
        self._archive = archive
        self._epoch = 0
        self._holder = ""
        self._sql = Statements(engine.dialect.name)
        self._next: NextNumbers | None = None
        """The numbers in the leader's row; None if they must be read. Only this boss changes them while it leads."""
        self._fresh: dict[int, bytes] = {}
        """Definitions that were stored a moment ago: most are needed only once, when their tasks are ordered."""

    # --- leading ---------------------------------------------------------------------------------

    def lead(self, holder: str, now: float, replace: bool = False) -> int:
        """Become the leader in a new epoch. `holder`: who and where, for users. `now`: epoch seconds.

        Raises `AnotherBossLeads` if another one wrote recently, unless it is known to be dead (`replace`); `StoreAway`.
        """
        sql = self._sql
        columns = ("id", "epoch", "batch", "holder", "since", "renewed_at", "next_task_no", "next_run_no", "next_vm_no")
        with transaction(self.engine) as connection:
            connection.exec_driver_sql(sql.insert_missing("leader", columns), (1, 0, 0, sql.text(""), 0, 0, 1, 1, 1))
            query = f"SELECT epoch, holder, {sql.clock(now)} - renewed_at FROM leader WHERE id = 1{sql.for_update}"
            epoch, held_by, silent_s = connection.exec_driver_sql(query).one()
            held_by = held_by.decode("utf-8", "replace") if isinstance(held_by, bytes) else held_by
            if not replace and held_by and silent_s < LEADER_SILENT_S:
                raise AnotherBossLeads(f"a boss already leads: {held_by}, heard {max(0.0, silent_s):.0f} s ago")
            led = next_epoch(int(epoch), now, secrets.randbelow(EPOCH_CHANCES))
            self._begin_epoch(connection, led, holder, now)
            self._make_cluster_id(connection)
            if not sql.sqlite:
                sql.packet_bytes = int(connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar_one())
        self._epoch, self._holder = led, holder
        self._next, self._fresh = None, {}
        return self._epoch

    def _begin_epoch(self, connection: Connection, epoch: int, holder: str, now: float) -> None:
        """Record the last batch of the last epoch, and begin a new one."""
        sql = self._sql
        end = sql.insert_missing("epochs", ("epoch", "batch"))
        last = connection.exec_driver_sql("SELECT epoch, batch FROM leader WHERE id = 1").one()
        connection.exec_driver_sql(end, (int(last[0]), int(last[1])))
        keep = "SELECT epoch FROM epochs ORDER BY epoch DESC"
        kept = [int(row[0]) for row in connection.exec_driver_sql(f"{keep} LIMIT {EPOCHS_KEPT}")]
        connection.exec_driver_sql(sql("DELETE FROM epochs WHERE epoch < ?"), (min(kept),))
        update = f"UPDATE leader SET epoch = ?, holder = ?, since = ?, renewed_at = {sql.clock(now)} WHERE id = 1"
        connection.exec_driver_sql(sql(update), (epoch, sql.text(holder[:255]), now))

    def lead_above(self, epoch: int, now: float) -> int:
        """Continue to lead, in an epoch above `epoch`. Raises `StoreAway`, `Deposed`."""
        led = next_epoch(max(epoch, self._epoch), now, secrets.randbelow(EPOCH_CHANCES))
        with transaction(self.engine) as connection:
            query = f"SELECT epoch FROM leader WHERE id = 1{self._sql.for_update}"
            present = connection.exec_driver_sql(query).scalar()
            if present != self._epoch:
                raise self._deposed()
            self._begin_epoch(connection, led, self._holder, now)
        self._epoch = led
        return led

    def _make_cluster_id(self, connection: Connection) -> None:
        insert = self._sql.insert_missing("context", ("name", "value"))
        connection.exec_driver_sql(insert, (self._sql.text("cluster_id"), self._sql.text(secrets.token_hex(8))))

    @property
    def value_bytes(self) -> int | None:
        """The longest value that the database accepts, as read when this boss began to lead; None: no limit."""
        return self._sql.value_bytes

    @property
    def epoch(self) -> int:
        """The epoch in which `lead` began."""
        return self._epoch

    def holder(self) -> str:
        """The leader according to the tables; empty if there is none. Raises `StoreAway`."""
        with transaction(self.engine, writes=False) as connection:
            found = connection.exec_driver_sql("SELECT holder FROM leader WHERE id = 1").scalar() or ""
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)

    def renew(self, now: float) -> None:
        """Record that the leader is alive when there is nothing to commit. Raises `Deposed`, `StoreAway`."""
        with transaction(self.engine) as connection:
            update = f"UPDATE leader SET renewed_at = {self._sql.clock(now)} WHERE id = 1 AND epoch = ?"
            if connection.exec_driver_sql(self._sql(update), (self._epoch,)).rowcount != 1:
                raise self._deposed()

    def leads(self) -> bool:
        """Whether this boss still leads. From any thread. Raises `StoreAway`."""
        [row] = read(self.engine, "SELECT epoch FROM leader WHERE id = 1")
        return bool(row[0] == self._epoch)

    def resign(self) -> None:
        """Give up leadership, so that the next boss need not wait. Raises `StoreAway`."""
        with transaction(self.engine) as connection:
            update = "UPDATE leader SET holder = ?, renewed_at = 0 WHERE id = 1 AND epoch = ?"
            connection.exec_driver_sql(self._sql(update), (self._sql.text(""), self._epoch))

    def last_batch(self) -> int:
        """The number of the last committed batch, to find out whether a commit succeeded. Raises `StoreAway`."""
        with transaction(self.engine, writes=False) as connection:
            return int(connection.exec_driver_sql("SELECT batch FROM leader WHERE id = 1").scalar() or 0)

    # --- one batch -------------------------------------------------------------------------------

    def commit(self, batch: int, writes: Writes, now: float) -> None:
        """Write batch number `batch` (one more than the last) as one transaction.

        Raises `StoreAway`, `CommitRefused`, `Deposed`; then nothing is written. After `StoreAway` the commit may still
        have succeeded: `last_batch` tells, and committing the same batch again is harmless.
        """
        began = time.monotonic()
        known, self._next = self._next, None  # to be read again if the commit fails
        numbers = None
        self._forget_fresh(writes)
        with transaction(self.engine) as connection:
            queue = StatementQueue(connection)
            try:
                self._take_turn(queue, batch, now)
                numbers = Writing(queue, self._sql, self._archive, known).all(writes, now)
                took_s = time.monotonic() - began
                if took_s > LONG_COMMIT_S:
                    # A standby sees the row when this ends: it must not count the duration of this commit as silence.
                    queue.execute(f"UPDATE leader SET renewed_at = {self._sql.clock(now + took_s)} WHERE id = 1")
                queue.commit()
            except sa.exc.IntegrityError:
                connection.exec_driver_sql("ROLLBACK")
                if not self._has_written(connection, batch):
                    raise
        self._next = numbers
        self._keep_fresh(writes)

    def _forget_fresh(self, writes: Writes) -> None:
        if writes.dropped_tasks or writes.dropped_runs or len(writes.stored) > FRESH_TASKS:
            self._fresh.clear()
        for task in writes.stored if self._fresh else ():
            self._fresh.pop(task.row.task_no, None)

    def _keep_fresh(self, writes: Writes) -> None:
        if not 0 < len(writes.stored) <= FRESH_TASKS:
            return
        if sum([len(task.json) for task in writes.stored]) <= FRESH_BYTES:
            if len(self._fresh) > FRESH_TASKS:
                self._fresh.clear()
            self._fresh.update((task.row.task_no, task.json) for task in writes.stored)

    def _take_turn(self, queue: StatementQueue, batch: int, now: float) -> None:
        """Lock the leader's row and count the batch. Unless this boss leads and the batch follows the last one, it
        fails, since the column is never NULL, and the server skips the rest."""
        mine = f"epoch = {self._epoch:d} AND batch = {batch - 1:d}"
        counted = f"batch = CASE WHEN {mine} THEN {batch:d} ELSE NULL END"
        queue.execute(f"UPDATE leader SET {counted}, renewed_at = {self._sql.clock(now)} WHERE id = 1")

    def _has_written(self, connection: Connection, batch: int) -> bool:
        """Whether this batch is in the tables already. Raises `Deposed`, and `CommitRefused` if it does not follow the
        last one."""
        epoch, present = connection.exec_driver_sql("SELECT epoch, batch FROM leader WHERE id = 1").one()
        if epoch != self._epoch:
            raise self._deposed()
        if present not in (batch - 1, batch):
            raise CommitRefused(f"batch {batch} does not follow {present}")
        return bool(present == batch)

    def _require_leading(self, connection: Connection) -> None:
        """Raise `Deposed` if another boss leads: what it wrote would contradict what this one remembers."""
        if connection.exec_driver_sql("SELECT epoch FROM leader WHERE id = 1").scalar() != self._epoch:
            raise self._deposed()

    def _deposed(self) -> Deposed:
        return Deposed(f"epoch {self._epoch} has ended: another boss leads")

    # --- reading for the core --------------------------------------------------------------------

    def load(self) -> Snapshot:
        """Everything unfinished, for a boss that starts. Raises `StoreAway`."""
        with transaction(self.engine, writes=False) as connection:
            return loading.load(connection, self._epoch)

    def context(self) -> dict[str, str]:
        """The cluster's values by name: what a boss needs before it can load the tasks. Raises `StoreAway`."""
        with transaction(self.engine, writes=False) as connection:
            return loading.load_context(connection)

    def load_runs(self, wanted: Sequence[LoadRun]) -> list[tuple[RunImage | None, PushAnswered | None]]:
        """For the first ones, at least one: the run (None if no run has that name), and the result of the push (None if
        it was never committed). The last one may be a run whose tasks were read: it may be large. Raises `StoreAway`,
        `Deposed`."""
        heads = loading.read_heads(self.engine, self._sql, wanted)
        if heads.epoch != self._epoch:
            raise self._deposed()
        found: list[tuple[RunImage | None, PushAnswered | None]] = []
        for item in wanted:
            run, answered = heads.runs.get(item.name), heads.answered.get(item.push_id)
            if run is None or answered is not None:
                found.append((None, answered))
                continue
            ids = item.ids
            if ids is not None:
                named = any((item.name, id) in heads.tasks for id in ids)
                ids = tuple(dict.fromkeys([*(ids if named else ()), *heads.inits.get(item.name, ())]))
            if ids == ():
                found.append((RunImage(run, [], is_part=True), None))
                continue
            with transaction(self.engine, writes=False) as connection:
                self._require_leading(connection)
                found.append((loading.load_run(connection, item.name, ids), None))
            break
        return found

    def load_calls(self, wanted: LoadCalls) -> tuple[list[CallEnded], bool]:
        """The state of calls of a run, and whether there are more. Raises `StoreAway`, `Deposed`."""
        with transaction(self.engine, writes=False) as connection:
            self._require_leading(connection)
            return loading.load_calls(connection, wanted)

    def select(self, wanted: SelectTasks) -> tuple[list[RunImage], set[int], str]:
        """The runs that a selection touches, the selected tasks, and a sentence if none could be selected.

        Raises `StoreAway`, `Deposed`.
        """
        with transaction(self.engine, writes=False) as connection:
            self._require_leading(connection)
            return loading.select(connection, wanted)

    def load_values(self, wanted: LoadValues) -> tuple[list[CallValue], bool]:
        """A page of the values that a call needs, and whether there are more. Raises `StoreAway`, `Deposed`."""
        with transaction(self.engine, writes=False) as connection:
            self._require_leading(connection)
            return call_values.load_values(connection, wanted)

    def needed_values(self, task_nos: Sequence[int], most_bytes: int) -> dict[int, tuple[CallValue, ...] | None]:
        """The values of the calls that these depend on, by task_no; None if they are larger. Raises `StoreAway`."""
        with transaction(self.engine, writes=False) as connection:
            return call_values.needed_values(connection, task_nos, most_bytes)

    def definitions(self, task_nos: Sequence[int]) -> dict[int, bytes]:
        """The stored definition of each task, as JSON. Tasks that no longer exist are omitted. Raises `StoreAway`."""
        fresh = self._fresh
        found = {task_no: fresh.pop(task_no) for task_no in task_nos if task_no in fresh} if fresh else {}
        task_nos = [task_no for task_no in task_nos if task_no not in found] if found else task_nos
        if not task_nos:
            return found
        with transaction(self.engine, writes=False) as connection:
            for start in range(0, len(task_nos), ROWS_A_STATEMENT):
                part = in_list(task_nos[start : start + ROWS_A_STATEMENT])
                query = f"SELECT task_no, definition FROM definitions WHERE task_no IN ({part})"
                found.update((row[0], row[1]) for row in connection.exec_driver_sql(query))
        return found
