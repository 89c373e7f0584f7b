"""Read users' files and return checked definitions: ECLOUD's own format, its earlier field names, WfFormat, sweeps.

Lists every problem with its place. Reads the document; other modules read the fields, the rules and the other formats.
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
"""Keys of a document that is an object."""
FORMATS = ("auto", "tasks", "wfformat", "sweep")
"""Values of `--format`."""
ASK_ABOVE = 1_000_000
"""Number of combinations of a sweep above which the user must confirm."""
MAX_SCALE = 1e9
"""Maximum factor for recorded sizes and run-times, so that a shell can use the products."""


class ReadOptions(msgspec.Struct, frozen=True):
    """Options for reading a list.

    `format`: one of `FORMATS`. `scale`: for WfFormat, sleep for the recorded run-times times `scale` and write files of
    the recorded sizes times `scale`. `create_ids`: make ids from positions for tasks without one. `infer_dependencies`:
    let a task that requires a result of another task wait for that task. `run`: the run's name, overrides that of the
    file. `program`, `samples`: of a sweep, override those of the file. `output`: a datastore directory for the whole
    outputs of all tasks that name none. `confirmed`: accept more than `ASK_ABOVE` combinations. `plain_arrays`: also
    expand large arrays to plain tasks, for example to check which results of each exist.
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
        """Number of elements above which an array stays one definition."""
        return MAX_ELEMENTS if self.plain_arrays else MAX_DIRECT


DEFAULTS = ReadOptions()


class TooManyCombinations(TaskListWrong):
    """A sweep of `count` combinations, which the user must confirm."""

    def __init__(self, count: int) -> None:
        super().__init__([Problem("", "", f"{count:,} combinations: confirm with --yes")])
        self.count = count


def read_task_list(data: bytes, name: str, options: ReadOptions = DEFAULTS, max_tasks: int = MAX_TASKS) -> TaskList:
    """Read and check the tasks in `data`. `name`: the run's name if neither options nor the file give one.

    Raises `TaskListWrong`; `TooManyCombinations` if the user must confirm a sweep.
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
    """Check all tasks of a list and return it; adds to `problems`. Raises `TaskListWrong`."""
    if options.output:
        read = msgspec.structs.replace(read, tasks=with_outputs(read.tasks, options.output))
    if options.infer_dependencies:
        read = with_inferred_dependencies(read)
    notes = find_problems(read.tasks, problems, max_tasks, read.all_named)
    if not problems.is_empty:
        raise TaskListWrong(problems.kept, problems.more)
    return msgspec.structs.replace(read, notes=(*read.notes, *notes))


def _read_any(text: str, name: str, options: ReadOptions, max_tasks: int, problems: Problems) -> TaskList:
    """Read by the given format, else detect the format from the content."""
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
        raise TaskListWrong([Problem("", "--scale", "is only for WfFormat files, which record run times and sizes")])
    if options.program or options.samples:
        raise TaskListWrong([Problem("", "", "--program and --samples are for sweeps, and this is a task list")])
    return _read_own(document, name, options, max_tasks, problems)


def _read_yaml(text: str, name: str, options: ReadOptions, max_tasks: int, problems: Problems) -> TaskList:
    """Read a sweep, or a task list written in YAML."""
    node = compose(text)
    if not is_sweep(node):
        if node.id == "scalar":
            raise TaskListWrong([Problem("", "", "neither JSON nor YAML: expected a list of tasks, or a sweep")])
        if options.format == "sweep":
            raise TaskListWrong([Problem("", "", "a task list, not a sweep")])
        return _read_list(plain_value(node, problems), name, options, max_tasks, problems)
    if options.scale is not None:
        raise TaskListWrong([Problem("", "--scale", "is only for WfFormat files, which record run times and sizes")])
    sweep = read_sweep(node, name, options.program, options.samples)
    if options.run:
        sweep = msgspec.structs.replace(sweep, name=options.run)
    if sweep.count > max_tasks and not (sweep.keep or sweep.exclude or sweep.only_if):
        raise TaskListWrong([Problem("", "", size_problem(sweep.count, max_tasks))])
    if sweep.count > ASK_ABOVE and not options.confirmed:
        raise TooManyCombinations(sweep.count)
    return sweep_tasks(sweep, max_tasks)


def with_outputs(tasks: list[TaskDefinition], directory: str) -> list[TaskDefinition]:
    """Let each task keep its whole outputs below a datastore directory, unless the task names paths."""
    top = normalised(directory.replace("%", "%%"))
    both = {"stdout": f"{top}/%t.%a.out", "stderr": f"{top}/%t.%a.err"}
    return [
        task
        if task.init or task.labels == BARRIER or task.stdout or task.stderr
        else msgspec.structs.replace(task, **both)
        for task in tasks
    ]


def with_inferred_dependencies(read: TaskList) -> TaskList:
    """Let each task wait for the tasks that produce its requirements; a note names the added dependencies."""
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
    """Parse JSON. Raises `TaskListWrong` with the first error."""
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
        raise TaskListWrong([Problem(where, shown(twice), "occurs twice in one object")])
    return found


def _refuse_constant(text: str) -> Any:
    raise TaskListWrong([Problem("", "", f"not JSON: {text} is not a number in JSON")])


def _read_own(document: Any, name: str, options: ReadOptions, max_tasks: int, problems: Problems) -> TaskList:
    """Read ECLOUD's own format: a list, or {"name", "defaults", "tasks"}."""
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
    """Return the elements of an array task; a single element if they are invalid, to find further problems."""
    try:
        if task.init:
            raise ArrayWrong("an init task cannot be an array: it runs once in each worker process")
        return entries_of(value)
    except ArrayWrong as wrong:
        problems.add(f"task {shown(task.id)}", "array", str(wrong))
        return [Entry(1, "")]


def _merged(value: Any, problems: Problems) -> list[str]:
    """Return the directories that combine result files of several tasks."""
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
        raise TaskListWrong([Problem("", unknown, f"unknown key; {form}")])


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
    """Read one task; invalid fields are reported and left out. Returns None if the id is unreadable.

    `used`: the ids in the list, if missing ids are to be made.
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
        values.pop("overwrite_result", None)  # Otherwise the missing results would be reported as a second problem.
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
    """Drop dependencies on init tasks, with a note: init tasks run first in each worker process in any case."""
    inits = {task.id for task in tasks if task.init}
    found = []
    names = []
    for task in tasks:
        if not task.init and any(dependency.id in inits for dependency in task.dependencies):
            for dependency in task.dependencies:
                if dependency.id in inits and dependency.on is Condition.FAILURE:
                    text = (
                        f"{shown(dependency.id)} is an init task: if it fails, no task of its run starts on that worker"
                    )
                    problems.add(f"task {shown(task.id)}", "dependencies", text)
            names.append(shown(task.id))
            kept = tuple(dependency for dependency in task.dependencies if dependency.id not in inits)
            task = msgspec.structs.replace(task, dependencies=kept)
        found.append(task)
    if not names:
        return found, ()
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
    return found, (f"dependencies on init tasks are ignored: init tasks run first in any case (task {listed})",)
