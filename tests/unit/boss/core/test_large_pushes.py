"""A large push arrives in many chunks and is held packed: it must mean what the same list means in one chunk."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence

import pytest
from boss_script import BossScript, task

from boss.core.clients.pushes import MAX_PLAIN_CHUNKS
from boss.core.model.effects import FindResults
from boss.core.model.events import MessageArrived, ResultsFound
from boss.core.model.rows import TaskRow
from ecloud.model import wire
from ecloud.model.tasks import ArrayOf, Dependency, Requirement, Result, Retries, TaskDefinition
from ecloud.model.wire import PushOptions

TASKS = 2_500
CHUNKS = MAX_PLAIN_CHUNKS + 2
BYTES_A_TASK = 1_100
"""The aim for a million tasks, 1,200 MB, without what an idle boss takes."""


def graph(count: int) -> list[TaskDefinition]:
    """Tasks that wait for two others of the list, which stand before or behind them, with a few kinds of everything."""
    tasks = []
    for number in range(count):
        after = [f"t{number - back}" for back in (7, 40) if number >= back]
        fields = {"resources": {"cpus": float(number % 3)}} if number % 3 else {}
        tasks.append(
            TaskDefinition(
                f"t{number}",
                (f"work --on {number}",),
                tuple(map(Dependency, after)),
                (Requirement(f"in/{number % 9}", "in"), Requirement("model", "model")),
                (Result("out", f"out/{number}"),),
                overwrite_result=number % 50 != 0,
                retries=Retries(number % 2),
                labels=("odd", f"l{number}") if number % 2 else (),
                **fields,
            )
        )
    return random.Random(7).sample(tasks, count)


def send(script: BossScript, push_id: str, tasks: Sequence[TaskDefinition], chunks: int, options: PushOptions) -> None:
    """Send a list in this many chunks; the last chunk first."""
    client, size = script.client(), -(-len(tasks) // chunks)
    for k in (chunks - 1, *range(chunks - 1)):
        part = tuple(tasks[k * size : (k + 1) * size])
        script.hear(client, wire.SubmitTasks(push_id, k, chunks, options, part))


def pushed(chunks: int, tasks: Sequence[TaskDefinition], options: PushOptions) -> tuple[wire.RunAccepted, BossScript]:
    """Push a list; some of its results exist."""
    script = BossScript()
    send(script, "p", tasks, chunks, options)
    find = script.call(FindResults)
    script.handle(ResultsFound(find.token, frozenset(find.paths[::2])))
    return script.take(script.client(), wire.RunAccepted), script


def test_a_push_in_many_chunks_stores_what_the_same_push_in_one_chunk_stores() -> None:
    tasks, options = graph(TASKS), PushOptions("r", keep_dirs=True)
    answer, whole = pushed(1, tasks, options)
    answer_in_parts, in_parts = pushed(CHUNKS, tasks, options)
    assert answer_in_parts == answer
    assert answer.decisions == {"new": TASKS, "skipped": TASKS // 100}
    assert in_parts.store.tasks == whole.store.tasks
    assert in_parts.store.tables.stored == whole.store.tables.stored
    assert in_parts.store.tables.labels == whole.store.tables.labels
    assert repr(in_parts.boss.book.graph.nodes) == repr(whole.boss.book.graph.nodes)


def test_a_second_large_push_keeps_and_replaces_what_the_same_push_in_one_chunk_does() -> None:
    first, options = graph(TASKS), PushOptions("r", merge_strategy="keep_succeeded")
    changed = [
        TaskDefinition(one.id, ("other",), one.dependencies) if one.id in ("t3", "t2000") else one for one in first[40:]
    ]
    results = []
    for chunks in (1, CHUNKS):
        script = BossScript()
        plain = [TaskDefinition(one.id, one.commands, one.dependencies) for one in first]
        send(script, "p", plain, chunks, options)
        script.take(script.client(), wire.RunAccepted)
        named = {one.id for one in changed}
        again = [
            TaskDefinition(one.id, one.commands, tuple(on for on in one.dependencies if on.id in named))
            for one in changed
        ]
        send(script, "q", again, chunks, options)
        answer = script.take(script.client(), wire.RunAccepted)
        results.append((answer, script.store.tasks, repr(script.boss.book.graph.nodes)))
    assert results[0] == results[1]
    assert results[0][0].decisions["replaced"] > 100


@pytest.mark.parametrize(
    ("last", "problem"),
    [
        (task("t0"), "more than one task has this id"),
        (task("z", after="nobody"), "there is no task nobody"),
        (task("z", after="z"), "it waits for itself"),
    ],
)
def test_a_problem_in_the_last_chunk_leaves_nothing_of_a_large_push(last: TaskDefinition, problem: str) -> None:
    script = BossScript()
    tasks = [task(f"t{number}") for number in range(TASKS)]
    send(script, "p", [*tasks, last], CHUNKS, PushOptions("r"))
    (found,) = script.take(script.client(), wire.RunRejected).problems
    assert problem in found
    assert (script.store.tasks, script.store.runs, script.boss.book.graph.nodes) == ({}, {}, {})
    send(script, "q", tasks, CHUNKS, PushOptions("r"))
    assert script.take(script.client(), wire.RunAccepted).states == {"ready": TASKS}


def test_a_definition_that_the_database_cannot_take_refuses_the_whole_push() -> None:
    script = BossScript(max_value_bytes=10_000)
    tasks = [task(f"t{number}", after=f"t{number + 1}") for number in range(TASKS)]
    send(script, "p", [*tasks, task(f"t{TASKS}", commands=("x" * 20_000,))], CHUNKS, PushOptions("r"))
    (found,) = script.take(script.client(), wire.RunRejected).problems
    assert found.startswith(f"task t{TASKS}: its definition has 20,0")
    assert (script.store.tasks, script.boss.book.graph.nodes) == ({}, {})


def test_an_array_in_a_large_push_is_stored_with_its_counts() -> None:
    script = BossScript()
    tasks = [task(f"t{number}") for number in range(TASKS)]
    array = task("elements", after="t0", array=ArrayOf("1-3"))
    send(script, "p", [array, *tasks], CHUNKS, PushOptions("r"))
    assert script.take(script.client(), wire.RunAccepted).states == {"ready": TASKS, "waiting": 3}
    (stored,) = script.store.tables.arrays.values()
    assert (stored.pending, stored.pending_count, stored.pending_state) == ("0-2", 3, "waiting")
    assert stored.states == {"waiting": 3}


def test_a_waiting_task_of_a_large_push_takes_little_memory() -> None:
    """From the first chunk to the commit, with everything that the boss holds at a time."""
    script = BossScript()
    count = 8_000
    client = script.client()
    tracemalloc.start()
    try:
        began, _ = tracemalloc.get_traced_memory()
        boss, options = script.boss, PushOptions("r")
        for k in range(0, count, 500):
            part = tuple(_layered(number) for number in range(k, k + 500))
            client.number += 1
            message = wire.SubmitTasks("p", k // 500, count // 500, options, part)
            envelope = wire.Envelope(wire.PROTOCOL_VERSION, client.name, client.session, client.number, message)
            event = MessageArrived(envelope, client.key_name)
            del part, message, envelope
            tracemalloc.reset_peak()
            effects = boss.handle([event], script.now)
            del event
        rows: list[TaskRow] = [stored.row for stored in effects.writes.stored if stored.row.task_no == 1]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert rows
    assert (peak - began) / count < BYTES_A_TASK


def _layered(number: int) -> TaskDefinition:
    after = [f"t{number - back}" for back in (400, 401) if number >= 401]
    return TaskDefinition(f"t{number}", ("true",), tuple(map(Dependency, after)))
