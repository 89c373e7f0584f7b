"""What only real databases can do to the store: odd values, other readers, and what a batch costs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import msgspec
import pytest
import sqlalchemy as sa
from databases import statements
from pymysql.connections import Connection
from sqlalchemy.engine import Engine

from boss.core.model.rows import AttemptRow, PushAnswered, RunRow, StoredTasks, TaskMoved, WorkerRow, Writes
from boss.core.tasks.merging import new_task
from boss.store import writing as writing_module
from boss.store.statements import StatementQueue, transaction
from boss.store.store import CommitRefused, Store, StoreAway
from boss.store.writing import Writing
from ecloud.db import schema
from ecloud.db.database import make_engine
from ecloud.model.tasks import AttemptState, Cause, ManifestEntry, Outcome, TaskDefinition, TaskState
from ecloud.model.wire import Hello
from ecloud.queries import status

NOW = 1_700_000_000.25
STATEMENTS_A_BATCH = 15
DEADLINE_S = 30.0


@pytest.fixture
def store(engine: Engine) -> Store:
    """The store of a boss that leads, with tasks 1 to 1,000 in run `r`."""
    store = Store(engine)
    store.lead("one:1", NOW)
    stored = []
    for number in range(1, 1_001):
        definition = TaskDefinition(str(number), ("true",))
        task = new_task(definition, number, 1, keep_dir=False)
        task.row.state = TaskState.RUNNING
        stored.append(task)
    store.commit(1, Writes(runs={1: RunRow(1, "r", NOW)}, stored=StoredTasks(stored)), NOW)
    return store


def write(store: Store, **fields: object) -> None:
    """Commit the next batch."""
    store.commit(store.last_batch() + 1, Writes(**fields), NOW)  # type: ignore[arg-type]


def ended(task_no: int, **fields: object) -> AttemptRow:
    """A first attempt that ended."""
    outcome = Outcome(task_no, 1, **{"cause": Cause.EXIT, **fields})  # type: ignore[arg-type]
    return AttemptRow(task_no, 1, 1, "w1", AttemptState.ENDED, NOW, NOW + 1, NOW + 2, "", outcome)


# --- odd values ---------------------------------------------------------------------------------

LONE = "\ud800"
ODD = {
    "numbers beyond 64 bits": {"exit_code": 2**70, "signal": -(2**70)},
    "no numbers": {"fetch_s": float("nan"), "run_s": float("inf"), "store_s": -float("inf")},
    "numbers at the brink": {"run_s": 1.7976931348623157e308, "store_s": 5e-324, "max_rss_mb": float("nan")},
    "NUL bytes": {"error": "a\0b", "command": "\0", "stdout": "\0" * 1_000, "stderr": "\0x"},
    "half characters": {"error": f"a{LONE}b", "command": LONE, "stdout": LONE, "stderr": LONE},
    "half characters in a manifest": {"manifest": (ManifestEntry(f"x/{LONE}", 3, "aa"), ManifestEntry("y\0"))},
    "far too long texts": {"error": "e" * 1_000_000, "command": "c" * 9_000_000, "stderr": "🦀" * 1_000_000},
    "texts that look like SQL": {"error": "'); DROP TABLE tasks; -- %s %(x)s ? :x \\", "command": "%", "stdout": "\\"},
}


@pytest.mark.parametrize("fields", ODD.values(), ids=ODD.keys())
def test_an_odd_outcome_is_stored_with_all_others_of_its_batch(store: Store, fields: dict[str, object]) -> None:
    moved = {number: TaskMoved(TaskState.FAILED, str(fields.get("error", "")), 1) for number in (1, 2, 3)}
    write(store, tasks=moved, attempts={(1, 1): ended(1), (2, 1): ended(2, **fields), (3, 1): ended(3)})
    page = status.tasks(store.engine, ["failed"])
    assert [line.id for line in page.tasks] == ["1", "2", "3"]
    assert [failure.id for failure in status.failures(store.engine)] == ["1", "2", "3"]
    # What a boss reads back at its start can be read, too.
    row = msgspec.structs.replace(ended(2, **fields), state=AttemptState.PROMOTING)
    write(store, attempts={(2, 1): row})
    (again,) = store.load().attempts
    assert again.outcome is not None
    assert again.outcome.cause is Cause.EXIT


def test_what_an_odd_worker_says_of_itself_is_stored(store: Store) -> None:
    hello = Hello("n", "worker", host=LONE, labels=("\0", LONE), resources={"cpus": 1.0})
    odd = WorkerRow("w1", "k", "up", NOW, NOW, hello, None, LONE * 10, "t" * 1_000_000)
    well = WorkerRow("w2", "k", "up", NOW, NOW, Hello("n", "worker"))
    write(store, workers={"w1": odd, "w2": well})
    assert [row.worker for row in store.load().workers] == ["w1", "w2"]
    assert [view.host for view in status.workers(store.engine)] == ["?", ""]


def test_a_value_that_no_driver_can_send_is_refused_and_the_store_continues(store: Store) -> None:
    with pytest.raises(CommitRefused):
        write(store, tasks={1: TaskMoved(TaskState.READY, attempts=2**70)})
    assert store.last_batch() == 1
    write(store, tasks={1: TaskMoved(TaskState.READY, attempts=2)})


def packets(store: Store, **fields: Any) -> int:
    """The packets in which the driver sends one batch, COMMIT included."""
    sent: list[str] = []
    batch = store.last_batch() + 1
    true_execute = Connection._execute_command

    def execute(connection: Connection, command: int, sql: str | bytes) -> None:
        sent.append(str(sql)[:60])
        true_execute(connection, command, sql)

    with mock.patch.object(Connection, "_execute_command", execute):
        store.commit(batch, Writes(**fields), NOW)
    return len(sent)


def test_a_batch_takes_one_round_trip_to_a_server_and_a_large_one_a_few_more(mariadb_engine: Engine) -> None:
    store = Store(mariadb_engine)
    store.lead("one:1", NOW)
    run, push = {1: RunRow(1, "r", NOW)}, [PushAnswered("p", 1, {}, {})]
    stored = [new_task(TaskDefinition("a", ("true",)), 1, 1, keep_dir=False)]
    given = {(1, 1): AttemptRow(1, 1, 1, "w", AttemptState.ASSIGNED, NOW)}
    write(store, runs={9: RunRow(9, "other", NOW)})  # reads the next numbers
    assert packets(store, runs=run, stored=StoredTasks(stored), pushes=push, attempts=given) == 1
    assert [row.id for row in store.load().tasks] == ["a"]
    many = [new_task(TaskDefinition(str(no), ("x" * 4_000,)), no, 1, keep_dir=False) for no in range(2, 302)]
    assert 1 < packets(store, stored=StoredTasks(many)) < 12
    assert len(store.definitions(range(302))) == 301


def test_a_query_after_a_commit_leaves_no_snapshot_open_for_later_ones(mariadb_engine: Engine) -> None:
    store = Store(mariadb_engine)
    store.lead("one:1", NOW)
    write(store, context={"first": "1"})  # ends with a COMMIT in the packet
    names = sa.select(schema.context.c.name)

    def seen() -> bool:
        with transaction(mariadb_engine, writes=False) as connection:
            return "second" in set(connection.execute(names).scalars())

    assert not seen()
    other = make_engine(mariadb_engine.url)
    with transaction(other) as connection:
        connection.execute(sa.insert(schema.context).values(name="second", value="2"))
    other.dispose()
    assert seen()


def test_a_statement_refused_in_the_middle_of_a_packet_leaves_nothing_of_its_batch(mariadb_engine: Engine) -> None:
    store = Store(mariadb_engine)
    store.lead("one:1", NOW)
    stored = [new_task(TaskDefinition("a", ("true",)), 1, 1, keep_dir=False)]
    write(store, runs={1: RunRow(1, "r", NOW)}, stored=StoredTasks(stored))
    twice = [new_task(TaskDefinition("a", ("true",)), no, 1, keep_dir=False) for no in (2, 3)]  # one name
    with pytest.raises(CommitRefused, match="Duplicate"):
        write(store, runs={1: RunRow(1, "changed", NOW)}, stored=StoredTasks(twice), context={"x": "y"})
    snapshot = store.load()
    assert [run.name for run in snapshot.runs] == ["r"]
    assert "x" not in snapshot.context
    write(store, context={"x": "y"})
    assert store.load().context["x"] == "y"


def test_a_server_that_dies_in_the_middle_of_a_packet_is_away(mariadb_engine: Engine) -> None:
    store = Store(mariadb_engine)
    store.lead("one:1", NOW)
    batch = store.last_batch() + 1
    mine = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
    killer = sa.create_engine(mariadb_engine.url, poolclass=sa.NullPool)

    def kill(queue: StatementQueue) -> None:
        with killer.connect() as connection:
            for number in connection.exec_driver_sql(mine).scalars().all():
                connection.exec_driver_sql(f"KILL {number}")
        true_flush(queue)

    true_flush = StatementQueue.flush
    with mock.patch.object(StatementQueue, "flush", kill), pytest.raises(StoreAway):
        store.commit(batch, Writes(context={"x": "y"}), NOW)
    assert store.last_batch() == batch - 1
    store.commit(batch, Writes(context={"x": "y"}), NOW)
    assert store.load().context["x"] == "y"


def test_a_server_that_dies_in_the_middle_of_a_large_push_has_nothing_of_it(
    mariadb_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same packed batch is then read again from its beginning."""
    store = Store(mariadb_engine)
    store.lead("one:1", NOW)
    batch = store.last_batch() + 1
    tasks = [new_task(TaskDefinition(f"t{no}", ("x" * 200,)), no, 1, keep_dir=False) for no in range(1, 8_001)]
    writes = Writes(runs={1: RunRow(1, "r", NOW)}, stored=StoredTasks(tasks))
    mine = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
    killer = sa.create_engine(mariadb_engine.url, poolclass=sa.NullPool)
    true_part, parts = Writing._stored_part, iter(range(100))

    def part(writing: Writing, *arguments: Any) -> None:
        true_part(writing, *arguments)
        if next(parts) == 3:
            with killer.connect() as connection:
                for number in connection.exec_driver_sql(mine).scalars().all():
                    connection.exec_driver_sql(f"KILL {number}")

    monkeypatch.setattr(writing_module, "TASKS_A_PART", 1_500)
    monkeypatch.setattr(Writing, "_stored_part", part)
    with pytest.raises(StoreAway):
        store.commit(batch, writes, NOW)
    assert next(parts) == 4, "it was in the middle of the tasks"
    assert store.last_batch() == batch - 1
    snapshot = store.load()
    assert (snapshot.runs, snapshot.tasks, snapshot.next_task_no) == ([], [], 1)
    store.commit(batch, writes, NOW)
    assert [row.id for row in store.load().tasks] == [f"t{no}" for no in range(1, 8_001)]
    killer.dispose()


