"""Result types of queries about the cluster, ready for a table or for JSON. Computes only sums.

Times are seconds since 1970 by the boss's clock, durations seconds, memory MB.
"""

from __future__ import annotations

import msgspec

from ecloud.model.boot_diagnosis import Visit
from ecloud.model.tasks import ENDED, ManifestEntry, TaskDefinition, TaskState

UNFINISHED = tuple(state.value for state in TaskState if state not in ENDED)
"""States of tasks that have not ended."""


class BossStatus(msgspec.Struct, frozen=True):
    """Who leads. `silent_s`: time since its last write. Times in seconds since 1970; None if no boss ever led."""

    leads: bool
    holder: str = ""
    epoch: int = 0
    since: float | None = None
    seen_at: float | None = None
    silent_s: float | None = None


class ArrayStatus(msgspec.Struct, frozen=True):
    """An array of a run: its own state, and its elements by state."""

    id: str
    state: str
    states: dict[str, int]

    @property
    def total(self) -> int:
        """Number of all elements."""
        return sum(self.states.values())

    @property
    def ended(self) -> int:
        """Number of elements that have ended."""
        return self.total - sum(self.states.get(state, 0) for state in UNFINISHED)


class RunStatus(msgspec.Struct, frozen=True):
    """A run. `states` leaves init tasks out; they are in `inits`. `rate_per_s`: recent ends per second.

    `left_s` is None if unknown; `left_from` states what the estimate is based on, or why it is unknown.
    """

    name: str
    run_no: int
    created_at: float
    ended_at: float | None
    held: str
    states: dict[str, int]
    inits: dict[str, int]
    rate_per_s: float | None = None
    left_s: float | None = None
    left_from: str = ""
    arrays: list[ArrayStatus] = []

    @property
    def total(self) -> int:
        """Number of tasks, without init tasks."""
        return sum(self.states.values())

    @property
    def left(self) -> int:
        """Number of tasks that have not ended."""
        return sum(self.states.get(state, 0) for state in UNFINISHED)


class Transfer(msgspec.Struct, frozen=True):
    """Transfers of a worker, as reported at `told_at`: `fetching` files for tasks that begin, `storing` files of tasks
    that ended, and approximately the bytes of both together. `since`: when the first current transfer began. `tasks`:
    run and id of the tasks that the files belong to, if the worker named them."""

    worker: str
    since: float
    told_at: float
    tasks: list[str] = []
    fetching: int = 0
    storing: int = 0
    bytes: int = 0
    moved_bytes: int = 0
    bytes_per_s: int = 0


class Status(msgspec.Struct, frozen=True):
    """Contents of the status screen. Counts by state; `init_tasks` are not among `tasks`."""

    tasks: dict[str, int]
    init_tasks: dict[str, int]
    workers: dict[str, int]
    vms: dict[str, int]
    runs: list[RunStatus]
    boss: BossStatus
    left_s: float | None
    troubles: list[str]
    cloud_troubles: list[str] = []
    """Reports of workers that cannot run any task."""
    transfers: list[Transfer] = []
    """Workers that move files now."""
    transfers_turns: int = 0
    """Workers that hold their turn to move files over SSH, whether they move any or not."""
    transfers_waiting: int = 0
    """Workers that wait for their turn."""
    at: float = 0.0
    """Time of this state."""
    suspects: list[str] = []
    """Tasks that may kill the workers they run on."""
    datastore_free_mb: float | None = None
    """None before the first check."""
    datastore_seen_s: float = 0.0
    """Age of that value: over SSH the boss checks only at intervals."""


class TaskLine(msgspec.Struct, frozen=True):
    """A task in a list, with its last attempt. Times in seconds since 1970."""

    run: str
    id: str
    task_no: int
    state: str
    reason: str
    attempts: int
    changed_at: float
    priority: int
    init: bool
    labels: tuple[str, ...]
    worker: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    run_s: float | None = None


