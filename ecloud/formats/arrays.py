"""Arrays: one task definition that runs once for each number, line, file or JSON value.

Element 17 of array `a` is the task `a[17]`. A small array becomes plain tasks here. A large one stays one definition;
the boss makes its elements shortly before they run (`ecloud.model.tasks.ArrayOf`).
"""

from __future__ import annotations

import json
import re
import shlex
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ecloud.formats.filling import PARAMETERS, filled, variable_of
from ecloud.formats.problems import Problems, shown
from ecloud.model.ranges import Indices
from ecloud.model.tasks import ArrayOf, Condition, Dependency, Entry, Requirement, Result, TaskDefinition

MAX_ELEMENTS = 2_000_000
MAX_DIRECT = 1_000
"""Maximum number of elements that another task waits for individually. Larger arrays stay whole."""
ENTRIES_A_PART = 100
"""Entries stored in one row; the row fits the database even if each entry has the maximum length of a variable."""
PART_CHARS = 250_000
"""Characters of entries that one definition of a message holds."""
MAX_DIRECT_EDGES = 10_000
"""Maximum number of dependencies from one array as a whole to another."""
MISSING_SHOWN = 20
"""Elements of a whole array that are named if they wait for elements that do not exist."""
BARRIER = ("barrier",)
"""Labels of barrier tasks, which represent whole arrays."""
FORM = 'expected a range such as "1-1000" or "1-1000:2,2000", or a list of values'
_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?")
_ENTRIES = msgspec.json.Decoder(tuple[Entry, ...])
_INDEX = re.compile(r"(%?)%(0\d{1,2})d")


class ArrayWrong(Exception):
    """Not a valid array; the text explains why."""


