"""Users' actions in a simulation: random graphs of tasks, pushed in chunks, cancelled, redone, pushed again.

Everything is drawn from the world's random numbers. Owns only the times of its own actions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from ecloud.model.tasks import ArrayOf, Call, Condition, Dependency, Requirement, Result, Retries, TaskDefinition
from ecloud.model.wire import PushOptions
from sim.client import Client
from sim.worker_shell import command, greedy, poison
from sim.world import World

ABOUT_TASKS = ("cancel", "retry_failed", "redo_task", "cancel", "drop_tasks", "watch", "logs")
ABOUT_WORKERS = ("drain_worker", "undrain_worker", "kill_worker", "instantiate_worker", "drop_workers")


class Size(msgspec.Struct, frozen=True):
    """Size of a scenario."""

    tasks: tuple[int, int] = (10, 40)
    runs: tuple[int, int] = (1, 2)
    wishes: tuple[int, int] = (0, 6)
    workers: tuple[int, int] = (2, 5)
    troubled_s: float = 40.0
    """Seconds during which faults happen and users change their minds."""
    arrays: float = 0.2
    """Fraction of lists that have arrays."""
    programs: float = 0.35
    """Fraction of scenarios with programs, which extend runs; without runs there are none."""
    task_s: float = 2.0
    """Approximate run time of the longest task, in seconds."""
    most_steps: int = 300_000
    """A scenario with more steps counts as endless."""
    heartbeat_s: float | None = None
    """Heartbeat interval of peers; None: drawn, and shorter than in production."""


REACH = {"wide": 0.3, "deep": 3.0, "any": 1.2}
"""Average number of dependencies of a task, by the shape of the graph."""
ARRAY_IDS = ("array-a", "array-b", "array-c")
ELEMENTS = (6, 20)
"""Range of the number of elements of an array."""
CALLS = 0.4
"""Fraction of runs that have calls among their tasks."""
HOLDS = 0.3
"""Fraction of scenarios with a pool in which an operator holds it."""
BURSTS = 0.4
"""Fraction of runs with calls that also have a burst of short ones."""
BURST = (40, 120)
"""Range of the number of calls in a burst."""
STATED_S = (50.0, 150.0)
"""Run times that tasks state where machines end at known times. The tasks take less, so that the boss queues and chains
them once it has learned that."""
STATED = 0.3
"""Fraction of tasks that state such a run time."""
CONDITIONS = (Condition.SUCCESS, Condition.ANY, Condition.FAILURE)
CONDITION_WEIGHTS = (12, 15, 16)
"""Cumulative weights: one dependency in 16 is on a failure."""


def make_tasks(world: World, run: str, count: int, size: Size, fails: bool = True) -> list[TaskDefinition]:
    """Make a random graph. A task that depends on the success of another may require its results."""
    chance = world.random
    tasks: list[TaskDefinition] = []
    shape = chance.choice(("wide", "deep", "any"))
    for number in range(count):
        tasks.append(_make_task(world, run, number, tasks, shape, size, fails))
    if chance.random() < 0.3:
        for number in range(chance.randint(1, 2)):
            sometimes = 0.05 if fails and chance.random() < 0.5 else 0.0
            tasks.append(TaskDefinition(f"init{number}", (command(chance.uniform(0.01, 0.5), sometimes),), init=True))
    return tasks


def _make_task(
    world: World, run: str, number: int, earlier: list[TaskDefinition], shape: str, size: Size, fails: bool
) -> TaskDefinition:
    chance = world.random
    dependencies, requirements = [], []
    near = earlier[-12:]
    wanted = min(len(near), int(chance.expovariate(1 / REACH[shape])))
    for before in chance.sample(near, wanted) if wanted else ():
        condition = chance.choices(CONDITIONS, cum_weights=CONDITION_WEIGHTS)[0]
        dependencies.append(Dependency(before.id, condition))
        if condition is Condition.SUCCESS and before.results and chance.random() < 0.5:
            requirements.append(Requirement(before.results[0].path, f"from/{before.id}"))
        if condition is Condition.SUCCESS and chance.random() < 0.3:
            requirements += _of_one_before(before, near, chance)
    seconds = size.task_s * chance.random() ** 3
    resources = {"cpus": float(chance.choice((1, 1, 1, 2)))}
    if chance.random() < 0.2:
        resources["memory_mb"] = float(chance.choice((100, 500, 1000)))
    return TaskDefinition(
        id=f"t{number}",
        commands=(command(seconds, 0.3 if fails and chance.random() < 0.15 else 0.0),),
        dependencies=tuple(dependencies),
        requirements=tuple(requirements),
        results=tuple([Result("out", f"{run}/t{number}/{k}") for k in range(chance.choice((0, 1, 1, 3)))]),
        overwrite_result=True,
        resources=resources,
        priority=chance.choice((0, 0, 0, 5)),
        runtime_s=seconds if chance.random() < 0.3 else None,
        timeout_s=seconds if fails and chance.random() < 0.05 else None,
        retries=Retries(chance.choice((0, 1, 2))),
        labels=("some",) if chance.random() < 0.3 else (),
    )


def _of_one_before(task: TaskDefinition, near: list[TaskDefinition], chance: random.Random) -> list[Requirement]:
    """Results of the task's own dependencies, which its dependents may require, too."""
    wanted = {dependency.id for dependency in task.dependencies if dependency.on is Condition.SUCCESS}
    makers = [other for other in near if other.id in wanted and other.results]
    if not makers:
        return []
    maker = chance.choice(makers)
    return [Requirement(maker.results[0].path, f"from/{task.id}-{maker.id}")]


