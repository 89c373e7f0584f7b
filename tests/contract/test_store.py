"""What the core relies on of a store: one suite for SQLite, a real MariaDB and the simulation's twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from boss.core.boss import Boss
from boss.core.model.config import BossConfig
from boss.core.model.effects import LoadCalls, LoadRun, LoadValues, Reads, SelectTasks
from boss.core.model.history import EPOCH_CHANCES
from boss.core.model.rows import (
    AttemptRow,
    BootRow,
    PushAnswered,
    RunImage,
    RunRow,
    StoredTasks,
    TaskMoved,
    TaskRow,
    TaskStored,
    VmRow,
    VmSpan,
    WorkerRow,
    Writes,
)
from boss.core.tasks.merging import new_task
from boss.store import loading
from boss.store.store import LEADER_SILENT_S, AnotherBossLeads, CommitRefused, Deposed, Store
from ecloud.db import schema
from ecloud.model import wire
from ecloud.model.tasks import (
    ArrayOf,
    AttemptState,
    Call,
    Cause,
    Condition,
    ManifestEntry,
    Outcome,
    Retries,
    TaskDefinition,
    TaskState,
    definition_json,
)
from ecloud.model.vm_states import VmState
from ecloud.model.wire import Hello
from sim.store import Store as Twin
from sim.store import Tables

NOW = 1_700_000_000.25
DAY_S = 86_400.0
AnyStore = Any  # Store and its twin: the same methods


@pytest.fixture(params=["sqlite", "mariadb", "twin"])
def new_store(request: pytest.FixtureRequest) -> Callable[[], AnyStore]:
    """Makes bosses' stores, all on the same empty tables."""
    if request.param == "twin":
        tables = Tables()
        return lambda: Twin(tables)
    engine = request.getfixturevalue(f"{request.param}_engine")
    return lambda: Store(engine)


@pytest.fixture
def store(new_store: Callable[[], AnyStore]) -> AnyStore:
    """The store of a boss that leads."""
    store = new_store()
    store.lead("one:1", NOW)
    return store


def stored(task_no: int, id: str, *, after: dict[int, Condition] | None = None, **fields: Any) -> TaskStored:
    """A task of run 1 (or `run_no`) as a push stores it."""
    run_no, state = fields.pop("run_no", 1), fields.pop("state", TaskState.READY)
    definition = TaskDefinition(id=id, **{"commands": ("true",), **fields})
    task = new_task(definition, task_no, run_no, keep_dir=False)
    task.row.state = state
    task.row.dependencies = tuple((after or {}).items())
    return task


def push(store: AnyStore, *tasks: TaskStored, run: RunRow | None = None, **fields: Any) -> None:
    """Commit tasks with their run."""
    run = run or RunRow(1, "r", NOW)
    write(store, runs={run.run_no: run}, stored=StoredTasks(tasks), **fields)


def write(store: AnyStore, **fields: Any) -> None:
    """Commit the next batch."""
    store.commit(store.last_batch() + 1, Writes(**fields), NOW)


def load_run(store: AnyStore, name: str, ids: Sequence[str] | None = None) -> RunImage | None:
    """One run, as a push needs it."""
    [(image, _)] = store.load_runs([LoadRun(1, name, "", tuple(ids) if ids is not None else None)])
    return image


def load_push(store: AnyStore, push_id: str) -> PushAnswered | None:
    """What a push came to."""
    [(_, answered)] = store.load_runs([LoadRun(1, "?", push_id)])
    return answered


def image(store: AnyStore, run: str = "r") -> dict[str, TaskRow]:
    """The run's tasks by id."""
    found = load_run(store, run)
    assert found is not None
    return {row.id: row for row in found.tasks}


def ended(task_no: int, number: int, **fields: Any) -> AttemptRow:
    """An attempt that ended well, or as told."""
    outcome = Outcome(task_no, number, **{"cause": Cause.SUCCESS, "exit_code": 0, **fields})
    return AttemptRow(task_no, number, 1, "w1", AttemptState.ENDED, NOW, NOW + 1, NOW + 2, "", outcome)


# --- leading ------------------------------------------------------------------------------------


def test_each_leader_has_a_higher_epoch_and_the_cluster_keeps_its_id(new_store: Callable[[], AnyStore]) -> None:
    first, second = new_store(), new_store()
    epoch = first.lead("one:1", NOW)
    later = second.lead("two:2", NOW, replace=True)
    assert later > epoch, "in the same millisecond"
    assert first.load().cluster_id == second.load().cluster_id != ""
    assert second.load().epoch == later


def test_an_epoch_has_time_in_it_and_says_where_the_one_before_ended(new_store: Callable[[], AnyStore]) -> None:
    first, second = new_store(), new_store()
    epoch = first.lead("one:1", NOW)
    assert 0 <= epoch - int(NOW * 1000) < EPOCH_CHANCES, "it differs from each of a database that was restored since"
    push(first, stored(1, "a"))
    assert second.lead("two:2", NOW + 600, replace=True) >= int((NOW + 600) * 1000) > epoch
    assert second.load().epoch_ends[epoch] == 1


def test_a_leader_continues_in_an_epoch_above_one_that_a_peer_heard(new_store: Callable[[], AnyStore]) -> None:
    first, second = new_store(), new_store()
    epoch = first.lead("one:1", NOW)
    assert first.lead_above(epoch + 500_000, NOW) == first.load().epoch > epoch + 500_000
    push(first, stored(1, "a"))
    second.lead("two:2", NOW, replace=True)
    with pytest.raises(Deposed):
        first.lead_above(epoch + 900_000, NOW)


def test_a_second_boss_does_not_lead_while_the_first_is_heard(new_store: Callable[[], AnyStore]) -> None:
    first, second = new_store(), new_store()
    first.lead("one:1", NOW)
    with pytest.raises(AnotherBossLeads, match="one:1"):
        second.lead("two:2", NOW + 10)
    first.renew(NOW + 10)
    with pytest.raises(AnotherBossLeads):
        second.lead("two:2", NOW + 20)
    fall_silent(first, LEADER_SILENT_S)
    assert second.lead("two:2", NOW + 20) > first.epoch


