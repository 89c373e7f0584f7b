"""A machine that several workers share: what it has is promised once, whatever pools the workers belong to.

A machine limits placement only while its workers together offer more than it has; else it costs nothing. Owns no
worker. Workers of one machine have the same boot id, machine id and part of the machine in their Hello (a part is a
control group, an affinity mask or a batch job that limits a process).
"""

from __future__ import annotations

from boss.core.model.worker import MachineKey, Worker
from ecloud.model.tasks import ROUNDING, Resources
from ecloud.model.wire import Hello


def machine_key(hello: Hello) -> MachineKey | None:
    """Which machine a worker is on; None where it does not say."""
    if not hello.boot_id or not hello.machine_has:
        return None
    return (hello.boot_id, hello.machine, hello.machine_part)


class Machine:
    """Workers by name, and what they share. `is_shared`: together they offer more than the machine has."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        self.has: Resources = {}
        self.is_shared = False

    def add(self, worker: Worker) -> None:
        """One more worker reports from there."""
        self.workers[worker.name] = worker
        self.measure()

    def remove(self, worker: Worker) -> None:
        """The worker is gone."""
        if self.workers.pop(worker.name, None) is not None:
            worker.shares_machine, worker.free = False, worker.own
            self.measure()

    def measure(self) -> None:
        """Count what is there and what its workers offer, of the amounts that each says it shares."""
        has: Resources = {}
        offered: Resources = {}
        for worker in self.workers.values():
            for name, amount in worker.row.hello.machine_has.items():
                offer = worker.capacity.get(name, 0.0)
                # A worker that was told to offer more than was measured is believed: a person knows better.
                has[name] = max(has.get(name, 0.0), amount, offer)
                offered[name] = offered.get(name, 0.0) + offer
        self.has = has
        self.is_shared = any(offered[name] > amount + ROUNDING for name, amount in has.items())
        for worker in self.workers.values():
            worker.shares_machine = self.is_shared
            worker.free = worker.own
        if self.is_shared:
            self.share()

    def share(self) -> None:
        """After any of its workers got or lost an attempt: none has more room than the machine has left."""
        held = {name: _held(worker) for name, worker in self.workers.items()}
        left = dict(self.has)
        for amounts in held.values():
            for what, amount in amounts.items():
                left[what] -= amount
        for name, worker in self.workers.items():
            free = dict(worker.own)
            for what, amount in held[name].items():
                if what in free:
                    free[what] = _room(what, free[what], left[what], worker.capacity[what] - amount)
            worker.free = free

    def check(self) -> None:
        """Invariants: no worker has more room than of its own, and what is free is up to date."""
        found = {name: worker.free for name, worker in self.workers.items()}
        if self.is_shared:
            self.share()
        for name, worker in self.workers.items():
            assert worker.shares_machine == self.is_shared, f"{name}: its machine is not known"
            for what, amount in worker.own.items():
                assert found[name][what] <= amount + ROUNDING, f"{name} has more {what} free than of its own"
                assert abs(found[name][what] - worker.free[what]) < 0.001, f"{name}: {what} of its machine is not known"


def _held(worker: Worker) -> Resources:
    """What a worker may use now of what it shares. It starts what is queued there without asking: then that is all it
    has. The same holds while it runs an init task, for which no room is kept. Which GPUs it uses only the worker
    knows: with one of them, all of its own count."""
    shared = worker.row.hello.machine_has
    if worker.ahead or worker.chained or any(attempt.init for attempt in worker.held.values()):
        return {what: worker.capacity.get(what, 0.0) for what in shared}
    held = {what: worker.capacity.get(what, 0.0) - worker.own.get(what, 0.0) for what in shared}
    if held.get("gpus", 0.0) > ROUNDING:
        held["gpus"] = worker.capacity["gpus"]
    return held


def _room(what: str, own: float, left: float, not_held: float) -> float:
    """What of `own` may be given out, with `left` of the machine. GPUs are given to a worker only if all of its own
    are free of other workers, which may have the same ones."""
    if what == "gpus":
        return own if left + ROUNDING >= not_held else min(own, 0.0)
    return min(own, max(0.0, left))
