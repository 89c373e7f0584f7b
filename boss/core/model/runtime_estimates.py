"""Estimates of run-times: the median of recent ones, else the user's estimate. Owns the samples."""

from __future__ import annotations

import statistics
from collections import deque

import msgspec

from boss.core.model.graph import Node

SAMPLES = 31
"""Run-times kept per kind of task: enough for a median that follows a change within a few dozen tasks."""
UNKNOWN_S = 1.0
"""The guess for a kind of task that has neither run-times nor a user's estimate."""
KINDS_KEPT = 10_000
"""Maximum kinds of task kept, those with the latest outcome: there may be as many labels as runs."""
SHORTEST_S = 0.0005
"""No process starts and ends in less time."""


class _Kind(msgspec.Struct, eq=False):
    """Run-times of one kind. `ended`: how many in all; `news`: how many since the median was last computed; `believed`:
    a median was once computed from as many samples as ran at the same time."""

    samples: deque[float]
    median: float = SHORTEST_S
    ended: int = 0
    news: int = 0
    believed: bool = False


class Runtimes:
    """Medians by kind: a task's label if it has one, else its run and shape."""

    def __init__(self) -> None:
        self.kinds: dict[object, _Kind] = {}

    def learn(self, node: Node, run_s: float) -> None:
        """Record that a task of this kind took `run_s` seconds."""
        name = _kind(node)
        kind = self.kinds.pop(name, None)
        if kind is None:
            kind = _Kind(deque(maxlen=SAMPLES))
        self.kinds[name] = kind  # now the latest
        kind.samples.append(run_s)
        kind.ended += 1
        kind.news += 1
        # The median of few samples is cheap and matters; later, once in SAMPLES outcomes is enough.
        if len(kind.samples) < SAMPLES or kind.news >= SAMPLES:
            kind.median = max(SHORTEST_S, statistics.median(kind.samples))
            kind.news = 0
        if len(self.kinds) > KINDS_KEPT:
            del self.kinds[next(iter(self.kinds))]

    def guess_s(self, node: Node, side_by_side: int) -> float:
        """Estimated seconds of a task like this one, if `side_by_side` of them can run at the same time. Measured
        run-times take precedence over the user's estimate. But the first tasks to end are the shortest: until as many
        ended as began together, the result is not below the estimate without measurements."""
        kind = self.kinds.get(_kind(node))
        if kind is not None and (kind.believed or kind.ended >= side_by_side):
            kind.believed = True
            return kind.median
        said = UNKNOWN_S if node.runtime_s is None else max(SHORTEST_S, node.runtime_s)
        return said if kind is None else max(said, kind.median)

    def known_s(self, node: Node) -> float | None:
        """The measured run-time, else the user's estimate; None without either."""
        kind = self.kinds.get(_kind(node))
        if kind is not None:
            return kind.median
        return max(SHORTEST_S, node.runtime_s) if node.runtime_s is not None else None

    def forget_run(self, run_no: int) -> None:
        """Forget the kinds of a dropped run."""
        for name in [name for name in self.kinds if isinstance(name, tuple) and name[0] == run_no]:
            del self.kinds[name]


def _kind(node: Node) -> object:
    return node.label or (node.run_no, node.shape)
