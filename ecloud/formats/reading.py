"""JSON as users write it -> definitions: our own format, its earlier field names, and WfFormat. Every problem is listed."""

from __future__ import annotations

import difflib
import json
from typing import Any

from ecloud.formats.checking import MAX_TASKS, check, is_glob, problems_of, shown
from ecloud.formats.problems import Problem, TaskList, TaskListWrong
from ecloud.formats.wfformat import is_wfformat, read_wfformat
from ecloud.tasks import RETRIABLE, Cause, Condition, Dependency, Requirement, Result, Retries, TaskDefinition

EARLIER_NAMES = {
    "key": "id",
    "cmd": "commands",
    "depends-on": "dependencies",
    "depends_on": "dependencies",
    "requires": "requirements",
}
"""Field names of the tool this one replaces."""
FIELDS = TaskDefinition.__struct_fields__


def read_task_list(
    data: bytes, name: str, *, scale: float | None = None, create_ids: bool = False, max_tasks: int = MAX_TASKS
) -> TaskList:
    """The tasks in `data`, checked. `name`: the run's, where the file does not give one. Raises `TaskListWrong`.

    `scale`: for WfFormat, sleep for the recorded run-times times `scale` and write files of the recorded sizes times `scale`.
    `create_ids`: tasks without an id get one from their position.
    """
    document = _parse(data)
    if isinstance(document, dict) and is_wfformat(document):
        read = read_wfformat(document, name, scale)
        return _checked(read, [], max_tasks)
    if scale is not None:
        raise TaskListWrong([Problem("", "", "--scale is for WfFormat files, which record run-times and sizes")])
    defaults: dict[str, Any] = {}
    if isinstance(document, dict):
        unknown = sorted(set(document) - {"name", "defaults", "tasks"})
        if "tasks" not in document or unknown:
            keys = f"; unknown: {', '.join(map(shown, unknown))}" if unknown else ""
            raise TaskListWrong([Problem("", "", f'expected a list of tasks, or {{"name", "defaults", "tasks"}}{keys}')])
        if "name" in document:
            if not isinstance(document["name"], str) or not 1 <= len(document["name"]) <= 255:
                raise TaskListWrong([Problem("", "name", "a text of 1 to 255 characters")])
            name = document["name"]
        defaults = document.get("defaults", {})
        if not isinstance(defaults, dict):
            raise TaskListWrong([Problem("", "defaults", "an object of fields that all tasks share")])
        document = document["tasks"]
    if not isinstance(document, list):
        raise TaskListWrong([Problem("", "", f"expected a list of tasks, not {_kind(document)}")])
    if len(document) > max_tasks:
        raise TaskListWrong([Problem("", "", check_size(len(document), max_tasks))])
    problems: list[Problem] = []
    used = {str(item.get("id", item.get("key"))) for item in document if isinstance(item, dict)} if create_ids else set()
    tasks = []
    for index, item in enumerate(document, 1):
        reader = _Task(item, defaults, index, problems)
        task = reader.read(_free_id(index, used) if create_ids else None)
        if task is not None:
            tasks.append(task)
    return _checked(_without_init_dependencies(TaskList(name, tasks)), problems, max_tasks)


def check_size(count: int, max_tasks: int) -> str:
    """The sentence for a list that is too large."""
    return f"{count:,} tasks; at most {max_tasks:,} are taken at once (MAX_TASKS_PER_PUSH)"


def _parse(data: bytes) -> Any:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TaskListWrong([Problem(f"line {line}", "", f"not UTF-8: byte 0x{data[error.start]:02x}")]) from None

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            names = [key for key, _ in items]
            twice = next(key for key in names if names.count(key) > 1)
            raise TaskListWrong([Problem("", "", f"{shown(twice)!r} stands twice in one object")])
        return found

    def constant(text: str) -> Any:
        raise TaskListWrong([Problem("", "", f"{text} is not JSON")])

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise TaskListWrong([Problem(place, "", f"not JSON: {error.msg}")]) from None
    except RecursionError:
        raise TaskListWrong([Problem("", "", "nested too deeply to be a list of tasks")]) from None
    except ValueError as error:
        raise TaskListWrong([Problem("", "", f"not JSON: {error}")]) from None


def _checked(read: TaskList, problems: list[Problem], max_tasks: int) -> TaskList:
    if problems:
        # Tasks that could not be read are not there to be found: what others say of them is not judged.
        problems += [
            Problem(f"task {shown(task.id)}", field, text) for task in read.tasks for field, text in problems_of(task)
        ]
    else:
        problems = [Problem("", "", line) for line in check(read.tasks, max_tasks)]
    if problems:
        raise TaskListWrong(problems)
    return read


def _free_id(index: int, used: set[str]) -> str:
    name = str(index)
    while name in used:
        name += "_"
    used.add(name)
    return name


def _without_init_dependencies(read: TaskList) -> TaskList:
    inits = {task.id for task in read.tasks if task.init}
    if not inits:
        return read
    tasks, notes = [], list(read.notes)
    for task in read.tasks:
        kept = tuple(dependency for dependency in task.dependencies if dependency.id not in inits)
        if len(kept) != len(task.dependencies) and not task.init:
            notes.append(f"task {shown(task.id)}: its dependency on an init task is left out; init tasks run first anyway")
            fields = {name: getattr(task, name) for name in FIELDS} | {"dependencies": kept}
            task = TaskDefinition(**fields)
        tasks.append(task)
    return TaskList(read.name, tasks, tuple(notes), read.initial_inputs)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


