"""Convert the fields of one task from users' JSON to values of `TaskDefinition`. Defines names, earlier names and
kinds.

`checking` has the limits and the rules between tasks.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from ecloud.formats.paths import fixed_part, is_glob, normalised
from ecloud.formats.problems import Problems, shown
from ecloud.model.tasks import (
    RETRIABLE,
    Cause,
    Condition,
    Container,
    Dependency,
    Requirement,
    Result,
    Retries,
    TaskDefinition,
)

FIELDS = TaskDefinition.__struct_fields__
EARLIER_NAMES = {
    "key": "id",
    "cmd": "commands",
    "depends-on": "dependencies",
    "depends_on": "dependencies",
    "requires": "requirements",
}
"""Field names of the tool that ECLOUD replaces."""
_KNOWN = (*FIELDS, "array")
_FIELD_OF = {**{name: name for name in FIELDS}, **EARLIER_NAMES}
_CONDITIONS = {condition.value: condition for condition in Condition}
_CAUSES = {cause.value: cause for cause in RETRIABLE}
_KNOWN_CAUSES = "known causes are " + ", ".join(_CAUSES)


class WrongKind(Exception):
    """A value of the wrong kind for its field; the text is the problem."""


class FieldReader:
    """Reads objects as tasks. Adds each error to `problems` with its place, and leaves the field out."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._unknown: dict[str, str] = {}

    def read(self, item: dict[str, Any], where: str) -> tuple[dict[str, Any], set[str]]:
        """Return values by field, and the fields that the user gave (valid or not)."""
        values: dict[str, Any] = {}
        named: set[str] = set()
        for key, given in item.items():
            field = _FIELD_OF.get(key)
            if key == "array":
                continue  # The list's reader expands the array.
            if field is None:
                self._problems.add(where, shown(key), self._unknown_field(key))
            elif field in named:
                self._problems.add(where, field, "given twice: by its name and by an earlier name of it")
            else:
                named.add(field)
                try:
                    values[field] = _READERS[field](given)
                except WrongKind as wrong:
                    self._problems.add(where, field, str(wrong))
        return values, named

    def _unknown_field(self, key: str) -> str:
        text = self._unknown.get(key)
        if text is None:
            nearest = difflib.get_close_matches(key[:100], [*_FIELD_OF, "array"], 1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(_KNOWN)}"
            text = f"a task has no such field; {hint}"
            if len(self._unknown) < 1_000:
                self._unknown[key] = text
        return text


def kind_of(value: Any) -> str:
    """Describe the kind of a JSON value."""
    if value is True or value is False:
        return "true or false"
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return names.get(type(value), "a number")


def read_id(value: Any) -> str:
    """Read an id; a whole number is also valid. Raises `WrongKind`."""
    if type(value) is int:
        return str(value)
    return _text(value)


def read_results(value: Any) -> tuple[Result, ...]:
    """Read results as a task lists them. Raises `WrongKind`."""
    return _results(value)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise WrongKind(f"expected a text, not {kind_of(value)}")
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise WrongKind(f"expected true or false, not {kind_of(value)}")
    return value


def _int(value: Any) -> int:
    if type(value) is not int:
        raise WrongKind("expected a whole number" + ("" if type(value) is float else f", not {kind_of(value)}"))
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise WrongKind(f"expected a number, not {kind_of(value)}")
    try:
        return float(value)
    except OverflowError:
        raise WrongKind("the number is too large") from None


def _optional_number(value: Any) -> float | None:
    return None if value is None else _number(value)


def _list(value: Any) -> list[Any]:
    if type(value) is list:
        return value
    if type(value) in (dict, bool, float, type(None)):
        raise WrongKind(f"expected a list, not {kind_of(value)}")
    return [value]


def _texts(value: Any) -> tuple[str, ...]:
    return tuple([_text(item) for item in _list(value)])


