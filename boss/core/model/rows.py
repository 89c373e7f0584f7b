"""Rows as they travel between core and store: what is loaded at a start or for a request, what is written in a batch.

All times are seconds of the boss's clock: epoch seconds that never step back within one process.
"""

from __future__ import annotations

import msgspec

from ecloud.model.boot_diagnosis import Visit
from ecloud.model.tasks import AttemptState, Condition, Outcome, Resources, Result, Retries, TaskDefinition, TaskState
from ecloud.model.transfer_status import Moving
from ecloud.model.vm_states import VmState
from ecloud.model.wire import Hello
from ecloud.model.worker_states import WorkerState

MAKES_NOTHING, MAKES_RESULTS, MAKES_UNLESS_THERE = 0, 1, 2
"""Whether a task has no results, results, or results that may exist already (`overwrite_result: false`). Tasks that
were stored before this was known count as the last: they are never chained."""


class ArrayRow(msgspec.Struct):
    """The elements of an array, which is itself a task (`task_no`) that ends when all of them have ended.

    Element at position p has the number `first_no` + p; it has a row once it was made. `pending`: positions without
    one, as `Ranges` writes them; `states`: how many elements stand in each state, the pending ones as `pending_state`.
    `each`: arrays that it waits for element by element. `template`: its definition as JSON, without entries;
    `entries`: these as compressed JSON lists of `ENTRIES_A_PART`, where it has some.
    """

    task_no: int
    run_no: int
    first_no: int
    indices: str
    pending: str
    states: dict[str, int] = {}
    pending_count: int = 0
    pending_state: str = ""
    each: tuple[tuple[int, Condition], ...] = ()
    template: bytes = b""
    entries: tuple[bytes, ...] = ()


class TaskRow(msgspec.Struct, gc=False):
    """A task without its body: what the core needs to schedule it. `dependencies`: (task_no it waits for, condition).

    `attempts`: number of the last attempt; `retries_used` counts only those that cost one. `label`: what its run-time
    is learned by. `not_before`: when a retry may start. `definition_hash`: hex. `body_bytes`: size of the stored
    definition. `inputs`: requirements that other tasks have, too. `makes`: whether it has results.
    """

    task_no: int
    run_no: int
    id: str
    state: TaskState = TaskState.WAITING
    reason: str = ""
    attempts: int = 0
    retries_used: int = 0
    not_before: float = 0.0
    init: bool = False
    priority: int = 0
    asks: Resources = {}
    runtime_s: float | None = None
    label: str = ""
    retries: Retries = Retries()
    keep_dir: bool = False
    body_bytes: int = 0
    definition_hash: str = ""
    dependencies: tuple[tuple[int, Condition], ...] = ()
    inputs: tuple[str, ...] = ()
    makes: int = MAKES_NOTHING
    array: int = 0
    """Number of the array whose element it is."""
    elements: ArrayRow | None = None
    """Of an array."""


class RunRow(msgspec.Struct):
    """A run. `held`: why its tasks do not start, or empty. `ended_at` when nothing was left to do."""

    run_no: int
    name: str
    created_at: float = 0.0
    held: str = ""
    ended_at: float | None = None


class AttemptRow(msgspec.Struct, frozen=True):
    """One try. Written whole, each time it changes. `outcome` from `promoting` on."""

    task_no: int
    number: int
    run_no: int
    worker: str
    state: AttemptState
    assigned_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    reason: str = ""
    outcome: Outcome | None = None


class SuspectRow(msgspec.Struct):
    """A task that ran on `lost` workers when they were lost. `failed`: it failed for that; `reason`: the last one and
    what happened to it; `at`: when."""

    task_no: int
    run_no: int
    lost: int
    failed: bool
    reason: str
    at: float


class WorkerRow(msgspec.Struct):
    """A worker process. Its state changes by `Worker.move` only.

    `vm_no` where it is a VM that we started; `heard_at` is written at state changes and now and then, not per
    heartbeat.
    """

    worker: str
    key_name: str
    state: WorkerState
    since: float
    heard_at: float
    hello: Hello
    vm_no: int | None = None
    reason: str = ""
    trouble: str = ""
    lane_since: float | None = None
    """Since when it holds its turn to move files over SSH; None while it holds none."""
    lane_wanted_since: float | None = None
    """Since when it waits for its turn to do so."""
    moving: Moving | None = None
    """What it moves, as it told at `moving_at`; None for nothing."""
    moving_at: float | None = None


class VmRow(msgspec.Struct):
    """A VM and the intent that owns it.

    `cloud_id` is the cloud's name for it, empty until the cloud answered. `size`: what it offers. Times are those of
    its life, in this order: intended, started (the cloud made it), hello (its worker reported), first task, ending,
    gone. `started_at` and `gone_at` are the cloud's, by its clock, once it told them; all others are the boss's: what
    waits looks at those, or at `lived`. `end_asked`: how often its end was asked for. `cause`: why it came to nothing,
    as far as that is recognised; `said`: the cloud's last words about it, kept when it is gone.
    """

    vm_no: int
    pool: str
    state: VmState
    since: float
    size: Resources
    boot_nonce: str
    cloud_id: str = ""
    worker: str = ""
    keep_alive: bool = False
    reason: str = ""
    intended_at: float = 0.0
    hello_at: float | None = None
    gone_at: float | None = None
    started_at: float | None = None
    first_task_at: float | None = None
    ending_at: float | None = None
    end_asked: int = 0
    cause: str = ""
    said: str = ""

    def lived(self, now: float) -> tuple[float, float] | None:
        """From when until when it has been there, by the boss's clock: since it was asked for, or where it ended as
        long as the cloud says. None where the cloud never made it, as far as is known."""
        if self.started_at is None:
            return None
        if self.state is VmState.GONE:
            return self.since - max(0.0, (self.gone_at or self.started_at) - self.started_at), self.since
        return self.intended_at, now


