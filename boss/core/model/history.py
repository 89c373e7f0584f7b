"""Checks whether the state that a peer last received belongs to the history in the database.

A database that was restored from a backup lacks the later commits. A peer that received those holds attempts whose
numbers the boss may assign a second time. Owns the last batch of each earlier leadership.
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_AHEAD_S = 2 * 86_400.0
"""Epochs are milliseconds of a boss's clock. No boss has led in an epoch further ahead than this: clocks differ by
hours at most."""


EPOCH_CHANCES = 60_000
"""An epoch contains a random part of up to this many milliseconds."""


def next_epoch(last: int, now: float, chance: int) -> int:
    """The epoch of a boss that begins to lead after epoch `last`. `now`: epoch seconds; `chance`: random number below
    `EPOCH_CHANCES`. Time and the random part make it differ from every epoch that a restored database lacks, even
    if the clock was set back."""
    return max(last + 1, int(now * 1000)) + chance


class History:
    """The leaderships before this one. `ends`: the last batch of each, by epoch."""

    def __init__(self, epoch: int, ends: Mapping[int, int]) -> None:
        self.epoch = epoch
        self._ends = dict(ends)

    def has(self, epoch: int, batch: int) -> bool:
        """Whether `batch` of `epoch` was committed in this history. Epoch 0: the peer has received nothing yet."""
        return epoch in (0, self.epoch) or batch <= self._ends.get(epoch, -1)

    def is_behind(self, epoch: int, now: float) -> bool:
        """Whether a peer that knows `epoch` ignores this boss, which leads in a lower one."""
        return self.epoch < epoch <= (now + MAX_AHEAD_S) * 1000
