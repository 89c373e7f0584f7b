"""Arrays: ranges and lists of values, what elements get, and what waits for them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ecloud.formats import TaskListWrong, read_task_list
from ecloud.formats.arrays import ArrayWrong, Entry, entries_of_lines, fill, numbers_of
from ecloud.model.tasks import Condition, Dependency, TaskDefinition


def read(*tasks: dict[str, Any]) -> dict[str, TaskDefinition]:
    listed = [{"commands": "true", **task} for task in tasks]
    return {task.id: task for task in read_task_list(json.dumps(listed).encode(), "run").tasks}


def refused(*tasks: dict[str, Any]) -> list[str]:
    with pytest.raises(TaskListWrong) as caught:
        read(*tasks)
    return caught.value.lines


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1-5", [1, 2, 3, 4, 5]), ("1-10:4", [1, 5, 9]), ("7", [7]), ("3,1-2, 9-9", [3, 1, 2, 9]), ("0-0", [0])],
)
def test_ranges(text: str, numbers: list[int]) -> None:
    assert numbers_of(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "5-1", "1-5:0", "1-", "-1", "1-9999999", "1;2", "1-2-3"])
def test_no_ranges(text: str) -> None:
    with pytest.raises(ArrayWrong):
        numbers_of(text)


def test_what_an_element_gets() -> None:
    found = read(
        {
            "id": "a",
            "array": "1-3:2",
            "commands": ["sim %04d {} > out-%02d", "printf '%%03d' {unknown} ${x}"],
            "requirements": [["in/{}", "in"]],
            "results": [["out-%02d", "outs/{}"]],
            "env": {"X": "1"},
        }
    )
    assert list(found) == ["a[1]", "a[3]"]
    task = found["a[3]"]
    assert task.commands == ("sim 0003 3 > out-03", "printf '%03d' {unknown} ${x}")
    assert task.requirements[0].path == "in/3"
    assert (task.results[0].local, task.results[0].path) == ("out-03", "outs/3")
    assert task.env == {"X": "1", "ECLOUD_ENTRY": "3", "ECLOUD_INDEX": "3"}


def test_values_of_a_list_are_quoted_for_the_shell_and_fields_have_names() -> None:
    found = read({"id": "a", "array": ["x y", 2, {"lr": 0.1, "name": "it's"}], "commands": "p {} {lr} {name}"})
    assert found["a[1]"].commands == ("p 'x y' {lr} {name}",)
    assert found["a[2]"].commands == ("p 2 {lr} {name}",)
    third = found["a[3]"]
    assert third.commands[0].endswith(""" 0.1 'it'"'"'s'""")
    assert third.env["ECLOUD_PARAM_NAME"] == "it's"
    assert json.loads(third.env["ECLOUD_PARAMETERS"]) == {"lr": "0.1", "name": "it's"}


def test_lines_that_are_empty_are_left_out_and_keep_their_numbers() -> None:
    assert entries_of_lines("a\r\n\n b \n") == [Entry(1, "a"), Entry(3, " b ")]
    with pytest.raises(ArrayWrong):
        entries_of_lines("\n \n")


def test_element_by_element_and_as_a_whole() -> None:
    found = read(
        {"id": "a", "array": "1-3"},
        {"id": "b", "array": "2-3", "dependencies": [{"id": "a", "each": True}, "first"]},
        {"id": "first"},
        {"id": "all", "dependencies": [{"id": "b", "on": "any"}]},
        {"id": "one", "dependencies": ["a[2]"]},
    )
    assert found["b[3]"].dependencies == (Dependency("first"), Dependency("a[3]"))
    assert found["all"].dependencies == (Dependency("b[2]", Condition.ANY), Dependency("b[3]", Condition.ANY))
    assert found["one"].dependencies == (Dependency("a[2]"),)


def test_whole_arrays_have_as_many_dependencies_as_elements() -> None:
    count = 2_500
    found = read(
        {"id": "a", "array": f"1-{count}"},
        {"id": "b", "array": f"1-{count}", "dependencies": [{"id": "a", "on": "any"}]},
        {"id": "c", "dependencies": ["b"]},
    )
    edges = sum(len(task.dependencies) for task in found.values())
    assert edges < 4 * count
    assert max(len(task.dependencies) for task in found.values()) <= 1_000
    above: set[str] = set()
    todo = ["c"]
    while todo:
        for dependency in found[todo.pop()].dependencies:
            if dependency.id not in above:
                above.add(dependency.id)
                todo.append(dependency.id)
    assert above >= {f"{name}[{number}]" for name in "ab" for number in range(1, count + 1)}
    (barrier,) = found["b[1]"].dependencies
    assert found[barrier.id].asks["cpus"] < 0.01


def test_what_is_wrong_with_arrays() -> None:
    assert refused({"id": "a", "array": "5-1"}) == ["task a, array: '5-1' has no elements"]
    assert refused({"id": "a", "array": {}})[0].startswith("task a, array: expected a range such as")
    assert refused({"id": "a", "array": []}) == ["task a, array: the list is empty"]
    assert refused(
        {"id": "a", "array": "1-3"}, {"id": "b", "array": "1-4", "dependencies": [{"id": "a", "each": True}]}
    ) == ["task b, dependencies: element 4 waits for a[4], which does not exist"]
    assert refused({"id": "a"}, {"id": "b", "dependencies": [{"id": "a", "each": True}]}) == [
        'task b, dependencies: "each" is for arrays: b and a must both be arrays'
    ]
    assert refused({"id": "a", "array": "1-2", "results": ["out"]}) == [
        "task a[2], results: 'out' is also a result of task a[1]"
    ]
    assert "at most" in refused({"id": "a", "array": "1-2000000"}, {"id": "b"})[0]


def test_padding_and_percent_signs() -> None:
    assert fill("%04d %d %%02d %2d date +%Y", Entry(7, "x")) == "0007 %d %02d %2d date +%Y"
