"""All workers that may hold attempts: by name, by home, by machine.

Keeps machines and the capacity index informed of each change.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from boss.core.model.machine import Machine, machine_key
from boss.core.model.worker import Attempt, MachineKey, Worker
from ecloud.model.tasks import ROUNDING, Resources


class Fleet:
    """All workers that may hold attempts."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        self.by_home: dict[tuple[str, str], Worker] = {}
        """By the key and the name of their homes: the holder of another key has no say in what a home holds."""
        self.held_cpus: dict[int, float] = {}
        self.machines: dict[MachineKey, Machine] = {}
        self.touched: dict[str, None] = {}
        """Workers whose room, or whose leave to take tasks, may have changed since `CapacityIndex.settle`."""
        self.ending: set[str] = set()
        """Workers whose machines end at a known time."""
        self.follow: Callable[[int, int, int, float], None] | None = None
        """Told of attempts that VMs' workers get (1) and are rid of (-1): VM, run, change, when."""

    def add(self, worker: Worker) -> None:
        """A worker joins."""
        self.workers[worker.name] = worker
        self.touched[worker.name] = None
        if worker.row.hello.home:
            self.by_home[(worker.row.key_name, worker.row.hello.home)] = worker
        key = worker.machine_key = machine_key(worker.row.hello)
        if key is not None:
            machine = self.machines.setdefault(key, Machine())
            machine.add(worker)
            self._touch(machine)

    def remove(self, worker: Worker) -> None:
        """A worker leaves. It must hold nothing."""
        assert not worker.held, f"worker {worker.name} still holds attempts"
        self.workers.pop(worker.name, None)
        self.ending.discard(worker.name)
        self.touched[worker.name] = None
        for part in worker.fetched:
            part.holders.pop(worker.name, None)
        if worker.machine_key is not None:
            machine = self.machine_of(worker)
            machine.remove(worker)
            self._touch(machine)
            if not machine.workers:
                del self.machines[worker.machine_key]
        home = (worker.row.key_name, worker.row.hello.home)
        if self.by_home.get(home) is worker:
            del self.by_home[home]

    def set_end(self, worker: Worker, ends_at: float) -> None:
        """Note when the worker's machine ends; infinity if it is not known."""
        worker.ends_at = ends_at
        if ends_at < math.inf:
            self.ending.add(worker.name)
        else:
            self.ending.discard(worker.name)

    def resize(self, worker: Worker, capacity: Resources) -> None:
        """The worker offers something else from now on."""
        worker.resize(capacity)
        self.touched[worker.name] = None
        if worker.machine_key is not None:
            machine = self.machine_of(worker)
            machine.measure()
            self._touch(machine)

    def give(self, worker: Worker, attempt: Attempt) -> None:
        """The worker gets an attempt."""
        worker.take(attempt)
        if worker.shares_machine:
            self._share(worker)
        if self.follow is not None and worker.row.vm_no is not None:
            self.follow(worker.row.vm_no, attempt.run_no, 1, attempt.assigned_at)
        self.touched[worker.name] = None
        self.held_cpus[attempt.run_no] = self.held_cpus.get(attempt.run_no, 0.0) + attempt.shape.weight

    def free(self, worker: Worker, attempt: Attempt, now: float) -> None:
        """The worker holds the attempt no more."""
        worker.release(attempt, now)
        if worker.shares_machine:
            self._share(worker)
        if self.follow is not None and worker.row.vm_no is not None:
            self.follow(worker.row.vm_no, attempt.run_no, -1, now)
        self.touched[worker.name] = None
        left = self.held_cpus.get(attempt.run_no, 0.0) - attempt.shape.weight
        if left > ROUNDING:
            self.held_cpus[attempt.run_no] = left
        else:
            self.held_cpus.pop(attempt.run_no, None)

    def unchain(self, worker: Worker, attempt: Attempt) -> None:
        """What a chained attempt waited for is recorded."""
        worker.unchain(attempt)
        if worker.shares_machine:
            self._share(worker)
        self.touched[worker.name] = None

    def machine_of(self, worker: Worker) -> Machine:
        """The machine that it reported from. It must have reported one."""
        assert worker.machine_key is not None
        return self.machines[worker.machine_key]

    def _share(self, worker: Worker) -> None:
        machine = self.machine_of(worker)
        machine.share()
        self._touch(machine)

    def _touch(self, machine: Machine) -> None:
        self.touched.update(dict.fromkeys(machine.workers))

    def check(self) -> None:
        """Invariants of every worker and machine."""
        for worker in self.workers.values():
            worker.check()
        ending = {name for name, worker in self.workers.items() if worker.ends_at < math.inf}
        assert self.ending == ending, "workers that end are not known"
        for machine in self.machines.values():
            machine.check()
