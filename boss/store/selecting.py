"""Resolves a user's selection of tasks: ids, RUN:ID, array elements, a run, a state, a label. Contains only the rule; a
`Finder` searches the tasks.

The database and its twin in the simulation share this rule: both give the same answers and the same sentences.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import msgspec

from boss.core.model.effects import SelectTasks
from ecloud.formats.arrays import ArrayWrong, element_id, numbers_of
from ecloud.model.ranges import Indices, Ranges
from ecloud.model.tasks import TaskState

NAMES_SHOWN = 5
"""Maximum runs or tasks named in a problem."""


class Found(msgspec.Struct, frozen=True):
    """A task that a selection may mean."""

    task_no: int
    run_no: int
    id: str
    state: str
    init: bool
    labels: tuple[str, ...]
    is_array: bool = False


class FoundArray(msgspec.Struct, frozen=True):
    """An array with elements that have no row yet: `pending` positions, all in one state."""

    run_no: int
    id: str
    first_no: int
    indices: str
    pending: str
    state: str
    labels: tuple[str, ...]

    def element(self, index: int) -> Found | None:
        """The element of that index; None if it has a row or does not exist."""
        position = Indices.of(self.indices).position(index)
        if position is None or position not in Ranges.of(self.pending):
            return None
        number = self.first_no + position
        return Found(number, self.run_no, element_id(self.id, index), self.state, False, self.labels)

    def elements(self) -> Iterator[Found]:
        """All elements without a row."""
        indices = Indices.of(self.indices)
        for position in Ranges.of(self.pending):
            number = self.first_no + position
            yield Found(number, self.run_no, element_id(self.id, indices[position]), self.state, False, self.labels)


class Finder(Protocol):
    """Queries of the stored tasks. `run_nos` names at least one run."""

    def runs(self) -> dict[str, int]:
        """Number of every run, by name."""

    def named(self, run_nos: Sequence[int], ids: Sequence[str]) -> Iterable[Found]:
        """Tasks of these runs that have one of these ids."""

    def elements(self, run_nos: Sequence[int], name: str) -> Iterable[Found]:
        """Tasks of these runs whose ids begin with `name[`: elements of the array `name`, and perhaps others."""

    def arrays(self, run_nos: Sequence[int]) -> Iterable[FoundArray]:
        """Arrays of these runs that have elements without a row."""

    def matching(self, run_nos: Sequence[int], state: str, label: str) -> Iterable[Found]:
        """Tasks of these runs in that state, with that label; empty means any. Their `labels` may be omitted."""

    def some_ids(self, run_nos: Sequence[int]) -> Iterable[str]:
        """Ids to search for a near miss: a bounded number."""


class Selection(msgspec.Struct):
    """The result of a selection: the tasks of each run that is to be read, or a sentence on why nothing could be
    found."""

    of_run: dict[int, list[int]] = {}
    problem: str = ""

    @property
    def run_nos(self) -> list[int]:
        """The runs, in order."""
        return sorted(self.of_run)

    @property
    def task_nos(self) -> set[int]:
        """All selected tasks."""
        return {task_no for numbers in self.of_run.values() for task_no in numbers}


def choose(wanted: SelectTasks, finder: Finder) -> Selection:
    """Resolve a selection. Init tasks are selected only if they are named; a named run without any match is still read,
    since requests about failed tasks also concern its init tasks."""
    runs = finder.runs()
    states = [state.value for state in TaskState]
    if wanted.state and wanted.state not in states:
        return Selection(problem=f"there is no state {wanted.state!r}; the states are {', '.join(states)}")
    if wanted.run and wanted.run not in runs:
        return Selection(problem=f"there is no run {wanted.run!r}{near(wanted.run, runs)}")
    run_nos = [runs[wanted.run]] if wanted.run else sorted(runs.values())
    if wanted.ids:
        return _by_ids(wanted, finder, runs, run_nos)
    found = list(finder.matching(run_nos, wanted.state, wanted.label)) if run_nos else []
    if wanted.state:  # an array stands for all of its elements, some of which may be in that state
        found = [task for task in found if not task.is_array]
        for array in finder.arrays(run_nos) if run_nos else ():
            if array.state == wanted.state and (not wanted.label or wanted.label in array.labels):
                found += array.elements()
    selection = Selection({runs[wanted.run]: []} if wanted.run else {})
    for task in found:
        selection.of_run.setdefault(task.run_no, [])
        if not task.init:
            selection.of_run[task.run_no].append(task.task_no)
    return selection


def _by_ids(wanted: SelectTasks, finder: Finder, runs: dict[str, int], run_nos: list[int]) -> Selection:
    names = {run_no: name for name, run_no in runs.items()}
    ids = dict.fromkeys(wanted.ids)
    asked = {id: _readings(id, runs, run_nos) for id in ids}
    spelled = {task_id for readings in asked.values() for _, task_id in readings}
    known: dict[tuple[int, str], Found] = {}
    if run_nos:
        known = {(task.run_no, task.id): task for task in finder.named(run_nos, sorted(spelled))}
        if any(task_id.endswith("]") for task_id in spelled):
            arrays = {(array.run_no, array.id): array for array in finder.arrays(run_nos)}
            known.update(_without_rows(asked, arrays))
    selection = Selection()
    for id, readings in asked.items():
        matches = {known[reading].task_no: known[reading] for reading in readings if reading in known}
        if not matches:
            elements = _elements(readings, finder)
            if len({task.run_no for task in elements}) > 1:
                full = sorted({f"{names[task.run_no]}:{id}" for task in elements})
                return Selection(
                    problem=f"array {id!r} is in several runs: name one as {', '.join(full[:NAMES_SHOWN])}"
                )
            matches = {task.task_no: task for task in elements}
        elif len(matches) > 1:
            full = sorted(f"{names[task.run_no]}:{task.id}" for task in matches.values())
            shown = ", ".join(full[:NAMES_SHOWN]) + (", …" if len(full) > NAMES_SHOWN else "")
            return Selection(problem=f"task {id!r} is in {len(full)} runs: name one as {shown}, or give the run")
        if not matches:
            close = near(id, finder.some_ids(run_nos) if run_nos else ())
            where = f" in run {wanted.run!r}" if wanted.run else ""
            return Selection(problem=f"there is no task {id!r}{where}{close}")
        if wanted.state:  # an array stands for all of its elements, of which only some are selected
            for array in [task for task in matches.values() if task.is_array]:
                del matches[array.task_no]
                matches.update((task.task_no, task) for task in _elements([(array.run_no, array.id)], finder))
        for task in matches.values():
            if (not wanted.state or task.state == wanted.state) and (not wanted.label or wanted.label in task.labels):
                selection.of_run.setdefault(task.run_no, []).append(task.task_no)
    return selection


def _readings(id: str, runs: dict[str, int], run_nos: Sequence[int]) -> list[tuple[int, str]]:
    """The possible meanings of an id: an id in any of the runs, or RUN:ID, split at one of its colons."""
    readings = [(run_no, id) for run_no in run_nos]
    colon = id.find(":")
    while colon >= 0:
        run_no = runs.get(id[:colon])
        if run_no in run_nos and run_no is not None:
            readings.append((run_no, id[colon + 1 :]))
        colon = id.find(":", colon + 1)
    return readings


def _without_rows(
    asked: dict[str, list[tuple[int, str]]], arrays: dict[tuple[int, str], FoundArray]
) -> Iterator[tuple[tuple[int, str], Found]]:
    """Named single elements that have no row yet."""
    for readings in asked.values():
        for run_no, name in readings:
            array, bracket, index = name.removesuffix("]").rpartition("[")
            found = arrays.get((run_no, array))
            if found is not None and bracket and name.endswith("]") and index.isascii() and index.isdigit():
                element = found.element(int(index))
                if element is not None and element.id == name:
                    yield (run_no, name), element


def _elements(readings: Iterable[tuple[int, str]], finder: Finder) -> list[Found]:
    """Elements of arrays: `a` means all of `a[1]`, `a[2]`, …, and `a[10-20]` those with these indices."""
    found: list[Found] = []
    for run_no, name in readings:
        array, bracket, numbers = name.removesuffix("]").rpartition("[")
        try:
            wanted = set(numbers_of(numbers)) if bracket and name.endswith("]") else None
        except ArrayWrong:
            continue
        top = name if wanted is None else array
        arrays = [array for array in finder.arrays([run_no]) if array.id == top]
        for array_ in arrays:
            if wanted is None:
                found += array_.elements()
            else:
                found += [task for index in sorted(wanted) if (task := array_.element(index)) is not None]
        for task in finder.elements([run_no], top):
            index = task.id[len(top) + 1 : -1]
            is_element = task.id.endswith("]") and index.isascii() and index.isdigit()
            if is_element and (wanted is None or int(index) in wanted):
                found.append(task)
    return found


def near(name: str, known: Iterable[str]) -> str:
    """A hint at names similar to this one, or nothing."""
    nearest = difflib.get_close_matches(name, list(known), 3)
    return f"; near to it: {', '.join(nearest)}" if nearest else ""
