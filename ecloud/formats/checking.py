"""The rules every task list keeps, whoever made it: run by the door for its user, and again by the boss, which trusts no client.

Owns the limits. 100,000 tasks with 200,000 dependencies are checked in about a second.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from ecloud.formats.problems import MAX_PROBLEMS
from ecloud.tasks import MAX_ID_CHARS, TaskDefinition

MAX_TASKS = 2_000_000
MAX_COMMANDS_BYTES = 4 * 1024 * 1024
"""Of one task, all commands together: fits into one message however it is escaped."""
MAX_COMMANDS = 10_000
MAX_FILES = 10_000
"""Requirements or results of one task."""
MAX_DEPENDENCIES = 100_000
MAX_PATH_BYTES = 4_000
"""What Linux opens (PATH_MAX is 4,096)."""
MAX_PART_BYTES = 255
MAX_LABELS = 100
MAX_ENV = 1_000
MAX_ENV_BYTES = 100_000
"""One value: Linux refuses to start a process with a longer one (128 KiB)."""
MAX_RETRIES = 1_000
MAX_SECONDS = 10 * 366 * 86400.0
MAX_PRIORITY = 1_000_000
MAX_AMOUNT = 1e9
GLOB = frozenset("*?[")


def check(tasks: Sequence[TaskDefinition], max_tasks: int = MAX_TASKS) -> list[str]:
    """Every problem as a line that names task and field; at most 1,001 lines. Empty: the list is good."""
    if len(tasks) > max_tasks:
        return [f"{len(tasks):,} tasks; at most {max_tasks:,} are taken at once (MAX_TASKS_PER_PUSH)"]
    if not tasks:
        return ["the list has no tasks"]
    problems: list[str] = []
    by_id: dict[str, TaskDefinition] = {}
    makers: dict[str, str] = {}
    for task in tasks:
        for field, text in problems_of(task):
            problems.append(f"task {shown(task.id)}, {field}: {text}")
        if task.id in by_id:
            problems.append(f"task {shown(task.id)}, id: more than one task has this id")
        by_id[task.id] = task
        for result in task.results:
            other = makers.setdefault(result.path, task.id)
            if other != task.id and not is_glob(result.local):
                text = f"{result.path!r} is also a result of task {shown(other)}"
                problems.append(f"task {shown(task.id)}, results: {text}")
        if len(problems) > MAX_PROBLEMS:
            return [*problems[:MAX_PROBLEMS], "and more"]
    for task in tasks:
        for dependency in task.dependencies:
            if dependency.id not in by_id:
                text = f"there is no task {shown(dependency.id)}"
                problems.append(f"task {shown(task.id)}, dependencies: {text}")
    if not problems:
        cycle = find_cycle(tasks)
        if cycle:
            path = " -> ".join(shown(name) for name in cycle)
            problems.append(f"task {shown(cycle[0])}, dependencies: these wait for each other: {path}")
    return problems[:MAX_PROBLEMS] + [f"and {len(problems) - MAX_PROBLEMS} more"] * (len(problems) > MAX_PROBLEMS)


def shown(name: str) -> str:
    """A name as it may be printed: short, control characters visible."""
    text = name if name.isprintable() else repr(name)[1:-1]
    return text if len(text) <= 60 else text[:57] + "…"


def is_glob(path: str) -> bool:
    """Whether a result is a pattern."""
    return not GLOB.isdisjoint(path)


def path_problem(path: str) -> str | None:
    """Why a path can't be a name in the datastore or in a working directory; None where it can."""
    if not path:
        return "an empty path"
    if path[0] == "/":
        return f"{shown(path)!r} is absolute; paths are relative to the datastore's root"
    if "\0" in path:
        return f"{shown(path)!r} holds a NUL character"
    parts = path.split("/")
    if ".." in parts:
        return f"{shown(path)!r} leads out of its directory"
    if parts[0] == ".ecloud":
        return f"{shown(path)!r}: .ecloud is the datastore's own"
    try:
        if len(path.encode()) > MAX_PATH_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
            return f"{shown(path)!r} is too long: {MAX_PATH_BYTES} bytes, {MAX_PART_BYTES} for each part"
    except UnicodeEncodeError:
        return f"{path!r} is not valid Unicode"
    return None


def _text_problem(text: str, what: str) -> str | None:
    if "\0" in text:
        return f"{what} holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{what} is not valid Unicode (a lone surrogate)"
    return None


