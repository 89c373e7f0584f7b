"""One seed, whole: a world, its machines, what goes wrong and for how long, and what must be true at the end.

    result = run(seed)

First everything may go wrong that the seed's `Faults` name; then all heals; then within `SETTLE_S` every task of every
accepted run must have ended and nothing may be left over.
"""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable

import msgspec

from boss.core.model.config import BossConfig, PoolConfig
from ecloud.model.tasks import ENDED, Resources
from ecloud.model.wire import DatastoreAccess
from ecloud.model.worker_states import ON_DUTY
from sim import books, memory
from sim import faults as faults_of
from sim.boss_shell import BossProcess, Places
from sim.checker import Checker
from sim.client import Client
from sim.cloud import Cloud
from sim.datastore import Datastore
from sim.faults import Faults
from sim.invariants import Violation
from sim.network import Network
from sim.scenario import Scenario, Size
from sim.store import Tables
from sim.trouble import Trouble
from sim.worker_shell import Places as WorkerPlaces
from sim.worker_shell import WorkerHome, WorkerProcess
from sim.world import World

BUDGETS_H = (0.003, 0.05)
"""VM-hours, where there is a budget: some of these are used up by a scenario."""
SETTLE_S = 900.0
"""Everything must have ended this long after things healed: many leases, boots and back-offs."""


class Result(msgspec.Struct, frozen=True):
    """What came of a seed. `problem` is empty where all was well."""

    seed: int
    problem: str
    trace_hash: str
    steps: int
    passed_s: float
    completions: int
    fired: dict[str, int]
    looked: dict[str, int]
    lines: tuple[tuple[float, str, str], ...] = ()


class Machine:
    """A place where worker processes live, one after another, as long as it stands."""

    def __init__(self, sim: Simulation, home: WorkerHome, of_cloud: bool) -> None:
        self.sim = sim
        self.home = home
        self.of_cloud = of_cloud
        self.stands = True
        self.off = False
        self.process: WorkerProcess | None = None
        self.begin()

    def begin(self) -> None:
        """A process on this home, if none lives."""
        if self.stands and not self.off and (self.process is None or not self.process.alive):
            self.process = WorkerProcess(self.home, self.sim.worker_places, self.ended)

    def ended(self, why: str) -> None:
        """Its process ended; another comes by and by. A VM that was told to leave has done its work."""
        if self.stands and not (self.of_cloud and why == "left" and not self.home.spool):
            self.sim.world.after(self.sim.world.random.uniform(0.1, 15.0), self.begin)

    def switch_off(self) -> None:
        """Nothing runs there any more; the disk keeps what it has."""
        self.off = True
        if self.process is not None:
            self.process.die("its machine is off")

    def switch_on(self) -> None:
        """It boots again."""
        self.off = False
        self.begin()

    def end(self) -> None:
        """The machine is gone with its disk."""
        self.stands = False
        self.sim.machines.pop(self.home.name, None)
        if self.process is not None:
            self.process.die("its machine is gone")


