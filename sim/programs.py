"""Simulated users' programs: each extends a run, push by push, several pushes at a time.

Everything is drawn from random numbers of its own: scenarios without programs stay as they are. Owns the times of the
programs' pushes, and the ends of calls that each program waits for.
"""

from __future__ import annotations

import random
from functools import partial

import msgspec

from ecloud.model import wire
from ecloud.model.tasks import (
    ENDED,
    Call,
    Condition,
    Dependency,
    Requirement,
    Result,
    Retries,
    TaskDefinition,
    TaskState,
)
from ecloud.model.wire import PushOptions
from sim.client import Client
from sim.network import Network
from sim.run_checker import RunChecker
from sim.scenario import ARRAY_IDS, CONDITION_WEIGHTS, CONDITIONS, Size
from sim.store import Tables
from sim.worker_shell import command
from sim.world import World

PUSHES = (2, 14)
"""Range of the number of pushes of a program."""
ACCESSES = (0, 2)
"""Range of how often a program requests access to the datastore."""
WINDOW = 3
"""Pushes of a program that wait for their answers at a time."""
ASK_AGAIN_S = 5.0
"""Interval at which a program asks for the ends of its calls."""
ODD = 0.1
"""Fraction of pushes with a task that may not fit the run."""
NEW = (0, 5)
"""Range of the number of new tasks in a push."""


class Programs:
    """All programs of a scenario, and their runs."""

    def __init__(
        self, world: World, network: Network, tables: Tables, checker: RunChecker, size: Size, fails: bool
    ) -> None:
        self.world = world
        self.tables = tables
        self.checker = checker
        self.size = size
        self.fails = fails
        self.clients: list[Program] = []
        self._chance = chance = random.Random(world.seed + 11)
        self._count = 0
        if not size.runs[1] or chance.random() >= size.programs:
            return
        for number in range(chance.choice((1, 1, 2))):
            program = Program(f"p{number + 1}", world, network, checker)
            self.clients.append(program)
            run = chance.choice(("run0", "run0", "grown"))
            when = chance.uniform(0.0, size.troubled_s / 2)
            if chance.random() < 0.5:
                world.after(when, partial(program.ask, f"watch-{program.name}", "watch", run=run, calls=True))
            for _ in range(chance.randint(*ACCESSES)):
                world.after(chance.uniform(0.0, size.troubled_s), program.open_datastore)
            for _ in range(chance.randint(*PUSHES)):
                world.after(when, partial(self._push, program, run))
                when += chance.expovariate(1 / 1.5)

    def _push(self, program: Program, run: str) -> None:
        """Extend the run by new tasks, by tasks that it has, or both."""
        chance = self._chance
        known = self._known(run)
        again = [] if chance.random() < 0.6 else chance.sample(known, min(len(known), chance.randint(1, 3)))
        changes = chance.random() < 0.4
        again = _with_arrays_before(again, known)
        tasks = [self._again(task, known) if changes else task for task in again]
        for _ in range(max(chance.randint(*NEW), 0 if tasks else 1)):
            tasks.append(self._new(run, known + tasks[len(again) :]))
        odd = self._odd(run, known)
        tasks = [task for task in tasks if task.id not in {other.id for other in odd}] + odd
        options = PushOptions(run, "extend", replace_changed=chance.random() < 0.4, skip_existing=chance.random() < 0.1)
        self._count += 1
        push_id = f"extend-{self._count}"
        self.checker.pushes[push_id] = (options, tuple(tasks))
        names = ", ".join(task.id for task in tasks)
        self.world.tell(program.name, f"extends {run} by {names}{', replaces' * options.replace_changed}")
        program.extend(push_id, options, tasks)

    def _odd(self, run: str, known: list[TaskDefinition]) -> list[TaskDefinition]:
        """Rarely, a task that waits for an init task, for an element of an array, or for a task that waits for it; or a
        task with the id of an element."""
        chance = self._chance
        if chance.random() >= ODD:
            return []
        kind = chance.choice(("after init", "after element", "is element", "cycle"))
        array = chance.choice(ARRAY_IDS)
        self._count += 1
        task = TaskDefinition(f"x{self._count}", (command(0.1, 0.0),))
        if kind == "after init" and any(row.init and row.id == "init0" for row in self.tables.tasks.values()):
            return [msgspec.structs.replace(task, dependencies=(Dependency("init0"),))]
        if kind == "after element":
            return [msgspec.structs.replace(task, dependencies=(Dependency(f"{array}[3]"),))]
        if kind == "is element":
            return [msgspec.structs.replace(task, id=f"{array}[3]")]
        behind = [other for other in known if other.dependencies and other.array is None]
        if kind == "cycle" and behind:
            last = chance.choice(behind)
            first = next((other for other in known if other.id == last.dependencies[0].id), None)
            if first is not None and first.array is None and first.call is None and not first.requirements:
                return [msgspec.structs.replace(first, dependencies=(Dependency(last.id),))]
        return []

    def _known(self, run: str) -> list[TaskDefinition]:
        """The tasks of the run, as the database has them now, without init tasks and elements."""
        run_no = next((row.run_no for row in self.tables.runs.values() if row.name == run), None)
        rows = [self.tables.tasks[task_no] for task_no in sorted(self.tables.tasks)]
        elements = {row.task_no for row in rows if row.id.endswith("]")}
        return [
            msgspec.json.decode(self.tables.stored[row.task_no], type=TaskDefinition)
            for row in rows
            if row.run_no == run_no and not row.init and row.task_no not in elements
        ]

    def _new(self, run: str, before: list[TaskDefinition]) -> TaskDefinition:
        """A new task or call, which may depend on any task before it."""
        chance = self._chance
        self._count += 1
        near = before[-12:]
        dependencies, requirements = [], []
        for other in chance.sample(near, min(len(near), chance.choice((0, 1, 1, 2, 3)))):
            condition = chance.choices(CONDITIONS, cum_weights=CONDITION_WEIGHTS)[0]
            dependencies.append(Dependency(other.id, condition))
            if condition is Condition.SUCCESS and other.results and other.array is None and chance.random() < 0.5:
                requirements.append(Requirement(other.results[0].path, f"from/{other.id}"))
        name = f"x{self._count}"
        text = command(self.size.task_s * chance.random() ** 3, 0.3 if self.fails and chance.random() < 0.15 else 0.0)
        task = TaskDefinition(
            name, (text,), tuple(dependencies), tuple(requirements), retries=Retries(chance.choice((0, 1)))
        )
        if requirements or chance.random() < 0.4:
            results = tuple([Result("out", f"{run}/{name}/{k}") for k in range(chance.choice((0, 1, 2)))])
            return msgspec.structs.replace(task, results=results)
        calls = {other.id for other in near if other.call is not None}
        needs = tuple([wanted.id for wanted in dependencies if wanted.on is Condition.SUCCESS])
        if len(needs) < len(dependencies) or not calls.issuperset(needs):
            needs = ()
        return msgspec.structs.replace(task, commands=(), call=Call(text, "function", code=b"code", needs=needs))

    def _again(self, task: TaskDefinition, known: list[TaskDefinition]) -> TaskDefinition:
        """A task of the run with another command, and sometimes with other dependencies: earlier tasks, so that there
        is no cycle."""
        chance = self._chance
        text = command(chance.random(), 0.0)
        if task.call is not None:
            task = msgspec.structs.replace(task, call=msgspec.structs.replace(task.call, name=text))
        else:
            task = msgspec.structs.replace(task, commands=(text,))
        earlier = known[: [other.id for other in known].index(task.id)]
        plain = task.array is None and task.call is None and not task.requirements
        if plain and earlier and chance.random() < 0.5:
            others = chance.sample(earlier, min(len(earlier), chance.randint(0, 2)))
            task = msgspec.structs.replace(task, dependencies=tuple([Dependency(other.id) for other in others]))
        return task