def fall_silent(store: AnyStore, silent_s: float) -> None:
    """The leader was heard that much longer ago. (A server tells silence by its own clock, which no test can turn.)"""
    if isinstance(store, Twin):
        store.tables.renewed_at -= silent_s
        return
    with store.engine.begin() as connection:
        connection.execute(sa.update(schema.leader).values(renewed_at=schema.leader.c.renewed_at - silent_s))


def test_after_a_resignation_no_boss_waits(new_store: Callable[[], AnyStore]) -> None:
    first, second = new_store(), new_store()
    first.lead("one:1", NOW)
    first.resign()
    assert second.lead("two:2", NOW) > first.epoch


def test_a_deposed_boss_writes_nothing(new_store: Callable[[], AnyStore]) -> None:
    first, second = new_store(), new_store()
    first.lead("one:1", NOW)
    assert first.leads()
    second.lead("two:2", NOW, replace=True)
    assert (first.leads(), second.leads()) == (False, True)
    with pytest.raises(Deposed):
        first.commit(1, Writes(runs={1: RunRow(1, "r", NOW)}), NOW)
    with pytest.raises(Deposed):
        first.renew(NOW)
    first.resign()
    assert load_run(second, "r") is None
    assert second.last_batch() == 0
    second.commit(1, Writes(runs={1: RunRow(1, "r", NOW)}), NOW)


def test_a_commit_in_doubt_is_found_by_its_number_and_may_be_repeated(store: AnyStore) -> None:
    writes = Writes(
        runs={1: RunRow(1, "r", NOW)}, stored=StoredTasks([stored(1, "a"), stored(2, "b", after={1: Condition.ANY})])
    )
    assert store.last_batch() == 0
    store.commit(1, writes, NOW)
    assert store.last_batch() == 1
    store.commit(1, writes, NOW)
    assert store.last_batch() == 1
    assert len(image(store)) == 2
    with pytest.raises(CommitRefused):
        store.commit(3, Writes(), NOW)


def test_what_is_refused_leaves_nothing_behind(store: AnyStore) -> None:
    push(store, stored(1, "a"))
    with pytest.raises(CommitRefused):
        push(store, stored(2, "b"), stored(3, "a"))
    assert store.last_batch() == 1
    assert list(image(store)) == ["a"]
    push(store, stored(2, "b"))


# --- rows there and back ------------------------------------------------------------------------


def test_a_task_comes_back_as_it_went(store: AnyStore) -> None:
    task = stored(
        1, "a", state=TaskState.WAITING, resources={"cpus": 2.5, "gpus": 1.0}, priority=-3, runtime_s=0.1,
        retries=Retries(2, (Cause.EXIT,)), labels=("first", "second"), after={2: Condition.ANY, 3: Condition.FAILURE},
    )  # fmt: skip
    task.row.not_before, task.row.attempts, task.row.retries_used = NOW + 0.125, 4, 1
    task.row.keep_dir, task.row.reason = True, "because"
    expected = msgspec.structs.replace(task.row)
    push(store, task, stored(2, "b"), stored(3, "c"))
    assert image(store)["a"] == expected
    assert {row.task_no: row for row in store.load().tasks}[1] == expected


@pytest.mark.parametrize(
    "outcome",
    [
        None,
        Outcome(1, 1, Cause.SUCCESS, 0, run_s=0.1, manifest=(ManifestEntry("x/ö", 3, "aa"), ManifestEntry("d"))),
        Outcome(1, 1, Cause.SIGNAL, signal=9, error="kill\0ed", stderr="é\n" * 20_000, max_rss_mb=1.5, fetch_s=0.25),
        Outcome(1, 1, Cause.EXIT, 1, command="c" * 1_000_000, stdout="🦀", store_s=2.0),
    ],
)
def test_an_attempt_comes_back_as_it_went(store: AnyStore, outcome: Outcome | None) -> None:
    push(store, stored(1, "a"))
    row = AttemptRow(1, 1, 1, "w1", AttemptState.PROMOTING, NOW, NOW + 1, None, "why", outcome)
    write(store, attempts={(1, 1): row})
    assert store.load().attempts == [row]


def test_workers_and_vms_come_back_as_they_went_while_they_live(store: AnyStore) -> None:
    hello = Hello("n", "worker", host="höst", resources={"cpus": 2.0}, labels=("big",))
    up = WorkerRow("w1", "vm-1", "up", NOW, NOW + 1, hello, 1, "", "disk full")
    vm = VmRow(1, "local", VmState.RUNNING, NOW, {"cpus": 1.0}, "nonce", "c-1", "w1", True, "why", NOW, NOW + 1, None)
    life = {"started_at": NOW, "first_task_at": NOW + 2, "ending_at": NOW + 3, "end_asked": 4, "cause": "failed"}
    gone = msgspec.structs.replace(vm, vm_no=2, state=VmState.GONE, gone_at=NOW, said="kein Platz: höst", **life)
    write(
        store,
        workers={"w1": up, "w2": msgspec.structs.replace(up, worker="w2", state="lost", vm_no=None)},
        vms={1: vm, 2: gone},
    )
    snapshot = store.load()
    assert snapshot.workers == [up]
    assert snapshot.vms == [vm]
    assert snapshot.past_vms == [gone]
    assert snapshot.next_vm_no == 3
    write(store, dropped_workers=["w1", "w2"])
    assert store.load().workers == []


def test_killed_workers_that_were_lost_come_back_as_names(store: AnyStore) -> None:
    hello = Hello("n", "worker")
    rows = {
        name: WorkerRow(name, "k", state, NOW + number, NOW, hello, killed_at=killed_at)
        for number, (name, state, killed_at) in enumerate(
            [("up", "up", NOW), ("killed", "lost", NOW), ("lost", "lost", None), ("left", "gone", NOW)]
        )
    }
    write(store, workers=rows)
    assert store.load().killed == {"killed": NOW + 1}