class VmSpan(msgspec.Struct, frozen=True):
    """How long a VM was there that its intent had been given up for: written to the row of that intent, which is gone
    and knows no other VM. `ended_at` None: it is there still."""

    vm_no: int
    cloud_id: str
    started_at: float
    ended_at: float | None = None


class BootRow(msgspec.Struct):
    """The record of a VM's boot. `address`: where its cloud last said it is; `host_key`: pinned at the first visit;
    `steps`: when each was done first; `visit`: what the last one found."""

    vm_no: int
    address: str = ""
    host_key: str = ""
    steps: dict[str, float] = {}
    visit: Visit | None = None


class PoolRow(msgspec.Struct):
    """How a pool fares, for people. `closed`: why no VM of it starts now, with `since` and `until`, or empty. Boot
    times are seconds from asking to a worker: of `boots` seen lately, else a guess."""

    pool: str
    closed: str = ""
    since: float | None = None
    until: float | None = None
    boots: int = 0
    boot_s_p50: float = 0.0
    boot_s_p95: float = 0.0


class TaskMoved(msgspec.Struct, gc=False):
    """What changed of a task. `changed_at` is the batch's."""

    state: TaskState
    reason: str = ""
    attempts: int = 0
    retries_used: int = 0
    not_before: float = 0.0


class TaskStored(msgspec.Struct):
    """A task that a push makes or replaces (same task_no, its attempts kept, its dependencies replaced). `json`: of the
    definition, as it is kept."""

    row: TaskRow
    definition: TaskDefinition
    json: bytes


class PushAnswered(msgspec.Struct):
    """A push that was committed, so that it can be answered again, also after its run was dropped."""

    push_id: str
    run_no: int
    states: dict[str, int]
    decisions: dict[str, int]


class Writes(msgspec.Struct):
    """One transaction, in the order of its fields. Each dictionary holds the last word on its row."""

    runs: dict[int, RunRow] = msgspec.field(default_factory=dict)
    stored: list[TaskStored] = msgspec.field(default_factory=list)
    tasks: dict[int, TaskMoved] = msgspec.field(default_factory=dict)
    arrays: dict[int, ArrayRow] = msgspec.field(default_factory=dict)
    """What changed of arrays: their `pending` and counts."""
    attempts: dict[tuple[int, int], AttemptRow] = msgspec.field(default_factory=dict)
    workers: dict[str, WorkerRow] = msgspec.field(default_factory=dict)
    vms: dict[int, VmRow] = msgspec.field(default_factory=dict)
    spans: dict[int, VmSpan] = msgspec.field(default_factory=dict)
    pools: dict[str, PoolRow] = msgspec.field(default_factory=dict)
    boots: dict[int, BootRow] = msgspec.field(default_factory=dict)
    pushes: list[PushAnswered] = msgspec.field(default_factory=list)
    context: dict[str, str | None] = msgspec.field(default_factory=dict)
    revoked_keys: set[str] = msgspec.field(default_factory=set)
    suspects: dict[int, SuspectRow | None] = msgspec.field(default_factory=dict)
    dropped_tasks: list[int] = msgspec.field(default_factory=list)
    dropped_runs: list[int] = msgspec.field(default_factory=list)
    dropped_workers: list[str] = msgspec.field(default_factory=list)
    gone_before: float = 0.0
    """VMs and workers that were over before this are forgotten; 0: none are."""
    answered_before: float = 0.0
    """Pushes that were answered before this, and whose runs are dropped, are forgotten; 0: none are."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not any(getattr(self, field) for field in self.__struct_fields__)


class RunImage(msgspec.Struct):
    """A run as the database has it: every task, ended ones too, with all dependencies; or, where `is_part`, those of
    its tasks that were asked for."""

    run: RunRow
    tasks: list[TaskRow]
    is_part: bool = False


class Snapshot(msgspec.Struct):
    """What a boss starts from: everything unfinished.

    `tasks`: unfinished ones, arrays that ended before their elements, and all init tasks of runs that are not over;
    their `dependencies` name unfinished tasks only. `attempts`: those not over; `declared`: the results that their
    tasks declare, by task_no, where they do. `init_attempts`: ended attempts of init tasks on workers that are up or
    draining, plus failed ones of unfinished runs. `past_vms`: the last of those that are gone, oldest first, and all
    whose machine was there still. `states`: task counts per run and state, init tasks left out.
    """

    cluster_id: str
    epoch: int
    next_task_no: int
    next_run_no: int
    next_vm_no: int
    runs: list[RunRow] = []
    tasks: list[TaskRow] = []
    attempts: list[AttemptRow] = []
    declared: dict[int, tuple[Result, ...]] = {}
    init_attempts: list[AttemptRow] = []
    workers: list[WorkerRow] = []
    vms: list[VmRow] = []
    past_vms: list[VmRow] = []
    boots: list[BootRow] = []
    states: dict[int, dict[str, int]] = {}
    context: dict[str, str] = {}
    revoked_keys: set[str] = set()
    suspects: list[SuspectRow] = []
    epoch_ends: dict[int, int] = {}
    """The last batch of each earlier epoch."""
    element_ends: dict[int, tuple[str, str]] = {}
    """Of arrays that unfinished ones wait for element by element: positions that succeeded, and those that ended
    otherwise, as `Ranges` writes them."""
