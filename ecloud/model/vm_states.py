"""The states of a VM for the boss, and the legal changes. The diagram in docs/states.md is drawn from this table."""

from __future__ import annotations

from enum import Enum


class VmState(str, Enum):
    """The state of a VM. `gone` is final: its cloud's list proved it, or the VM was written off."""

    INTENDED = "intended"
    BOOTING = "booting"
    RUNNING = "running"
    ENDING = "ending"
    GONE = "gone"

    __str__ = str.__str__


COMING = frozenset({VmState.INTENDED, VmState.BOOTING})
"""No worker of the VM has reported yet."""

WRITTEN_OFF = "written off"
"""Cause for a VM that was written off without a proof of its end."""

VM_MOVES: tuple[tuple[VmState, VmState, str], ...] = (
    (VmState.INTENDED, VmState.BOOTING, "its cloud created it"),
    (VmState.INTENDED, VmState.RUNNING, "its worker reported before the cloud's answer came"),
    (VmState.INTENDED, VmState.ENDING, "no answer within VM_BOOT_S, an operator requested its end"),
    (VmState.INTENDED, VmState.GONE, "its cloud refused, or never answered and shows no such VM"),
    (VmState.BOOTING, VmState.RUNNING, "its worker reported"),
    (VmState.BOOTING, VmState.ENDING, "it failed, got no host, or no worker reported within VM_BOOT_S"),
    (VmState.BOOTING, VmState.GONE, "it vanished from its cloud"),
    (VmState.RUNNING, VmState.ENDING, "it idles, its worker left or was lost, an operator requested its end"),
    (VmState.RUNNING, VmState.GONE, "it vanished from its cloud"),
    (VmState.ENDING, VmState.GONE, "its cloud's list confirmed the end; or it was written off"),
)
"""(from, to, by)."""

LEGAL_VM_MOVES = frozenset((before, after) for before, after, _ in VM_MOVES)
