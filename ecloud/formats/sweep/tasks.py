"""Combinations of a sweep's values -> tasks: their ids, commands, variables and files."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from ecloud.formats.checking import size_problem
from ecloud.formats.fields import FieldReader
from ecloud.formats.filling import PARAMETERS, filled, variable_of
from ecloud.formats.problems import Problem, Problems, TaskList, TaskListWrong, shown
from ecloud.formats.sweep.conditions import ConditionWrong
from ecloud.formats.sweep.model import Placed, Sweep
from ecloud.formats.sweep.values import Value
from ecloud.model.tasks import MAX_ID_CHARS, Requirement, Result, TaskDefinition

REPEAT = "repeat"
"""The number of a repetition among the parameters, from 1."""
_UNFIT = ("id", "commands", "dependencies", "init", "array", "overwrite_result")
_WORD = re.compile(r"\$\{(\w+)(?::(\w+))?\}")
_HASHED_CHARS = 200
"""A longer id is cut here, and a hash of the whole id is added."""


def sweep_tasks(sweep: Sweep, max_tasks: int) -> TaskList:
    """One task for each combination, the last parameter varying fastest. Raises `TaskListWrong`."""
    problems = Problems()
    shared = _shared_fields(sweep, problems)
    tasks: list[TaskDefinition] = []
    seen: set[str] = set()
    repeated = 0
    for values in combinations(sweep):
        task = _task(sweep, values, shared)
        if task.id in seen:
            repeated += 1
            continue
        seen.add(task.id)
        tasks.append(task)
        if len(tasks) > max_tasks:
            raise TaskListWrong([Problem("", "", size_problem(sweep.count, max_tasks))])
    if not tasks:
        problems.add("", "", f"when and exclude leave none of the {sweep.count:,} combinations")
    if not problems.is_empty:
        raise TaskListWrong(problems.kept, problems.more)
    notes = sweep.notes
    if repeated:
        notes += (f"{repeated:,} combinations were drawn more than once and run once",)
    return TaskList(sweep.name, tasks, notes)


Values = dict[str, Value]


def combinations(sweep: Sweep) -> Iterator[Values]:
    """The values of each task, without those that `when` and `exclude` leave out. Raises `TaskListWrong`."""
    seen: set[tuple[tuple[str, Value], ...]] = set()
    for values in _all(sweep):
        for name, placed in sweep.only_if.items():
            if not _holds(placed, values):
                del values[name]
        if not all(_holds(placed, values) for placed in sweep.keep):
            continue
        if any(_holds(placed, values) for placed in sweep.exclude):
            continue
        if sweep.only_if:
            # Where a parameter does not exist, its values make no difference.
            key = tuple(values.items())
            if key in seen:
                continue
            seen.add(key)
        if sweep.repeat == 1:
            yield values
        else:
            for number in range(1, sweep.repeat + 1):
                yield {**values, REPEAT: Value(str(number))}


def _all(sweep: Sweep) -> Iterator[Values]:
    if sweep.method == "random":
        for sample in range(sweep.samples):
            yield {parameter.name: parameter.pick(sweep.seed, sample) for parameter in sweep.parameters}
        return
    groups = sweep.groups
    together = [list(zip(*(parameter.values for parameter in group))) for group in groups]
    names = [parameter.name for group in groups for parameter in group]
    in_file_order = [parameter.name for parameter in sweep.parameters]
    same_order = names == in_file_order
    for parts in itertools.product(*together):
        values = dict(zip(names, itertools.chain.from_iterable(parts)))
        yield values if same_order else {name: values[name] for name in in_file_order}


def _holds(placed: Placed, values: Values) -> bool:
    try:
        return placed.condition.holds({name: value.text for name, value in values.items()})
    except ConditionWrong as wrong:
        where = f"line {placed.line + 1}, column {placed.column + wrong.column + 1}"
        raise TaskListWrong([Problem(where, "condition", f"{wrong.text} (at {_id(values)})")]) from None


def _id(values: Values) -> str:
    name = ",".join(f"{name}={value.text}" for name, value in values.items())
    if not name.isprintable():
        name = repr(name)[1:-1]
    if len(name) > MAX_ID_CHARS:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        name = f"{name[:_HASHED_CHARS]}…{digest}"
    return name


def _shared_fields(sweep: Sweep, problems: Problems) -> dict[str, Any]:
    """Values by field, of what all tasks share."""
    values, _ = FieldReader(problems).read(sweep.defaults, "defaults")
    for name in _UNFIT:
        if name in sweep.defaults:
            problems.add("defaults", name, "each task of a sweep has its own")
            values.pop(name, None)
    return values


def _task(sweep: Sweep, values: Values, shared: dict[str, Any]) -> TaskDefinition:
    name = _id(values)
    texts = {key: value.text for key, value in values.items()}
    fields = dict(shared)
    variables = {variable_of(key): text for key, text in texts.items()}
    fields["env"] = {**shared.get("env", {}), **variables, PARAMETERS: json.dumps(texts, ensure_ascii=False)}
    if "requirements" in shared:
        fields["requirements"] = tuple(
            Requirement(filled(item.path, texts), filled(item.local, texts)) for item in shared["requirements"]
        )
    if "results" in shared:
        fields["results"] = tuple(_result(item, texts, f"{sweep.name}/{name}") for item in shared["results"])
    return TaskDefinition(id=name, commands=(command_of(sweep, values),), **fields)


def _result(result: Result, texts: Mapping[str, str], directory: str) -> Result:
    """Where a result goes. One that names no parameter gets the task's own directory: all have the same local name."""
    path = filled(result.path, texts)
    if path == result.path:
        top = "/".join(part.replace("/", "_").strip() or "_" for part in directory.split("/", 1))
        path = f"{top}/{path}" if path != "." else top
    return msgspec.structs.replace(result, local=filled(result.local, texts), path=path)


