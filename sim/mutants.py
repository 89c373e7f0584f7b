"""Mutants: each switches off one protection of the product, here and not by a flag there. The checker must find each.

    hunt(MUTANTS["fencing"], seeds=200)

A mutant is a patch of a method for as long as its seeds run. One that survives means that the checker is blind or the
protection is of no use; `docs/guarantees.md` names them all, with the promise that each guards.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import msgspec

from boss.core import restoring
from boss.core.autoscale.autoscaler import Autoscaler
from boss.core.autoscale.boot_log import BootLog
from boss.core.autoscale.daily_budget import DailyBudget
from boss.core.autoscale.orphans import Orphans
from boss.core.autoscale.pool_queue import PoolQueue
from boss.core.autoscale.run_budgets import RunBudgets
from boss.core.autoscale.vm_lists import VmLists
from boss.core.autoscale.vms import Vms
from boss.core.clients.pushes import Pushes
from boss.core.model import machine as machine_model
from boss.core.model.arrays import Array
from boss.core.model.graph import TaskGraph
from boss.core.model.history import History
from boss.core.model.machine import Machine
from boss.core.placement.placement import Placement
from boss.core.tasks import merging, suspects
from boss.core.tasks.arrays import Arrays
from boss.core.tasks.attempts import Attempts as BossAttempts
from boss.core.tasks.chains import Chains
from boss.core.tasks.staging_sweeper import StagingSweeper
from boss.core.tasks.suspects import Suspects
from boss.core.tasks.taskbook import TaskBook
from boss.core.workers.datastore_access import Access
from boss.core.workers.leases import Leases
from boss.shell import driver
from boss.shell.driver import Driver
from sim import faults, mutations, simulation
from sim.scenario import Size
from sim.simulation import Result
from sim.store import Store
from sim.worker_shell import WorkerProcess
from worker.core import attempts as worker_attempts
from worker.core.attempts import Attempts as WorkerAttempts
from worker.core.followers import Followers
from worker.core.worker_core import WorkerCore

SEEDS = 200
"""Within so many seeds each must be found."""
Patch = tuple[type | ModuleType, str, Callable[[Any], Any]]
"""A class or module, the name of its function, and what makes the mutant's function of the true one."""


class Mutant(msgspec.Struct, frozen=True):
    """`without`: what is switched off; `found_by`: the invariants any of which finds it (`assertion`: a core's own
    `check`)."""

    without: str
    found_by: tuple[str, ...]
    patches: tuple[Patch, ...]
    under: faults.Faults | None = None
    """What goes wrong in its seeds; without it, whatever they draw."""
    size: Size | None = None
    """How large its scenarios are, where it is rare in those of the usual size."""


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
            result = simulation.Simulation(seed, msgspec.structs.replace(drawn), mutant.size).run()
            if result.problem:
                return Hunt(name, seed - first + 1, result)
    return Hunt(name, seeds, None)


