"""YAML as nodes with their places. Nothing is constructed: scalars stay texts, tags run nothing.

PyYAML's values would lose what was written: `1e-3` becomes a text, `no` a boolean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeAlias

from ecloud.formats.problems import Problem, Problems, TaskListWrong, shown

MAX_DEPTH = 100
MAX_NODES = 5_000_000
"""Values that are made of nodes: aliases can stand for many more than the file has."""
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False, "True": True, "False": False}

YamlNode: TypeAlias = Any
"""`yaml.Node`: the library is imported where a file needs it, since workers have none."""


def compose(text: str) -> YamlNode:
    """The one document of a text. Raises `TaskListWrong`."""
    import yaml

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        node = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = place(mark.line, mark.column) if mark else ""
        raise TaskListWrong([Problem(where, "", f"not YAML: {error.problem or error.context}")]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise TaskListWrong([Problem(f"line {line}", "", f"not YAML: {error.reason}")]) from None
    except RecursionError:
        raise TaskListWrong([Problem("", "", "nested too deeply")]) from None
    if node is None:
        raise TaskListWrong([Problem("", "", "the file is empty")])
    return node


def place(line: int, column: int) -> str:
    """A place as editors count, from 1. `line` and `column` count from 0."""
    return f"line {line + 1}, column {column + 1}"


def place_of(node: YamlNode, offset: int = 0) -> str:
    """Where a node begins, or `offset` characters into its text."""
    quote = node.id == "scalar" and node.style in ("'", '"')
    return place(node.start_mark.line, node.start_mark.column + offset + (quote if offset or quote else 0))


def pairs_of(node: YamlNode, problems: Problems, what: str) -> Iterator[tuple[str, YamlNode, YamlNode]]:
    """(name, key node, value node) of a mapping; what is no mapping, and keys that are no texts or stand twice, are
    problems."""
    if node.id != "mapping":
        problems.add(place_of(node), "", f"{what}: expected names with values, not {kind(node)}")
        return
    seen: dict[str, str] = {}
    for key, value in node.value:
        if key.id != "scalar":
            problems.add(place_of(key), "", f"{what}: a name is a text, not {kind(key)}")
        elif key.value in seen:
            text = f"{shown(key.value)} occurs twice, first at {seen[key.value]}"
            problems.add(place_of(key), "", text)
        else:
            seen[key.value] = place_of(key)
            yield key.value, key, value


def kind(node: YamlNode) -> str:
    """What a node is, in words."""
    return {"mapping": "names with values", "sequence": "a list", "scalar": "a single value"}[node.id]


def is_plain(node: YamlNode) -> bool:
    """Whether a scalar was written without quotes."""
    return node.id == "scalar" and node.style not in ("'", '"', "|", ">")


def plain_value(node: YamlNode, problems: Problems) -> Any:
    """A node as JSON would have it: numbers, true, false and null only where they are unmistakable."""
    return _Plain(problems).value(node, 0)


class _Plain:
    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._left = MAX_NODES

    def value(self, node: YamlNode, depth: int) -> Any:
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            raise TaskListWrong(
                [Problem(place_of(node), "", "nested too deeply, or too large once aliases are followed")]
            )
        if node.id == "sequence":
            return [self.value(item, depth + 1) for item in node.value]
        if node.id == "mapping":
            pairs = pairs_of(node, self._problems, "here")
            return {name: self.value(item, depth + 1) for name, _, item in pairs}
        if not is_plain(node):
            return node.value
        return scalar_value(node.value)


def scalar_value(text: str) -> Any:
    """A text without quotes as a value."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text) and len(text) <= 300:
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
