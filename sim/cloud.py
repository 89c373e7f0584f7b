"""The simulated cloud: a requested VM becomes a worker after a boot time. Owns the list of VMs that exist or existed,
and a clock of its own."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from boss.core.model.cloud_vms import CloudState, VmFound
from ecloud.model.tasks import Resources
from sim.faults import Faults
from sim.world import World

BOOT_S = (0.5, 5.0)
SLOW_BOOT_S = (30.0, 400.0)
"""Exceeds the time after which the boss gives a VM up."""
QUOTA_S = (5.0, 30.0)
PLACE_S = (40.0, 100.0)
"""Seconds per VM of a cloud that places VMs one after another: one VM stays below the boss's patience, several exceed
it."""
PLACE_SOON_S = (0.5, 1.0)
"""The same after the faults healed."""

WAIT_S = (20.0, 400.0)
"""Seconds in the queue of a cloud that queues jobs."""
HIDDEN_S = (5.0, 60.0)
LATE_S = (1.0, 240.0)
"""Seconds that a call waits for its turn, or is processed after the boss stopped waiting: exceeds every grace
period."""

CLOCKS_S = (0.0, 0.0, 0.4, 3_600.0, -3_600.0)
"""Offsets of a cloud's clock from all other clocks."""

Boot = Callable[[int, str, Resources, str, str], Callable[[], None]]
"""(vm_no, cloud_id, size, boot_nonce, address) -> function that ends the machine."""


class Refused(Exception):
    """The cloud has no room now."""


def host_key(cloud_id: str) -> str:
    """Return the host key that the machine presents over SSH."""
    return f"host key of {cloud_id}"


@dataclass
class Life:
    """A VM in the cloud's own list: whole epoch seconds by its clock. `ended_at` is None while the VM exists."""

    vm_no: int
    boot_nonce: str
    since: int
    ended_at: int | None = None


