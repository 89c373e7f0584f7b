"""The patches of the mutants: each function makes a version of a method that lacks a protection.

Each is named after the fault of the method that it makes. `sim.mutants` lists them.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from boss.core.autoscale.autoscaler import Autoscaler
from boss.core.autoscale.orphans import Orphans
from boss.core.autoscale.pool_queue import PoolQueue
from boss.core.autoscale.run_budgets import RunBudgets
from boss.core.autoscale.vm_lists import VmLists
from boss.core.autoscale.vms import Vms
from boss.core.clients.datastore_access import AccessForClients
from boss.core.clients.pushes import Pushes
from boss.core.model.arrays import Array
from boss.core.model.cloud_vms import CloudState
from boss.core.model.effects import StartVm
from boss.core.model.graph import TaskGraph
from boss.core.model.machine import Machine
from boss.core.tasks.attempts import Attempts as BossAttempts
from boss.core.tasks.taskbook import TaskBook
from boss.core.workers.datastore_access import Access
from boss.core.workers.leases import Leases
from boss.shell.driver import Driver, Pause
from boss.shell.inbox import Inbox
from ecloud.model import wire
from ecloud.model.tasks import AttemptState, Cause, TaskDefinition, TaskState
from ecloud.model.vm_states import VmState
from sim.store import Store
from sim.worker_shell import WorkerProcess
from worker.core.attempts import Attempts as WorkerAttempts
from worker.core.call_values import MissingValues
from worker.core.events import CallBegan
from worker.core.followers import Followers
from worker.core.worker_core import WorkerCore

# --- messages -------------------------------------------------------------------------------------------


def repeats_long_reports(true: Any) -> Any:
    def on_connection_lost(self: WorkerAttempts) -> None:
        pass

    return on_connection_lost


# --- fencing, leases, sessions -------------------------------------------------------------------------


def any_attempt_of_the_task(true: Any) -> Any:
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


def homes_of_any_key(true: Any) -> Any:
    def of_home(self: Leases, conversation: Any, hello: Any) -> Any:
        others = [one for one in self._fleet.workers.values() if one.name != conversation.peer and hello.home]
        return next((one for one in others if one.row.hello.home == hello.home), None)

    return of_home


def charges_nobody(true: Any) -> Any:
    return lambda self, worker, ended, reason, now: []


def knows_no_chains(true: Any) -> Any:
    return lambda worker: set()


def keeps_nobody_apart(true: Any) -> Any:
    return lambda self, row: False


def lost_at_once(true: Any) -> Any:
    return property(lambda self: self._config.heartbeat_s * 1.5)


def starts_without_lease(true: Any) -> Any:
    def may_start(self: WorkerCore, now: float) -> bool:
        kept, self._lease_until = self._lease_until, now + 1.0
        try:
            return bool(true(self, now))
        finally:
            self._lease_until = kept

    return may_start


def keeps_its_queue(true: Any) -> Any:
    def on_welcome(self: WorkerCore, envelope: Any, welcome: Any, now: float) -> None:
        give_back = self.attempts.give_back_queue
        self.attempts.give_back_queue = lambda: None  # type: ignore[method-assign]
        try:
            true(self, envelope, welcome, now)
        finally:
            self.attempts.give_back_queue = give_back  # type: ignore[method-assign]

    return on_welcome


def hears_numbers_again(true: Any) -> Any:
    def on_message(self: WorkerCore, envelope: Any, now: float) -> None:
        seen, self._seen = self._seen, 0
        true(self, envelope, now)
        self._seen = max(seen, self._seen)

    return on_message


def takes_what_is_in_flight_for_lost(true: Any) -> Any:
    def reconcile(self: BossAttempts, worker: Any, inventory: Any, orders_seen: int, now: float) -> None:
        true(self, worker, inventory, 1 << 60, now)

    return reconcile


def any_process_replaces(true: Any) -> Any:
    return lambda self, conversation, hello: False


# --- writing, sending and keeping ------------------------------------------------------------------------


def speaks_first(true: Any) -> Any:
    def carry_out(self: Driver, effects: Any) -> Any:
        yield from self._publish(effects.sends, effects.writes.revoked_keys)
        effects.sends = []
        yield from true(self, effects)

    return carry_out


def asks_the_cloud_first(true: Any) -> Any:
    def carry_out(self: Driver, effects: Any) -> Any:
        for call in effects.calls:
            if isinstance(call, StartVm):
                self._calls.make(call)
        effects.calls = [call for call in effects.calls if not isinstance(call, StartVm)]
        yield Pause(0.02)
        yield from true(self, effects)

    return carry_out


def forgets_what_it_said(true: Any) -> Any:
    def say_ended(self: WorkerAttempts, unsaid: Any, now: float) -> None:
        items = list(unsaid)
        true(self, items, now)
        self.on_stored([wire.AttemptName(item.outcome.task_no, item.outcome.number) for item in items])

    return say_ended


def knows_no_heirs(true: Any) -> Any:
    return lambda fleet: {}


def forgets_its_spool(true: Any) -> Any:
    def begin(self: WorkerCore, config: Any, now: float) -> None:
        true(self, msgspec.structs.replace(config, spooled=()), now)

    return begin


def does_nothing(true: Any) -> Any:
    return lambda self, *arguments, **named: None


def answers_all(true: Any) -> Any:
    def record(self: BossAttempts, worker: Any, attempt: Any, outcome: Any, now: float) -> None:
        if outcome.task_no % 7:
            true(self, worker, attempt, outcome, now)

    return record


def anybody_leads(true: Any) -> Any:
    def require_leading(self: Store) -> None:
        self._epoch = self._epoch

    return require_leading


def always_leads(true: Any) -> Any:
    return lambda self: True


def takes_every_push(true: Any) -> Any:
    def on_chunk(self: Pushes, client: Any, chunk: Any, size: int, now: float) -> None:
        self._answers.pop(chunk.push_id, None)
        true(self, client, chunk, size, now)

    return on_chunk


def finds_no_push(true: Any) -> Any:
    return lambda self, token, image, answered, now: true(self, token, image, None, now)


def forgets_pushes_with_their_runs(true: Any) -> Any:
    def drop(self: Store, writes: Any) -> None:
        true(self, writes)
        tables = self.tables
        tables.pushes = {id: push for id, push in tables.pushes.items() if push.run_no in tables.runs}

    return drop


def forgets_dropped_names(true: Any) -> Any:
    return lambda self, name: self._present.pop(name, None)


def takes_all_tasks_for_new(true: Any) -> Any:
    return lambda self, name, push_id, ids: name in self._ids


def starts_without_names(true: Any) -> Any:
    return lambda self, dropped_pushes, now: true(self, (), now)


def keeps_no_kill(true: Any) -> Any:
    def kill(self: Leases, worker: Any, reason: str, now: float) -> None:
        true(self, worker, reason, now)
        worker.row = msgspec.structs.replace(worker.row, killed_at=None)
        self._write(worker)

    return kill


def forgets_the_killed(true: Any) -> Any:
    def remove(self: Leases, *arguments: Any, **named: Any) -> None:
        true(self, *arguments, **named)
        self.killed.clear()

    return remove


def drains_what_was_killed(true: Any) -> Any:
    def restore(snapshot: Any, fleet: Any, duty: Any, now: float) -> None:
        true(snapshot, fleet, duty, now)
        for worker in fleet.workers.values():
            worker.leaving = False

    return restore


def replaces_what_it_names(true: Any) -> Any:
    def decide(before: Any, row: Any, definition: Any, options: Any, changed: Any) -> Any:
        extends = before is not None and options.merge_strategy == "extend"
        return "replaced" if extends else true(before, row, definition, options, changed)

    return decide


def reads_whole_runs(true: Any) -> Any:
    return lambda push, image: True


def reads_named_tasks_only(true: Any) -> Any:
    return lambda push, image: False


def takes_a_part_for_the_run(true: Any) -> Any:
    return lambda merged, before: None


def reads_no_init_tasks(true: Any) -> Any:
    def on_run_loaded(self: Pushes, token: int, image: Any, answered: Any, now: float) -> None:
        push = self._open.get(self._by_token.get(token, ""))
        if push is not None and image is not None and image.is_part:
            named = {on.id for task in push.definitions for on in task.dependencies}
            image.tasks = [row for row in image.tasks if not row.init or row.id in named]
        true(self, token, image, answered, now)

    return on_run_loaded


def counts_a_chunk_twice(true: Any) -> Any:
    def on_chunk(self: Pushes, client: Any, chunk: Any, size: int, now: float) -> None:
        push = self._open.get(chunk.push_id)
        if push is not None and push.stage == "collecting" and chunk.k in push.chunks:
            push.chunks[chunk.k].extend(chunk.tasks)
        true(self, client, chunk, size, now)

    return on_chunk


def remembers_its_question(true: Any) -> Any:
    def on_answer(self: Pushes, token: int, *answer: Any) -> None:
        push_id = self._by_token.get(token)
        true(self, token, *answer)
        if push_id is not None:
            self._by_token[token] = push_id

    return on_answer


# --- dependencies -------------------------------------------------------------------------------------------


def forgets_the_last_edge(true: Any) -> Any:
    def wait(self: TaskGraph, node: Any, dependencies: Any) -> None:
        true(self, node, dependencies[:-1] if len(dependencies) > 1 else dependencies)

    return wait


def gives_at_once_what_it_asks_back(true: Any) -> Any:
    def retract(self: BossAttempts, worker: Any, attempts: Any) -> None:
        asked = list(attempts)
        true(self, worker, asked)
        for attempt in asked:
            node = self._book.graph.nodes.get(attempt.task_no)
            if node is not None and node.assigned == attempt.number:
                node.assigned = 0
                self._book.make_ready(node, attempt.assigned_at + 1.0)

    return retract


def starts_what_is_to_stop(true: Any) -> Any:
    def on_started(self: BossAttempts, worker: Any, started: Any, now: float) -> None:
        for item in started:
            attempt = worker.held.get((item.task_no, item.number))
            if attempt is not None and attempt.state is AttemptState.STOPPING:
                attempt.state = AttemptState.STARTED
                self._write(attempt)
        true(self, worker, started, now)

    return on_started


# --- files ------------------------------------------------------------------------------------------------


def publishes_itself(true: Any) -> Any:
    def store(self: WorkerProcess, key: Any, job: Any) -> None:
        if not job.over and not self.datastore.away:
            for result in job.body.results:
                self.datastore.publish(result.path, f"{self.name}:{key[0]}-{key[1]}")
        true(self, key, job)

    return store


def finds_whatever_it_looks_for(true: Any) -> Any:
    def on_results_found(self: Pushes, token: int, existing: Any, now: float) -> None:
        push = self._open.get(self._by_token.get(token, ""))
        paths = [result.path for task in push.definitions for result in task.results] if push is not None else ()
        true(self, token, frozenset(paths), now)

    return on_results_found


def lives_for_ever(true: Any) -> Any:
    return lambda *arguments: math.inf


def gives_one_certificate_to_all(true: Any) -> Any:
    def on_signed(self: Access, name: str, certificate: str, lives_s: float, now: float) -> None:
        true(self, name, self.__dict__.setdefault("_first_signed", certificate), lives_s, now)

    return on_signed


def gives_one_certificate_to_clients(true: Any) -> Any:
    def on_signed(self: AccessForClients, client: str, about: str, address: str, certificate: str, s: float) -> None:
        true(self, client, about, address, self.__dict__.setdefault("_first_signed", certificate), s)

    return on_signed


def signs_once(true: Any) -> Any:
    def on_request(self: AccessForClients, client: Any, request: Any, now: float) -> None:
        true(self, client, request, 0.0)

    return on_request


def succeeds_before_publishing(true: Any) -> Any:
    def record(self: BossAttempts, worker: Any, attempt: Any, outcome: Any, now: float) -> None:
        true(self, worker, attempt, outcome, now)
        key = (attempt.task_no, attempt.number)
        if key in self.promoting:
            self.on_promoted([(*key, None)], now)

    return record


def publishes_in_any_order(true: Any) -> Any:
    def promote(self: BossAttempts) -> None:
        self._publishing = set()
        kept = self._to_promote
        self._to_promote = []
        for attempt in reversed(kept):
            self._to_promote = [attempt]
            self._publishing = set()
            true(self)

    return promote


def takes_published_for_success(true: Any) -> Any:
    def on_promoted(self: Any, results: Any, now: float) -> None:
        results = list(results)
        for task_no, number, _ in results:
            attempt = self.promoting.get((task_no, number))
            if attempt is not None:
                attempt.outcome = msgspec.structs.replace(attempt.outcome, cause=Cause.SUCCESS)
        true(self, results, now)

    return on_promoted


def knows_every_history(true: Any) -> Any:
    return lambda self, epoch, batch: True


def blames_shutdowns(true: Any) -> Any:
    return property(lambda self: False)


def has_no_limits(true: Any) -> Any:
    def put_message(self: Inbox[Any], topic: str, payload: bytes) -> None:
        limits, self.max_bytes, self.max_peer_messages = (self.max_bytes, self.max_peer_messages), 1 << 40, 1 << 40
        true(self, topic, payload)
        self.max_bytes, self.max_peer_messages = limits

    return put_message


# --- machines ---------------------------------------------------------------------------------------------


def adopts_none(true: Any) -> Any:
    def on_listed(self: VmLists, listed: Any, now: float) -> None:
        known = {vm.row.cloud_id for vm in self._vms.alive.values()}
        seen = tuple(found for found in listed.vms if found.is_gone or found.cloud_id in known)
        true(self, msgspec.structs.replace(listed, vms=seen), now)

    return on_listed


def goes_by_numbers(true: Any) -> Any:
    return lambda self, found: self.alive.get(found.vm_no)


def takes_anybody(true: Any) -> Any:
    return lambda self, vm, row, event: True


def ends_orphans_at_once(true: Any) -> Any:
    def on_listed(self: Orphans, *arguments: Any) -> None:
        self._config = msgspec.structs.replace(self._config, orphan_grace_s=0.0)
        true(self, *arguments)

    return on_listed


def knows_no_budget(true: Any) -> Any:
    return lambda self, alive, now: ""


def starts_for_exhausted_runs(true: Any) -> Any:
    def settle(self: RunBudgets, now: float) -> None:
        true(self, now)
        self.exhausted = {}

    return settle


def tells_nothing(true: Any) -> Any:
    return lambda self, *arguments: ""


def forgets_holds(true: Any) -> Any:
    return lambda self, outbox, context: true(self, outbox, {})


def asks_for_one_too_many(true: Any) -> Any:
    def start(self: Vms, pool: Any, *arguments: Any) -> Any:
        return true(self, msgspec.structs.replace(pool, maximum=pool.maximum + 1), *arguments)

    return start


def ends_what_works(true: Any) -> Any:
    def scale(self: Autoscaler, now: float) -> None:
        true(self, now)
        for vm in self._vms.alive.values():
            worker = self._fleet.workers.get(vm.row.worker)
            if worker is not None and worker.held:
                self._vms.ask_end(vm, now)

    return scale


def takes_the_lost_for_running(true: Any) -> Any:
    def on_seen(self: VmLists, vm: Any, found: Any, now: float) -> None:
        if vm.state is not VmState.RUNNING:
            true(self, vm, found, now)

    return on_seen


def withdraws_queued_jobs(true: Any) -> Any:
    def on_booting(self: VmLists, vm: Any, found: Any, now: float) -> None:
        if found.state is CloudState.PENDING and now - vm.waits_since > self._config.pending_s:
            self._vms.withdraw(vm, "its cloud found no host for it", now)
        else:
            true(self, vm, found, now)

    return on_booting


def takes_the_hidden_for_gone(true: Any) -> Any:
    def compare(self: VmLists, vm: Any, listed: Any, found: Any, gone: Any, now: float) -> None:
        is_hidden = found is not None and found.state is CloudState.HIDDEN
        true(self, vm, listed, None if is_hidden else found, gone, now)

    return compare


def judges_each_by_its_own_clock(true: Any) -> Any:
    def on_listed(self: PoolQueue, waiting: int, is_busy: bool, now: float) -> None:
        true(self, waiting, False, now)
        self.progress_at = -math.inf

    return on_listed


def starts_unprepared(true: Any) -> Any:
    return lambda self, order: True


def overfills(true: Any) -> Any:
    return lambda offers, asks: True


def rounds_up(true: float) -> float:
    return 1e6


# --- chained attempts ----------------------------------------------------------------------------------


def records_at_once(true: Any) -> Any:
    def on_ended(self: BossAttempts, worker: Any, outcomes: Any, now: float) -> None:
        for outcome in outcomes:
            attempt = worker.held.get((outcome.task_no, outcome.number))
            if attempt is not None and attempt.chained and attempt.state is not AttemptState.STOPPING:
                self._fleet.unchain(worker, attempt)
                self._book.move(self._book.graph.nodes[outcome.task_no], TaskState.READY)
                self._record(worker, attempt, outcome, now)
        true(self, worker, outcomes, now)

    return on_ended


def knows_it_is_recorded(true: Any) -> Any:
    def on_satisfied(self: BossAttempts, node: Any) -> None:
        if self.active[(node.task_no, node.assigned)].chained:
            true(self, node)

    return on_satisfied


def waits_for_nobody(true: Any) -> Any:
    return lambda self, key, order: self._enqueue(key, order)


def keeps_followers(true: Any) -> Any:
    def take_followers(self: BossAttempts, attempt: Any) -> Any:
        attempt.followers = None
        return true(self, attempt)

    return take_followers


def names_the_nearest_only(true: Any) -> Any:
    return lambda self, predecessors: tuple([(attempt.task_no, attempt.number) for attempt in predecessors])


def charges_followers(true: Any) -> Any:
    def take_followers(self: BossAttempts, attempt: Any) -> Any:
        void = true(self, attempt)
        for follower in void:
            node = self._book.graph.nodes.get(follower.task_no)
            if node is not None:
                node.retries_used += 1
                self._book.write(node)
        return void

    return take_followers


def keeps_no_results(true: Any) -> Any:
    def on_success(self: Followers, done: Any) -> Any:
        found = true(self, done)
        self._of.pop((done.task_no, done.number), None)
        return found

    return on_success


def starts_after_the_first(true: Any) -> Any:
    def on_success(self: Followers, done: Any) -> Any:
        for key in self._of.get((done.task_no, done.number), ()):
            follower = self.waiting.get(key)
            if follower is not None:
                for earlier in follower.open - {(done.task_no, done.number)}:
                    self._let_go(earlier, key)
                follower.open = {(done.task_no, done.number)} & follower.open
        return true(self, done)

    return on_success


# --- arrays --------------------------------------------------------------------------------------------


def writes_no_windows(true: Any) -> Any:
    def write_arrays(self: TaskBook) -> None:
        self._changed_arrays.clear()

    return write_arrays


def ends_arrays_early(true: Any) -> Any:
    def is_over(array: Array) -> bool:
        return array.node.state is TaskState.READY and not array.pending

    return staticmethod(is_over)


def waits_for_no_counterpart(true: Any) -> Any:
    def find_due(self: Array) -> None:
        self.due = self.pending.copy()

    return find_due


# --- shared machines ------------------------------------------------------------------------------


def lets_each_use_its_own(true: Any) -> Any:
    def share(self: Machine) -> None:
        for worker in self.workers.values():
            worker.free = dict(worker.own)

    return share


def counts_what_runs_alone(true: Any) -> Any:
    def held(worker: Any) -> Any:
        shared = worker.row.hello.machine_has
        return {what: worker.capacity.get(what, 0.0) - worker.own.get(what, 0.0) for what in shared}

    return held


def queues_anywhere(true: Any) -> Any:
    def may_wait_at(self: Any, worker: Any) -> bool:
        shares, worker.shares_machine = worker.shares_machine, False
        try:
            return bool(true(self, worker))
        finally:
            worker.shares_machine = shares

    return may_wait_at


def sends_no_values(true: Any) -> Any:
    """Send the orders of calls without values."""

    def with_bodies(message: wire.StartTasks, bodies: dict[int, bytes], values: object, most_bytes: int) -> Any:
        return true(message, bodies, {}, most_bytes)

    return with_bodies


def takes_one_page_for_all(true: Any) -> Any:
    """Start a call without waiting for the other pages of its values."""

    def on_values(self: MissingValues, page: wire.CallValues) -> Any:
        return true(self, msgspec.structs.replace(page, more=False))

    return on_values


def gives_values_to_any(true: Any) -> Any:
    """Send values to workers that do not hold the attempt."""
    return lambda self, worker, key: True


def takes_calls_for_tasks(true: Any) -> Any:
    """Count a call as a task without results: it may be chained."""

    def makes(definition: TaskDefinition) -> Any:
        return true(msgspec.structs.replace(definition, call=None))

    return makes


def lets_prefetched_calls_begin_late(true: Any) -> Any:
    """Hand prefetched calls over without a time by which they must begin."""

    def prefetch(self: WorkerAttempts) -> None:
        true(self)
        self.effects.prefetches = [msgspec.structs.replace(effect, begin_s=1e9) for effect in self.effects.prefetches]

    return prefetch


def frees_what_it_hands_on(true: Any) -> Any:
    """Free the resources of a call although the next one on its host uses them."""

    def on_call_began(self: WorkerAttempts, event: CallBegan, now: float) -> None:
        before = self.running[event.after]
        true(self, event, now)
        self._free(before)

    return on_call_began