def command_of(sweep: Sweep, values: Values) -> str:
    """The command line of one combination."""
    texts = {name: value.text for name, value in values.items()}
    if sweep.words:
        return _wandb_command(sweep, values)
    program = filled(sweep.program, texts, shlex.quote)
    options = _options(sweep, {name: value for name, value in values.items() if f"{{{name}}}" not in sweep.program})
    return " ".join([program, *options])


def _options(sweep: Sweep, values: Values) -> list[str]:
    """Words for the shell. `repeat` is no parameter of the program."""
    words: list[str] = []
    for name, value in values.items():
        if name == REPEAT and sweep.repeat > 1:
            continue
        if sweep.style == "hydra":
            words.append(shlex.quote(f"{name}={value.text}"))
        elif sweep.style != "env":
            if sweep.bare_flags and value.is_flag:
                words += [f"--{name}"] * (value.text.lower() == "true")
            elif sweep.style == "equals":
                words.append(f"--{name}={shlex.quote(value.text)}")
            else:
                words += [f"--{name}", shlex.quote(value.text)]
    return words


def _wandb_command(sweep: Sweep, values: Values) -> str:
    """W&B's `command`: a list of words, some of which stand for others."""
    plain = {name: value for name, value in values.items() if name != REPEAT or sweep.repeat == 1}
    makers: dict[str, Callable[[], list[str]]] = {
        "env": lambda: ["/usr/bin/env"],
        "interpreter": lambda: ["python3"],
        "program": lambda: [sweep.program.removeprefix("python3 ")],
        "args": lambda: _options(sweep, plain),
        "args_no_boolean_flags": lambda: _options(msgspec.structs.replace(sweep, bare_flags=True), plain),
        "args_no_hyphens": lambda: [shlex.quote(f"{name}={value.text}") for name, value in plain.items()],
        "args_json": lambda: [shlex.quote(json.dumps({name: value.text for name, value in plain.items()}))],
    }
    words: list[str] = []
    for word in sweep.words:
        found = _WORD.fullmatch(word)
        if found is None:
            words.append(shlex.quote(word))
        elif found[1] == "envvar" and found[2]:
            words.append(f'"${found[2]}"')
        elif found[1] in makers:
            words += makers[found[1]]()
        else:
            known = ", ".join(f"${{{name}}}" for name in makers)
            raise TaskListWrong([Problem("", "command", f"{shown(word)} is not known; known are {known}")])
    return " ".join(words)
