"""Files that tasks of one list share: what is refused, what is inferred, and what there are only notes about."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import networkx
import pytest

from ecloud.formats import ReadOptions, TaskList, TaskListWrong, check, read_task_list
from ecloud.formats.graph import Outline, dependency_order, find_cycles, predecessors_of, unordered
from ecloud.model.tasks import Dependency, Requirement, Result, TaskDefinition


def read(*tasks: dict[str, Any], infer: bool = False, **document: Any) -> TaskList:
    listed = [{"commands": "true", **task} for task in tasks]
    data = json.dumps({**document, "tasks": listed}).encode()
    return read_task_list(data, "run", ReadOptions(infer_dependencies=infer))


def refused(*tasks: dict[str, Any], **document: Any) -> list[str]:
    with pytest.raises(TaskListWrong) as caught:
        read(*tasks, **document)
    return caught.value.lines


@pytest.mark.parametrize("inner", ["data/b.txt", "data/deep/b.txt", "./data/b.txt", "data//b.txt/", ["b", "data/b"]])
@pytest.mark.parametrize("outer", ["data", "data/", "./data", ["x", "data"]])
@pytest.mark.parametrize("turned", [False, True])
def test_a_result_inside_another_tasks_directory_is_refused_and_both_are_named(
    inner: Any, outer: Any, turned: bool
) -> None:
    tasks = [{"id": "low", "results": [inner]}, {"id": "high", "results": [outer], "dependencies": ["low"]}]
    (line,) = refused(*(tasks[::-1] if turned else tasks))
    assert "task low" in line
    assert "task high" in line
    assert '"merged": ["data"]' in line


@pytest.mark.parametrize("glob", ["data/*.txt", "data/**", ["*.txt", "data"], ["*", "data/deep"], "data/deep/?/x"])
def test_a_glob_into_another_tasks_directory_is_refused(glob: Any) -> None:
    (line,) = refused({"id": "globs", "results": [glob]}, {"id": "owns", "results": ["data"]})
    assert "globs" in line
    assert "owns" in line


@pytest.mark.parametrize("other", ["data2/b", "Data/b.txt", "dat", "data.txt", "x/data"])
def test_names_that_only_look_alike_are_no_conflict(other: str) -> None:
    assert read({"id": "a", "results": ["data"]}, {"id": "b", "results": [other]}).notes == ()


def test_one_task_may_name_a_directory_and_files_in_it() -> None:
    assert read({"id": "a", "results": ["data/b.txt", "data", "data/*.csv"]}).notes == ()


def test_a_merged_directory_may_be_written_by_several_tasks() -> None:
    found = read(
        {"id": "b", "results": ["data/b.txt"]},
        {"id": "a", "results": ["./data/"]},
        {"id": "c", "results": [["out", "data"]]},
        merged=["data/"],
    )
    assert [task.results[0].merge for task in found.tasks] == [False, True, True]


def test_what_is_merged_must_be_a_result() -> None:
    assert refused({"id": "a", "results": ["data"]}, merged=["dta"]) == ["merged: 'dta' is a result of no task"]
    assert refused({"id": "a"}, merged="data") == ["merged: expected a list of datastore paths of directories"]


def test_the_same_glob_in_two_tasks_is_noted() -> None:
    (note,) = read({"id": "a", "results": ["out/*.png"]}, {"id": "b", "results": [["*.png", "out"]]}).notes
    assert note == (
        "results 'out/*.png' of tasks a, b may have the same names: a task whose file another one has published fails"
    )


def test_a_glob_that_may_match_a_named_result_is_noted() -> None:
    (note,) = read({"id": "a", "results": ["out/x.png"]}, {"id": "b", "results": ["out/*.png"]}).notes
    assert "task a" in note
    assert "task b" in note


@pytest.mark.parametrize(
    ("wanted", "made"),
    [("n", "n"), ("./n", "n/"), ("d/f", "d"), ("d", "d/f"), ("d", "d/*.txt"), ("d", ["*", "d/e"]), (["n", "x"], "n")],
)
def test_a_file_of_a_task_that_is_not_waited_for_is_refused_or_the_dependency_inferred(wanted: Any, made: Any) -> None:
    tasks = [{"id": "use", "requirements": [wanted]}, {"id": "make", "results": [made]}]
    (line,) = refused(*tasks)
    assert "task use" in line
    assert "task make" in line
    assert "--infer_dependencies" in line
    found = read(*tasks, infer=True)
    assert found.tasks[0].dependencies == (Dependency("make"),)
    assert found.notes == ("dependencies inferred from files: use -> make",)


def test_earlier_field_names_are_seen_too() -> None:
    (line,) = refused({"key": "use", "requires": ["n"]}, {"key": "make", "results": ["n"]})
    assert "task make" in line


@pytest.mark.parametrize("way", [["direct"], ["far"], ["reverse"]])
def test_any_order_between_the_two_is_enough(way: list[str]) -> None:
    make = {"id": "make", "results": ["n"], "dependencies": ["use"] if way == ["reverse"] else []}
    between = {"id": "between", "dependencies": ["make"]}
    waits = {"direct": ["make"], "far": ["between"], "reverse": []}[way[0]]
    read({"id": "use", "requirements": ["n"], "dependencies": waits}, make, between)


def test_a_task_may_require_what_it_makes_anew() -> None:
    read({"id": "a", "requirements": ["n"], "results": ["n"]})


def test_an_inferred_cycle_is_named() -> None:
    tasks = [
        {"id": "a", "requirements": ["y"], "results": ["x"]},
        {"id": "b", "requirements": ["x"], "results": ["y"]},
    ]
    with pytest.raises(TaskListWrong, match="these tasks wait for each other"):
        read(*tasks, infer=True)


def test_equal_problems_are_printed_once_with_their_number() -> None:
    lines = refused(*({"id": f"t{number}", "resources": {"gpus": 1.5}} for number in range(300)))
    assert lines == [
        "tasks t0, t1, t2 and 297 more (300 in all), resources: gpus = 1.5: a part of one GPU (0.5), or "
        "a whole number of GPUs"
    ]
    assert len(refused(*({"id": f"t{number}", "resources": {"gpus": 1.5}} for number in range(3)))) == 3


def graph_of(seed: int, count: int, with_cycles: bool) -> list[TaskDefinition]:
    chance = random.Random(seed)
    tasks = []
    for index in range(count):
        others = range(count) if with_cycles else range(index)
        wanted = chance.sample(others, min(len(others), chance.randrange(3)))
        tasks.append(TaskDefinition(str(index), dependencies=tuple(Dependency(str(other)) for other in wanted)))
    chance.shuffle(tasks)
    return tasks


@pytest.mark.parametrize("seed", range(20))
def test_unordered_pairs_are_those_of_the_oracle(seed: int) -> None:
    tasks = graph_of(seed, 40, with_cycles=False)
    predecessors = predecessors_of(tasks)
    oracle = networkx.DiGraph((other, index) for index, found in enumerate(predecessors) for other in found)
    oracle.add_nodes_from(range(len(tasks)))
    pairs = [(a, b) for a in range(0, 40, 3) for b in range(40) if a != b]
    expected = {(a, b) for a, b in pairs if not networkx.has_path(oracle, a, b) and not networkx.has_path(oracle, b, a)}
    assert set(unordered(predecessors, dependency_order(predecessors), pairs)) == expected


@pytest.mark.parametrize("seed", range(20))
def test_each_named_cycle_is_one_and_each_knot_has_one(seed: int) -> None:
    tasks = graph_of(seed, 30, with_cycles=True)
    waits = {task.id: {dependency.id for dependency in task.dependencies} for task in tasks}
    cycles = list(find_cycles(Outline(tasks)))
    for cycle in cycles:
        assert cycle[0] == cycle[-1]
        assert all(before in waits[after] for before, after in itertools.pairwise(cycle))
    oracle = networkx.DiGraph((other, name) for name, found in waits.items() for other in found if other != name)
    assert len(cycles) == sum(len(component) > 1 for component in networkx.strongly_connected_components(oracle))


def test_a_list_that_extends_a_run_may_use_a_result_behind_tasks_that_it_does_not_name() -> None:
    makes = TaskDefinition("makes", ("true",), results=(Result("out", "out"),))
    uses = TaskDefinition("uses", ("true",), (Dependency("between"),), (Requirement("out", "in"),))
    alone = TaskDefinition("alone", ("true",), (), (Requirement("out", "in"),))
    assert check([makes, uses], all_named=False) == []
    (line,) = check([makes, alone], all_named=False)
    assert line.startswith("task alone, requirements: 'out' is a result of task makes, which is not among its")
