"""JSON as users write it -> checked definitions: our own format, its earlier field names, and WfFormat.

Every problem is listed, with task and field. Owns the document; fields, rules and WfFormat have files of their own.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import msgspec

from ecloud.formats.checking import MAX_TASKS, find_problems, size_problem
from ecloud.formats.fields import FieldReader, WrongKind, kind_of, read_id
from ecloud.formats.file_conflicts import missing_dependencies
from ecloud.formats.paths import is_glob, normalised, text_problem
from ecloud.formats.problems import Problem, Problems, TaskList, TaskListWrong, shown
from ecloud.formats.wfformat import is_wfformat, read_wfformat
from ecloud.model.tasks import MAX_ID_CHARS, Condition, Dependency, TaskDefinition

KEYS = ("name", "defaults", "merged", "tasks")
"""Of a document that is an object."""
MAX_SCALE = 1e9
"""Of recorded sizes and run-times: their products stay numbers that a shell can be told."""


def read_task_list(
    data: bytes,
    name: str,
    *,
    scale: float | None = None,
    create_ids: bool = False,
    infer_dependencies: bool = False,
    max_tasks: int = MAX_TASKS,
) -> TaskList:
    """The tasks in `data`, checked. `name`: the run's, where the file does not give one. Raises `TaskListWrong`.

    `scale`: for WfFormat, sleep for the recorded run-times times `scale` and write files of the recorded sizes times
    `scale`. `create_ids`: tasks without an id get one from their position. `infer_dependencies`: a task that requires
    what another one produces waits for it. Above `max_tasks` the list is refused.
    """
    if scale is not None and not (math.isfinite(scale) and 0 <= scale <= MAX_SCALE):
        raise TaskListWrong([Problem("", "--scale", f"a number from 0 to {MAX_SCALE:,.0f}")])
    document = _parse(data)
    problems = Problems()
    if isinstance(document, dict) and is_wfformat(document):
        read = read_wfformat(document, name, scale, max_tasks, problems)
    elif scale is not None:
        raise TaskListWrong([Problem("", "--scale", "is for WfFormat files, which record run-times and sizes")])
    else:
        read = _read_own(document, name, create_ids, max_tasks, problems)
    if infer_dependencies:
        read = with_inferred_dependencies(read)
    notes = find_problems(read.tasks, problems, max_tasks, read.all_named)
    if not problems.is_empty:
        raise TaskListWrong(problems.kept, problems.more)
    return msgspec.structs.replace(read, notes=(*read.notes, *notes))


def with_inferred_dependencies(read: TaskList) -> TaskList:
    """The list in which each task waits for those that produce what it requires; a note names what was added."""
    added: dict[int, dict[int, None]] = {}
    for user, maker, _ in missing_dependencies(read.tasks):
        if not read.tasks[user].init:
            added.setdefault(user, {})[maker] = None
    if not added:
        return read
    tasks = list(read.tasks)
    for user, makers in added.items():
        inferred = tuple(Dependency(tasks[maker].id) for maker in makers)
        tasks[user] = msgspec.structs.replace(tasks[user], dependencies=(*tasks[user].dependencies, *inferred))
    pairs = [
        f"{shown(tasks[user].id)} -> {shown(tasks[maker].id)}" for user, makers in added.items() for maker in makers
    ]
    listed = ", ".join(pairs[:5]) + (f" and {len(pairs) - 5:,} more" if len(pairs) > 5 else "")
    return msgspec.structs.replace(
        read, tasks=tasks, notes=(*read.notes, f"dependencies inferred from files: {listed}")
    )


def _parse(data: bytes) -> Any:
    """The JSON value. Raises `TaskListWrong` with the one reason why it is none."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"line {data.count(10, 0, error.start) + 1}"
        raise TaskListWrong([Problem(place, "", f"not UTF-8: byte 0x{data[error.start]:02x}")]) from None
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise TaskListWrong([Problem(place, "", f"not JSON: {error.msg}")]) from None
    except RecursionError:
        raise TaskListWrong([Problem("", "", "nested too deeply to be a list of tasks")]) from None
    except ValueError:  # Thousands of digits.
        raise TaskListWrong([Problem("", "", "a number in it is far too long")]) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        task = found.get("id", found.get("key"))
        where = f"task {shown(task)}" if isinstance(task, str) else ""
        raise TaskListWrong([Problem(where, shown(twice), "stands twice in one object")])
    return found


def _refuse_constant(text: str) -> Any:
    raise TaskListWrong([Problem("", "", f"not JSON: {text} is no number that JSON knows")])


def _read_own(document: Any, name: str, create_ids: bool, max_tasks: int, problems: Problems) -> TaskList:
    """Our own format: a list, or {"name", "defaults", "tasks"}."""
    reader = FieldReader(problems)
    defaults: dict[str, Any] = {}
    merged: list[str] = []
    if isinstance(document, dict):
        _check_keys(document)
        name = _run_name(document["name"], problems) if "name" in document else name
        defaults = _defaults(document.get("defaults", {}), reader, problems)
        merged = _merged(document.get("merged", []), problems)
        document = document["tasks"]
    if not isinstance(document, list):
        raise TaskListWrong([Problem("", "", f"expected a list of tasks, not {kind_of(document)}")])
    if len(document) > max_tasks:
        raise TaskListWrong([Problem("", "", size_problem(len(document), max_tasks))])
    used = _ids_in(document) if create_ids else None
    tasks = []
    for index, item in enumerate(document, 1):
        task = _read_task(item, index, defaults, used, reader, problems)
        if task is not None:
            tasks.append(task)
    notes: tuple[str, ...] = ()
    if any(task.init for task in tasks):
        tasks, notes = _without_init_dependencies(tasks, problems)
    if merged:
        tasks = _with_merged(tasks, merged, problems)
    return TaskList(name, tasks, notes, all_named=len(tasks) == len(document))


