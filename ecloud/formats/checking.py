"""Rules for every task list: the client checks them for its user, and the boss checks them again.

The boss trusts no client. Defines the limits. 100,000 tasks with 200,000 dependencies are checked in less than a
second.
"""

from __future__ import annotations

import functools
import math
import re
import shlex
from collections.abc import Callable, Collection, Sequence

import msgspec

from ecloud.formats.array_checks import array_problem, samples, with_elements, with_other_paths
from ecloud.formats.arrays import count_of, indices_of
from ecloud.formats.file_conflicts import find_file_conflicts
from ecloud.formats.graph import Outline, find_cycles
from ecloud.formats.large_tasks import MAX_DEFINITION_BYTES, too_large
from ecloud.formats.paths import is_glob, path_problem, text_problem
from ecloud.formats.problems import Problems, shown
from ecloud.model.container_rules import container_problems
from ecloud.model.ranges import Indices
from ecloud.model.tasks import (
    BODY_PREFIX,
    INLINE_BYTES,
    MAX_ID_CHARS,
    MERGED,
    RETRIABLE,
    Call,
    TaskDefinition,
    definition_json,
    output_path,
)

MAX_TASKS = 2_000_000
"""Default if settings have no limit: the number that one boss holds in about 2 GB."""
MAX_COMMANDS_BYTES = 4 * 1024 * 1024
"""Size of all commands of one task together."""
MAX_COMMANDS = 10_000
MAX_FILES = 10_000
"""Requirements, and results, of one task."""
MAX_DEPENDENCIES = 100_000
MAX_LABELS = 100
MAX_SHELL_CHARS = 1_000
MAX_GROW = 100
MAX_INLINE_BYTES = INLINE_BYTES + 1024
"""Size of each pickle of a call, with some room for additions of the client."""
MAX_ENV = 1_000
MAX_ENV_BYTES = 100_000
"""Size of one variable: Linux starts no process with a longer one (128 KiB)."""
MAX_ENV_TOTAL_BYTES = 1_000_000
"""Size of all variables: Linux starts no process with more (2 MiB, shared with the arguments)."""
MAX_RESOURCES = 64
MAX_RESOURCE_CHARS = 64
MIN_AMOUNT = 0.001
MAX_AMOUNT = 1e9
MAX_RETRIES = 1_000
MAX_SECONDS = 10 * 366 * 86400.0
MAX_PRIORITY = 1_000_000
MAX_CYCLE_SHOWN = 20
"""Tasks of one cycle to name."""
OWN_VARIABLES = frozenset(
    {"ECLOUD_TASK", "ECLOUD_RUN", "ECLOUD_ATTEMPT", "ECLOUD_MARK", "ECLOUD_WORKER", "ECLOUD_WORKER_DIR"}
)
"""Variables that the worker sets; it identifies left-over processes of a task by them."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

Say = Callable[[str, str], None]
"""Takes (field, sentence)."""


def check(
    tasks: Collection[TaskDefinition],
    max_tasks: int = MAX_TASKS,
    all_named: bool = True,
    outline: Outline | None = None,
) -> list[str]:
    """List every problem as a line that names task and field: at most 1,000 lines, and a last one that counts the rest.

    Returns an empty list if the tasks are valid. `all_named` False: dependencies may be tasks that are not in the list.
    The list may be one that decodes its tasks each time that it is read: none of them is kept, unless it names files.
    `outline`: an empty one, to which the tasks are added.
    """
    problems = Problems()
    find_problems(tasks, problems, max_tasks, all_named, outline)
    return problems.lines


def find_problems(
    tasks: Collection[TaskDefinition],
    problems: Problems,
    max_tasks: int = MAX_TASKS,
    all_named: bool = True,
    outline: Outline | None = None,
) -> list[str]:
    """Add all problems to `problems`; return notes about possible ones.

    `all_named` False: some tasks have no readable id, so that a missing dependency may be one of them.
    """
    arrays = [task for task in tasks if task.array is not None]
    wrong = [(task, text) for task in arrays if (text := array_problem(task))]
    if wrong:
        for task, text in wrong:
            problems.add(f"task {shown(task.id)}", "array", text)
        return []
    count = len(tasks) - len(arrays) + count_of(arrays)
    if count > max_tasks:
        problems.add("", "", size_problem(count, max_tasks))
        return []
    if not tasks and problems.is_empty:
        problems.add("", "", "the list has no tasks")
    outline = Outline() if outline is None else outline
    each: list[TaskDefinition] = []
    makes_files = False

    def say(field: str, text: str) -> None:
        problems.add(f"task {shown(task.id)}", field, text)

    for task in tasks:
        _check_task(task, say)
        if task.id in outline.position:
            say("id", "more than one task has this id")
        outline.add(task.id, [on.id for on in task.dependencies])
        if any(on.each for on in task.dependencies):
            each.append(task)
        makes_files = makes_files or bool(task.results or task.stdout or task.stderr)
    for array in arrays:
        chosen = samples(array)
        for task in chosen:
            _check_task(task, say)
        for task in with_other_paths(array, chosen):
            _check_paths(task, say)
    indices = {task.id: indices_of(task.array) for task in arrays if task.array is not None}
    if indices:
        _check_element_names(outline, indices, problems)
    _check_each(each, outline, indices, problems)
    if all_named:
        for id, wanted in zip(outline.ids, outline.wanted):
            for name in wanted:
                if name not in outline.position:
                    problems.add(f"task {shown(id)}", "dependencies", f"there is no task {shown(name)}")
    for cycle in find_cycles(outline):
        problems.add(f"task {shown(cycle[0])}", "dependencies", cycle_text(cycle))
    return find_file_conflicts(with_elements(_with_files(tasks)), problems) if makes_files else []


def _with_files(tasks: Collection[TaskDefinition]) -> Sequence[TaskDefinition]:
    """Return the tasks as a list; if they must be decoded for that, without what has no influence on files."""
    if isinstance(tasks, Sequence):
        return tasks
    return [msgspec.structs.replace(task, commands=(), resources={}, labels=(), env={}, call=None) for task in tasks]


def cycle_text(cycle: Sequence[str]) -> str:
    """Return the message for a cycle: ids, the first repeated at the end."""
    names = [shown(name) for name in cycle]
    if len(names) > MAX_CYCLE_SHOWN:
        names[MAX_CYCLE_SHOWN:-1] = [f"({len(names) - 1 - MAX_CYCLE_SHOWN:,} more)"]
    return f"these tasks wait for each other: {' -> '.join(names)}"


def _check_element_names(outline: Outline, indices: dict[str, Indices], problems: Problems) -> None:
    """Check that no task has the id of an array's element. `indices`: of each array."""
    for id in outline.ids:
        array, bracket, index = id.removesuffix("]").rpartition("[")
        is_element = array in indices and bracket and id.endswith("]") and index.isascii() and index.isdigit()
        if is_element and indices[array].position(int(index)) is not None:
            problems.add(f"task {shown(id)}", "id", f"an element of array {shown(array)} has this id")


