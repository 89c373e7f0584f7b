"""What can happen to the boss. Facts, past tense. Each is handed to `Boss.handle` once."""

from __future__ import annotations

import msgspec

from boss.core.rows import RunImage
from ecloud.wire import Envelope


class MessageArrived(msgspec.Struct, frozen=True):
    """A peer spoke. Signature and version are checked already; session and number are not."""

    envelope: Envelope
    key_name: str


class BrokerFound(msgspec.Struct, frozen=True):
    """We are connected: peers can be heard again. They get a whole lease to be heard."""


class BrokerLost(msgspec.Struct, frozen=True):
    """Nobody can be heard until `BrokerFound`. Silence counts against no worker meanwhile."""

    reason: str = ""


class RunLoaded(msgspec.Struct, frozen=True):
    """Answer to `LoadRun`. `image` is None where there is no such run."""

    token: int
    image: RunImage | None


class TasksSelected(msgspec.Struct, frozen=True):
    """Answer to `SelectTasks`: whole runs, and the tasks in them that were meant. `problem` in words where none could
    be found."""

    token: int
    images: tuple[RunImage, ...]
    task_nos: frozenset[int]
    problem: str = ""


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
    """What the cloud of `pool` says it runs of ours: cloud ids that live. Anything else of ours there is DONE.

    `seen`: of those that do not simply run, or about which the cloud has something to say: state and text by intent.
    """

    pool: str
    alive: frozenset[str]
    by_vm_no: dict[int, str]
    seen: dict[int, tuple[str, str]] = {}


Event = (
    MessageArrived | BrokerFound | BrokerLost | RunLoaded | TasksSelected | FilesPromoted | ResultsFound |
    DatastoreFailed | StagesListed | KeySigned | VmStarted | VmRefused | VmsListed
)  # fmt: skip
