"""ECLOUD's scaling rule compared with a fixed fleet and with queue depth, by simulation: makespan and VM-hours.

    python -m bench.scaling [TASK LIST…]

The real boss decides; workers, the cloud and time are simulated, without faults. Task lists are read as by
`push_tasks.py` (WfCommons files with their recorded run times); generated graphs are measured in addition.
"""

from __future__ import annotations

import heapq
import itertools
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from boss.core.autoscale.scaling import End, FleetSnapshot, Plan, Start, plan
from boss.core.boss import Boss
from boss.core.model.cloud_vms import VmFound
from boss.core.model.config import BossConfig, PoolConfig
from boss.core.model.effects import EndVm, ListVms, LoadRun, StartVm
from boss.core.model.events import Event, MessageArrived, RunLoaded, VmsListed, VmStarted
from boss.core.model.worker import how_many
from ecloud.formats import ReadOptions, read_task_list
from ecloud.model import wire
from ecloud.model.tasks import Cause, Dependency, Outcome, TaskDefinition
from ecloud.model.wire import AttemptName, Envelope
from sim.store import Store

Rule = Callable[[FleetSnapshot], Plan]
MAXIMUM = 64
IDLE_S = 60.0
CLOUD_S = 1.0
BOOTS_S = (30.0, 94.0, 300.0)
FLEETS = (1, 2, 4, 8, 16, 32, 64)
QUIET_S = 1e9


class Guest:
    """One VM and its worker: runs its attempts in order, as far as they fit."""

    def __init__(self, vm_no: int, nonce: str, cpus: float, born: float) -> None:
        self.vm_no, self.nonce, self.cpus, self.free, self.born = vm_no, nonce, cpus, cpus, born
        self.name = f"w{vm_no}"
        self.session, self.number = "", 0
        self.queue: list[wire.AttemptOrder] = []
        self.running = 0
        self.leaving = self.gone = False