def test_machines_that_were_gone_long_ago_are_forgotten_and_no_other(store: AnyStore) -> None:
    # By the boss's clock, whatever the cloud's said.
    vm = VmRow(1, "local", VmState.GONE, NOW, {"cpus": 1.0}, "nonce", "c-1", "w1", gone_at=NOW + 3_600)
    later = msgspec.structs.replace(vm, vm_no=2, since=NOW + 9)
    alive = msgspec.structs.replace(vm, vm_no=3, state=VmState.ENDING, gone_at=None)
    worker = WorkerRow("w1", "vm-1", "up", NOW, NOW, Hello("n", "worker"), 3)
    write(
        store,
        workers={"w1": worker, "w2": msgspec.structs.replace(worker, worker="w2", state="lost")},
        vms={1: vm, 2: later, 3: alive},
        boots={no: BootRow(no) for no in (1, 2, 3)},
    )
    write(store, gone_before=NOW + 5)
    snapshot = store.load()
    assert (snapshot.past_vms, snapshot.vms, snapshot.next_vm_no) == ([later], [alive], 4)
    assert [row.vm_no for row in snapshot.boots] == [3]
    assert [row.worker for row in snapshot.workers] == ["w1"]


def test_the_life_of_a_vm_that_was_given_up_is_recorded_later_and_of_no_other_vm(store: AnyStore) -> None:
    given_up = VmRow(1, "local", VmState.GONE, NOW, {"cpus": 1.0}, "nonce", gone_at=NOW, cause="unanswered")
    other = msgspec.structs.replace(given_up, vm_no=2, cloud_id="c-2", started_at=NOW - 9)
    alive = msgspec.structs.replace(given_up, vm_no=3, state=VmState.INTENDED, gone_at=None)
    write(store, vms={1: given_up, 2: other, 3: alive})
    write(store, spans={(no, ""): VmSpan(no, "c-1", NOW - 60) for no in (2, 3, 4)})
    other_history = VmSpan(1, "c-0", NOW - 99, boot_nonce="nonce of a lost history")
    write(store, spans={(1, "nonce of a lost history"): other_history})
    write(store, spans={(1, "nonce"): VmSpan(1, "c-1", NOW - 60, boot_nonce="nonce")})
    seen = msgspec.structs.replace(given_up, cloud_id="c-1", started_at=NOW - 60, gone_at=None)
    assert (store.load().past_vms, store.load().vms) == ([seen, other], [alive])
    write(store, spans={(1, ""): VmSpan(1, "c-1", NOW - 61, NOW + 4)})
    assert store.load().past_vms == [
        msgspec.structs.replace(seen, started_at=NOW - 61, gone_at=NOW + 4),
        other,
    ]


def test_runs_pushes_context_and_keys_come_back(store: AnyStore) -> None:
    answered = PushAnswered("p1", 1, {"ready": 1}, {"new": 1})
    push(store, stored(1, "a"), pushes=[answered], context={"x": "ü", "y": "2"}, revoked_keys={"vm-1"})
    write(
        store, context={"y": None, "x": "3"}, revoked_keys={"vm-1", "vm-2"}, runs={1: RunRow(1, "r", NOW, "held", NOW)}
    )
    snapshot = store.load()
    assert snapshot.runs == [RunRow(1, "r", NOW, "held", NOW)]
    assert snapshot.context.pop("cluster_id") == snapshot.cluster_id
    assert snapshot.context == {"x": "3"}
    assert snapshot.revoked_keys == {"vm-1", "vm-2"}
    found = load_run(store, "r")
    assert found is not None
    assert load_push(store, "p1") == answered
    assert load_push(store, "P1") is None
    assert load_run(store, "R") is None


def test_a_row_written_again_is_replaced(store: AnyStore) -> None:
    push(store, stored(1, "a"))
    given = AttemptRow(1, 1, 1, "w1", AttemptState.ASSIGNED, NOW)
    write(store, attempts={(1, 1): given})
    started = msgspec.structs.replace(given, state=AttemptState.STARTED, started_at=NOW + 1)
    write(store, attempts={(1, 1): started})
    assert store.load().attempts == [started]
    write(store, attempts={(1, 1): ended(1, 1)})
    assert store.load().attempts == []


def test_moves_change_what_they_name_and_nothing_else(store: AnyStore) -> None:
    push(store, *(stored(number, f"t{number}") for number in range(1, 8)))
    alike = TaskMoved(TaskState.RUNNING, "", 1)
    own = {number: TaskMoved(TaskState.FAILED, f"reason of {number}", number, 1, NOW + number) for number in (4, 5, 6)}
    write(store, tasks={1: alike, 2: alike, 3: alike, **own, 99: alike})
    rows = image(store)
    assert [rows[f"t{number}"].state for number in (1, 2, 3, 7)] == [TaskState.RUNNING] * 3 + [TaskState.READY]
    for number, move in own.items():
        row = rows[f"t{number}"]
        assert (row.state, row.reason, row.attempts, row.not_before) == (
            move.state, move.reason, move.attempts, move.not_before,
        )  # fmt: skip
    assert store.load().states == {1: {"running": 3, "failed": 3, "ready": 1}}


def test_a_task_that_needs_more_than_it_asked_for_keeps_its_definition(store: AnyStore) -> None:
    push(store, stored(1, "a"), stored(2, "b"))
    before = image(store)
    write(store, grown={1: {"cpus": 1.0, "memory_mb": 700.0}, 99: {"cpus": 9.0}})
    after = image(store)
    assert after["a"].asks == {"cpus": 1.0, "memory_mb": 700.0}
    assert (after["a"].definition_hash, after["b"].asks) == (before["a"].definition_hash, before["b"].asks)


def test_what_the_core_does_to_its_rows_later_is_not_in_the_store(store: AnyStore) -> None:
    task = stored(1, "a")
    push(store, task)
    task.row.state = TaskState.CANCELLED
    image(store)["a"].state = TaskState.FAILED
    store.load().runs[0].held = "changed"
    assert image(store)["a"].state is TaskState.READY
    assert store.load().runs[0].held == ""


