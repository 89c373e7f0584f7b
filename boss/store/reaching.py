"""Finds the tasks that a request can affect: a run of a million tasks is not read because forty of them failed.

Contains only the rule; a `Reader` reads the rows. The database and its twin in the simulation share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from boss.core.model.effects import Reads
from boss.core.model.rows import RunImage, RunRow, TaskRow
from ecloud.model.tasks import ENDED, TaskState

MOST_LAYERS = 200
"""Generations of dependents that are followed, a few queries each. Behind a deeper graph the whole run is read."""
MOST_TASKS = 50_000
"""Tasks that are read one by one. If more are affected, reading the whole run costs no more."""

_OPEN = frozenset({TaskState.WAITING, TaskState.READY})
_UNFINISHED = _OPEN | {TaskState.RUNNING}


class Reader(Protocol):
    """Queries of the stored tasks, by their numbers."""

    def rows(self, task_nos: Sequence[int]) -> dict[int, TaskRow]:
        """These tasks, without their dependencies."""

    def add_dependencies(self, rows: dict[int, TaskRow]) -> None:
        """Set the dependencies of these rows."""

    def dependents(self, task_nos: Sequence[int], states: Iterable[TaskState]) -> dict[int, TaskState]:
        """Tasks in one of `states` that depend on any of these, with their state."""

    def init_tasks(self, run_nos: Sequence[int]) -> list[int]:
        """The init tasks of these runs."""


def parts_of(
    reader: Reader, runs: Sequence[RunRow], chosen: Mapping[int, Sequence[int]], reads: Reads
) -> list[RunImage]:
    """Partial images of these runs, none of which has arrays. `chosen`: the selected tasks of each. Returns none if too
    many tasks are needed, or too deep ones: then read the runs whole."""
    found = affected(reader, [run.run_no for run in runs], [no for run in runs for no in chosen[run.run_no]], reads)
    if found is None:
        return []
    images = {run.run_no: RunImage(run, [], is_part=True) for run in runs}
    rows, around = found
    for row in rows:
        images[row.run_no].tasks.append(row)
    for image in images.values() if around else ():
        image.around = around.intersection([row.task_no for row in image.tasks])
    return list(images.values())


def affected(
    reader: Reader, run_nos: Sequence[int], selected: Sequence[int], reads: Reads
) -> tuple[list[TaskRow], frozenset[int]] | None:
    """The tasks of these runs that a request needs, by number, and which of them it needs only because others depend on
    them. None if they are too many or too deep.

    A task that is done again takes its aborted (or all ended) dependents with it; unfinished dependents wait for it
    again, and so do theirs. What runs already continues, but its open dependencies are counted anew.
    """
    if reads is Reads.NUMBERS:
        return [], frozenset()
    if len(selected) > MOST_TASKS:
        return None
    if reads is Reads.SELECTED:
        return list(reader.rows(sorted(selected)).values()), frozenset()
    again = ENDED if reads is Reads.REDONE_BELOW else frozenset({TaskState.ABORTED})
    own = _follow(reader, selected, again)
    if own is None:
        return None
    rows = reader.rows(sorted(own.union(reader.init_tasks(run_nos))))
    reader.add_dependencies(rows)
    around = {on_task_no for row in rows.values() for on_task_no, _ in row.dependencies} - rows.keys()
    rows.update(reader.rows(sorted(around)))
    return [rows[task_no] for task_no in sorted(rows)], frozenset(around)


def _follow(reader: Reader, chosen: Sequence[int], again: frozenset[TaskState]) -> set[int] | None:
    """The chosen tasks and all that they affect; None if these are too many or too deep."""
    redone, waiting, running = set(chosen), set[int](), set[int]()
    new_redone, new_waiting = set(chosen), set[int]()
    for _ in range(MOST_LAYERS):
        if not new_redone and not new_waiting:
            return redone | waiting | running
        below = reader.dependents(sorted(new_waiting), _UNFINISHED) if new_waiting else {}
        if new_redone:
            below.update(reader.dependents(sorted(new_redone), again | _UNFINISHED))
        new_redone = {task_no for task_no, state in below.items() if state in again} - redone
        new_waiting = {task_no for task_no, state in below.items() if state in _OPEN} - waiting
        running |= {task_no for task_no, state in below.items() if state is TaskState.RUNNING}
        redone |= new_redone
        waiting |= new_waiting
        if len(redone) + len(waiting) > MOST_TASKS:
            return None
    return None
