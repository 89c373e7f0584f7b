"""Workers by what is free at them, so that placing looks at those that have room and not at all there are.

A shelf holds workers of one capacity with the same amounts free. `Fleet.touched` names the workers whose room may have
changed; `settle` puts only these where they belong. Decides nothing: `placement` does.
"""

from __future__ import annotations

import msgspec

from boss.core.model.config import BossConfig
from boss.core.model.fleet import Fleet, Worker, how_many
from boss.core.model.graph import Shape
from ecloud.model.tasks import Resources

_USUAL = frozenset({"cpus", "memory_mb"})
REFILLED_BELOW = 0.75
"""Part of `ahead_s` below which more is queued ahead: some at once, not one for each that ends, since every order to a
worker costs a look into the database and a message."""
_EXACT = 1e6
"""Amounts are sums of decimal fractions: what differs by less than a part of this is the same."""


class WorkerKind(msgspec.Struct, eq=False):
    """Workers that offer the same. `rare`: what not every worker has. `hungry`: those whose queue ahead has room."""

    key: tuple[tuple[str, float], ...]
    capacity: Resources
    rare: frozenset[str]
    hungry: dict[str, Worker]
    workers: int = 0


class FreeGroup(msgspec.Struct, eq=False):
    """Workers of one kind with the same amounts free, who came first is first."""

    kind: WorkerKind
    key: tuple[object, ...]
    free: Resources
    cpus: float
    workers: dict[str, Worker]


class CapacityIndex:
    """All workers that take tasks. Right after `settle`; it does not change while tasks are placed."""

    def __init__(self, fleet: Fleet, config: BossConfig) -> None:
        self._fleet = fleet
        self._config = config
        self._kinds: dict[tuple[tuple[str, float], ...], WorkerKind] = {}
        self._shelves: dict[tuple[object, ...], FreeGroup] = {}
        self._shelf_of: dict[str, FreeGroup] = {}

    @property
    def all(self) -> list[FreeGroup]:
        """Those with somebody on them."""
        return list(self._shelves.values())

    @property
    def kinds(self) -> list[WorkerKind]:
        """Of the workers there are."""
        return list(self._kinds.values())

    def side_by_side(self, shape: Shape) -> int:
        """How many tasks of `shape` all workers could run at once, were they empty; `ahead_max` at most each."""
        most = self._config.ahead_max
        return sum([kind.workers * how_many(kind.capacity, shape, most) for kind in self._kinds.values()])

    def rare_at(self, worker: str) -> frozenset[str] | None:
        """What this worker offers and not every one does; None where it takes no tasks."""
        shelf = self._shelf_of.get(worker)
        return None if shelf is None else shelf.kind.rare

    def settle(self) -> None:
        """Put those whose room changed where they belong now."""
        touched, self._fleet.touched = self._fleet.touched, {}
        for name in touched:
            old = self._shelf_of.get(name)
            worker = self._fleet.workers.get(name)
            if worker is None or not worker.takes_tasks:
                if old is not None:
                    self._take_off(name, old)
                continue
            # A worker that said Hello anew under its name is another object, and may offer something else.
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
        shelf = self._shelves.get(key)
        if shelf is None:
            shelf = self._shelves[key] = FreeGroup(kind, key, dict(worker.free), worker.free.get("cpus", 0.0), {})
        shelf.workers[name] = worker
        kind.workers += 1
        self._shelf_of[name] = shelf

    def _take_off(self, name: str, shelf: FreeGroup) -> None:
        del shelf.workers[name], self._shelf_of[name]
        kind = shelf.kind
        kind.hungry.pop(name, None)
        kind.workers -= 1
        if not kind.workers:
            self._kinds.pop(kind.key, None)
        if not shelf.workers:
            del self._shelves[shelf.key]

    def _is_hungry(self, worker: Worker) -> bool:
        """Whether anything short may be queued at it beyond what runs."""
        config = self._config
        has_room = worker.ahead_s < REFILLED_BELOW * config.ahead_s and len(worker.ahead) < config.ahead_max
        return has_room and not worker.slow

    def check(self) -> None:
        """Invariants, where nobody was touched since: each worker that takes tasks is where it belongs, and nobody
        else is anywhere."""
        there = {name: worker for name, worker in self._fleet.workers.items() if worker.takes_tasks}
        for name, worker in there.items():
            if name not in self._fleet.touched:
                shelf = self._shelf_of[name]
                assert shelf.workers[name] is worker
                for what, amount in worker.free.items():
                    assert abs(shelf.free[what] - amount) < 0.001, f"{name} lies on the wrong shelf"
                assert (name in shelf.kind.hungry) == self._is_hungry(worker), f"{name}: its hunger is not known"
        assert not self._shelf_of.keys() - there.keys() - self._fleet.touched.keys(), "shelves hold who takes nothing"
