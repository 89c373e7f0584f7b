"""How many VMs there should be: a pure function of ready tasks, existing workers, and the pools' limits.

Each plan is computed from the whole state, never from a counter that could drift. Owns no state, knows a VM only by its
number, and does nothing: `plan` returns starts and ends, each with its reason in words.

The rule: place waiting tasks on workers and on booting VMs. Tasks that these would not start before a new VM is up, and
that are worth a boot, get new VMs, pool by pool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from boss.core.model.config import PoolConfig
from boss.core.model.graph import Shape
from boss.core.model.worker import how_many
from ecloud.model.tasks import Resources, fits
from ecloud.model.text import counted, duration

WORTH = 0.125
"""A VM is worth its boot if it has work for at least this share of the boot time. Measured (bench/scaling.py): 0.25
uses 2 % fewer VM-hours with a 3 % longer makespan, 0.1 the other way round."""
MOST_STARTS = 50
"""VMs requested by one plan, so that one wrong plan cannot request hundreds."""

AT_ONCE_S = 0.001
"""A shorter rest of an idle time counts as none: floating-point clocks round."""


class Demand(msgspec.Struct, frozen=True):
    """`count` waiting tasks of one shape. `task_s`: expected run time of one, None if unknown (then each gets a slot of
    its own). `in_s`: seconds until they are ready, 0 for now. `needs_s`: seconds that a worker must have left for each,
    0 if any worker will do."""

    shape: Shape
    count: int
    task_s: float | None = None
    in_s: float = 0.0
    needs_s: float = 0.0


class Spot(msgspec.Struct):
    """A worker, or a VM that boots. `free`: resources that are available then; `until_s`: seconds until it is probably
    free, or up; `lives_s`: seconds until it ends."""

    free: Resources
    capacity: Resources
    until_s: float = 0.0
    pool: str = ""
    lives_s: float = math.inf


class IdleVm(msgspec.Struct, frozen=True):
    """An idle VM that may end. `idle_s`: how long it has been idle; `lives_s`: seconds until it ends anyway."""

    vm_no: int
    pool: str
    idle_s: float
    capacity: Resources
    lives_s: float = math.inf


class PoolNow(msgspec.Struct, frozen=True):
    """A pool's current state. `alive`: VMs that are not gone; `may_start`: how many more its limits allow now;
    `closed`: why none may start, or empty; `boot_s`: the usual time from request to worker; `room`: the cloud's room in
    words, if known; `room_bounds`: whether that room is what limits the pool; `lives_s`: how long a new VM lives."""

    config: PoolConfig
    alive: int = 0
    may_start: int = MOST_STARTS
    closed: str = ""
    boot_s: float = 0.0
    room: str = ""
    room_bounds: bool = False
    lives_s: float = math.inf

    def can_run(self, shape: Shape, needs_s: float) -> bool:
        """Whether a new VM is large enough for a task, and lives long enough."""
        return needs_s <= self.lives_s and fits(self.config.size, shape.asks)


class FleetSnapshot(msgspec.Struct, frozen=True):
    """All inputs of a plan. `demands`: in the order in which they are placed."""

    demands: Sequence[Demand] = ()
    rooms: Sequence[Spot] = ()
    pools: Sequence[PoolNow] = ()
    idle: Sequence[IdleVm] = ()
    notes: Sequence[str] = ()
    """Work for which no VM is requested, and why: copied into the plan."""


class Start(msgspec.Struct, frozen=True):
    """Start one VM of `pool`."""

    pool: str
    reason: str


class End(msgspec.Struct, frozen=True):
    """End an idle VM."""

    vm_no: int
    pool: str
    reason: str


class Plan(msgspec.Struct):
    """Starts and ends. `notes`: omitted actions, and why; `unmet`: shapes that fit no pool; `next_s`: seconds until an
    idle VM's time ends, None without one."""

    starts: list[Start] = msgspec.field(default_factory=list)
    ends: list[End] = msgspec.field(default_factory=list)
    notes: list[str] = msgspec.field(default_factory=list)
    unmet: list[Shape] = msgspec.field(default_factory=list)
    next_s: float | None = None


def plan(situation: FleetSnapshot) -> Plan:
    """Plan starts and ends. Tries pools in order, and a spillover pool only for tasks that fit no other open pool."""
    return _Planning(situation).made()