# --- readers ------------------------------------------------------------------------------------


def test_a_reader_never_holds_the_boss_up_and_sees_one_state(store: Store) -> None:
    count = sa.select(sa.func.count()).where(schema.tasks.c.state == "failed")
    with status.snapshot(store.engine) as reading:
        assert reading.execute(count).scalar() == 0
        for number in range(1, 6):
            write(store, tasks={number: TaskMoved(TaskState.FAILED)}, attempts={(number, 1): ended(number)})
        write(store, dropped_tasks=[1])
        assert reading.execute(count).scalar() == 0
    with status.snapshot(store.engine) as reading:
        assert reading.execute(count).scalar() == 4


def test_a_reader_does_not_wait_for_a_batch_under_way(store: Store) -> None:
    answered = threading.Event()

    def ask() -> None:
        other = make_engine(store.engine.url)
        assert status.status(other, NOW).tasks["running"] == 1_000
        assert status.run_status(other, "r", NOW).left == 1_000
        other.dispose()
        answered.set()

    with transaction(store.engine) as connection:
        connection.exec_driver_sql("UPDATE leader SET batch = batch + 1")
        connection.exec_driver_sql("UPDATE tasks SET state = 'failed'")
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        assert answered.wait(DEADLINE_S)
    asking.join(DEADLINE_S)


