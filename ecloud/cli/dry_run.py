"""Properties of a task list before it runs: levels, width, critical path. Pure; for `--dry_run`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import networkx

from ecloud.formats.graph import predecessors_of
from ecloud.formats.paths import above
from ecloud.model.tasks import TaskDefinition

UNKNOWN_S = 1.0
"""Assumed run-time of a task without `runtime_s`."""
_START = -1
"""A node before all others, so that run-times of tasks become weights of edges."""


class Survey(msgspec.Struct, frozen=True):
    """`levels`: tasks per level (longest path from a start); `width`: the largest; `critical_path`: ids, in order.

    `critical_s`, `total_s`: seconds along that path and of all tasks; `guessed`: tasks without `runtime_s`;
    `requirements`, `results`: how many different ones; `missing_inputs`: requirements that no task produces. Init tasks
    are counted in `inits` only. `first`, `last`: ids in list order.
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
    first: str = ""
    last: str = ""


def survey(tasks: Sequence[TaskDefinition]) -> Survey:
    """Compute the properties of a checked list."""
    work = [task for task in tasks if not task.init]
    before = predecessors_of(work)
    seconds = [task.runtime_s if task.runtime_s is not None else UNKNOWN_S for task in work]
    levels, path = _levels_and_critical_path(before, seconds)
    made = {result.path for task in tasks for result in task.results}
    directories = {name for path_ in made for name in above(path_)}
    wanted = dict.fromkeys(requirement.path for task in tasks for requirement in task.requirements)
    return Survey(
        tasks=len(work),
        inits=len(tasks) - len(work),
        dependencies=sum(map(len, before)),
        levels=levels,
        width=max(levels, default=0),
        critical_path=[work[index].id for index in path],
        critical_s=sum(seconds[index] for index in path),
        total_s=sum(seconds),
        requirements=len(wanted),
        results=len(made),
        missing_inputs=[name for name in wanted if name not in directories and not _is_made(name, made)],
        guessed=sum(task.runtime_s is None for task in work),
        first=work[0].id if work else "",
        last=work[-1].id if work else "",
    )


def _levels_and_critical_path(before: Sequence[Sequence[int]], seconds: list[float]) -> tuple[list[int], list[int]]:
    """Return tasks per level, and the positions along the longest-running path. The graph leaves out tasks without
    edges: a sweep may have a million of them."""
    graph = networkx.DiGraph()
    for index, others in enumerate(before):
        graph.add_weighted_edges_from(((other, index, seconds[index]) for other in others), weight="seconds")
    starts = [index for index in graph if not before[index]]
    alone = len(before) - len(graph)
    longest_alone = max(
        (index for index in range(len(before)) if index not in graph), key=seconds.__getitem__, default=-1
    )
    graph.add_weighted_edges_from(((_START, index, seconds[index]) for index in starts), weight="seconds")
    if longest_alone >= 0:
        graph.add_edge(_START, longest_alone, seconds=seconds[longest_alone])
        alone -= 1
    if not graph:
        return [], []
    levels = [len(generation) for generation in networkx.topological_generations(graph)][1:]
    levels[0] += alone
    return levels, networkx.dag_longest_path(graph, weight="seconds")[1:]


def _is_made(name: str, made: set[str]) -> bool:
    return name in made or "." in made or any(directory in made for directory in above(name))
