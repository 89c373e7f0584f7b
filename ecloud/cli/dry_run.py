"""What a task list comes to before anything runs: levels, width, critical path. Pure; for `--dry_run`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from ecloud.model.tasks import TaskDefinition

UNKNOWN_S = 1.0
"""What a task without `runtime_s` counts."""


class Survey(msgspec.Struct, frozen=True):
    """`levels`: tasks per level (longest way from a start); `width`: the largest; `critical_path`: ids, in order.

    `critical_s`, `total_s`: seconds along that path and of all tasks; `guessed`: tasks without `runtime_s`;
    `requirements`, `results`: how many different ones; `missing_inputs`: requirements that no task makes.
    Init tasks are counted in `inits` only.
    """

    tasks: int
    inits: int
    dependencies: int
    levels: list[int]
    width: int
    critical_path: list[str]
    critical_s: float
    total_s: float
    requirements: int
    results: int
    missing_inputs: list[str]
    guessed: int


def survey(tasks: Sequence[TaskDefinition]) -> Survey:
    """Look over a checked list."""
    work = [task for task in tasks if not task.init]
    position = {task.id: index for index, task in enumerate(work)}
    before = [[position[d.id] for d in task.dependencies if d.id in position] for task in work]
    dependents: list[list[int]] = [[] for _ in work]
    open_of = [len(indices) for indices in before]
    for index, indices in enumerate(before):
        for other in indices:
            dependents[other].append(index)
    seconds = [task.runtime_s if task.runtime_s is not None else UNKNOWN_S for task in work]
    level, end_s, via = [0] * len(work), list(seconds), [-1] * len(work)
    todo = deque(index for index, count in enumerate(open_of) if count == 0)
    while todo:
        index = todo.popleft()
        for other in dependents[index]:
            level[other] = max(level[other], level[index] + 1)
            if end_s[index] + seconds[other] > end_s[other]:
                end_s[other], via[other] = end_s[index] + seconds[other], index
            open_of[other] -= 1
            if open_of[other] == 0:
                todo.append(other)
    levels = [0] * (max(level, default=-1) + 1)
    for number in level:
        levels[number] += 1
    made = {result.path for task in tasks for result in task.results}
    above = {"/".join(path.split("/")[:count]) for path in made for count in range(1, path.count("/") + 1)}
    wanted = dict.fromkeys(requirement.path for task in tasks for requirement in task.requirements)
    last = max(range(len(work)), key=end_s.__getitem__, default=-1)
    path = []
    while last >= 0:
        path.append(work[last].id)
        last = via[last]
    return Survey(
        tasks=len(work),
        inits=len(tasks) - len(work),
        dependencies=sum(map(len, before)),
        levels=levels,
        width=max(levels, default=0),
        critical_path=path[::-1],
        critical_s=max(end_s, default=0.0),
        total_s=sum(seconds),
        requirements=len(wanted),
        results=len(made),
        missing_inputs=[name for name in wanted if name not in made and name not in above and not _below(name, made)],
        guessed=sum(task.runtime_s is None for task in work),
    )


def _below(name: str, made: set[str]) -> bool:
    parts = name.split("/")
    return "." in made or any("/".join(parts[:count]) in made for count in range(1, len(parts)))
