"""Big inputs, and which workers have them: learned from pushes, outcomes and the workers' cache reports.

`placement` uses this as a hint only. A worker that has dropped an input, or has an older version of a path, fetches it
as usual. The database stores only which inputs a task shares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from boss.core.model.graph import Input, Inputs, KnownInputs, TaskGraph
from boss.core.model.worker import Worker
from boss.core.tasks.merging import Merge
from ecloud.model.tasks import TaskDefinition
from ecloud.model.transfer_status import BIG_INPUT_BYTES, INPUTS_TOLD, HeldInput

KEPT = 64
"""Inputs remembered per worker: the latest."""
SHARED_MOST = 8
"""Paths remembered per task: those that most other tasks of its push also require."""
MOST_BYTES = 2**50
"""Larger sizes that a worker reports are ignored."""


def note_shared(definitions: Iterable[TaskDefinition], merged: Merge, known: KnownInputs) -> None:
    """Before tasks of a push are stored: note the requirements that they share with other tasks, or that a worker is
    known to have."""
    uses = Counter(path for definition in definitions for path in {wanted.path for wanted in definition.requirements})
    if not uses:
        return
    found = {}
    stored = {row.id: row for row in merged.stored}
    alike: dict[tuple[str, ...], tuple[str, ...]] = {}
    for definition in definitions:
        row = stored.get(definition.id)
        paths = {wanted.path for wanted in definition.requirements} if row is not None else ()
        shared = [path for path in paths if uses[path] > 1 or path in known]
        if row is not None and shared:
            shared.sort(key=lambda path: (-uses[path], path))
            inputs = tuple(sorted(shared[:SHARED_MOST]))
            found[row.task_no] = row.inputs = alike.setdefault(inputs, inputs)
    for row in merged.planted:
        if row.task_no in found:
            row.inputs = found[row.task_no]


def note_fetched(worker: Worker, inputs: Inputs, fetched_bytes: int) -> None:
    """A task with these inputs ended at the worker. `fetched_bytes`: fetched for all its requirements."""
    fetched_bytes = min(fetched_bytes, MOST_BYTES)
    if fetched_bytes < BIG_INPUT_BYTES:
        for part in inputs.parts:  # no part is larger
            part.bytes = fetched_bytes
        return
    if not any(part.bytes >= BIG_INPUT_BYTES for part in inputs.parts):
        for part in inputs.parts:
            if part.bytes < 0 or len(inputs.parts) == 1:
                part.bytes = fetched_bytes
    note_given(worker, inputs)


def note_given(worker: Worker, inputs: Inputs) -> None:
    """The worker has these inputs, or will fetch them for a task that it was given. Drops the oldest beyond `KEPT`."""
    for part in inputs.parts:
        if part.bytes < 0 or part.bytes >= BIG_INPUT_BYTES:
            _add(worker, part)


def note_told(worker: Worker, told: Sequence[HeldInput], graph: TaskGraph) -> None:
    """Record the worker's cache report, last used first. The worker does not have omitted inputs, except for those that
    it is fetching for its tasks."""
    kept = [one for one in told[:INPUTS_TOLD] if BIG_INPUT_BYTES <= one.bytes <= MOST_BYTES]
    parts = []
    for one in reversed(kept):
        part = graph.known_inputs.part(one.path)
        part.bytes = one.bytes
        parts.append(part)
    of_held = set(_of_held(worker, graph))
    coming = [part for part in worker.fetched if part in of_held]
    for part in tuple(worker.fetched):
        _remove(worker, part)
    for part in (*parts, *coming):
        _add(worker, part)


def _of_held(worker: Worker, graph: TaskGraph) -> Iterable[Input]:
    for attempt in worker.held.values():
        node = graph.nodes.get(attempt.task_no)
        if node is not None and node.inputs is not None:
            yield from node.inputs.parts


def _add(worker: Worker, part: Input) -> None:
    fetched = worker.fetched
    fetched.pop(part, None)
    fetched[part] = None
    part.holders[worker.name] = None
    if len(fetched) > KEPT:
        _remove(worker, next(iter(fetched)))


def _remove(worker: Worker, part: Input) -> None:
    del worker.fetched[part]
    part.holders.pop(worker.name, None)
