"""What can happen to a worker, and what it wants done. Facts in the past tense, orders in the imperative. Pure."""

from __future__ import annotations

import msgspec

from ecloud.model.tasks import Outcome, Resources
from ecloud.model.transfer_status import HeldInput, Moving
from ecloud.model.wire import AttemptOrder, Envelope


class WorkerConfig(msgspec.Struct, frozen=True):
    """What the core is told at the start. `peer`: the process id; `gpus`: those offered; `spooled`: outcomes left
    by an older process; `ssh_key`: the public key that is to open a datastore over SSH.

    `lives_s`: seconds until the machine ends, None when unknown. `boot_steps`: what its start did, and when, on
    the clock that the core is told.
    """

    peer: str
    home: str
    resources: Resources
    gpus: tuple[str, ...] = ()
    host: str = ""
    addresses: tuple[str, ...] = ()
    boot_id: str = ""
    pid: int = 0
    vm: str = ""
    boot_nonce: str = ""
    software: str = ""
    labels: tuple[str, ...] = ()
    lives_s: float | None = None
    boss_gone_exit_s: float | None = None
    spooled: tuple[Outcome, ...] = ()
    heard: tuple[int, int] = (0, 0)
    """Epoch and batch of the boss that were heard last before what is spooled; zeros where nothing is."""
    ssh_key: str = ""
    boot_steps: tuple[tuple[str, float], ...] = ()
    machine: str = ""
    machine_part: str = ""
    machine_has: Resources = {}
    """What all workers of this machine, or of this part of it, share."""


class ConnectionFound(msgspec.Struct, frozen=True):
    """The broker can be spoken to."""


class ConnectionLost(msgspec.Struct, frozen=True):
    """The broker can't be spoken to."""

    reason: str = ""


class MessageArrived(msgspec.Struct, frozen=True):
    """The boss said something; signature and version are checked already."""

    envelope: Envelope


class AttemptEnded(msgspec.Struct, frozen=True):
    """Nothing of it runs any more; results are staged."""

    outcome: Outcome


class CommandsEnded(msgspec.Struct, frozen=True):
    """Nothing of it runs any more; its results, which are small, are being staged. `AttemptEnded` follows."""

    task_no: int
    number: int


class ResultsComplete(msgspec.Struct, frozen=True):
    """Its commands succeeded and its results are complete and hashed in this worker's own storage; they are not staged
    yet. `files`: final name and SHA-256 of each that is a file; `others`: final names of directories and links.
    Told only of attempts that others follow; `AttemptEnded` comes after it."""

    task_no: int
    number: int
    files: dict[str, str] = {}
    others: tuple[str, ...] = ()


class AttemptReturned(msgspec.Struct, frozen=True):
    """It could not be run here through no fault of the task; nothing of it is left. `ran`: its commands had started."""

    task_no: int
    number: int
    reason: str
    ran: bool = False


class AccessEnded(msgspec.Struct, frozen=True):
    """The datastore does not take this worker's certificate, whatever the time left to it by the clock here."""


class TroubleChanged(msgspec.Struct, frozen=True):
    """Nothing can be started here for this reason; empty: it ended."""

    text: str


class TermReceived(msgspec.Struct, frozen=True):
    """The machine or a person wants us to leave. The second time: at once."""


class StateMeasured(msgspec.Struct, frozen=True):
    """What heartbeats tell besides. `inputs`: the big ones that are kept here, used last first."""

    free_disk_mb: float | None = None
    load: float | None = None
    inputs: tuple[HeldInput, ...] = ()


class GpusMeasured(msgspec.Struct, frozen=True):
    """The GPUs that answer now, as they are offered: by index or UUID."""

    present: tuple[str, ...]


class MovingMeasured(msgspec.Struct, frozen=True):
    """What moves now; None for nothing."""

    moving: Moving | None = None


class TransfersChanged(msgspec.Struct, frozen=True):
    """So many transfers over SSH wait for a lane, so many are under way. `bytes`: of those that wait, where known."""

    waiting: int = 0
    under_way: int = 0
    bytes: int = 0


Event = (
    ConnectionFound | ConnectionLost | MessageArrived | AttemptEnded | CommandsEnded | ResultsComplete |
    AttemptReturned | AccessEnded | TroubleChanged | TermReceived | StateMeasured | MovingMeasured | TransfersChanged |
    GpusMeasured
)  # fmt: skip


class StartAttempt(msgspec.Struct, frozen=True):
    """Run this. `gpus`: those that it may use, by index or UUID; None where the worker has none. `own`: requirements
    that are results of other attempts in this worker's own storage, by final name."""

    order: AttemptOrder
    gpus: tuple[str, ...] | None = None
    own: dict[str, tuple[int, int]] = {}


class StopAttempt(msgspec.Struct, frozen=True):
    """End this: TERM, KILL after `grace_s`; its outcome's cause is STOPPED."""

    task_no: int
    number: int
    grace_s: float
    reason: str


class StreamOutput(msgspec.Struct, frozen=True):
    """Publish the output of a running attempt for `seconds`."""

    task_no: int
    number: int
    seconds: float


class Leave(msgspec.Struct, frozen=True):
    """End what still runs, then exit with `code`. `anew`: drop what is spooled, too, and begin again as a new process:
    the boss has another history."""

    code: int
    reason: str
    anew: bool = False


class WorkerEffects(msgspec.Struct):
    """Executed in the order of the fields: what is said is on disk before it is said."""

    spool: list[Outcome] = msgspec.field(default_factory=list)
    forget: list[tuple[int, int]] = msgspec.field(default_factory=list)
    stops: list[StopAttempt] = msgspec.field(default_factory=list)
    starts: list[StartAttempt] = msgspec.field(default_factory=list)
    streams: list[StreamOutput] = msgspec.field(default_factory=list)
    says: list[Envelope] = msgspec.field(default_factory=list)
    leave: Leave | None = None
