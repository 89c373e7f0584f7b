"""How long tasks take: the median of what was seen lately, else what users said. Owns the samples."""

from __future__ import annotations

import statistics
from collections import deque

import msgspec

from boss.core.model.graph import Node

SAMPLES = 31
"""Run-times kept per kind of task: enough for a median that follows a change within a few dozen tasks."""
UNKNOWN_S = 1.0
"""The guess for a kind of task that nobody described and that never ran."""
KINDS_KEPT = 10_000
"""Kinds of task that are remembered, those that ended something last: labels may be as many as runs."""
SHORTEST_S = 0.0005
"""No process starts and ends in less."""


class _Kind(msgspec.Struct, eq=False):
    """What was seen of one kind. `ended`: how many in all; `news`: how many since the median was looked for;
    `believed`: the median was once that of as many as ran at once."""

    samples: deque[float]
    median: float = SHORTEST_S
    ended: int = 0
    news: int = 0
    believed: bool = False


class Runtimes:
    """Medians by kind: the label where a task has one, else its run and shape."""

    def __init__(self) -> None:
        self.kinds: dict[object, _Kind] = {}

    def learn(self, node: Node, run_s: float) -> None:
        """A task of this kind took `run_s` seconds."""
        name = _kind(node)
        kind = self.kinds.pop(name, None)
        if kind is None:
            kind = _Kind(deque(maxlen=SAMPLES))
        self.kinds[name] = kind  # the last one now
        kind.samples.append(run_s)
        kind.ended += 1
        kind.news += 1
        # The median of few samples is cheap and matters; later once in SAMPLES outcomes is enough.
        if len(kind.samples) < SAMPLES or kind.news >= SAMPLES:
            kind.median = max(SHORTEST_S, statistics.median(kind.samples))
            kind.news = 0
        if len(self.kinds) > KINDS_KEPT:
            del self.kinds[next(iter(self.kinds))]

    def guess_s(self, node: Node, side_by_side: int) -> float:
        """Seconds that a task like this one may take, where so many of them can run at once. What was seen is believed
        before what was said; but the first to end are the shortest, and before as many ended as began together, no
        less is guessed than without them."""
        kind = self.kinds.get(_kind(node))
        if kind is not None and (kind.believed or kind.ended >= side_by_side):
            kind.believed = True
            return kind.median
        said = UNKNOWN_S if node.runtime_s is None else max(SHORTEST_S, node.runtime_s)
        return said if kind is None else max(said, kind.median)

    def known_s(self, node: Node) -> float | None:
        """What was seen so far, or said; None where nothing was."""
        kind = self.kinds.get(_kind(node))
        if kind is not None:
            return kind.median
        return max(SHORTEST_S, node.runtime_s) if node.runtime_s is not None else None

    def forget_run(self, run_no: int) -> None:
        """A run was dropped."""
        for name in [name for name in self.kinds if isinstance(name, tuple) and name[0] == run_no]:
            del self.kinds[name]


def _kind(node: Node) -> object:
    return node.label or (node.run_no, node.shape)
