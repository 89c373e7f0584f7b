"""The budget in VM-hours of any 24 hours. Owns the lives of VMs that are gone, as long as they count."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from boss.core.model.rows import VmRow
from ecloud.model.vm_states import VmState

DAY_S = 86_400.0
HOUR_S = 3_600.0
LOOK_EVERY_S = 1.0
"""The sum over a day's VMs is computed at most this often, although each batch asks for it."""


class DailyBudget:
    """VM-hours used in the last 24 hours. `hours_per_day` 0: no limit, and nothing is remembered."""

    LOOK_AGAIN_S = 60.0
    """When to check again while the budget is used up: hours drop out of the last 24 all the time."""

    def __init__(self, hours_per_day: float) -> None:
        self._hours_per_day = hours_per_day
        self._past: deque[tuple[float, float]] = deque()
        self._looked_at = -math.inf
        self._hours = 0.0

    def remember(self, vm: VmRow) -> None:
        """Remember a VM that is gone. A VM that the cloud never made cost nothing."""
        lived = vm.lived(vm.since) if vm.state is VmState.GONE else None
        if self._hours_per_day and lived is not None:
            self._past.append(lived)
            self.recount()

    def recount(self) -> None:
        """Another VM is known to live: compute the sum when it is asked for next."""
        self._looked_at = -math.inf

    def hours(self, alive: Iterable[VmRow], now: float) -> float:
        """VM-hours of the last 24 hours."""
        while self._past and self._past[0][1] <= now - DAY_S:
            self._past.popleft()
        lives = [*self._past, *filter(None, (vm.lived(now) for vm in alive))]
        return sum(max(0.0, end - max(start, now - DAY_S)) for start, end in lives) / HOUR_S

    def exhausted(self, alive: Iterable[VmRow], now: float) -> str:
        """Why the budget allows no further VM; empty if it does."""
        if self._hours_per_day and now >= self._looked_at + LOOK_EVERY_S:
            self._looked_at, self._hours = now, self.hours(alive, now)
        if self._hours < self._hours_per_day or not self._hours_per_day:
            return ""
        return (
            f"the budget of {self._hours_per_day:g} VM-hours in 24 hours is used up (VM_HOURS_PER_DAY in settings.py)"
        )
