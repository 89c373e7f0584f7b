"""Arrays: one task written once, run for each number, line, file or JSON value. They become plain tasks here.

Element 17 of array `a` is the task `a[17]`. A task that waits for a large array waits for one small task behind it, so
that n elements before m others need n + m dependencies, not n times m.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ecloud.formats.fields import EachDependency
from ecloud.formats.problems import Problems, shown
from ecloud.formats.sweep.tasks import PARAMETERS, filled, variable_of
from ecloud.model.tasks import Condition, Dependency, Requirement, Result, TaskDefinition

MAX_ELEMENTS = 2_000_000
MAX_DIRECT = 1_000
"""Elements that another task waits for one by one."""
MAX_DIRECT_EDGES = 10_000
"""Dependencies from one array as a whole to another."""
BARRIER = ("barrier",)
"""Labels of the tasks that stand for whole arrays."""
FORM = 'expected a range such as "1-1000" or "1-1000:2,2000", or a list of values'
_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?")
_INDEX = re.compile(r"(%?)%(0\d{1,2})d")


class Entry(msgspec.Struct, frozen=True):
    """What one element works on. `fields`: of a JSON object, as texts."""

    index: int
    text: str
    fields: dict[str, str] = {}


class ArrayWrong(Exception):
    """No array; the text says why."""


def numbers_of(text: str) -> list[int]:
    """`1-5:2,9` is 1, 3, 5, 9. Raises `ArrayWrong`."""
    found: dict[int, None] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ArrayWrong(f"{shown(text)!r} is no range: {FORM}")
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        step = int(match[3]) if match[3] else 1
        if step == 0 or last < first:
            raise ArrayWrong(f"{shown(part.strip())!r} has no elements")
        if (last - first) // step >= MAX_ELEMENTS or len(found) > MAX_ELEMENTS:
            raise ArrayWrong(f"{shown(text)!r} has more than {MAX_ELEMENTS:,} elements")
        found.update(dict.fromkeys(range(first, last + 1, step)))
    return list(found)


def entries_of(value: Any) -> list[Entry]:
    """The entries that `"array"` lists. Raises `ArrayWrong`."""
    if isinstance(value, str):
        return [Entry(number, str(number)) for number in numbers_of(value)]
    if not isinstance(value, list):
        raise ArrayWrong(FORM)
    if not value:
        raise ArrayWrong("the list is empty")
    if len(value) > MAX_ELEMENTS:
        raise ArrayWrong(f"more than {MAX_ELEMENTS:,} elements")
    return [_entry(number, item) for number, item in enumerate(value, 1)]


def _entry(number: int, item: Any) -> Entry:
    if isinstance(item, dict):
        return Entry(number, _as_text(item), {name: _as_text(value) for name, value in item.items()})
    return Entry(number, _as_text(item))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def entries_of_lines(text: str) -> list[Entry]:
    """One for each line that is not empty; the index is the line's number. Raises `ArrayWrong`."""
    lines = text.split("\n")
    found = [Entry(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ArrayWrong("there is no line that is not empty")
    return found


def element_id(name: str, index: int) -> str:
    """How the task of one element is called."""
    return f"{name}[{index}]"


def elements(template: TaskDefinition, entries: Sequence[Entry], words: Sequence[str] = ()) -> Iterator[TaskDefinition]:
    """One task for each entry, without dependencies: `{}`, `{field}` and `%04d` are filled in. `words`: a program and
    its arguments, run as they are instead of the template's commands."""
    for entry in entries:
        env = {**template.env, "ECLOUD_ENTRY": entry.text, "ECLOUD_INDEX": str(entry.index)}
        if entry.fields:
            env.update({variable_of(name): value for name, value in entry.fields.items()})
            env[PARAMETERS] = json.dumps(entry.fields, ensure_ascii=False)
        yield msgspec.structs.replace(
            template,
            id=element_id(template.id, entry.index),
            commands=(shlex.join([fill(word, entry) for word in words]),)
            if words
            else tuple([fill(command, entry, shlex.quote) for command in template.commands]),
            requirements=tuple([Requirement(fill(r.path, entry), fill(r.local, entry)) for r in template.requirements]),
            results=tuple([Result(fill(r.local, entry), fill(r.path, entry), r.merge) for r in template.results]),
            env=env,
            dependencies=(),
        )


def fill(text: str, entry: Entry, quote: Callable[[str], str] = str) -> str:
    """The text with `{}` (the entry), `{field}` and `%04d` (the index) filled in; `%%04d` is `%04d`."""
    if "%0" in text:
        text = _INDEX.sub(lambda found: found[0][1:] if found[1] else f"%{found[2]}d" % entry.index, text)
    if "{" not in text:
        return text
    return filled(text.replace("{}", quote(entry.text)), entry.fields, quote)


class Expansion:
    """Templates and plain tasks of one list -> plain tasks."""

    def __init__(self, arrays: Mapping[str, Sequence[Entry]], problems: Problems) -> None:
        self._arrays = arrays
        self._indices = {name: {entry.index for entry in entries} for name, entries in arrays.items()}
        self._problems = problems
        self._barriers: dict[tuple[str, Condition], TaskDefinition] = {}
        self._more: list[TaskDefinition] = []

    def expand(self, tasks: Iterable[TaskDefinition]) -> list[TaskDefinition]:
        """All tasks in order; those that stand for whole arrays at the end."""
        found: list[TaskDefinition] = []
        for task in tasks:
            entries = self._arrays.get(task.id)
            if entries is None:
                dependencies = self._dependencies(task, None, 1)
                changed = dependencies != task.dependencies
                found.append(msgspec.structs.replace(task, dependencies=dependencies) if changed else task)
                continue
            shared = self._dependencies(task, None, len(entries))
            each = [dependency for dependency in task.dependencies if isinstance(dependency, EachDependency)]
            for element, entry in zip(elements(task, entries), entries):
                dependencies = (*shared, *self._of_each(task, each, entry.index)) if each else shared
                element = msgspec.structs.replace(element, dependencies=dependencies) if dependencies else element
                found.append(element)
        return [*found, *self._more]

    def _of_each(self, task: TaskDefinition, each: Sequence[Dependency], index: int) -> Iterator[Dependency]:
        for dependency in each:
            if index in self._indices.get(dependency.id, ()):
                yield Dependency(element_id(dependency.id, index), dependency.on)
            elif dependency.id in self._arrays:
                text = f"element {index} waits for {shown(element_id(dependency.id, index))}, which does not exist"
                self._problems.add(f"task {shown(task.id)}", "dependencies", text)

    def _dependencies(self, task: TaskDefinition, index: int | None, count: int) -> tuple[Dependency, ...]:
        """What all elements of a task (or a plain task) wait for."""
        found: list[Dependency] = []
        for dependency in task.dependencies:
            if isinstance(dependency, EachDependency):
                if dependency.id not in self._arrays or task.id not in self._arrays:
                    text = f'"each" is for arrays: {shown(task.id)} and {shown(dependency.id)} must both be arrays'
                    self._problems.add(f"task {shown(task.id)}", "dependencies", text)
            elif dependency.id in self._arrays:
                found += self._whole(dependency, count)
            else:
                found.append(dependency)
        return tuple(found)

    def _whole(self, dependency: Dependency, count: int) -> list[Dependency]:
        """All elements: one by one where they are few, else through a task that waits for them."""
        names = [element_id(dependency.id, entry.index) for entry in self._arrays[dependency.id]]
        if len(names) <= MAX_DIRECT and len(names) * count <= MAX_DIRECT_EDGES:
            return [Dependency(name, dependency.on) for name in names]
        key = (dependency.id, dependency.on)
        barrier = self._barriers.get(key)
        if barrier is None:
            suffix = "" if dependency.on is Condition.SUCCESS else f" {dependency.on}"
            top = f"{dependency.id}[*]{suffix}"
            parts = [names[start : start + MAX_DIRECT] for start in range(0, len(names), MAX_DIRECT)]
            if len(parts) == 1:
                barrier = _barrier(top, names, dependency.on)
            else:
                below = [_barrier(f"{top} {number}", part, dependency.on) for number, part in enumerate(parts, 1)]
                self._more += below
                barrier = _barrier(top, [task.id for task in below], Condition.SUCCESS)
            self._barriers[key] = barrier
            self._more.append(barrier)
        return [Dependency(barrier.id)]


def _barrier(name: str, waits_for: Sequence[str], on: Condition) -> TaskDefinition:
    """A task that does nothing but wait."""
    dependencies = tuple(Dependency(other, on) for other in waits_for)
    return TaskDefinition(name, (":",), dependencies, resources={"cpus": 0.001}, runtime_s=0.01, labels=BARRIER)
