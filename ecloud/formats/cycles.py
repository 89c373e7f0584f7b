"""Who waits for whom in a circle. Owns the walk; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ecloud.model.tasks import TaskDefinition


def find_cycles(tasks: Sequence[TaskDefinition]) -> Iterator[list[str]]:
    """Cycles as ids in the order in which the tasks would run, the first again at the end: one for each knot, at least.

    A dependency on an unknown task or on the task itself is passed over: each is a problem of its own. Kahn's
    algorithm first (networkx takes 8 s and 1 GB for a million tasks), then a walk in what is left over.
    """
    position = {task.id: index for index, task in enumerate(tasks)}
    before: list[list[int]] = []
    dependents: list[list[int]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        found = [position.get(dependency.id, index) for dependency in task.dependencies]
        before.append(found)
        for other in found:
            if other != index:
                dependents[other].append(index)
    open_of = [len(found) - found.count(index) for index, found in enumerate(before)]
    todo = [index for index, count in enumerate(open_of) if count == 0]
    for index in todo:
        for dependent in dependents[index]:
            open_of[dependent] -= 1
            if open_of[dependent] == 0:
                todo.append(dependent)
    if len(todo) == len(tasks):
        return
    for cycle in _circles(before, open_of):
        yield [tasks[index].id for index in (*cycle, cycle[0])]


def _circles(before: list[list[int]], open_of: list[int]) -> Iterator[list[int]]:
    """Each task left over waits for another one left over: a walk along must come to a place where it was."""
    walk_of: dict[int, int] = {}
    for walk, start in enumerate(index for index, count in enumerate(open_of) if count):
        index, path = start, []
        while index not in walk_of:
            walk_of[index] = walk
            path.append(index)
            index = next(other for other in before[index] if other != index and open_of[other])
        if walk_of[index] == walk:
            yield path[path.index(index) :][::-1]
