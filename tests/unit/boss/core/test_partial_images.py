"""Requests about tasks decide the same from the tasks that they can affect as from the whole run."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from boss.core.model.effects import Reads, SelectTasks
from boss.core.model.rows import RunImage, TaskRow
from boss.store import reaching
from ecloud.model.tasks import Cause, Condition, Dependency, Retries, TaskDefinition
from ecloud.model.wire import StartTasks
from sim.store import Store
from tests.support.boss_script import BossScript, Peer, task

TASKS = 14


class Wholesale(Store):
    """Always reads whole runs."""

    def select(self, wanted: SelectTasks) -> tuple[list[RunImage], set[int], str]:
        return super().select(msgspec.structs.replace(wanted, reads=Reads.WHOLE))


class Counting(Store):
    """Counts the tasks that selections return."""

    read = 0

    def select(self, wanted: SelectTasks) -> tuple[list[RunImage], set[int], str]:
        images, task_nos, problem = super().select(wanted)
        self.read += sum(len(image.tasks) for image in images)
        return images, task_nos, problem


def random_graph(chance: random.Random) -> list[TaskDefinition]:
    tasks = [TaskDefinition(id="init", commands=("true",), init=True)] if chance.random() < 0.4 else []
    for number in range(TASKS):
        before = chance.sample(range(number), min(number, chance.choice((0, 1, 1, 2, 3))))
        conditions = [Condition(name) for name in ("success", "success", "success", "failure", "any")]
        wanted = tuple([Dependency(f"t{other}", chance.choice(conditions)) for other in before])
        tasks.append(TaskDefinition(id=f"t{number}", commands=("true",), dependencies=wanted, retries=Retries(0)))
    return tasks


def picture(script: BossScript) -> Any:
    """All that the boss knows and has stored about tasks."""
    rows = {no: msgspec.structs.replace(row, dependencies=()) for no, row in script.store.tasks.items()}
    nodes = {
        no: (node.state, node.unmet, node.assigned, sorted(node.dependents or ()))
        for no, node in script.boss.book.graph.nodes.items()
    }
    counts = {no: {s: n for s, n in run.states.items() if n} for no, run in script.boss.book.runs.items()}
    inits = {no: sorted(run.inits) for no, run in script.boss.book.runs.items()}
    return rows, nodes, counts, inits


def step(script: BossScript, worker: Peer, chance: random.Random) -> None:
    """One thing that happens: outcomes, or a request."""
    ids = [f"t{number}" for number in sorted(chance.sample(range(TASKS), chance.choice((1, 1, 2, 4))))]
    match chance.choice(("end", "end", "end", "retry", "retry all", "redo", "redo below", "cancel", "drop")):
        case "end":
            orders = [send.envelope.message for send in script.said if send.envelope.peer == worker.name]
            held = [order for message in orders if isinstance(message, StartTasks) for order in message.attempts]
            script.said.clear()
            worker.holds.update({(order.task_no, order.number): "queued" for order in held})
            by_no = {number: id for id, number in script.names.items()}
            for key in sorted(worker.holds)[: chance.randint(1, 4)]:
                if worker.holds[key] == "queued" and key in script.store.attempts and key[0] in by_no:
                    cause = chance.choice((Cause.SUCCESS, Cause.SUCCESS, Cause.EXIT))
                    script.ended(worker, by_no[key[0]], cause=cause)
        case "retry":
            script.ask("retry_failed", ids=ids)
        case "retry all":
            script.ask("retry_failed", state="failed")
        case "redo":
            script.ask("redo_task", ids=ids)
        case "redo below":
            script.ask("redo_task", ids=ids, below=True)
        case "cancel":
            script.ask("cancel", ids=ids[:1])
        case "drop":
            script.ask("drop_tasks", ids=ids[:1] if chance.random() < 0.3 else ["r:none"])


@pytest.mark.parametrize("seed", range(60))
def test_a_part_decides_like_the_whole(seed: int) -> None:
    scripts = [BossScript(Wholesale(), ahead_max=0), BossScript(Store(), ahead_max=0)]
    workers = [script.worker("w1", cpus=3) for script in scripts]
    for script in scripts:
        script.push("r", *random_graph(random.Random(seed)))
    for number in range(40):
        for script, worker in zip(scripts, workers, strict=True):
            step(script, worker, random.Random(f"{seed}/{number}"))
        assert picture(scripts[1]) == picture(scripts[0]), f"step {number}"


def failed_in_a_crowd(store: Store) -> BossScript:
    script = BossScript(store, ahead_max=0)
    crowd = [task(f"t{number}") for number in range(500)]
    script.push("r", task("a", retries=Retries(0)), task("b", after="a"), task("c", after="b"), *crowd)
    worker = script.worker("w1")
    script.take(worker, StartTasks)
    return script.ended(worker, "a", cause=Cause.EXIT)


@pytest.mark.parametrize(
    ("verb", "arguments", "read"),
    [
        ("retry_failed", {"state": "failed"}, 3),
        ("redo_task", {"ids": ["a"]}, 3),
        ("redo_task", {"ids": ["c"], "below": True}, 2),  # and the one that it depends on
        ("cancel", {"run": "r"}, 0),
        ("logs", {"ids": ["t7"]}, 1),
        ("drop_tasks", {"ids": ["t7", "t8"]}, 2),
    ],
)
def test_a_request_reads_what_it_affects(verb: str, arguments: dict[str, Any], read: int) -> None:
    script = failed_in_a_crowd(Counting())
    script.ask(verb, **arguments)
    assert isinstance(script.store, Counting)
    assert script.store.read == read


def test_a_graph_that_is_too_deep_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "MOST_LAYERS", 2)
    script = failed_in_a_crowd(Counting())
    script.ask("retry_failed", state="failed")
    assert isinstance(script.store, Counting)
    assert script.store.read == 503
    script.states(b="waiting", c="waiting")


def test_the_rows_around_are_named() -> None:
    script = failed_in_a_crowd(Store())
    (image,), _, _ = script.store.select(SelectTasks(1, ids=("c",), reads=Reads.REDONE))
    rows: dict[str, TaskRow] = {row.id: row for row in image.tasks}
    assert rows.keys() == {"b", "c"}
    assert image.around == {rows["b"].task_no}
