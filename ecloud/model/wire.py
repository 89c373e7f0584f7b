"""The messages of boss, workers and clients: their fields, envelope, signature and protocol version.

Owns the bytes on the wire. `decode` turns any bytes into an `Envelope` or one error, `Unreadable`. Never connects,
never reads a clock. docs/protocol.md is drawn from these classes.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Callable

import msgspec

from ecloud.model.tasks import Container, Int32, Int64, Outcome, Resources, TaskBody, TaskDefinition
from ecloud.model.transfer_status import HeldInput, Moving

PROTOCOL_VERSION = 1
OUTCOMES_ACCEPTED_FROM_VERSION = 0
"""Outcomes of the previous protocol version are accepted, so that an upgrade loses no finished work."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Larger messages are refused. A task with 1 MB of commands, escaped at worst six-fold, still fits in one message."""
BATCH_BYTES = 768 * 1024
"""A batch is closed when it reaches this size, so that a message stays below 1 MB; a larger item is sent alone."""
DRAINING = "it is being drained"
"""Reason with which a draining worker gives back a new attempt. A boss that did not intend the drain repeats
`Undrain`."""
ORDERED_TO_LEAVE = "it was ordered to leave"
MACHINE_ENDS = "its machine is about to end"
"""Reasons with which a worker asks to be drained: it leaves afterwards, whatever a later boss orders."""
UNCHAINED = "chained"
"""Reason with which a worker gives back a chained attempt that it cannot start before the boss has recorded the ends of
its dependencies."""
BATCH_COUNT = 512
"""A batch is closed at this many items."""
MAX_NAME_CHARS = 64
"""Longest peer name, key name, session, nonce or cluster id."""


# --- values inside messages ---------------------------------------------------------------------


class HeldAttempt(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True):
    """One attempt in a worker's inventory. `state`: queued, running or ended (its outcome is in the spool)."""

    task_no: Int64
    number: Int32
    state: str


class AttemptName(msgspec.Struct, frozen=True, array_like=True):
    """(task_no, number): the fencing token."""

    task_no: Int64
    number: Int32


class CallValue(msgspec.Struct, frozen=True, omit_defaults=True):
    """The value of a call that another call needs: pickled, or the file in the datastore that holds it."""

    id: str
    value: bytes = b""
    path: str = ""

    @property
    def json_bytes(self) -> int:
        """The most that it adds to a message."""
        return 64 + 4 * len(self.id) + 4 * len(self.path) + len(self.value) * 4 // 3


class AttemptOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt to run. `init`: it prepares the worker process for its run and precedes all other attempts of that
    run.

    `after_init`: the init tasks that must have succeeded in this worker process; without them the worker gives the
    attempt back. `after`: attempts of this worker that must succeed first and whose ends the boss has not recorded (a
    chained attempt). The boss's shell fills `body` from the database just before sending. The worker picks the indices
    of `gpus`. `keep_dir` keeps the working directory. `tries`: the number of this try, counting those that started; 0
    if the boss does not send it. `values`: of the calls that a call needs, filled in as `body` is; `values_apart`:
    they are too large for this message, and the worker asks for them with `ValuesWanted` before it starts the attempt.
    """

    task_no: Int64
    number: Int32
    run: str
    run_no: Int64
    asks: Resources
    init: bool = False
    after_init: tuple[Int64, ...] = ()
    after: tuple[AttemptName, ...] = ()
    keep_dir: bool = False
    body: TaskBody | None = None
    tries: Int32 = 0
    values: tuple[CallValue, ...] = ()
    values_apart: bool = False


class StartedAttempt(msgspec.Struct, frozen=True, array_like=True):
    """An attempt that started `ago_s` seconds before the message was sent."""

    task_no: Int64
    number: Int32
    ago_s: float


class TaskEnded(msgspec.Struct, frozen=True, omit_defaults=True):
    """The end of one task, for clients that watch a run. `state` is the task's, `text` the reason if it did not
    succeed."""

    task_no: Int64
    id: str
    state: str
    text: str = ""


class DatastoreAccess(msgspec.Struct, frozen=True, omit_defaults=True):
    """The datastore and its credential. `address`: `dir:/path`, or `user@host[:port]:/root` over SSH; then `host_key`
    is the only host key to accept, and `credential` a certificate for the key that the worker's `Hello` named."""

    address: str
    credential: str = ""
    host_key: str = ""

    def is_same_place(self, other: DatastoreAccess) -> bool:
        """Whether both differ in nothing but the credential."""
        return (self.address, self.host_key) == (other.address, other.host_key)