class TaskPage(msgspec.Struct, frozen=True):
    """Some of the requested tasks, in list order; `total` counts all."""

    tasks: list[TaskLine]
    total: int

    @property
    def more(self) -> int:
        """Number of requested tasks that this page leaves out."""
        return self.total - len(self.tasks)


class Failure(msgspec.Struct, frozen=True):
    """A failed task: what the user needs to repair it. `stderr`: its last part."""

    run: str
    id: str
    error: str
    command: str
    exit_code: int | None
    signal: int | None
    stderr: str
    attempts: int
    worker: str


class WorkerView(msgspec.Struct, frozen=True):
    """A worker process. `running`: RUN:ID of its running tasks; `queued`: tasks assigned to it but not started."""

    worker: str
    state: str
    since: float
    heard_at: float
    host: str
    addresses: tuple[str, ...]
    pid: int
    vm_no: int | None
    key_name: str
    resources: dict[str, float]
    labels: tuple[str, ...]
    lives_s: float | None
    reason: str
    trouble: str
    running: list[str]
    queued: int
    lane_since: float | None = None
    """Since when the worker moves files over SSH."""
    lane_wanted_since: float | None = None
    """Since when the worker waits for its turn."""


class VmView(msgspec.Struct, frozen=True):
    """A VM that a cloud started for this cluster, or was asked for."""

    vm_no: int
    pool: str
    state: str
    since: float
    size: dict[str, float]
    cloud_id: str
    worker: str
    keep_alive: bool
    reason: str
    intended_at: float
    hello_at: float | None
    gone_at: float | None
    started_at: float | None = None
    first_task_at: float | None = None
    ending_at: float | None = None
    end_asked: int = 0
    cause: str = ""
    said: str = ""
    boot_nonce: str = ""


class BootView(msgspec.Struct, frozen=True):
    """The record of a VM's boot: when each step was first completed, and what the last visit by SSH found."""

    vm_no: int
    address: str
    host_key: str
    steps: dict[str, float]
    visit: Visit | None


class AttemptView(msgspec.Struct, frozen=True):
    """One attempt of a task. `host`: the host of its worker. Output texts are tails."""

    number: int
    worker: str
    host: str
    state: str
    assigned_at: float
    started_at: float | None
    ended_at: float | None
    reason: str
    cause: str | None
    exit_code: int | None
    signal: int | None
    error: str
    command: str
    stdout: str
    stderr: str
    fetch_s: float | None
    run_s: float | None
    store_s: float | None
    max_rss_mb: float | None
    results: tuple[ManifestEntry, ...]
    fetch_bytes: int | None = None
    cached_bytes: int | None = None

    @property
    def store_bytes(self) -> int:
        """Size of its results."""
        return sum(result.size for result in self.results)


class Neighbour(msgspec.Struct, frozen=True):
    """A dependency or a dependent of a task. `on`: the condition."""

    task_no: int
    id: str
    state: str
    on: str
    reason: str = ""


class TaskDetail(msgspec.Struct, frozen=True):
    """All details of a task: its definition, its state, every attempt, and its neighbours in the graph."""

    run: str
    run_no: int
    id: str
    task_no: int
    state: str
    reason: str
    changed_at: float
    not_before: float
    retries_used: int
    definition: TaskDefinition
    attempts: list[AttemptView]
    dependencies: list[Neighbour]
    dependents: list[Neighbour]
    dependents_total: int
    elements: dict[str, int] = {}
    """Of an array: its elements by state."""

    @property
    def last_attempt(self) -> AttemptView | None:
        """The latest attempt."""
        return self.attempts[-1] if self.attempts else None


class Reasons(msgspec.Struct, frozen=True):
    """Reasons for a state: one sentence, and further layers from the nearest to the farthest."""

    subject: str
    state: str
    sentence: str
    layers: tuple[str, ...] = ()
