"""How long tasks take: what users said, else the median of what was seen lately. Owns the samples."""

from __future__ import annotations

import statistics
from collections import deque

from boss.core.graph import Node

SAMPLES = 31
"""Run-times kept per kind of task: enough for a median that follows a change within a few dozen tasks."""
UNKNOWN_S = 1.0
"""The guess for a kind of task that nobody described and that never ran."""
KINDS_KEPT = 10_000
"""Kinds of task that are remembered, those that ended something last: labels may be as many as runs."""
SHORTEST_S = 0.0005
"""No process starts and ends in less."""


class Runtimes:
    """Medians by kind: the label where a task has one, else its run and shape."""

    def __init__(self) -> None:
        self._samples: dict[object, deque[float]] = {}
        self._medians: dict[object, float] = {}
        self._news: dict[object, int] = {}

    def learn(self, node: Node, run_s: float) -> None:
        """A task of this kind took `run_s` seconds."""
        kind = _kind(node)
        samples = self._samples.pop(kind, None)
        if samples is None:
            samples = deque(maxlen=SAMPLES)
        self._samples[kind] = samples  # the last one now
        samples.append(run_s)
        news = self._news.get(kind, 0) + 1
        # The median of few samples is cheap and matters; later once in SAMPLES outcomes is enough.
        if len(samples) < SAMPLES or news >= SAMPLES:
            self._medians[kind] = max(SHORTEST_S, statistics.median(samples))
            news = 0
        self._news[kind] = news
        if len(self._samples) > KINDS_KEPT:
            self._forget(next(iter(self._samples)))

    def guess_s(self, node: Node) -> float:
        """Seconds that a task like this one may take. What was seen is believed before what was said."""
        known = self.known_s(node)
        return UNKNOWN_S if known is None else known

    def known_s(self, node: Node) -> float | None:
        """The same; None where nothing was seen or said."""
        learned = self._medians.get(_kind(node))
        if learned is not None:
            return learned
        return max(SHORTEST_S, node.runtime_s) if node.runtime_s is not None else None

    def forget_run(self, run_no: int) -> None:
        """A run was dropped."""
        for kind in [kind for kind in self._samples if isinstance(kind, tuple) and kind[0] == run_no]:
            self._forget(kind)

    def _forget(self, kind: object) -> None:
        del self._samples[kind], self._medians[kind], self._news[kind]


def _kind(node: Node) -> object:
    return node.label or (node.run_no, node.shape)
