"""The workers as the boss sees them: what each offers, what it holds, and how long its lease lasts.

Owns `Worker`s and their `Attempt`s that have not ended, and the accounting of resources. An attempt is either *in a
slot* (its resources are taken) or *ahead* (queued at the worker beyond what runs, so that the worker never waits for
the boss). The worker applies the same rule to the same queue: first in order that fits.
"""

from __future__ import annotations

import itertools
import math

import msgspec

from boss.core.model.graph import Input, Shape
from boss.core.model.outbox import Conversation
from boss.core.model.rows import WorkerRow
from ecloud.model.tasks import ROUNDING, AttemptState, Outcome, Resources, Result, fits
from ecloud.model.worker_states import LEGAL_WORKER_MOVES, WorkerState

MAX_AMOUNT = 1e9
"""The most of anything that a worker is believed to offer: no machine has more, and sums of it stay exact."""
LOOKED_AT = 8
"""Attempts ahead that are considered when a slot becomes free."""

MachineKey = tuple[str, str, str]
"""Boot id, machine id and part of the machine: equal for the workers of one machine."""


class Attempt(msgspec.Struct, eq=False):
    """One try that is not over. `worker`: the process it was given to, which names its stage. `order`: number of the
    message of `session` that ordered it; `ahead_s`: its guess, while ahead; `declares`: the results that its order
    declared, the only ones that it may publish; `runtime_s`: what its task states, 0 for nothing.

    `chained`: it was given before the ends of its task's dependencies were recorded, and they are not yet. `after`: the
    attempts it waits for at its worker; `followers`: those that wait for it; `has_heir`: one of them takes its place.
    """

    task_no: int
    number: int
    run_no: int
    worker: str
    shape: Shape
    state: AttemptState
    assigned_at: float
    started_at: float | None = None
    session: str = ""
    order: int = 0
    in_slot: bool = False
    ahead_s: float = 0.0
    init: bool = False
    apart: bool = False
    chained: bool = False
    after: tuple[tuple[int, int], ...] = ()
    followers: list[tuple[int, int]] | None = None
    has_heir: bool = False
    returning: bool = False
    forgotten: bool = False
    reason: str = ""
    outcome: Outcome | None = None
    declares: tuple[Result, ...] = ()
    runtime_s: float = 0.0
    was_leaving: bool = False
    """An earlier process of its worker was leaving while it held it."""


def how_many(offers: Resources, shape: Shape, at_most: int = 1_000_000) -> int:
    """How many tasks of `shape` fit side by side into `offers`."""
    for name, amount in shape.asks:
        room = int((offers.get(name, 0.0) + ROUNDING) / amount)
        if room < at_most:
            at_most = room
    return at_most


def covers(shape: Shape, other: Shape) -> bool:
    """Whether `shape` asks for all that `other` does, and as much of it."""
    if shape is other:
        return True
    asks = dict(shape.asks)
    return all(asks.get(name, 0.0) >= amount for name, amount in other.asks)


def believed(offer: Resources) -> Resources:
    """What a worker offers, within what a machine can: no other amounts are reckoned with."""
    return {name: min(max(float(amount), 0.0), MAX_AMOUNT) for name, amount in offer.items()}


