"""What a cloud says of one of our VMs, as every provider tells it and the core believes it."""

from __future__ import annotations

from enum import Enum

import msgspec


class CloudState(Enum):
    """What the cloud says of a VM, in our words. None but `GONE` proves that what it runs has ended."""

    PENDING = "pending"
    """Waits for a host or an address that its cloud does not have now, perhaps for ever."""
    QUEUED = "queued"
    """Waits for its turn: its cloud brings up other VMs first."""
    BOOTING = "booting"
    RUNNING = "running"
    ENDING = "ending"
    FAILED = "failed"
    """It will not come up unless a person helps."""
    OFF = "off"
    """Reported as off. A running one may be reported so for a while."""
    UNKNOWN = "unknown"
    """The cloud has lost sight of it."""
    HIDDEN = "hidden"
    """The cloud neither shows it to us nor says that it is gone: it may belong to another user by now."""
    GONE = "gone"
    """It is no more."""


WAITING = frozenset({CloudState.PENDING, CloudState.QUEUED})


class VmFound(msgspec.Struct, frozen=True):
    """A VM of this cluster as its cloud lists it.

    `cloud_state`: the cloud's own word for its state. `address`: empty until it has one. `since`, `ended`: when the
    cloud made it, and when it was gone, epoch seconds by the cloud's clock, 0 where it does not say: nothing may wait
    for a time by that clock. `text`: what the cloud says about it, e.g. why it waits; healthy VMs have such texts too:
    judge by `state`.
    """

    vm_no: int
    cloud_id: str
    state: CloudState = CloudState.RUNNING
    cloud_state: str = ""
    address: str = ""
    since: float = 0.0
    text: str = ""
    ended: float = 0.0

    @property
    def is_gone(self) -> bool:
        """Whether the cloud says that it is no more."""
        return self.state is CloudState.GONE
