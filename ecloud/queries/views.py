"""What questions about the cluster are answered with: values, ready for a table or for JSON. Computes nothing but sums.

Times are seconds since 1970 by the boss's clock, durations seconds, memory MB.
"""

from __future__ import annotations

import msgspec

from ecloud.model.boot_diagnosis import Visit
from ecloud.model.tasks import ENDED, ManifestEntry, TaskDefinition, TaskState

UNFINISHED = tuple(state.value for state in TaskState if state not in ENDED)
"""States of tasks that something is still to happen to."""


class BossStatus(msgspec.Struct, frozen=True):
    """Who leads. `silent_s`: since it last wrote. Times in seconds since 1970; None where no boss ever led."""

    leads: bool
    holder: str = ""
    epoch: int = 0
    since: float | None = None
    seen_at: float | None = None
    silent_s: float | None = None


class ArrayStatus(msgspec.Struct, frozen=True):
    """An array of a run: where it stands itself, and its elements by state."""

    id: str
    state: str
    states: dict[str, int]

    @property
    def total(self) -> int:
        """All elements."""
        return sum(self.states.values())

    @property
    def ended(self) -> int:
        """Elements that have ended."""
        return self.total - sum(self.states.get(state, 0) for state in UNFINISHED)


class RunStatus(msgspec.Struct, frozen=True):
    """A run. `states` leaves init tasks out; they are in `inits`. `rate_per_s`: ends lately.

    `left_s` is None where nobody can know; `left_from` says what it rests on, or why it is unknown.
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
        """Tasks, without init tasks."""
        return sum(self.states.values())

    @property
    def left(self) -> int:
        """Tasks that have not ended."""
        return sum(self.states.get(state, 0) for state in UNFINISHED)


class Transfer(msgspec.Struct, frozen=True):
    """What a worker moves, as it told at `told_at`: so many files for tasks that begin, so many of tasks that ended,
    and the bytes of both together, as near as can be said. `since`: when the first of what is on its way began.
    `tasks`: run and id of those whose files they are, where it named them."""

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
    """Everything on one screen. Counts by state; `init_tasks` are not among `tasks`."""

    tasks: dict[str, int]
    init_tasks: dict[str, int]
    workers: dict[str, int]
    vms: dict[str, int]
    runs: list[RunStatus]
    boss: BossStatus
    left_s: float | None
    troubles: list[str]
    cloud_troubles: list[str] = []
    """What workers say that keeps them from running anything."""
    transfers: list[Transfer] = []
    """Who moves files now."""
    transfers_turns: int = 0
    """Workers that hold their turn to move files over SSH, whether they move any or not."""
    transfers_waiting: int = 0
    """Workers that wait for their turn."""
    at: float = 0.0
    """When this was so."""
    suspects: list[str] = []
    """Tasks that may kill the workers they run on."""
    datastore_free_mb: float | None = None
    """None where nobody looked yet."""
    datastore_seen_s: float = 0.0
    """How long ago that was: over SSH the boss looks now and then."""


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
    """Some of the tasks that were asked for, in the order of their lists; `total` counts all."""

    tasks: list[TaskLine]
    total: int

    @property
    def more(self) -> int:
        """Tasks that are not shown."""
        return self.total - len(self.tasks)


class Failure(msgspec.Struct, frozen=True):
    """A failed task: what a person needs to mend it. `stderr`: its last part."""

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
    """A worker process. `running`: RUN:ID of what it does now; `queued`: given to it and not started."""

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
    """Since when it moves files over SSH."""
    lane_wanted_since: float | None = None
    """Since when it waits for its turn to."""


class VmView(msgspec.Struct, frozen=True):
    """A VM that a cloud started for us, or was asked for."""

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
    """The record of a VM's boot: when each step was done first, and what the last visit by SSH found."""

    vm_no: int
    address: str
    host_key: str
    steps: dict[str, float]
    visit: Visit | None


class AttemptView(msgspec.Struct, frozen=True):
    """One try of a task. `host`: where its worker ran. Output texts are tails."""

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
        """What its results hold."""
        return sum(result.size for result in self.results)


class Neighbour(msgspec.Struct, frozen=True):
    """A task that another waits for, or that waits for it. `on`: the condition."""

    task_no: int
    id: str
    state: str
    on: str
    reason: str = ""


class TaskDetail(msgspec.Struct, frozen=True):
    """A task whole: what was asked, where it stands, every attempt, and its neighbours in the graph."""

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
        """The latest try."""
        return self.attempts[-1] if self.attempts else None


class Reasons(msgspec.Struct, frozen=True):
    """Why something stands where it stands: one sentence, and further layers from the nearest to the farthest."""

    subject: str
    state: str
    sentence: str
    layers: tuple[str, ...] = ()
