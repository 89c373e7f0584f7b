"""An index of workers by their free resources, so that placement checks only workers with room.

A `FreeGroup` holds workers of equal capacity with equal free amounts. `Fleet.touched` names the workers whose free
amounts may have changed; `settle` moves only these. Decides nothing: `placement` does.
"""

from __future__ import annotations

import msgspec

from boss.core.model.config import BossConfig
from boss.core.model.fleet import Fleet
from boss.core.model.graph import Shape
from boss.core.model.worker import Worker, how_many
from ecloud.model.tasks import Resources

_USUAL = frozenset({"cpus", "memory_mb"})
REFILLED_BELOW = 0.75
"""The queue ahead is refilled when it holds less than this share of `ahead_s`: several tasks together, since each order
to a worker costs a database write and a message."""
_EXACT = 1e6
"""Amounts are sums of decimal fractions: a smaller difference than one part in this is rounding."""


class WorkerKind(msgspec.Struct, eq=False):
    """Workers with the same capacity. `rare`: resources that not every worker has. `hungry`: workers whose queue ahead
    has room."""

    key: tuple[tuple[str, float], ...]
    capacity: Resources
    rare: frozenset[str]
    hungry: dict[str, Worker]
    workers: int = 0


class FreeGroup(msgspec.Struct, eq=False):
    """Workers of one kind with the same free amounts, in order of arrival."""

    kind: WorkerKind
    key: tuple[object, ...]
    free: Resources
    cpus: float
    workers: dict[str, Worker]


class CapacityIndex:
    """All workers that take tasks. Valid after `settle`; does not change while tasks are placed."""

    def __init__(self, fleet: Fleet, config: BossConfig) -> None:
        self._fleet = fleet
        self._config = config
        self._kinds: dict[tuple[tuple[str, float], ...], WorkerKind] = {}
        self._groups: dict[tuple[object, ...], FreeGroup] = {}
        self._group_of: dict[str, FreeGroup] = {}

    @property
    def groups(self) -> list[FreeGroup]:
        """Groups with at least one worker."""
        return list(self._groups.values())

    @property
    def kinds(self) -> list[WorkerKind]:
        """Kinds of the present workers."""
        return list(self._kinds.values())

    def side_by_side(self, shape: Shape) -> int:
        """How many tasks of `shape` all workers could run at the same time if they were empty, at most `ahead_max`
        each."""
        most = self._config.ahead_max
        return sum([kind.workers * how_many(kind.capacity, shape, most) for kind in self._kinds.values()])

    def rare_at(self, worker: str) -> frozenset[str] | None:
        """Resources of this worker that not every worker has; None if it takes no tasks."""
        free_group = self._group_of.get(worker)
        return None if free_group is None else free_group.kind.rare

    def settle(self) -> None:
        """Move workers whose free amounts changed to their groups."""
        touched, self._fleet.touched = self._fleet.touched, {}
        for name in touched:
            old = self._group_of.get(name)
            worker = self._fleet.workers.get(name)
            if worker is None or not worker.takes_tasks:
                if old is not None:
                    self._take_off(name, old)
                continue
            # A worker that registered again under its name is another object and may have other resources.
            kind = old.kind if old is not None and old.workers[name] is worker else self._kind(worker)
            key = (id(kind), *[int(amount * _EXACT + 0.5) for amount in worker.free.values()])
            if old is None or old.key != key or old.workers[name] is not worker:
                if old is not None:
                    self._take_off(name, old)
                self._put_on(name, worker, self._kinds.setdefault(kind.key, kind), key)
            if self._is_hungry(worker):
                kind.hungry[name] = worker
            else:
                kind.hungry.pop(name, None)

    def _kind(self, worker: Worker) -> WorkerKind:
        key = tuple(worker.capacity.items())
        kind = self._kinds.get(key)
        if kind is None:
            rare = frozenset(name for name, amount in key if amount and name not in _USUAL)
            kind = self._kinds[key] = WorkerKind(key, dict(worker.capacity), rare, {})
        return kind

    def _put_on(self, name: str, worker: Worker, kind: WorkerKind, key: tuple[object, ...]) -> None:
        free_group = self._groups.get(key)
        if free_group is None:
            free_group = self._groups[key] = FreeGroup(kind, key, dict(worker.free), worker.free.get("cpus", 0.0), {})
        free_group.workers[name] = worker
        kind.workers += 1
        self._group_of[name] = free_group

    def _take_off(self, name: str, free_group: FreeGroup) -> None:
        del free_group.workers[name], self._group_of[name]
        kind = free_group.kind
        kind.hungry.pop(name, None)
        kind.workers -= 1
        if not kind.workers:
            self._kinds.pop(kind.key, None)
        if not free_group.workers:
            del self._groups[free_group.key]

    def _is_hungry(self, worker: Worker) -> bool:
        """Whether a short task may be queued at the worker beyond what runs."""
        config = self._config
        has_room = worker.ahead_s < REFILLED_BELOW * config.ahead_s and worker.waiting < config.ahead_max
        return has_room and not worker.slow and not worker.alone and not worker.shares_machine

    def check(self) -> None:
        """Invariants, valid when nothing was touched since `settle`: each worker that takes tasks is in its group, and
        no other worker is in any."""
        there = {name: worker for name, worker in self._fleet.workers.items() if worker.takes_tasks}
        for name, worker in there.items():
            if name not in self._fleet.touched:
                free_group = self._group_of[name]
                assert free_group.workers[name] is worker
                for what, amount in worker.free.items():
                    assert abs(free_group.free[what] - amount) < 0.001, f"{name} lies in the wrong group"
                assert (name in free_group.kind.hungry) == self._is_hungry(worker), f"{name}: its hunger is not known"
        assert not self._group_of.keys() - there.keys() - self._fleet.touched.keys(), (
            "the index holds workers that take no tasks"
        )