class _Wrong(Exception):
    """A value of the wrong kind; its text is the problem."""


class _Task:
    """One task's reading: problems go to the list, with task and field."""

    def __init__(self, item: Any, defaults: dict[str, Any], index: int, problems: list[Problem]) -> None:
        self._item = item
        self._defaults = defaults
        self._problems = problems
        self._where = f"task number {index}"

    def read(self, created_id: str | None) -> TaskDefinition | None:
        """The definition; None where there are problems."""
        if not isinstance(self._item, dict):
            self._problems.append(Problem(self._where, "", f"expected an object, not {_kind(self._item)}"))
            return None
        fields = self._named({**self._defaults, **self._item})
        if "id" not in fields and created_id is not None:
            fields["id"] = created_id
        if isinstance(fields.get("id"), str):
            self._where = f"task {shown(fields['id'])}"
        before = len(self._problems)
        values: dict[str, Any] = {}
        for name, value in fields.items():
            if name in _READERS:
                try:
                    values[name] = _READERS[name](value)
                except _Wrong as wrong:
                    self._problems.append(Problem(self._where, name, str(wrong)))
        if "id" not in fields:
            self._problems.append(Problem(self._where, "id", "missing (or let --create_ids make them)"))
        if "commands" not in fields and not fields.get("init"):
            self._problems.append(Problem(self._where, "commands", "missing"))
        return TaskDefinition(**values) if len(self._problems) == before else None

    def _named(self, item: dict[str, Any]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for key, value in item.items():
            name = EARLIER_NAMES.get(key, key)
            if name not in FIELDS:
                nearest = difflib.get_close_matches(key, [*FIELDS, *EARLIER_NAMES], 1)
                hint = f"; did you mean {nearest[0]}?" if nearest else f"; known are {', '.join(FIELDS)}"
                self._problems.append(Problem(self._where, shown(key), f"no field of a task{hint}"))
            elif name in fields and key in self._item and key != name:
                self._problems.append(Problem(self._where, name, f"given twice, as {name} and as {key}"))
            else:
                fields[name] = value
        return fields


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong(f"expected a text, not {_kind(value)}")
    return value


def _id(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong(f"expected true or false, not {_kind(value)}")
    return value


def _int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Wrong(f"expected a whole number, not {_kind(value)}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Wrong(f"expected a number, not {_kind(value)}")
    try:
        return float(value)
    except OverflowError:
        raise _Wrong("too large") from None


def _optional_number(value: Any) -> float | None:
    return None if value is None else _number(value)


def _list(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise _Wrong(f"expected a list, not {_kind(value)}")
    return value


def _commands(value: Any) -> tuple[str, ...]:
    return tuple(_text(item) for item in _list(value))


def _dependencies(value: Any) -> tuple[Dependency, ...]:
    found: dict[str, Dependency] = {}
    for item in _list(value):
        if isinstance(item, dict):
            if set(item) - {"id", "on"} or "id" not in item:
                raise _Wrong('a dependency is an id, or {"id", "on"}')
            try:
                dependency = Dependency(_id(item["id"]), Condition(item.get("on", "success")))
            except ValueError:
                raise _Wrong(f"on: {item.get('on')!r}; known are success, any, failure") from None
        else:
            dependency = Dependency(_id(item))
        found[dependency.id] = dependency
    return tuple(found.values())


def _pair(item: Any) -> tuple[str, str]:
    if isinstance(item, str):
        return item, item
    if isinstance(item, list) and len(item) == 2:
        return _text(item[0]), _text(item[1])
    raise _Wrong("a path, or a list of two paths")


def _normalised(path: str) -> str:
    """`a//b/./c/` is a/b/c. What leads out or is absolute is left for the check to name."""
    if path.startswith("/"):
        return path
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/".join(parts) or ("." if path else "")


def _requirements(value: Any) -> tuple[Requirement, ...]:
    return tuple(Requirement(_normalised(path), _normalised(local)) for path, local in map(_pair, _list(value)))


def _results(value: Any) -> tuple[Result, ...]:
    found = []
    for item in _list(value):
        local, path = (_normalised(part) for part in _pair(item))
        if isinstance(item, str) and is_glob(local):
            fixed = []
            for part in local.split("/")[:-1]:
                if is_glob(part):
                    break
                fixed.append(part)
            path = "/".join(fixed) or "."
        found.append(Result(local, path))
    return tuple(found)


def _resources(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise _Wrong(f"expected amounts by name, not {_kind(value)}")
    return {name: _number(amount) for name, amount in value.items()}


def _retries(value: Any) -> Retries:
    if not isinstance(value, dict):
        return Retries(_int(value))
    if set(value) - {"max", "on"} or "max" not in value:
        raise _Wrong('a number, or {"max", "on"}')
    known = ", ".join(cause.value for cause in RETRIABLE)
    try:
        causes = tuple(Cause(item) for item in _list(value.get("on", [cause.value for cause in RETRIABLE])))
    except ValueError:
        raise _Wrong(f"on: known causes are {known}") from None
    if any(cause not in RETRIABLE for cause in causes):
        raise _Wrong(f"on: known causes are {known}")
    return Retries(_int(value["max"]), causes)


def _env(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _Wrong(f"expected texts by name, not {_kind(value)}")
    return {name: str(item) if type(item) in (int, float) else _text(item) for name, item in value.items()}


_READERS = {
    "id": _id,
    "commands": _commands,
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
    "labels": _commands,
}
