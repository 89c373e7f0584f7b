"""Checks of an array that stays one definition, without making all of its elements.

Elements differ only in the values filled in, so a few of them are checked completely: the first, the last, and the one
with the longest entry. If entries are filled into the paths of files, the paths of all elements are checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from ecloud.formats.arrays import ArrayWrong, element_id, elements, entries_in, indices_of
from ecloud.formats.paths import text_problem
from ecloud.formats.problems import shown
from ecloud.model.tasks import MERGED, Dependency, Entry, TaskDefinition

MAX_WORDS = 10_000


def array_problem(task: TaskDefinition) -> str:
    """Return why the array is invalid; empty if it is valid."""
    array = task.array
    assert array is not None
    try:
        indices = indices_of(array)
    except ArrayWrong as wrong:
        return str(wrong)
    if array.entries and [entry.index for entry in array.entries] != list(indices):
        return f"{len(array.entries):,} entries do not fit indices {shown(array.indices)!r}"
    if task.init or not task.overwrite_result:
        return "an init task cannot be an array, nor a task with overwrite_result false"
    if len(array.words) > MAX_WORDS:
        return f"{len(array.words):,} words; at most {MAX_WORDS:,} are allowed"
    texts = [*array.words, *_texts(array.entries)]
    if text_problem("".join(texts), ""):  # all at once: a million messages for nothing take a second
        return next(filter(None, (text_problem(text, f"entry {shown(text)!r}") for text in texts)))
    return ""


def _texts(entries: Sequence[Entry]) -> Iterator[str]:
    for entry in entries:
        yield entry.text
        if entry.fields:
            for name, value in entry.fields.items():
                yield name
                yield value


def samples(task: TaskDefinition) -> list[TaskDefinition]:
    """Return elements that represent all elements of a valid array: the first, the last, the longest."""
    array = task.array
    assert array is not None
    if array.entries:
        longest = max(array.entries, key=lambda entry: len(entry.text))
        chosen = [array.entries[0], array.entries[-1], longest]
    else:
        indices = indices_of(array)
        chosen = [Entry(index, str(index)) for index in (indices[0], indices[indices.count - 1])]
    return list(elements(task, {entry.index: entry for entry in chosen}.values(), array.words))


def with_other_paths(task: TaskDefinition, chosen: Sequence[TaskDefinition]) -> Iterator[TaskDefinition]:
    """Yield the elements of a valid array whose paths the `chosen` ones (`samples`) do not represent, without commands:
    all others if entries are filled in. The digits of an index change no path's validity."""
    if task.array is not None and task.array.entries and has_files(task):
        known = {element.id for element in chosen}
        yield from (element for element in elements(_bare(task), task.array.entries) if element.id not in known)


def has_files(task: TaskDefinition) -> bool:
    """Whether its elements name files that other tasks may name, too. Outputs named by the task's id cannot collide."""
    outputs = [path for path in (task.stdout, task.stderr) if path and path != MERGED]
    return bool(task.requirements or task.results or any("%t" not in path for path in outputs))


def _bare(task: TaskDefinition) -> TaskDefinition:
    return msgspec.structs.replace(task, commands=(), env={}, array=None)


def with_elements(tasks: Sequence[TaskDefinition]) -> Sequence[TaskDefinition]:
    """Return the list with each array that names files replaced by its elements, followed by a task with the array's id
    that waits for all of them. Only the fields that `file_conflicts` checks are filled in."""
    expanded = {task.id for task in tasks if task.array is not None and has_files(task)}
    if not expanded:
        return tasks
    found: list[TaskDefinition] = []
    for task in tasks:
        if task.id not in expanded:
            found.append(task)
            continue
        assert task.array is not None
        shared = tuple(other for other in task.dependencies if not (other.each and other.id in expanded))
        each = [other for other in task.dependencies if other.each and other.id in expanded]
        names = []
        for entry, element in zip(entries_in(task.array), elements(_bare(task), entries_in(task.array)), strict=True):
            names.append(element.id)
            if shared or each:
                own = tuple([Dependency(element_id(other.id, entry.index), other.on) for other in each])
                element = msgspec.structs.replace(element, dependencies=(*shared, *own))
            found.append(element)
        found.append(TaskDefinition(task.id, dependencies=tuple(map(Dependency, names))))
    return found
