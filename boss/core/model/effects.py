"""What the boss wants done: one transaction, then messages, then calls. Orders, imperative.

The caller's contract: execute `writes` as one transaction; only after its commit publish `sends` in order, then hand
over `calls`, then answer `reads` as events before any other event. A commit that fails says nothing to anybody. A batch
whose commit is in doubt is looked up by its batch number before it is tried again.
"""

from __future__ import annotations

import msgspec

from boss.core.model.rows import Writes
from ecloud.model.tasks import ManifestEntry, Resources
from ecloud.model.wire import Envelope


class Send(msgspec.Struct, frozen=True):
    """Publish to `peer/<envelope.peer>`, signed with key `key_name`. Bodies of `StartTasks` are filled in by the
    shell."""

    envelope: Envelope
    key_name: str


class Promote(msgspec.Struct, frozen=True):
    """The staged files of one recorded attempt."""

    task_no: int
    number: int
    stage: str
    manifest: tuple[ManifestEntry, ...]


class PromoteFiles(msgspec.Struct, frozen=True):
    """Publish these, idempotently. Answered by `FilesPromoted` or `DatastoreFailed`."""

    promotions: tuple[Promote, ...]


class FindResults(msgspec.Struct, frozen=True):
    """Which of these paths exist? Answered by `ResultsFound` or `DatastoreFailed`."""

    token: int
    paths: tuple[str, ...]


class ListStages(msgspec.Struct, frozen=True):
    """Which stages are there? Answered by `StagesListed` or `DatastoreFailed`."""


class DropStages(msgspec.Struct, frozen=True):
    """Remove stages that belong to no living attempt. No answer; what remains is swept again."""

    stages: tuple[str, ...]


class SignKey(msgspec.Struct, frozen=True):
    """A certificate for a worker's key, which opens the datastore for it alone. Answered by `KeySigned` or, where that
    fails, not at all: the worker's next heartbeat asks again. `refused`: the datastore does not take the one it has, as
    when its clock was set since it was looked at."""

    worker: str
    public_key: str
    refused: bool = False


class UseDatastore(msgspec.Struct, frozen=True):
    """From now on files are there. Answered by `DatastoreUsed`; or not: calls that can't be made there say so
    themselves."""

    address: str
    host_key: str = ""
    python: str = ""
    gate: str = ""


class StartVm(msgspec.Struct, frozen=True):
    """Ask the pool's cloud for one VM. Its intent is committed. Answered by `VmStarted` or `VmRefused`."""

    vm_no: int
    pool: str
    size: Resources
    boot_nonce: str


class EndVm(msgspec.Struct, frozen=True):
    """End a VM. Confirmed by `VmsListed` only. `pool`: any of its cloud. `why`: where no row says it."""

    vm_no: int
    pool: str
    cloud_id: str
    why: str = ""


class ListVms(msgspec.Struct, frozen=True):
    """What does the pool's cloud say, of the VMs of all its pools? Answered by `VmsListed`. `known`: intents of those
    that were there, by their cloud ids: none of them is gone only because it is not shown. `lost`: intents that were
    never answered and are given up unless the list shows a VM of theirs, or one that is gone already."""

    pool: str
    known: dict[str, int] = {}
    lost: frozenset[int] = frozenset()


class VisitVm(msgspec.Struct, frozen=True):
    """Go to a VM by SSH and look; where `prepare`, bring code and packages and start its worker. `host_key`: the one
    that was pinned, empty at the first visit. Answered by `VmVisited`; may be made again after any end."""

    vm_no: int
    pool: str
    address: str
    boot_nonce: str
    host_key: str
    prepare: bool


class AskRoom(msgspec.Struct, frozen=True):
    """How many more VMs would the pool's cloud give? Answered by `RoomSeen`."""

    pool: str


class TellPerson(msgspec.Struct, frozen=True):
    """Something is wrong that nobody but a person can mend, or that lasts: to the log and to HOOK_COMMAND. No answer.

    `cause`: the same for the same trouble, e.g. end/POOL, pool/POOL, budget, datastore.
    """

    cause: str
    text: str


Call = (
    PromoteFiles | FindResults | ListStages | DropStages | SignKey | UseDatastore | StartVm | EndVm | ListVms |
    AskRoom | TellPerson | VisitVm
)  # fmt: skip


class LoadRun(msgspec.Struct, frozen=True):
    """Read the run of that name, and what push `push_id` came to. Answered by `RunLoaded`. `ids`: only these of its
    tasks; None for the whole run."""

    token: int
    name: str
    push_id: str = ""
    ids: tuple[str, ...] | None = None


class SelectTasks(msgspec.Struct, frozen=True):
    """Read the runs in which a person's selection lies. Answered by `TasksSelected`.

    `ids` are ids or RUN:ID; none means all. `run`, `state`, `label` narrow, empty means any.
    """

    token: int
    ids: tuple[str, ...] = ()
    run: str = ""
    state: str = ""
    label: str = ""


class LoadCalls(msgspec.Struct, frozen=True):
    """Read how calls of a run stand: those of `ids` with their values; or, where `ids` is None, up to `limit` of all
    after task `after`, without values. Answered by `CallsLoaded`."""

    token: int
    run: str
    ids: tuple[str, ...] | None = None
    after: int = -1
    limit: int = 0


class LeadAbove(msgspec.Struct, frozen=True):
    """Lead in an epoch above this one, which a peer has heard: it ignores this boss else. Answered by a new core."""

    epoch: int


Read = LoadRun | SelectTasks | LoadCalls | LeadAbove


class Effects(msgspec.Struct):
    """The boss's answer to one batch of events."""

    writes: Writes = msgspec.field(default_factory=Writes)
    sends: list[Send] = msgspec.field(default_factory=list)
    calls: list[Call] = msgspec.field(default_factory=list)
    reads: list[Read] = msgspec.field(default_factory=list)
