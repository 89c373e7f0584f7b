"""The effect of a push, a redo or a drop on each task of a run: functions from a run's image to a decision.

Under `keep_succeeded`, tasks with the same definition are kept unless they failed; changed tasks, and all that depend
on them, are replaced. Under `replace`, all tasks are replaced, and those missing from the list are dropped. Under
`extend`, the list adds tasks: the run's tasks stay, unless they failed or (with `replace_changed`) have another
definition.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Set
from itertools import chain
from typing import Any, TypeVar

import msgspec

from boss.core.model.arrays import encode_entries
from boss.core.model.packed import Packed
from boss.core.model.rows import (
    MAKES_NOTHING,
    MAKES_RESULTS,
    MAKES_UNLESS_THERE,
    ArrayRow,
    Body,
    RunImage,
    TaskMoved,
    TaskRow,
    TaskStored,
)
from ecloud.model.ranges import Indices, Ranges
from ecloud.model.tasks import ENDED, Condition, Resources, Retries, TaskDefinition, TaskState, definition_json
from ecloud.model.wire import PushOptions

_AGAIN = frozenset({TaskState.FAILED, TaskState.ABORTED, TaskState.CANCELLED})
_NOT_STARTED = frozenset({TaskState.WAITING, TaskState.READY})
_NO_RETRIES = Retries()
_Value = TypeVar("_Value")


class Allocation:
    """Assigns unused numbers."""

    def __init__(self, task_no: int, run_no: int) -> None:
        self._task_no = task_no
        self._run_no = run_no

    def next_task_no(self) -> int:
        """A number for a new task."""
        self._task_no += 1
        return self._task_no - 1

    def next_task_nos(self, count: int) -> int:
        """The first of `count` consecutive numbers."""
        self._task_no += count
        return self._task_no - count

    def next_run_no(self) -> int:
        """A number for a new run."""
        self._run_no += 1
        return self._run_no - 1


class Merge(msgspec.Struct):
    """A decision about a run. `stored`: rows to write with their definition; `moved`: state changes of rows that stay.

    If the image is a part of a run, `states` has the changes of its counts.

    `planted`: rows for the graph, with dependencies on unfinished tasks; `disturbed`: task_nos whose present node (and
    attempt) is removed; `rewired`: rows of tasks that continue although their dependencies are being redone (if
    retried, they wait for these); `inits`: all init rows; `states`: counts afterwards, without init tasks.
    """

    stored: list[TaskRow] = msgspec.field(default_factory=list)
    bodies: Packed[Body] = msgspec.field(default_factory=lambda: Packed(Body))
    """Of the stored rows, in their order."""
    moved: dict[int, TaskMoved] = msgspec.field(default_factory=dict)
    dropped: list[int] = msgspec.field(default_factory=list)
    planted: list[TaskRow] = msgspec.field(default_factory=list)
    disturbed: set[int] = msgspec.field(default_factory=set)
    rewired: list[TaskRow] = msgspec.field(default_factory=list)
    inits: list[TaskRow] = msgspec.field(default_factory=list)
    states: dict[TaskState, int] = msgspec.field(default_factory=dict)
    decisions: dict[str, int] = msgspec.field(default_factory=dict)
    rows: dict[int, TaskRow] = msgspec.field(default_factory=dict)
    """The whole run after the decision."""
    problems: list[str] = msgspec.field(default_factory=list)
    """Why the run cannot be changed like this, in sentences: then nothing of this decision may be applied."""


def new_task(definition: TaskDefinition, task_no: int, run_no: int, keep_dir: bool) -> TaskStored:
    """A task with its scheduling row, without dependencies. For an array: all its elements are pending, without
    numbers."""
    json = definition_json(definition)
    hashed = json if definition.call is None else definition_json(_as_compared(definition))
    digest = hashlib.blake2b(hashed, digest_size=16).hexdigest()
    elements = None
    if definition.array is not None:
        entries, last = definition.array.entries, Indices.of(definition.array.indices).count - 1
        definition = without_entries(definition)
        json = definition_json(definition)
        indices, pending = definition.array.indices if definition.array else "", str(Ranges([(0, last)]))
        elements = ArrayRow(task_no, run_no, 0, indices, pending, template=json, entries=encode_entries(entries))
    row = TaskRow(
        task_no=task_no,
        run_no=run_no,
        id=definition.id,
        init=definition.init,
        priority=definition.priority,
        asks=definition.asks,
        runtime_s=definition.runtime_s,
        label=definition.labels[0] if definition.labels else "",
        retries=definition.retries,
        keep_dir=keep_dir,
        body_bytes=len(json),
        makes=_makes(definition),
        definition_hash=digest,
        elements=elements,
    )
    return TaskStored(row, definition.labels, json)


def without_entries(definition: TaskDefinition) -> TaskDefinition:
    """An array as it is stored: its entries have rows of their own."""
    array = definition.array
    if array is None:
        return definition
    return msgspec.structs.replace(definition, array=msgspec.structs.replace(array, entries=()))


class Alike:
    """One object for each of the few different values that the rows of a list have in common."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}
        self._asks: dict[tuple[tuple[str, float], ...], Resources] = {}

    def one(self, value: _Value) -> _Value:
        """The first value that equalled this one."""
        known: _Value = self._known.setdefault(value, value)
        return known

    def share(self, row: TaskRow) -> TaskRow:
        """Return the row, with values of earlier rows where these are equal."""
        row.asks = self._asks.setdefault(tuple(row.asks.items()), row.asks)
        row.retries = _NO_RETRIES if row.retries == _NO_RETRIES else self.one(row.retries)
        row.label = self.one(row.label)
        return row