def _check_each(
    tasks: Sequence[TaskDefinition], outline: Outline, indices: dict[str, Indices], problems: Problems
) -> None:
    """Check that element-by-element dependencies connect arrays, and that the elements exist. `tasks`: those that have
    such dependencies."""
    for task in tasks:
        for dependency in task.dependencies:
            if not dependency.each:
                continue
            own, others = indices.get(task.id), indices.get(dependency.id)
            if dependency.id not in outline.position:
                text = f'"each" is for arrays of one list, and {shown(dependency.id)} is not in this list'
                problems.add(f"task {shown(task.id)}", "dependencies", text)
            elif own is None or others is None:
                text = f'"each" is for arrays: {shown(task.id)} and {shown(dependency.id)} must both be arrays'
                problems.add(f"task {shown(task.id)}", "dependencies", text)
            elif str(own) != str(others) and not set(own) <= set(others):
                text = f"its elements wait for elements of {shown(dependency.id)} that do not exist"
                problems.add(f"task {shown(task.id)}", "dependencies", text)


def size_problem(count: int, max_tasks: int) -> str:
    """Return the message for a list that is too large."""
    return f"{count:,} tasks; at most {max_tasks:,} are taken at once (MAX_TASKS_PER_PUSH)"


def _check_task(task: TaskDefinition, say: Say) -> None:
    """Check one task on its own."""
    _check_id(task.id, say)
    characters = sum(map(len, task.commands))
    _check_commands(task.commands, characters, say)
    if task.dependencies:
        _check_dependencies(task, say)
    _check_paths(task, say)
    if not task.overwrite_result:
        if not task.results:
            say("overwrite_result", "false needs at least one result")
        elif any(is_glob(result.local) for result in task.results):
            say("overwrite_result", "false needs results without wildcards")
    if task.init and task.results:
        say("results", "an init task has none: its files for other tasks stay in $ECLOUD_WORKER_DIR")
    if task.init and task.dependencies:
        say("dependencies", "an init task waits for nothing: it runs first in each worker process")
    if task.resources:
        _check_resources(task.resources, say)
    _check_numbers(task, say)
    if task.labels:
        _check_labels(task.labels, say)
    if task.env:
        _check_env(task.env, say)
    if task.container:
        for problem in container_problems(task.container):
            say("container", problem)
    if task.shell:
        _check_shell(task.shell, say)
    if task.call:
        _check_call(task, task.call, say)
    if task.body_file:
        _check_body_file(task, say)
    if characters > 200_000 or _has_many_parts(task):
        _check_size(task, say)