class Hello(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """A peer opens a conversation. Nothing changes until a message in the session that `Welcome` names follows.

    `kind`: worker or client. `home`: name of the worker's locked home directory: a newer process of the same home,
    with the same key, speaks for the older one. `boot_id` and `machine` tell a home from a copy of it elsewhere.
    `lives_s`: seconds from this Hello until the machine ends, if it is known. `ssh_key`: the public key that is to open
    the datastore.
    `boot_s`: what was done at this machine's start, and how many seconds before this Hello. `chains`: whether
    it knows `AttemptOrder.after`; `asks_values`: whether it knows `values_apart`.
    `machine_has`: what all workers on this machine share, or on the part of it that `machine_part` names (a control
    group, an affinity mask, a batch job). Workers with equal `boot_id`, `machine` and `machine_part` share.
    `epoch`, `batch`: the last that the peer heard of a boss, 0 for nothing.
    """

    nonce: str
    kind: str
    software: str = ""
    host: str = ""
    addresses: tuple[str, ...] = ()
    boot_id: str = ""
    home: str = ""
    pid: Int64 = 0
    vm: str = ""
    boot_nonce: str = ""
    resources: Resources = {}
    labels: tuple[str, ...] = ()
    lives_s: float | None = None
    attempts: tuple[HeldAttempt, ...] = ()
    ssh_key: str = ""
    boot_s: dict[str, float] = {}
    machine: str = ""
    machine_part: str = ""
    machine_has: Resources = {}
    chains: bool = False
    asks_values: bool = False
    epoch: Int64 = 0
    batch: Int64 = 0


class Welcome(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """The boss answers a `Hello`. The session counts from the peer's next message. `other_history`: the database lacks
    what the peer received last, as after a restore from a backup; a worker then drops all it holds and joins again.
    `container`: for the commands of tasks that name none."""

    nonce: str
    session: str
    heartbeat_s: float
    lease_s: float
    datastore: DatastoreAccess = DatastoreAccess("")
    settings: dict[str, float] = {}
    shell: str = "/bin/sh"
    other_history: bool = False
    container: Container | None = None


class Heartbeat(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """The worker is alive. `orders_seen`: number of the last boss message handled; `attempts`: everything the worker
    holds.

    `trouble`: a sentence if the worker cannot start anything now (disk full, datastore unreachable). `access_s`: how
    long its certificate for the datastore is still valid, 0 if the datastore refuses it; None if it has none and needs
    none. `lane`: the lane it holds, 0 for none; `wants_bytes`: size of the transfers that wait for a lane, as far as
    known, None for no transfers. `moving`: its present transfers. `inputs`: the large inputs that it keeps, last used
    first; None if unchanged since the last report in this session, or if it keeps none and has never reported any.
    """

    orders_seen: Int64
    attempts: tuple[HeldAttempt, ...] = ()
    spooled: Int64 = 0
    free_disk_mb: float | None = None
    load: float | None = None
    trouble: str = ""
    access_s: float | None = None
    lane: Int64 = 0
    wants_bytes: Int64 | None = None
    moving: Moving | None = None
    inputs: tuple[HeldInput, ...] | None = None


class MovingChanged(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """Between heartbeats, and never answered: the worker's transfers, if they take long; None when all reported
    transfers have ended."""

    moving: Moving | None = None


class HeartbeatAnswered(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """Renews the lease, counted by the worker from sending heartbeat number `number`. `heartbeat_s`: the interval from
    now on; 0: as before."""

    number: Int64
    heartbeat_s: float = 0.0


class DatastoreGranted(msgspec.Struct, frozen=True, tag=True):
    """Access to the datastore, valid for `lives_s` from now; also sent when the datastore's address changes."""

    datastore: DatastoreAccess
    lives_s: float = 0.0


class TransfersWanted(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """A worker has files to transfer over SSH and no lane. `bytes`: their size, as far as known."""

    bytes: Int64 = 0


class TransfersGranted(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """The worker gets lane `lane`: one connection to the datastore. `lives_s` None: for as long as no other worker
    waits; else others wait, and it begins no transfer on it after `lives_s`. Sent again for the same lane when that
    changes."""

    lane: Int64
    lives_s: float | None = None


class TransfersEnded(msgspec.Struct, frozen=True, tag=True):
    """The worker gives the lane back: its connection is closed."""

    lane: Int64


class StartTasks(msgspec.Struct, frozen=True, tag=True):
    """Run these, in this order as far as resources allow."""

    attempts: tuple[AttemptOrder, ...]


class ValuesWanted(msgspec.Struct, frozen=True, tag=True):
    """A worker asks for the values that its attempt needs, in the order of their ids, behind the call `after` (empty:
    from the first). Repeated until `CallValues` answers."""

    task_no: Int64
    number: Int32
    after: str


class CallValues(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """Values that an attempt needs, in the order of their ids, behind the call `after`. `more`: there are others after
    these."""

    task_no: Int64
    number: Int32
    after: str
    values: tuple[CallValue, ...]
    more: bool = False


class ReturnTasks(msgspec.Struct, frozen=True, tag=True):
    """Give these back unless they started."""

    attempts: tuple[AttemptName, ...]


class TasksReturned(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """These are given back: they did not start, or could not be run here through no fault of the task."""

    attempts: tuple[AttemptName, ...]
    reason: str = ""


class StopTasks(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """End these: TERM to everything they started, KILL after `grace_s`. Each still gets an outcome."""

    attempts: tuple[AttemptName, ...]
    grace_s: float
    reason: str = ""


class TasksStarted(msgspec.Struct, frozen=True, tag=True):
    """These run. Sent for attempts that have run for 0.5 s: for shorter ones only `TasksEnded` is sent."""

    attempts: tuple[StartedAttempt, ...]


class TasksEnded(msgspec.Struct, frozen=True, tag=True):
    """Outcomes, repeated from the spool until `OutcomesStored` names them."""

    outcomes: tuple[Outcome, ...]


class OutcomesStored(msgspec.Struct, frozen=True, tag=True):
    """These outcomes are committed, stale or unknown: drop them from the spool. Sent only after the commit."""

    attempts: tuple[AttemptName, ...]


class StreamLogs(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """Send the output of a running task to its logs topic, for `seconds` from now (0: stop)."""

    task_no: Int64
    number: Int32
    seconds: float


class LogLines(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """A part of a running task's output. `start`: bytes of that stream before it; `ended` with the last part."""

    task_no: Int64
    number: Int32
    stream: str
    start: Int64
    text: str
    ended: bool = False


class Drain(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """Start nothing more; finish what runs. With `then_exit`, leave when idle."""

    reason: str = ""
    then_exit: bool = False


class Undrain(msgspec.Struct, frozen=True, tag=True):
    """Start tasks again."""


class Exit(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """Stop what runs (its attempts are lost) and leave now."""

    reason: str = ""


class Goodbye(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """A peer leaves; a worker then holds nothing more. Outcomes it could not deliver are included."""

    reason: str = ""


class DrainWanted(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """A worker asks to be drained: it got SIGTERM, or its machine is about to end. It starts nothing more."""

    reason: str = ""


class PushOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a task list is merged into its run. `merge_strategy`: keep_succeeded, replace, or extend: the list adds
    tasks, whose dependencies may be existing tasks of the run; existing tasks stay as they are unless they failed.
    `replace_changed`: with extend, a task whose definition changed is done again."""

    run: str
    merge_strategy: str = "keep_succeeded"
    skip_existing: bool = False
    keep_dirs: bool = False
    vm_hours: float | None = None
    """A budget for the run's work, 0 for none; None keeps the present one."""
    replace_changed: bool = False


class SubmitTasks(msgspec.Struct, frozen=True, tag=True):
    """Chunk `k` of `n` of a push. `push_id`: hash of options and content, by which a repeated push is recognised."""

    push_id: str
    k: Int64
    n: Int64
    options: PushOptions
    tasks: tuple[TaskDefinition, ...]


class ChunkReceived(msgspec.Struct, frozen=True, tag=True):
    """The boss holds chunk `k` (not yet stored: repeat all chunks after a new `Welcome`). The result of a push answers
    the chunk that completes it."""

    push_id: str
    k: Int64


class RunAccepted(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """The push is committed. `states`: tasks of the run per state; `decisions`: kept, new, anew, replaced, dropped,
    skipped."""

    push_id: str
    run: str
    run_no: Int64
    states: dict[str, Int64] = {}
    decisions: dict[str, Int64] = {}


class RunRejected(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """Nothing of the push is stored. Lists every problem, at most 1,000 of them."""

    push_id: str
    problems: tuple[str, ...] = ()


class Request(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """A user's request: `verb` and its arguments. Repeated with the same `request_id` until answered."""

    request_id: str
    verb: str
    arguments: dict[str, str | Int64 | float | bool | None | list[str | Int64]] = {}


class RequestDone(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """The request is committed. `count`: how many things it changed; `names`: their names, if they are few."""

    request_id: str
    count: Int64
    text: str
    names: tuple[str, ...] = ()


class Refused(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """The boss refuses. `code`: session (send Hello again), version, role, peer, home (another process holds it),
    home_unsure (ask again), revoked (the client's key), request, no_such_task, ...; `about`: request id, session or
    nonce."""

    code: str
    reason: str
    about: str = ""


class RunChanged(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """For clients that watch a run: task counts by state now, the tasks that ended since the last message (a hint: the
    database has them all).

    `over`: nothing more will happen automatically; `held`: why nothing happens although tasks are left. `moving`: the
    transfers of its workers. `waits`: while tasks are ready, why pools start no VMs for them; empty if nothing prevents
    it.
    """

    run: str
    run_no: Int64
    states: dict[str, Int64]
    ended: tuple[TaskEnded, ...] = ()
    running: tuple[str, ...] = ()
    workers: Int64 = 0
    over: bool = False
    held: str = ""
    moving: Moving | None = None
    waits: str = ""


class CallEnded(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call of a run. `state` is its task's. `value` is the pickled value or exception where it is small, and `path`
    the file in the datastore that holds it otherwise. `fingerprint` and `many`, as in
    `Call`, are in answers to `calls` only."""

    task_no: Int64
    id: str
    state: str
    number: Int32 = 0
    worker: str = ""
    cause: str = ""
    error: str = ""
    exit_code: Int32 | None = None
    signal: Int32 | None = None
    run_s: float = 0.0
    value: bytes = b""
    path: str = ""
    fingerprint: str = ""
    many: bool = False


class CallsEnded(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """Calls of a run that ended, after the commit: to those who watch its calls. With a `request_id` it answers the
    request `calls`, and also names calls that have not ended; `is_last` of the messages of one answer, and `more`:
    there are others after the last one."""

    run: str
    calls: tuple[CallEnded, ...]
    request_id: str = ""
    more: bool = False
    is_last: bool = True


Message = (
    Hello | Welcome | Heartbeat | MovingChanged | HeartbeatAnswered | DatastoreGranted | TransfersWanted |
    TransfersGranted | TransfersEnded | StartTasks | ValuesWanted | CallValues | ReturnTasks | TasksReturned |
    StopTasks | TasksStarted | TasksEnded | OutcomesStored | StreamLogs | LogLines | Drain | Undrain | Exit | Goodbye |
    DrainWanted | SubmitTasks | ChunkReceived | RunAccepted | RunRejected | Request | RequestDone | Refused |
    RunChanged | CallsEnded
)  # fmt: skip


# --- envelope -----------------------------------------------------------------------------------


class Envelope(msgspec.Struct, frozen=True, omit_defaults=True):
    """The envelope of every message. `peer` is the worker or client, also in messages that the boss sends to it.

    `number` increases within a session, separately for each direction. `epoch` is the boss's, `batch` its last commit;
    both are 0 from a peer.
    """

    v: Int64
    peer: str
    session: str
    number: Int64
    message: Message
    epoch: Int64 = 0
    batch: Int64 = 0


class _Version(msgspec.Struct):
    v: Int64


class Unreadable(Exception):
    """Bytes that are no valid message. `why` is one of oversized, malformed, unknown_key, signature, version."""

    def __init__(self, why: str, text: str, key_name: str = "") -> None:
        super().__init__(text)
        self.why = why
        self.key_name = key_name
        """The key of the valid signature, if `why` is version: this peer can be answered."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Envelope)
_version_decoder = msgspec.json.Decoder(_Version)

_MAGIC = b"ecloud"


_LONGEST_KEPT = 256
"""Characters of a topic whose digest is cached: our topics are shorter, and a client could invent any number of long
ones."""


@functools.lru_cache(maxsize=10_000)
def _begun(key: bytes, topic: str) -> hashlib.blake2b:
    """The common beginning of the digests of all messages of that key on that topic."""
    return hashlib.blake2b(b"%b\n" % topic.encode(), key=key[:64], digest_size=32)


def _signature(key: bytes, topic: str, text: bytes) -> bytes:
    """Keyed BLAKE2b over topic and text: a message cannot be replayed on another topic. 0.65 us for 300 bytes."""
    digest = (_begun if len(topic) <= _LONGEST_KEPT else _begun.__wrapped__)(key, topic).copy()
    digest.update(text)
    return digest.hexdigest().encode()


def encode(envelope: Envelope, topic: str, key_name: str, key: bytes) -> bytes:
    """`ecloud <key name> <signature>`, a line feed, then readable JSON. `key`: at most 64 bytes are used."""
    text = _encoder.encode(envelope)
    return b"%b %b %b\n%b" % (_MAGIC, key_name.encode(), _signature(key, topic, text), text)


def decode(payload: bytes, topic: str, key_of: Callable[[str], bytes | None]) -> tuple[Envelope, str]:
    """Return the envelope and the name of the key that signed it. Raises `Unreadable`, and nothing else, for any bytes.

    `key_of` returns the key of that name, or None if there is no such key, or it was revoked.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise Unreadable("oversized", f"{len(payload):,} bytes, at most {MAX_MESSAGE_BYTES:,} are read")
    head, separator, text = payload.partition(b"\n")
    words = head.split(b" ") if len(head) <= 256 else []
    if not separator or len(words) != 3 or words[0] != _MAGIC:
        raise Unreadable("malformed", "no signature line")
    try:
        key_name = words[1].decode("ascii")
    except UnicodeDecodeError:
        raise Unreadable("malformed", "key name is not ASCII") from None
    key = key_of(key_name) if 0 < len(key_name) <= MAX_NAME_CHARS else None
    if key is None:
        raise Unreadable("unknown_key", f"no key is named {key_name[:MAX_NAME_CHARS]!r}")
    if not hmac.compare_digest(words[2], _signature(key, topic, text)):
        raise Unreadable("signature", f"the signature is not that of key {key_name!r} for this topic")
    try:
        envelope = _decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _why_unreadable(text, str(error), key_name) from None
    version = envelope.v
    if version != PROTOCOL_VERSION and (
        version != OUTCOMES_ACCEPTED_FROM_VERSION or not isinstance(envelope.message, TasksEnded)
    ):
        raise _other_version(version, key_name)
    if len(envelope.peer) > MAX_NAME_CHARS or len(envelope.session) > MAX_NAME_CHARS:
        raise Unreadable("malformed", "peer or session name too long")
    return envelope, key_name


def _why_unreadable(text: bytes, problem: str, key_name: str) -> Unreadable:
    """Return the error for text that does not match our messages: it may have another version, with other messages.
    Decodes the version separately only here: doing so first would parse every message twice."""
    try:
        version = _version_decoder.decode(text).v
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        return Unreadable("malformed", str(error))
    return Unreadable("malformed", problem) if version == PROTOCOL_VERSION else _other_version(version, key_name)


def _other_version(version: int, key_name: str) -> Unreadable:
    return Unreadable("version", f"protocol version {version}; this side speaks {PROTOCOL_VERSION}", key_name)
