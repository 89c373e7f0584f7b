"""Runs with ready tasks that no worker and no pool can ever run, and why: for clients that watch them, and `status`.

Checks the groups of ready tasks, at most once in `LOOK_EVERY_S`, and single tasks only where workers end too soon for
what they state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

from boss.core.clients.why_ready import WhyReady
from boss.core.model.fleet import Fleet
from boss.core.model.graph import Node, Shape
from boss.core.model.outbox import Outbox
from boss.core.model.ready_tasks import Group, ReadyTasks
from boss.core.model.timers import Timers
from boss.core.placement.capacity_index import CapacityIndex
from ecloud.model.tasks import Resources, fits
from ecloud.model.text import counted

LOOK_EVERY_S = 1.0
NOTE = "unrunnable/"
"""Before the run's number, as a name in the context; the value says which task, and what it lacks."""
MOST_CHARS = 600
LOOKED_AT = 10_000
"""Tasks of a group that are checked one by one for what they state."""


class _Stuck(NamedTuple):
    """Tasks of a group that nothing can run: the first of them, and how many."""

    first: Node
    tasks: int


class Unrunnable:
    """`texts`: by run, which of its ready tasks nothing can run, and what they lack."""

    def __init__(
        self,
        outbox: Outbox,
        ready: ReadyTasks,
        fleet: Fleet,
        index: CapacityIndex,
        pools: list[Resources],
        why: WhyReady,
        timers: Timers,
        context: Mapping[str, str],
    ) -> None:
        self._outbox = outbox
        self._ready = ready
        self._fleet = fleet
        self._index = index
        self._pools = pools
        self._why = why
        self._timers = timers
        self._not_before = -math.inf
        self.texts = {int(name[len(NOTE) :]): text for name, text in context.items() if name.startswith(NOTE)}

    def settle(self, now: float) -> None:
        """After placement: look again, and record what changed."""
        if not self.texts and not self._ready.buckets:
            return
        if now < self._not_before:
            self._timers.once("unrunnable", self._not_before)
            return
        self._not_before = now + LOOK_EVERY_S
        found: dict[int, list[_Stuck]] = {}
        longest_s: dict[Shape, float] = {}
        for group in self._ready.placeable():
            stuck = self._look_at(group, longest_s, now)
            if stuck is not None:
                found.setdefault(group.run_no, []).append(stuck)
        texts = {run_no: self._describe(stuck, now) for run_no, stuck in found.items()}
        for run_no in self.texts.keys() | texts.keys():
            if self.texts.get(run_no) != texts.get(run_no):
                self._outbox.writes.context[f"{NOTE}{run_no}"] = texts.get(run_no)
        self.texts = texts

    def _look_at(self, group: Group, longest_s: dict[Shape, float], now: float) -> _Stuck | None:
        """The tasks of the group that nothing can run; None if there are none. `longest_s`: how long workers live, by
        shape, as found so far."""
        first = self._ready.first(group)
        assert first is not None, "a placeable group has a task that is due"
        if not self._can_run(group.shape):
            return _Stuck(first, len(group.nodes))
        if not group.least_s:
            return None
        if group.shape not in longest_s:
            longest_s[group.shape] = self._why.longest_s(group.shape, now)
        if 2 * group.least_s <= longest_s[group.shape]:
            return None
        nodes = islice(group.nodes, LOOKED_AT)
        long = [node for node in nodes if node.needs_s > longest_s[group.shape] and group.is_due(node)]
        return _Stuck(long[0], len(long)) if long else None

    def _can_run(self, shape: Shape) -> bool:
        offers = [kind.capacity for kind in self._index.kinds] + self._pools
        if any(fits(offer, shape.asks) for offer in offers):
            return True
        # A worker that takes nothing now may take tasks later.
        return any(fits(worker.capacity, shape.asks) for worker in self._fleet.workers.values())

    def _describe(self, stuck: list[_Stuck], now: float) -> str:
        others = sum(some.tasks for some in stuck) - 1
        more = f"; nothing can run {counted(others, 'other task')} of the run either" if others else ""
        return self._why.nobody_fits(stuck[0].first, now)[:MOST_CHARS] + more
