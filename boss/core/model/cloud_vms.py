"""What a cloud reports about a VM, in the form that all providers use, and the nonce by which it names the VM."""

from __future__ import annotations

import re
from enum import Enum

import msgspec


class CloudState(Enum):
    """The state of a VM that the cloud reports. Only `GONE` proves that the VM's processes have ended."""

    PENDING = "pending"
    """Waits for a host or an address that its cloud lacks now, perhaps for ever."""
    QUEUED = "queued"
    """Queued: its cloud starts other VMs first."""
    BOOTING = "booting"
    RUNNING = "running"
    ENDING = "ending"
    FAILED = "failed"
    """Will not start without a person's help."""
    OFF = "off"
    """Reported as off. A cloud may report a running VM as off for a while."""
    UNKNOWN = "unknown"
    """The cloud has lost contact with it."""
    HIDDEN = "hidden"
    """The cloud neither lists it nor confirms that it is gone: its id may belong to another user by now."""
    GONE = "gone"
    """No longer exists."""


WAITING = frozenset({CloudState.PENDING, CloudState.QUEUED})


def boot_nonce(epoch: int, vm_no: int) -> str:
    """Return the nonce of a VM. Epochs never repeat, not even after the database was restored from a backup; the
    numbers of VMs do then."""
    return f"{epoch}-{vm_no}"


def read_nonce(text: str) -> tuple[int, str] | None:
    """Return the number and the nonce of the VM that a cloud's object names with its nonce; the nonce is empty if it
    names the number alone, as earlier releases did. None for any other text."""
    found = re.fullmatch(r"([0-9]{1,18}-)?([1-9][0-9]{0,17})", text, re.ASCII)
    return None if found is None else (int(found[2]), text if found[1] else "")


class VmFound(msgspec.Struct, frozen=True):
    """A VM of this cluster as its cloud lists it.

    `boot_nonce`: distinguishes VMs of the same number, one of them from a history that a restored database lacks;
    empty if the cloud does not show it. `cloud_state`: the cloud's own name of its state. `address`: empty until it has
    one. `since`, `ended`: when the cloud made it, and when it was gone, epoch seconds by the cloud's clock, 0 if
    unknown: do not compute waiting times from that clock. `text`: the cloud's remark, e.g. why it waits. Healthy VMs
    have remarks, too: judge by `state`.
    """

    vm_no: int
    cloud_id: str
    state: CloudState = CloudState.RUNNING
    cloud_state: str = ""
    address: str = ""
    since: float = 0.0
    text: str = ""
    ended: float = 0.0
    boot_nonce: str = ""

    @property
    def is_gone(self) -> bool:
        """Whether the cloud reports that it no longer exists."""
        return self.state is CloudState.GONE
