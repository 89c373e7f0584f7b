"""The events of a worker, and the actions that it orders. Facts in the past tense, orders in the imperative. Pure."""

from __future__ import annotations

import msgspec

from ecloud.model.tasks import Outcome, Resources
from ecloud.model.transfer_status import HeldInput, Moving
from ecloud.model.wire import AttemptOrder, Envelope


class WorkerConfig(msgspec.Struct, frozen=True):
    """The core's configuration. `peer`: the process id; `gpus`: those offered; `spooled`: outcomes left by an earlier
    process; `ssh_key`: the public key for a datastore over SSH.

    `lives_s`: seconds until the machine ends, None if unknown. `boot_steps`: steps of its boot with their times, on the
    core's clock.
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
    """The boss's epoch and batch received last before the spooled outcomes; zeros if unknown."""
    ssh_key: str = ""
    boot_steps: tuple[tuple[str, float], ...] = ()
    machine: str = ""
    machine_part: str = ""
    machine_has: Resources = {}
    """What all workers of this machine, or of this part of it, share."""


class ConnectionFound(msgspec.Struct, frozen=True):
    """The broker can be reached."""


class ConnectionLost(msgspec.Struct, frozen=True):
    """The broker cannot be reached."""

    reason: str = ""


class MessageArrived(msgspec.Struct, frozen=True):
    """The boss sent a message; signature and version are verified."""

    envelope: Envelope


class AttemptEnded(msgspec.Struct, frozen=True):
    """The attempt has no processes left; its results are staged."""

    outcome: Outcome


class CallBegan(msgspec.Struct, frozen=True):
    """A call host has ended the call `after` and begun this one, which it had as a `PrefetchCall`. `AttemptEnded` of
    `after` follows."""

    task_no: int
    number: int
    after: tuple[int, int]


class CallsRecalled(msgspec.Struct, frozen=True):
    """These prefetched calls have not begun, and their host no longer has them."""

    keys: tuple[tuple[int, int], ...]


class CommandsEnded(msgspec.Struct, frozen=True):
    """The attempt has no processes left; its small results are being staged. `AttemptEnded` follows."""

    task_no: int
    number: int


class ResultsComplete(msgspec.Struct, frozen=True):
    """The attempt's commands succeeded and its results are complete and hashed on this worker, but not staged yet.
    `files`: SHA-256 of each file by final name; `others`: final names of directories and links. Only for attempts with
    followers; `AttemptEnded` comes after it."""

    task_no: int
    number: int
    files: dict[str, str] = {}
    others: tuple[str, ...] = ()


class AttemptReturned(msgspec.Struct, frozen=True):
    """The attempt could not be run here through no fault of the task; nothing of it is left. `ran`: its commands had
    started."""

    task_no: int
    number: int
    reason: str
    ran: bool = False


class AccessEnded(msgspec.Struct, frozen=True):
    """The datastore refuses this worker's certificate, whatever its remaining lifetime by the clock here."""


class TroubleChanged(msgspec.Struct, frozen=True):
    """The worker can start nothing for this reason; empty: the trouble ended."""

    text: str


class TermReceived(msgspec.Struct, frozen=True):
    """The machine or a user asks the worker to leave. The second time: immediately."""


class StateMeasured(msgspec.Struct, frozen=True):
    """Further values for heartbeats. `inputs`: big inputs that are kept here, last used first."""

    free_disk_mb: float | None = None
    load: float | None = None
    inputs: tuple[HeldInput, ...] = ()


class GpusMeasured(msgspec.Struct, frozen=True):
    """The GPUs that answer now, as they are offered: by index or UUID."""

    present: tuple[str, ...]


class MovingMeasured(msgspec.Struct, frozen=True):
    """Transfers now; None without any."""

    moving: Moving | None = None


class TransfersChanged(msgspec.Struct, frozen=True):
    """How many transfers over SSH wait for a lane, and how many are under way. `bytes`: of the waiting ones, if
    known."""

    waiting: int = 0
    under_way: int = 0
    bytes: int = 0


Event = (
    ConnectionFound | ConnectionLost | MessageArrived | AttemptEnded | CommandsEnded | ResultsComplete |
    AttemptReturned | AccessEnded | TroubleChanged | TermReceived | StateMeasured | MovingMeasured | TransfersChanged |
    GpusMeasured | CallBegan | CallsRecalled
)  # fmt: skip


class StartAttempt(msgspec.Struct, frozen=True):
    """Run this attempt. `gpus`: those that it may use, by index or UUID; None if the worker has none. `own`:
    requirements that are results of other attempts on this worker, by final name."""

    order: AttemptOrder
    gpus: tuple[str, ...] | None = None
    own: dict[str, tuple[int, int]] = {}


class PrefetchCall(msgspec.Struct, frozen=True):
    """Give this call to the host that runs the call `behind`. The host begins it next, as a `CallBegan`, but not later
    than in `begin_s` seconds; otherwise it is reported as a `CallsRecalled`."""

    order: AttemptOrder
    behind: tuple[int, int]
    gpus: tuple[str, ...] | None
    begin_s: float


class StopAttempt(msgspec.Struct, frozen=True):
    """Stop this attempt: TERM, and KILL after `grace_s`; its outcome's cause is STOPPED."""

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
    """End what still runs, then exit with `code`. `anew`: also drop the spool and start again as a new process, because
    the boss has another history."""

    code: int
    reason: str
    anew: bool = False


class WorkerEffects(msgspec.Struct):
    """Carried out in the order of the fields: messages are on disk before they are sent."""

    spool: list[Outcome] = msgspec.field(default_factory=list)
    forget: list[tuple[int, int]] = msgspec.field(default_factory=list)
    stops: list[StopAttempt] = msgspec.field(default_factory=list)
    starts: list[StartAttempt] = msgspec.field(default_factory=list)
    prefetches: list[PrefetchCall] = msgspec.field(default_factory=list)
    recalls: list[tuple[int, int]] = msgspec.field(default_factory=list)
    """Prefetched calls that must not begin if they have not yet. A `CallsRecalled` names these, and others that waited
    at the same host."""
    streams: list[StreamOutput] = msgspec.field(default_factory=list)
    says: list[Envelope] = msgspec.field(default_factory=list)
    leave: Leave | None = None