MUTANTS: dict[str, Mutant] = {
    "fencing": Mutant(
        "fencing by attempt: an outcome counts for whatever attempt of the task goes on",
        ("true-outcome", "one-outcome", "files-whole", "published-by-record", "legal-moves"),
        ((BossAttempts, "on_ended", mutations.any_attempt_of_the_task),),
    ),
    "lease": Mutant(
        "the lease: what a silent worker holds is given again after a heartbeat and a half",
        ("lease", "patience", "fenced", "outcome-kept"),
        ((Leases, "_patience_s", mutations.lost_at_once),),
    ),
    "home-and-key": Mutant(
        "a home is its key's: a peer with another key takes over what the process of a home held",
        ("true-outcome", "outcome-kept", "one-attempt", "one-outcome", "fenced", "legal-moves", "lease", "assertion"),
        ((Leases, "_of_home", mutations.homes_of_any_key),),
        under=faults.Faults(liar=0.5),
    ),
    "poison": Mutant(
        "counting lost workers: a task that kills its workers is tried for ever",
        ("settles",),
        ((Suspects, "charge", mutations.charges_nobody),),
        under=faults.Faults(poison=1.0),
    ),
    "apart": Mutant(
        "the last try alone on a worker: a bystander fails for what another task did",
        ("suspects",),
        ((Suspects, "_runs_apart", mutations.keeps_nobody_apart),),
        under=faults.Faults(poison=1.0),
    ),
    "chain-blame": Mutant(
        "charging of a chain what had started last: the tasks before it are charged for what it did",
        ("suspects",),
        ((suspects, "_succeeded_there", mutations.knows_no_chains),),
        # The outcome of the task before it is late: there is no room for its results.
        under=faults.Faults(poison=1.0, datastore_full=0.3),
        size=Size(runs=(2, 3)),
    ),
    "own-lease": Mutant(
        "the worker's own lease: it starts what waits there whether the boss counts on it or not",
        ("fenced",),
        ((WorkerCore, "_may_start", mutations.starts_without_lease),),
    ),
    "stale-queue": Mutant(
        "giving back what waited when the lease ended",
        ("fenced",),
        ((WorkerCore, "_on_welcome", mutations.keeps_its_queue),),
    ),
    "numbers": Mutant(
        "session numbers: an order that is heard twice is obeyed twice",
        ("ordered", "fenced"),
        ((WorkerCore, "_on_message", mutations.hears_numbers_again),),
    ),
    "orders-seen": Mutant(
        "orders_seen: an order in flight is taken for lost",
        ("fenced", "outcome-kept", "lease"),
        ((BossAttempts, "reconcile", mutations.takes_what_is_in_flight_for_lost),),
    ),
    "newest-process": Mutant(
        "the order of Hellos: a late word of a dead process replaces the one that lives",
        ("fenced", "outcome-kept", "settles"),
        ((Leases, "is_outdated", mutations.any_process_replaces),),
        faults.Faults(delay=0.4, worker_death=0.4),
        Size(tasks=(80, 120), workers=(6, 8), troubled_s=120.0),
    ),
    "write-then-speak": Mutant(
        "write, then speak: messages go before the commit",
        ("write-then-speak",),
        ((Driver, "_carry_out", mutations.speaks_first),),
    ),
    "intent": Mutant(
        "the intent before the cloud call: calls go before the commit",
        ("intent",),
        ((Driver, "_carry_out", mutations.asks_the_cloud_first),),
    ),
    "spool-until-stored": Mutant(
        "the spool until stored: an outcome is forgotten once it is said",
        ("outcome-kept", "settles"),
        ((WorkerAttempts, "_say_ended", mutations.forgets_what_it_said),),
    ),
    "heirs": Mutant(
        "what a newer process of a home took over: a boss that starts takes it for lost",
        ("outcome-kept",),
        ((restoring, "_taken_over", mutations.knows_no_heirs),),
        faults.Faults(boss_death=0.04, second_boss=0.06, worker_death=0.06, datastore_away=0.06),
    ),
    "spool-on-disk": Mutant(
        "the spool on disk: a new process forgets what the one before it left",
        ("settles",),
        ((WorkerCore, "__init__", mutations.forgets_its_spool),),
    ),
    "repetition": Mutant(
        "repetition: outcomes are said once in a session",
        ("settles",),
        ((WorkerAttempts, "repeat", mutations.does_nothing),),
    ),
    "stored-when-recorded": Mutant(
        "OutcomesStored only for what is recorded",
        ("write-then-speak",),
        ((BossAttempts, "_record", mutations.answers_all),),
    ),
    "epoch": Mutant(
        "the epoch: a boss that was deposed goes on writing",
        ("one-boss", "write-then-speak", "published-by-record"),
        ((Store, "_require_leading", mutations.anybody_leads),),
    ),
    "epoch-of-calls": Mutant(
        "the epoch before each cloud call: a boss that was deposed after its commit asks the cloud all the same",
        ("one-boss",),
        ((Store, "leads", mutations.always_leads),),
        faults.Faults(vm_late=0.5, second_boss=0.06, call_lost=0.7, boss_death=0.02),
    ),
    "push-id": Mutant(
        "the push id: a push that is said again is taken again",
        ("push-once", "settles"),
        ((Pushes, "on_chunk", mutations.takes_every_push), (Pushes, "on_run_loaded", mutations.finds_no_push)),
    ),
    "push-outlives-run": Mutant(
        "the push id after its run was dropped: a push that is repeated then is taken again",
        ("push-once", "settles"),
        ((Store, "_drop", mutations.forgets_pushes_with_their_runs),),
        faults.Faults(boss_death=0.06, delay=0.4, duplicate=0.3, lose=0.1, second_boss=0.06),
        Size(tasks=(3, 6), runs=(2, 3), wishes=(10, 20)),
    ),
    "other-history": Mutant(
        "telling peers that the database lacks what they heard: after a restore their attempts count for new ones",
        ("history", "true-outcome", "ordered", "settles", "files-whole", "one-outcome", "write-then-speak"),
        ((History, "has", mutations.knows_every_history),),
        faults.Faults(database_restored=0.1),
    ),
    "promotion-by-boss": Mutant(
        "promotion by the boss: a worker publishes by itself",
        ("published-by-record",),
        ((WorkerProcess, "_store", mutations.publishes_itself),),
    ),
    "published-first": Mutant(
        "published, then succeeded: a task ends when its outcome is recorded",
        ("files-whole", "promised-there"),
        ((BossAttempts, "_record", mutations.succeeds_before_publishing),),
    ),
    "failure-stays": Mutant(
        "a failure stays one: an attempt that failed succeeds once its whole output is published",
        ("one-outcome", "files-whole"),
        ((BossAttempts, "on_promoted", mutations.takes_published_for_success),),
    ),
    "roll-forward": Mutant(
        "rolling forward: promotions that a dead boss had under way are not made again",
        ("settles", "memory"),
        ((BossAttempts, "roll_forward", mutations.does_nothing),),
    ),
    "last-word": Mutant(
        "one at a time under one name: of two attempts that publish the same name any may be the last",
        ("files-whole", "published-by-record"),
        ((BossAttempts, "_promote_what_may", mutations.publishes_in_any_order),),
        faults.Faults(promotion_cut=0.15, datastore_away=0.06, worker_freeze=0.06),
    ),
    "sweep": Mutant(
        "the sweep: stages of dead attempts are left",
        ("settles",),
        ((StagingSweeper, "on_listed", mutations.does_nothing),),
    ),
    "adoption": Mutant(
        "adoption: a VM whose answer got lost is not recognised in the cloud's list",
        ("owned", "floor"),
        ((Vms, "on_listed", mutations.adopts_none),),
        faults.Faults(boss_death=0.06),
    ),
    "orphans": Mutant(
        "the end of VMs that no intent owns",
        ("owned",),
        ((Orphans, "on_listed", mutations.does_nothing),),
        faults.Faults(vm_late=0.5),
    ),
    "orphan-grace": Mutant(
        "the grace of VMs that no intent owns: they are ended when they are seen first",
        ("grace",),
        ((Orphans, "on_listed", mutations.ends_orphans_at_once),),
        faults.Faults(vm_late=0.5),
    ),
    "budget-of-a-day": Mutant(
        "the budget of a day",
        ("budget",),
        ((DailyBudget, "exhausted", mutations.knows_no_budget),),
        faults.Faults(vm_vanishes=0.1),
        Size(runs=(1, 1), workers=(0, 0), task_s=20.0, troubled_s=120.0),
    ),
    "budget-of-a-run": Mutant(
        "the budget of a run: that it is used up is told, and VMs start for it all the same",
        ("budget",),
        ((RunBudgets, "settle", mutations.starts_for_exhausted_runs),),
        faults.Faults(vm_vanishes=0.1),
        Size(runs=(1, 1), workers=(0, 0), task_s=20.0, troubled_s=120.0),
    ),
    "times-of-the-cloud": Mutant(
        "the cloud's own times: a VM's life begins when the boss hears of it",
        ("books",),
        ((VmLists, "_live_since", mutations.does_nothing),),
    ),
    "met-at-its-address": Mutant(
        "the boot nonce: who is met at the address of a VM is taken for it",
        ("identity",),
        ((BootLog, "_is_of", mutations.takes_anybody),),
        faults.Faults(vm_address=0.5, vm_slow=0.5, vm_vanishes=0.02),
    ),
    "maximum": Mutant(
        "the maximum of a pool",
        ("maximum", "assertion"),
        ((Vms, "start", mutations.asks_for_one_too_many),),
    ),
    "given-up-first": Mutant(
        "giving a VM up in its row before it is ended, and only one that does nothing",
        ("no-harm",),
        ((Autoscaler, "scale", mutations.ends_what_works),),
    ),
    "one-clock-for-a-queue": Mutant(
        "the clock of VMs that wait at their cloud: each has its own, whatever the cloud places meanwhile",
        ("turn",),
        ((PoolQueue, "on_listed", mutations.judges_each_by_its_own_clock),),
        faults.Faults(vm_queue=1.0),
        Size(runs=(1, 1), workers=(0, 0), task_s=60.0, troubled_s=400.0),
    ),
    "lost-worker": Mutant(
        "ending a VM whose worker was lost",
        ("floor", "settles"),
        ((VmLists, "_on_seen", mutations.takes_the_lost_for_running),),
        faults.Faults(vm_off=0.05),
    ),
    "preparation": Mutant(
        "init tasks first",
        ("prepared",),
        ((WorkerAttempts, "_init_stands", mutations.starts_unprepared),),
    ),
    "machine": Mutant(
        "what a machine has: its workers together are given more",
        ("machine",),
        ((Machine, "share", mutations.lets_each_use_its_own),),
        size=Size(tasks=(30, 60), workers=(4, 6)),
    ),
    "ahead-on-a-machine": Mutant(
        "queues on a shared machine: a worker starts what it has there without asking",
        ("machine", "assertion"),
        (
            (machine_model, "_held", mutations.counts_what_runs_alone),
            (Placement, "may_wait_at", mutations.queues_anywhere),
        ),
        size=Size(tasks=(30, 60), workers=(4, 6)),
    ),
    "resources": Mutant(
        "resources: a worker starts whatever it is given",
        ("resources",),
        ((worker_attempts, "fits", mutations.overfills),),
    ),
    "edges": Mutant(
        "waiting for all: of several dependencies the last is not waited for",
        ("dependencies",),
        ((TaskGraph, "rewire", mutations.forgets_the_last_edge),),
    ),
    "chain-record": Mutant(
        "recording in order: the outcome of a chained attempt is recorded when it is heard",
        ("chain-record", "chain-cost"),
        (
            (BossAttempts, "on_ended", mutations.records_at_once),
            (BossAttempts, "_on_satisfied", mutations.knows_it_is_recorded),
        ),
    ),
    "chain-start": Mutant(
        "waiting at the worker: a chained attempt starts when it is ordered",
        ("chain-start", "promised-there"),
        ((WorkerAttempts, "_chain", mutations.waits_for_nobody),),
    ),
    "chain-fan-in": Mutant(
        "waiting for all: a chained attempt starts when the first of those that it follows has succeeded",
        ("chain-start", "promised-there"),
        ((Followers, "on_success", mutations.starts_after_the_first),),
    ),
    "chain-void": Mutant(
        "voiding: what is chained to an attempt that did not succeed goes on to count",
        ("chain-record", "chain-inputs", "chain-start", "settles"),
        ((BossAttempts, "_take_followers", mutations.keeps_followers),),
    ),
    "chain-inputs": Mutant(
        "naming all that is not recorded: a chained attempt is told of its dependencies only, not of those before them",
        ("chain-inputs", "promised-there"),
        ((Chains, "after", mutations.names_the_nearest_only),),
        None,
        Size(wishes=(4, 10)),
    ),
    "chain-cost": Mutant(
        "void at no cost: a chained attempt whose predecessor did not succeed costs its task a retry",
        ("chain-cost",),
        ((BossAttempts, "_take_followers", mutations.charges_followers),),
    ),
    "chain-results": Mutant(
        "keeping results that others need until they have taken them",
        ("promised-there",),
        ((Followers, "on_success", mutations.keeps_no_results),),
    ),
    "call-values": Mutant(
        "values with orders: a call is sent without the values of the calls that it needs",
        ("call-values",),
        ((driver, "_with_bodies", mutations.sends_no_values),),
    ),
    "call-chained": Mutant(
        "waiting for records: a call may be chained to calls whose values are not recorded yet",
        ("call-values",),
        ((merging, "_makes", mutations.takes_calls_for_tasks),),
        faults.Faults(),
        Size(tasks=(80, 160), workers=(1, 2), task_s=0.2),
    ),
    "asked-back": Mutant(
        "the answer to ReturnTasks: what is asked back is given to another at once",
        ("one-attempt",),
        ((BossAttempts, "retract", mutations.gives_at_once_what_it_asks_back),),
    ),
    "stopping": Mutant(
        "what is being stopped stays so, whatever late word comes of its start",
        ("legal-moves",),
        ((BossAttempts, "on_started", mutations.starts_what_is_to_stop),),
    ),
    "looking": Mutant(
        "looking in the datastore before a task is skipped because its results are there",
        ("promised-there",),
        ((Pushes, "on_results_found", mutations.finds_whatever_it_looks_for),),
    ),
    "chunk-numbers": Mutant(
        "numbers of chunks: one that is heard twice is taken twice",
        ("wanted",),
        ((Pushes, "on_chunk", mutations.counts_a_chunk_twice),),
    ),
    "own-certificate": Mutant(
        "a certificate for each worker's own key: all get the one that was signed first",
        ("access",),
        ((Access, "on_signed", mutations.gives_one_certificate_to_all),),
    ),
    "forgetting": Mutant(
        "forgetting what was answered: questions about pushes are remembered for ever",
        ("memory",),
        (
            (Pushes, "on_results_found", mutations.remembers_its_question),
            (Pushes, "on_run_loaded", mutations.remembers_its_question),
        ),
    ),
    "forgiveness": Mutant(
        "forgiving: silence while there was no broker counts against workers",
        ("patience",),
        ((Leases, "forgive", mutations.does_nothing),),
    ),
    "windows": Mutant(
        "writing what was made: a boss that starts makes elements again",
        ("elements", "settles"),
        ((TaskBook, "_write_arrays", mutations.writes_no_windows),),
    ),
    "end-of-an-array": Mutant(
        "waiting for the last elements: an array ends when the last of them is made",
        ("elements", "assertion"),
        ((Arrays, "_is_over", mutations.ends_arrays_early),),
    ),
    "element-by-element": Mutant(
        "waiting element by element: all elements of a ready array are made",
        ("dependencies",),
        ((Array, "find_due", mutations.waits_for_no_counterpart),),
    ),
}