def _with_arrays_before(tasks: list[TaskDefinition], known: list[TaskDefinition]) -> list[TaskDefinition]:
    """Add the arrays for whose elements others wait: they must be in one list."""
    wanted = {task.id for task in tasks}
    for task in reversed(known):  # arrays wait for earlier ones
        if task.id in wanted:
            wanted |= {dependency.id for dependency in task.dependencies if dependency.each}
    return [task for task in known if task.id in wanted]


class Program(Client):
    """A client that sends several pushes at a time, and waits for the ends of its calls."""

    window = WINDOW

    def __init__(self, name: str, world: World, network: Network, checker: RunChecker) -> None:
        super().__init__(name, world, network)
        self._checker = checker
        self._accesses = 0
        self.pending: dict[str, str] = {}
        """Runs of the calls that it waits for, by id."""
        self._pushed: dict[str, tuple[str, list[str]]] = {}
        """Run and calls of each push without an answer."""
        self._asked: set[str] = set()
        """Calls in its present request, and not in the pages of its answer so far."""
        self._request = ""
        self._asks = 0
        world.after(ASK_AGAIN_S, self._ask_again)

    def extend(self, push_id: str, options: PushOptions, tasks: list[TaskDefinition]) -> None:
        """Push these tasks."""
        self._pushed[push_id] = (options.run, [task.id for task in tasks if task.call is not None])
        self.push(push_id, options, tasks)

    def open_datastore(self) -> None:
        """Request access to the datastore with a new key."""
        self._accesses += 1
        key = f"open-{self.name}-{self._accesses}"
        self.ask(key, "open_datastore", public_key=key)

    def lacks(self, tables: Tables) -> list[str]:
        """Calls that ended, without the program's knowledge."""
        runs = {row.name: row.run_no for row in tables.runs.values()}
        rows = {id: tables.tasks.get(tables.ids.get((runs.get(run, 0), id), 0)) for id, run in self.pending.items()}
        return [id for id, row in rows.items() if row is None or row.state in ENDED]

    def _ask_again(self) -> None:
        """Ask for the ends of pending calls of one run."""
        self.world.after(ASK_AGAIN_S, self._ask_again)
        if self.pending and not self._request:
            run = next(iter(self.pending.values()))
            self._asks += 1
            request_id = f"calls-{self.name}-{self._asks}"
            ids: list[str | int] = [id for id, of in self.pending.items() if of == run]
            self._request, self._asked = request_id, {str(id) for id in ids}
            self.ask(request_id, "calls", run=run, ids=ids)

    def _on_answer(self, message: wire.Message) -> None:
        if isinstance(message, wire.RunAccepted) and message.push_id in self._pushed:
            run, ids = self._pushed.pop(message.push_id)
            self.pending.update(dict.fromkeys(ids, run))
        elif isinstance(message, wire.RequestDone) and message.request_id.startswith("open-"):
            granted = msgspec.json.decode(message.text, type=wire.DatastoreGranted)
            self._checker.on_granted(self.name, message.request_id, granted.datastore.credential)
        elif isinstance(message, wire.CallsEnded):
            for call in message.calls:
                if message.request_id == self._request:
                    self._asked.discard(call.id)
                if TaskState(call.state) in ENDED and self.pending.get(call.id) == message.run:
                    del self.pending[call.id]
        super()._on_answer(message)
        if self._request in self.answers:
            for id in self._asked:  # calls, or a whole run, that were dropped
                self.pending.pop(id, None)
            self._request = ""
