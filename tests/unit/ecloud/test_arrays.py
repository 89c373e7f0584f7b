"""Arrays: ranges and lists of values, what elements get, and what waits for them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from ecloud.formats import TaskListWrong, check, read_task_list
from ecloud.formats.arrays import (
    ArrayWrong,
    as_array,
    entries_of_lines,
    fill,
    join_arrays,
    numbers_of,
    split_arrays,
)
from ecloud.model.tasks import ArrayOf, Condition, Dependency, Entry, TaskDefinition


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


def test_small_arrays_are_waited_for_through_one_task_where_dependencies_are_many() -> None:
    found = read(
        {"id": "a", "array": "1-500"},
        {"id": "b", "array": "1-600", "dependencies": [{"id": "a", "on": "any"}]},
        {"id": "c", "dependencies": ["b"]},
    )
    assert sum(len(task.dependencies) for task in found.values()) == 500 + 600 + 600
    (barrier,) = found["b[1]"].dependencies
    assert found[barrier.id].asks["cpus"] < 0.01
    assert {other.id for other in found[barrier.id].dependencies} == {f"a[{number}]" for number in range(1, 501)}


def test_large_arrays_stay_one_definition_with_one_dependency() -> None:
    found = read(
        {"id": "a", "array": "1-100000"},
        {"id": "b", "array": "1-2000:2", "dependencies": [{"id": "c", "on": "any"}]},
        {"id": "c", "array": "1-1001", "dependencies": [{"id": "a", "each": True}]},
        {"id": "d", "array": [f"value {number}" for number in range(1_001)], "dependencies": ["a"]},
    )
    assert list(found) == ["a", *[f"b[{number}]" for number in range(1, 2000, 2)], "c", "d"]
    assert found["a"].array == ArrayOf("1-100000")
    assert found["b[1]"].dependencies == (Dependency("c", Condition.ANY),)
    assert found["c"].dependencies == (Dependency("a", each=True),)
    assert found["d"].dependencies == (Dependency("a"),)
    assert found["d"].array is not None
    assert found["d"].array.entries[5] == Entry(6, "value 5")


def test_large_arrays_of_which_single_elements_are_named_become_tasks() -> None:
    found = read(
        {"id": "a", "array": "1-1500"},
        {"id": "b", "array": "1-1500", "dependencies": [{"id": "a", "each": True}]},
        {"id": "one", "dependencies": ["a[7]"]},
        {"id": "other", "array": "1-1500"},
    )
    assert len(found) == 2 * 1500 + 2
    assert found["b[7]"].dependencies == (Dependency("a[7]"),)
    assert found["other"].array is not None


def test_what_is_wrong_with_large_arrays() -> None:
    each = {"id": "b", "array": "1-1002", "dependencies": [{"id": "a", "each": True}]}
    assert refused({"id": "a", "array": "1-1001"}, each) == [
        "task b, dependencies: element 1002 waits for a[1002], which does not exist",
        "task b, dependencies: its elements wait for elements of a that do not exist",
    ]
    assert len(refused({"id": "a", "array": "1-1500", "results": ["out"]})) >= 1
    assert read({"id": "a", "array": "1-1500", "results": ["out/%04d"]})
    assert refused({"id": "a", "array": "1-1500", "results": ["out/%04d"]}, {"id": "b", "results": ["out/0007"]})
    assert refused({"id": "a", "array": "1-1500"}, {"id": "a[8]"}, {"id": "c", "dependencies": ["a"]})


@pytest.mark.parametrize("chars", [0, 10, 1_000, 40_000])
def test_arrays_are_split_for_travelling_and_joined(chars: int) -> None:
    entries = [Entry(number, "x" * chars) for number in range(1, 51 if chars > 10 else 2_001)]
    array = as_array(TaskDefinition("a", ("p {}",)), entries)
    tasks = [array, TaskDefinition("x"), msgspec.structs.replace(array, id="b"), TaskDefinition("y")]
    parts = split_arrays(tasks)
    assert len(parts) == (4 if chars < 40_000 else 18)
    assert list(join_arrays(parts)) == tasks


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
    assert check(
        [TaskDefinition("b", ("true",), (Dependency("a", each=True),), array=ArrayOf("1-3"))], all_named=False
    ) == ['task b, dependencies: "each" is for arrays of one list, and a is not in this list']
    assert refused({"id": "a", "array": "1-2", "results": ["out"]}) == [
        "task a[2], results: 'out' is also a result of task a[1]"
    ]
    assert "at most" in refused({"id": "a", "array": "1-2000000"}, {"id": "b"})[0]


def test_padding_and_percent_signs() -> None:
    assert fill("%04d %d %%02d %2d date +%Y", Entry(7, "x")) == "0007 %d %02d %2d date +%Y"


def test_each_path_of_a_large_array_is_checked_once() -> None:
    names = [f"part-{number}" for number in range(2_000)]
    names[0], names[700], names[701], names[1_999] = "/etc/first", "../up", "part-3", "/etc/last"
    task = {"id": "a", "array": names, "commands": "./run {}", "results": [["out", "{}"]]}
    with pytest.raises(TaskListWrong) as wrong:
        read_task_list(json.dumps([task]).encode(), "r")
    text = "\n".join(wrong.value.lines)
    for index in (1, 701, 2_000):
        assert text.count(f"task a[{index}], results") == 1, text
    assert "a[4]" in text, "two elements write one file"
    assert "a[702]" in text


def test_paths_of_a_large_range_are_checked_where_digits_make_a_difference() -> None:
    twice = {"id": "a", "array": "1-5000", "commands": ":", "requirements": [["in/{}", "%03d"], ["in/{}", "{}"]]}
    with pytest.raises(TaskListWrong, match="named twice"):
        read_task_list(json.dumps([twice]).encode(), "r")