# --- ids and texts ------------------------------------------------------------------------------


def test_ids_are_any_unicode_and_compare_by_byte(store: AnyStore) -> None:
    ids = ["A", "a", "a ", "ä", "a\u0308", "ss", "ß", "🦀", "x" * 255, "🦀" * 255, "100%s", "it's", 'q"\\', "%"]
    push(store, *(stored(number, id) for number, id in enumerate(ids, 1)))
    assert [row.id for row in store.load().tasks] == ids
    for number, id in enumerate(ids, 1):
        assert store.select(SelectTasks(1, ids=(id,)))[1:] == ({number}, "")


def test_a_large_batch_whose_last_task_is_refused_leaves_nothing(store: AnyStore) -> None:
    tasks = [stored(no, f"t{no}", after={no - 1: Condition.SUCCESS} if no > 1 else None) for no in range(1, 6_001)]
    with pytest.raises(CommitRefused):
        push(store, *tasks, stored(6_001, "t1"))
    snapshot = store.load()
    assert (snapshot.runs, snapshot.tasks, snapshot.next_task_no) == ([], [], 1)
    push(store, *tasks)
    snapshot = store.load()
    assert [(row.task_no, row.id, row.dependencies) for row in snapshot.tasks] == [
        (task.row.task_no, task.row.id, task.row.dependencies) for task in tasks
    ]
    assert snapshot.next_task_no == 6_001
    assert store.definitions([1, 3_000, 6_000]) == {no: tasks[no - 1].json for no in (1, 3_000, 6_000)}


def test_a_million_bytes_of_commands_and_the_worst_of_escapes(store: AnyStore) -> None:
    worst = ("\x01\\'\"%" * 800_000)[: 4 * 1024 * 1024]
    tasks = [stored(1, "big", commands=("echo " + "ö" * 500_000,)), stored(2, "worst", commands=(worst,))]
    push(store, *tasks)
    assert store.definitions([1, 2, 3]) == {number: task.json for number, task in enumerate(tasks, 1)}


def test_no_row_can_poison_its_batch(store: AnyStore) -> None:
    push(store, stored(1, "a"), stored(2, "b"))
    odd = ended(1, 1, exit_code=2**70, signal=-(2**40), stdout="\ud800", run_s=1e308, max_rss_mb=float("inf"))
    write(store, tasks={1: TaskMoved(TaskState.SUCCEEDED)}, attempts={(1, 1): odd, (2, 1): ended(2, 1)})
    assert image(store)["a"].state is TaskState.SUCCEEDED


@pytest.mark.parametrize("list_bytes", [64, 8_000_000], ids=["cut", "whole"])
def test_a_boss_that_starts_knows_who_waits_for_whom(
    store: AnyStore, monkeypatch: pytest.MonkeyPatch, list_bytes: int
) -> None:
    monkeypatch.setattr(loading, "LIST_BYTES", list_bytes)
    monkeypatch.setattr(loading, "TASKS_A_LIST", 3)
    numbers = [1, 2, 3, 4, 1_000_000, 1_000_001, 5_000_000]
    first = [stored(number, f"t{number}", runtime_s=0.1 * number) for number in numbers]
    ended_task = stored(7, "ended", state=TaskState.SUCCEEDED)
    both = {1: Condition.SUCCESS, 5_000_000: Condition.ANY}
    waiting = [stored(10, "sink", after={**dict.fromkeys(numbers, Condition.SUCCESS), 7: Condition.SUCCESS})]
    waiting += [stored(6_000_000, "far", after=both, state=TaskState.WAITING, labels=("a, b", 'c"\n'))]
    push(store, *first, ended_task, *waiting)
    found = {row.id: row for row in store.load().tasks}
    assert dict(found["sink"].dependencies) == dict.fromkeys(numbers, Condition.SUCCESS)
    assert dict(found["far"].dependencies) == both
    assert found["far"].label == "a, b"
    assert [found[f"t{number}"].runtime_s for number in numbers] == [0.1 * number for number in numbers]
    assert found["far"].runtime_s is None


def test_definitions_are_those_of_the_last_push_and_gone_with_their_tasks(store: AnyStore) -> None:
    push(store, stored(1, "a", commands=("one",)), stored(2, "b"))
    write(store, stored=StoredTasks([stored(1, "a", commands=("two",))]))
    assert b"two" in store.definitions([1])[1], "the task was pushed again before it was ordered"
    assert b"two" in store.definitions([1, 2])[1], "and it is ordered again"
    push(store, stored(3, "c"))
    write(store, dropped_tasks=[3])
    assert store.definitions([3]) == {}


def test_numbers_are_known_after_a_batch_that_was_refused(store: AnyStore) -> None:
    push(store, stored(1, "a"))
    with pytest.raises(CommitRefused):
        push(store, stored(2, "a"))
    push(store, stored(3, "c"), run=RunRow(1, "r", NOW + 1))
    write(store, runs={1: RunRow(1, "r", NOW + 1, ended_at=NOW + 2)})
    assert set(image(store)) == {"a", "c"}
    assert store.load().next_task_no == 4


def test_more_than_a_thousand_definitions_are_found(store: AnyStore) -> None:
    push(store, *(stored(number, str(number)) for number in range(1, 1_302)))
    found = store.definitions(list(range(1, 1_302)))
    assert len(found) == 1_301
    assert found[1_301] == definition_json(TaskDefinition("1301", ("true",)))


# --- pushing again, dropping --------------------------------------------------------------------


def test_a_push_that_replaces_a_task_replaces_its_dependencies(store: AnyStore) -> None:
    push(store, stored(1, "a"), stored(2, "b"), stored(3, "c", after={1: Condition.SUCCESS}))
    write(store, attempts={(3, 1): ended(3, 1)})
    again = stored(3, "c", after={2: Condition.ANY}, commands=("false",), labels=("new",))
    again.row.attempts = 1
    push(store, again)
    row = image(store)["c"]
    assert row.dependencies == ((2, Condition.ANY),)
    assert (row.attempts, row.label) == (1, "new")
    assert b"false" in store.definitions([3])[3]
    assert store.select(SelectTasks(1, label="new"))[1] == {3}


