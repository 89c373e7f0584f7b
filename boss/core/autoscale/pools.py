"""What each pool may start now: limited by its boots, by the boss's own limits, and by the room in its cloud.

Owns the pools' health, capacity and queues, and their rows in the database. Asks clouds how many VMs they offer; starts
none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import msgspec

from boss.core.autoscale.held_pools import HeldPools
from boss.core.autoscale.pool_capacity import PoolCapacity
from boss.core.autoscale.pool_health import PoolHealth
from boss.core.autoscale.pool_queue import PoolQueue
from boss.core.autoscale.scaling import PoolNow
from boss.core.model.config import BossConfig
from boss.core.model.effects import AskRoom
from boss.core.model.events import RoomSeen
from boss.core.model.outbox import Outbox
from boss.core.model.rows import PoolRow, VmRow
from ecloud.model.vm_states import COMING, VmState


class Pools:
    """All pools. The parameter `closed` of its methods: why no pool may start a VM, or empty."""

    def __init__(self, outbox: Outbox, config: BossConfig, context: Mapping[str, str]) -> None:
        self._outbox = outbox
        self._config = config
        self.configs = {pool.name: pool for pool in config.pools}
        self.health = {pool.name: PoolHealth(pool, config) for pool in config.pools}
        self.queues = {pool.name: PoolQueue(pool.name, pool.boot_s) for pool in config.pools}
        self.capacity = {pool.name: PoolCapacity(pool.name, pool.tells_room) for pool in config.pools}
        self.held = HeldPools(outbox, context)
        self.away: dict[str, str] = {}
        """Why a pool's cloud cannot list its VMs; empty if it can."""
        self._told: dict[str, PoolRow] = {}

    # --- questions -------------------------------------------------------------------------------

    def now(self, vms: Collection[VmRow], closed: str, now: float) -> list[PoolNow]:
        """The state of every pool, with its VMs that are not gone."""
        counts = Counter(vm.pool for vm in vms)
        coming = Counter(vm.pool for vm in vms if vm.state in COMING)
        return [
            PoolNow(
                pool,
                counts[pool.name],
                self._may_start(pool.name, coming[pool.name], now),
                self.held.why(pool.name) or closed or self.health[pool.name].closed(now),
                self.health[pool.name].boot_s(),
                self._why_bounded(pool.name, now),
                self._is_bounded(pool.name, coming[pool.name], now),
                self.health[pool.name].lives_s,
            )
            for pool in self._config.pools
        ]

    def _may_start(self, pool: str, coming: int, now: float) -> int:
        left = self.capacity[pool].left
        may = self.health[pool].may_start(coming, now)
        if left is not None and self._room_bounds(pool, coming, now):
            may = left
        may_wait = self.queues[pool].may_wait(now)
        return may if may_wait is None else min(may, may_wait)

    def _room_bounds(self, pool: str, coming: int, now: float) -> bool:
        room = self.capacity[pool]
        below = room.left is not None and room.left < self.health[pool].may_start(coming, now)
        return below and not room.asks_first(now)

    def _is_bounded(self, pool: str, coming: int, now: float) -> bool:
        return self.queues[pool].may_wait(now) == 0 or self._room_bounds(pool, coming, now)

    def _why_bounded(self, pool: str, now: float) -> str:
        """What limits the pool most, in words: its cloud's queue or room."""
        queue = self.queues[pool]
        return queue.why(now) if queue.may_wait(now) == 0 else self.capacity[pool].why

    def rows(self, closed: str, now: float) -> list[PoolRow]:
        """The row of each pool, for the database."""
        rows = [health.row(now) for health in self.health.values()]
        for row in rows:
            full = self.capacity[row.pool].full(now)
            if (
                full and not closed and not self.health[row.pool].failing
            ):  # clearer and shorter than the cloud's last refusal
                row.closed, row.until = full, None
            row.closed = row.closed or self.away.get(row.pool, "") or closed
            if row.pool in self.held:  # the operator's reason is the one that lasts
                row.closed, row.since, row.until = self.held.why(row.pool), self.held.since(row.pool), None
        return rows

    def troubles(self, now: float) -> Iterator[str]:
        """Why pools start no VM, one sentence each. A pool that tests one VM after failed boots is still in trouble."""
        for row in self.rows("", now):
            health = self.health[row.pool]
            why = row.closed or (health.why if health.failing else "")
            if why:
                yield f"pool {row.pool} starts no VM: {why}"

    def free_again_at(self, now: float) -> Iterator[float]:
        """When time limits allow the next starts."""
        for health in self.health.values():
            at = health.free_again_at(now)
            if at is not None:
                yield at
        for room in self.capacity.values():
            if room.left == 0 and not room.is_asked(now) and room.holds_until > now:
                yield room.holds_until

    def too_little_room(self, pool: str, count: int, now: float) -> str:
        """Why a cloud has no room for this many VMs, by its last answer; empty if unknown."""
        room = self.capacity[pool]
        return room.why if room.left is not None and room.left < count and not room.asks_first(now) else ""

    # --- actions ---------------------------------------------------------------------------------

    def asks_room_first(self, pool: str, vms: Collection[VmRow], now: float) -> bool:
        """Whether a start must wait for the cloud's answer about its room. Sends the question if needed."""
        room = self.capacity[pool]
        if not room.asks_first(now):
            return False
        if not room.is_asked(now):
            room.on_ask(sum(1 for vm in vms if vm.pool == pool and vm.state is VmState.INTENDED), now)
            self._outbox.call(AskRoom(pool))
        return True

    def look_for_room(self, vms: Collection[VmRow], now: float) -> None:
        """Ask clouds that refused an operator's request whether they are still full, so that the reported reason is
        current. Asks once after a wave of requests ended, not for each refusal."""
        for name, room in self.capacity.items():
            if room.refused and not any(vm.pool == name and vm.state is VmState.INTENDED for vm in vms):
                self.asks_room_first(name, vms, now)

    def tell(self, closed: str, now: float) -> None:
        """Write the rows that changed."""
        for row in self.rows(closed, now):
            if row.closed and row.since is None:  # a reason from outside the pool begins when it is first seen
                told = self._told.get(row.pool)
                row.since = told.since if told is not None and told.closed == row.closed else now
            if self._told.get(row.pool) != row:
                self._told[row.pool] = row
                self._outbox.writes.pools[row.pool] = msgspec.structs.replace(row)

    # --- facts -----------------------------------------------------------------------------------

    def on_room(self, seen: RoomSeen, now: float) -> None:
        """Take the cloud's answer: how many more VMs it offers."""
        if seen.pool in self.capacity:
            self.capacity[seen.pool].on_seen(seen.vms, seen.reason, now)

    def on_start(self, pool: str, count: int) -> None:
        """This many VMs were requested."""
        self.capacity[pool].on_start(count)
        self.queues[pool].on_start(count)

    def on_placed(self, pool: str, now: float) -> None:
        """The cloud found a host for a VM."""
        if pool in self.queues:
            self.queues[pool].on_placed(now)

    def on_booted(self, pool: str, boot_s: float, placed_s: float, lives_s: float) -> None:
        """A worker reported this long after its VM was requested, and after it was placed. It ends in `lives_s`."""
        if pool in self.health:
            self.health[pool].on_booted(boot_s, lives_s)
            self.queues[pool].on_booted(placed_s)

    def on_gone(self, vm: VmRow) -> None:
        """A VM is gone: a full cloud may have room again."""
        if vm.cloud_id and vm.pool in self.capacity and self.capacity[vm.pool].left == 0:
            self.capacity[vm.pool].forget()