class Simulation:
    """All of one seed."""

    def __init__(self, seed: int, faults: Faults | None = None, size: Size | None = None, fails: bool = True) -> None:
        self.world = World(seed)
        chance = self.world.random
        self.faults = faults if faults is not None else faults_of.draw(random.Random(seed + 1))
        self.size = size if size is not None else Size()
        self.tables = Tables()
        self.network = Network(self.world, self.faults)
        self.datastore = Datastore(self.world, self.faults)
        self.cloud = Cloud(self.world, self.faults, self._boot)
        self.gpus = chance.choice((0, 0, 0, 2))
        """How many each machine has."""
        self.config = self._make_config()
        self.checker = Checker(self.world, self.tables, self.datastore, self.config)
        self.worker_places = WorkerPlaces(self.world, self.faults, self.network, self.datastore, self.checker)
        self.boss_places = Places(
            self.world, self.faults, self.network, self.tables, self.datastore, self.cloud, self.checker
        )
        self.bosses: list[BossProcess] = []
        self.machines: dict[str, Machine] = {}
        self._count = self._boss_count = 0
        self.healed_at: float | None = None
        self.world.tell("seed", f"{seed}: {_words(self.faults)}")
        self.begin_boss(replace=True)
        few = bool(self.config.pools) and chance.random() < 0.5
        for _ in range(0 if few else chance.randint(*self.size.workers)):
            self.world.after(chance.uniform(0.0, 3.0), self.add_machine)
        clients = chance.choice((1, 1, 2, 3))
        self.clients = [Client(f"c{number}", self.world, self.network) for number in range(1, clients + 1)]
        self.scenario = Scenario(self.world, self.clients, self.size, fails, self.gpus, self._workers)
        if self.faults.any:
            Trouble(self)
        self.world.after(self.size.troubled_s, self.heal)

    def _make_config(self) -> BossConfig:
        chance = self.world.random
        pools: tuple[PoolConfig, ...] = ()
        if chance.random() < 0.5:
            size = {"cpus": 2.0, "memory_mb": 4000.0, **({"gpus": float(self.gpus)} if self.gpus else {})}
            minimum = chance.choice((0, 0, 0, 1))
            idle_s = chance.uniform(5, 60)
            visited = random.Random(self.world.seed + 4).random() < 0.5
            pools = (
                PoolConfig(
                    "vms", size, minimum=minimum, maximum=3, idle_s=idle_s, tells_room=True, visited=visited,
                    gets_code=visited,
                ),
            )  # fmt: skip
            self.cloud.most = chance.choice((None, None, 2))
        budget = random.Random(self.world.seed + 3)
        per_day, per_run = (budget.choice((0.0, 0.0, budget.uniform(*BUDGETS_H))) for _ in range(2))
        over_ssh = chance.random() < 0.3
        heartbeat_s = chance.uniform(1.0, 3.0)
        return BossConfig(
            datastore=DatastoreAccess("files@host:/root", host_key="a host key") if over_ssh else DatastoreAccess(""),
            heartbeat_s=heartbeat_s if self.size.heartbeat_s is None else self.size.heartbeat_s,
            lease_s=chance.uniform(8.0, 15.0),
            lease_margin_s=2.0,
            stop_grace_s=2.0,
            retry_backoff_s=0.5,
            sweep_every_s=60.0,
            pools=pools,
            vm_hours_per_day=per_day if pools else 0.0,
            vm_hours_per_run=per_run if pools else 0.0,
        )

    # --- machines --------------------------------------------------------------------------------

    def begin_boss(self, replace: bool) -> None:
        """One more boss, which takes the lead where it is to `replace` the one that has it."""
        self._boss_count += 1
        name = f"boss{self._boss_count}"

        def gone(why: str) -> None:
            if not any(boss.alive for boss in self.bosses):
                self.world.after(self.world.random.uniform(0.05, 5.0), lambda: self.begin_boss(replace=True))

        self.bosses = [boss for boss in self.bosses if boss.alive]
        self.bosses.append(BossProcess(name, self.boss_places, self.config, replace, gone))

    def add_machine(self) -> None:
        """A machine that somebody set up."""
        self._count += 1
        chance = self.world.random
        resources: Resources = {"cpus": float(chance.choice((2, 2, 4))), "memory_mb": 4000.0}
        if self.gpus:
            resources["gpus"] = float(self.gpus)
        name = f"m{self._count}"
        home = WorkerHome(name, resources, f"invite-{name}", gpus=tuple(range(self.gpus)), ssh_key=f"key-of-{name}")
        self.machines[name] = Machine(self, home, False)

    def _boot(self, vm_no: int, cloud_id: str, size: Resources, nonce: str, address: str) -> Callable[[], None]:
        home = WorkerHome(cloud_id, dict(size), f"vm-{vm_no}", cloud_id, nonce)
        home.gpus, home.ssh_key = tuple(range(self.gpus)), f"key-of-{cloud_id}"
        home.address = address
        machine = self.machines[cloud_id] = Machine(self, home, True)
        return machine.end

    # --- the turn for the better -------------------------------------------------------------------

    def heal(self) -> None:
        """Nothing goes wrong any more, and everybody is there."""
        self.world.tell("world", "all is well from now on")
        self.healed_at = self.world.now
        self.faults.heal()
        self.network.heal()
        self.datastore.come_back()
        self.datastore.make_room()
        self.datastore.parted.clear()
        for boss in self.bosses:
            boss.store_parted_until = boss.cloud_parted_until = 0.0
            boss.thaw()
        for machine in list(self.machines.values()):
            machine.home.disk_full = False
            if machine.process is not None:
                machine.process.thaw()
        self.scenario.make_peace()
        self._take_budgets_back()
        if not self.config.pools and not self.machines:
            self.add_machine()

    def _take_budgets_back(self) -> None:
        """Else what is used up would keep the work waiting for a day. Budgets are set when a boss starts."""
        if self.config.vm_hours_per_day or self.config.vm_hours_per_run:
            self.config = msgspec.structs.replace(self.config, vm_hours_per_day=0.0, vm_hours_per_run=0.0)
            self.checker.fleet.config = self.config
            for boss in list(self.bosses):
                boss.die("a person sets no budgets any more")

    # --- to the end ------------------------------------------------------------------------------

    def run(self) -> Result:
        """Until nothing is left to do; what came of it."""
        problem = ""
        try:
            while self.healed_at is None or not self._is_settled():
                self._step_for(1.0)
            self.checker.at_last()
            for name in ("settles", "memory", *(("floor", "books", "owned") if self.cloud.lives else ())):
                self.world.looked[name] += 1
        except AssertionError as error:
            problem = f"{type(error).__name__}: {error}" if str(error) else _place_of(error)
        except Exception as error:
            problem = f"{type(error).__name__}: {error} {_place_of(error)}"
        return Result(
            seed=self.world.seed,
            problem=problem,
            trace_hash=self.world.trace_hash,
            steps=self.world.steps,
            passed_s=self.world.passed_s,
            completions=self.checker.completions,
            fired=dict(self.world.fired),
            looked=dict(self.world.looked),
            lines=self.world.lines,
        )

    def _step_for(self, seconds: float) -> None:
        until = self.world.now + seconds
        self.world.run(until, self.size.most_steps)
        if self.world.steps > self.size.most_steps:
            raise Violation("settles", f"no end after {self.size.most_steps:,} steps")
        if self.healed_at is not None and self.world.now > self.healed_at + SETTLE_S:
            left = self._left()
            raise Violation(left[0][0], f"{SETTLE_S:.0f} s after all is well: {'; '.join(text for _, text in left)}")

    def _is_settled(self) -> bool:
        return not self._left()

    def _left(self) -> list[tuple[str, str]]:
        """What is not as it must be in the end, each with the invariant that says so."""
        boss = next((boss for boss in self.bosses if boss.alive and boss.core is not None), None)
        if boss is None or boss.core is None:
            return [("settles", "no boss leads")]
        core = boss.core
        left = [f"{wish.id} was not answered" for client in self.clients for wish in client.wishes]
        # Init tasks that fail wherever they are tried need a person: those runs are not over, and it says why.
        held = {run.row.run_no for run in core.book.runs.values() if run.row.held or run.stuck}
        for task in self.tables.tasks.values():
            if task.state not in ENDED and not task.init and task.run_no not in held:
                left.append(f"task {task.task_no} is {task.state}")
        left += [f"{name} has {count} outcomes in its spool" for name, count in self._spools().items() if count]
        if left:
            return [("settles", text) for text in left]
        left += [f"stage {stage} is left" for stage in self.datastore.staged]
        left += [f"attempt {key} is {attempt.state}" for key, attempt in core.attempts.active.items()]
        left += [
            f"task {node.task_no} ({node.state}) is in memory"
            for node in core.book.graph.nodes.values()
            if not node.init and node.run_no not in held
        ]
        return [
            *(("settles", text) for text in left),
            *(("owned", text) for text in self.checker.fleet.not_owned(self.cloud)),
            *(("floor", text) for text in self.checker.fleet.not_at_the_floor()),
            *(("books", text) for text in books.wrong(self.tables, self.cloud)),
            *(("memory", f"the boss remembers {what}") for what in memory.not_forgotten(core, self._there())),
        ]

    def _there(self) -> set[str]:
        """Who lives."""
        processes = [machine.process for machine in self.machines.values()]
        return {process.name for process in processes if process is not None and process.alive}

    def _workers(self) -> list[str]:
        """Processes that a person may have seen in a list: those that are on duty."""
        return [row.worker for row in self.tables.workers.values() if row.state in ON_DUTY]

    def _spools(self) -> Counter[str]:
        return Counter({machine.home.name: len(machine.home.spool) for machine in self.machines.values()})


def run(seed: int, allowed: tuple[str, ...] = faults_of.NAMES, size: Size | None = None, fails: bool = True) -> Result:
    """A whole simulation of that seed, with the faults that it draws among those allowed.

    What it draws of the others is the same whatever is allowed.
    """
    # A world makes many objects and few cycles: looking for those while it lives costs a third of the time, or a
    # twelfth at best. So they are looked for between two worlds; what is young then is the world before, which is one.
    gc.collect(0)
    gc.disable()
    try:
        return Simulation(seed, faults_of.draw(random.Random(seed + 1), allowed), size, fails).run()
    finally:
        gc.enable()


def _words(faults: Faults) -> str:
    named = [f"{name}={getattr(faults, name):.4f}" for name in faults_of.NAMES if getattr(faults, name)]
    return " ".join(named) or "nothing goes wrong"


def _place_of(error: BaseException) -> str:
    """Where an assertion without words stands."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    code = trace.tb_frame.f_code
    return f"{type(error).__name__} in {code.co_filename.rsplit('/', 2)[-1]}:{trace.tb_lineno} ({code.co_name})"