def _merged(value: Any, problems: Problems) -> list[str]:
    """Directories whose files are put together from results of several tasks."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        problems.add("", "merged", "expected a list of datastore paths of directories")
        return []
    return [normalised(item) for item in value]


def _with_merged(tasks: list[TaskDefinition], merged: list[str], problems: Problems) -> list[TaskDefinition]:
    left = set(merged)
    found = []
    for task in tasks:
        if any(result.path in merged and not is_glob(result.local) for result in task.results):
            results = tuple(
                msgspec.structs.replace(result, merge=True)
                if result.path in merged and not is_glob(result.local)
                else result
                for result in task.results
            )
            left.difference_update(result.path for result in results)
            task = msgspec.structs.replace(task, results=results)
        found.append(task)
    for path in merged:
        if path in left:
            problems.add("", "merged", f"{shown(path)!r} is a result of no task")
    return found


def _check_keys(document: dict[str, Any]) -> None:
    form = f"expected a list of tasks, or an object of {', '.join(KEYS)}"
    unknown = ", ".join(shown(key) for key in list(document)[:10] if key not in KEYS)
    if "tasks" not in document:
        found = f"found {unknown}" if unknown else "tasks is missing"
        raise TaskListWrong([Problem("", "", f"{form}; {found}")])
    if unknown:
        raise TaskListWrong([Problem("", unknown, f"not known here; {form}")])


def _run_name(name: Any, problems: Problems) -> str:
    if isinstance(name, str) and 1 <= len(name) <= MAX_ID_CHARS and not text_problem(name, "") and name.isprintable():
        return name
    problems.add("", "name", f"a text of 1 to {MAX_ID_CHARS} printable characters")
    return ""


def _defaults(defaults: Any, reader: FieldReader, problems: Problems) -> dict[str, Any]:
    if not isinstance(defaults, dict):
        problems.add("", "defaults", f"expected an object of fields that all tasks share, not {kind_of(defaults)}")
        return {}
    values, named = reader.read(defaults, "defaults")
    if "id" in named:
        problems.add("defaults", "id", "each task has an id of its own")
        values.pop("id", None)
    return values


def _read_task(
    item: Any, index: int, defaults: dict[str, Any], used: set[str] | None, reader: FieldReader, problems: Problems
) -> TaskDefinition | None:
    """One task; what was wrong in it is named and left out. None where not even its id can be told.

    `used`: the ids in the list, where missing ones are to be made.
    """
    if not isinstance(item, dict):
        problems.add(f"task number {index}", "", f"expected an object, not {kind_of(item)}")
        return None
    name = item.get("id", item.get("key"))
    where = f"task {shown(str(name))}" if isinstance(name, (str, int)) else f"task number {index}"
    values, named = reader.read(item, where)
    if "id" not in named:
        if used is None:
            problems.add(where, "id", "missing; --create_ids makes ids from positions")
        else:
            values["id"] = _free_id(index, used)
    if defaults:
        values = {**{field: value for field, value in defaults.items() if field not in named}, **values}
    if "commands" not in named and "commands" not in values and not values.get("init"):
        problems.add(where, "commands", "missing")
    if "results" in named and "results" not in values:
        values.pop("overwrite_result", None)  # Else the missing results would be a second problem.
    return TaskDefinition(**values) if "id" in values else None


def _ids_in(document: list[Any]) -> set[str]:
    ids = set()
    for item in document:
        if isinstance(item, dict):
            try:
                ids.add(read_id(item.get("id", item.get("key"))))
            except WrongKind:
                continue
    return ids


def _free_id(index: int, used: set[str]) -> str:
    name = str(index)
    while name in used:
        name += "_"
    used.add(name)
    return name


def _without_init_dependencies(
    tasks: list[TaskDefinition], problems: Problems
) -> tuple[list[TaskDefinition], tuple[str, ...]]:
    """Dependencies on init tasks left out, and a note on it: an init task runs first anyway, in each worker process."""
    inits = {task.id for task in tasks if task.init}
    found = []
    names = []
    for task in tasks:
        if not task.init and any(dependency.id in inits for dependency in task.dependencies):
            for dependency in task.dependencies:
                if dependency.id in inits and dependency.on is Condition.FAILURE:
                    text = f"{shown(dependency.id)} is an init task: when it fails nothing of its run starts there"
                    problems.add(f"task {shown(task.id)}", "dependencies", text)
            names.append(shown(task.id))
            kept = tuple(dependency for dependency in task.dependencies if dependency.id not in inits)
            task = msgspec.structs.replace(task, dependencies=kept)
        found.append(task)
    if not names:
        return found, ()
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
    return found, (f"dependencies on init tasks are left out, they run first anyway (task {listed})",)
