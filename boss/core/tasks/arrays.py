"""Arrays: the boss makes elements, some thousands at a time, when they are about to run; an array ends after its
elements.

An array is a task that no worker gets. Dependencies to and from arrays are those of any task: one row, whatever the
size of the array. While an array is ready, its elements become tasks in windows, so that there are always ready
elements, but hardly more than workers can take. `core.model.arrays` describes elements before that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from boss.core.model.arrays import Array, array_of
from boss.core.model.outbox import Outbox
from boss.core.model.rows import TaskRow
from boss.core.model.timers import Timers
from boss.core.tasks.merging import new_task
from boss.core.tasks.taskbook import TaskBook
from ecloud.model.ranges import Indices, Ranges
from ecloud.model.tasks import ENDED, TaskState

SHARED_MOST = 8
"""Maximum shared requirements of all elements that the boss treats as inputs."""

Ends = Mapping[int, tuple[str, str]]
"""Positions of elements that succeeded, and of those that ended otherwise, by array."""
Made = Mapping[int, Mapping[TaskState, int]]
"""Elements with rows, by array and state."""


class Arrays:
    """Makes elements and ends arrays. The task book owns the arrays."""

    def __init__(self, outbox: Outbox, book: TaskBook, timers: Timers, window: int) -> None:
        self._outbox = outbox
        self._book = book
        self._timers = timers
        self._window = window

    def settle(self, now: float) -> None:
        """End arrays whose elements have all ended; make elements of those that are ready."""
        book = self._book
        found = True
        while found:
            found = False
            for array in tuple(book.arrays.values()):
                if self._is_over(array):
                    self._end(array, now)
                    found = True  # its end may have ended arrays that were checked before it
                if array.node.state not in ENDED:
                    continue
                found |= self._tell_dependents(array)
                if not array.unfinished:  # else results of an element that was not cancelled are being published
                    book.forget_array(array.task_no)
        if self._outbox.writes.dropped_tasks:  # which may be elements of the same names
            self._timers.once("arrays", now)
            return
        for array in tuple(book.arrays.values()):
            if array.node.state is TaskState.READY and array.due and array.run_no not in book.ready.held_runs:
                self._fill_window(array, now)

    @staticmethod
    def _is_over(array: Array) -> bool:
        return array.node.state is TaskState.READY and not array.unfinished and not array.may_go_on

    def _end(self, array: Array, now: float) -> None:
        node = array.node
        bad = {state: count for state, count in array.made.items() if count and state is not TaskState.SUCCEEDED}
        total = sum(array.made.values()) + array.pending.count
        if array.pending:
            names = [other.id for other in array.template.dependencies if other.each]
            reason = (
                f"{array.pending.count:,} of {total:,} elements cannot run: the elements of {' and '.join(names)} that "
                "they wait for did not end as they must"
            )
            self._book.end(node, TaskState.ABORTED, reason, now)
        elif bad:
            parts = ", ".join(f"{count:,} {state.value}" for state, count in bad.items())
            self._book.end(node, TaskState.FAILED, f"of {total:,} elements {parts}", now)
        else:
            self._book.end(node, TaskState.SUCCEEDED, "", now)

    def _tell_dependents(self, array: Array) -> bool:
        """The array has ended: arrays that wait for its elements expect no more of them. Returns whether any did."""
        told = False
        for other in self._book.waiting_for(array.task_no):
            for source in other.sources:
                if source.array_no == array.task_no and source.open:
                    source.open, told = False, True
            if told:  # elements that were never made have not succeeded
                other.note_ends(array.task_no, array.indices, array.pending, TaskState.ABORTED)
        return told

    def _fill_window(self, array: Array, now: float) -> None:
        waiting = self._book.ready.count(array.node)
        count = min(self._window - waiting, -(-self._window // 2))
        if count <= 0 or (waiting and count < self._window // 4):
            return  # enough are waiting; a few more are not worth a statement
        make(self._outbox, self._book, array, array.due.take(count), now)
        if array.due:
            # Workers may take all of these in this batch and then send nothing for an hour.
            self._timers.once("arrays", now)


def make(
    outbox: Outbox,
    book: TaskBook,
    array: Array,
    positions: Sequence[int],
    now: float,
    state: TaskState = TaskState.READY,
    reason: str = "",
) -> None:
    """Make tasks of pending elements, in `state`: ready or ended."""
    if not positions:
        return
    rows = []
    shared = array.shared_inputs(SHARED_MOST)
    for position, definition in zip(positions, array.definitions(positions), strict=True):
        task = new_task(definition, array.first_no + position, array.run_no, array.node.keep_dir)
        task.row.state, task.row.reason = state, reason
        task.row.inputs, task.row.array = shared, array.task_no
        outbox.writes.stored.append(task)
        rows.append(task.row)
        array.pending.discard(position)
        array.due.discard(position)
    book.count_made(array, len(rows), state)
    if state not in ENDED:
        book.plant(rows, now)


# --- arrays of a run that changed (push, redo) or was loaded ---------------------------------------------


def load_arrays(book: TaskBook, rows: Iterable[TaskRow], ends: Ends, made: Made, closed: Collection[int] = ()) -> None:
    """Load the unfinished ones of these arrays into memory, and forget those that have ended.

    `rows`: rows of arrays. `ends`: for the arrays that they wait for element by element, how elements ended, if any.
    `closed`: arrays that were cancelled or aborted while results of elements are still being published.
    """
    arrays = {row.task_no: row for row in rows}
    for row in arrays.values():
        assert row.elements is not None
        known = book.arrays.get(row.task_no)
        book.forget_array(row.task_no)
        elements = row.elements
        if row.state in ENDED and row.task_no not in closed:
            book.write_ended(elements, row.state, made.get(row.task_no, {}))
            continue
        if known is not None and not elements.entries and known.first_no == elements.first_no:
            elements.entries = known.entries
        node = book.graph.node_of(row) if row.task_no in closed else book.graph.nodes[row.task_no]
        array = array_of(elements, node)
        array.made = {state: count for state, count in made.get(row.task_no, {}).items() if count}
        for source in array.sources:
            other = arrays.get(source.array_no)
            source.open = other is not None and other.state not in ENDED
        for array_no in dict(elements.each):
            other = arrays.get(array_no)
            indices = Indices.of(other.elements.indices if other is not None and other.elements else elements.indices)
            succeeded, otherwise = ends.get(array_no, ("", ""))
            array.note_ends(array_no, indices, Ranges.of(succeeded), TaskState.SUCCEEDED)
            array.note_ends(array_no, indices, Ranges.of(otherwise), TaskState.FAILED)
        array.find_due()
        book.keep_array(array)


def ends_in(rows: Iterable[TaskRow]) -> dict[int, tuple[str, str]]:
    """How the elements ended, for arrays that others wait for element by element; `rows`: of a whole run."""
    rows = list(rows)
    arrays = {row.task_no: row for row in rows if row.elements is not None}
    wanted = {array_no for row in arrays.values() if row.elements for array_no, _ in row.elements.each}
    found: dict[int, tuple[list[tuple[int, int]], list[tuple[int, int]]]] = {no: ([], []) for no in wanted}
    for row in rows:
        if row.array in found and row.state in ENDED:
            elements = arrays[row.array].elements
            assert elements is not None
            position = row.task_no - elements.first_no
            found[row.array][row.state is not TaskState.SUCCEEDED].append((position, position))
    for array_no in wanted & arrays.keys():
        row = arrays[array_no]
        if row.elements is not None and row.state in ENDED:  # elements that were never made ended with it
            found[array_no][1].extend(Ranges.of(row.elements.pending).ranges)
    return {no: (str(Ranges(good)), str(Ranges(bad))) for no, (good, bad) in found.items()}


def made_in(rows: Iterable[TaskRow]) -> dict[int, Counter[TaskState]]:
    """Elements with rows, by array and state; `rows`: of a whole run."""
    counts: dict[int, Counter[TaskState]] = {}
    for row in rows:
        if row.array:
            counts.setdefault(row.array, Counter())[row.state] += 1
    return counts


def join_elements(rows: Mapping[int, TaskRow]) -> None:
    """Set array and dependencies of the elements among `rows`, which are by number: only the row of their array stores
    these."""
    arrays = {row.task_no: row.elements for row in rows.values() if row.elements is not None}
    if not arrays:
        return
    indices = {array_no: Indices.of(elements.indices) for array_no, elements in arrays.items()}
    spans = sorted(arrays.values(), key=lambda elements: elements.first_no)
    firsts = [elements.first_no for elements in spans]
    for task_no, row in rows.items():
        at = bisect_right(firsts, task_no) - 1
        if at < 0 or task_no >= firsts[at] + indices[spans[at].task_no].count:
            continue
        elements = spans[at]
        row.array = elements.task_no
        row.dependencies = rows[elements.task_no].dependencies
        for array_no, condition in elements.each:
            if array_no in arrays:
                index = indices[elements.task_no][task_no - elements.first_no]
                position = indices[array_no].position(index)
                if position is not None:
                    row.dependencies += ((arrays[array_no].first_no + position, condition),)
