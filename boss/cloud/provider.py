"""What every cloud can do. Its comments are the contract that tests/contract/test_cloud.py runs.

A provider starts, ends and lists VMs; it decides nothing and remembers nothing that its cloud does not. All calls
block; they are
made from a small pool, never from the loop. Errors are named by what to do next.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from ecloud.tasks import Resources


class TryLater(Exception):
    """The cloud is away, slow or busy. The same call may succeed later."""


class AskForLess(Exception):
    """A quota, an address pool or the hosts are exhausted: fewer VMs may still be had."""


class GivePoolUp(Exception):
    """No VM of this pool can ever start as it is set: its template or network is wrong. A person must act."""


class CredentialsWrong(Exception):
    """The cloud does not let us in. A person must act."""


class Gone(Exception):
    """There is no such VM (any more)."""


class VmOrder(msgspec.Struct, frozen=True):
    """One VM to start. `vm_no`: its intent, which the VM must carry so that it is found again; `size`: what it is to
    offer."""

    vm_no: int
    pool: str
    size: Resources
    boot_nonce: str
    labels: tuple[str, ...] = ()


class VmFound(msgspec.Struct, frozen=True):
    """A VM of ours as the cloud lists it. One that is done is not listed."""

    vm_no: int
    cloud_id: str


class Provider(Protocol):
    """One cloud."""

    def start(self, order: VmOrder) -> str:
        """Ask for one VM; the cloud's id for it. The intent is committed before.

        After a crash between this call and its answer the VM is found by `list`. Raises all errors but `Gone`.
        """

    def end(self, cloud_id: str) -> None:
        """Ask for a VM's end. Returning is no proof: `list` is. Ending what is gone is no error."""

    def list(self) -> list[VmFound]:
        """All our VMs that are not gone. Raises `TryLater`, `CredentialsWrong`; never an incomplete list."""
