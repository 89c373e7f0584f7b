"""When each cloud is asked for its list of VMs: regularly, and earlier if a VM was requested or should end.

Owns the timer and which VMs a list is compared with. `VmLists` processes the answers.
"""

from __future__ import annotations

from collections.abc import Mapping

from boss.core.autoscale.orphans import Orphans
from boss.core.autoscale.pools import Pools
from boss.core.autoscale.vm import Vm
from boss.core.model.config import BossConfig
from boss.core.model.effects import ListVms
from boss.core.model.outbox import Outbox
from boss.core.model.timers import Timers


class ListRequests:
    """Requests of lists. `alive`: all VMs that are not gone, by number."""

    def __init__(
        self,
        outbox: Outbox,
        timers: Timers,
        config: BossConfig,
        pools: Pools,
        alive: Mapping[int, Vm],
        orphans: Orphans,
    ) -> None:
        self._outbox = outbox
        self._timers = timers
        self._config = config
        self._pools = pools
        self._alive = alive
        self._orphans = orphans

    def no_later(self, when: float) -> None:
        """Ask every cloud for its list at this time at the latest, and regularly afterwards."""
        if self._config.pools:
            self._timers.once("list of VMs", when, self._list)

    def _list(self, now: float) -> None:
        known: dict[str, dict[str, int]] = {}
        lost: dict[str, dict[int, str]] = {}
        for vm in self._alive.values():
            cloud = self.cloud_of(vm.listed_by)
            if vm.row.cloud_id:
                known.setdefault(cloud, {})[vm.row.cloud_id] = vm.vm_no
            elif self.is_lost(vm, now):
                lost.setdefault(cloud, {})[vm.vm_no] = vm.row.boot_nonce
        for cloud, pool in {self.cloud_of(pool.name): pool.name for pool in self._config.pools}.items():
            asked = self._orphans.known(cloud) | known.get(cloud, {})
            self._outbox.call(ListVms(pool, asked, lost.get(cloud, {})))
        busy = self._alive or self._orphans.any
        self.no_later(now + (self._config.list_vms_every_s if busy else self._config.list_idle_every_s))

    def cloud_of(self, pool: str) -> str:
        """A name for the cloud that lists a pool's VMs."""
        config = self._pools.configs.get(pool)
        return config.cloud if config is not None and config.cloud else f"pool {pool}"

    def is_lost(self, vm: Vm, now: float) -> bool:
        """Whether the call that made the VM ended long enough ago that the VM would be listed by now."""
        return vm.called_at is not None and now - vm.called_at > self._config.adoption_grace_s

    def on_failed(self, pool: str, reason: str) -> None:
        """A pool's cloud cannot list its VMs: report this for all pools of that cloud."""
        self.tell_away(self.cloud_of(pool), reason)

    def tell_away(self, cloud: str, reason: str) -> None:
        """Note why a cloud does not answer, for all its pools; "" if it does."""
        for pool in self._config.pools:
            if self.cloud_of(pool.name) == cloud:
                self._pools.away[pool.name] = reason