class Cloud:
    """One cloud, with an unlimited number of machines or as many as it has addresses."""

    def __init__(self, world: World, faults: Faults, boot: Boot, most: int | None = None) -> None:
        self.world = world
        self.most = most
        """Number of addresses in its network; None for unlimited."""
        self.addresses: dict[str, str] = {}
        """Addresses of existing VMs, by the cloud's name."""
        self._free: list[str] = []
        """Addresses of VMs that are gone; the next VMs get them."""
        self.queues = False
        """Whether it queues jobs, as Slurm does."""
        self.pending: set[str] = set()
        """Jobs in its queue."""
        self._hidden_until: dict[str, float] = {}
        """VMs that it does not list for a while."""
        self.faults = faults
        self._boot = boot
        self.lives: dict[str, Life] = {}
        """All VMs that ever existed, by the cloud's name."""
        self.ahead_s = random.Random(world.seed + 2).choice(CLOCKS_S)
        self._vms: dict[str, tuple[int, str]] = {}
        self._ends: dict[str, Callable[[], None]] = {}
        self._shut_down: set[str] = set()
        """VMs that shut down; the list shows it."""
        self.queue: dict[str, Callable[[], None]] = {}
        """VMs that wait for their turn, in order, each with its boot function."""
        self._placing = ""
        """The VM that is being placed."""
        self.placed_at = -math.inf
        """Time at which the cloud last began or completed placing a VM."""
        self._count = 0
        self._quota_until = 0.0

    def start(self, vm_no: int, pool: str, size: Resources, nonce: str) -> str:
        """Create a VM; return the cloud's name of it. Raises `Refused`."""
        if self.world.fault("vm_refused", self.faults.vm_refused):
            raise Refused("no room")
        if self.world.fault("vm_quota", self.faults.vm_quota):
            self._quota_until = self.world.now + self.world.random.uniform(*QUOTA_S)
        if self.world.now < self._quota_until and self.faults.vm_quota:
            raise Refused("the quota is used up")
        if self.most is not None and len(self._vms) >= self.most:
            raise Refused("no free address in network lab")
        self._count += 1
        cloud_id = f"vm{self._count}"
        self._vms[cloud_id] = (vm_no, pool)
        self.lives[cloud_id] = Life(vm_no, nonce, self._clock())
        self.addresses[cloud_id] = self._address()
        self.world.tell("cloud", f"starts {cloud_id} for intent {vm_no}")

        def boot() -> None:
            self.pending.discard(cloud_id)
            if cloud_id in self._vms:
                self._ends[cloud_id] = self._boot(vm_no, cloud_id, size, nonce, self.addresses[cloud_id])

        if self.world.fault("vm_never", self.faults.vm_never):
            self.world.tell("cloud", f"{cloud_id} never boots")
            return cloud_id
        slow = self.world.fault("vm_slow", self.faults.vm_slow)
        boot_s = self.world.random.uniform(*(SLOW_BOOT_S if slow else BOOT_S))
        if self.queues and self.world.fault("vm_waits", self.faults.vm_waits):
            self.pending.add(cloud_id)
            self.world.after(self.world.random.uniform(*WAIT_S), boot)
            return cloud_id
        if not (self._placing or self.queue or self.world.fault("vm_queue", self.faults.vm_queue)):
            self.world.after(boot_s, boot)
            return cloud_id
        self.queue[cloud_id] = boot
        if not self._placing:
            self._place_next()
        return cloud_id

    def _place_next(self) -> None:
        """Place VMs one after another: while one is placed the others wait."""
        self._placing = ""
        while self.queue and not self._placing:
            cloud_id = next(iter(self.queue))
            boot = self.queue.pop(cloud_id)
            if cloud_id in self._vms:
                self._placing = cloud_id
                self.placed_at = self.world.now
                place_s = self.world.random.uniform(*(PLACE_S if self.faults.vm_queue else PLACE_SOON_S))
                self.world.after(place_s, partial(self._placed, boot))

    def _placed(self, boot: Callable[[], None]) -> None:
        self.placed_at = self.world.now
        boot()
        self._place_next()

    def _clock(self) -> int:
        return math.floor(self.world.now + self.ahead_s)

    def _address(self) -> str:
        if self.addresses and self.world.fault("vm_address", self.faults.vm_address):
            return self.world.random.choice(list(self.addresses.values()))
        return self._free.pop() if self._free else f"10.0.{self._count // 250}.{self._count % 250}"

    def _release(self, cloud_id: str) -> None:
        self.lives[cloud_id].ended_at = self._clock()
        address = self.addresses.pop(cloud_id)
        if address not in self.addresses.values():
            self._free.append(address)

    def end(self, cloud_id: str) -> None:
        """Remove the VM, with its disk, a moment later."""

        def gone() -> None:
            if self._vms.pop(cloud_id, None) is not None:
                self._release(cloud_id)
                self.world.tell("cloud", f"ended {cloud_id}")
                end = self._ends.pop(cloud_id, None)
                if end is not None:
                    end()

        self.world.after(self.world.random.uniform(0.1, 2.0), gone)

    @property
    def living(self) -> dict[str, tuple[int, str]]:
        """Existing VMs: intent and pool, by the cloud's name."""
        return self._vms

    def shut_down(self, cloud_id: str) -> None:
        """Note that a VM shuts down, as when a person asks the cloud for it."""
        self._shut_down.add(cloud_id)

    def vanish(self, cloud_id: str) -> None:
        """Remove the machine; the cloud's list shows it."""
        if self._vms.pop(cloud_id, None) is not None:
            self._release(cloud_id)
        self._ends.pop(cloud_id, None)

    def hide(self, cloud_id: str) -> None:
        """Do not list it for a while."""
        seconds = self.world.random.uniform(*HIDDEN_S)
        self._hidden_until[cloud_id] = self.world.now + seconds
        self.world.tell("cloud", f"does not show {cloud_id} for {seconds:.1f} s")

    def _is_hidden(self, cloud_id: str) -> bool:
        return bool(self.faults.vm_hidden) and self.world.now < self._hidden_until.get(cloud_id, 0.0)

    def list(self) -> Sequence[VmFound]:
        """List living VMs, one for each intent, without those that are hidden."""
        shown = [cloud_id for cloud_id in self._vms if not self._is_hidden(cloud_id)]
        by_nonce = {self.lives[cloud_id].boot_nonce: cloud_id for cloud_id in shown}
        return [self._found(self.lives[cloud_id].vm_no, cloud_id) for cloud_id in by_nonce.values()]

    def _found(self, vm_no: int, cloud_id: str) -> VmFound:
        state = CloudState.RUNNING
        if cloud_id in self.pending:
            state = CloudState.PENDING
        elif cloud_id in self.queue:
            state = CloudState.QUEUED
        elif cloud_id in self._placing:
            state = CloudState.BOOTING
        elif cloud_id in self._shut_down:
            state = CloudState.ENDING
        life = self.lives[cloud_id]
        return VmFound(
            vm_no, cloud_id, state, address=self.addresses[cloud_id], since=float(life.since),
            boot_nonce=life.boot_nonce,
        )  # fmt: skip

    def gone(self, known: Mapping[str, int], lost: Collection[int]) -> Sequence[VmFound]:
        """Return those that have ended, of known VMs and of VMs that were made for intents that are `lost`; and the
        known ones that are hidden."""
        past = {cloud_id: life.vm_no for cloud_id, life in self.lives.items() if life.vm_no in lost} if lost else {}
        over = {cloud_id: vm_no for cloud_id, vm_no in {**past, **known}.items() if cloud_id not in self._vms}
        return [
            *(self._ended(vm_no, self.lives.get(cloud_id), cloud_id) for cloud_id, vm_no in over.items()),
            *(
                self._found_hidden(vm_no, cloud_id)
                for cloud_id, vm_no in known.items()
                if cloud_id in self._vms and self._is_hidden(cloud_id)
            ),
        ]

    def _found_hidden(self, vm_no: int, cloud_id: str) -> VmFound:
        life = self.lives[cloud_id]
        return VmFound(vm_no, cloud_id, CloudState.HIDDEN, since=float(life.since), boot_nonce=life.boot_nonce)

    def _ended(self, vm_no: int, life: Life | None, cloud_id: str) -> VmFound:
        since, ended = (float(life.since), float(life.ended_at or 0)) if life is not None else (0.0, 0.0)
        nonce = life.boot_nonce if life is not None else ""
        return VmFound(vm_no, cloud_id, CloudState.GONE, since=since, ended=ended, boot_nonce=nonce)

    def room(self) -> tuple[int | None, str]:
        """Return how many more VMs the cloud would grant, and why not more."""
        if self.most is None:
            return None, ""
        free = self.most - len(self._vms)
        return free, f"network lab has {free} free addresses of {self.most}"
