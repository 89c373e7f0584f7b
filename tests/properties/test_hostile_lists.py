"""The reader of task lists, whatever it is given: tasks that can be stored, or every problem in printable words."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from ecloud.formats import ReadOptions, TaskList, TaskListWrong, read_task_list
from ecloud.model.tasks import definition_json

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    *sorted((ROOT / "examples").glob("*.json")),
    *sorted((ROOT / "tests/inputs").glob("ecloud-*.json")),
    *sorted((ROOT / "tests/inputs/wf").glob("*.json")),
]
MAX_FILE_BYTES = 40_000
"""Of the documents that are damaged here: a larger one only takes longer."""
EVERY_FIELD: dict[str, Any] = {
    "name": "every field",
    "defaults": {"retries": 1, "env": {"A": "1"}, "labels": ["x"]},
    "tasks": [
        {"id": "prepare", "init": True, "commands": ["true"]},
        {"id": 7, "commands": "true", "results": ["out", ["o2", "there/o2"]], "overwrite_result": False},
        {
            "key": "last",
            "cmd": ["cd x", "make"],
            "depends-on": [7],
            "requires": [["there/o2", "in"], "out"],
            "resources": {"cpus": 0.5, "memory_mb": 100, "gpus": 1, "licence": 2},
            "priority": -3,
            "runtime_s": 1.5,
            "timeout_s": 60,
            "retries": {"max": 2, "on": ["exit", "timeout"]},
            "env": {"B": "2", "C": 3},
            "labels": ["big"],
        },
        {
            "id": "after",
            "commands": ["true"],
            "results": ["logs/*.txt"],
            "dependencies": ["last", {"id": "7", "on": "any"}],
        },
    ],
}
DOCUMENTS: list[Any] = [
    EVERY_FIELD,
    *(json.loads(path.read_bytes()) for path in FILES if path.stat().st_size <= MAX_FILE_BYTES),
]
EFFORT = settings(max_examples=400, deadline=None)


def deep(depth: int) -> Any:
    """Lists in lists."""
    found: Any = "bottom"
    for _ in range(depth):
        found = [found]
    return found


odd = st.one_of(
    st.sampled_from([
        None, True, -1, 0, 2**31, 2**63, 2**64, 10**300, -0.0, 1e308, float("inf"), float("nan"), "", " ", ".", "..",
        "/", "/etc/passwd", "../../x", "a/../../b", "a//b", "a" * 256, "é" * 255, "x" * 1_100_000, "\0",
        "\x1b[2J\x1b]0;gone\a",
        "\ud800", "\u202e", "*", "**/[", "[a-", "{}", "$(id)", "id", "prepare", "last", "7", "1_", [], {}, [[]], [{}],
        ["a", "a"], [["a", "b", "c"]], [[1, 2]], {"id": "last"}, {"id": []}, {"on": "any"}, {"id": "7", "on": "never"},
        {"max": -1}, {"max": 1, "on": "exit"}, {"": ""}, {"\x1b": "\x1b"}, {"A=B": "x"}, deep(50), deep(200),
    ]).map(copy.deepcopy),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)  # fmt: skip
"""Values that some field does not expect."""


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) in a document."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        container = left.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], (dict, list)):
                left.append(container[key])
    return found


def is_read_or_refused(data: bytes, **options: Any) -> TaskList | TaskListWrong:
    """Whatever `data` is, there is a list that can be stored or the one error, in words that any terminal can show."""
    try:
        found = read_task_list(data, "run", ReadOptions(**options))
    except TaskListWrong as wrong:
        refused = wrong
    else:
        return can_be_stored(found)
    assert refused.problems
    for line in refused.lines:
        line.encode()
        assert line.isprintable(), ascii(line)
    return refused


def can_be_stored(found: TaskList) -> TaskList:
    """The list, after the checks that follow the reader."""
    for note in found.notes:
        assert note.isprintable(), ascii(note)
    for task in found.tasks:
        definition_json(task)
    assert len({task.id for task in found.tasks}) == len(found.tasks)
    return found


@pytest.mark.parametrize("index", range(len(DOCUMENTS)))
def test_what_is_damaged_here_is_whole_before(index: int) -> None:
    found = is_read_or_refused(json.dumps(DOCUMENTS[index]).encode())
    assert isinstance(found, TaskList), found.lines


@given(st.binary(max_size=300), st.booleans())
@EFFORT
def test_any_bytes(data: bytes, create_ids: bool) -> None:
    is_read_or_refused(data, create_ids=create_ids)


@given(st.data())
@EFFORT
def test_a_list_whose_bytes_were_damaged(data: DataObject) -> None:
    text = json.dumps(data.draw(st.sampled_from(DOCUMENTS))).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        put = data.draw(st.binary(max_size=6) | st.sampled_from([b"", b"1e999", b"null", b"[" * 3_000, b"9" * 5_000]))
        text = text[:start] + put + text[end:]
    is_read_or_refused(text)


@given(st.data(), st.booleans(), st.sampled_from([None, None, 0.0, 0.5, 1e300, float("inf")]))
@EFFORT
def test_a_list_with_odd_values(data: DataObject, create_ids: bool, scale: float | None) -> None:
    document = copy.deepcopy(data.draw(st.sampled_from(DOCUMENTS)))
    for _ in range(data.draw(st.integers(1, 4))):
        container, key = data.draw(st.sampled_from(places(document) or [([None], 0)]))
        what = data.draw(st.sampled_from(["replace", "replace", "remove", "double", "rename"]))
        if what == "replace":
            container[key] = data.draw(odd)
        elif what == "remove":
            del container[key]
        elif what == "double" and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif what == "rename" and isinstance(container, dict):
            container[data.draw(st.text(max_size=8) | st.sampled_from(["ids", "\x1b[31m", "\ud800"]))] = container.pop(
                key
            )
    is_read_or_refused(json.dumps(document).encode(), create_ids=create_ids, scale=scale)


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 1_000_000,
        b'{"tasks":' * 200_000,
        b"[" + b"{}," * 100_000 + b"{}]",
        b'[{"id":"a","commands":"true","priority":' + b"9" * 1_000_000 + b"}]",
        b'[{"id":"a","commands":' + b"[" * 900 + b"]" * 900 + b"}]",
        b'{"schemaVersion":' + b"[" * 900 + b"]" * 900 + b',"workflow":{}}',
        b'{"schemaVersion":"1.5","workflow":{"\\ud800":1}}',
        b'{"workflow":{"specification":{"tasks":' + b"[" * 900 + b"]" * 900 + b"}}}",
        b'[{"id":"a","commands":"true","env":{' + b",".join(b'"k%d":"v"' % n for n in range(50_000)) + b"}}]",
    ],
    ids=[
        "lists",
        "objects",
        "nothing often",
        "digits",
        "deep commands",
        "deep version",
        "lone surrogate",
        "deep workflow",
        "many names",
    ],
)
def test_a_bomb_is_refused(bomb: bytes) -> None:
    assert isinstance(is_read_or_refused(bomb), TaskListWrong)
