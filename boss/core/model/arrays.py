"""An unfinished array in memory: its template, and its pending elements as ranges.

An element is *pending* until the boss makes it: from then on it is a task like any other, with a row of its own. A
pending element occupies only its entry. It has no state of its own: the state of its array counts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import msgspec

from boss.core.model.graph import Node
from boss.core.model.rows import ArrayRow
from ecloud.formats.arrays import ENTRIES_A_PART, decode_entries, elements, is_same_for_all
from ecloud.model.ranges import Indices, Ranges
from ecloud.model.tasks import ENDED, Condition, Entry, TaskDefinition, TaskState

_TEMPLATE = msgspec.json.Decoder(TaskDefinition)
COMPRESSION = 1
"""Lines of a list resemble each other: the fastest level compresses them to a fifth."""
_UNFINISHED = tuple(state for state in TaskState if state not in ENDED)


class Source(msgspec.Struct, eq=False):
    """An array that another array waits for element by element. `met`: positions of the waiting array whose element
    here ended as the condition requires; `open`: more may follow."""

    array_no: int
    condition: Condition
    met: Ranges
    open: bool = True


class Array(msgspec.Struct, eq=False):
    """An array that has not ended. `node`: its task. `made`: number of its elements that have rows, by state; `due`:
    pending elements that wait only for their array."""

    node: Node
    run_no: int
    first_no: int
    indices: Indices
    pending: Ranges
    template: TaskDefinition
    entries: tuple[bytes, ...]
    made: dict[TaskState, int] = {}
    sources: list[Source] = []
    due: Ranges = Ranges()

    @property
    def task_no(self) -> int:
        """Its number as a task."""
        return self.node.task_no

    @property
    def unfinished(self) -> int:
        """Elements that were made and have not ended."""
        return sum([self.made.get(state, 0) for state in _UNFINISHED])

    @property
    def may_go_on(self) -> bool:
        """Whether more pending elements may be made."""
        return bool(self.due) or (bool(self.pending) and any(source.open for source in self.sources))

    def pending_state(self, state: TaskState) -> TaskState:
        """The state in which its pending elements are counted while the array is in `state`."""
        if state is TaskState.READY and self.sources:
            return TaskState.WAITING
        return state

    @property
    def states(self) -> dict[TaskState, int]:
        """Counts of all its elements by state."""
        found = dict(self.made)
        if self.pending:
            counted_as = self.pending_state(self.node.state)
            found[counted_as] = found.get(counted_as, 0) + self.pending.count
        return {state: count for state, count in found.items() if count}

    @property
    def row(self) -> ArrayRow:
        """Its changed columns, as they are stored."""
        return ArrayRow(
            self.task_no,
            self.run_no,
            self.first_no,
            str(self.indices),
            str(self.pending),
            {state.value: count for state, count in self.states.items()},
            self.pending.count,
            self.pending_state(self.node.state).value if self.pending else "",
        )

    # --- elements --------------------------------------------------------------------------------

    def definitions(self, positions: Sequence[int]) -> list[TaskDefinition]:
        """The tasks at these positions, which ascend."""
        array = self.template.array
        assert array is not None
        return list(elements(self.template, self._entries_at(positions), array.words))

    def _entries_at(self, positions: Iterable[int]) -> list[Entry]:
        if not self.entries:
            return [Entry(index, str(index)) for index in (self.indices[position] for position in positions)]
        found: list[Entry] = []
        part: tuple[Entry, ...] = ()
        decoded = -1
        for position in positions:
            number, at = divmod(position, ENTRIES_A_PART)
            if number != decoded:
                part, decoded = decode_entries(self.entries[number]), number
            found.append(part[at])
        return found

    def shared_inputs(self, most: int) -> tuple[str, ...]:
        """Requirements that all elements share, `most` at most."""
        paths = {wanted.path for wanted in self.template.requirements if is_same_for_all(wanted.path)}
        return tuple(sorted(paths)[:most])

    # --- elements of other arrays ----------------------------------------------------------------

    def note_end(self, array_no: int, index: int, state: TaskState) -> None:
        """Note that an element of an array that this one waits for has ended."""
        position = self.indices.position(index)
        if position is None:
            return
        for source in self.sources:
            if source.array_no == array_no and source.condition.met_by(state):
                source.met.add(position)
        if position in self.pending and all(position in source.met for source in self.sources):
            self.due.add(position)

    def note_ends(self, array_no: int, indices: Indices, positions: Ranges, state: TaskState) -> None:
        """Note that many elements of an array that this one waits for have ended."""
        met = [source for source in self.sources if source.array_no == array_no and source.condition.met_by(state)]
        if not met or not positions:
            return
        if str(indices) == str(self.indices):
            mine = positions
        else:
            places = (self.indices.position(indices[position]) for position in positions)
            mine = Ranges.holding(place for place in places if place is not None)
        for source in met:
            source.met = Ranges([*source.met.ranges, *mine.ranges])
        self.find_due()

    def find_due(self) -> None:
        """Compute again which pending elements may be made."""
        due = self.pending
        for source in self.sources:
            due = due.intersection(source.met)
        self.due = due.copy() if due is self.pending else due


def array_of(row: ArrayRow, node: Node) -> Array:
    """An array from its row, without the state of its elements: `made`, `met`, `due`."""
    template = _TEMPLATE.decode(row.template)
    return Array(
        node,
        row.run_no,
        row.first_no,
        Indices.of(row.indices),
        Ranges.of(row.pending),
        template,
        row.entries,
        made={},
        sources=[Source(array_no, condition, Ranges()) for array_no, condition in row.each],
        due=Ranges(),
    )


def encode_entries(entries: Sequence[Entry]) -> tuple[bytes, ...]:
    """Encode entries as an array stores them."""
    encode = msgspec.json.Encoder().encode
    starts = range(0, len(entries), ENTRIES_A_PART)
    return tuple([zlib.compress(encode(entries[start : start + ENTRIES_A_PART]), COMPRESSION) for start in starts])