def _as_compared(definition: TaskDefinition) -> TaskDefinition:
    """A call without the fields that differ each time it is pickled: calls are compared by the fingerprint of their
    function."""
    call = definition.call
    assert call is not None
    call = msgspec.structs.replace(
        call, function="", code=b"", function_file="", arguments=b"", arguments_file="", setup=b"", project=""
    )
    return msgspec.structs.replace(definition, call=call, requirements=())


def merge(
    image: RunImage,
    definitions: Packed[TaskDefinition],
    options: PushOptions,
    existing_results: frozenset[str],
    allocation: Allocation,
) -> Merge:
    """Merge checked `definitions` (ids unique, dependencies first) into the run."""
    merged = Merge()
    old = {row.id: row for row in image.tasks}
    before_states = count_states(image)
    rows: dict[str, TaskRow] = {}
    fresh: dict[int, TaskRow] = {}
    skipped: set[int] = set()
    changed: set[str] = set()
    decisions: Counter[str] = Counter()
    alike = Alike()
    for definition in definitions:
        before = old.get(definition.id)
        task = new_task(definition, 0, image.run.run_no, options.keep_dirs)
        row = alike.share(task.row)
        decision = _decide(before, row, definition, options, changed)
        decisions[decision] += 1 if row.elements is None else Indices.of(row.elements.indices).count
        if decision == "kept":
            assert before is not None
            rows[definition.id] = before
            continue
        if old and decision in ("new", "replaced"):
            changed.add(definition.id)
        row.task_no = before.task_no if before is not None else allocation.next_task_no()
        row.attempts = before.attempts if before is not None else 0
        rows[definition.id] = fresh[row.task_no] = row
        if definition.dependencies:
            row.dependencies = tuple(
                {
                    (rows.get(wanted.id) or old[wanted.id]).task_no: wanted.on
                    for wanted in definition.dependencies
                    if not (rows.get(wanted.id) or old[wanted.id]).init and not wanted.each
                }.items()
            )
        if row.elements is not None:
            row.elements.each = tuple(
                {rows[wanted.id].task_no: wanted.on for wanted in definition.dependencies if wanted.each}.items()
            )
            _number_elements(row, before if decision == "anew" else None, allocation)
        if _results_exist(definition, options, existing_results):
            skipped.add(row.task_no)
        merged.stored.append(row)
        merged.bodies.append(Body(alike.one(task.labels), task.json))
    gone = _unseated(image, rows)
    replaced = {row.task_no for name, row in old.items() if row.elements is not None and name in changed}
    gone |= {row.task_no for row in image.tasks if row.array in replaced}
    if options.merge_strategy == "replace":
        gone |= {row.task_no for row in image.tasks if row.id not in rows}
        decisions["dropped"] = len(gone)
    else:
        merged.problems = _left_waiting(image, replaced, rows)
    merged.dropped = sorted(gone)
    decisions["skipped"] = len(skipped)
    listed = {row.task_no for row in rows.values() if row.elements is not None}
    del rows  # a list may have millions of tasks
    again = {  # elements of kept arrays
        row.task_no: row
        for row in image.tasks
        if row.array in listed and row.task_no not in gone and row.task_no not in fresh and row.state in _AGAIN
    }
    stored = fresh.keys()
    redone = stored | again.keys() if again else stored
    staying = [row for row in image.tasks if row.task_no not in gone and row.task_no not in redone]
    merged.disturbed |= gone
    # A part of a run lacks tasks that a named one waits for: only what is new has a state to compute.
    around = {row.task_no for row in staying} if image.is_part else set()
    replant(merged, chain(staying, fresh.values(), again.values()), redone, skipped, around, stored)
    if image.is_part:
        as_change(merged, before_states)
    merged.decisions = {decision: count for decision, count in decisions.items() if count}
    return merged


