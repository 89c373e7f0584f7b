"""What can happen to the boss: facts, in past tense. Each is passed to `Boss.handle` once."""

from __future__ import annotations

import msgspec

from boss.core.model.cloud_vms import VmFound
from boss.core.model.rows import PushAnswered, RunImage
from ecloud.model.boot_diagnosis import Visit
from ecloud.model.tasks import Result
from ecloud.model.wire import CallEnded, CallValue, Envelope


class MessageArrived(msgspec.Struct, frozen=True):
    """A peer sent a message. The caller has verified signature and version, but not session and number."""

    envelope: Envelope
    key_name: str
    size: int = 0
    """Bytes of the message."""


class BrokerFound(msgspec.Struct, frozen=True):
    """The broker is connected: peers are reachable again, and their leases start again in full."""


class BrokerLost(msgspec.Struct, frozen=True):
    """No message arrives until `BrokerFound`. Meanwhile no worker's lease expires."""

    reason: str = ""


class BatchRefused(msgspec.Struct, frozen=True):
    """The database refused a batch of an earlier core of this boss."""


class RunLoaded(msgspec.Struct, frozen=True):
    """Answer to `LoadRun`. `image`: None if there is no such run; `answered`: the result of the push in question, if it
    was committed already."""

    token: int
    image: RunImage | None
    answered: PushAnswered | None = None


class CallsLoaded(msgspec.Struct, frozen=True):
    """Answer to `LoadCalls`, in order; `more`: there are others after the last one."""

    token: int
    calls: tuple[CallEnded, ...]
    more: bool = False


class ValuesLoaded(msgspec.Struct, frozen=True):
    """Answer to `LoadValues`, in order; `more`: there are others after the last one."""

    token: int
    values: tuple[CallValue, ...]
    more: bool = False


class TasksSelected(msgspec.Struct, frozen=True):
    """Answer to `SelectTasks`: the runs concerned, with as many of their tasks as it asked for, and the selected tasks.
    `problem`: why none could be selected."""

    token: int
    images: tuple[RunImage, ...]
    task_nos: frozenset[int]
    problem: str = ""


class AttemptsDeclared(msgspec.Struct, frozen=True):
    """The results that the attempts ordered in the last batch declare, by (task_no, number), from the definitions in
    their orders. Precedes all other events. Attempts without declared results are omitted."""

    results: dict[tuple[int, int], tuple[Result, ...]]


class FilesPromoted(msgspec.Struct, frozen=True):
    """Answer to `PromoteFiles`: for each attempt (task_no, number) None, or a sentence about what the datastore could
    not publish."""

    results: tuple[tuple[int, int, str | None], ...]


class ResultsFound(msgspec.Struct, frozen=True):
    """Answer to `FindResults`: the existing ones."""

    token: int
    existing: frozenset[str]


class DatastoreFailed(msgspec.Struct, frozen=True):
    """A datastore call failed. The core repeats `call` after a backoff, or reports it to who asked."""

    call: object
    reason: str


class StagesListed(msgspec.Struct, frozen=True):
    """Answer to `ListStages`."""

    stages: tuple[str, ...]


class FreeSpaceSeen(msgspec.Struct, frozen=True):
    """Free space at the datastore `address` over SSH. Measured rarely, together with another call."""

    address: str
    free_mb: float


class DatastoreUsed(msgspec.Struct, frozen=True):
    """Answer to `UseDatastore`: certificates are valid there from now on."""

    address: str


class KeySigned(msgspec.Struct, frozen=True):
    """Answer to `SignKey`: a certificate that is valid for `lives_s`."""

    worker: str
    certificate: str
    lives_s: float


class ClientKeySigned(msgspec.Struct, frozen=True):
    """Answer to `SignClientKey`: a certificate that is valid for `lives_s` at the datastore `address`."""

    client: str
    request_id: str
    address: str
    certificate: str
    lives_s: float


class VmStarted(msgspec.Struct, frozen=True):
    """The cloud made the VM of intent `vm_no`."""

    vm_no: int
    cloud_id: str


class VmRefused(msgspec.Struct, frozen=True):
    """The cloud refused intent `vm_no`. `retry_s`: when to ask the pool again. `cause`: what to do about it (later,
    less, pool, credentials, unset); backoff counts per cause."""

    vm_no: int
    reason: str
    retry_s: float
    cause: str = "later"


class VmsListed(msgspec.Struct, frozen=True):
    """The VMs of this cluster that the cloud of `pool` reports for all its pools: those that it lists, and those of the
    asked ones that are gone.

    `starting`: intents with a call in progress or queued. `asked`: cloud ids that the request named; the list proves
    nothing about others, which may be newer. `sought`: unanswered intents whose gone VMs the call searched for. Either
    None: all.
    """

    pool: str
    vms: tuple[VmFound, ...] = ()
    starting: frozenset[int] = frozenset()
    asked: frozenset[str] | None = None
    sought: frozenset[int] | None = None


class VmListFailed(msgspec.Struct, frozen=True):
    """The cloud of `pool` could not list its VMs, for this reason. Their states are unknown until it does."""

    pool: str
    reason: str


class VmVisited(msgspec.Struct, frozen=True):
    """Answer to `VisitVm`. `host_key`: the pinned key, or the one that the VM presented at the first visit; `ago_s`:
    seconds since each step was seen done."""

    vm_no: int
    address: str
    host_key: str
    visit: Visit
    ago_s: dict[str, float] = {}


class RoomSeen(msgspec.Struct, frozen=True):
    """How many more VMs the cloud of `pool` offers (None: unknown), and what limits them."""

    pool: str
    vms: int | None
    reason: str = ""


Event = (
    MessageArrived | AttemptsDeclared | BrokerFound | BrokerLost | BatchRefused | RunLoaded | CallsLoaded |
    ValuesLoaded | TasksSelected | FilesPromoted | ResultsFound | DatastoreFailed | StagesListed | FreeSpaceSeen |
    DatastoreUsed | KeySigned | ClientKeySigned | VmStarted | VmRefused | VmListFailed | VmsListed | RoomSeen |
    VmVisited
)  # fmt: skip
