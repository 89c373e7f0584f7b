"""Whether what a peer has heard is part of the history that the database holds.

A database that was restored from a backup lacks what was committed since. A peer that heard of it holds attempts whose
numbers may be given out a second time. Owns the ends of earlier leaderships.
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_AHEAD_S = 2 * 86_400.0
"""Epochs are milliseconds of a boss's clock. One further ahead than this no boss has led in: clocks differ by hours."""


EPOCH_CHANCES = 60_000
"""An epoch has this many milliseconds of chance in it."""


def next_epoch(last: int, now: float, chance: int) -> int:
    """The epoch of a boss that begins to lead after epoch `last`. `now`: epoch seconds; `chance`: drawn below
    `EPOCH_CHANCES`. By time and chance it differs from each epoch of a history that was lost: clocks may stand back."""
    return max(last + 1, int(now * 1000)) + chance


class History:
    """The leaderships that led to this one. `ends`: the last batch of each, by epoch."""

    def __init__(self, epoch: int, ends: Mapping[int, int]) -> None:
        self.epoch = epoch
        self._ends = dict(ends)

    def has(self, epoch: int, batch: int) -> bool:
        """Whether `batch` of `epoch` was committed in this history. Epoch 0: the peer has heard nothing yet."""
        return epoch in (0, self.epoch) or batch <= self._ends.get(epoch, -1)

    def is_behind(self, epoch: int, now: float) -> bool:
        """Whether a peer that heard `epoch` ignores this boss, which leads in a lower one."""
        return self.epoch < epoch <= (now + MAX_AHEAD_S) * 1000