def count_states(image: RunImage) -> Counter[TaskState]:
    """The tasks of an image by state, without init tasks."""
    return Counter(row.state for row in image.tasks if not row.init)


def as_change(merged: Merge, before: Counter[TaskState]) -> None:
    """Make the counts of a decision about a part of a run those of the change: the rest of the run is not known."""
    change = Counter(merged.states)
    change.subtract(before)
    merged.states = dict(change)


def _number_elements(row: TaskRow, before: TaskRow | None, allocation: Allocation) -> None:
    """Assign numbers to the elements of an array; it keeps those that it had `before`."""
    elements = row.elements
    assert elements is not None
    elements.task_no = row.task_no
    if before is not None and before.elements is not None:
        elements.first_no, elements.pending = before.elements.first_no, before.elements.pending
    else:
        elements.first_no = allocation.next_task_nos(Indices.of(elements.indices).count)


def _left_waiting(image: RunImage, replaced: set[int], listed: dict[str, TaskRow]) -> list[str]:
    """A sentence for each unfinished array that waits for elements of a replaced array and is not in the list. Its
    elements that are ready would start before those that they wait for now."""
    names = {row.task_no: row.id for row in image.tasks}
    return [
        f"array {row.id} waits for the elements of array {names[array_no]}, which this list changes: "
        f"add array {row.id} to the list, or cancel it first"
        for row in image.tasks
        if row.elements is not None and row.id not in listed and row.state not in ENDED
        for array_no, _ in row.elements.each
        if array_no in replaced
    ]


def _unseated(image: RunImage, listed: dict[str, TaskRow]) -> set[int]:
    """Tasks to remove because the list uses their names otherwise: single tasks that are elements of an array now, and
    arrays with elements that are single tasks now."""
    rows = {row.task_no: row for row in image.tasks}
    gone: set[int] = set()
    single: set[int] = set()
    arrays = {name: Indices.of(row.elements.indices) for name, row in listed.items() if row.elements is not None}
    for row in image.tasks:
        if row.array and row.id in listed:
            single.add(row.array)
        elif not row.array and row.id.endswith("]"):
            name, _, index = row.id[:-1].rpartition("[")
            if name in arrays and index.isascii() and index.isdigit() and arrays[name].position(int(index)) is not None:
                gone.add(row.task_no)
    for array_no in single:
        gone |= {row.task_no for row in image.tasks if row.array == array_no and row.id not in listed}
        gone |= {array_no} if rows[array_no].id not in listed else set()
    for row in image.tasks:
        if row.array in single:
            row.array = 0
    return gone


