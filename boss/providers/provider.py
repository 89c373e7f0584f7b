"""What every cloud can do. Its comments are the contract that tests/contract/test_provider.py runs.

A provider starts, ends and lists VMs; it decides nothing and remembers nothing that its cloud does not. All calls
block, each for a limited time; they are made from a small pool, never from the loop. Errors are named by what to do
next; the text of each is one sentence that says what happened, to which thing, and what to do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from boss.core.model.cloud_vms import CloudState as CloudState
from boss.core.model.cloud_vms import VmFound as VmFound
from datastore.problem import PartAway, Problem
from ecloud.model.tasks import Resources


class TryLater(PartAway):
    """The cloud is away, slow or busy. The same call may succeed later."""


class Unanswered(TryLater):
    """The answer was lost: nobody knows whether the VM was started. `list` tells; asking again could start a second."""


class AskForLess(PartAway):
    """A quota, an address pool or the hosts are exhausted: fewer VMs may still be had."""


class GivePoolUp(Problem):
    """No VM of this pool can ever start as it is set: its template or network is wrong. A person must act."""


class CredentialsWrong(Problem):
    """The cloud does not let us in, or we do not trust it. A person must act."""


class Gone(Problem):
    """This cluster has no such VM, or has it no more."""


class VmOrder(msgspec.Struct, frozen=True):
    """One VM to start. `vm_no`: its intent, which the VM must carry so that it is found again; `size`: what it is to
    offer."""

    vm_no: int
    pool: str
    size: Resources
    boot_nonce: str
    labels: tuple[str, ...] = ()


class Stranger(msgspec.Struct, frozen=True):
    """A VM that looks like ours and is not: shown to people, never adopted, never ended. `why`: what it lacks."""

    cloud_id: str
    name: str
    owner: str
    why: str


class Capacity(msgspec.Struct, frozen=True):
    """How many more VMs of a pool the cloud would give now, by what it says. `vms`: None where nothing bounds it that
    the cloud tells; `reason`: what bounds it most, in words."""

    vms: int | None = None
    reason: str = ""


class Provider(Protocol):
    """One cloud, for one pool."""

    def start(self, order: VmOrder) -> str:
        """Ask for one VM; the cloud's id for it. The intent is committed before.

        After a crash between this call and its answer, or after `Unanswered`, the VM is found by `list`. Every other
        error says that no VM was made. Raises all errors but `Gone`.
        """

    def end(self, cloud_id: str) -> None:
        """Ask for a VM's end; asked again after a while it is ended hard. Returning is no proof: `list` is.

        Ending what is gone is no error. Raises `TryLater` where its state refuses now, `Gone` for a VM that is there
        and does not carry our cluster id (it is not touched), `CredentialsWrong`.
        """

    def list(self, known: Mapping[str, int] = {}, lost: Collection[int] = ()) -> list[VmFound]:
        """All our VMs that are not gone, one per intent, of all the cloud's pools. Raises `TryLater`,
        `CredentialsWrong`; never an incomplete list.

        `known`: intents of VMs that were there, by cloud id. One of them that is not there any more is told too, as
        GONE, with `since` and `ended` as far as the cloud has kept them, as often as it is asked about. One that is
        neither shown nor said to be gone is HIDDEN, with words: it may as well be another's by now.

        `lost`: intents whose call was never answered, and that will be given up unless this list shows their VMs. One
        that was made and is gone already is told as GONE, too, as far as the cloud can be asked for it.
        """

    def strangers(self) -> Sequence[Stranger]:
        """VMs that carry our name or tag and are not ours. Raises as `list` does."""

    def room(self) -> Capacity:
        """Quotas, free addresses and free hosts, read and not asked for. Raises all errors but `Gone` and
        `AskForLess`."""

    def misfit(self, size: Resources) -> str:
        """What a pool that promises VMs of that size promises too much; empty where it does not, or nobody can know.
        Raises all errors but `Gone` and `AskForLess`."""

    def end_all(self, wait_s: float) -> Sequence[VmFound]:
        """End every VM of this cluster and wait, `wait_s` seconds at most, until `list` is empty; what is left.
        Raises as `list` does."""

    def close(self) -> None:
        """Give back what the cloud counts, such as login tokens. Never raises for a cloud that is away; calls that are
        made afterwards still work."""