class Bench:
    """One run of one graph with one rule."""

    def __init__(self, tasks: list[TaskDefinition], rule: Rule, boot_s: float, fleet: int, guessed: bool) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._runtimes = {task.id: task.runtime_s or 1.0 for task in tasks}
        self._boot_s = boot_s
        self._random = random.Random(7)
        self._guests: dict[int, Guest] = {}
        self._left = len(tasks)
        self.vm_s = 0.0
        self.makespan_s = 0.0
        pool = PoolConfig(
            "p", {"cpus": 1.0, "memory_mb": 1e6}, minimum=fleet, maximum=fleet or MAXIMUM, idle_s=IDLE_S, boot_s=60.0
        )
        config = BossConfig(heartbeat_s=QUIET_S, lease_s=2 * QUIET_S, pools=(pool,), boot_deadline_s=3600.0)
        store = Store()
        store.lead("bench", 0.0, replace=True)
        self._boss = Boss(store.load(), config, 0.0)
        self._boss.autoscaler.rule = rule
        self._boss.vms.pools.health["p"].learn(1.1 * boot_s)  # a pool that was used before
        self._ids: dict[int, str] = {}
        self._push([task if guessed else msgspec.structs.replace(task, runtime_s=None) for task in tasks])

    def run(self) -> tuple[float, float]:
        """Return (makespan, VM-hours). A fixed fleet ends with its last task."""
        while self._left:
            deadline = self._boss.next_deadline()
            if self._heap and (deadline is None or self._heap[0][0] <= deadline):
                self.now, _, action = heapq.heappop(self._heap)
                action()
            else:
                assert deadline is not None
                self.now = max(self.now, deadline)
                self._tell()
        self.makespan_s = self.now
        fixed = self._boss.config.pools[0].minimum
        until = self.now + (0.0 if fixed else 10 * IDLE_S)
        while not fixed and self._guests and self.now < until:
            deadline = self._boss.next_deadline() or until
            if self._heap and self._heap[0][0] <= deadline:
                self.now, _, action = heapq.heappop(self._heap)
                action()
            else:
                self.now = max(self.now, deadline)
                self._tell()
        self.vm_s += sum(self.now - guest.born for guest in self._guests.values())
        return self.makespan_s, self.vm_s / 3600

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + seconds, next(self._sequence), action))

    # --- the boss --------------------------------------------------------------------------------

    def _tell(self, *events: Event) -> None:
        effects = self._boss.handle(list(events), self.now)
        for stored in effects.writes.stored:
            self._ids[stored.row.task_no] = stored.row.id
        for send in effects.sends:
            self._hear(send.envelope)
        for call in effects.calls:
            self._call(call)
        for read in effects.reads:
            if isinstance(read, LoadRun):
                self._tell(RunLoaded(read.token, None))

    def _say(self, peer: str, session: str, number: int, message: wire.Message, key: str) -> None:
        self._tell(MessageArrived(Envelope(wire.PROTOCOL_VERSION, peer, session, number, message), key))

    def _push(self, tasks: list[TaskDefinition]) -> None:
        self._client = ""
        self._say("c", "", 0, wire.Hello(nonce="c", kind="client"), "client")
        self._say("c", self._client, 1, wire.Heartbeat(0), "client")
        self._say("c", self._client, 2, wire.SubmitTasks("p", 0, 1, wire.PushOptions(run="r"), tuple(tasks)), "client")

    def _call(self, call: object) -> None:
        if isinstance(call, StartVm):
            guest = Guest(call.vm_no, call.boot_nonce, call.size["cpus"], self.now)
            self._guests[call.vm_no] = guest
            self._after(CLOUD_S, lambda: self._tell(VmStarted(guest.vm_no, f"cloud-{guest.vm_no}")))
            self._after(self._boot_s * self._random.uniform(0.9, 1.3), lambda: self._boot(guest))
        elif isinstance(call, EndVm):
            self._after(CLOUD_S, lambda: self._end(call.vm_no))
        elif isinstance(call, ListVms):
            self._after(CLOUD_S, self._list)

    def _list(self) -> None:
        self._tell(VmsListed("p", tuple(VmFound(vm_no, f"cloud-{vm_no}") for vm_no in self._guests)))

    def _end(self, vm_no: int) -> None:
        guest = self._guests.pop(vm_no, None)
        if guest is not None:
            guest.gone = True
            self.vm_s += self.now - guest.born

    # --- workers ---------------------------------------------------------------------------------

    def _boot(self, guest: Guest) -> None:
        if guest.gone:
            return
        hello = wire.Hello(
            guest.name, "worker", resources={"cpus": guest.cpus, "memory_mb": 1e6}, boot_nonce=guest.nonce, vm="v",
            home=guest.name,
        )  # fmt: skip
        self._say(guest.name, "", 0, hello, f"vm-{guest.vm_no}")
        self._from(guest, wire.Heartbeat(0))

    def _from(self, guest: Guest, message: wire.Message) -> None:
        guest.number += 1
        self._say(guest.name, guest.session, guest.number, message, f"vm-{guest.vm_no}")

    def _hear(self, envelope: Envelope) -> None:
        message = envelope.message
        if envelope.peer == "c":
            self._client = message.session if isinstance(message, wire.Welcome) else self._client
            assert not isinstance(message, (wire.RunRejected, wire.Refused)), message
            return
        guest = self._guests.get(int(envelope.peer[1:]))
        if guest is None:
            return
        if isinstance(message, wire.Welcome):
            guest.session, guest.number = message.session, 0
        elif isinstance(message, wire.StartTasks):
            guest.queue += message.attempts
            self._after(0.0, lambda: self._work(guest))
        elif isinstance(message, wire.ReturnTasks):
            back = [order for order in guest.queue if AttemptName(order.task_no, order.number) in message.attempts]
            guest.queue = [order for order in guest.queue if order not in back]
            names = tuple(AttemptName(order.task_no, order.number) for order in back)
            self._after(0.0, lambda: self._from(guest, wire.TasksReturned(names, "")))
        elif isinstance(message, wire.Drain):
            guest.leaving = message.then_exit
            self._after(0.0, lambda: self._work(guest))

    def _work(self, guest: Guest) -> None:
        started = []
        for order in tuple(guest.queue):
            asked = order.asks.get("cpus", 0.0)
            if asked <= guest.free + 1e-9:
                guest.queue.remove(order)
                guest.free -= asked
                guest.running += 1
                started.append(wire.StartedAttempt(order.task_no, order.number, 0.0))
                self._after(self._runtimes[self._ids[order.task_no]], partial(self._done, guest, order))
        if started:
            self._from(guest, wire.TasksStarted(tuple(started)))
        elif guest.leaving and not guest.running and not guest.queue and not guest.gone:
            self._from(guest, wire.Goodbye("drained"))

    def _done(self, guest: Guest, order: wire.AttemptOrder) -> None:
        guest.free += order.asks.get("cpus", 0.0)
        guest.running -= 1
        self._left -= 1
        run_s = self._runtimes[self._ids[order.task_no]]
        self._from(guest, wire.TasksEnded((Outcome(order.task_no, order.number, Cause.SUCCESS, 0, run_s=run_s),)))
        self._work(guest)


# --- rules --------------------------------------------------------------------------------------------