def _check_paths(task: TaskDefinition, say: Say) -> None:
    if task.requirements or task.results:
        _check_files(task, say)
    if task.stdout or task.stderr:
        _check_outputs(task, say)


def _check_id(name: str, say: Say) -> None:
    if not 1 <= len(name) <= MAX_ID_CHARS:
        say("id", f"{len(name):,} characters; 1 to {MAX_ID_CHARS} are allowed")
    if not name.isprintable():
        if _CONTROL.search(name):
            say("id", "it holds a control character")
        elif text_problem(name, ""):
            say("id", "it is not valid Unicode (a lone surrogate)")


def _check_commands(commands: Sequence[str], characters: int, say: Say) -> None:
    if len(commands) > MAX_COMMANDS:
        say("commands", f"{len(commands):,} commands; at most {MAX_COMMANDS:,} are allowed")
    total = characters
    if total > MAX_COMMANDS_BYTES // 4:
        total = sum(len(command.encode("utf-8", "surrogatepass")) for command in commands)
    if total > MAX_COMMANDS_BYTES:
        say("commands", f"{total:,} bytes; at most {MAX_COMMANDS_BYTES:,} are allowed: put long ones into a file")
    for number, command in enumerate(commands, 1):
        if text_problem(command, ""):
            say("commands", text_problem(command, f"command {number}") or "")


def _check_dependencies(task: TaskDefinition, say: Say) -> None:
    dependencies = task.dependencies
    if len(dependencies) > MAX_DEPENDENCIES:
        say("dependencies", f"{len(dependencies):,}; at most {MAX_DEPENDENCIES:,} are allowed")
    seen = set()
    for dependency in dependencies:
        if dependency.id == task.id:
            say("dependencies", "it waits for itself")
        elif dependency.id in seen:
            say("dependencies", f"task {shown(dependency.id)} is named twice")
        seen.add(dependency.id)


