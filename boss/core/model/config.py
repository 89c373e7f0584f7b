"""The numbers the core decides by. Times in seconds. Set once at the start, from the settings."""

from __future__ import annotations

import msgspec

from ecloud.model.tasks import Resources
from ecloud.model.wire import DatastoreAccess


class PoolConfig(msgspec.Struct, frozen=True):
    """VMs of one kind. `size`: what one offers; `order` of preference is the order in `BossConfig.pools`.

    `spillover` pools are used only for tasks that fit no other pool. `idle_s`: how long one may idle before it ends.
    `boot_s`: a guess of the time from asking for one to its worker, until boots were seen. `cloud`: pools of the same
    one share its list of VMs; empty for one that has a cloud to itself. `tells_room`: whether that cloud can be asked
    how many more it would give. `visited`: whether its VMs can be reached by SSH; `gets_code`: whether the boss brings
    them their code that way. `queues`: its cloud queues jobs, perhaps for days: one that it says is pending is waited
    for, and the time to boot counts from when it was pending last.
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


class BossConfig(msgspec.Struct, frozen=True):
    """Everything `Boss` is told besides events."""

    heartbeat_s: float = 5.0
    lease_s: float = 60.0
    lease_margin_s: float = 5.0
    stop_grace_s: float = 10.0
    retry_backoff_s: float = 1.0
    max_lost_workers: int = 3
    """Workers that may be lost while a task runs on them before the task fails; 0: any number."""
    max_tasks_per_push: int = 2_000_000
    max_value_bytes: int = 2**62
    """The longest definition or manifest that the database takes."""
    keep_runs_s: float = 30 * 86400.0
    keep_machines_s: float = 2 * 86400.0
    """VMs and workers that ended are kept for as long as runs, and for this at least: the budget of a day is counted
    from them."""
    datastore: DatastoreAccess = DatastoreAccess("")
    usual_datastore: str = ""
    """Where files are when nobody says where."""
    shell: str = "/bin/sh"
    pools: tuple[PoolConfig, ...] = ()
    worker_settings: dict[str, float] = {}
    transfer_lanes: int = 8
    """Workers that may hold a connection to a datastore over SSH at once: below its sshd's MaxStartups, 10 by default,
    with room for the boss and for people."""
    transfer_bytes: int = 64_000_000_000
    """What they have before them together: who comes first gets its files rather than a share of a full line."""
    ahead_s: float = 0.25
    """Work queued at a worker beyond what runs there: covers round trip, flush and commit (facts: 256 short tasks)."""
    ahead_max: int = 512
    """Attempts queued at a worker at most: twice what a busy one says in a message, so that it never runs dry."""
    array_window: int = 2_000
    """Ready elements without a worker that an array is filled up to, half of them in one batch (about 30 ms)."""
    watch_every_s: float = 0.25
    """Those who watch a run hear of it at most this often."""
    sweep_every_s: float = 600.0
    """How often stages that belong to nobody are looked for."""
    list_vms_every_s: float = 10.0
    list_idle_every_s: float = 60.0
    """While no VM of this cluster is known: what a lost answer left behind shows up in a list only."""
    boot_deadline_s: float = 300.0
    """A VM whose worker has not reported for duty by then is ended."""
    pending_s: float = 120.0
    """A VM that its cloud finds no place for is withdrawn after this: room that is there elsewhere is of more use."""
    adoption_grace_s: float = 90.0
    """How long an intent outlives the last call that may have made its VM: the cloud may work on that call for as long
    as it is given for an answer (30 s), and the list that tells takes as long at worst."""
    orphan_grace_s: float = 120.0
    """How long a VM that shows our cluster and no living intent may be listed before it is ended."""
    starts_under_way: int = 100
    """VMs of one pool that the autoscaler lets be intended or booting at a time. A person is not bound by it."""
    starts_a_minute: int = 300
    """VMs of one pool that the autoscaler asks for in a minute: a cloud answers 20 to 80 calls a second at best."""
    vm_hours_per_day: float = 0.0
    """VM-hours in any 24 hours after which the autoscaler starts none; 0: no limit."""
    vm_hours_per_run: float = 0.0
    """VM-hours of a run's work after which the autoscaler starts none for it; 0: no limit."""
