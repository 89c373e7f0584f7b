"""One seed: a world, its machines, the faults and their duration, and the conditions at the end.

    result = run(seed)

First the faults of the seed's `Faults` may happen. Then all of them heal. Within `SETTLE_S` after that, every task of
every accepted run must have ended, and nothing may be left over.
"""

from __future__ import annotations

import gc
import math
import random
from collections import Counter

import msgspec

from ecloud.model.tasks import ENDED
from ecloud.model.worker_states import ON_DUTY
from sim import books, memory
from sim import faults as faults_of
from sim.client import Client
from sim.cluster import Cluster
from sim.faults import Faults
from sim.invariants import Violation
from sim.programs import Programs
from sim.scenario import Scenario, Size
from sim.trouble import Trouble

SETTLE_S = 900.0
"""Seconds after healing within which everything must have ended: many leases, boots and back-offs."""


class Result(msgspec.Struct, frozen=True):
    """Result of a seed. `problem` is empty if no invariant was broken."""

    seed: int
    problem: str
    trace_hash: str
    steps: int
    passed_s: float
    completions: int
    fired: dict[str, int]
    looked: dict[str, int]
    lines: tuple[tuple[float, str, str], ...] = ()


class Simulation(Cluster):
    """The whole simulation of one seed."""

    def __init__(self, seed: int, faults: Faults | None = None, size: Size | None = None, fails: bool = True) -> None:
        super().__init__(seed, faults, size)
        chance = self.world.random
        few = bool(self.config.pools) and chance.random() < 0.5
        for _ in range(0 if few else chance.randint(*self.size.workers)):
            self.world.after(chance.uniform(0.0, 3.0), self.add_machine)
        clients = chance.choice((1, 1, 2, 3))
        self.clients = [Client(f"c{number}", self.world, self.network) for number in range(1, clients + 1)]
        self.scenario = Scenario(
            self.world, self.clients, self.size, fails, self.gpus, self._workers, self.faults.poison,
            bool(self.faults.short_lives),
        )  # fmt: skip
        self.programs = Programs(self.world, self.network, self.tables, self.checker.runs, self.size, fails).clients
        self.clients = [*self.clients, *self.programs]
        for pool in self.config.pools:
            self.scenario.plan_holds(pool.name)
        if self.faults.any:
            Trouble(self)
        self.world.after(self.size.troubled_s, self.heal)

    # --- healing -----------------------------------------------------------------------------------

    def heal(self) -> None:
        """End all faults, and start all missing parts."""
        self.world.tell("world", "all is well from now on")
        self.healed_at = self.world.now
        self.faults.heal()
        self.network.heal()
        self.datastore.come_back()
        self.datastore.make_room()
        self.datastore.parted.clear()
        for boss in self.bosses:
            boss.store.parted_until = boss.calls.parted_until = 0.0
            boss.make_room()
            boss.thaw()
        for machine in list(self.machines.values()):
            machine.home.disk_full = False
            if machine.process is not None:
                machine.process.thaw()
        self.scenario.make_peace()
        self._raise_limits()
        if not self.config.pools and not self.machines:
            self.add_machine()

    def _raise_limits(self) -> None:
        """Remove the budgets and the pools' time limits, which could keep tasks waiting for a day or for ever. A boss
        reads them when it starts."""
        pools = tuple([msgspec.structs.replace(pool, lives_s=math.inf) for pool in self.config.pools])
        config = msgspec.structs.replace(self.config, vm_hours_per_day=0.0, vm_hours_per_run=0.0, pools=pools)
        if config != self.config:
            self.config = self.checker.fleet.config = config
            for boss in list(self.bosses):
                boss.die("a person raises the limits")

    # --- to the end ------------------------------------------------------------------------------

    def run(self) -> Result:
        """Run until nothing is left to do; return the result."""
        problem = ""
        try:
            while self.healed_at is None or not self._is_settled():
                self._step_for(1.0)
            self.checker.at_last()
            for name in ("settles", "memory", "counts", *(("floor", "books", "owned") if self.cloud.lives else ())):
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
        """Return each unmet condition at the end, with its invariant."""
        boss = next((boss for boss in self.bosses if boss.alive and boss.core is not None), None)
        if boss is None or boss.core is None:
            return [("settles", "no boss leads")]
        core = boss.core
        left = [f"{wish.id} was not answered" for client in self.clients for wish in client.wishes]
        # If init tasks fail wherever they are tried, a user must act: those runs have not ended, and the run's state
        # shows it.
        held = {run.row.run_no for run in core.book.runs.values() if run.row.held or run.stuck}
        for task in self.tables.tasks.values():
            if task.state not in ENDED and not task.init and task.run_no not in held:
                left.append(f"task {task.task_no} is {task.state}")
        for program in self.programs:
            left += [f"{program.name} lacks the end of call {id}" for id in program.lacks(self.tables)]
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
            *(("books", text) for text in books.wrong(self.tables, self.cloud, self.checker.fleet.lost)),
            *(("killed", text) for text in self.checker.fleet.still_there(self._there())),
            *(("counts", text) for text in memory.miscounted(core, boss.store.store.counts())),
            *(("memory", f"the boss remembers {what}") for what in memory.not_forgotten(core, self._there())),
        ]

    def _there(self) -> set[str]:
        """Return the living processes."""
        processes = [machine.process for machine in self.machines.values()]
        return {process.name for process in processes if process is not None and process.alive}

    def _workers(self) -> list[str]:
        """Return the processes that a user can see in a list: those on duty."""
        return [row.worker for row in self.tables.workers.values() if row.state in ON_DUTY]

    def _spools(self) -> Counter[str]:
        return Counter({machine.home.name: len(machine.home.spool) for machine in self.machines.values()})


def run(seed: int, allowed: tuple[str, ...] = faults_of.NAMES, size: Size | None = None, fails: bool = True) -> Result:
    """Run the simulation of a seed, with the faults that it draws among those allowed.

    Its other draws do not depend on which faults are allowed.
    """
    # A world makes many objects and few cycles: collecting them while it lives costs a third of the time, or a twelfth
    # at best. So the garbage collector runs between two worlds; the young objects then are the previous world, which is
    # one cycle.
    gc.collect(0)
    gc.disable()
    try:
        return Simulation(seed, faults_of.draw(random.Random(seed + 1), allowed), size, fails).run()
    finally:
        gc.enable()


def _place_of(error: BaseException) -> str:
    """Return the position of an assertion without a message."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    code = trace.tb_frame.f_code
    return f"{type(error).__name__} in {code.co_filename.rsplit('/', 2)[-1]}:{trace.tb_lineno} ({code.co_name})"