def test_a_dropped_task_leaves_nothing_and_its_number_is_never_given_again(store: AnyStore) -> None:
    push(store, stored(1, "a"), stored(2, "b", after={1: Condition.ANY}), stored(3, "c", after={2: Condition.ANY}))
    write(store, attempts={(2, 1): AttemptRow(2, 1, 1, "w1", AttemptState.STARTED, NOW)})
    write(store, dropped_tasks=[3, 2])
    assert list(image(store)) == ["a"]
    assert store.definitions([1, 2, 3]).keys() == {1}
    snapshot = store.load()
    assert snapshot.attempts == []
    assert snapshot.next_task_no == 4
    push(store, stored(4, "b"))


def test_dropping_what_others_waited_for_drops_the_edge(store: AnyStore) -> None:
    push(store, stored(1, "a"), stored(2, "b", after={1: Condition.ANY}))
    write(store, dropped_tasks=[1])
    assert image(store)["b"].dependencies == ()


def test_a_dropped_run_is_gone_and_its_name_is_free(store: AnyStore) -> None:
    tasks = [stored(number, str(number)) for number in range(1, 30)]
    push(store, *tasks, pushes=[PushAnswered("p", 1, {}, {})])
    push(store, stored(30, "x", run_no=2), run=RunRow(2, "kept", NOW))
    write(store, dropped_runs=[1], dropped_tasks=[1, 2], attempts={(3, 1): ended(3, 1)})
    assert load_run(store, "r") is None
    snapshot = store.load()
    assert [run.name for run in snapshot.runs] == ["kept"]
    assert snapshot.states == {2: {"ready": 1}}
    assert (snapshot.next_run_no, snapshot.next_task_no) == (3, 31)
    assert store.definitions([3]) == {}
    push(store, stored(31, "1", run_no=3), run=RunRow(3, "r", NOW))
    found = load_run(store, "r")
    assert found is not None
    assert load_push(store, "p") == PushAnswered("p", 1, {}, {}), "else it would be taken again when it is repeated"


def test_a_push_is_forgotten_when_its_run_was_dropped_and_it_is_old(store: AnyStore) -> None:
    push(store, stored(1, "a"), pushes=[PushAnswered("p", 1, {}, {})])
    write(store, answered_before=NOW + 1000)
    assert load_push(store, "p") is not None, "its run is there"
    write(store, dropped_runs=[1])
    assert store.load().dropped_pushes == {"p"}
    write(store, answered_before=NOW - 1000)
    assert load_push(store, "p") is not None, "it is young"
    write(store, answered_before=NOW + 1000)
    assert load_push(store, "p") is None


def test_a_name_in_use_is_refused_and_its_owners_row_is_untouched(store: AnyStore) -> None:
    push(store, stored(1, "a", commands=("mine",)), stored(2, "b"), stored(3, "c"))
    push(store, stored(4, "a", run_no=2), run=RunRow(2, "s", NOW))
    write(store, dropped_tasks=[3])
    before = image(store), store.definitions([1, 2])
    for wrong in (stored(2, "a"), stored(3, "a"), stored(5, "a")):  # there, dropped, new
        with pytest.raises(CommitRefused):
            push(store, wrong)
    for number in (2, 3):
        with pytest.raises(CommitRefused):
            write(store, runs={number: RunRow(number, "r", NOW)})
    assert (image(store), store.definitions([1, 2])) == before
    assert [run.name for run in store.load().runs] == ["r", "s"]


def test_numbers_are_never_given_again_however_much_is_dropped(new_store: Callable[[], AnyStore]) -> None:
    first, second = new_store(), new_store()
    first.lead("one:1", NOW)
    vm = VmRow(7, "local", VmState.GONE, NOW, {"cpus": 1.0}, "nonce")
    push(first, stored(40, "a", run_no=9), run=RunRow(9, "r", NOW), vms={7: vm})
    write(first, dropped_runs=[9])
    second.lead("two:2", NOW, replace=True)
    boss = Boss(second.load(), BossConfig(), NOW)
    assert (second.load().next_task_no, second.load().next_run_no, second.load().next_vm_no) == (41, 10, 8)
    allocation = boss.pushes._allocation
    assert (allocation.next_task_no(), allocation.next_run_no()) == (41, 10)


@pytest.mark.parametrize("archive", [True, False])
def test_a_run_is_removed_when_its_days_have_passed(new_store: Callable[[], AnyStore], archive: bool) -> None:
    store = new_store()
    store._archive = archive
    store.lead("one:1", NOW)
    done, failed = stored(1, "a", state=TaskState.SUCCEEDED), stored(2, "b", state=TaskState.FAILED)
    push(store, done, failed, run=RunRow(1, "r", NOW, "", NOW + 60))
    push(store, stored(3, "a", run_no=2), run=RunRow(2, "goes on", NOW))
    boss = Boss(store.load(), BossConfig(keep_runs_s=30 * DAY_S), NOW + 29 * DAY_S)
    assert boss.handle([], NOW + 29.5 * DAY_S).writes.dropped_runs == []
    late = boss.handle([], NOW + 31 * DAY_S)
    assert late.writes.dropped_runs == [1]
    store.commit(store.last_batch() + 1, late.writes, NOW + 31 * DAY_S)
    assert [run.name for run in store.load().runs] == ["goes on"]
    assert store.definitions([1, 2, 3]).keys() == {3}
    assert archived(store) == ({1: {"succeeded": 1, "failed": 1}} if archive else {})


def archived(store: AnyStore) -> dict[int, dict[str, int]]:
    """What is left of runs that were let go."""
    if isinstance(store, Twin):
        return store.tables.archived_runs
    with store.engine.connect() as connection:
        rows = connection.execute(sa.select(schema.archived_runs)).all()
    return {row.run_no: msgspec.json.decode(row.states) for row in rows}


