"""Rows that core and store exchange: loaded at a start or for a request, written with a batch.

All times are seconds of the boss's clock: epoch seconds that never step back within one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from boss.core.model.packed import Packed
from ecloud.model.boot_diagnosis import Visit
from ecloud.model.tasks import AttemptState, Condition, Outcome, Resources, Result, Retries, TaskState
from ecloud.model.transfer_status import Moving
from ecloud.model.vm_states import VmState
from ecloud.model.wire import Hello
from ecloud.model.worker_states import WorkerState

MAKES_NOTHING, MAKES_RESULTS, MAKES_UNLESS_THERE = 0, 1, 2
"""Whether a task has no results, results, or results that may exist already (`overwrite_result: false`). Tasks stored
before this column existed have the last value: they are never chained."""


class ArrayRow(msgspec.Struct):
    """The elements of an array, which is itself a task (`task_no`) that ends when all of them have ended.

    The element at position p has the number `first_no` + p; it has a row once it was made. `pending`: positions without
    a row, as `Ranges` writes them; `states`: number of elements in each state, pending ones counted as `pending_state`.
    `each`: arrays that it waits for element by element. `template`: its definition as JSON, without entries; `entries`:
    its entries, if any, as compressed JSON lists of `ENTRIES_A_PART`.
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


class TaskRow(msgspec.Struct, gc=False, array_like=True, omit_defaults=True):
    """A task without its body: what the core needs to schedule it. `dependencies`: (task_no it waits for, condition).

    `attempts`: number of the last attempt; `retries_used` counts only attempts that cost a retry. `label`: the key of
    its run-time estimate. `not_before`: when a retry may start. `definition_hash`: hex. `body_bytes`: size of the
    stored definition. `inputs`: requirements that it shares with other tasks. `makes`: whether it has results.
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
    """Task number of the array that it is an element of."""
    elements: ArrayRow | None = None
    """For an array: its elements."""


class RunRow(msgspec.Struct):
    """A run. `held`: why its tasks do not start, or empty. `ended_at`: when its last task ended."""

    run_no: int
    name: str
    created_at: float = 0.0
    held: str = ""
    ended_at: float | None = None


class AttemptRow(msgspec.Struct, frozen=True):
    """An attempt. Each change writes the whole row. `outcome` is set from `promoting` on.

    `asks`: what a stopping attempt occupies until it has ended; by then its task may ask for something else, or be
    gone.
    """

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
    asks: Resources | None = None


class SuspectRow(msgspec.Struct):
    """A task that ran on `lost` workers when they were lost. `failed`: it failed for that reason; `reason`: the last
    lost worker and its reason; `at`: when."""

    task_no: int
    run_no: int
    lost: int
    failed: bool
    reason: str
    at: float


class WorkerRow(msgspec.Struct):
    """A worker process. Only `Worker.move` changes its state.

    `vm_no`: its VM, if the boss started it; `heard_at` is written at state changes and now and then, not per heartbeat.
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
    """Start of its turn to transfer files over SSH; None without a turn."""
    lane_wanted_since: float | None = None
    """Since when it waits for its turn to transfer files."""
    moving: Moving | None = None
    """Its transfers, as reported at `moving_at`; None without any."""
    moving_at: float | None = None
    killed_at: float | None = None
    """When it was ordered to stop at once."""


class VmRow(msgspec.Struct):
    """A VM and the intent that owns it.

    `cloud_id` is the cloud's name for it, empty until the cloud answered. `size`: its resources. The times follow its
    life, in this order: intended, started (the cloud made it), hello (its worker reported), first task, ending, gone.
    `started_at` and `gone_at` are by the cloud's clock, once the cloud has reported them; all others are by the boss's
    clock: compute waiting times from those, or from `lived`. `end_asked`: how often the boss asked the cloud to end it.
    `cause`: why it did not come up, if recognised; `said`: the cloud's last remark about it, kept after it is gone.
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
        """Its lifetime (from, until) by the boss's clock: since the request; after its end, a period of the length that
        the cloud reports. None if the cloud never made it, as far as is known."""
        if self.started_at is None:
            return None
        if self.state is VmState.GONE:
            return self.since - max(0.0, (self.gone_at or self.started_at) - self.started_at), self.since
        return self.intended_at, now


class VmSpan(msgspec.Struct, frozen=True):
    """Lifetime of a VM whose intent was given up before the VM appeared: written to the row of that intent, which is
    gone and knows no other VM. `ended_at` None: it still exists. `boot_nonce`: that of the intent; if it is empty, the
    number alone selects the row."""

    vm_no: int
    cloud_id: str
    started_at: float
    ended_at: float | None = None
    boot_nonce: str = ""


class BootRow(msgspec.Struct):
    """The record of a VM's boot. `address`: the last one that its cloud reported; `host_key`: pinned at the first
    visit; `steps`: when each step was first done; `visit`: findings of the last visit."""

    vm_no: int
    address: str = ""
    host_key: str = ""
    steps: dict[str, float] = {}
    visit: Visit | None = None


class PoolRow(msgspec.Struct):
    """The state of a pool, for display. `closed`: why no VM of it starts now, with `since` and `until`, or empty. Boot
    times are seconds from the request to a worker: measured over the last `boots`, else assumed."""

    pool: str
    closed: str = ""
    since: float | None = None
    until: float | None = None
    boots: int = 0
    boot_s_p50: float = 0.0
    boot_s_p95: float = 0.0


class TaskMoved(msgspec.Struct, gc=False):
    """Changed columns of a task. `changed_at` is the batch's."""

    state: TaskState
    reason: str = ""
    attempts: int = 0
    retries_used: int = 0
    not_before: float = 0.0