def _object(value: Any, what: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise WrongKind(f"expected {what}, not {kind_of(value)}")
    return value


def _dependencies(value: Any) -> tuple[Dependency, ...]:
    found: dict[str, Dependency] = {}
    for item in _list(value):
        if type(item) is str:
            dependency = Dependency(item)
        elif type(item) is dict:
            dependency = _conditional(item)
        else:
            dependency = Dependency(read_id(item))
        if found.setdefault(dependency.id, dependency) != dependency:
            raise WrongKind(f"task {shown(dependency.id)} is named twice, with different conditions")
    return tuple(found.values())


def _conditional(item: dict[str, Any]) -> Dependency:
    if not {"id"} <= set(item) <= {"id", "on", "each"}:
        raise WrongKind('a dependency is an id, or {"id", "on", "each"}')
    wanted = item.get("on", "success")
    condition = _CONDITIONS.get(wanted) if type(wanted) is str else None
    if condition is None:
        raise WrongKind(f"on: known are {', '.join(_CONDITIONS)}")
    return Dependency(read_id(item["id"]), condition, _bool(item.get("each", False)))


def _pairs(value: Any, form: str) -> list[tuple[str, str]]:
    pairs = []
    for item in _list(value):
        if type(item) is str:
            pairs.append((item, item))
        elif type(item) is list and len(item) == 2 and type(item[0]) is str and type(item[1]) is str:
            pairs.append((item[0], item[1]))
        else:
            raise WrongKind(f"each is a path, or {form}")
    return pairs


def _requirements(value: Any) -> tuple[Requirement, ...]:
    pairs = _pairs(value, "[datastore path, local path]")
    return tuple([Requirement(normalised(path), normalised(local)) for path, local in dict.fromkeys(pairs)])


def _results(value: Any) -> tuple[Result, ...]:
    found = []
    for index, (local, path) in enumerate(_pairs(value, "[local path, datastore path]")):
        local, path = normalised(local), normalised(path)
        if is_glob(local) and (type(value) is str or type(value[index]) is str):
            path = local if local.startswith("/") else fixed_part(local)
        found.append(Result(local, path))
    return tuple(found)


def _resources(value: Any) -> dict[str, float]:
    amounts = {name: _number(amount) for name, amount in _object(value, "amounts by name").items()}
    # An amount of 0 is the same as no entry, but the check must refuse 0 CPUs.
    return {name: amount for name, amount in amounts.items() if amount != 0 or name == "cpus"}


def _retries(value: Any) -> Retries:
    if type(value) is not dict:
        return Retries(_int(value))
    if not {"max"} <= set(value) <= {"max", "on", "grow"}:
        raise WrongKind('a number, or {"max": N}, optionally with "on" and "grow"')
    causes: tuple[Cause, ...] = RETRIABLE
    if "on" in value:
        names = _texts(value["on"])
        if not set(names) <= set(_CAUSES):
            raise WrongKind(f"on: {_KNOWN_CAUSES}")
        causes = tuple(cause for cause in RETRIABLE if cause.value in names)
    return Retries(_int(value["max"]), causes, _number(value.get("grow", 1.0)))


def _env(value: Any) -> dict[str, str]:
    return {
        name: str(item) if type(item) in (int, float) else _text(item)
        for name, item in _object(value, "texts by name").items()
    }


def _container(value: Any) -> Container | None:
    if value is None:
        return None
    if type(value) is str:
        return Container(value)
    given = _object(value, 'an image, or {"image", "runtime", "binds", "gpus"}')
    if not {"image"} <= set(given) <= set(Container.__struct_fields__):
        raise WrongKind('an image, or {"image", "runtime", "binds", "gpus"}')
    return Container(
        _text(given["image"]),
        _text(given.get("runtime", "auto")),
        _texts(given.get("binds", [])),
        _bool(given.get("gpus", False)),
    )


_READERS: dict[str, Callable[[Any], Any]] = {
    "id": read_id,
    "commands": _texts,
    "dependencies": _dependencies,
    "requirements": _requirements,
    "results": _results,
    "init": _bool,
    "overwrite_result": _bool,
    "resources": _resources,
    "priority": _int,
    "runtime_s": _optional_number,
    "timeout_s": _optional_number,
    "retries": _retries,
    "env": _env,
    "labels": _texts,
    "stdout": _text,
    "stderr": _text,
    "shell": _text,
    "container": _container,
}
