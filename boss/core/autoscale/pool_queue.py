"""VMs of one pool that wait in the cloud for a host: how fast the cloud places them, and how many may wait.

Many clouds place VMs one after another: OpenNebula's scheduler dispatches one VM per host at a time, and a long image
transfer holds up all others. A longer queue then gains nothing, and a VM that waits while others are placed is not
refused. Owns the times of placements; starts and ends nothing.
"""

from __future__ import annotations

import math
from collections import deque

LEAST_WAITING = 5
"""VMs that may wait in a cloud that placed none lately."""
LEAST_BOOT_S = 30.0
"""A shorter boot time gives no information about how many VMs the cloud places meanwhile."""
PLACED_KEPT = 500


class PoolQueue:
    """One pool's queue in its cloud."""

    def __init__(self, pool: str, boot_s: float) -> None:
        self._pool = pool
        self._boot_s = boot_s
        self._placed_at: deque[float] = deque(maxlen=PLACED_KEPT)
        self.waiting = 0
        """Unplaced VMs: those of the cloud's last list, if any waits, plus those requested since; else 0."""
        self.progress_at = -math.inf
        """When the cloud was last seen placing or booting VMs."""

    def may_wait(self, now: float) -> int | None:
        """How many more VMs are worth requesting while some wait; None if none waits."""
        if not self.waiting:
            return None
        return max(0, max(LEAST_WAITING, self._placed_lately(now)) - self.waiting)

    def why(self, now: float) -> str:
        """Why no more VMs are requested, in words."""
        return (
            f"{self.waiting} VMs of pool {self._pool} wait for a host of their cloud, which placed "
            f"{self._placed_lately(now)} within a boot time ({self._window_s:.0f} s)"
        )

    @property
    def _window_s(self) -> float:
        return max(LEAST_BOOT_S, self._boot_s)

    def _placed_lately(self, now: float) -> int:
        return sum(1 for at in self._placed_at if now < at + self._window_s)

    # --- facts -----------------------------------------------------------------------------------

    def on_listed(self, waiting: int, is_busy: bool, now: float) -> None:
        """Take the number of waiting VMs from a list. `is_busy`: the cloud still works on earlier VMs."""
        self.waiting = waiting
        if is_busy:
            self.progress_at = now

    def on_start(self, count: int) -> None:
        """`count` more VMs were requested; they queue behind those that wait."""
        if self.waiting:
            self.waiting += count

    def on_placed(self, now: float) -> None:
        """The cloud found a host for a VM."""
        self._placed_at.append(now)
        while self._placed_at[0] + self._window_s <= now:
            self._placed_at.popleft()
        self.progress_at = now

    def on_booted(self, boot_s: float) -> None:
        """A worker reported this long after its VM was placed."""
        self._boot_s = boot_s
