"""What can happen to the boss. Facts, past tense. Each is handed to `Boss.handle` once."""

from __future__ import annotations

import msgspec

from boss.core.model.cloud_vms import VmFound
from boss.core.model.rows import PushAnswered, RunImage
from ecloud.model.boot_diagnosis import Visit
from ecloud.model.tasks import Result
from ecloud.model.wire import CallEnded, Envelope


class MessageArrived(msgspec.Struct, frozen=True):
    """A peer spoke. Signature and version are checked already; session and number are not."""

    envelope: Envelope
    key_name: str
    size: int = 0
    """Bytes of the message as it came."""


class BrokerFound(msgspec.Struct, frozen=True):
    """We are connected: peers can be heard again. They get a whole lease to be heard."""


class BrokerLost(msgspec.Struct, frozen=True):
    """Nobody can be heard until `BrokerFound`. Silence counts against no worker meanwhile."""

    reason: str = ""


class RunLoaded(msgspec.Struct, frozen=True):
    """Answer to `LoadRun`. `image` is None where there is no such run; `answered`: what the push came to that was asked
    about, where it was committed already."""

    token: int
    image: RunImage | None
    answered: PushAnswered | None = None


class CallsLoaded(msgspec.Struct, frozen=True):
    """Answer to `LoadCalls`, in order; `more`: there are others after the last one."""

    token: int
    calls: tuple[CallEnded, ...]
    more: bool = False


class TasksSelected(msgspec.Struct, frozen=True):
    """Answer to `SelectTasks`: whole runs, and the tasks in them that were meant. `problem` in words where none could
    be found."""

    token: int
    images: tuple[RunImage, ...]
    task_nos: frozenset[int]
    problem: str = ""


class AttemptsDeclared(msgspec.Struct, frozen=True):
    """What attempts declare that were ordered in the batch before, by (task_no, number): the results in the definition
    that their orders carried. Heard before any other event; attempts that declare no results are left out."""

    results: dict[tuple[int, int], tuple[Result, ...]]


class FilesPromoted(msgspec.Struct, frozen=True):
    """Answer to `PromoteFiles`: per attempt (task_no, number) None, or a sentence on what could not be published."""

    results: tuple[tuple[int, int, str | None], ...]


class ResultsFound(msgspec.Struct, frozen=True):
    """Answer to `FindResults`: those of the asked paths that exist."""

    token: int
    existing: frozenset[str]


class DatastoreFailed(msgspec.Struct, frozen=True):
    """A datastore call could not be made; `call` is repeated by the core after a back-off."""

    call: object
    reason: str


class StagesListed(msgspec.Struct, frozen=True):
    """Answer to `ListStages`."""

    stages: tuple[str, ...]


class FreeSpaceSeen(msgspec.Struct, frozen=True):
    """So much can be written at the datastore `address`, which is over SSH: asked when something else was asked anyway,
    seldom."""

    address: str
    free_mb: float


class DatastoreUsed(msgspec.Struct, frozen=True):
    """Answer to `UseDatastore`: from now on signatures are good there."""

    address: str


class KeySigned(msgspec.Struct, frozen=True):
    """Answer to `SignKey`: a certificate that is good for `lives_s`."""

    worker: str
    certificate: str
    lives_s: float


class VmStarted(msgspec.Struct, frozen=True):
    """The cloud made the VM that intent `vm_no` asked for."""

    vm_no: int
    cloud_id: str


class VmRefused(msgspec.Struct, frozen=True):
    """The cloud said no to intent `vm_no`. `retry_s`: when the pool may be asked again. `cause`: what to do about it
    (later, less, pool, credentials, unset), which is what a back-off is counted for."""

    vm_no: int
    reason: str
    retry_s: float
    cause: str = "later"


class VmsListed(msgspec.Struct, frozen=True):
    """What the cloud of `pool` says of our VMs, of all its pools: those that it shows, and of those that were asked
    about the ones that are gone.

    `starting`: intents for which a call is under way or waits for its turn. `asked`: cloud ids that the list was asked
    about: it proves nothing of others, which may be younger than itself. `sought`: unanswered intents of which VMs that
    are gone were looked for. Either None: about all.
    """

    pool: str
    vms: tuple[VmFound, ...] = ()
    starting: frozenset[int] = frozenset()
    asked: frozenset[str] | None = None
    sought: frozenset[int] | None = None


class VmListFailed(msgspec.Struct, frozen=True):
    """The cloud of `pool` did not tell what it has, for that reason: nothing is known of its VMs until it does."""

    pool: str
    reason: str


class VmVisited(msgspec.Struct, frozen=True):
    """Answer to `VisitVm`. `host_key`: the pinned one, or what it showed at the first visit; `ago_s`: seconds since
    each step was seen to be done."""

    vm_no: int
    address: str
    host_key: str
    visit: Visit
    ago_s: dict[str, float] = {}


class RoomSeen(msgspec.Struct, frozen=True):
    """The cloud of `pool` would give so many more VMs, None where it does not say, for the reason that bounds it."""

    pool: str
    vms: int | None
    reason: str = ""


Event = (
    MessageArrived | AttemptsDeclared | BrokerFound | BrokerLost | RunLoaded | CallsLoaded | TasksSelected |
    FilesPromoted | ResultsFound | DatastoreFailed | StagesListed | FreeSpaceSeen | DatastoreUsed | KeySigned |
    VmStarted | VmRefused | VmListFailed | VmsListed | RoomSeen | VmVisited
)  # fmt: skip
