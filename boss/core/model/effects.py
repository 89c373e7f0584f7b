"""The boss's orders, imperative: one transaction, then messages, then calls.

The caller's contract: execute `writes` as one transaction; only after its commit publish `sends` in order, then start
`calls`, then answer `reads` as events before any other event. After a failed commit, send no message. If the outcome of
a commit is unknown, look the batch up by its number before trying it again.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from boss.core.model.rows import Writes
from ecloud.model.tasks import ManifestEntry, Resources
from ecloud.model.wire import Envelope


class Send(msgspec.Struct, frozen=True):
    """Publish to `peer/<envelope.peer>`, signed with key `key_name`. The shell fills in the bodies of `StartTasks`."""

    envelope: Envelope
    key_name: str


class Promote(msgspec.Struct, frozen=True):
    """The staged files of one recorded attempt."""

    task_no: int
    number: int
    stage: str
    manifest: tuple[ManifestEntry, ...]


class PromoteFiles(msgspec.Struct, frozen=True):
    """Publish these files, idempotently. Answered by `FilesPromoted` or `DatastoreFailed`."""

    promotions: tuple[Promote, ...]


class FindResults(msgspec.Struct, frozen=True):
    """Check which of these paths exist. Answered by `ResultsFound` or `DatastoreFailed`."""

    token: int
    paths: tuple[str, ...]


class ListStages(msgspec.Struct, frozen=True):
    """List all stages. Answered by `StagesListed` or `DatastoreFailed`."""


class DropStages(msgspec.Struct, frozen=True):
    """Remove stages that belong to no living attempt. No answer; the next sweep finds what remains."""

    stages: tuple[str, ...]


class RemoveFiles(msgspec.Struct, frozen=True):
    """Remove these files and directories from the datastore. No answer, and no second try."""

    paths: tuple[str, ...]


class SignKey(msgspec.Struct, frozen=True):
    """Sign a worker's key: the certificate opens the datastore for that worker only. Answered by `KeySigned`. A failed
    call has no answer: the worker's next heartbeat asks again. `refused`: the datastore refuses the present
    certificate, e.g. because the datastore's clock was set."""

    worker: str
    public_key: str
    refused: bool = False


class SignClientKey(msgspec.Struct, frozen=True):
    """Sign the key of a client: the certificate opens the datastore for reading, and for uploads. Answered by
    `ClientKeySigned`, or by `DatastoreFailed`. `request_id`: the client's request."""

    client: str
    request_id: str
    public_key: str


class UseDatastore(msgspec.Struct, frozen=True):
    """Use this datastore from now on. Answered by `DatastoreUsed`, or not at all if it fails: later calls there report
    their own failures."""

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
    """End a VM. Only `VmsListed` confirms it. `pool`: any pool of its cloud. `why`: the reason, if no row has it."""

    vm_no: int
    pool: str
    cloud_id: str
    why: str = ""


class ListVms(msgspec.Struct, frozen=True):
    """List the VMs of all pools of this pool's cloud. Answered by `VmsListed`. `known`: intents of existing VMs, by
    their cloud ids: a VM that is missing from the list may still exist. `lost`: intents whose call was never answered:
    the boss gives them up unless the list shows one of their VMs, present or gone; with their boot nonces."""

    pool: str
    known: dict[str, int] = {}
    lost: dict[int, str] = {}


class VisitVm(msgspec.Struct, frozen=True):
    """Visit a VM by SSH; with `prepare`, copy code and packages to it and start its worker. `host_key`: the pinned key,
    empty at the first visit. Answered by `VmVisited`; may be repeated after any outcome."""

    vm_no: int
    pool: str
    address: str
    boot_nonce: str
    host_key: str
    prepare: bool


class AskRoom(msgspec.Struct, frozen=True):
    """Ask the pool's cloud how many more VMs it would give. Answered by `RoomSeen`."""

    pool: str


class TellPerson(msgspec.Struct, frozen=True):
    """Alert the operator, in the log and through HOOK_COMMAND, about trouble that persists or that only a person can
    repair. No answer.

    `cause`: identifies the trouble, e.g. end/POOL, pool/POOL, budget, datastore.
    """

    cause: str
    text: str


Call = (
    PromoteFiles | FindResults | ListStages | DropStages | RemoveFiles | SignKey | SignClientKey | UseDatastore |
    StartVm | EndVm | ListVms | AskRoom | TellPerson | VisitVm
)  # fmt: skip


class LoadRun(msgspec.Struct, frozen=True):
    """Read the run of that name, and the result of push `push_id`. Answered by `RunLoaded`. `ids`: only these of its
    tasks, and its init tasks; None for the whole run."""

    token: int
    name: str
    push_id: str = ""
    ids: tuple[str, ...] | None = None


class Reads(Enum):
    """Which tasks a request needs of the runs that it concerns. A run with arrays is always read whole."""

    WHOLE = "whole"
    """All."""
    NUMBERS = "numbers"
    """None: the numbers of the selected tasks are enough."""
    SELECTED = "selected"
    REDONE = "redone"
    """The selected tasks, aborted ones below them, all that wait for these, what those depend on, and init tasks."""
    REDONE_BELOW = "redone below"
    """The same with all ended tasks below the selected ones."""


class SelectTasks(msgspec.Struct, frozen=True):
    """Read the tasks that a request about a user's selection needs. Answered by `TasksSelected`.

    `ids` are ids or RUN:ID; empty means all. `run`, `state`, `label` narrow the selection; empty means any.
    """

    token: int
    ids: tuple[str, ...] = ()
    run: str = ""
    state: str = ""
    label: str = ""
    reads: Reads = Reads.WHOLE


class LoadCalls(msgspec.Struct, frozen=True):
    """Read the states of calls of a run: with `ids`, those calls with their values; if `ids` is None, up to `limit`
    calls after task `after`, without values. Answered by `CallsLoaded`."""

    token: int
    run: str
    ids: tuple[str, ...] | None = None
    after: int = -1
    limit: int = 0


class LoadValues(msgspec.Struct, frozen=True):
    """Read the values of the calls that a task depends on, in the order of their ids, behind the call `after`: as many
    as fit in a message of `most_bytes`, at least one. Answered by `ValuesLoaded`."""

    token: int
    task_no: int
    after: str
    most_bytes: int


class LeadAbove(msgspec.Struct, frozen=True):
    """Lead in an epoch above this one, which a peer knows: otherwise the peer ignores this boss. Answered by a new
    core."""

    epoch: int


Read = LoadRun | SelectTasks | LoadCalls | LoadValues | LeadAbove


class Effects(msgspec.Struct):
    """The boss's answer to one batch of events."""

    writes: Writes = msgspec.field(default_factory=Writes)
    sends: list[Send] = msgspec.field(default_factory=list)
    calls: list[Call] = msgspec.field(default_factory=list)
    reads: list[Read] = msgspec.field(default_factory=list)