def problems_of(task: TaskDefinition) -> list[tuple[str, str]]:
    """What is wrong with one task by itself: (field, sentence)."""
    found: list[tuple[str, str | None]] = [("id", _id_problem(task.id))]
    total = sum(len(command) for command in task.commands)
    if len(task.commands) > MAX_COMMANDS or total > MAX_COMMANDS_BYTES:
        found.append(("commands", f"more than {MAX_COMMANDS:,} commands or {MAX_COMMANDS_BYTES:,} characters"))
    found.extend(("commands", _text_problem(command, "a command")) for command in task.commands)
    if len(task.dependencies) > MAX_DEPENDENCIES:
        found.append(("dependencies", f"more than {MAX_DEPENDENCIES:,}"))
    found.extend(("dependencies", "it waits for itself") for other in task.dependencies if other.id == task.id)
    if len(task.requirements) > MAX_FILES or len(task.results) > MAX_FILES:
        found.append(("results", f"more than {MAX_FILES:,} files"))
    for requirement in task.requirements:
        found += [("requirements", path_problem(requirement.path)), ("requirements", path_problem(requirement.local))]
    for result in task.results:
        local = None if result.local == "." else path_problem(result.local)
        target = None if result.path == "." and is_glob(result.local) else path_problem(result.path)
        found += [("results", local), ("results", target)]
    if not task.overwrite_result:
        if not task.results:
            found.append(("overwrite_result", "false needs at least one result to look for"))
        elif any(is_glob(result.local) for result in task.results):
            found.append(("overwrite_result", "false needs results without wildcards: only a name can be looked for"))
    if task.init and (task.results or task.dependencies):
        found.append(("init", "an init task has no results and waits for nothing: it runs first in each worker process"))
    found += _resource_problems(task)
    found += _number_problems(task)
    if len(task.labels) > MAX_LABELS or any(not label or len(label) > MAX_ID_CHARS for label in task.labels):
        found.append(("labels", f"at most {MAX_LABELS}, each of 1 to {MAX_ID_CHARS} characters"))
    found.extend(("labels", _text_problem(label, "a label")) for label in task.labels)
    found += _env_problems(task)
    return list(dict.fromkeys((field, text) for field, text in found if text))


def _id_problem(name: str) -> str | None:
    if not 1 <= len(name) <= MAX_ID_CHARS:
        return f"{len(name)} characters; 1 to {MAX_ID_CHARS} are allowed"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "it holds a control character"
    return _text_problem(name, "it")


def _resource_problems(task: TaskDefinition) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    for name, amount in task.resources.items():
        if not 1 <= len(name) <= 64 or _text_problem(name, name):
            found.append(("resources", f"{shown(name)!r}: a name of 1 to 64 characters"))
        if not math.isfinite(amount) or not 0 <= amount <= MAX_AMOUNT:
            found.append(("resources", f"{shown(name)} = {amount}: 0 to {MAX_AMOUNT:g}"))
        elif name == "gpus" and amount != int(amount):
            found.append(("resources", f"gpus = {amount}: whole GPUs only"))
    return found


def _number_problems(task: TaskDefinition) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    if not -MAX_PRIORITY <= task.priority <= MAX_PRIORITY:
        found.append(("priority", f"{task.priority}: -{MAX_PRIORITY:,} to {MAX_PRIORITY:,}"))
    if task.runtime_s is not None and not 0 <= task.runtime_s <= MAX_SECONDS:
        found.append(("runtime_s", f"{task.runtime_s}: seconds, 0 to ten years"))
    if task.timeout_s is not None and not 0 < task.timeout_s <= MAX_SECONDS:
        found.append(("timeout_s", f"{task.timeout_s}: seconds, more than 0, at most ten years"))
    if not 0 <= task.retries.max <= MAX_RETRIES:
        found.append(("retries", f"{task.retries.max}: 0 to {MAX_RETRIES:,}"))
    return found


def _env_problems(task: TaskDefinition) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    if len(task.env) > MAX_ENV:
        found.append(("env", f"more than {MAX_ENV:,} variables"))
    for name, value in task.env.items():
        if not name or "=" in name or len(name) > MAX_ID_CHARS or _text_problem(name, name):
            found.append(("env", f"{shown(name)!r} is no name of a variable"))
        if len(value) > MAX_ENV_BYTES:
            found.append(("env", f"{shown(name)}: more than {MAX_ENV_BYTES:,} characters"))
        found.append(("env", _text_problem(value, shown(name))))
    return found


def find_cycle(tasks: Sequence[TaskDefinition]) -> list[str]:
    """Ids of one cycle, the first again at the end; empty where there is none. Kahn's, then a walk in what is left over."""
    position = {task.id: index for index, task in enumerate(tasks)}
    dependents: list[list[int]] = [[] for _ in tasks]
    open_of = [0] * len(tasks)
    for index, task in enumerate(tasks):
        for dependency in task.dependencies:
            dependents[position[dependency.id]].append(index)
            open_of[index] += 1
    todo = deque(index for index, count in enumerate(open_of) if count == 0)
    done = 0
    while todo:
        index = todo.popleft()
        done += 1
        for dependent in dependents[index]:
            open_of[dependent] -= 1
            if open_of[dependent] == 0:
                todo.append(dependent)
    if done == len(tasks):
        return []
    # Each task left over waits for another one left over: walking along must come back to where it was.
    index = next(index for index, count in enumerate(open_of) if count)
    seen: dict[int, int] = {}
    path: list[int] = []
    while index not in seen:
        seen[index] = len(path)
        path.append(index)
        waits_for = (position[dependency.id] for dependency in tasks[index].dependencies)
        index = next(other for other in waits_for if open_of[other])
    cycle = path[seen[index] :]
    return [tasks[other].id for other in reversed([*cycle, cycle[0]])]