def _check_files(task: TaskDefinition, say: Say) -> None:
    for field, count in (("requirements", len(task.requirements)), ("results", len(task.results))):
        if count > MAX_FILES:
            say(field, f"{count:,} files; at most {MAX_FILES:,} are allowed: name their directory")
    locals_seen = set()
    for requirement in task.requirements:
        problem = path_problem(requirement.path) or path_problem(requirement.local, in_datastore=False)
        if problem:
            say("requirements", problem)
        elif requirement.local in locals_seen:
            say("requirements", f"{shown(requirement.local)!r} in the working directory is named twice")
        locals_seen.add(requirement.local)
    for result in task.results:
        local = None if result.local == "." else path_problem(result.local, in_datastore=False)
        path = None if result.path == "." and is_glob(result.local) else path_problem(result.path)
        if local or path:
            say("results", local or path or "")


def _check_outputs(task: TaskDefinition, say: Say) -> None:
    """Check the paths of whole outputs."""
    if task.init:
        say("stdout", "the output of an init task is not kept as a file")
    if task.stderr == MERGED and not task.stdout:
        say("stderr", '"stdout" merges it with stdout, which this task does not keep')
    for field, template in (("stdout", task.stdout), ("stderr", task.stderr)):
        if template and (field, template) != ("stderr", MERGED):
            left = template.replace("%%", "").replace("%t", "").replace("%a", "")
            problem = path_problem(output_path(template, task.id, 1))
            if "%" in left:
                say(field, f"{shown(template)!r}: % is followed by t (the task), a (the attempt) or %")
            elif problem:
                say(field, problem)


def _check_resources(resources: dict[str, float], say: Say) -> None:
    if len(resources) > MAX_RESOURCES:
        say("resources", f"{len(resources):,}; at most {MAX_RESOURCES} are allowed")
    for name, amount in resources.items():
        if not 1 <= len(name) <= MAX_RESOURCE_CHARS or _spoiled(name):
            say("resources", f"{shown(name)!r}: a name has 1 to {MAX_RESOURCE_CHARS} characters")
        if not math.isfinite(amount) or not MIN_AMOUNT <= amount <= MAX_AMOUNT:
            say("resources", f"{shown(name)} = {amount:g}: more than 0 ({MIN_AMOUNT:g}), at most {MAX_AMOUNT:g}")
        elif name == "gpus" and amount > 1 and amount != int(amount):
            say("resources", f"gpus = {amount:g}: a part of one GPU (0.5), or a whole number of GPUs")


@functools.lru_cache(maxsize=1_000)
def _spoiled(name: str) -> bool:
    """Whether this name of a resource is invalid. Cached: names are short, few, and used by many tasks."""
    return bool(_CONTROL.search(name) or text_problem(name, ""))


def _check_numbers(task: TaskDefinition, say: Say) -> None:
    if not -MAX_PRIORITY <= task.priority <= MAX_PRIORITY:
        say("priority", f"{task.priority:,}: from -{MAX_PRIORITY:,} to {MAX_PRIORITY:,}")
    if task.runtime_s is not None and not 0 <= task.runtime_s <= MAX_SECONDS:
        say("runtime_s", f"{task.runtime_s:g}: seconds, from 0 to ten years")
    if task.timeout_s is not None and not 0 < task.timeout_s <= MAX_SECONDS:
        say("timeout_s", f"{task.timeout_s:g}: seconds, more than 0, at most ten years")
    if not 0 <= task.retries.max <= MAX_RETRIES:
        say("retries", f"{task.retries.max:,}: from 0 to {MAX_RETRIES:,}")
    if not 1 <= task.retries.grow <= MAX_GROW:
        say("retries", f"grow = {task.retries.grow:g}: from 1 to {MAX_GROW}")
    if task.retries.on != RETRIABLE and not set(RETRIABLE).issuperset(task.retries.on):
        say("retries", f"on: only {', '.join(cause.value for cause in RETRIABLE)} can be retried")


def _check_labels(labels: Sequence[str], say: Say) -> None:
    if len(labels) > MAX_LABELS:
        say("labels", f"{len(labels):,}; at most {MAX_LABELS} are allowed")
    for label in labels:
        if not 1 <= len(label) <= MAX_ID_CHARS or _CONTROL.search(label) or text_problem(label, ""):
            say("labels", f"{shown(label)!r}: 1 to {MAX_ID_CHARS} characters, none of them a control character")


