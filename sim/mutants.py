"""Mutants: each switches off one protection of the product, here and not by a flag there. The checker must find each.

    hunt(MUTANTS["fencing"], seeds=200)

A mutant is a patch of a method for as long as its seeds run. One that survives means that the checker is blind or the
protection is of no use; `docs/guarantees.md` names them all, with the promise that each guards.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from boss.core.attempts import Attempts as BossAttempts
from boss.core.duty import Duty
from boss.core.effects import StartVm
from boss.core.pushes import Pushes
from boss.core.stages import Stages
from boss.core.vms import Vms
from ecloud import wire
from sim import faults, simulation
from sim.boss_shell import BossProcess
from sim.simulation import Result
from sim.store import Store
from sim.worker_shell import WorkerProcess
from worker.attempts import Attempts as WorkerAttempts
from worker.core import WorkerCore

SEEDS = 200
"""Within so many seeds each must be found."""
Patch = tuple[type, str, Callable[[Any], Any]]
"""A class, the name of its method, and what makes the mutant's method of the true one."""


class Mutant(msgspec.Struct, frozen=True):
    """`without`: what is switched off; `found_by`: the invariants any of which finds it (`assertion`: a core's own
    `check`)."""

    without: str
    found_by: tuple[str, ...]
    patches: tuple[Patch, ...]
    under: faults.Faults | None = None
    """What goes wrong in its seeds; without it, whatever they draw."""


class Hunt(msgspec.Struct, frozen=True):
    """What came of a mutant: the result in which it was found, or None, after how many seeds."""

    name: str
    seeds: int
    found: Result | None

    @property
    def invariant(self) -> str:
        """Which invariant saw it; a core's own assertion is named as such."""
        if self.found is None:
            return ""
        _, opened, rest = self.found.problem.partition("[")
        return rest.partition("]")[0] if opened else "assertion"


@contextmanager
def patched(mutant: Mutant) -> Iterator[None]:
    """The protection is off inside."""
    kept = [(owner, name, owner.__dict__[name]) for owner, name, _ in mutant.patches]
    for owner, name, make in mutant.patches:
        setattr(owner, name, make(owner.__dict__[name]))
    try:
        yield
    finally:
        for owner, name, true in kept:
            setattr(owner, name, true)


def hunt(name: str, seeds: int = SEEDS, first: int = 1) -> Hunt:
    """Run seeds until one of them finds the mutant."""
    mutant = MUTANTS[name]
    with patched(mutant):
        for seed in range(first, first + seeds):
            drawn = mutant.under or faults.draw(random.Random(seed + 1))
            result = simulation.Simulation(seed, msgspec.structs.replace(drawn)).run()
            if result.problem:
                return Hunt(name, seed - first + 1, result)
    return Hunt(name, seeds, None)


# --- fencing, leases, sessions -------------------------------------------------------------------------


def _any_attempt_of_the_task(true: Any) -> Any:
    def on_ended(self: BossAttempts, worker: Any, outcomes: Any, now: float) -> None:
        taken = []
        for outcome in outcomes:
            node = self._book.graph.nodes.get(outcome.task_no)
            number = outcome.number
            if node is not None and (outcome.task_no, number) not in worker.held and node.assigned:
                other = self._fleet.workers.get(self.holder(self.active[(outcome.task_no, node.assigned)]))
                if other is not None:
                    renamed = msgspec.structs.replace(outcome, number=node.assigned)
                    true(self, other, [renamed], now)
            taken.append(outcome)
        true(self, worker, taken, now)

    return on_ended


def _lost_at_once(true: Any) -> Any:
    return property(lambda self: self._config.heartbeat_s * 1.5)


def _starts_without_lease(true: Any) -> Any:
    def may_start(self: WorkerCore, now: float) -> bool:
        kept, self._lease_until = self._lease_until, now + 1.0
        try:
            return bool(true(self, now))
        finally:
            self._lease_until = kept

    return may_start


def _keeps_its_queue(true: Any) -> Any:
    def on_welcome(self: WorkerCore, envelope: Any, welcome: Any, now: float) -> None:
        give_back = self.attempts.give_back_queue
        self.attempts.give_back_queue = lambda: None  # type: ignore[method-assign]
        try:
            true(self, envelope, welcome, now)
        finally:
            self.attempts.give_back_queue = give_back  # type: ignore[method-assign]

    return on_welcome


def _hears_numbers_again(true: Any) -> Any:
    def on_message(self: WorkerCore, envelope: Any, now: float) -> None:
        seen, self._seen = self._seen, 0
        true(self, envelope, now)
        self._seen = max(seen, self._seen)

    return on_message


def _takes_what_is_in_flight_for_lost(true: Any) -> Any:
    def reconcile(self: BossAttempts, worker: Any, inventory: Any, orders_seen: int, now: float) -> None:
        true(self, worker, inventory, 1 << 60, now)

    return reconcile


def _any_process_replaces(true: Any) -> Any:
    return lambda self, conversation, hello: False


# --- what is written, said and kept ----------------------------------------------------------------------


