"""Invariants of arrays, checked after each commit: elements are made once, and an array ends after all its elements.

Reads committed rows only, never the state of a core.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from boss.core.model.rows import ArrayRow, TaskRow, Writes
from ecloud.model.ranges import Indices, Ranges
from ecloud.model.tasks import ENDED, Condition, TaskState
from sim.invariants import Violation
from sim.store import Tables
from sim.world import World


class ArrayChecker:
    """Checks arrays. Raises `Violation`."""

    def __init__(self, world: World, tables: Tables) -> None:
        self.world = world
        self.tables = tables
        self._pending: dict[int, tuple[int, Ranges]] = {}
        """First number and pending positions of each array, before the commit."""
        self._lacks: dict[int, Ranges] = {}

    def _lacking(self, array: ArrayRow) -> Ranges:
        """Pending positions after the commit, read once for all elements of a batch."""
        found = self._lacks.get(array.task_no)
        if found is None:
            found = self._lacks[array.task_no] = Ranges.of(array.pending)
        return found

    def before(self, writes: Writes) -> None:
        """Note the pending positions of the arrays in this batch."""
        self._pending = {}
        for array_no in {*writes.arrays, *(task.row.array for task in writes.stored)}:
            array = self.tables.arrays.get(array_no)
            if array is not None:
                self._pending[array_no] = (array.first_no, Ranges.of(array.pending))

    def after(self, boss: str, writes: Writes) -> None:
        """Check that new elements were pending before and are not now, and that ended arrays have ended elements."""
        arrays = self.tables.arrays
        self._lacks = {}
        for task in writes.stored:
            row, array = task.row, arrays.get(task.row.array)
            if array is None:
                continue
            self.world.looked["elements"] += 1
            before = self._pending.get(array.task_no)
            position = row.task_no - array.first_no
            if before is not None and before[0] == array.first_no and position not in before[1]:
                raise Violation("elements", f"{boss} makes element {row.id} a second time")
            if position in self._lacking(array):
                raise Violation("elements", f"{boss} makes element {row.id} and would make it again")
            if row.state is TaskState.READY:
                self._counterparts_made(boss, row, array)
        changed = {*writes.arrays, *(no for no in writes.tasks if no in arrays)}
        for array_no in sorted(changed & arrays.keys()):
            self._look_at(boss, arrays[array_no])

    def _look_at(self, boss: str, array: ArrayRow) -> None:
        task = self.tables.tasks[array.task_no]
        if task.state not in ENDED:
            return
        states = self._states(array)
        if task.state is TaskState.SUCCEEDED and set(states) - {TaskState.SUCCEEDED.value}:
            raise Violation("elements", f"{boss} ends array {task.id}, whose elements are {dict(states)}")
        if task.state is not TaskState.CANCELLED and task.state is not TaskState.ABORTED:
            left = [state for state in states if TaskState(state) not in ENDED]
            if left:
                raise Violation("elements", f"{boss} ends array {task.id}, whose elements are {dict(states)}")

    def _states(self, array: ArrayRow) -> Counter[str]:
        """Count the array's elements by state, from their rows."""
        count = Indices.of(array.indices).count
        found: Counter[str] = Counter()
        if array.pending_count:
            found[array.pending_state] += array.pending_count
        for number in range(array.first_no, array.first_no + count):
            row = self.tables.tasks.get(number)
            if row is not None:
                found[row.state.value] += 1
        return found

    def _counterparts_made(self, boss: str, row: TaskRow, array: ArrayRow) -> None:
        """Check that the counterparts of an element have been made, or never will be."""
        for other_no, condition, position in self._counterparts(row, array):
            other, task = self.tables.arrays[other_no], self.tables.tasks[other_no]
            if position in self._lacking(other) and (condition is Condition.SUCCESS or task.state not in ENDED):
                raise Violation("dependencies", f"{boss} makes {row.id}, and its counterpart in {task.id} is not made")

    def _counterparts(self, row: TaskRow, array: ArrayRow) -> Iterator[tuple[int, Condition, int]]:
        """Yield (array, condition, position there) of each counterpart that the element waits for."""
        index = Indices.of(array.indices)[row.task_no - array.first_no]
        for other_no, condition in array.each:
            if other_no in self.tables.arrays:  # else the array was dropped
                position = Indices.of(self.tables.arrays[other_no].indices).position(index)
                assert position is not None
                yield other_no, condition, position

    def dependencies_of(self, task: TaskRow) -> tuple[tuple[int, Condition], ...]:
        """Dependencies of a task; of an element: those of its array, and its counterparts that have rows."""
        array = self._array_of(task.task_no)
        if array is None:
            return task.dependencies
        found = self.tables.tasks[array.task_no].dependencies
        for other_no, condition, position in self._counterparts(task, array):
            number = self.tables.arrays[other_no].first_no + position
            found += ((number, condition),) if number in self.tables.tasks else ()
        return found

    def _array_of(self, task_no: int) -> ArrayRow | None:
        for array in self.tables.arrays.values():
            if array.first_no <= task_no < array.first_no + Indices.of(array.indices).count:
                return array
        return None

    def at_last(self) -> None:
        """Check that the counts of each array match its elements."""
        for array in self.tables.arrays.values():
            states = self._states(array)
            if dict(states) != array.states:
                name = self.tables.tasks[array.task_no].id
                raise Violation("elements", f"array {name} counts {array.states}, its elements are {dict(states)}")
