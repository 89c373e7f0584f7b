"""Parts of a simulated world: bosses and machines, with the network, datastore, cloud and tables between them.

Owns which of them live. Faults are in `sim.trouble`; users' wishes are in `sim.scenario`.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable

from boss.core.model.config import BossConfig, PoolConfig
from ecloud.model.tasks import Resources
from ecloud.model.wire import BATCH_BYTES, DatastoreAccess
from sim import faults as faults_of
from sim.boss_ports import OVER_SSH, Places
from sim.boss_shell import BossProcess
from sim.checker import Checker
from sim.cloud import Cloud
from sim.datastore import Datastore
from sim.faults import Faults
from sim.network import Network
from sim.scenario import Size
from sim.store import Tables
from sim.worker_shell import Places as WorkerPlaces
from sim.worker_shell import WorkerHome, WorkerProcess
from sim.world import World

BUDGETS_H = (0.003, 0.05)
"""VM-hours of budgets: a scenario uses up some of these."""


LIVES_S = (70.0, 260.0)
"""Lives of machines that end at a known time, in seconds. A worker takes tasks until a minute before the end."""


class Machine:
    """A place where worker processes live, one after another, while it exists."""

    def __init__(self, cluster: Cluster, home: WorkerHome, of_cloud: bool) -> None:
        self.cluster = cluster
        self.home = home
        self.of_cloud = of_cloud
        self.stands = True
        self.off = False
        self.process: WorkerProcess | None = None
        if home.ends_at < math.inf:
            cluster.world.fired["short_lives"] += 1
            cluster.world.at(home.ends_at, self._come_to_its_end)
        self.begin()

    def begin(self) -> None:
        """Start a process on this home, if none lives."""
        if self.stands and not self.off and (self.process is None or not self.process.alive):
            self.process = WorkerProcess(self.home, self.cluster.worker_places, self.ended)

    def ended(self, why: str) -> None:
        """Handle the end of its process; another one follows later. A VM that was ordered to leave is finished."""
        if self.stands and not (self.of_cloud and why == "left" and not self.home.spool):
            self.cluster.world.after(self.cluster.world.random.uniform(0.1, 15.0), self.begin)

    def _come_to_its_end(self) -> None:
        if self.stands:
            self.cluster.world.tell(self.home.name, "ends, as its workers stated")
            self.cluster.end_machine(self)

    def switch_off(self) -> None:
        """Stop everything on the machine; the disk keeps its data."""
        self.off = True
        if self.process is not None:
            self.process.die("its machine is off")

    def switch_on(self) -> None:
        """Boot the machine again."""
        self.off = False
        self.begin()

    def end(self) -> None:
        """Remove the machine with its disk."""
        self.stands = False
        self.cluster.machines.pop(self.home.name, None)
        if self.process is not None:
            self.process.die("its machine is gone")


class Cluster:
    """Bosses and machines of one seed. It starts with one boss and no machine."""

    def __init__(self, seed: int, faults: Faults | None, size: Size | None) -> None:
        self.world = World(seed)
        self.faults = faults if faults is not None else faults_of.draw(random.Random(seed + 1))
        self.size = size if size is not None else Size()
        self.tables = Tables()
        self.network = Network(self.world, self.faults)
        self.datastore = Datastore(self.world, self.faults)
        self.cloud = Cloud(self.world, self.faults, self._boot)
        self.gpus = self.world.random.choice((0, 0, 0, 2))
        """GPUs of each machine."""
        self.shared_machine = random.Random(seed + 6).choice((*[0.0] * 12, 2.0, 4.0, 5.0))
        """CPUs of the one machine that all manually added homes share; 0 if each has its own."""
        self._lives = random.Random(seed + 11)
        """A separate random generator: other draws stay the same."""
        self.config = self._make_config()
        self.checker = Checker(self.world, self.tables, self.datastore, self.config)
        self.checker.fleet.cloud = self.cloud
        self.worker_places = WorkerPlaces(self.world, self.faults, self.network, self.datastore, self.checker)
        self.boss_places = Places(
            self.world, self.faults, self.network, self.tables, self.datastore, self.cloud, self.checker
        )
        self.bosses: list[BossProcess] = []
        self.machines: dict[str, Machine] = {}
        self.backup: dict[str, object] | None = None
        self.healed_at: float | None = None
        """Time at which the faults healed."""
        self._count = self._boss_count = 0
        self.world.tell("seed", f"{seed}: {_words(self.faults)}")
        self.begin_boss(replace=True)

    def _make_config(self) -> BossConfig:
        chance = self.world.random
        pools: tuple[PoolConfig, ...] = ()
        if chance.random() < 0.5:
            size = {"cpus": 2.0, "memory_mb": 4000.0, **({"gpus": float(self.gpus)} if self.gpus else {})}
            minimum = chance.choice((0, 0, 0, 1))
            idle_s = chance.uniform(5, 60)
            visited = random.Random(self.world.seed + 4).random() < 0.5
            queues = random.Random(self.world.seed + 7).random() < 0.4
            lives_s = (
                self._lives.uniform(*LIVES_S) if self.faults.short_lives and self._lives.random() < 0.5 else math.inf
            )
            pools = (
                PoolConfig(
                    "vms", size, minimum=minimum, maximum=3, idle_s=idle_s, tells_room=True, visited=visited,
                    gets_code=visited, queues=queues, lives_s=lives_s,
                ),
            )  # fmt: skip
            self.cloud.most = chance.choice((None, None, 2))
            self.cloud.queues = pools[0].queues
        budget = random.Random(self.world.seed + 3)
        per_day, per_run = (budget.choice((0.0, 0.0, budget.uniform(*BUDGETS_H))) for _ in range(2))
        over_ssh = chance.random() < 0.3
        heartbeat_s = chance.uniform(1.0, 3.0)
        return BossConfig(
            datastore=OVER_SSH if over_ssh else DatastoreAccess(""),
            heartbeat_s=heartbeat_s if self.size.heartbeat_s is None else self.size.heartbeat_s,
            lease_s=chance.uniform(8.0, 15.0),
            heartbeats_per_s=random.Random(self.world.seed + 11).choice((0.5, 1.0, 150.0)),
            lease_margin_s=2.0,
            stop_grace_s=2.0,
            retry_backoff_s=0.5,
            sweep_every_s=60.0,
            values_bytes=random.Random(self.world.seed + 10).choice((1, 250, BATCH_BYTES)),
            array_window=random.Random(self.world.seed + 6).choice((2, 5, 20)),
            pools=pools,
            vm_hours_per_day=per_day if pools else 0.0,
            vm_hours_per_run=per_run if pools else 0.0,
        )

    def begin_boss(self, replace: bool) -> None:
        """Add a boss; with `replace` it takes over the lead."""
        self._boss_count += 1
        name = f"boss{self._boss_count}"

        def gone(why: str) -> None:
            if not any(boss.alive for boss in self.bosses):
                self.world.after(self.world.random.uniform(0.05, 5.0), lambda: self.begin_boss(replace=True))

        self.bosses = [boss for boss in self.bosses if boss.alive]
        self.bosses.append(BossProcess(name, self.boss_places, self.config, replace, gone))

    def back_up(self) -> None:
        """Keep a copy of the database."""
        self.backup = copy.deepcopy(self.tables.__dict__)

    def restore_database(self) -> None:
        """Simulate an operator who stops the boss and restores the last backup."""
        if self.backup is None:
            return
        self.world.fired["database_restored"] += 1
        self.world.tell(
            "world", f"puts a backup of the database back: batch {self.backup['batch']}, of {self.tables.batch}"
        )
        for boss in list(self.bosses):
            boss.die("a person restores the database")
        self.tables.__dict__.update(copy.deepcopy(self.backup))
        processes = {machine.process.name for machine in self.machines.values() if machine.process is not None}
        self.checker.on_restored(processes, {boss.name for boss in self.bosses})

    def add_machine(self) -> None:
        """Add a machine, as a user does."""
        self._count += 1
        chance = self.world.random
        resources: Resources = {"cpus": float(chance.choice((2, 2, 4))), "memory_mb": 4000.0}
        if self.gpus:
            resources["gpus"] = float(self.gpus)
        name = f"m{self._count}"
        home = WorkerHome(
            name, resources, f"invite-{name}", gpus=tuple(map(str, range(self.gpus))), ssh_key=f"key-of-{name}"
        )
        if self.faults.short_lives and self._lives.random() < self.faults.short_lives:
            home.ends_at = self.world.now + self._lives.uniform(*LIVES_S)
        self._share_machine(home)
        self.machines[name] = Machine(self, home, False)

    def end_machine(self, machine: Machine) -> None:
        """Remove a machine; one that a user added is replaced later."""
        machine.end()
        self.cloud.vanish(machine.home.name)
        if not machine.of_cloud:
            self.world.after(self.world.random.uniform(0.5, 20.0), self.add_machine)

    def _share_machine(self, home: WorkerHome) -> None:
        """In some worlds, place manually added workers on one machine, which has less than they offer together."""
        if self.shared_machine:
            home.machine = "a machine"
            home.machine_has = {"cpus": self.shared_machine, "memory_mb": 4000.0}
            self.checker.machine_of[home.name] = home.machine
            # The boss believes the largest offer, also of a worker that has vanished until it knows of that.
            before = self.checker.machine_has.get(home.machine, {}).get("cpus", 0.0)
            most = max(self.shared_machine, before, home.resources["cpus"])
            self.checker.machine_has[home.machine] = {"cpus": most, "memory_mb": 4000.0}

    def _boot(self, vm_no: int, cloud_id: str, size: Resources, nonce: str, address: str) -> Callable[[], None]:
        home = WorkerHome(cloud_id, dict(size), f"vm-{vm_no}", cloud_id, nonce)
        home.gpus, home.ssh_key = tuple(map(str, range(self.gpus))), f"key-of-{cloud_id}"
        home.address = address
        home.ends_at = self.world.now + self.config.pools[0].lives_s
        machine = self.machines[cloud_id] = Machine(self, home, True)
        return machine.end


def _words(faults: Faults) -> str:
    named = [f"{name}={getattr(faults, name):.4f}" for name in faults_of.NAMES if getattr(faults, name)]
    return " ".join(named) or "nothing goes wrong"