def _speaks_first(true: Any) -> Any:
    def carry_out(self: BossProcess, effects: Any) -> Any:
        bodies = self._bodies(effects.sends)
        for send in effects.sends:
            self._publish(send, bodies)
        effects.sends = []
        yield from true(self, effects)

    return carry_out


def _asks_the_cloud_first(true: Any) -> Any:
    def carry_out(self: BossProcess, effects: Any) -> Any:
        for call in effects.calls:
            if isinstance(call, StartVm):
                self._call(call)
        effects.calls = [call for call in effects.calls if not isinstance(call, StartVm)]
        yield 0.02
        yield from true(self, effects)

    return carry_out


def _forgets_what_it_said(true: Any) -> Any:
    def say_ended(self: WorkerAttempts, unsaid: Any, now: float) -> None:
        items = list(unsaid)
        true(self, items, now)
        self.on_stored([wire.AttemptName(item.outcome.task_no, item.outcome.number) for item in items])

    return say_ended


def _forgets_its_spool(true: Any) -> Any:
    def begin(self: WorkerCore, config: Any, now: float) -> None:
        true(self, msgspec.structs.replace(config, spooled=()), now)

    return begin


def _does_nothing(true: Any) -> Any:
    return lambda self, *arguments, **named: None


def _answers_all(true: Any) -> Any:
    def record(self: BossAttempts, worker: Any, attempt: Any, outcome: Any, now: float) -> None:
        if outcome.task_no % 7:
            true(self, worker, attempt, outcome, now)

    return record


def _anybody_leads(true: Any) -> Any:
    def require_leading(self: Store) -> None:
        self._epoch = self._epoch

    return require_leading


def _takes_every_push(true: Any) -> Any:
    def on_chunk(self: Pushes, client: Any, chunk: Any) -> None:
        self._answers.pop(chunk.push_id, None)
        true(self, client, chunk)

    return on_chunk


def _finds_no_push(true: Any) -> Any:
    def on_run_loaded(self: Pushes, token: int, image: Any, now: float) -> None:
        if image is not None:
            image.pushes = []
        true(self, token, image, now)

    return on_run_loaded


# --- files ------------------------------------------------------------------------------------------------


def _publishes_itself(true: Any) -> Any:
    def store(self: WorkerProcess, key: Any, job: Any) -> None:
        if not job.over and not self.datastore.away:
            for result in job.body.results:
                self.datastore.publish(result.path, f"{self.name}:{key[0]}-{key[1]}")
        true(self, key, job)

    return store


def _succeeds_before_publishing(true: Any) -> Any:
    def record(self: BossAttempts, worker: Any, attempt: Any, outcome: Any, now: float) -> None:
        true(self, worker, attempt, outcome, now)
        key = (attempt.task_no, attempt.number)
        if key in self.promoting:
            self.on_promoted([(*key, None)], now)

    return record


def _publishes_in_any_order(true: Any) -> Any:
    def promote(self: BossAttempts) -> None:
        self._publishing = set()
        kept = self._to_promote
        self._to_promote = []
        for attempt in reversed(kept):
            self._to_promote = [attempt]
            self._publishing = set()
            true(self)

    return promote


# --- machines ---------------------------------------------------------------------------------------------


def _adopts_none(true: Any) -> Any:
    def on_listed(self: Vms, listed: Any, now: float) -> None:
        true(self, msgspec.structs.replace(listed, by_vm_no={}), now)

    return on_listed


def _asks_for_one_too_many(true: Any) -> Any:
    def start(self: Vms, pool: Any, *arguments: Any) -> int:
        return int(true(self, msgspec.structs.replace(pool, maximum=pool.maximum + 1), *arguments))

    return start


def _ends_what_works(true: Any) -> Any:
    def scale(self: Vms, now: float) -> None:
        true(self, now)
        for vm in self.alive.values():
            worker = self._fleet.workers.get(vm.worker)
            if worker is not None and worker.held:
                self._ask_end(vm, now)

    return scale


def _takes_the_lost_for_running(true: Any) -> Any:
    def on_seen(self: Vms, vm: Any, state: str, text: str, now: float) -> None:
        if vm.state != "running":
            true(self, vm, state, text, now)

    return on_seen


def _starts_unprepared(true: Any) -> Any:
    return lambda self, order: True


def _overfills(true: Any) -> Any:
    return staticmethod(lambda asks, offers: True)


