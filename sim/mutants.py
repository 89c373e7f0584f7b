"""Mutants: each disables one protection of the product, by a patch and not by a flag in the product. The checker must
find each.

    hunt(MUTANTS["fencing"], seeds=200)

A mutant patches a method while its seeds run. If one survives, the checker is blind or the protection has no effect.
`docs/guarantees.md` lists all of them, with the guarantee that each protection serves.
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
from boss.core.autoscale.held_pools import HeldPools
from boss.core.autoscale.orphans import Orphans
from boss.core.autoscale.pool_queue import PoolQueue
from boss.core.autoscale.run_budgets import RunBudgets
from boss.core.autoscale.vm_lists import VmLists
from boss.core.autoscale.vms import Vms
from boss.core.clients import pushes
from boss.core.clients.datastore_access import AccessForClients
from boss.core.clients.pushes import Pushes
from boss.core.model import machine as machine_model
from boss.core.model.arrays import Array
from boss.core.model.graph import TaskGraph
from boss.core.model.history import History
from boss.core.model.machine import Machine
from boss.core.model.worker import Worker
from boss.core.placement import placement as placement_module
from boss.core.placement.placement import Placement
from boss.core.tasks import merging, suspects
from boss.core.tasks.arrays import Arrays
from boss.core.tasks.attempts import Attempts as BossAttempts
from boss.core.tasks.call_values import ValuesForWorkers
from boss.core.tasks.chains import Chains
from boss.core.tasks.run_names import RunNames
from boss.core.tasks.staging_sweeper import StagingSweeper
from boss.core.tasks.suspects import Suspects
from boss.core.tasks.taskbook import TaskBook
from boss.core.workers.datastore_access import Access
from boss.core.workers.leases import Leases
from boss.shell import driver
from boss.shell.driver import Driver
from boss.shell.inbox import Inbox
from ecloud.model.tasks import Outcome
from sim import faults, mutations, simulation
from sim.scenario import Size
from sim.simulation import Result
from sim.store import Store
from sim.worker_shell import WorkerProcess
from worker.core import attempts as worker_attempts
from worker.core.attempts import Attempts as WorkerAttempts
from worker.core.call_values import MissingValues
from worker.core.followers import Followers
from worker.core.worker_core import WorkerCore

SEEDS = 200
"""Each mutant must be found within this many seeds."""
RESTARTS_AND_LOSSES = faults.Faults(boss_death=0.15, delay=0.3, duplicate=0.2, lose=0.4, second_boss=0.06)
"""An answer is lost, and before the question comes again another boss has begun."""
EXTENDED = Size(tasks=(3, 10), runs=(1, 1), wishes=(0, 1), arrays=0.0, programs=1.0)
"""Small runs that programs extend."""
KILLS = faults.Faults(second_boss=0.06, boss_death=0.02, lose=0.15, link_cut=0.06)
KILLING = Size(tasks=(3, 10), runs=(1, 1), wishes=(20, 40), arrays=0.0)
"""Worlds in which operators' orders reach bosses and workers late, or not at all."""
Patch = tuple[type | ModuleType, str, Callable[[Any], Any]]
"""A class or module, the name of its function, and a function that makes the mutant's version of it."""


class Mutant(msgspec.Struct, frozen=True):
    """`without`: the disabled protection; `found_by`: the invariants that may find it (`assertion`: a core's own
    `check`)."""

    without: str
    found_by: tuple[str, ...]
    patches: tuple[Patch, ...]
    under: faults.Faults | None = None
    """Faults of its seeds; by default, those that each seed draws."""
    size: Size | None = None
    """Size of its scenarios, if the mutant is rare in scenarios of the usual size."""


class Hunt(msgspec.Struct, frozen=True):
    """Result of a hunt: the seed's result that found the mutant, or None, and the number of seeds."""

    name: str
    seeds: int
    found: Result | None

    @property
    def invariant(self) -> str:
        """The invariant that found the mutant; `assertion` for a core's own assertion."""
        if self.found is None:
            return ""
        _, opened, rest = self.found.problem.partition("[")
        return rest.partition("]")[0] if opened else "assertion"


