"""Numbers that the core's decisions depend on. Times in seconds. Set once at the start, from the settings."""

from __future__ import annotations

import math

import msgspec

from ecloud.model.tasks import Container, Resources
from ecloud.model.wire import BATCH_BYTES, DatastoreAccess


class PoolConfig(msgspec.Struct, frozen=True):
    """A pool: VMs of one kind. `size`: resources of one VM. The order in `BossConfig.pools` is the order of preference.

    The boss uses `spillover` pools only for tasks that fit no other pool. `idle_s`: how long a VM may idle before the
    boss ends it. `boot_s`: assumed time from the request for a VM to its worker, until boots were measured. `cloud`:
    pools with the same value share one list of VMs; empty for a pool that has a cloud of its own. `tells_room`: the
    cloud reports how many more VMs it would give. `visited`: the boss reaches the VMs by SSH; `gets_code`: the boss
    also copies the code to them. `queues`: the cloud queues jobs, perhaps for days: the boss waits for VMs that the
    cloud reports as pending, and counts their boot time from the end of the pending state. `container`: for the
    commands of tasks that name none. `lives_s`: how long a VM lives at most.
    """

    name: str
    size: Resources
    minimum: int = 0
    maximum: int = 0
    labels: tuple[str, ...] = ()
    idle_s: float = 60.0
    spillover: bool = False
    boot_s: float = 1.0
    cloud: str = ""
    tells_room: bool = False
    visited: bool = False
    gets_code: bool = False
    queues: bool = False
    container: Container | None = None
    lives_s: float = math.inf


class BossConfig(msgspec.Struct, frozen=True):
    """All inputs of `Boss` besides events."""

    heartbeat_s: float = 5.0
    """Of clients, and of workers while they are few."""
    lease_s: float = 60.0
    heartbeats_per_s: float = 150.0
    """Of all workers together: more workers send heartbeats less often, each still three in a lease."""
    lease_margin_s: float = 5.0
    stop_grace_s: float = 10.0
    retry_backoff_s: float = 1.0
    max_lost_workers: int = 3
    """A task fails after this many workers were lost while it ran on them; 0: no limit."""
    max_tasks_per_push: int = 2_000_000
    max_value_bytes: int = 2**62
    """Maximum size of a definition or manifest in the database."""
    values_bytes: int = BATCH_BYTES
    """Maximum size of the values of calls in one message to a worker."""
    keep_runs_s: float = 30 * 86400.0
    keep_machines_s: float = 2 * 86400.0
    """The boss keeps ended VMs and workers for as long as runs, and at least for this time: it computes the daily
    budget from them."""
    datastore: DatastoreAccess = DatastoreAccess("")
    usual_datastore: str = ""
    """Default datastore of files whose request names none."""
    shell: str = "/bin/sh"
    pools: tuple[PoolConfig, ...] = ()
    worker_settings: dict[str, float] = {}
    transfer_lanes: int = 8
    """Workers that may hold an SSH connection to the datastore at the same time: below the MaxStartups of its sshd, 10
    by default, which leaves room for the boss and for users."""
    transfer_bytes: int = 64_000_000_000
    """Total bytes that these workers may have to transfer: the first workers get the full bandwidth, instead of all
    workers a share."""
    ahead_s: float = 0.25
    """Seconds of work queued at a worker beyond what runs there: covers round trip, flush and commit of 256 short
    tasks."""
    ahead_max: int = 512
    """Maximum attempts queued at a worker: twice what a busy worker reports in a message, so that its queue never runs
    empty."""
    array_window: int = 2_000
    """The boss keeps up to this many ready, unassigned elements of an array, and makes half of them in one batch (about
    30 ms)."""
    watch_every_s: float = 0.25
    """Minimum interval between updates to the watchers of a run."""
    sweep_every_s: float = 600.0
    """Interval between searches for stages without an attempt."""
    list_vms_every_s: float = 10.0
    list_idle_every_s: float = 60.0
    """List interval while the boss knows no VM of this cluster: only a list shows a VM whose start was never
    answered."""
    boot_deadline_s: float = 300.0
    """The boss ends a VM whose worker has not sent its Hello after this time."""
    pending_s: float = 120.0
    """How long a VM may stay PENDING before the boss gives it up and tries another pool."""
    adoption_grace_s: float = 90.0
    """How long the boss keeps an intent after the last call that may have made its VM: the cloud may process that call
    until its timeout (30 s), and the list call may take as long."""
    orphan_grace_s: float = 120.0
    """How long a VM of this cluster without a living intent may be listed before the boss ends it."""
    starts_under_way: int = 100
    """Maximum VMs of one pool that the autoscaler keeps in the states intended and booting. Operators are not
    limited."""
    starts_a_minute: int = 300
    """Maximum VMs of one pool that the autoscaler requests in a minute: a cloud answers 20 to 80 calls a second at
    best."""
    vm_hours_per_day: float = 0.0
    """VM-hours in any 24 hours after which the autoscaler starts no more VMs; 0: no limit."""
    vm_hours_per_run: float = 0.0
    """VM-hours of a run's work after which the autoscaler starts no more VMs for that run; 0: no limit."""