MUTANTS: dict[str, Mutant] = {
    "fencing": Mutant(
        "fencing by attempt: an outcome counts for whatever attempt of the task goes on",
        ("true-outcome", "one-outcome", "files-whole", "published-by-record", "legal-moves"),
        ((BossAttempts, "on_ended", _any_attempt_of_the_task),),
    ),
    "lease": Mutant(
        "the lease: what a silent worker holds is given again after a heartbeat and a half",
        ("lease", "fenced", "outcome-kept"),
        ((Duty, "_patience_s", _lost_at_once),),
    ),
    "own-lease": Mutant(
        "the worker's own lease: it starts what waits there whether the boss counts on it or not",
        ("fenced",),
        ((WorkerCore, "_may_start", _starts_without_lease),),
    ),
    "stale-queue": Mutant(
        "giving back what waited when the lease ended",
        ("fenced",),
        ((WorkerCore, "_on_welcome", _keeps_its_queue),),
    ),
    "numbers": Mutant(
        "session numbers: an order that is heard twice is obeyed twice",
        ("ordered", "fenced"),
        ((WorkerCore, "_on_message", _hears_numbers_again),),
    ),
    "orders-seen": Mutant(
        "orders_seen: an order in flight is taken for lost",
        ("fenced", "outcome-kept", "lease"),
        ((BossAttempts, "reconcile", _takes_what_is_in_flight_for_lost),),
    ),
    "newest-process": Mutant(
        "the order of Hellos: a late word of a dead process replaces the one that lives",
        ("fenced", "outcome-kept"),
        ((Duty, "is_outdated", _any_process_replaces),),
        faults.Faults(delay=0.3, worker_death=0.1, boss_death=0.01),
    ),
    "write-then-speak": Mutant(
        "write, then speak: messages go before the commit",
        ("write-then-speak",),
        ((BossProcess, "_carry_out", _speaks_first),),
    ),
    "intent": Mutant(
        "the intent before the cloud call: calls go before the commit",
        ("intent",),
        ((BossProcess, "_carry_out", _asks_the_cloud_first),),
    ),
    "spool-until-stored": Mutant(
        "the spool until stored: an outcome is forgotten once it is said",
        ("outcome-kept", "settles"),
        ((WorkerAttempts, "_say_ended", _forgets_what_it_said),),
    ),
    "spool-on-disk": Mutant(
        "the spool on disk: a new process forgets what the one before it left",
        ("settles",),
        ((WorkerCore, "__init__", _forgets_its_spool),),
    ),
    "repetition": Mutant(
        "repetition: outcomes are said once in a session",
        ("settles",),
        ((WorkerAttempts, "repeat", _does_nothing),),
    ),
    "stored-when-recorded": Mutant(
        "OutcomesStored only for what is recorded",
        ("write-then-speak",),
        ((BossAttempts, "_record", _answers_all),),
    ),
    "epoch": Mutant(
        "the epoch: a boss that was deposed goes on writing",
        ("one-boss",),
        ((Store, "_require_leading", _anybody_leads),),
    ),
    "push-id": Mutant(
        "the push id: a push that is said again is taken again",
        ("push-once",),
        ((Pushes, "on_chunk", _takes_every_push), (Pushes, "on_run_loaded", _finds_no_push)),
    ),
    "promotion-by-boss": Mutant(
        "promotion by the boss: a worker publishes by itself",
        ("published-by-record",),
        ((WorkerProcess, "_store", _publishes_itself),),
    ),
    "published-first": Mutant(
        "published, then succeeded: a task ends when its outcome is recorded",
        ("files-whole", "promised-there"),
        ((BossAttempts, "_record", _succeeds_before_publishing),),
    ),
    "roll-forward": Mutant(
        "rolling forward: promotions that a dead boss had under way are not made again",
        ("settles", "memory"),
        ((BossAttempts, "roll_forward", _does_nothing),),
    ),
    "last-word": Mutant(
        "one at a time under one name: of two attempts that publish the same name any may be the last",
        ("files-whole", "published-by-record"),
        ((BossAttempts, "_promote_what_may", _publishes_in_any_order),),
        faults.Faults(promotion_cut=0.15, datastore_away=0.06, worker_freeze=0.06),
    ),
    "sweep": Mutant(
        "the sweep: stages of dead attempts are left",
        ("settles",),
        ((Stages, "on_listed", _does_nothing),),
    ),
    "adoption": Mutant(
        "adoption: a VM whose answer got lost is not recognised in the cloud's list",
        ("owned", "floor"),
        ((Vms, "on_listed", _adopts_none),),
        faults.Faults(boss_death=0.06),
    ),
    "maximum": Mutant(
        "the maximum of a pool",
        ("maximum", "assertion"),
        ((Vms, "start", _asks_for_one_too_many),),
    ),
    "given-up-first": Mutant(
        "giving a VM up in its row before it is ended, and only one that does nothing",
        ("no-harm",),
        ((Vms, "scale", _ends_what_works),),
    ),
    "lost-worker": Mutant(
        "ending a VM whose worker was lost",
        ("floor", "settles"),
        ((Vms, "_on_seen", _takes_the_lost_for_running),),
        faults.Faults(vm_off=0.05),
    ),
    "preparation": Mutant(
        "init tasks first",
        ("prepared",),
        ((WorkerAttempts, "_init_stands", _starts_unprepared),),
    ),
    "resources": Mutant(
        "resources: a worker starts whatever it is given",
        ("resources",),
        ((WorkerAttempts, "_fits", _overfills),),
    ),
    "forgiveness": Mutant(
        "forgiving: silence while there was no broker counts against workers",
        ("patience",),
        ((Duty, "forgive", _does_nothing),),
    ),
}