@contextmanager
def patched(mutant: Mutant) -> Iterator[None]:
    """Context in which the protection is disabled."""
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
        "fencing by attempt: an outcome counts for any current attempt of the task",
        ("true-outcome", "one-outcome", "files-whole", "published-by-record", "legal-moves"),
        ((BossAttempts, "on_ended", mutations.any_attempt_of_the_task),),
    ),
    "lease": Mutant(
        "the lease: attempts of a silent worker are assigned again after one and a half heartbeats",
        ("lease", "patience", "fenced", "outcome-kept"),
        ((Leases, "_patience_s", mutations.lost_at_once),),
    ),
    "home-and-key": Mutant(
        "binding a home to its key: a peer with another key takes over the attempts of a home's process",
        ("true-outcome", "outcome-kept", "one-attempt", "one-outcome", "fenced", "legal-moves", "lease", "assertion"),
        ((Leases, "_of_home", mutations.homes_of_any_key),),
        under=faults.Faults(liar=0.5),
    ),
    "poison": Mutant(
        "counting lost workers: a task that kills its workers is retried for ever",
        ("settles",),
        ((Suspects, "charge", mutations.charges_nobody),),
        under=faults.Faults(poison=1.0),
    ),
    "apart": Mutant(
        "the last try alone on a worker: a bystander fails for another task's fault",
        ("suspects",),
        ((Suspects, "_runs_apart", mutations.keeps_nobody_apart),),
        under=faults.Faults(poison=1.0),
    ),
    "chain-blame": Mutant(
        "charging the attempt of a chain that started last: the tasks before it are charged instead",
        ("suspects",),
        ((suspects, "_succeeded_there", mutations.knows_no_chains),),
        # The outcome of the previous task is late: there is no space for its results.
        under=faults.Faults(poison=1.0, datastore_full=0.3),
        size=Size(runs=(2, 3)),
    ),
    "own-lease": Mutant(
        "the worker's own lease: it starts queued attempts without a valid lease",
        ("fenced",),
        ((WorkerCore, "_may_start", mutations.starts_without_lease),),
    ),
    "stale-queue": Mutant(
        "returning queued attempts when the lease has ended",
        ("fenced",),
        ((WorkerCore, "_on_welcome", mutations.keeps_its_queue),),
    ),
    "numbers": Mutant(
        "session numbers: an order that arrives twice is obeyed twice",
        ("ordered", "fenced"),
        ((WorkerCore, "_on_message", mutations.hears_numbers_again),),
    ),
    "orders-seen": Mutant(
        "orders_seen: an order under way counts as lost",
        ("fenced", "outcome-kept", "lease"),
        ((BossAttempts, "reconcile", mutations.takes_what_is_in_flight_for_lost),),
    ),
    "newest-process": Mutant(
        "the order of Hellos: a late message of a dead process replaces the live one",
        ("fenced", "outcome-kept", "settles"),
        ((Leases, "is_outdated", mutations.any_process_replaces),),
        faults.Faults(delay=0.4, worker_death=0.4),
        Size(tasks=(80, 120), workers=(6, 8), troubled_s=120.0),
    ),
    "write-then-speak": Mutant(
        "commit before sending: messages are sent before the commit",
        ("write-then-speak",),
        ((Driver, "_carry_out", mutations.speaks_first),),
    ),
    "intent": Mutant(
        "the intent before the cloud call: calls are made before the commit",
        ("intent",),
        ((Driver, "_carry_out", mutations.asks_the_cloud_first),),
    ),
    "spool-until-stored": Mutant(
        "the spool until stored: an outcome is dropped once it is sent",
        ("outcome-kept", "settles"),
        ((WorkerAttempts, "_say_ended", mutations.forgets_what_it_said),),
    ),
    "long-report": Mutant(
        "giving up a report that the broker refuses: it is repeated for ever",
        ("settles",),
        ((WorkerAttempts, "on_connection_lost", mutations.repeats_long_reports),),
        faults.Faults(long_report=0.1),
    ),
    "heirs": Mutant(
        "attempts that a newer process of a home took over: a starting boss counts them as lost",
        ("outcome-kept",),
        ((restoring, "_taken_over", mutations.knows_no_heirs),),
        faults.Faults(boss_death=0.04, second_boss=0.06, worker_death=0.06, datastore_away=0.06),
    ),
    "spool-on-disk": Mutant(
        "the spool on disk: a new process forgets the outcomes of the previous one",
        ("settles",),
        ((WorkerCore, "__init__", mutations.forgets_its_spool),),
    ),
    "repetition": Mutant(
        "repetition: outcomes are sent once in a session",
        ("settles",),
        ((WorkerAttempts, "repeat", mutations.does_nothing),),
    ),
    "stored-when-recorded": Mutant(
        "OutcomesStored only for recorded outcomes",
        ("write-then-speak",),
        ((BossAttempts, "_record", mutations.answers_all),),
    ),
    "epoch": Mutant(
        "the epoch: a deposed boss continues to write",
        ("one-boss", "write-then-speak", "published-by-record"),
        ((Store, "_require_leading", mutations.anybody_leads),),
    ),
    "epoch-of-calls": Mutant(
        "the epoch before each cloud call: a boss that was deposed after its commit still calls the cloud",
        ("one-boss",),
        ((Store, "leads", mutations.always_leads),),
        faults.Faults(vm_late=0.5, second_boss=0.06, call_lost=0.7, boss_death=0.02),
    ),
    "push-id": Mutant(
        "the push id: a push that is sent again is accepted again",
        ("push-once", "settles", "wanted"),
        ((Pushes, "on_chunk", mutations.takes_every_push), (Pushes, "on_run_loaded", mutations.finds_no_push)),
    ),
    "push-outlives-run": Mutant(
        "the push id after its run was dropped: a push that is repeated then is accepted again",
        ("push-once", "settles"),
        ((Store, "_drop", mutations.forgets_pushes_with_their_runs),),
        RESTARTS_AND_LOSSES,
        Size(tasks=(3, 6), runs=(1, 2), wishes=(60, 100), arrays=0.0, programs=0.0),
    ),
    "dropped-names": Mutant(
        "names of dropped runs: a push that is repeated then counts as one of a new run",
        ("push-once", "settles"),
        ((RunNames, "drop", mutations.forgets_dropped_names), (RunNames, "__init__", mutations.starts_without_names)),
        RESTARTS_AND_LOSSES,
        Size(tasks=(3, 6), runs=(1, 2), wishes=(60, 100), arrays=0.0, programs=0.0),
    ),
    "extend-keeps": Mutant(
        "keeping tasks: a push that extends a run does all tasks again that it names",
        ("extend",),
        (
            (merging, "_decide", mutations.replaces_what_it_names),
            (pushes, "_disturbs_others", mutations.reads_whole_runs),
        ),
        size=EXTENDED,
    ),
    "extend-around": Mutant(
        "reading the whole run for a push that does tasks again: those that wait for them are not known",
        ("dependencies", "settles", "assertion", "chain-record", "counts"),
        ((pushes, "_disturbs_others", mutations.reads_named_tasks_only),),
        size=EXTENDED,
    ),
    "extend-counts": Mutant(
        "counting by difference: the tasks that a push has read count as the whole run",
        ("counts", "assertion"),
        ((merging, "as_change", mutations.takes_a_part_for_the_run),),
        size=EXTENDED,
    ),
    "extend-init": Mutant(
        "planning init tasks again: a push that extends an ended run does not read them",
        ("prepared",),
        ((Pushes, "on_run_loaded", mutations.reads_no_init_tasks),),
        size=EXTENDED,
    ),
    "kill-outlives-boss": Mutant(
        "storing a kill: the next boss knows a killed worker as one that drains, and may be undrained",
        ("killed",),
        ((Leases, "kill", mutations.keeps_no_kill),),
        KILLS,
        KILLING,
    ),
    "kill-stands": Mutant(
        "a kill is final: after a restart of the boss an operator's undrain_worker revokes it",
        ("killed",),
        ((restoring, "_restore_workers", mutations.drains_what_was_killed),),
        faults.Faults(second_boss=0.2, link_cut=0.3),
        msgspec.structs.replace(KILLING, wishes=(60, 80), workers=(1, 2)),
    ),
    "kill-outlives-lease": Mutant(
        "a kill after the lease: a killed worker that was lost, and is heard again, works again",
        ("killed",),
        ((Leases, "remove", mutations.forgets_the_killed),),
        KILLS,
        KILLING,
    ),
    "kill-repeated": Mutant(
        "repeating a kill after each heartbeat: a worker that missed the order stays",
        ("killed", "settles"),
        ((Leases, "_repeat_order", mutations.does_nothing),),
        KILLS,
        KILLING,
    ),
    "grown-ids": Mutant(
        "the ids of a growing run: a push that names its tasks again counts as one of new tasks",
        ("accepted",),
        ((RunNames, "lacks", mutations.takes_all_tasks_for_new),),
        size=EXTENDED,
    ),
    "other-history": Mutant(
        "telling peers that the database lacks their messages: after a restore old attempts count as new ones",
        ("history", "true-outcome", "ordered", "settles", "files-whole", "one-outcome", "write-then-speak"),
        ((History, "has", mutations.knows_every_history),),
        faults.Faults(database_restored=0.1),
    ),
    "other-vm": Mutant(
        "boot nonces in the cloud's list: after a restore a VM is taken for a new one of the same number",
        ("other-vm", "vanished", "no-harm", "owned", "books", "grace"),
        ((Vms, "owner", mutations.goes_by_numbers),),
        faults.Faults(database_restored=0.1, vm_late=0.3),
    ),
    "shutdown": Mutant(
        "knowing a shutdown: SIGTERM to a task of a leaving worker counts as its failure",
        ("shutdown", "outcome-kept"),
        ((Outcome, "is_term", mutations.blames_shutdowns),),
        faults.Faults(shutdown=0.1),
    ),
    "inbox": Mutant(
        "limits of the inbox: a boss that stands still keeps every message",
        ("inbox",),
        ((Inbox, "put_message", mutations.has_no_limits),),
        faults.Faults(inbox_full=1.0, duplicate=0.1),
    ),
    "promotion-by-boss": Mutant(
        "promotion by the boss: a worker publishes its results directly",
        ("published-by-record",),
        ((WorkerProcess, "_store", mutations.publishes_itself),),
    ),
    "published-first": Mutant(
        "publishing before success: a task ends when its outcome is recorded",
        ("files-whole", "promised-there"),
        ((BossAttempts, "_record", mutations.succeeds_before_publishing),),
    ),
    "failure-stays": Mutant(
        "keeping a failure: a failed attempt succeeds once its whole output is published",
        ("one-outcome", "files-whole"),
        ((BossAttempts, "on_promoted", mutations.takes_published_for_success),),
    ),
    "roll-forward": Mutant(
        "rolling forward: unfinished promotions of a dead boss are not repeated",
        ("settles", "memory"),
        ((BossAttempts, "roll_forward", mutations.does_nothing),),
    ),
    "last-word": Mutant(
        "serial publishing under one name: if two attempts publish the same name, either may be the last",
        ("files-whole", "published-by-record"),
        ((BossAttempts, "_promote_what_may", mutations.publishes_in_any_order),),
        faults.Faults(promotion_cut=0.15, datastore_away=0.06, worker_freeze=0.06),
    ),
    "sweep": Mutant(
        "the sweep: stages of ended attempts are not removed",
        ("settles",),
        ((StagingSweeper, "on_listed", mutations.does_nothing),),
    ),
    "adoption": Mutant(
        "adoption: a VM whose answer was lost is not recognised in the cloud's list",
        ("owned", "floor"),
        ((VmLists, "on_listed", mutations.adopts_none),),
        faults.Faults(boss_death=0.06),
    ),
    "orphans": Mutant(
        "ending VMs without an intent",
        ("owned",),
        ((Orphans, "on_listed", mutations.does_nothing),),
        faults.Faults(vm_late=0.5),
    ),
    "orphan-grace": Mutant(
        "the grace period of VMs without an intent: they are ended when they are first seen",
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
        "the budget of a run: its exhaustion is reported, but VMs start for the run nevertheless",
        ("budget",),
        ((RunBudgets, "settle", mutations.starts_for_exhausted_runs),),
        faults.Faults(vm_vanishes=0.1),
        Size(runs=(1, 1), workers=(0, 0), task_s=20.0, troubled_s=120.0),
    ),
    "hold-of-a-pool": Mutant(
        "an operator's hold of a pool",
        ("hold",),
        ((HeldPools, "why", mutations.tells_nothing),),
    ),
    "hold-outlives-boss": Mutant(
        "storing holds of pools: the next boss does not know them",
        ("hold",),
        ((HeldPools, "__init__", mutations.forgets_holds),),
        faults.Faults(boss_death=0.02),
    ),
    "times-of-the-cloud": Mutant(
        "the cloud's own times: a VM's life begins when the boss learns of it",
        ("books",),
        ((VmLists, "_live_since", mutations.does_nothing),),
    ),
    "met-at-its-address": Mutant(
        "the boot nonce: any machine at the address of a VM counts as that VM",
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
        "giving a VM up in its row before it is ended, and only an idle one",
        ("no-harm",),
        ((Autoscaler, "scale", mutations.ends_what_works),),
    ),
    "one-clock-for-a-queue": Mutant(
        "one clock for all VMs that wait at their cloud: each has its own, while the cloud places others",
        ("turn",),
        ((PoolQueue, "on_listed", mutations.judges_each_by_its_own_clock),),
        faults.Faults(vm_queue=1.0),
        Size(runs=(1, 1), workers=(0, 0), task_s=60.0, troubled_s=400.0),
    ),
    "queued-jobs": Mutant(
        "waiting for jobs in a queue: each VM that waits longer than others may is withdrawn",
        ("queued",),
        ((VmLists, "_on_booting", mutations.withdraws_queued_jobs),),
        faults.Faults(vm_waits=0.8),
        Size(runs=(1, 1), workers=(0, 0), task_s=60.0, troubled_s=400.0),
    ),
    "hidden-is-not-gone": Mutant(
        "keeping VMs that their cloud does not show: one that a list lacks counts as gone",
        ("vanished",),
        ((VmLists, "_compare", mutations.takes_the_hidden_for_gone),),
        faults.Faults(vm_hidden=0.05),
    ),
    "lost-worker": Mutant(
        "ending a VM whose worker was lost",
        ("floor", "settles"),
        ((VmLists, "_on_seen", mutations.takes_the_lost_for_running),),
        faults.Faults(vm_off=0.05),
    ),
    "preparation": Mutant(
        "running init tasks first",
        ("prepared",),
        ((WorkerAttempts, "_init_stands", mutations.starts_unprepared),),
    ),
    "machine": Mutant(
        "the limit of a machine: its workers together get more than it has",
        ("machine",),
        ((Machine, "share", mutations.lets_each_use_its_own),),
        size=Size(tasks=(30, 60), workers=(4, 6)),
    ),
    "ahead-on-a-machine": Mutant(
        "no queues on a shared machine: a worker starts queued attempts without asking the boss",
        ("machine", "assertion"),
        (
            (machine_model, "_held", mutations.counts_what_runs_alone),
            (Placement, "may_wait_at", mutations.queues_anywhere),
        ),
        size=Size(tasks=(30, 60), workers=(4, 6)),
    ),
    "resources": Mutant(
        "resources: a worker starts every attempt that it gets",
        ("resources",),
        ((worker_attempts, "fits", mutations.overfills), (worker_attempts, "ROUNDING", mutations.rounds_up)),
    ),
    "lives": Mutant(
        "comparing what a task states with a worker's end: workers get tasks that they do not live for",
        ("outlived",),
        ((Worker, "left_s", mutations.lives_for_ever),),
        faults.Faults(short_lives=0.7),
    ),
    "lives-of-queues": Mutant(
        "the same comparison for attempts that are queued behind others",
        ("outlived",),
        ((placement_module, "queued_left_s", mutations.lives_for_ever),),
        faults.Faults(short_lives=0.7),
    ),
    "lives-of-chains": Mutant(
        "the same comparison for chained attempts",
        ("outlived",),
        ((placement_module, "chained_left_s", mutations.lives_for_ever),),
        faults.Faults(short_lives=0.7),
        Size(tasks=(80, 160), workers=(1, 2), task_s=0.2),
    ),
    "edges": Mutant(
        "waiting for all dependencies: a task does not wait for the last of several",
        ("dependencies",),
        ((TaskGraph, "wait", mutations.forgets_the_last_edge),),
    ),
    "chain-record": Mutant(
        "recording in order: the outcome of a chained attempt is recorded when it arrives",
        ("chain-record", "chain-cost", "chain-inputs"),
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
        "waiting for all predecessors: a chained attempt starts when the first of them has succeeded",
        ("chain-start", "promised-there"),
        ((Followers, "on_success", mutations.starts_after_the_first),),
    ),
    "chain-void": Mutant(
        "voiding: an attempt chained to one that did not succeed still counts",
        ("chain-record", "chain-inputs", "chain-start", "settles"),
        ((BossAttempts, "_take_followers", mutations.keeps_followers),),
    ),
    "chain-inputs": Mutant(
        "naming all unrecorded attempts: an order names only direct dependencies, not those before them",
        ("chain-inputs", "promised-there"),
        ((Chains, "after", mutations.names_the_nearest_only),),
        faults.Faults(datastore_full=0.3, duplicate=0.1),
        Size(wishes=(4, 10)),
    ),
    "chain-cost": Mutant(
        "voiding at no cost: a chained attempt whose predecessor did not succeed uses up a retry of its task",
        ("chain-cost",),
        ((BossAttempts, "_take_followers", mutations.charges_followers),),
    ),
    "chain-results": Mutant(
        "keeping results until all followers have taken them",
        ("promised-there", "assertion"),
        ((Followers, "on_success", mutations.keeps_no_results),),
    ),
    "call-values": Mutant(
        "orders with values: a call is sent without the values of the calls that it needs",
        ("call-values",),
        ((driver, "_with_bodies", mutations.sends_no_values),),
    ),
    "call-pages": Mutant(
        "waiting for all values: a worker starts a call with the first page of its values",
        ("call-values",),
        ((MissingValues, "on_values", mutations.takes_one_page_for_all),),
        faults.Faults(),
    ),
    "call-spied": Mutant(
        "values only for the holder of an attempt: any worker gets them",
        ("call-values",),
        ((ValuesForWorkers, "_may_have", mutations.gives_values_to_any),),
        faults.Faults(liar=0.5),
    ),
    "call-chained": Mutant(
        "waiting for records: a call may be chained to calls whose values are not recorded yet",
        ("call-values",),
        ((merging, "_makes", mutations.takes_calls_for_tasks),),
        faults.Faults(),
        Size(tasks=(80, 160), workers=(1, 2), task_s=0.2),
    ),
    "call-late": Mutant(
        "beginning prefetched calls within a second: a host begins them after the end of the lease",
        ("fenced", "one-attempt", "resources"),
        ((WorkerAttempts, "prefetch", mutations.lets_prefetched_calls_begin_late),),
        faults.Faults(worker_freeze=0.3),
        Size(workers=(1, 2), task_s=0.5),
    ),
    "call-place": Mutant(
        "handing resources from call to call: a worker also frees those of the call before",
        ("resources", "assertion"),
        ((WorkerAttempts, "on_call_began", mutations.frees_what_it_hands_on),),
        faults.Faults(),
        Size(workers=(1, 2), task_s=0.5),
    ),
    "asked-back": Mutant(
        "the answer to ReturnTasks: a retracted attempt is assigned to another worker without waiting for it",
        ("one-attempt",),
        ((BossAttempts, "retract", mutations.gives_at_once_what_it_asks_back),),
    ),
    "stopping": Mutant(
        "keeping a stopped attempt stopped when a late message reports its start",
        ("legal-moves",),
        ((BossAttempts, "on_started", mutations.starts_what_is_to_stop),),
    ),
    "looking": Mutant(
        "checking the datastore before a task is skipped because its results exist",
        ("promised-there",),
        ((Pushes, "on_results_found", mutations.finds_whatever_it_looks_for),),
    ),
    "chunk-numbers": Mutant(
        "numbers of chunks: a chunk that arrives twice is taken twice",
        ("wanted",),
        ((Pushes, "on_chunk", mutations.counts_a_chunk_twice),),
    ),
    "own-certificate": Mutant(
        "a certificate for each worker's own key: all get the one that was signed first",
        ("access",),
        ((Access, "on_signed", mutations.gives_one_certificate_to_all),),
    ),
    "client-certificate": Mutant(
        "a certificate for each client's own key: all get the one that was signed first",
        ("access",),
        ((AccessForClients, "on_signed", mutations.gives_one_certificate_to_clients),),
        size=EXTENDED,
    ),
    "client-access": Mutant(
        "signing again what was not answered: a client whose signature was lost waits for ever",
        ("settles",),
        ((AccessForClients, "on_request", mutations.signs_once),),
        size=EXTENDED,
    ),
    "forgetting": Mutant(
        "forgetting answered requests: queries about pushes are remembered for ever",
        ("memory",),
        (
            (Pushes, "on_results_found", mutations.remembers_its_question),
            (Pushes, "on_run_loaded", mutations.remembers_its_question),
        ),
    ),
    "forgiveness": Mutant(
        "forgiving silence: silence while there was no broker counts against workers",
        ("patience",),
        ((Leases, "forgive", mutations.does_nothing),),
    ),
    "windows": Mutant(
        "writing made elements: a restarted boss makes elements again",
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