# --- what a boss starts from --------------------------------------------------------------------


def test_a_boss_starts_from_what_is_unfinished(store: AnyStore) -> None:
    push(
        store,
        stored(1, "done", state=TaskState.SUCCEEDED),
        stored(2, "runs", state=TaskState.RUNNING, after={1: Condition.SUCCESS}),
        stored(
            3, "waits", state=TaskState.WAITING,
            after={1: Condition.SUCCESS, 2: Condition.ANY, 4: Condition.FAILURE, 5: Condition.ANY},
        ),
        stored(4, "ready"),
        stored(5, "failed", state=TaskState.FAILED),
    )  # fmt: skip
    snapshot = store.load()
    assert {row.id: row.dependencies for row in snapshot.tasks} == {
        "runs": (), "ready": (), "waits": ((2, Condition.ANY), (4, Condition.FAILURE)),
    }  # fmt: skip
    assert image(store)["waits"].dependencies == (
        (1, Condition.SUCCESS), (2, Condition.ANY), (4, Condition.FAILURE), (5, Condition.ANY),
    )  # fmt: skip
    assert snapshot.states == {1: {"succeeded": 1, "running": 1, "waiting": 1, "ready": 1, "failed": 1}}


def test_one_that_runs_while_its_dependency_is_done_again_still_names_it(store: AnyStore) -> None:
    push(store, stored(1, "again"), stored(2, "runs", state=TaskState.RUNNING, after={1: Condition.SUCCESS}))
    assert {row.id: row.dependencies for row in store.load().tasks}["runs"] == ((1, Condition.SUCCESS),)


def test_init_tasks_are_loaded_while_their_run_continues(store: AnyStore) -> None:
    push(store, stored(1, "init", init=True, state=TaskState.SUCCEEDED), stored(2, "a"))
    push(
        store,
        stored(3, "over", init=True, run_no=2, state=TaskState.SUCCEEDED),
        stored(4, "runs", init=True, run_no=2, state=TaskState.RUNNING),
        run=RunRow(2, "s", NOW, "", NOW),
    )
    snapshot = store.load()
    assert [row.id for row in snapshot.tasks] == ["init", "a", "runs"]
    assert snapshot.states == {1: {"ready": 1}}


def test_what_stopping_attempts_still_occupy_is_loaded(store: AnyStore) -> None:
    push(
        store,
        stored(1, "runs", state=TaskState.RUNNING), stored(2, "stops", resources={"cpus": 2.0}),
        stored(3, "over", state=TaskState.CANCELLED),
    )  # fmt: skip
    given = AttemptRow(1, 1, 1, "w", AttemptState.STARTED, NOW, NOW)
    stopping = AttemptRow(2, 1, 1, "w", AttemptState.STOPPING, NOW, NOW, None, "replaced", None, {"cpus": 8.0})
    nothing = AttemptRow(3, 1, 1, "w", AttemptState.STOPPING, NOW, NOW, None, "cancelled", None, {})
    write(store, attempts={(1, 1): given, (2, 1): msgspec.structs.replace(given, task_no=2), (3, 1): nothing})
    write(store, attempts={(2, 1): stopping})
    assert {row.task_no: row.asks for row in store.load().attempts} == {1: None, 2: {"cpus": 8.0}, 3: {}}


def test_attempts_of_init_tasks_tell_which_workers_are_prepared(store: AnyStore) -> None:
    hello = Hello("n", "worker")
    workers = {
        name: WorkerRow(name, "k", state, NOW, NOW, hello)
        for name, state in {"up": "up", "draining": "draining", "gone": "gone"}.items()
    }
    push(store, stored(1, "init", init=True), stored(2, "a"), workers=workers)
    good, bad = Outcome(1, 1, Cause.SUCCESS, 0), Outcome(1, 1, Cause.EXIT, 1)

    def attempt(number: int, worker: str, outcome: Outcome, task_no: int = 1) -> AttemptRow:
        outcome = msgspec.structs.replace(outcome, task_no=task_no, number=number)
        return AttemptRow(task_no, number, 1, worker, AttemptState.ENDED, NOW, NOW, NOW, "", outcome)

    rows = [
        attempt(1, "up", good), attempt(2, "draining", bad), attempt(3, "gone", good), attempt(4, "gone", bad),
        attempt(1, "up", good, task_no=2),
    ]  # fmt: skip
    write(store, attempts={(row.task_no, row.number): row for row in rows})
    assert [row.number for row in store.load().init_attempts if row.task_no == 1] == [1, 2, 4]
    assert all(row.task_no == 1 for row in store.load().init_attempts)
    write(store, runs={1: RunRow(1, "r", NOW, "", NOW)})
    assert [row.number for row in store.load().init_attempts] == [1, 2]


def test_an_empty_store_gives_a_boss_nothing(store: AnyStore) -> None:
    snapshot = store.load()
    assert (snapshot.next_task_no, snapshot.next_run_no, snapshot.next_vm_no) == (1, 1, 1)
    assert snapshot.runs == snapshot.tasks == snapshot.attempts == snapshot.workers == snapshot.vms == []
    assert load_run(store, "r") is None


# --- what people mean ---------------------------------------------------------------------------


@pytest.fixture
def two_runs(store: AnyStore) -> AnyStore:
    """Run `r` with a, b (failed), an init task; run `s` with a, `r:b`."""
    push(
        store,
        stored(1, "a", labels=("l1", 'q"x')), stored(2, "beta", state=TaskState.FAILED, labels=("l2",)),
        stored(3, "prepare", init=True, state=TaskState.FAILED, labels=("l1",)),
    )  # fmt: skip
    push(store, stored(4, "a", run_no=2, labels=("l1x",)), stored(5, "c:d", run_no=2), run=RunRow(2, "s:t", NOW))
    return store


