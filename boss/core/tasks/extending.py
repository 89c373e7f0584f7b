"""What a push that extends a run may not do: a sentence for each task of the list that does not fit the run.

Functions of the run's image and of the decision about it. `merging` decides everything else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from boss.core.model.rows import RunImage, TaskRow
from boss.core.tasks.merging import Merge
from ecloud.formats.arrays import element_id
from ecloud.formats.checking import cycle_text
from ecloud.formats.graph import Outline, find_cycles
from ecloud.model.ranges import Indices
from ecloud.model.tasks import TaskDefinition


def names_elements(definitions: Collection[TaskDefinition]) -> bool:
    """Whether the list has arrays, or ids like those of elements: the whole run tells what these are."""
    return any(
        task.array is not None or task.id.endswith("]") or any(on.id.endswith("]") for on in task.dependencies)
        for task in definitions
    )


def misfits(definitions: Collection[TaskDefinition], image: RunImage) -> Iterator[str]:
    """Name each dependency that neither the list nor the run has, or that is an element of an array, and each id that
    the run uses otherwise."""
    rows = {row.id: row for row in image.tasks}
    run, named = image.run.name, {task.id for task in definitions}
    for task in definitions:
        found = rows.get(task.id)
        if found is not None and found.init:
            yield f"task {task.id}: an init task of run {run} has this id: choose another one"
        if array := _array_with(task.id, rows):
            yield f"task {task.id}: array {array} of run {run} has an element of this id: choose another one"
        if task.array is not None and (taken := _taken_by(task, rows)):
            yield f"array {task.id}: run {run} has a task {taken}: choose another id for the array"
        for on in task.dependencies:
            if on.id in named:
                continue
            if array := _array_with(on.id, rows):
                yield f"task {task.id}: dependencies: {on.id} is an element of array {array}: name the array"
            elif on.id not in rows:
                yield f"task {task.id}: dependencies: there is no task {on.id} in run {run}"


def _array_with(id: str, rows: dict[str, TaskRow]) -> str:
    """The array of the run that has an element of this id."""
    name, _, index = id.removesuffix("]").rpartition("[")
    row = rows.get(name) if id.endswith("]") and index.isascii() and index.isdigit() else None
    if row is None or row.elements is None or Indices.of(row.elements.indices).position(int(index)) is None:
        return ""
    return name if element_id(name, int(index)) == id else ""


def _taken_by(array: TaskDefinition, rows: dict[str, TaskRow]) -> str:
    """A single task of the run with the id of one of the array's elements."""
    assert array.array is not None
    indices = Indices.of(array.array.indices)
    for row in rows.values():
        name, _, index = row.id.removesuffix("]").rpartition("[")
        is_element = name == array.id and index.isascii() and index.isdigit()
        if is_element and not row.array and indices.position(int(index)) is not None:
            return row.id
    return ""


def cycles(merged: Merge) -> list[str]:
    """Name the tasks that would wait for each other: a list that changes dependencies may close a cycle. Ended tasks
    count, too: they may be done again."""
    rows = merged.rows.values()
    names = {row.task_no: row.id for row in rows}
    outline = Outline()
    for row in rows:
        before = [*row.dependencies, *(row.elements.each if row.elements is not None else ())]
        outline.add(row.id, [names[no] for no, _ in before if no in names])
    return [f"task {cycle[0]}: dependencies: {cycle_text(cycle)}" for cycle in find_cycles(outline)]
