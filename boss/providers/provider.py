"""The interface of every cloud. tests/contract/test_provider.py tests what its docstrings promise.

A provider starts, ends and lists VMs. It decides nothing and remembers nothing that its cloud does not. All calls
block, each for a limited time, and are made from a small thread pool, never from the loop. Errors are classes by what
to do next; each text is one sentence: what happened, to which thing, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from boss.core.model.cloud_vms import CloudState as CloudState
from boss.core.model.cloud_vms import VmFound as VmFound
from datastore.problem import PartAway, Problem
from ecloud.model.tasks import Resources


class TryLater(PartAway):
    """The cloud is away, slow or busy. The same call may succeed later."""


class Unanswered(TryLater):
    """The answer was lost: the VM may or may not have been started. `list` tells; asking again could start a second
    one."""


class AskForLess(PartAway):
    """A quota, an address pool or the hosts are exhausted: fewer VMs may still be had."""


class GivePoolUp(Problem):
    """No VM of this pool can start with the present settings: its template or network is wrong. The operator must
    act."""


class CredentialsWrong(Problem):
    """The cloud refuses our login, or we do not trust the cloud. The operator must act."""


class Gone(Problem):
    """This cluster has no such VM, or no longer has it."""


class VmOrder(msgspec.Struct, frozen=True):
    """One VM to start. `boot_nonce`: names its intent and contains `vm_no`; the VM must carry it so that it is found
    again, and told apart from a VM of the same number that a restored database lacks. `size`: what it must offer."""

    vm_no: int
    pool: str
    size: Resources
    boot_nonce: str
    labels: tuple[str, ...] = ()


class Stranger(msgspec.Struct, frozen=True):
    """A VM that resembles ours but is not: shown to people, never adopted, never ended. `why`: what it lacks."""

    cloud_id: str
    name: str
    owner: str
    why: str


class Capacity(msgspec.Struct, frozen=True):
    """How many more VMs of a pool the cloud would start now. `vms`: None if nothing that the cloud reports limits it;
    `reason`: the tightest limit, in words."""

    vms: int | None = None
    reason: str = ""


class Provider(Protocol):
    """One cloud, for one pool."""

    def start(self, order: VmOrder) -> str:
        """Request one VM. Returns the cloud's id for it. The intent is committed before.

        After a crash between this call and its answer, or after `Unanswered`, `list` finds the VM. Every other error
        means that no VM was made. Raises all errors but `Gone`.
        """

    def end(self, cloud_id: str) -> None:
        """Request a VM's end; a repeated request after a while ends it hard. Only `list` proves the end.

        Ending a VM that is gone is no error. Raises `TryLater` if its state does not allow it now, `Gone` for a VM that
        exists and does not carry our cluster id (it is not touched), `CredentialsWrong`.
        """

    def list(self, known: Mapping[str, int] = {}, lost: Mapping[int, str] = {}) -> list[VmFound]:
        """List all our VMs that are not gone, one per boot nonce, of all the cloud's pools. Raises `TryLater`,
        `CredentialsWrong`; never returns an incomplete list.

        `known`: intents of VMs that existed, by cloud id. One of them that no longer exists is listed too, in each list
        that asks for it, as GONE, with `since` and `ended` as far as the cloud has kept them. One that is neither shown
        nor reported as gone is HIDDEN, with a reason: it may now belong to another user.

        `lost`: intents whose call was never answered, with their boot nonces; they will be given up unless this list
        shows their VMs. A VM
        that was made and is gone already is listed as GONE, too, if the cloud can be asked for it.
        """

    def strangers(self) -> Sequence[Stranger]:
        """VMs that carry our name or tag but are not ours. Raises as `list` does."""

    def room(self) -> Capacity:
        """Quotas, free addresses and free hosts. Requests nothing. Raises all errors but `Gone` and `AskForLess`."""

    def misfit(self, size: Resources) -> str:
        """Return in what the VMs of a pool with that size are smaller than promised; empty if they are not, or if that
        is unknown. Raises all errors but `Gone` and `AskForLess`."""

    def end_all(self, wait_s: float) -> Sequence[VmFound]:
        """End every VM of this cluster and wait, `wait_s` seconds at most, until `list` is empty. Returns what is left.
        Raises as `list` does."""

    def close(self) -> None:
        """Give back what the cloud limits, such as login tokens. Never raises for a cloud that is away. Later calls
        still work."""
