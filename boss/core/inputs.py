"""Big inputs that tasks share, and which workers fetched them lately: learned from pushes and outcomes, nothing more is
said for it.

Never decides who gets a task (`placement` does), and stores nothing: what a boss knew of this ends with it. It is a
hint: a worker that has let an input go, or has an older version of a path, fetches it like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from weakref import WeakValueDictionary

from boss.core.fleet import Worker
from boss.core.graph import Inputs, TaskGraph
from boss.core.rows import TaskRow
from ecloud.tasks import TaskDefinition

BIG_BYTES = 8_000_000
"""Less than this is fetched sooner than it is worth another order of tasks."""
KEPT = 32
"""Sets of inputs that are remembered of a worker: those it was given last."""


class SharedInputs:
    """The sets of requirements that tasks in memory share, each once."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[str, ...], Inputs] = WeakValueDictionary()

    def on_pushed(self, definitions: Sequence[TaskDefinition], planted: Iterable[TaskRow], graph: TaskGraph) -> None:
        """Tasks of a push are in the graph: those with requirements that another one of it has too are told so."""
        uses = Counter(
            path for definition in definitions for path in {wanted.path for wanted in definition.requirements}
        )
        shared = {path for path, count in uses.items() if count > 1}
        if not shared:
            return
        by_id = {definition.id: definition for definition in definitions}
        for row in planted:
            definition = by_id.get(row.id)
            paths = {wanted.path for wanted in definition.requirements} & shared if definition is not None else ()
            if paths:
                graph.nodes[row.task_no].inputs = self._of(tuple(sorted(paths)))

    def _of(self, paths: tuple[str, ...]) -> Inputs:
        inputs = self._known.get(paths)
        if inputs is None:
            inputs = self._known[paths] = Inputs(paths)
        return inputs


def note_fetched(worker: Worker, inputs: Inputs, fetched_bytes: int) -> None:
    """A task with these inputs ended at the worker, and had fetched so much."""
    if fetched_bytes >= BIG_BYTES:
        inputs.big = True
        note_given(worker, inputs)


def note_given(worker: Worker, inputs: Inputs) -> None:
    """The worker has these, or is about to fetch them for what it was given; what it was given longest ago goes."""
    fetched = worker.fetched
    fetched.pop(inputs, None)
    fetched[inputs] = None
    inputs.holders[worker.name] = None
    if len(fetched) > KEPT:
        oldest = next(iter(fetched))
        del fetched[oldest]
        oldest.holders.pop(worker.name, None)
