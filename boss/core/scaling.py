"""How many VMs there should be: a pure function of what is ready, what is there, and what pools allow.

Recomputed from the whole state each time, never a counter that could drift.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from boss.core.config import PoolConfig
from boss.core.fleet import how_many
from boss.core.graph import Shape
from ecloud.tasks import Resources


class Demand(msgspec.Struct, frozen=True):
    """`count` ready tasks of one shape that no worker has taken."""

    shape: Shape
    count: int


class Plan(msgspec.Struct):
    """VMs to start, per pool in order, each with its reason; `unmet` shapes fit no pool at all."""

    starts: list[tuple[str, str]] = msgspec.field(default_factory=list)
    unmet: list[Shape] = msgspec.field(default_factory=list)


def plan(
    demands: Iterable[Demand],
    rooms: Sequence[Resources],
    pools: Sequence[PoolConfig],
    alive: dict[str, int],
) -> Plan:
    """Place the demand on `rooms` (free resources of workers, and VMs that boot), then on imaginary VMs of each pool.

    `alive`: VMs per pool that are not gone. Pools are tried in order; a spillover pool only for what fits no other.
    """
    result = Plan()
    rooms = [dict(room) for room in rooms]
    counts = dict(alive)
    for pool in pools:
        missing = pool.minimum - counts.get(pool.name, 0)
        for _ in range(missing):
            rooms.append(dict(pool.size))
            result.starts.append((pool.name, f"pool {pool.name} is below its minimum of {pool.minimum}"))
        counts[pool.name] = counts.get(pool.name, 0) + max(0, missing)
    for demand in demands:
        left = demand.count
        for room in rooms:
            if left:
                left -= _fill(room, demand.shape, left)
        fitting = [pool for pool in pools if how_many(pool.size, demand.shape, 1)]
        if not fitting:
            result.unmet.append(demand.shape)
            continue
        usual = [pool for pool in fitting if not pool.spillover] or fitting
        for pool in usual:
            while left and counts.get(pool.name, 0) < pool.maximum:
                room = dict(pool.size)
                taken = _fill(room, demand.shape, left)
                left -= taken
                rooms.append(room)
                counts[pool.name] = counts.get(pool.name, 0) + 1
                result.starts.append((pool.name, f"{demand.count} ready tasks wait for {describe(demand.shape)}"))
    return result


def _fill(room: Resources, shape: Shape, count: int) -> int:
    taken = how_many(room, shape, count)
    if taken:
        for name, amount in shape.asks:
            room[name] -= amount * taken
    return taken


def describe(shape: Shape) -> str:
    """A shape in words: "2 cpus, 1 gpus"."""
    return ", ".join(f"{amount:g} {name}" for name, amount in shape.asks) or "nothing"
