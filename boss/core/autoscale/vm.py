"""One VM that is not gone: its row, and the clocks by which the boss judges it. The clocks are not stored: a new boss
starts them again."""

from __future__ import annotations

import math

import msgspec

from boss.core.model.rows import VmRow
from ecloud.model.vm_states import COMING, LEGAL_VM_MOVES, VmState


class Vm(msgspec.Struct, eq=False):
    """A VM. Times are seconds of the boss's clock.

    `called_at`: when a call that may still make the VM was last known to be in progress; None once its cloud answered.
    `boot_due`: deadline for its worker's Hello; not checked while the VM waits for a host. `end_asked_at`: when its end
    was last requested. `waits`: whether its cloud's last list showed it waiting for a host. `waits_since`: the start of
    that wait. `placed_at`: when its cloud was first seen booting it. `hidden_since`: when its cloud's list began to
    lack it without reporting its end. `shown_by`: if the VM's pool was removed, another pool of the cloud that lists
    it.
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
        """Its state."""
        return self.row.state

    @property
    def is_coming(self) -> bool:
        """Whether its worker has yet to report."""
        return self.row.state in COMING

    @property
    def ends_at_once(self) -> bool:
        """Whether its end was requested from its cloud already: what runs there is not waited for."""
        return self.row.state is VmState.ENDING and self.row.end_asked > 0

    @property
    def listed_by(self) -> str:
        """A pool of the cloud that lists it."""
        return self.shown_by or self.row.pool

    def move(self, state: VmState, reason: str, now: float) -> None:
        """Change its state, with a reason for users. Asserts that the move is in the table."""
        assert (self.row.state, state) in LEGAL_VM_MOVES, f"VM {self.vm_no}: {self.row.state} -> {state}"
        self.row.state, self.row.reason, self.row.since = state, reason, now