def _decide(
    before: TaskRow | None, row: TaskRow, definition: TaskDefinition, options: PushOptions, changed: set[str]
) -> str:
    if before is None:
        return "new"
    if options.merge_strategy == "replace" or (before.elements is None) != (row.elements is None):
        return "replaced"
    if options.merge_strategy == "extend" and not options.replace_changed:
        return "anew" if before.state in _AGAIN else "kept"
    if before.definition_hash != row.definition_hash or any(other.id in changed for other in definition.dependencies):
        return "replaced"
    return "anew" if before.state in _AGAIN else "kept"


def _makes(definition: TaskDefinition) -> int:
    if definition.call is not None:
        return MAKES_UNLESS_THERE  # never chained: the values that it needs are read from the database
    if not definition.results:
        return MAKES_NOTHING
    return MAKES_RESULTS if definition.overwrite_result else MAKES_UNLESS_THERE


def _results_exist(definition: TaskDefinition, options: PushOptions, existing: frozenset[str]) -> bool:
    if not definition.results or (definition.overwrite_result and not options.skip_existing) or definition.array:
        return False
    return all(result.path in existing for result in definition.results)


def replant(
    merged: Merge,
    run_rows: Iterable[TaskRow],
    fresh: Set[int],
    skipped: Iterable[int] = (),
    around: Set[int] = frozenset(),
    stored: Set[int] = frozenset(),
) -> None:
    """Compute the state of `fresh` tasks (to be done, or redone) and of waiting ones, and the rows for the graph.

    `run_rows`: the whole run after the decision, or all that it affects. They are changed in place, except those
    `around`; `skipped` ones count as succeeded; `stored` ones are written with their state, and need no move.
    """
    rows = merged.rows = {row.task_no: row for row in run_rows}
    _put_back(merged, rows, fresh)
    skipped = set(skipped)
    ended: dict[int, TaskState] = {no: row.state for no, row in rows.items() if no not in fresh and row.state in ENDED}
    open_of: dict[int, int] = {}
    dependents: dict[int, list[TaskRow]] = {}
    """Of tasks whose end, or whose removal from the graph, concerns others. Without an end, as in a new run, none."""
    may_end = bool(ended or skipped)
    unsettled = [
        row
        for row in rows.values()
        if row.task_no in fresh or (row.state in _NOT_STARTED and row.task_no not in around)
    ]
    for row in unsettled:
        count = 0
        for on_task_no, _ in row.dependencies:
            if on_task_no in rows and on_task_no not in ended:
                count += 1
                if may_end or row.task_no not in fresh:
                    dependents.setdefault(on_task_no, []).append(row)
        open_of[row.task_no] = count
    # A task that a dependency has made impossible does not wait for its others.
    todo = deque(
        row
        for row in unsettled
        if open_of[row.task_no] == 0 or row.task_no in skipped or (ended and _settle(row, rows, ended)[0] in ENDED)
    )
    settled: dict[int, tuple[TaskState, str]] = {}
    while todo:
        row = todo.popleft()
        if row.task_no in settled:
            continue
        if row.task_no in skipped:
            state, reason = TaskState.SUCCEEDED, "skipped: its results exist"
        else:
            state, reason = _settle(row, rows, ended)
        settled[row.task_no] = (state, reason)
        if state in ENDED:
            ended[row.task_no] = state
            for dependent in dependents.get(row.task_no, ()):
                open_of[dependent.task_no] -= 1
                decided = open_of[dependent.task_no] == 0 or _settle(dependent, rows, ended)[0] in ENDED
                if decided and dependent.task_no not in settled:
                    todo.append(dependent)
    for row in unsettled:
        state, reason = settled.get(row.task_no, (TaskState.WAITING, ""))
        if _place_row(merged, row, state, reason, row.task_no in fresh) and row.task_no not in stored:
            merged.moved[row.task_no] = TaskMoved(state, reason, row.attempts, row.retries_used, row.not_before)
    _finish(merged, rows, ended, dependents)


