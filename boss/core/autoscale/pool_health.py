"""The health of a pool: its cloud's refusals, failed boots, boot times, recent starts.

Owns what `scaling.plan` learns about a pool: why it is closed and until when, how many starts its limits allow, its
usual boot time. Starts and ends nothing.
"""

from __future__ import annotations

import math
from collections import deque

from boss.core.model.config import BossConfig, PoolConfig
from boss.core.model.rows import PoolRow
from datastore.backoff import Backoff

BOOTS_KEPT = 50
"""Boot times remembered: enough for a 95th percentile that one outlier does not decide."""
FAILED_BOOTS = 3
"""Failed boots in a row that close the pool: few, so that a broken image costs few VMs."""
UNPROVEN = 10
"""Maximum VMs that start together in a pool that has not yet booted one."""
LIVES_KEPT = 3
"""A pool's VMs are expected to live as long as the longest of this many: for a task that is longer, no more VMs than
this start without effect; and one worker that reported late decides nothing."""
REST_BACKOFF = Backoff(60.0, 600.0)
"""How long a pool rests after `FAILED_BOOTS`, and after each further failed boot."""
LONGEST_REFUSED_S = 300.0
"""Maximum rest after refusals; the first lasts as long as the cloud's answer asks for, doubled while its cause
persists."""
MINUTE_S = 60.0
FOR_A_PERSON = ("pool", "credentials", "unset")
"""Causes of refusals that only an operator can remove."""


class PoolHealth:
    """One pool's history, as far as it matters for the next start."""

    def __init__(self, config: PoolConfig, limits: BossConfig) -> None:
        self._config = config
        self._limits = limits
        self._boots: deque[float] = deque(maxlen=BOOTS_KEPT)
        self._ordered: list[float] = []
        self._lives: deque[float] = deque([config.lives_s], maxlen=LIVES_KEPT)
        self._started_at: deque[float] = deque(maxlen=max(1, limits.starts_a_minute))
        self._window = float(limits.starts_under_way)
        self._refused: dict[str, int] = {}
        self._failed_boots = 0
        self._rests_until = 0.0
        self._why = ""
        self._since: float | None = None

    # --- questions -------------------------------------------------------------------------------

    def boot_s(self, share: float = 0.5) -> float:
        """Seconds from request to worker that `share` of the boots did not exceed; a guess before the first boot."""
        ordered = self._ordered
        if not ordered:
            return self._config.boot_s
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    @property
    def lives_s(self) -> float:
        """How long a worker of the pool lives, as its last ones reported; by its settings before that."""
        return max(self._lives)

    def closed(self, now: float) -> str:
        """Why the pool may start no VM now, in a text without remaining time; empty if it may."""
        return self._why if now < self._rests_until else ""

    @property
    def failing(self) -> bool:
        """Whether the pool probably needs an operator: its boots fail in a row, or its configuration is wrong."""
        return self._failed_boots >= FAILED_BOOTS or any(cause in self._refused for cause in FOR_A_PERSON)

    @property
    def why(self) -> str:
        """Why it rested last."""
        return self._why

    def may_start(self, under_way: int, now: float) -> int:
        """How many more VMs may start now, with `under_way` starts in progress."""
        if self.closed(now):
            return 0
        window = math.floor(self._window)
        if self._failed_boots >= FAILED_BOOTS:
            window = 1  # one VM tests whether the pool works again
        elif not self._boots:
            window = min(window, max(UNPROVEN, self._config.minimum))
        a_minute = self._limits.starts_a_minute - sum(1 for at in self._started_at if now < at + MINUTE_S)
        return max(0, min(window - under_way, a_minute))

    def free_again_at(self, now: float) -> float | None:
        """When a time limit allows the next start; None if no time limit applies."""
        if now < self._rests_until:
            return self._rests_until
        full = len(self._started_at) == self._started_at.maxlen and now < self._started_at[0] + MINUTE_S
        return self._started_at[0] + MINUTE_S if full else None

    def row(self, now: float) -> PoolRow:
        """The pool's row in the database, for status."""
        closed = self.closed(now)
        return PoolRow(
            self._config.name,
            closed,
            self._since if closed else None,
            self._rests_until if closed else None,
            len(self._boots),
            self.boot_s(),
            self.boot_s(0.95),
        )

    # --- facts -----------------------------------------------------------------------------------

    def learn(self, boot_s: float) -> None:
        """Learn the duration of an earlier boot."""
        # No boot outlives its deadline: a boss with another clock began a longer one.
        self._boots.append(min(max(0.0, boot_s), self._limits.boot_deadline_s))
        self._ordered = sorted(self._boots)

    def on_asked(self, now: float) -> None:
        """A VM was requested."""
        self._started_at.append(now)

    def on_started(self, now: float) -> None:
        """The cloud made a VM: earlier refusals no longer count."""
        self._refused.clear()
        self._window = min(float(self._limits.starts_under_way), max(1.0, self._window) * 2)
        if not self._failed_boots and now >= self._rests_until:
            self._since = None

    def on_booted(self, boot_s: float, lives_s: float) -> None:
        """A worker reported, whose machine ends in `lives_s`."""
        self.learn(boot_s)
        self._lives.append(lives_s)
        if self._failed_boots >= FAILED_BOOTS:  # a rest after refusals continues: those concern other requests
            self._rests_until = 0.0
            self._since = None
        self._failed_boots = 0

    def on_refused(self, cause: str, reason: str, retry_s: float, now: float) -> float:
        """The cloud refused a VM: request fewer, later. Returns when the rest ends. Refusals during a rest count
        once."""
        if now < self._rests_until:
            return self._rests_until
        times = self._refused.get(cause, 0)
        self._refused[cause] = times + 1
        if cause == "less":
            self._window = max(1.0, self._window / 2)
        rest_s = max(retry_s, Backoff(retry_s, LONGEST_REFUSED_S).wait_s(times))
        return self._rest(rest_s, reason, now)

    def on_boot_failed(self, reason: str, now: float) -> float | None:
        """A boot failed. Returns when the pool's rest ends, None if it does not rest. Boots that fail during a rest
        belong to the same wave and do not count."""
        if now < self._rests_until:
            return None
        self._failed_boots += 1
        if self._failed_boots < FAILED_BOOTS:
            return None
        rest_s = REST_BACKOFF.wait_s(self._failed_boots - FAILED_BOOTS)
        return self._rest(rest_s, f"{self._failed_boots} boots in a row failed, the last: {reason}", now)

    def _rest(self, rest_s: float, why: str, now: float) -> float:
        self._rests_until = now + rest_s
        self._why = why
        self._since = self._since if self._since is not None else now
        return self._rests_until