def _check_call(task: TaskDefinition, call: Call, say: Say) -> None:
    if task.commands:
        say("call", "a task has either commands or a call")
    if task.stdout or task.stderr:
        say("call", "the output of a call is kept with its attempt, and not in a file: stdout and stderr")
    if task.init:
        say("call", "an init task has commands")
    for field, pickled in (("code", call.code), ("arguments", call.arguments), ("setup", call.setup)):
        if len(pickled) > MAX_INLINE_BYTES:
            say("call", f"{field}: {len(pickled):,} bytes; at most {MAX_INLINE_BYTES:,}: put it into the datastore")
    if not 1 <= len(call.name) <= MAX_ID_CHARS or _spoiled(call.name):
        say("call", f"{shown(call.name)!r} cannot be the name of a function")
    locals_ = {requirement.local for requirement in task.requirements}
    for field, name in (
        ("function_file", call.function_file),
        ("arguments_file", call.arguments_file),
        ("project", call.project),
        *(("shared", name) for name in call.shared),
    ):
        if name and name not in locals_:
            say("call", f"{field} {shown(name)!r} is not one of its requirements")
    problem = path_problem(output_path(call.value, task.id, 1)) if call.value else None
    if problem:
        say("call", problem)
    waits_for = {dependency.id for dependency in task.dependencies}
    if not waits_for.issuperset(call.needs):
        say("call", "it needs the value of a call that it does not depend on")
    if call.max_calls < 1:
        say("call", f"max_calls = {call.max_calls:,}: at least 1")


def _check_body_file(task: TaskDefinition, say: Say) -> None:
    if task.call or task.array or not task.body_file.startswith(BODY_PREFIX):
        say("body_file", f"{shown(task.body_file)!r} cannot hold the commands of this task")
    elif all(task.body_file != requirement.local for requirement in task.requirements):
        say("body_file", f"{shown(task.body_file)!r} is none of its requirements")


def _check_shell(shell: str, say: Say) -> None:
    try:
        is_command = bool(shlex.split(shell)) and len(shell) <= MAX_SHELL_CHARS
    except ValueError:  # an unclosed quote
        is_command = False
    if not is_command or text_problem(shell, "") or _CONTROL.search(shell):
        say("shell", f"{shown(shell)!r} is not a shell and its options, such as 'bash -euo pipefail'")


def _check_env(env: dict[str, str], say: Say) -> None:
    if len(env) > MAX_ENV:
        say("env", f"{len(env):,} variables; at most {MAX_ENV:,} are allowed")
    total = 0
    for name, value in env.items():
        size = len(name) + len(value.encode("utf-8", "surrogatepass"))
        total += size
        problem = text_problem(value, shown(name))
        if not name or "=" in name or len(name) > MAX_ID_CHARS or text_problem(name, ""):
            say("env", f"{shown(name)!r} cannot be the name of a variable")
        elif name in OWN_VARIABLES:
            say("env", f"{name} is set by the worker")
        elif size > MAX_ENV_BYTES:
            say("env", f"{shown(name)}: {size:,} bytes; at most {MAX_ENV_BYTES:,} are allowed")
        elif problem:
            say("env", problem)
    if total > MAX_ENV_TOTAL_BYTES:
        say("env", f"{total:,} bytes in all; at most {MAX_ENV_TOTAL_BYTES:,} are allowed")


def _has_many_parts(task: TaskDefinition) -> bool:
    """Whether its JSON might exceed the limit although its commands are short. Rarely true, so few tasks are
    encoded."""
    return len(task.dependencies) + len(task.requirements) + len(task.results) + len(task.labels) + len(task.env) > 20


def _check_size(task: TaskDefinition, say: Say) -> None:
    try:
        size = len(definition_json(task))
    except UnicodeEncodeError:
        return  # Reported already, with its field.
    if size > MAX_DEFINITION_BYTES:
        say("", too_large(task, size))