def _put_back(merged: Merge, rows: dict[int, TaskRow], fresh: Set[int]) -> None:
    """Make elements pending again that are to be done although elements that they wait for have no rows yet: such an
    element was cancelled early, and with a row of its own it would wait for nothing. Those with attempts keep their
    rows: later attempts must not get the same numbers."""
    arrays = {task_no: row.elements for task_no, row in rows.items() if row.elements is not None}
    if not any(elements.each for elements in arrays.values()):
        return
    indices = {task_no: Indices.of(elements.indices) for task_no, elements in arrays.items()}
    pending = {task_no: Ranges.of(elements.pending) for task_no, elements in arrays.items()}

    def waits_for_pending(row: TaskRow) -> bool:
        index = indices[row.array][row.task_no - arrays[row.array].first_no]
        places = [(no, indices[no].position(index)) for no, _ in arrays[row.array].each if no in arrays]
        return any(place is not None and place in pending[no] for no, place in places)

    candidates = [
        row
        for row in rows.values()
        if row.array in arrays and (row.task_no in fresh or row.state in _NOT_STARTED) and not row.attempts
    ]
    while back := [row for row in candidates if row.task_no in rows and waits_for_pending(row)]:
        for row in back:  # then others may wait for these
            pending[row.array].add(row.task_no - arrays[row.array].first_no)
            del rows[row.task_no]
            merged.disturbed.add(row.task_no)
            merged.dropped.append(row.task_no)
    for task_no, elements in arrays.items():
        elements.pending = str(pending[task_no])


def _settle(row: TaskRow, rows: dict[int, TaskRow], ended: dict[int, TaskState]) -> tuple[TaskState, str]:
    for on_task_no, condition in row.dependencies:
        state = ended.get(on_task_no)
        if state is not None and not condition.met_by(state):
            return TaskState.ABORTED, _because(rows[on_task_no], state)
    return TaskState.READY, ""


def _because(dependency: TaskRow, state: TaskState) -> str:
    if state is TaskState.ABORTED and dependency.reason:
        return dependency.reason
    text = f"task {dependency.id} {state.value}"
    return text if state is not TaskState.SUCCEEDED else f"{text}; this one runs only if it does not"


def _place_row(merged: Merge, row: TaskRow, state: TaskState, reason: str, fresh: bool) -> bool:
    """Set the row's state. Returns whether that is a change."""
    if fresh:
        row.retries_used, row.not_before = 0, 0.0
    elif row.state is state:
        return False
    merged.disturbed.add(row.task_no)
    row.state, row.reason = state, reason
    return True


def _finish(
    merged: Merge, rows: dict[int, TaskRow], ended: dict[int, TaskState], dependents: dict[int, list[TaskRow]]
) -> None:
    """Find the rows for the graph: disturbed tasks that have not ended, and the tasks that wait for these; then
    count."""
    # A replanted node has lost its edges to waiting tasks: these are replanted too, and so on.
    todo = list(merged.disturbed)
    while todo:
        for row in dependents.get(todo.pop(), ()):
            if row.task_no not in merged.disturbed and row.state is TaskState.WAITING:
                merged.disturbed.add(row.task_no)
                todo.append(row.task_no)
    merged.inits = [row for row in rows.values() if row.init]
    merged.states = dict(Counter(row.state for row in rows.values() if not row.init and row.elements is None))
    for row in rows.values():
        if row.elements is not None and row.elements.pending:
            # A pending element of an array that waits element by element counts as waiting.
            waits = row.state is TaskState.READY and row.elements.each
            state = TaskState.WAITING if waits else row.state
            merged.states[state] = merged.states.get(state, 0) + Ranges.of(row.elements.pending).count
    for row in rows.values():
        if row.init or row.state in ENDED:
            continue
        open_ones: tuple[tuple[int, Condition], ...] = ()
        if row.dependencies:
            open_ones = tuple([edge for edge in row.dependencies if edge[0] in rows and edge[0] not in ended])
        if row.task_no in merged.disturbed:
            are_all = len(open_ones) == len(row.dependencies)  # then no copy: a new run may have a million rows
            merged.planted.append(row if are_all else msgspec.structs.replace(row, dependencies=open_ones))
        elif row.state is TaskState.RUNNING and any(edge[0] in merged.disturbed for edge in row.dependencies):
            merged.rewired.append(msgspec.structs.replace(row, dependencies=open_ones))