def make_arrays(
    chance: random.Random, run: str, tasks: list[TaskDefinition], size: Size, fails: bool
) -> list[TaskDefinition]:
    """Make arrays that depend on tasks of the list and on each other, element by element or as wholes, and a task that
    depends on one of them."""
    plain = [task.id for task in tasks if not task.init]
    count = chance.randint(*ELEMENTS)
    found: list[TaskDefinition] = []
    for name in ARRAY_IDS[: chance.randint(1, len(ARRAY_IDS))]:
        dependencies = [
            Dependency(id, chance.choices(CONDITIONS, cum_weights=CONDITION_WEIGHTS)[0])
            for id in chance.sample(plain, chance.choice((0, 0, 1)))
        ]
        for before in found:
            if chance.random() < 0.7:
                condition = chance.choices(CONDITIONS, cum_weights=CONDITION_WEIGHTS)[0]
                dependencies.append(Dependency(before.id, condition, each=chance.random() < 0.7))
        fails_in = 0.3 if fails and chance.random() < 0.3 else 0.0
        found.append(
            TaskDefinition(
                name,
                (command(size.task_s * 0.3 * chance.random(), fails_in),),
                tuple(dependencies),
                results=(Result("out", f"{run}/{name}/%03d"),) if chance.random() < 0.3 else (),
                retries=Retries(chance.choice((0, 1))),
                array=ArrayOf(f"1-{count}"),
            )
        )
    last = Dependency(found[-1].id, chance.choices(CONDITIONS, cum_weights=CONDITION_WEIGHTS)[0])
    return [*found, TaskDefinition("behind", (command(0.1, 0.0),), (last,))]


def _as_calls(tasks: list[TaskDefinition], chance: random.Random) -> list[TaskDefinition]:
    """Make calls of some tasks that neither make nor require files; calls need the values of their dependencies."""
    calls: set[str] = set()
    made = []
    for task in tasks:
        if not (task.init or task.results or task.requirements or task.stdout) and chance.random() < 0.7:
            waits_for = [on.id for on in task.dependencies if on.on is Condition.SUCCESS]
            # All its dependencies: the boss sends the values of all.
            needs = tuple(waits_for) if calls.issuperset(on.id for on in task.dependencies) else ()
            call = Call(task.commands[0], "function", code=b"code", needs=needs if len(waits_for) == len(needs) else ())
            task = msgspec.structs.replace(task, commands=(), call=call)
            calls.add(task.id)
        made.append(task)
    return made


def _burst(chance: random.Random) -> list[TaskDefinition]:
    """Make independent calls of one function, as a program submits them; a few take long."""
    made = []
    for number in range(chance.randint(*BURST)):
        seconds = chance.uniform(0.3, 3.0) if chance.random() < 0.03 else chance.uniform(0.001, 0.03)
        call = Call(command(seconds, 0.0), "burst", code=b"code")
        made.append(TaskDefinition(f"c{number}", call=call, resources={"cpus": 1.0}, retries=Retries(2)))
    return made


