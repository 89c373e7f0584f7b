"""The numbers the core decides by. Times in seconds. Set once at the start, from the settings."""

from __future__ import annotations

import msgspec

from ecloud.tasks import Resources
from ecloud.wire import DatastoreAccess


class PoolConfig(msgspec.Struct, frozen=True):
    """VMs of one kind. `size`: what one offers; `order` of preference is the order in `BossConfig.pools`.

    `spillover` pools are used only for tasks that fit no other pool. `idle_s`: how long one may idle before it ends.
    """

    name: str
    size: Resources
    minimum: int = 0
    maximum: int = 0
    labels: tuple[str, ...] = ()
    idle_s: float = 60.0
    spillover: bool = False


class BossConfig(msgspec.Struct, frozen=True):
    """Everything `Boss` is told besides events."""

    heartbeat_s: float = 5.0
    lease_s: float = 60.0
    lease_margin_s: float = 5.0
    stop_grace_s: float = 10.0
    retry_backoff_s: float = 1.0
    max_tasks_per_push: int = 2_000_000
    keep_runs_s: float = 30 * 86400.0
    datastore: DatastoreAccess = DatastoreAccess("")
    shell: str = "/bin/sh"
    pools: tuple[PoolConfig, ...] = ()
    worker_settings: dict[str, float] = {}
    ahead_s: float = 0.25
    """Work queued at a worker beyond what runs there: covers round trip, flush and commit (facts: 256 short tasks)."""
    ahead_max: int = 256
    watch_every_s: float = 0.25
    """Those who watch a run hear of it at most this often."""
    sweep_every_s: float = 600.0
    """How often stages that belong to nobody are looked for."""
    list_vms_every_s: float = 10.0
