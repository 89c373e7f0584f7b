"""The boss as a value: each batch of events yields one decision.

    effects = boss.handle(events, now)

`handle` applies each event, then runs the phases, which ring alarms, place tasks and scale the fleet, *once* per batch.
The caller commits `effects.writes`, publishes `effects.sends`, makes `effects.calls` and answers `effects.reads` (see
`effects`, and `boss.shell.driver`, which does so). A timer is an empty batch. This file connects the parts and
dispatches messages to them; the part named after a message implements it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from boss.core.autoscale.autoscaler import Autoscaler
from boss.core.autoscale.demand import DemandEstimate
from boss.core.autoscale.run_budgets import RunBudgets
from boss.core.autoscale.vm_lists import VmLists
from boss.core.autoscale.vms import Vms
from boss.core.clients.alerts import Alerts
from boss.core.clients.calls import Calls
from boss.core.clients.datastore_access import AccessForClients
from boss.core.clients.pushes import Pushes
from boss.core.clients.requests import Requests
from boss.core.clients.unrunnable import Unrunnable
from boss.core.clients.watchers import Watchers
from boss.core.clients.why_ready import WhyReady
from boss.core.model.config import BossConfig
from boss.core.model.effects import (
    Effects,
    FindResults,
    LeadAbove,
    ListStages,
    PromoteFiles,
    RemoveFiles,
    SignClientKey,
    TellPerson,
)
from boss.core.model.events import (
    AttemptsDeclared,
    BatchRefused,
    BrokerFound,
    BrokerLost,
    CallsLoaded,
    ClientKeySigned,
    DatastoreFailed,
    DatastoreUsed,
    Event,
    FilesPromoted,
    FreeSpaceSeen,
    KeySigned,
    MessageArrived,
    ResultsFound,
    RoomSeen,
    RunLoaded,
    StagesListed,
    TasksSelected,
    ValuesLoaded,
    VmListFailed,
    VmRefused,
    VmsListed,
    VmStarted,
    VmVisited,
)
from boss.core.model.fleet import Fleet
from boss.core.model.history import History
from boss.core.model.outbox import Conversation, Outbox
from boss.core.model.ready_tasks import ReadyTasks
from boss.core.model.rows import Snapshot
from boss.core.model.runtime_estimates import Runtimes
from boss.core.model.timers import Timers
from boss.core.model.worker import Worker
from boss.core.placement.placement import Placement
from boss.core.placement.stealing import WorkStealing
from boss.core.restoring import restore
from boss.core.tasks.arrays import Arrays
from boss.core.tasks.attempts import Attempts
from boss.core.tasks.call_values import ValuesForWorkers
from boss.core.tasks.init_tasks import InitTasks
from boss.core.tasks.input_locality import note_told
from boss.core.tasks.merging import Allocation
from boss.core.tasks.outcome_acks import OutcomeAcks
from boss.core.tasks.run_names import RunNames
from boss.core.tasks.staging_sweeper import StagingSweeper
from boss.core.tasks.taskbook import TaskBook
from boss.core.workers.datastore_access import Access
from boss.core.workers.leases import Leases
from boss.core.workers.sessions import Sessions
from boss.core.workers.transfer_slots import Said, TransferSlots
from datastore.backoff import Backoff
from ecloud.model import wire
from ecloud.model.calls import calls_directory
from ecloud.model.worker_states import WorkerState

LATE_S = 1.0
"""If a batch is later than its deadline by more than this, the delay was not the workers' fault: their leases are
extended."""
DATASTORE_BACKOFF = Backoff(0.5, 30.0)
"""Delay between tries of a call to the datastore."""
ARCHIVE_EVERY_S = 600.0
RESTORED_NOTE = "database/restored"
"""Note that a peer knew more than the database: when, epoch seconds, and which peer."""


class Phase(NamedTuple):
    """A step at the end of each batch. `why` explains its position."""

    name: str
    run: Callable[[float], None]
    why: str


class Boss:
    """The core. Not thread-safe; owns no clock: `now` never steps back."""

    def __init__(self, snapshot: Snapshot, config: BossConfig, now: float) -> None:
        self.config = config
        self._outbox = Outbox(snapshot.epoch)
        self._timers = Timers()
        self.ready = ReadyTasks()
        self.fleet = Fleet()
        self.runtimes = Runtimes()
        self.book = TaskBook(self._outbox, self._timers, self.ready, RunNames(snapshot.dropped_pushes, now))
        self.arrays = Arrays(self._outbox, self.book, self._timers, config.array_window)
        self.history = History(snapshot.epoch, snapshot.epoch_ends)
        self._restored_noted = False
        self.sessions = Sessions(self._outbox, config, now)
        self.outcome_acks = OutcomeAcks(self._outbox, self.fleet, self._timers, config)
        inits = InitTasks(self.book, self.fleet)
        self.attempts = Attempts(
            self._outbox, self.book, self.fleet, self.runtimes, inits, self.outcome_acks, self._timers, config
        )
        self.leases = Leases(self._outbox, self.fleet, self.attempts, self.sessions, self._timers, config)
        self.access = Access(self._outbox, self.fleet, self.sessions)
        # Workers that an earlier boss permitted to transfer files report this in their first heartbeat.
        opens_at = now + 2 * self.leases.heartbeat_s(len(snapshot.workers)) if snapshot.workers else now
        holders = {row.worker for row in snapshot.workers if row.lane_since is not None}
        self.transfer_slots = TransferSlots(
            self._tell_worker, config.transfer_lanes, config.transfer_bytes, opens_at, holders
        )
        self._timers.set(opens_at, self.transfer_slots.grant)
        self._lanes = {row.worker: (row.lane_since, row.lane_wanted_since) for row in snapshot.workers}
        self.run_budgets = RunBudgets(self._outbox, self.book, self.fleet, config.vm_hours_per_run, snapshot.context)
        self.vms = Vms(
            self._outbox, self.fleet, self.run_budgets, self.leases, self._timers, config, snapshot.next_vm_no,
            snapshot.context,
        )  # fmt: skip
        demand = DemandEstimate(self.fleet, self.book, self.attempts, self.runtimes, self.run_budgets)
        self.vm_lists = VmLists(self.vms, self.fleet, config)
        self.autoscaler = Autoscaler(self.vms, demand, self.fleet, self._timers, config)
        self.alerts = Alerts(
            self._outbox, self.vms, self.attempts, self.run_budgets, self._timers, snapshot.context, now
        )
        self._placement = Placement(self.ready, self.fleet, self.runtimes, config)
        why_ready = WhyReady(
            self.book, self.attempts, self.fleet, self.ready, self.vms, self.autoscaler, self.run_budgets
        )
        self.unrunnable = Unrunnable(
            self._outbox, self.ready, self.fleet, self._placement.capacity_index,
            [pool.size for pool in config.pools if pool.maximum], why_ready, self._timers, snapshot.context,
        )  # fmt: skip
        self.watchers = Watchers(self._outbox, self.book, self.fleet, self._timers, config, self._why_it_waits)
        self.staging_sweeper = StagingSweeper(self._outbox, self.attempts, self._timers, config)
        self.clients: dict[str, Conversation] = {}
        self.revoked_keys = set(snapshot.revoked_keys)
        allocation = Allocation(snapshot.next_task_no, snapshot.next_run_no)
        self.calls = Calls(self._outbox, self.book, self.clients)
        self.call_values = ValuesForWorkers(self._outbox, self.fleet, config.values_bytes)
        self.pushes = Pushes(self._outbox, self.book, self.attempts, self.run_budgets, config, allocation, self.calls)
        self.access_for_clients = AccessForClients(self._outbox, self.access, self.clients)
        self.requests = Requests(
            self._outbox, self.book, self.attempts, self.fleet, self.leases, self.vms, self.autoscaler, self.watchers,
            self.access, self.access_for_clients, self.clients, self._forget_client, why_ready, self.revoked_keys,
            self.calls,
        )  # fmt: skip
        self._stealing = WorkStealing(self.fleet, self.attempts, self._timers, config)
        self._phases = self._list_phases()
        self._expected_at: float | None = None
        self._failures: Counter[str] = Counter()
        restore(snapshot, self.book, self.attempts, self.fleet, self.leases, self.vms, now)
        self.run_budgets.begin(self.vms.alive, now)
        self._timers.set(now + ARCHIVE_EVERY_S, self._archive_old_runs)
        self._timers.set(now + config.lease_s, self._forget_silent_clients)
        self.staging_sweeper.begin(now)

    # --- the only entry point --------------------------------------------------------------------

    def handle(self, events: Sequence[Event], now: float) -> Effects:
        """Apply a batch and decide. No message of a peer makes it raise."""
        if self._expected_at is not None and now - self._expected_at > LATE_S:
            self.leases.forgive(now - self._expected_at, now)
        for event in events:
            self._apply(event, now)
        for phase in self._phases:
            phase.run(now)
        self._expected_at = self.next_deadline()
        return self._outbox.take()

    def _list_phases(self) -> tuple[Phase, ...]:
        """The phases that run once at the end of each batch, in this order."""
        return (
            Phase("alarms", self._timers.ring, "after the events: an event can move a deadline"),
            Phase("chains", self.attempts.settle, "before placement: early outcomes of chained attempts that are due"),
            Phase("suspects", self._settle_suspects, "before placement: a task that runs again is not a suspect"),
            Phase("arrays", self.arrays.settle, "before placement: elements made now can be placed now"),
            Phase("placement", self._place, "after alarms, which end back-offs; each ready task is checked once"),
            Phase("work stealing", self._stealing.settle, "after placement, which decides which workers stay idle"),
            Phase("orders", self._send_orders, "after placement: one message to each worker with all its orders"),
            Phase("outcome acks", self.outcome_acks.settle, "after orders: an idle worker gets its acks immediately"),
            Phase("runs", self.book.settle, "after all that moves tasks: a run ends when none of its tasks is left"),
            Phase("run budgets", self.run_budgets.settle, "before scaling, which starts nothing for exhausted runs"),
            Phase("scaling", self.autoscaler.scale, "after placement: VMs are for ready tasks that fit no worker"),
            Phase("unrunnable", self.unrunnable.settle, "after placement: it reads the index of workers"),
            Phase("stuck runs", self._notice_stuck_runs, "after scaling: a run is stuck only if no worker can start"),
            Phase("transfer slots", self._grant_slots, "after the workers that left are removed: their slots are free"),
            Phase("calls", self.calls.tell, "after all that ends tasks: with the values that this batch commits"),
            Phase("watchers", self.watchers.tell, "last: clients get the result of all steps above"),
        )

    def next_deadline(self) -> float | None:
        """When to call `handle` again, with or without events."""
        return self._timers.next

    def asks_values(self, peer: str) -> bool:
        """Whether this worker can ask for the values of a call that do not fit into its order."""
        worker = self.fleet.workers.get(peer)
        return worker is not None and worker.row.hello.asks_values

    # --- events ----------------------------------------------------------------------------------

    def _apply(self, event: Event, now: float) -> None:
        match event:
            case MessageArrived():
                self._on_message(event, now)
            case AttemptsDeclared(results):
                self.attempts.on_declared(results)
            case FilesPromoted(results):
                self._failures.pop("promote", None)
                self.attempts.on_promoted(results, now)
            case RunLoaded(token, image, answered):
                self.pushes.on_run_loaded(token, image, answered, now)
            case CallsLoaded(token, calls, more):
                self.calls.on_loaded(token, calls, more)
            case ValuesLoaded(token, values, more):
                self.call_values.on_loaded(token, values, more)
            case TasksSelected(token, images, task_nos, problem):
                self.requests.on_selected(token, images, task_nos, problem, now)
            case ResultsFound(token, existing):
                self._failures.pop("find", None)
                self.pushes.on_results_found(token, existing, now)
            case DatastoreFailed(call, reason):
                self._on_datastore_failed(call, reason, now)
            case StagesListed(stages):
                self.staging_sweeper.on_listed(stages, now)
            case FreeSpaceSeen(address, free_mb):
                self.access.on_free_space(address, free_mb, now)
            case BrokerFound():
                self.leases.on_broker_found(now)
            case BrokerLost():
                self.leases.on_broker_lost()
            case BatchRefused():
                self.pushes.on_batch_refused(now)
            case DatastoreUsed(address):
                self.access.on_used(address, now)
            case KeySigned(worker, certificate, lives_s):
                self.access.on_signed(worker, certificate, lives_s, now)
            case ClientKeySigned(client, request_id, address, certificate, lives_s):
                self.access_for_clients.on_signed(client, request_id, address, certificate, lives_s)
            case VmStarted(vm_no, cloud_id):
                self.vms.on_started(vm_no, cloud_id, now)
            case VmRefused(vm_no, reason, retry_s, cause):
                self.vms.on_refused(vm_no, reason, retry_s, cause, now)
            case VmListFailed(pool, reason):
                self.vms.list_requests.on_failed(pool, reason)
            case VmsListed():
                self.vm_lists.on_listed(event, now)
            case RoomSeen():
                self.vms.pools.on_room(event, now)
            case VmVisited():
                self.vms.on_visited(event, now)

    def _on_message(self, event: MessageArrived, now: float) -> None:
        message = event.envelope.message
        if self.vms.is_over(event.key_name):
            self.sessions.ignored["key"] += 1
            return
        if isinstance(message, wire.Hello):
            self._on_hello(event, message, now)
            return
        conversation, opened = self.sessions.accept(event, now)
        if conversation is None:
            return
        if opened is not None and conversation.kind == "worker" and self.leases.is_outdated(conversation, opened):
            self.sessions.close(conversation)
            return
        if opened is not None and conversation.kind == "worker":
            known = self.fleet.workers.get(conversation.peer)
            if known is not None and known.row.key_name != conversation.key_name:  # older than this boss
                self.sessions.ignored["peer"] += 1
                self.sessions.close(conversation)
                return
            refused = self.leases.why_no_home(conversation, opened, now)
            if refused is not None:
                self.sessions.ignored["home"] += 1
                self._outbox.say(conversation, refused)
                self.sessions.close(conversation)
                return
            vm = self.vms.recognise(conversation.key_name, opened.boot_nonce)
            worker = self.leases.on_opened(conversation, opened, vm.vm_no if vm else None, now)
            if vm is not None:
                self.vms.on_worker(vm, worker, now)
        elif opened is not None:
            self.clients[conversation.peer] = conversation
        if conversation.kind == "client":
            self._on_client(conversation, message, event.size, now)
            return
        on_duty = self.fleet.workers.get(conversation.peer)
        if on_duty is not None:
            self.leases.on_heard(on_duty, now)
            self._on_worker(on_duty, event.envelope.number, message, now)

    def _on_hello(self, event: MessageArrived, hello: wire.Hello, now: float) -> None:
        if self.history.is_behind(hello.epoch, now):
            self._outbox.read(LeadAbove(hello.epoch))  # the peer ignores this boss, and repeats its Hello
            return
        other_history = not self.history.has(hello.epoch, hello.batch)
        if other_history:
            self._note_restored(event.envelope.peer, now)
        if other_history and hello.kind == "worker":
            # The boss assigns the numbers of its attempts again. Its next process has received nothing yet.
            welcome = wire.Welcome(hello.nonce, "", self.config.heartbeat_s, self.config.lease_s, other_history=True)
            self._outbox.say_outside(event.envelope.peer, event.key_name, "", welcome)
            return
        vm = self.vms.recognise(event.key_name, hello.boot_nonce)
        pool = next((pool for pool in self.config.pools if vm is not None and pool.name == vm.row.pool), None)
        heartbeat_s = self.leases.present_heartbeat_s if hello.kind == "worker" else self.config.heartbeat_s
        container = pool.container if pool is not None else None
        self.sessions.on_hello(event, hello, now, heartbeat_s, other_history, container)

    def _note_restored(self, peer: str, now: float) -> None:
        """Write the note for operators and `doctor`, once for each start of a boss."""
        if not self._restored_noted:
            self._restored_noted = True
            self._outbox.writes.context[RESTORED_NOTE] = f"{now:.0f} {peer}"
            text = (
                f"{peer} knows work that the database lacks: it was restored from a backup, and pushes and outcomes "
                "since then are missing; workers drop their tasks and join again"
            )
            self._outbox.call(TellPerson("restored", text))

    def _on_worker(self, worker: Worker, number: int, message: wire.Message, now: float) -> None:
        match message:
            case wire.TasksEnded(outcomes):
                self.vms.on_task(worker, now)
                self.attempts.on_ended(worker, outcomes, now)
            case wire.TasksStarted(attempts):
                self.vms.on_task(worker, now)
                self.attempts.on_started(worker, attempts, now)
            case wire.Heartbeat():
                self.leases.on_heartbeat(worker, number, message, now)
                self.access.on_heartbeat(worker, message.access_s, now)
                self.watchers.on_moving(worker, message.moving, now)
                if message.inputs is not None:
                    note_told(worker, message.inputs, self.book.graph)
                self._on_lane_told(worker, message, now)
            case wire.MovingChanged(moving):
                self.watchers.on_moving(worker, moving, now)
            case wire.TransfersWanted(wanted_bytes):
                self.transfer_slots.on_wanted(worker.name, wanted_bytes, now)
            case wire.TransfersEnded(lane):
                self.transfer_slots.on_ended(worker.name, lane)
            case wire.ValuesWanted(task_no, attempt_number, after):
                self.call_values.on_wanted(worker, (task_no, attempt_number), after)
            case wire.TasksReturned(attempts, reason):
                self.attempts.on_returned(worker, attempts, reason, now)
                if reason and reason not in ("init", wire.UNCHAINED) and worker.row.state is WorkerState.UP:
                    self.leases.trouble(worker, reason)
                    if reason == wire.DRAINING:
                        self.leases.say_undrain(worker)
            case wire.DrainWanted(reason):
                self.leases.drain(worker, reason, then_exit=True)
            case wire.Goodbye(reason):
                decided = worker.row.reason if worker.leaving else ""  # the boss's own reason comes before the worker's
                self.leases.remove(worker, WorkerState.GONE, decided or reason, now)
                self.vms.on_worker_left(worker, now)
            case _:
                self.sessions.ignored["message"] += 1

    def _on_lane_told(self, worker: Worker, heartbeat: wire.Heartbeat, now: float) -> None:
        assert worker.conversation is not None
        self.transfer_slots.on_heartbeat(worker.name, worker.conversation.session, heartbeat, now)

    def _write_lanes(self) -> None:
        """Record in the database which workers transfer files now."""
        lanes: dict[str, tuple[float | None, float | None]] = {
            **{name: (lane.since, None) for name, lane in self.transfer_slots.lanes.items()},
            **{name: (None, waiting.since) for name, waiting in self.transfer_slots.waiting.items()},
        }
        if lanes != self._lanes:
            for name in lanes.keys() | self._lanes.keys():
                worker = self.fleet.workers.get(name)
                held, wanted = lanes.get(name, (None, None))
                if worker is not None and (worker.row.lane_since, worker.row.lane_wanted_since) != (held, wanted):
                    worker.row = msgspec.structs.replace(worker.row, lane_since=held, lane_wanted_since=wanted)
                    self._outbox.writes.workers[name] = worker.row
            self._lanes = lanes

    def _tell_worker(self, name: str, message: wire.Message) -> Said | None:
        worker = self.fleet.workers.get(name)
        if worker is None or worker.conversation is None:
            return None
        return Said(worker.conversation.session, self._outbox.say(worker.conversation, message))

    def _on_client(self, client: Conversation, message: wire.Message, size: int, now: float) -> None:
        match message:
            case wire.SubmitTasks():
                self.pushes.on_chunk(client, message, size, now)
            case wire.Request():
                self.requests.on_request(client, message, now)
            case wire.Heartbeat():
                self._outbox.say(client, wire.HeartbeatAnswered(client.heard))
            case wire.Goodbye():
                self._forget_client(client)
            case _:
                self.sessions.ignored["message"] += 1

    def _on_datastore_failed(self, call: object, reason: str, now: float) -> None:
        kind = "promote" if isinstance(call, PromoteFiles) else "find"
        if isinstance(call, ListStages):
            return  # the next sweep asks again
        if isinstance(call, SignClientKey):
            self.access_for_clients.on_failed(call, reason)
            return
        self.attempts.on_promotion_delayed(call.promotions if isinstance(call, PromoteFiles) else (), reason)
        backoff_s = DATASTORE_BACKOFF.wait_s(self._failures[kind])
        self._failures[kind] += 1
        if isinstance(call, (PromoteFiles, FindResults)):
            self._timers.set(now + backoff_s, lambda at: self._outbox.call(call))

    # --- phases ----------------------------------------------------------------------------------

    def _why_it_waits(self, run_no: int, now: float) -> str:
        return self.unrunnable.texts.get(run_no) or self.autoscaler.why_none_starts(run_no, now)

    def _settle_suspects(self, now: float) -> None:
        self.attempts.suspects.settle()

    def _place(self, now: float) -> None:
        self._placement.place(partial(self.attempts.assign, now), self.attempts.inits.refuses, now)
        self._placement.place_chained(
            self.attempts.chains, partial(self.attempts.assign_chained, now), self.attempts.inits.refuses, now
        )

    def _send_orders(self, now: float) -> None:
        self.attempts.send_orders()

    def _grant_slots(self, now: float) -> None:
        self.transfer_slots.settle(self.fleet.workers, now)
        self._write_lanes()

    def _notice_stuck_runs(self, now: float) -> None:
        """Find runs whose init task failed in every present worker process, if no VM may bring another."""
        for run_no in tuple(self.book.failing_runs):
            run = self.book.runs[run_no]
            reason = self.attempts.inits.stuck_reason(run)
            if reason and self.vms.may_bring_workers(now):
                reason = ""
            self.book.say_stuck(run, reason)

    # --- housekeeping ----------------------------------------------------------------------------

    def _archive_old_runs(self, now: float) -> None:
        self._timers.set(now + ARCHIVE_EVERY_S, self._archive_old_runs)
        archived: list[str] = []
        for run_no, run in tuple(self.book.runs.items()):
            ended_at = run.row.ended_at
            if ended_at is not None and now - ended_at > self.config.keep_runs_s and not run.inits:
                self._outbox.writes.dropped_runs.append(run_no)
                self.book.forget_run(run_no)
                self.attempts.forget_run(run_no)
                self.watchers.forget_run(run_no)
                self.calls.forget_run(run_no)
                archived.append(calls_directory(run.row.name))
        if archived:
            self._outbox.call(RemoveFiles(tuple(archived)))
        kept_s = max(self.config.keep_runs_s, self.config.keep_machines_s)
        self._outbox.writes.gone_before = max(0.0, now - kept_s)
        self.leases.forget_killed(now - kept_s)
        self._outbox.writes.answered_before = max(0.0, now - self.config.keep_runs_s)
        self.book.names.forget_dropped(self.config.keep_runs_s, now)

    def _forget_silent_clients(self, now: float) -> None:
        self._timers.set(now + self.config.lease_s, self._forget_silent_clients)
        self.sessions.drop_old_hellos(now)
        for client in tuple(self.clients.values()):
            if now - client.heard_at > self.config.lease_s:
                self.requests.on_client_lost(client, now)
                self._forget_client(client)

    def _forget_client(self, client: Conversation) -> None:
        self.clients.pop(client.peer, None)
        self.watchers.forget(client.peer)
        self.calls.forget(client.peer)
        self.pushes.forget(client.peer)
        self.sessions.close(client)

    def check(self) -> None:
        """Assert every part's invariants. For tests and the simulation: iterates over everything."""
        self.book.check()
        self.fleet.check()
        self.attempts.check()
        self.sessions.check()
        self.vms.check()
        self.transfer_slots.check()
        self._placement.capacity_index.check()