def _sums(tasks: Sequence[TaskDefinition], chance: random.Random) -> list[TaskDefinition]:
    """Make calls that need the values of several others."""
    calls = [task.id for task in tasks if task.call is not None]
    made = []
    for number in range(chance.randint(0, 3) if calls else 0):
        needs = tuple(chance.sample(calls, min(len(calls), chance.randint(2, 8))))
        call = Call(command(chance.uniform(0.01, 0.5), 0.0), "sum", code=b"code", needs=needs)
        waits_for = tuple([Dependency(id) for id in needs])
        made.append(TaskDefinition(f"s{number}", dependencies=waits_for, call=call, retries=Retries(2)))
    return made


def _with_command(task: TaskDefinition, text: str) -> TaskDefinition:
    """Return the task with another command, or the call with another function."""
    if task.call is None:
        return msgspec.structs.replace(task, commands=(text,))
    return msgspec.structs.replace(task, call=msgspec.structs.replace(task.call, name=text))


class Scenario:
    """The actions of one or several users. `workers` returns the workers on duty."""

    def __init__(
        self,
        world: World,
        clients: list[Client],
        size: Size,
        fails: bool,
        gpus: int,
        workers: Callable[[], list[str]],
        poison: float = 0.0,
        states_long: bool = False,
    ) -> None:
        self.world = world
        self.clients = clients
        self.size = size
        self.fails = fails
        self.gpus = gpus
        self.workers = workers
        self.poison = poison
        self.states_long = states_long
        """Whether some tasks state long run times."""
        self._stated = random.Random(world.seed + 12)
        self._poisons, self._extras = random.Random(world.seed + 5), random.Random(world.seed + 6)
        """Separate random generators: other draws stay the same."""
        self._arrays = random.Random(world.seed + 7)
        self.runs: dict[str, list[TaskDefinition]] = {}
        self._calls = random.Random(world.seed + 8)
        self._held_pool = ""
        self._count = 0
        chance = world.random
        for number in range(chance.randint(*size.runs)):
            when = 0.0 if number == 0 else chance.uniform(0.0, size.troubled_s / 2)
            world.after(when, partial(self._push_first, f"run{number}"))
        for _ in range(chance.randint(*size.wishes)):
            world.after(chance.uniform(1.0, size.troubled_s * 0.9), self._wish)

    def _id(self, what: str) -> str:
        self._count += 1
        return f"{what}-{self._count}"

    def _push_first(self, name: str) -> None:
        client = self.world.random.choice(self.clients)
        tasks = self._make_tasks(name)
        self.runs[name] = tasks
        self.world.tell(client.name, f"pushes {len(tasks)} tasks to {name}")
        client.push(self._id("push"), PushOptions(run=name), tasks)
        if self.world.random.random() < 0.3:
            client.ask(self._id("watch"), "watch", run=name)

    def _make_tasks(self, name: str) -> list[TaskDefinition]:
        chance = self.world.random
        tasks = make_tasks(self.world, name, chance.randint(*self.size.tasks), self.size, self.fails)
        if self.gpus:
            for index, task in enumerate(tasks):
                if not task.init and chance.random() < 0.2:
                    asks = {**task.resources, "gpus": float(chance.randint(1, self.gpus))}
                    tasks[index] = msgspec.structs.replace(task, resources=asks)
        tasks = [self._with_extras(name, task) for task in tasks]
        if self._calls.random() < CALLS:
            tasks = _as_calls(tasks, self._calls)
            if self._calls.random() < BURSTS:
                tasks += _burst(self._calls)
            tasks += _sums(tasks, self._calls)
        if self.poison and self._poisons.random() < self.poison:
            index = self._poisons.choice([index for index, task in enumerate(tasks) if not task.init])
            tasks[index] = _with_command(tasks[index], poison(self._poisons.random()))
        if self._arrays.random() < self.size.arrays:
            tasks += make_arrays(self._arrays, name, tasks, self.size, self.fails)
        return [self._with_run_time(task) for task in tasks] if self.states_long else tasks

    def _with_run_time(self, task: TaskDefinition) -> TaskDefinition:
        if task.init or self._stated.random() >= STATED:
            return task
        return msgspec.structs.replace(task, runtime_s=self._stated.uniform(*STATED_S))

    def _with_extras(self, run: str, task: TaskDefinition) -> TaskDefinition:
        """Some tasks keep their whole output, even if they fail; some need more memory than they request at first."""
        chance = self._extras
        if task.init:
            return task
        if chance.random() < 0.2:
            name = chance.choice(("%t", "%t.%a"))
            task = msgspec.structs.replace(task, stdout=f"{run}/output/{name}")
        if self.fails and chance.random() < 0.1:
            asks = chance.choice((100.0, 500.0))
            task = msgspec.structs.replace(
                task,
                commands=(greedy(chance.random(), asks * 1.5),),
                resources={**task.resources, "memory_mb": asks},
                retries=msgspec.structs.replace(task.retries, grow=2.0),
            )
        return task

    def _wish(self) -> None:
        """Make one random action of a user."""
        chance = self.world.random
        if not self.runs:
            return
        client = chance.choice(self.clients)
        name = chance.choice(sorted(self.runs))
        verb = chance.choice((*ABOUT_TASKS, *ABOUT_WORKERS, "push", "push", "push"))
        if verb == "push":
            self._push_again(client, name)
            return
        arguments = self._about_workers(verb) if verb in ABOUT_WORKERS else self._about_tasks(verb, name)
        self.world.tell(client.name, f"asks {verb} {arguments}")
        client.ask(self._id(verb), verb, **arguments)  # type: ignore[arg-type]

    def _about_tasks(self, verb: str, name: str) -> dict[str, object]:
        chance = self.world.random
        tasks = [task for task in chance.sample(self.runs[name], chance.randint(1, 3)) if not task.init]
        ids = [f"{name}:{task.id}" for task in tasks[: 1 if verb == "logs" else None]]
        ids = [self._some_of(id) if id.endswith(ARRAY_IDS) else id for id in ids]
        by_id = bool(ids) and verb != "watch" and chance.random() < 0.7
        arguments: dict[str, object] = {"ids": ids} if by_id else {"run": name}
        if verb == "redo_task":
            arguments["below"] = chance.random() < 0.5
        return arguments

    def _some_of(self, array: str) -> str:
        """Return an array as a whole, an element of it, or a range."""
        first = self._arrays.randint(1, ELEMENTS[0])
        return self._arrays.choice((array, f"{array}[{first}]", f"{array}[{first}-{first + 9}]"))

    def _about_workers(self, verb: str) -> dict[str, object]:
        chance = self.world.random
        if verb == "instantiate_worker":
            return {"n": chance.randint(1, 5)}
        workers = self.workers()
        return {"workers": [chance.choice(workers)] if workers else []}

    def plan_holds(self, pool: str) -> None:
        """Let an operator hold the pool in some scenarios, and release it in some of those. One client asks for all of
        it, one after another."""
        chance = random.Random(self.world.seed + 9)
        if chance.random() < HOLDS:
            self._held_pool = pool
            at = chance.uniform(0.0, self.size.troubled_s * 0.9)
            self.world.after(at, partial(self._ask_about_pool, "hold_pool"))
            if chance.random() < 0.5:
                self.world.after(at + chance.uniform(0.0, 10.0), partial(self._ask_about_pool, "release_pool"))

    def _ask_about_pool(self, verb: str) -> None:
        self.world.tell(self.clients[0].name, f"asks {verb}")
        self.clients[0].ask(self._id(verb), verb, pool=self._held_pool)

    def make_peace(self) -> None:
        """At the end, undo the actions that would keep tasks waiting for ever."""
        self.clients[0].ask(self._id("undrain_worker"), "undrain_worker")
        if self._held_pool:
            self._ask_about_pool("release_pool")

    def _push_again(self, client: Client, name: str) -> None:
        """Push the same list, a changed list, or another one."""
        chance = self.world.random
        kind = chance.choice(("same", "changed", "other"))
        tasks = list(self.runs[name])
        if kind == "other":
            tasks = self._make_tasks(name)
        elif kind == "changed":
            for index in chance.sample(range(len(tasks)), min(3, len(tasks))):
                tasks[index] = _with_command(tasks[index], command(chance.random(), 0.0))
        self.runs[name] = tasks
        strategy = chance.choice(("keep_succeeded", "replace"))
        skip = chance.random() < 0.2
        self.world.tell(client.name, f"pushes {kind} {len(tasks)} tasks to {name}, {strategy}{', skips' * skip}")
        options = PushOptions(run=name, merge_strategy=strategy, skip_existing=skip)
        client.push(self._id("push"), options, tasks)