def test_a_lock_that_another_holds_is_waited_for_and_told_as_away(sqlite_engine: Engine) -> None:
    store = Store(sqlite_engine)
    store.lead("one:1", NOW)
    impatient = make_engine(sqlite_engine.url)
    sa.event.listen(impatient, "connect", lambda raw, record: raw.execute("PRAGMA busy_timeout = 10").close())
    other = Store(impatient)
    with transaction(sqlite_engine), pytest.raises(StoreAway, match="another process writes it"):
        other.lead("two:2", NOW, replace=True)
    impatient.dispose()


# --- what a batch costs -------------------------------------------------------------------------

REASONS: dict[str, Callable[[int], str]] = {
    "no reason": lambda number: "",
    "each its own reason": lambda number: f"reason {number}",
    "two and two alike": lambda number: str(number // 2),
    "a few reasons": lambda number: str(number % 7),
}


@pytest.mark.parametrize("reason_of", REASONS.values(), ids=REASONS.keys())
def test_a_thousand_outcomes_are_a_handful_of_statements(store: Store, reason_of: Callable[[int], str]) -> None:
    writes = thousand_outcomes(reason_of)
    before = server_count(store.engine)
    with statements(store.engine) as asked:
        store.commit(2, writes, NOW)
    assert len(asked) <= STATEMENTS_A_BATCH, asked
    # The server's own count: what the driver splits or joins is seen too. Three at most are the asking itself.
    assert server_count(store.engine) - before <= STATEMENTS_A_BATCH + 3
    assert store.load().states == {1: {"failed" if reason_of(1) else "succeeded": 1_000}}


def test_a_thousand_more_orders_are_no_more_statements(store: Store) -> None:
    given = {
        (number, 1): AttemptRow(number, 1, 1, f"w{number % 50}", AttemptState.ASSIGNED, NOW + number / 1_000)
        for number in range(1, 1_001)
    }
    with statements(store.engine) as asked:
        store.commit(2, Writes(attempts=given), NOW)
    assert len(asked) <= 3, asked


def thousand_outcomes(reason_of: Callable[[int], str]) -> Writes:
    """What a batch of a thousand outcomes writes, tasks 1 to 1,000."""
    writes = Writes()
    for number in range(1, 1_001):
        reason = reason_of(number)
        cause = Cause.EXIT if reason else Cause.SUCCESS
        writes.tasks[number] = TaskMoved(TaskState.FAILED if reason else TaskState.SUCCEEDED, reason, 1)
        writes.attempts[(number, 1)] = ended(number, cause=cause, error=reason, stdout="x" * 100)
    return writes


def server_count(engine: Engine) -> int:
    """Statements that a server has answered; 0 for a file. Each test worker has a server of its own."""
    if engine.dialect.name == "sqlite":
        return 0
    with engine.connect() as connection:
        query = "SHOW GLOBAL STATUS WHERE Variable_name IN ('Com_insert', 'Com_update', 'Com_delete', 'Com_select')"
        return sum(int(row[1]) for row in connection.exec_driver_sql(query))