@pytest.mark.parametrize(
    ("wanted", "runs", "task_nos"),
    [
        (SelectTasks(1), ["r", "s:t"], {1, 2, 4, 5}),
        (SelectTasks(1, run="r"), ["r"], {1, 2}),
        (SelectTasks(1, state="failed"), ["r"], {2}),
        (SelectTasks(1, run="s:t", state="failed"), ["s:t"], set()),
        (SelectTasks(1, label="l1"), ["r"], {1}),
        (SelectTasks(1, label='q"x'), ["r"], {1}),
        (SelectTasks(1, label="l%"), [], set()),
        (SelectTasks(1, ids=("beta",)), ["r"], {2}),
        (SelectTasks(1, ids=("r:a", "s:t:a")), ["r", "s:t"], {1, 4}),
        (SelectTasks(1, ids=("a",), run="s:t"), ["s:t"], {4}),
        (SelectTasks(1, ids=("s:t:c:d", "c:d")), ["s:t"], {5}),
        (SelectTasks(1, ids=("r:beta", "r:a"), state="failed"), ["r"], {2}),
        (SelectTasks(1, ids=("r:a", "beta"), label="l1"), ["r"], {1}),
        (SelectTasks(1, ids=("prepare",)), ["r"], {3}),
    ],
)
def test_a_selection_names_tasks_and_their_runs(
    two_runs: AnyStore, wanted: SelectTasks, runs: list[str], task_nos: set[int]
) -> None:
    images, found, problem = two_runs.select(wanted)
    assert (sorted(image.run.name for image in images), found, problem) == (runs, task_nos, "")
    for read in images:
        assert {row.task_no for row in read.tasks} == ({1, 2, 3} if read.run.name == "r" else {4, 5})


@pytest.mark.parametrize(
    ("reads", "ids", "rows", "around"),
    [
        (Reads.NUMBERS, ("a",), "", ""),
        (Reads.SELECTED, ("a", "e"), "a e", ""),
        (Reads.REDONE, ("a",), "a b c d i s", "s"),  # e ended otherwise
        (Reads.REDONE, ("c",), "b c d i", "b"),
        (Reads.REDONE_BELOW, ("a",), "a b c d e i s", "s"),
        (Reads.REDONE_BELOW, ("s",), "a b c d i s", "a"),
    ],
)
def test_a_request_reads_the_tasks_that_it_affects(
    store: AnyStore, reads: Reads, ids: tuple[str, ...], rows: str, around: str
) -> None:
    """b is aborted since a failed; c waits for b, d runs behind c, e was cancelled behind a; s succeeded, i is an init
    task. f belongs to none of them."""
    success, any_end = Condition.SUCCESS, Condition.ANY
    push(
        store,
        stored(1, "a", state=TaskState.FAILED),
        stored(2, "s", state=TaskState.SUCCEEDED),
        stored(3, "b", state=TaskState.ABORTED, after={1: success, 2: success}),
        stored(4, "c", state=TaskState.WAITING, after={3: any_end}),
        stored(5, "d", state=TaskState.RUNNING, after={4: success}),
        stored(6, "e", state=TaskState.CANCELLED, after={1: any_end}),
        stored(7, "i", init=True),
        stored(8, "f"),
    )
    (read,), _, problem = store.select(SelectTasks(1, ids, "r", reads=reads))
    assert (" ".join(sorted(row.id for row in read.tasks)), problem, read.is_part) == (rows, "", True)
    named = {row.id: row for row in read.tasks}
    assert read.around == {named[id].task_no for id in around.split()}
    whole = image(store)
    for id, row in named.items():
        edges = () if id in around.split() or reads is Reads.SELECTED else whole[id].dependencies
        assert row == msgspec.structs.replace(whole[id], dependencies=edges)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (SelectTasks(1, ids=("a",)), ["'a'", "2 runs", "r:a", "s:t:a"]),
        (SelectTasks(1, ids=("a", "bet")), ["'a'"]),
        (SelectTasks(1, ids=("beto",)), ["'beto'", "beta"]),
        (SelectTasks(1, ids=("beta",), run="s:t"), ["'beta'", "s:t"]),
        (SelectTasks(1, run="q"), ["no run 'q'"]),
        (SelectTasks(1, run="s:"), ["no run", "s:t"]),
        (SelectTasks(1, state="dead"), ["'dead'", "cancelled"]),
    ],
)
def test_a_selection_that_means_nothing_says_why(two_runs: AnyStore, wanted: SelectTasks, says: list[str]) -> None:
    images, found, problem = two_runs.select(wanted)
    assert (images, found) == ([], set())
    for word in says:
        assert word in problem


@pytest.mark.parametrize(
    ("wanted", "task_nos"),
    [
        (SelectTasks(1, ids=("arr",)), {11, 12, 13, 14}),
        (SelectTasks(1, ids=("q:arr",)), {11, 12, 13, 14}),
        (SelectTasks(1, ids=("arr[2-10]",)), {12, 13}),
        (SelectTasks(1, ids=("arr[1,30]", "arr[2]")), {11, 12, 14}),
        (SelectTasks(1, ids=("arr[1-9:4]",)), {11}),
        (SelectTasks(1, ids=("arr",), state="failed"), {12}),
    ],
)
def test_arrays_are_named_whole_or_by_ranges(store: AnyStore, wanted: SelectTasks, task_nos: set[int]) -> None:
    states = (TaskState.READY, TaskState.FAILED, TaskState.READY, TaskState.READY)
    elements = [
        stored(number, f"arr[{index}]", state=state)
        for number, index, state in zip((11, 12, 13, 14), (1, 2, 10, 30), states)
    ]
    others = [stored(15, "arr[x]"), stored(16, "arr[2"), stored(17, "arrow[1]"), stored(18, "array")]
    push(store, *elements, *others, run=RunRow(1, "q", NOW))
    _, found, problem = store.select(wanted)
    assert (found, problem) == (task_nos, "")
    for missing in ("arr[3]", "arr[2-", "arr[40-50]", "ar"):
        assert "there is no task" in store.select(SelectTasks(1, ids=(missing,)))[2]
    push(store, stored(21, "arr[1]", run_no=2), run=RunRow(2, "p", NOW))
    assert store.select(SelectTasks(1, ids=("arr",)))[2] == "array 'arr' is in several runs: name one as p:arr, q:arr"


