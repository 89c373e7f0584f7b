"""One VM that is not gone: its row, and the clocks by which the boss judges it. Clocks are the boss's own and are not
stored: a new boss begins them anew."""

from __future__ import annotations

import math

import msgspec

from boss.core.model.rows import VmRow
from ecloud.model.vm_states import COMING, LEGAL_VM_MOVES, VmState


class Vm(msgspec.Struct, eq=False):
    """A VM. Times are seconds of the boss's clock.

    `called_at`: when a call that may still make it was last known to be under way; None once its cloud answered.
    `boot_due`: when its worker must have reported; while its cloud has no place for it, that is not judged.
    `end_asked_at`: when its end was asked for last. `waits`: whether its cloud's last list said that it waits for a
    host. `waits_since`: from when on that counts. `placed_at`: when its cloud was first seen to bring it up.
    `hidden_since`: since when its cloud shows it no more without saying that it is gone. `shown_by`: of a VM whose pool
    is not set any more, a pool of the cloud that lists it.
    """

    row: VmRow
    called_at: float | None = None
    boot_due: float = math.inf
    end_asked_at: float = -math.inf
    waits: bool = False
    waits_since: float = 0.0
    placed_at: float | None = None
    hidden_since: float | None = None
    shown_by: str = ""

    @property
    def vm_no(self) -> int:
        """The number of its intent."""
        return self.row.vm_no

    @property
    def state(self) -> VmState:
        """Where it stands."""
        return self.row.state

    @property
    def is_coming(self) -> bool:
        """Whether no worker of it has reported yet."""
        return self.row.state in COMING

    @property
    def listed_by(self) -> str:
        """A pool of the cloud that lists it."""
        return self.shown_by or self.row.pool

    def move(self, state: VmState, reason: str, now: float) -> None:
        """Change its state, for a reason that people are told. A move that is not in the table is a bug."""
        assert (self.row.state, state) in LEGAL_VM_MOVES, f"VM {self.vm_no}: {self.row.state} -> {state}"
        self.row.state, self.row.reason, self.row.since = state, reason, now
