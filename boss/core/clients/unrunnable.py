"""Runs with ready tasks that no worker and no pool can ever run, and why: for clients that watch them, and `status`.

Checks the groups of ready tasks, not each task, and at most once in `LOOK_EVERY_S`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from boss.core.clients.why_ready import WhyReady
from boss.core.model.fleet import Fleet
from boss.core.model.graph import Shape
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
        found: dict[int, list[Group]] = {}
        for group in self._ready.placeable():
            if not self._can_run(group.shape):
                found.setdefault(group.run_no, []).append(group)
        texts = {run_no: self._describe(groups, now) for run_no, groups in found.items()}
        for run_no in self.texts.keys() | texts.keys():
            if self.texts.get(run_no) != texts.get(run_no):
                self._outbox.writes.context[f"{NOTE}{run_no}"] = texts.get(run_no)
        self.texts = texts

    def _can_run(self, shape: Shape) -> bool:
        offers = [kind.capacity for kind in self._index.kinds] + self._pools
        if any(fits(offer, shape.asks) for offer in offers):
            return True
        # A worker that takes nothing now may take tasks later.
        return any(fits(worker.capacity, shape.asks) for worker in self._fleet.workers.values())

    def _describe(self, groups: list[Group], now: float) -> str:
        first = self._ready.first(groups[0])
        assert first is not None, "a placeable group has a task that is due"
        others = sum(len(group.nodes) for group in groups) - 1
        more = f"; nothing can run {counted(others, 'other task')} of the run either" if others else ""
        return self._why.nobody_fits(first, now)[:MOST_CHARS] + more