def test_calls_are_looked_up_with_their_values_or_listed_page_by_page(store: AnyStore) -> None:
    function = Call("f", "hash", code=b"\x80code", fingerprint="1f")
    many = msgspec.structs.replace(function, many=True)
    tasks = [
        stored(1, "ä", commands=(), call=function, state=TaskState.SUCCEEDED),
        stored(2, "b", commands=(), call=many, state=TaskState.FAILED),
        stored(3, "c", commands=(), call=function, after={1: Condition.SUCCESS, 2: Condition.ANY}),
    ]
    for task in tasks[:2]:
        task.row.attempts = 1
    large = ManifestEntry("calls/r/b.1", 100_000, "ab" * 32)
    first = ended(1, 1, value=b"\x00\xff'\\one", run_s=0.5)
    second = ended(2, 1, cause=Cause.EXIT, exit_code=1, error="ValueError: no", manifest=(large,))
    push(store, *tasks, attempts={(1, 1): first, (2, 1): second})
    found, more = store.load_calls(LoadCalls(1, "r", ids=("ä", "b", "c", "none")))
    assert not more
    assert [(call.id, call.state, call.value, call.path, call.many) for call in found] == [
        ("ä", "succeeded", b"\x00\xff'\\one", "", False),
        ("b", "failed", b"", "calls/r/b.1", True),
        ("c", "ready", b"", "", False),
    ]
    assert (found[0].worker, found[0].run_s, found[1].error, found[1].cause) == ("w1", 0.5, "ValueError: no", "exit")
    page, more = store.load_calls(LoadCalls(1, "r", after=-1, limit=2))
    assert ([call.id for call in page], more) == (["ä", "b"], True)
    assert page[0] == msgspec.structs.replace(found[0], value=b"")
    assert [call.id for call in store.load_calls(LoadCalls(1, "r", after=2, limit=2))[0]] == ["c"]
    assert store.load_calls(LoadCalls(1, "other", ids=("ä",))) == ([], False)
    values = store.needed_values([3], 10_000)
    assert values == {3: (wire.CallValue("ä", b"\x00\xff'\\one"), wire.CallValue("b", b"", "calls/r/b.1"))}


def test_values_that_are_too_large_for_a_message_are_read_page_by_page(store: AnyStore) -> None:
    function = Call("f", "hash", code=b"\x80code")
    needs = [
        stored(number, f"n{number}", commands=(), call=function, state=TaskState.SUCCEEDED) for number in range(1, 6)
    ]
    for task in needs:
        task.row.attempts = 1
    attempts = {(number, 1): ended(number, 1, value=b"%d" % number * 900) for number in range(1, 6)}
    waits = stored(6, "sum", commands=(), call=function, after=dict.fromkeys(range(1, 6), Condition.SUCCESS))
    small = stored(7, "small", commands=(), call=function, after={2: Condition.SUCCESS})
    push(store, *needs, waits, small, attempts=attempts)
    values = [wire.CallValue(f"n{number}", b"%d" % number * 900) for number in range(1, 6)]
    assert store.needed_values([6, 7], 3_000) == {6: None, 7: (values[1],)}
    assert store.needed_values([6], 10_000) == {6: tuple(values)}
    assert store.load_values(LoadValues(1, 6, "", 3_000)) == (values[:2], True)
    assert store.load_values(LoadValues(1, 6, values[1].id, 3_000)) == (values[2:4], True)
    assert store.load_values(LoadValues(1, 6, values[3].id, 3_000)) == (values[4:], False)
    assert store.load_values(LoadValues(1, 6, "", 10)) == (values[:1], True), "at least one, however large"
    assert store.load_values(LoadValues(1, 6, values[4].id, 3_000)) == ([], False)
    assert store.load_values(LoadValues(1, 99, "", 3_000)) == ([], False)


def test_of_a_run_those_tasks_are_loaded_that_are_named(store: AnyStore) -> None:
    push(store, stored(1, "a"), stored(2, "b", after={1: Condition.SUCCESS}), stored(3, "c"))
    found = load_run(store, "r", ["b", "ä", "c"])
    assert found is not None
    assert found.is_part
    assert [(row.id, row.dependencies) for row in found.tasks] == [("b", ((1, Condition.SUCCESS),)), ("c", ())]
    assert load_run(store, "none", ["b"]) is None


def test_of_a_run_its_init_tasks_are_loaded_with_those_that_are_named(store: AnyStore) -> None:
    push(store, stored(1, "a"), stored(2, "i", init=True, state=TaskState.SUCCEEDED), stored(3, "j", init=True))
    write(store, runs={2: RunRow(2, "s", NOW)}, stored=StoredTasks([stored(4, "a", run_no=2)]))
    for names, found in ((["a"], ["a", "i", "j"]), (["new"], ["i", "j"]), (["i", "a"], ["a", "i", "j"])):
        image = load_run(store, "r", names)
        assert image is not None
        assert sorted(row.id for row in image.tasks) == found
        assert [row.id for row in image.tasks if row.init] == ["i", "j"]
    image = load_run(store, "s", ["new"])
    assert image == RunImage(RunRow(2, "s", NOW), [], is_part=True)


def test_of_an_array_only_its_own_task_is_loaded_with_those_that_are_named(store: AnyStore) -> None:
    array = stored(1, "many", array=ArrayOf("1-3"))
    assert array.row.elements is not None
    array.row.elements.first_no, array.row.elements.task_no = 2, 1
    element = stored(2, "many[1]")
    element.row.array = 1
    push(store, array, element)
    image = load_run(store, "r", ["many", "many[1]"])
    assert image is not None
    assert [(row.id, row.array, row.elements) for row in image.tasks] == [("many", 0, None), ("many[1]", 0, None)]
