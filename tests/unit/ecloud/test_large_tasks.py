"""A task that is too large is refused with its largest part and what to do about that."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from boss_script import BossScript, task

from ecloud.client.too_large import too_large_for_broker
from ecloud.formats import check
from ecloud.formats.large_tasks import largest_part
from ecloud.model import wire
from ecloud.model.tasks import Call, Dependency, Requirement, Result, TaskBody, TaskDefinition

MANY = tuple([f"{number:05}-{'n' * 240}" for number in range(1_000)])
WAITS = tuple(map(Dependency, MANY))


@pytest.mark.parametrize(
    ("fields", "name", "remedy"),
    [
        ({"commands": ("x" * 300_000,)}, "commands and variables", "into a file"),
        ({"dependencies": WAITS}, "1,000 dependencies", "a few tasks that each depend on a part of these"),
        ({"requirements": tuple(map(Requirement, MANY, MANY))}, "1,000 requirements", "require a directory"),
        ({"results": tuple(map(Result, MANY, MANY))}, "1,000 results", "declare a directory"),
        (
            {"dependencies": WAITS, "call": Call("f", "hash", code=b"c" * 30_000, needs=MANY), "commands": ()},
            "1,000 dependencies",
            "let other calls combine a part",
        ),
    ],
)
def test_the_largest_part_is_named_with_a_remedy_for_it(fields: dict[str, Any], name: str, remedy: str) -> None:
    definition = TaskDefinition(**{"id": "big", "commands": ("true",), **fields})
    part = largest_part(definition)
    assert part.name == name
    assert remedy in part.remedy
    text = too_large_for_broker(definition, 400_000)
    assert text.startswith("task big: its definition has 400,000 bytes")
    assert f"{part.size:,} of them {name}" in text
    assert "raise max_packet_size" in text


def test_a_task_of_more_than_8_mib_is_refused_before_it_is_sent() -> None:
    names = [f"{number:06}-{'n' * 240}" for number in range(40_000)]
    tasks = [TaskDefinition(name, ("true",)) for name in names]
    waits = TaskDefinition("last", ("true",), tuple(map(Dependency, names)))
    (problem,) = check([*tasks, waits])
    assert problem.startswith("task last: 10,")
    assert "of them 40,000 dependencies; at most 8,388,608 are allowed: let it depend on a few tasks" in problem


def test_a_task_that_the_database_can_not_take_is_refused_with_the_remedy_for_its_dependencies() -> None:
    script = BossScript(max_value_bytes=100_000)
    client = script.client()
    tasks = (*[task(name) for name in MANY], task("last", after=" ".join(MANY)))
    script.hear(client, wire.SubmitTasks("p", 0, 1, wire.PushOptions("r"), tasks))
    (problem,) = script.take(client, wire.RunRejected).problems
    assert problem.startswith("task last: its definition has 2")
    assert "of them 1,000 dependencies, and the database takes at most 100,000: let it depend on a few" in problem
    assert "raise max_allowed_packet" in problem
    assert not script.store.runs


def test_a_worker_gets_a_long_definition_without_its_dependencies() -> None:
    script = BossScript()
    worker = script.worker("w1", cpus=2_000)
    names = [f"{number:05}-{'n' * 240}" for number in range(1_200)]
    script.push("r", *[task(name) for name in names], task("last", after=" ".join(names), commands=("echo 1",)))
    while any(script.state(name) != "succeeded" for name in names):
        orders = script.take(worker, wire.StartTasks).attempts
        script.ended(worker, *[msgspec.json.decode(order.body, type=TaskBody).id for order in orders])
    (order,) = script.take(worker, wire.StartTasks).attempts
    assert len(order.body) < 1_000
    assert msgspec.json.decode(order.body, type=TaskBody) == TaskBody("last", ("echo 1",))