class Worker(msgspec.Struct, eq=False):
    """A worker process; `name`: as a peer. `held`: its attempts by (task_no, number), in the order they were given.

    `inits`: init tasks by how they stand in this process: "given", "succeeded", "failed". `resting`: runs it gave back,
    until its next heartbeat. `slow`: something was retracted and nothing ended since: no queue ahead. `conversation`
    is None from a boss's start until the worker is heard again. `fetched`: big inputs it has or is fetching, the
    latest last.
    """

    name: str
    row: WorkerRow
    capacity: Resources
    free: Resources
    lease_until: float
    conversation: Conversation | None = None
    held: dict[tuple[int, int], Attempt] = msgspec.field(default_factory=dict)
    access_asked_at: float | None = None
    """When a signature for its key was asked for that has not come."""
    refused_at: float | None = None
    """When one was asked for because the one before was refused."""
    ahead: dict[tuple[int, int], Attempt] = msgspec.field(default_factory=dict)
    chained: dict[tuple[int, int], Attempt] = msgspec.field(default_factory=dict)
    """Those that wait for others here: neither in a slot nor ahead until the ends of these are recorded."""
    ahead_s: float = 0.0
    """Guesses of what is ahead and chained."""
    inits: dict[int, str] = msgspec.field(default_factory=dict)
    resting: set[int] = msgspec.field(default_factory=set)
    idle_since: float | None = None
    leaving: bool = False
    claimed_by: str = ""
    """A process on another machine, or after another boot, that says that it has this home, too."""
    claimed_at: float = 0.0
    slow: bool = False
    alone: bool = False
    """It holds an attempt that runs alone (`Suspects`): nothing is queued behind that."""
    fetched: dict[Input, None] = msgspec.field(default_factory=dict)
    shrunk: bool = False
    """It lost what attempts still occupy."""
    own: Resources = msgspec.field(default_factory=dict)
    """What is left of its capacity. `free` is the same object, but on a shared machine: there it is no more than the
    machine has left."""
    machine_key: MachineKey | None = None
    """The machine that it reported from when it joined."""
    shares_machine: bool = False
    """Whether the workers of its machine together offer more than the machine has."""
    ends_at: float = math.inf
    """When its machine ends, if it is known. Set by `Fleet.set_end`."""

    def __post_init__(self) -> None:
        self.own = self.free

    @property
    def takes_tasks(self) -> bool:
        """Whether it may be given anything now."""
        return self.conversation is not None and self.row.state is WorkerState.UP and not self.row.trouble

    def left_s(self, now: float) -> float:
        """Seconds until its machine ends."""
        return self.ends_at - now

    def move(self, state: WorkerState, reason: str, since: float) -> None:
        """Change its state. The caller writes the row."""
        assert (self.row.state, state) in LEGAL_WORKER_MOVES, f"worker {self.name}: {self.row.state} to {state}"
        self.row = msgspec.structs.replace(self.row, state=state, reason=reason, since=since)

    @property
    def waiting(self) -> int:
        """Attempts queued there beyond what runs."""
        return len(self.ahead) + len(self.chained)

    def take(self, attempt: Attempt) -> None:
        """Account for an attempt given to it: in a slot where it fits, else ahead."""
        key = (attempt.task_no, attempt.number)
        self.held[key] = attempt
        self.alone = self.alone or attempt.apart
        self.idle_since = None
        if attempt.chained:
            self.chained[key] = attempt
            self.ahead_s += attempt.ahead_s
        elif fits(self.own, attempt.shape.asks):
            self._occupy(attempt)
        else:
            self.ahead[key] = attempt
            self.ahead_s += attempt.ahead_s

    def resize(self, capacity: Resources) -> None:
        """It offers something else from now on. What it holds stays: what is left may be below zero."""
        for name, amount in capacity.items():
            self.own[name] = self.own.get(name, 0.0) + amount - self.capacity.get(name, 0.0)
        for name in self.capacity.keys() - capacity.keys():
            self.own[name] -= self.capacity[name]
        self.shrunk = any(amount < -ROUNDING for amount in self.own.values())
        self.capacity = capacity

    def unchain(self, attempt: Attempt) -> None:
        """What it waited for is recorded: it is like any other attempt from now."""
        key = (attempt.task_no, attempt.number)
        attempt.chained = False
        del self.chained[key]
        if fits(self.own, attempt.shape.asks):
            self.ahead_s -= attempt.ahead_s
            self._occupy(attempt)
        else:
            self.ahead[key] = attempt

    def release(self, attempt: Attempt, now: float) -> None:
        """Account for an attempt it holds no more; what was ahead moves up, first in order that fits."""
        key = (attempt.task_no, attempt.number)
        del self.held[key]
        self.alone = self.alone and not attempt.apart
        if attempt.in_slot:
            attempt.in_slot = False
            self.slow = False
            own = self.own
            for name, amount in attempt.shape.asks:
                own[name] += amount
            if self.ahead:
                self._move_up()
        elif self.ahead.pop(key, None) is not None or self.chained.pop(key, None) is not None:
            self.ahead_s -= attempt.ahead_s
        if not self.held:
            self.own = self.free = dict(self.capacity)
            self.shrunk = False
            self.ahead_s = 0.0
            self.idle_since = now

    def _move_up(self) -> None:
        # Nearly always the first fits; looking at all 256 for each outcome would cost more than placing.
        too_large: Shape | None = None
        for key, attempt in list(itertools.islice(self.ahead.items(), LOOKED_AT)):
            if attempt.shape is too_large:
                continue
            if fits(self.own, attempt.shape.asks):
                del self.ahead[key]
                self.ahead_s -= attempt.ahead_s
                self._occupy(attempt)
            else:
                too_large = attempt.shape

    def _occupy(self, attempt: Attempt) -> None:
        attempt.in_slot = True
        own = self.own
        for name, amount in attempt.shape.asks:
            own[name] -= amount

    def check(self) -> None:
        """Invariants: never more in slots than it has; free + taken = capacity; the guesses of what waits add up."""
        waiting_s = sum([attempt.ahead_s for attempt in (*self.ahead.values(), *self.chained.values())])
        assert abs(self.ahead_s - waiting_s) < 0.001, f"{self.name}: {self.ahead_s} s ahead, not {waiting_s}"
        taken: Resources = {}
        for key, attempt in self.held.items():
            assert key == (attempt.task_no, attempt.number)
            places = attempt.in_slot + (key in self.ahead) + (key in self.chained)
            assert places == 1, f"{key} is in {places} of slot, queue ahead and chain"
            assert attempt.chained == (key in self.chained)
            if attempt.in_slot:
                for name, amount in attempt.shape.asks:
                    taken[name] = taken.get(name, 0.0) + amount
        assert all(self.name in part.holders for part in self.fetched), f"{self.name} is not known to have inputs"
        for name, amount in taken.items():
            assert self.shrunk or amount <= self.capacity.get(name, 0.0) + 0.001, f"{self.name}: {amount} {name} taken"
        for name, amount in self.capacity.items():
            assert abs(self.own[name] + taken.get(name, 0.0) - amount) < 0.001, f"{self.name}: {name} does not add up"