def queue_depth(situation: FleetSnapshot) -> Plan:
    """Plan a slot for each ready task, up to the maximum, and end VMs after a fixed idle time, as the peers do."""
    made = Plan()
    pool = situation.pools[0]
    room = sum(how_many(r.free, demand.shape) for r in situation.rooms for demand in situation.demands[:1])
    missing = sum(demand.count for demand in situation.demands if not demand.in_s) - room
    count = max(0, min(missing, pool.config.maximum - pool.alive, pool.may_start, 50))
    made.starts = [Start("p", "the queue is deep")] * count
    if not any(not demand.in_s for demand in situation.demands):
        made.ends = [End(vm.vm_no, vm.pool, "idle") for vm in situation.idle if vm.idle_s >= IDLE_S - 0.001]
        rest = [IDLE_S - vm.idle_s for vm in situation.idle if vm.idle_s < IDLE_S - 0.001]
        made.next_s = min(rest, default=None)
    return made


# --- graphs -------------------------------------------------------------------------------------------


def generated() -> Iterator[tuple[str, list[TaskDefinition]]]:
    """Yield graphs of the usual shapes; run times are drawn, and users know them approximately."""
    chance = random.Random(3)

    def task(id: str, seconds: float, *after: str) -> TaskDefinition:
        edges = tuple(Dependency(name) for name in after)
        return TaskDefinition(
            id=id, commands=("true",), dependencies=edges, runtime_s=seconds, labels=(id.partition("_")[0],)
        )

    yield "bag of 2000 x 5 s", [task(f"bag_{i}", chance.uniform(3, 7)) for i in range(2000)]
    yield "bag of 200 x 10 min", [task(f"bag_{i}", chance.uniform(400, 800)) for i in range(200)]
    yield "bag of 40 x 3 s", [task(f"bag_{i}", chance.uniform(2, 4)) for i in range(40)]
    waves = []
    for wave in range(6):
        gate = [f"gate_{wave}"]
        waves.append(task(gate[0], 80.0, *[f"wave_{wave - 1}_{i}" for i in range(40)] if wave else []))
        waves += [task(f"wave_{wave}_{i}", chance.uniform(60, 120), *gate) for i in range(40)]
    yield "6 waves of 40 x 90 s", waves
    yield "chain of 60 x 60 s", [task(f"chain_{i}", 60.0, *([f"chain_{i - 1}"] if i else [])) for i in range(60)]


def read(path: str) -> tuple[str, list[TaskDefinition]]:
    """Read a task list from a file, without the files of its tasks."""
    tasks: list[TaskDefinition] = read_task_list(Path(path).read_bytes(), Path(path).stem, ReadOptions(scale=1.0)).tasks
    plain: dict[str, Any] = {"requirements": (), "results": (), "resources": {"cpus": 1.0}, "overwrite_result": True}
    return Path(path).stem[:24], [msgspec.structs.replace(task, **plain) for task in tasks]


def main() -> int:
    """Measure, and print the table line by line."""
    graphs = [*generated(), *map(read, sys.argv[1:])]
    print(
        f"{'graph':<26}{'boot':>6}  {'ours':>16}  {'ours, no guess':>16}  {'queue depth':>16}  {'best fixed fleet':>22}"
    )
    totals = {"ours": [0.0, 0.0], "learned": [0.0, 0.0], "queue": [0.0, 0.0]}
    for name, tasks in graphs:
        for boot_s in BOOTS_S:
            ours = Bench(tasks, plan, boot_s, 0, True).run()
            learned = Bench(tasks, plan, boot_s, 0, False).run()
            queue = Bench(tasks, queue_depth, boot_s, 0, True).run()
            fleets = {size: Bench(tasks, plan, boot_s, size, True).run() for size in FLEETS}
            # The smallest fleet whose makespan exceeds ECLOUD's by at most a twentieth; else the fastest.
            able = [size for size in FLEETS if fleets[size][0] <= 1.05 * ours[0]]
            best = able[0] if able else min(FLEETS, key=lambda size: fleets[size][0])
            for key, found in (("ours", ours), ("learned", learned), ("queue", queue)):
                totals[key][0] += found[0] / queue[0]
                totals[key][1] += found[1] / queue[1]
            print(
                f"{name:<26}{boot_s:>4.0f} s  {_shown(ours):>16}  {_shown(learned):>16}  {_shown(queue):>16}"
                f"  {best:>4} VMs {_shown(fleets[best]):>13}"
            )
    count = len(graphs) * len(BOOTS_S)
    for key, label in (("ours", "ours"), ("learned", "ours, no guess")):
        time, hours = totals[key][0] / count, totals[key][1] / count
        print(f"{label} against queue depth, mean of all: makespan {time:.2f}, VM-hours {hours:.2f}")
    return 0


def _shown(found: tuple[float, float]) -> str:
    return f"{found[0]:,.0f} s {found[1]:.2f} h"


if __name__ == "__main__":
    raise SystemExit(main())
