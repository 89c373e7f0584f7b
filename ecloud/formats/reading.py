"""Files as users write them -> checked definitions: our own format, its earlier field names, WfFormat, sweeps.

Every problem is listed, with its place. Owns the document; fields, rules and the other formats have files of their own.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import msgspec

from ecloud.formats.arrays import BARRIER, MAX_DIRECT, MAX_ELEMENTS, ArrayWrong, Expansion, entries_of
from ecloud.formats.checking import MAX_TASKS, find_problems, size_problem
from ecloud.formats.fields import FieldReader, WrongKind, kind_of, read_id
from ecloud.formats.file_conflicts import missing_dependencies
from ecloud.formats.paths import is_glob, normalised, text_problem
from ecloud.formats.problems import Problem, Problems, TaskList, TaskListWrong, shown
from ecloud.formats.sweep import is_sweep, read_sweep, sweep_tasks
from ecloud.formats.sweep.yaml_nodes import compose, plain_value
from ecloud.formats.wfformat import is_wfformat, read_wfformat
from ecloud.model.tasks import MAX_ID_CHARS, Condition, Dependency, Entry, TaskDefinition

KEYS = ("name", "defaults", "merged", "tasks")
"""Of a document that is an object."""
FORMATS = ("auto", "tasks", "wfformat", "sweep")
"""What `--format` names."""
ASK_ABOVE = 1_000_000
"""Combinations of a sweep that are confirmed first."""
MAX_SCALE = 1e9
"""Of recorded sizes and run-times: their products stay numbers that a shell can be told."""


class ReadOptions(msgspec.Struct, frozen=True):
    """How a list is read.

    `format`: one of `FORMATS`. `scale`: for WfFormat, sleep for the recorded run-times times `scale` and write files of
    the recorded sizes times `scale`. `create_ids`: tasks without an id get one from their position.
    `infer_dependencies`: a task that requires what another one produces waits for it. `run`: the run's name, whatever
    the file says. `program`, `samples`: of a sweep, instead of the file's. `output`: a datastore directory for the
    whole outputs of all tasks that name none. `confirmed`: more than `ASK_ABOVE` combinations are wanted.
    `plain_arrays`: large arrays become plain tasks, too, as where it is asked which results of each exist.
    """

    format: str = "auto"
    scale: float | None = None
    create_ids: bool = False
    infer_dependencies: bool = False
    run: str = ""
    program: str = ""
    samples: int = 0
    output: str = ""
    confirmed: bool = False
    plain_arrays: bool = False

    @property
    def whole_above(self) -> int:
        """Arrays with more elements stay one definition."""
        return MAX_ELEMENTS if self.plain_arrays else MAX_DIRECT


DEFAULTS = ReadOptions()


class TooManyCombinations(TaskListWrong):
    """A sweep that should be confirmed first: it has `count` combinations."""

    def __init__(self, count: int) -> None:
        super().__init__([Problem("", "", f"{count:,} combinations: confirm with --yes")])
        self.count = count


def read_task_list(data: bytes, name: str, options: ReadOptions = DEFAULTS, max_tasks: int = MAX_TASKS) -> TaskList:
    """The tasks in `data`, checked. `name`: the run's, where neither options nor the file give one.

    Raises `TaskListWrong`; `TooManyCombinations` where a sweep should be confirmed.
    """
    scale = options.scale
    if scale is not None and not (math.isfinite(scale) and 0 <= scale <= MAX_SCALE):
        raise TaskListWrong([Problem("", "--scale", f"a number from 0 to {MAX_SCALE:,.0f}")])
    problems = Problems()
    read = _read_any(_text_of(data), name, options, max_tasks, problems)
    if options.run:
        read = msgspec.structs.replace(read, name=options.run)
    return checked(read, options, max_tasks, problems)


def checked(read: TaskList, options: ReadOptions, max_tasks: int, problems: Problems) -> TaskList:
    """A list after the check of all its tasks, which adds to `problems`. Raises `TaskListWrong`."""
    if options.output:
        read = msgspec.structs.replace(read, tasks=with_outputs(read.tasks, options.output))
    if options.infer_dependencies:
        read = with_inferred_dependencies(read)
    notes = find_problems(read.tasks, problems, max_tasks, read.all_named)
    if not problems.is_empty:
        raise TaskListWrong(problems.kept, problems.more)
    return msgspec.structs.replace(read, notes=(*read.notes, *notes))


def _read_any(text: str, name: str, options: ReadOptions, max_tasks: int, problems: Problems) -> TaskList:
    """By the format that was named, else by what the content is."""
    if options.format == "sweep" or (options.format == "auto" and not text.lstrip().startswith(("[", "{"))):
        return _read_yaml(text, name, options, max_tasks, problems)
    document = _parse(text)
    if isinstance(document, dict):
        if options.format == "auto" and "parameters" in document and "tasks" not in document:
            return _read_yaml(text, name, options, max_tasks, problems)
        if options.format == "wfformat" or (options.format == "auto" and is_wfformat(document)):
            return read_wfformat(document, name, options.scale, max_tasks, problems)
    if options.format == "wfformat":
        raise TaskListWrong([Problem("", "", f"expected a WfFormat object, not {kind_of(document)}")])
    return _read_list(document, name, options, max_tasks, problems)


def _read_list(document: Any, name: str, options: ReadOptions, max_tasks: int, problems: Problems) -> TaskList:
    if options.scale is not None:
        raise TaskListWrong([Problem("", "--scale", "is for WfFormat files, which record run-times and sizes")])
    if options.program or options.samples:
        raise TaskListWrong([Problem("", "", "--program and --samples are for sweeps, and this is a task list")])
    return _read_own(document, name, options, max_tasks, problems)


def _read_yaml(text: str, name: str, options: ReadOptions, max_tasks: int, problems: Problems) -> TaskList:
    """A sweep; or a task list that is written in YAML."""
    node = compose(text)
    if not is_sweep(node):
        if node.id == "scalar":
            raise TaskListWrong([Problem("", "", "neither JSON nor YAML: expected a list of tasks, or a sweep")])
        if options.format == "sweep":
            raise TaskListWrong([Problem("", "", "a task list, not a sweep")])
        return _read_list(plain_value(node, problems), name, options, max_tasks, problems)
    if options.scale is not None:
        raise TaskListWrong([Problem("", "--scale", "is for WfFormat files, which record run-times and sizes")])
    sweep = read_sweep(node, name, options.program, options.samples)
    if options.run:
        sweep = msgspec.structs.replace(sweep, name=options.run)
    if sweep.count > max_tasks and not (sweep.keep or sweep.exclude or sweep.only_if):
        raise TaskListWrong([Problem("", "", size_problem(sweep.count, max_tasks))])
    if sweep.count > ASK_ABOVE and not options.confirmed:
        raise TooManyCombinations(sweep.count)
    return sweep_tasks(sweep, max_tasks)


def with_outputs(tasks: list[TaskDefinition], directory: str) -> list[TaskDefinition]:
    """The tasks, each of which keeps its whole outputs below a datastore directory, unless it says where."""
    top = normalised(directory.replace("%", "%%"))
    both = {"stdout": f"{top}/%t.%a.out", "stderr": f"{top}/%t.%a.err"}
    return [
        task
        if task.init or task.labels == BARRIER or task.stdout or task.stderr
        else msgspec.structs.replace(task, **both)
        for task in tasks
    ]


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


def _text_of(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"line {data.count(10, 0, error.start) + 1}"
        raise TaskListWrong([Problem(place, "", f"not UTF-8: byte 0x{data[error.start]:02x}")]) from None


def _parse(text: str) -> Any:
    """The JSON value. Raises `TaskListWrong` with the one reason why it is none."""
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


def _read_own(document: Any, name: str, options: ReadOptions, max_tasks: int, problems: Problems) -> TaskList:
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
    used = _ids_in(document) if options.create_ids else None
    tasks = []
    arrays: dict[str, list[Entry]] = {}
    for index, item in enumerate(document, 1):
        task = _read_task(item, index, defaults, used, reader, problems)
        if task is not None:
            tasks.append(task)
            if "array" in item:
                arrays[task.id] = _entries(item["array"], task, problems)
    all_named = len(tasks) == len(document)
    if arrays or any(other.each for task in tasks for other in task.dependencies):
        count = len(tasks) + sum(map(len, arrays.values()))
        if count > max_tasks:
            raise TaskListWrong([Problem("", "", size_problem(count, max_tasks))])
        tasks = Expansion(arrays, problems, options.whole_above).expand(tasks)
    notes: tuple[str, ...] = ()
    if any(task.init for task in tasks):
        tasks, notes = _without_init_dependencies(tasks, problems)
    if merged:
        tasks = _with_merged(tasks, merged, problems)
    return TaskList(name, tasks, notes, all_named=all_named)


def _entries(value: Any, task: TaskDefinition, problems: Problems) -> list[Entry]:
    """The elements of an array task; one to continue with where something is wrong."""
    try:
        if task.init:
            raise ArrayWrong("an init task is no array: it runs once in each worker process")
        return entries_of(value)
    except ArrayWrong as wrong:
        problems.add(f"task {shown(task.id)}", "array", str(wrong))
        return [Entry(1, "")]


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