class _Planning:
    """A plan in progress."""

    def __init__(self, situation: FleetSnapshot) -> None:
        self._situation = situation
        self._pools = situation.pools
        self._alive = {pool.config.name: pool.alive for pool in self._pools}
        self._left = {pool.config.name: pool.may_start for pool in self._pools}
        self._rooms = [Spot(dict(r.free), r.capacity, r.until_s, r.pool, r.lives_s) for r in situation.rooms]
        self._plan = Plan(notes=list(situation.notes))

    def made(self) -> Plan:
        self._keep_minimum()
        for demand in self._situation.demands:
            self._meet(demand)
        self._end_idle()
        return self._plan

    # --- starting --------------------------------------------------------------------------------

    def _keep_minimum(self) -> None:
        for pool in self._pools:
            while self._alive[pool.config.name] < pool.config.minimum and self._may_start(pool):
                self._start(pool, f"pool {pool.config.name} is below its minimum of {pool.config.minimum}")

    def _meet(self, demand: Demand) -> None:
        count = demand.count - self._take_free(demand)
        fitting = [pool for pool in self._pools if pool.can_run(demand.shape, demand.needs_s)]
        if not fitting:
            if count:
                self._plan.unmet.append(demand.shape)
                long = f", with a runtime_s of {duration(demand.needs_s)}" if demand.needs_s else ""
                self._note(f"{_tasks(demand)}{long} {'fits' if demand.count == 1 else 'fit'} no pool")
            return
        able = [pool for pool in fitting if not pool.closed]
        usual = [pool for pool in able if not pool.config.spillover] or able
        if not able and count:
            for pool in fitting:
                self._note(f"no VM of pool {pool.config.name} starts for {_tasks(demand)}: {pool.closed}")
        for pool in usual:
            if count <= 0:
                return
            count = self._meet_from(pool, demand, count)

    def _meet_from(self, pool: PoolNow, demand: Demand, count: int) -> int:
        """Start VMs of this pool for `count` tasks; returns how many tasks are left for the next pool."""
        name, slots = pool.config.name, how_many(pool.config.size, demand.shape)
        if demand.in_s > pool.boot_s:
            return count  # a VM requested later is up in time
        left = count - self._worked_off(demand, count, pool.boot_s)
        if left <= 0:
            self._note(
                f"{_tasks(demand)} wait for resources that are free sooner than a new VM of pool {name} "
                f"(usual time {pool.boot_s:.0f} s)"
            )
            return 0
        # A resource that a task does not request does not limit it: then one VM runs all tasks that it gets at the same
        # time.
        a_vm = min(slots, left) if demand.task_s is None else slots * max(1, math.ceil(self._worth(pool, demand)))
        asked = len(self._plan.starts)
        while left > 0 and self._alive[name] < pool.config.maximum and self._may_start(pool):
            if a_vm > slots and len(self._plan.starts) > asked and left < a_vm / 2:
                return 0  # the rest is not worth another VM: the new VMs take it
            taken = min(left, a_vm)
            left -= taken
            room = self._start(pool, self._reason(pool, demand, taken))
            _fill(room.free, demand.shape, taken)
            room.until_s += taken / slots * (demand.task_s or 0.0)
        if left > 0 and self._alive[name] >= pool.config.maximum:
            self._note(f"pool {name} is at its maximum of {counted(pool.config.maximum, 'VM')}")
        elif left > 0:
            limit = f"no more VMs of pool {name} now: its limit of VMs that start at the same time is reached"
            self._note(pool.room if pool.room_bounds else limit)
        return left

    def _worth(self, pool: PoolNow, demand: Demand) -> float:
        """How many tasks, one after another, make a slot of a new VM worth its boot."""
        return WORTH * pool.boot_s / demand.task_s if demand.task_s else 1.0

    def _reason(self, pool: PoolNow, demand: Demand, taken: int) -> str:
        when = "ready" if demand.in_s <= 0 else f"ready in {demand.in_s:.0f} s"
        each = "" if demand.task_s is None else f", about {_seconds(demand.task_s)} each"
        return (
            f"{demand.count} {'task is' if demand.count == 1 else 'tasks are'} {when} for "
            f"{describe(demand.shape)}{each}; room for {taken} by a new VM in about {_seconds(pool.boot_s)}"
        )

    def _may_start(self, pool: PoolNow) -> bool:
        return not pool.closed and self._left[pool.config.name] > 0 and len(self._plan.starts) < MOST_STARTS

    def _start(self, pool: PoolNow, reason: str) -> Spot:
        name = pool.config.name
        self._alive[name] += 1
        self._left[name] -= 1
        room = Spot(dict(pool.config.size), pool.config.size, pool.boot_s, name, pool.boot_s + pool.lives_s)
        self._rooms.append(room)
        self._plan.starts.append(Start(name, reason))
        return room

    # --- existing capacity -----------------------------------------------------------------------

    def _take_free(self, demand: Demand) -> int:
        """Tasks that start immediately on free resources, or as soon as booting VMs are up."""
        taken = 0
        for room in self._rooms:
            if taken == demand.count:
                break
            if demand.needs_s > room.lives_s - demand.in_s:
                continue
            here = _fill(room.free, demand.shape, demand.count - taken)
            if here:
                taken += here
                room.until_s = max(room.until_s, demand.in_s) + (demand.task_s or 0.0) * here / max(
                    1, how_many(room.capacity, demand.shape)
                )
        return taken

    def _worked_off(self, demand: Demand, count: int, boot_s: float) -> int:
        """Of `count` tasks, how many need no new VM: existing or booting VMs start them before a new one would be up
        or, for short tasks, before it would have been worth its boot."""
        if demand.task_s is None:
            return 0
        task_s, worth_s = max(demand.task_s, 1e-6), WORTH * boot_s
        short = task_s <= worth_s
        until_s = boot_s + worth_s if short else boot_s
        taken, slots = 0, 0
        for room in self._rooms:
            here = how_many(room.capacity, demand.shape)
            from_s = max(room.until_s, demand.in_s)
            left_s = until_s - from_s
            if not here or left_s <= 0 or demand.needs_s > room.lives_s - from_s:
                continue
            slots += here
            tasks = min(count - taken, here * math.ceil(left_s / task_s) if short else int(here * left_s / task_s))
            room.until_s = until_s - left_s + tasks / here * task_s
            taken += tasks
        # A rest that does not fill its share of a VM is left to VMs that are free soon after.
        spare_s = worth_s / 2 if short else worth_s * slots
        return count if slots and (count - taken) * task_s <= spare_s else taken

    # --- ending ----------------------------------------------------------------------------------

    def _end_idle(self) -> None:
        """End the VMs that have been idle longest, but never below a minimum, nor those that waiting work or the next
        wave needs."""
        pools = {pool.config.name: pool for pool in self._pools}
        idle = sorted(self._situation.idle, key=lambda vm: (-vm.idle_s, vm.vm_no))
        wanted = self._wanted(idle, pools)
        for vm in idle:
            pool = pools.get(vm.pool)
            if pool is None or self._alive[vm.pool] <= pool.config.minimum:
                continue
            left_s = pool.config.idle_s - vm.idle_s
            if left_s > AT_ONCE_S:
                self._plan.next_s = min(left_s, self._plan.next_s if self._plan.next_s is not None else left_s)
            elif vm.vm_no in wanted:
                demand = wanted[vm.vm_no]
                self._note(f"VM {vm.vm_no} is idle and is kept: {_tasks(demand)} {_when(demand)}")
            else:
                self._alive[vm.pool] -= 1
                self._plan.ends.append(End(vm.vm_no, vm.pool, f"idle for {pool.config.idle_s:g} s"))

    def _wanted(self, idle: Sequence[IdleVm], pools: dict[str, PoolNow]) -> dict[int, Demand]:
        """Which idle VMs to keep, and for which work: work that waits, or that is ready sooner than a new VM would be.
        Keeps those that have been idle for the shortest time."""
        wanted: dict[int, Demand] = {}
        for demand in self._situation.demands:
            count = demand.count
            for vm in reversed(idle):
                if count <= 0:
                    break
                lives = demand.needs_s <= vm.lives_s - demand.in_s
                if lives and vm.vm_no not in wanted and vm.pool in pools and demand.in_s <= pools[vm.pool].boot_s:
                    slots = how_many(vm.capacity, demand.shape)
                    if slots:
                        wanted[vm.vm_no] = demand
                        count -= slots
        return wanted

    def _note(self, text: str) -> None:
        if text not in self._plan.notes:
            self._plan.notes.append(text)


def _fill(room: Resources, shape: Shape, count: int) -> int:
    taken = how_many(room, shape, count)
    if taken:
        for name, amount in shape.asks:
            room[name] = room.get(name, 0.0) - amount * taken
    return taken


def _tasks(demand: Demand) -> str:
    return f"{demand.count} {'task' if demand.count == 1 else 'tasks'} of {describe(demand.shape)}"


def _when(demand: Demand) -> str:
    verb = "waits" if demand.count == 1 else "wait"
    return verb if demand.in_s <= 0 else f"{'is' if demand.count == 1 else 'are'} ready in {demand.in_s:.0f} s"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def describe(shape: Shape) -> str:
    """A shape in words, for example "2 cpus, 1 gpu"."""
    return ", ".join(f"{amount:g} {_unit(name, amount)}" for name, amount in shape.asks) or "nothing"


def _unit(name: str, amount: float) -> str:
    return name.removesuffix("s") if amount == 1 and name in ("cpus", "gpus") else name