def numbers_of(text: str) -> list[int]:
    """Parse a range: `1-5:2,9` is 1, 3, 5, 9. Raises `ArrayWrong`."""
    found: dict[int, None] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ArrayWrong(f"{shown(text)!r} is not a range: {FORM}")
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
    """Return the entries that `"array"` lists. Raises `ArrayWrong`."""
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
    """Return one entry for each line that is not empty; the index is the line's number. Raises `ArrayWrong`."""
    lines = text.split("\n")
    found = [Entry(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ArrayWrong("all lines are empty")
    return found


def element_id(name: str, index: int) -> str:
    """Return the id of an element's task."""
    return f"{name}[{index}]"


def elements(template: TaskDefinition, entries: Iterable[Entry], words: Sequence[str] = ()) -> Iterator[TaskDefinition]:
    """Yield one task for each entry, without dependencies; fills in `{}`, `{field}` and `%04d`. `words`: a program and
    its arguments, run instead of the template's commands; the shell expands nothing in them."""
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
            array=None,
        )


def is_same_for_all(text: str) -> bool:
    """Whether the text contains nothing to fill in."""
    return "{" not in text and "%0" not in text


# --- large arrays -----------------------------------------------------------------------------------


def as_array(template: TaskDefinition, entries: Sequence[Entry], words: Sequence[str] = ()) -> TaskDefinition:
    """Return the array as one definition, its elements in the order of their indices."""
    listed = any(entry.fields or entry.text != str(entry.index) for entry in entries)
    indices = str(Indices.holding(entry.index for entry in entries))
    kept = tuple(sorted(entries, key=lambda entry: entry.index)) if listed else ()
    return msgspec.structs.replace(template, array=ArrayOf(indices, kept, tuple(words)))


def indices_of(array: ArrayOf) -> Indices:
    """Return the indices of the elements. Raises `ArrayWrong` if a peer sent invalid ones."""
    parts = array.indices.split(",")
    if not all(_PART.fullmatch(part) for part in parts):
        raise ArrayWrong(f"indices {shown(array.indices)!r}: {FORM}")
    indices = Indices.of(array.indices)
    ascending = all(before < after for before, after in zip(indices.bounds, indices.bounds[1:], strict=False))
    if not indices.count or not ascending or any(":0" in part for part in parts):
        raise ArrayWrong(f"indices {shown(array.indices)!r}: expected ascending ranges that do not overlap")
    return indices


def count_of(tasks: Iterable[TaskDefinition]) -> int:
    """Count the tasks; each element of an array counts as one. Raises `ArrayWrong`."""
    return sum([1 if task.array is None else indices_of(task.array).count for task in tasks])


def entry_at(array: ArrayOf, indices: Indices, position: int) -> Entry:
    """Return the entry of the element at a position."""
    if array.entries:
        return array.entries[position]
    return Entry(indices[position], str(indices[position]))


def entries_in(array: ArrayOf) -> Iterator[Entry]:
    """Iterate over all entries, in order."""
    return iter(array.entries) if array.entries else (Entry(index, str(index)) for index in indices_of(array))


def decode_entries(part: bytes) -> tuple[Entry, ...]:
    """Decode entries stored in one row: compressed JSON."""
    return _ENTRIES.decode(zlib.decompress(part))


def split_arrays(tasks: Iterable[TaskDefinition]) -> list[TaskDefinition]:
    """Split the entries of long arrays into several definitions, for messages."""
    found = []
    for task in tasks:
        if task.array is None:
            found.append(task)
            continue
        parts: list[list[Entry]] = [[]]
        size = 0
        for entry in task.array.entries:
            if size > PART_CHARS:
                parts.append([])
                size = 0
            parts[-1].append(entry)
            size += len(entry.text) + sum([len(name) + len(value) for name, value in entry.fields.items()]) + 12
        found.append(msgspec.structs.replace(task, array=msgspec.structs.replace(task.array, entries=tuple(parts[0]))))
        found += [TaskDefinition(task.id, array=ArrayOf(entries=tuple(part))) for part in parts[1:]]
    return found


def join_arrays(tasks: Iterable[TaskDefinition]) -> Iterator[TaskDefinition]:
    """Reverse `split_arrays`. A part that follows no definition of its id stays in the list; the check reports it."""
    last: TaskDefinition | None = None
    more: list[Entry] = []
    for task in tasks:
        part = task.array
        if part is not None and not part.indices and last is not None and last.id == task.id and last.array is not None:
            more.extend(part.entries)
            continue
        if last is not None:
            yield _with_entries(last, more)
        last, more = task, []
    if last is not None:
        yield _with_entries(last, more)


def _with_entries(task: TaskDefinition, more: Sequence[Entry]) -> TaskDefinition:
    if task.array is None or not more:
        return task
    array = msgspec.structs.replace(task.array, entries=(*task.array.entries, *more))
    return msgspec.structs.replace(task, array=array)


def fill(text: str, entry: Entry, quote: Callable[[str], str] = str) -> str:
    """Fill in `{}` (the entry), `{field}` and `%04d` (the index); `%%04d` becomes `%04d`."""
    if "%0" in text:
        text = _INDEX.sub(lambda found: found[0][1:] if found[1] else f"%{found[2]}d" % entry.index, text)
    if "{" not in text:
        return text
    return filled(text.replace("{}", quote(entry.text)), entry.fields, quote)


class Expansion:
    """Expands templates and plain tasks of one list to tasks. Arrays of more than `whole_above` elements stay one
    definition, unless a task waits for single elements of them, or their results may exist already."""

    def __init__(self, arrays: Mapping[str, Sequence[Entry]], problems: Problems, whole_above: int) -> None:
        self._arrays = arrays
        self._indices = {name: {entry.index for entry in entries} for name, entries in arrays.items()}
        self._problems = problems
        self._whole_above = whole_above
        self._plain: set[str] = set()
        self._barriers: dict[tuple[str, Condition], TaskDefinition] = {}
        self._more: list[TaskDefinition] = []

    def expand(self, tasks: Sequence[TaskDefinition]) -> list[TaskDefinition]:
        """Return all tasks in order; barriers, which represent whole arrays, are at the end."""
        self._plain = self._choose_plain(tasks)
        found: list[TaskDefinition] = []
        for task in tasks:
            entries = self._arrays.get(task.id)
            if entries is None:
                found.append(_with(task, self._dependencies(task, 1)))
                continue
            if task.id not in self._plain:
                whole = as_array(task, entries)
                found.append(_with(whole, (*self._dependencies(task, 1), *self._each_whole(task))))
                continue
            shared = self._dependencies(task, len(entries))
            each = [dependency for dependency in task.dependencies if dependency.each]
            for element, entry in zip(elements(task, entries), entries):
                dependencies = (*shared, *self._of_each(task, each, entry.index)) if each else shared
                element = msgspec.structs.replace(element, dependencies=dependencies) if dependencies else element
                found.append(element)
        return [*found, *self._more]

    def _choose_plain(self, tasks: Sequence[TaskDefinition]) -> set[str]:
        """Choose the arrays that become plain tasks: small ones; those with a dependency on a single element; and those
        that wait element by element for plain arrays, or that plain arrays wait for element by element."""
        arrays = [task for task in tasks if task.id in self._arrays]
        plain = {
            task.id for task in arrays if len(self._arrays[task.id]) <= self._whole_above or not task.overwrite_result
        }
        for task in tasks:
            for dependency in task.dependencies:
                array, bracket, _ = dependency.id.rpartition("[")
                if bracket and dependency.id.endswith("]") and dependency.id not in self._arrays:
                    plain.add(array)
        pairs = [(task.id, other.id) for task in arrays for other in task.dependencies if other.each]
        while more := {name for pair in pairs if plain.intersection(pair) for name in pair} - plain:
            plain |= more
        return plain

    def _each_whole(self, task: TaskDefinition) -> Iterator[Dependency]:
        """Yield the element-by-element dependencies of an array that stays whole."""
        for dependency in task.dependencies:
            if dependency.each and dependency.id in self._arrays:
                missing = self._indices[task.id] - self._indices[dependency.id]
                for index in sorted(missing)[:MISSING_SHOWN]:
                    self._name_missing(task, dependency, index)
                yield dependency

    def _of_each(self, task: TaskDefinition, each: Sequence[Dependency], index: int) -> Iterator[Dependency]:
        for dependency in each:
            if index in self._indices.get(dependency.id, ()):
                yield Dependency(element_id(dependency.id, index), dependency.on)
            elif dependency.id in self._arrays:
                self._name_missing(task, dependency, index)

    def _name_missing(self, task: TaskDefinition, dependency: Dependency, index: int) -> None:
        text = f"element {index} waits for {shown(element_id(dependency.id, index))}, which does not exist"
        self._problems.add(f"task {shown(task.id)}", "dependencies", text)

    def _dependencies(self, task: TaskDefinition, count: int) -> tuple[Dependency, ...]:
        """Return the dependencies that all elements of a task (or a plain task) share."""
        found: list[Dependency] = []
        for dependency in task.dependencies:
            if dependency.each:
                if dependency.id not in self._arrays or task.id not in self._arrays:
                    text = f'"each" is for arrays: {shown(task.id)} and {shown(dependency.id)} must both be arrays'
                    self._problems.add(f"task {shown(task.id)}", "dependencies", text)
            elif dependency.id in self._plain and dependency.id in self._arrays:
                found += self._whole(dependency, count)
            else:
                found.append(dependency)
        return tuple(found)

    def _whole(self, dependency: Dependency, count: int) -> list[Dependency]:
        """Return dependencies on all elements: individual ones if they are few, else one on a barrier task."""
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


def _with(task: TaskDefinition, dependencies: tuple[Dependency, ...]) -> TaskDefinition:
    return msgspec.structs.replace(task, dependencies=dependencies) if dependencies != task.dependencies else task


def _barrier(name: str, waits_for: Sequence[str], on: Condition) -> TaskDefinition:
    """Make a task that only waits for others."""
    dependencies = tuple(Dependency(other, on) for other in waits_for)
    return TaskDefinition(name, (":",), dependencies, resources={"cpus": 0.001}, runtime_s=0.01, labels=BARRIER)
