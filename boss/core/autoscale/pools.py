"""What each pool would give now: bounded by how its boots fared, by our own limits, and by the room that its cloud has.

Owns the pools' health and rooms, and their rows for people. Asks clouds how much room they have; starts nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

import msgspec

from boss.core.autoscale.pool_capacity import PoolCapacity
from boss.core.autoscale.pool_health import PoolHealth
from boss.core.autoscale.scaling import PoolNow
from boss.core.model.config import BossConfig
from boss.core.model.effects import AskRoom
from boss.core.model.events import RoomSeen
from boss.core.model.outbox import Outbox
from boss.core.model.rows import PoolRow, VmRow

COMING = ("intended", "booting")


class Pools:
    """All pools. `closed`, where it is asked for: why nothing starts in any of them, or empty."""

    def __init__(self, outbox: Outbox, config: BossConfig) -> None:
        self._outbox = outbox
        self._config = config
        self.health = {pool.name: PoolHealth(pool, config) for pool in config.pools}
        self.rooms = {pool.name: PoolCapacity(pool.name, pool.tells_room) for pool in config.pools}
        self._told: dict[str, PoolRow] = {}

    # --- questions -------------------------------------------------------------------------------

    def now(self, vms: Collection[VmRow], closed: str, now: float) -> list[PoolNow]:
        """Every pool as it stands, with the VMs that are not gone."""
        counts = Counter(vm.pool for vm in vms)
        coming = Counter(vm.pool for vm in vms if vm.state in COMING)
        return [
            PoolNow(
                pool,
                counts[pool.name],
                self._may_start(pool.name, coming[pool.name], now),
                closed or self.health[pool.name].closed(now),
                self.health[pool.name].boot_s(),
                self.rooms[pool.name].why,
                self._room_bounds(pool.name, coming[pool.name], now),
            )
            for pool in self._config.pools
        ]

    def _may_start(self, pool: str, coming: int, now: float) -> int:
        left = self.rooms[pool].left
        bounds = left is not None and self._room_bounds(pool, coming, now)
        return left if bounds and left is not None else self.health[pool].may_start(coming, now)

    def _room_bounds(self, pool: str, coming: int, now: float) -> bool:
        room = self.rooms[pool]
        below = room.left is not None and room.left < self.health[pool].may_start(coming, now)
        return below and not room.asks_first(now)

    def rows(self, closed: str, now: float) -> list[PoolRow]:
        """How each pool fares, for people."""
        rows = [health.row(now) for health in self.health.values()]
        for row in rows:
            full = self.rooms[row.pool].full(now)
            if (
                full and not closed and not self.health[row.pool].failing
            ):  # says more, and shorter, than the cloud's last no
                row.closed, row.until = full, None
            row.closed = row.closed or closed
        return rows

    def troubles(self, now: float) -> Iterator[str]:
        """Why pools start none, in one sentence each. A pool that is tried with one more VM after its boots failed is
        no better yet."""
        for row in self.rows("", now):
            health = self.health[row.pool]
            why = row.closed or (health.why if health.failing else "")
            if why:
                yield f"pool {row.pool} starts no VM: {why}"

    def free_again_at(self, now: float) -> Iterator[float]:
        """When time alone lets more start."""
        for health in self.health.values():
            at = health.free_again_at(now)
            if at is not None:
                yield at
        for room in self.rooms.values():
            if room.left == 0 and not room.is_asked(now) and room.holds_until > now:
                yield room.holds_until

    def too_little_room(self, pool: str, count: int, now: float) -> str:
        """Why a cloud would not give so many, by its last word; empty where that is not known."""
        room = self.rooms[pool]
        return room.why if room.left is not None and room.left < count and not room.asks_first(now) else ""

    # --- what is done ----------------------------------------------------------------------------

    def asks_room_first(self, pool: str, vms: Collection[VmRow], now: float) -> bool:
        """Whether a start waits for the cloud's word on how many more it would give; it is asked for it then."""
        room = self.rooms[pool]
        if not room.asks_first(now):
            return False
        if not room.is_asked(now):
            room.on_ask(sum(1 for vm in vms if vm.pool == pool and vm.state == "intended"), now)
            self._outbox.call(AskRoom(pool))
        return True

    def look_for_room(self, vms: Collection[VmRow], now: float) -> None:
        """Ask clouds that refused what a person asked for whether they are still full, so that people are told what is
        so. Once a wave is over: each of its refusals would ask."""
        for name, room in self.rooms.items():
            if room.refused and not any(vm.pool == name and vm.state == "intended" for vm in vms):
                self.asks_room_first(name, vms, now)

    def tell(self, closed: str, now: float) -> None:
        """Write the rows that changed."""
        for row in self.rows(closed, now):
            if row.closed and row.since is None:  # a reason that is not the pool's own begins when it is first seen
                told = self._told.get(row.pool)
                row.since = told.since if told is not None and told.closed == row.closed else now
            if self._told.get(row.pool) != row:
                self._told[row.pool] = row
                self._outbox.writes.pools[row.pool] = msgspec.structs.replace(row)

    # --- facts -----------------------------------------------------------------------------------

    def on_room(self, seen: RoomSeen, now: float) -> None:
        """How many more VMs the pool's cloud would give."""
        if seen.pool in self.rooms:
            self.rooms[seen.pool].on_seen(seen.vms, seen.reason, now)

    def on_gone(self, vm: VmRow) -> None:
        """A VM that was there is gone: where there was no room, there may be some."""
        if vm.cloud_id and vm.pool in self.rooms and self.rooms[vm.pool].left == 0:
            self.rooms[vm.pool].forget()