class TaskStored(msgspec.Struct):
    """A task that a push makes or replaces (same task_no, its attempts kept, its dependencies replaced). `json`: its
    definition, as stored, which has these `labels`."""

    row: TaskRow
    labels: tuple[str, ...]
    json: bytes


class Body(msgspec.Struct, array_like=True):
    """The part of a stored task that scheduling does not need: `json`, its definition, which has these `labels`."""

    labels: tuple[str, ...]
    json: bytes


class StoredTasks:
    """The tasks that a batch stores. A push may store a million: rows and bodies are packed."""

    def __init__(self, tasks: Iterable[TaskStored] = ()) -> None:
        self._rows: Packed[TaskRow] = Packed(TaskRow)
        self._bodies: Packed[Body] = Packed(Body)
        for task in tasks:
            self.append(task)

    def append(self, task: TaskStored) -> None:
        """Add a task. Its row must not change afterwards."""
        self._rows.append(task.row)
        self._bodies.append(Body(task.labels, task.json))

    def extend(self, rows: Iterable[TaskRow], bodies: Packed[Body]) -> None:
        """Add tasks, with a body for each row. The rows must not change afterwards."""
        self._rows.extend(rows)
        self._bodies.add_packed(bodies)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[TaskStored]:
        for row, body in zip(self._rows, self._bodies, strict=True):
            yield TaskStored(row, body.labels, body.json)


class PushAnswered(msgspec.Struct):
    """A committed push, kept so that it can be answered again, even after its run was dropped."""

    push_id: str
    run_no: int
    states: dict[str, int]
    decisions: dict[str, int]


class Writes(msgspec.Struct):
    """One transaction, in the order of its fields. Each dictionary holds the final state of its rows."""

    runs: dict[int, RunRow] = msgspec.field(default_factory=dict)
    stored: StoredTasks = msgspec.field(default_factory=StoredTasks)
    tasks: dict[int, TaskMoved] = msgspec.field(default_factory=dict)
    grown: dict[int, Resources] = msgspec.field(default_factory=dict)
    """What tasks request from now on, after they exceeded their memory; their definitions stay."""
    arrays: dict[int, ArrayRow] = msgspec.field(default_factory=dict)
    """Changes of arrays: their `pending` and counts."""
    attempts: dict[tuple[int, int], AttemptRow] = msgspec.field(default_factory=dict)
    workers: dict[str, WorkerRow] = msgspec.field(default_factory=dict)
    vms: dict[int, VmRow] = msgspec.field(default_factory=dict)
    spans: dict[tuple[int, str], VmSpan] = msgspec.field(default_factory=dict)
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
    """Forget VMs and workers that ended before this time; 0: none."""
    answered_before: float = 0.0
    """Forget pushes of dropped runs that were answered before this time; 0: none."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not any(getattr(self, field) for field in self.__struct_fields__)


class RunImage(msgspec.Struct):
    """A run as the database has it: every task, including ended ones, with all dependencies; or, if `is_part`, only the
    requested tasks. `around`: tasks that are there because others depend on them, without dependencies of their own."""

    run: RunRow
    tasks: list[TaskRow]
    is_part: bool = False
    around: frozenset[int] = frozenset()


class Snapshot(msgspec.Struct):
    """The state that a boss starts from: everything unfinished.

    `tasks`: unfinished ones, arrays that ended before their elements, and all init tasks of unfinished runs; their
    `dependencies` name unfinished tasks only. `attempts`: those that have not ended; `declared`: the results that their
    tasks declare, if any, by task_no. `init_attempts`: ended attempts of init tasks on workers that are up or draining,
    plus failed ones of unfinished runs. `killed`: workers that were lost after an operator had killed them, with the
    times of their losses. `past_vms`: the last VMs that are gone, oldest first, and all whose machine
    still existed. `states`: task counts per run and state, without init tasks.
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
    killed: dict[str, float] = {}
    vms: list[VmRow] = []
    past_vms: list[VmRow] = []
    boots: list[BootRow] = []
    states: dict[int, dict[str, int]] = {}
    context: dict[str, str] = {}
    revoked_keys: set[str] = set()
    suspects: list[SuspectRow] = []
    dropped_pushes: set[str] = set()
    """Ids of the pushes that are kept although their runs were dropped."""
    epoch_ends: dict[int, int] = {}
    """The last batch of each earlier epoch."""
    element_ends: dict[int, tuple[str, str]] = {}
    """For arrays that unfinished ones wait for element by element: positions that succeeded, and positions that ended
    otherwise, as `Ranges` writes them."""
