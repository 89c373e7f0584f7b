"""The life of an attempt: given, started, ended, returned, stopped, lost, promoted. Decides the effect of each on its
task.

Owns every unfinished attempt. An attempt ends once; later messages about it are answered and change nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from boss.core.model.config import BossConfig
from boss.core.model.effects import DropStages, Promote, PromoteFiles
from boss.core.model.fleet import Fleet
from boss.core.model.graph import Node
from boss.core.model.outbox import Outbox
from boss.core.model.rows import AttemptRow
from boss.core.model.runtime_estimates import Runtimes
from boss.core.model.timers import Timers
from boss.core.model.worker import Attempt, Worker, how_many
from boss.core.tasks.chains import Chains
from boss.core.tasks.init_tasks import InitTasks
from boss.core.tasks.input_locality import note_fetched, note_given
from boss.core.tasks.manifests import manifest_bytes, not_staged, publishable, undeclared, without_large_value
from boss.core.tasks.outcome_acks import OutcomeAcks
from boss.core.tasks.shared_names import SharedNames
from boss.core.tasks.suspects import Suspects
from boss.core.tasks.taskbook import TaskBook
from datastore.backoff import Backoff
from ecloud.model.tasks import (
    LEGAL_ATTEMPT_MOVES,
    AttemptState,
    Cause,
    ManifestEntry,
    Outcome,
    Result,
    TaskState,
)
from ecloud.model.wire import (
    BATCH_BYTES,
    BATCH_COUNT,
    UNCHAINED,
    AttemptName,
    AttemptOrder,
    HeldAttempt,
    ReturnTasks,
    StartedAttempt,
    StartTasks,
    StopTasks,
)

MAX_BACKOFF_S = 60.0
"""Longest wait before a retry of a task."""

_SHUT_DOWN = "SIGTERM ended it while its worker was leaving"
VOID = "an attempt that it was chained to did not succeed"

_ASSIGNED, _STARTED, _STOPPING = AttemptState.ASSIGNED, AttemptState.STARTED, AttemptState.STOPPING
_PROMOTING, _ENDED = AttemptState.PROMOTING, AttemptState.ENDED
_READY, _RUNNING = TaskState.READY, TaskState.RUNNING

ORDER_BYTES, AFTER_BYTES = 300, 24
"""Approximate size of an order without its definition, and of each name in its `after`, in a message."""
STOPS_A_HEARTBEAT = 4 * BATCH_COUNT
"""Maximum attempts of one inventory that the boss stops together, whatever the worker lists; the next heartbeat shows
the rest."""

Key = tuple[int, int]


class Attempts:
    """All unfinished attempts, by (task_no, number)."""

    def __init__(
        self,
        outbox: Outbox,
        book: TaskBook,
        fleet: Fleet,
        runtimes: Runtimes,
        inits: InitTasks,
        acks: OutcomeAcks,
        timers: Timers,
        config: BossConfig,
    ) -> None:
        self._outbox = outbox
        self._book = book
        self._fleet = fleet
        self._runtimes = runtimes
        self.inits = inits
        self.suspects = Suspects(outbox, book, config.max_lost_workers)
        self._acks = acks
        self._timers = timers
        self._config = config
        self.active: dict[Key, Attempt] = {}
        self.promoting: dict[Key, Attempt] = {}
        self.datastore_trouble = ""
        self.chains = Chains(book.graph.nodes, self.active)
        self._early: dict[Key, Outcome] = {}
        """Outcomes of chained attempts that arrived before the ends of what they wait for were recorded."""
        self._due: list[Key] = []
        """Those of them that can be recorded now, because what they wait for is recorded or no longer matters."""
        book.on_satisfied = self._on_satisfied
        self._orders: dict[str, list[Attempt]] = {}
        self._to_promote: list[Attempt] = []
        self._publishing: set[str] = set()
        self.shared_names = SharedNames()

    # --- giving ----------------------------------------------------------------------------------

    def assign(self, now: float, worker: Worker, node: Node, guess_s: float) -> None:
        """Give a ready task to a worker, preceded by the init tasks of its run if it is the first of that run there."""
        for init in self.inits.take_missing(worker, node.run_no):
            self._give(worker, init, 0.0, now)
        self._give(worker, node, guess_s, now)

    def assign_chained(
        self, now: float, worker: Worker, node: Node, guess_s: float, after: tuple[Key, ...], heir_of: Attempt | None
    ) -> None:
        """Give a waiting task to the worker that holds the attempts of all its open dependencies."""
        for init in self.inits.take_missing(worker, node.run_no):
            self._give(worker, init, 0.0, now)
        if heir_of is not None:
            heir_of.has_heir = True
        self._give(worker, node, guess_s, now, after)

    def _give(self, worker: Worker, node: Node, guess_s: float, now: float, after: tuple[Key, ...] = ()) -> None:
        node.attempts += 1
        if not node.init:
            node.assigned = node.attempts
        if node.inputs is not None:
            note_given(worker, node.inputs)
        attempt = Attempt(
            task_no=node.task_no,
            number=node.attempts,
            run_no=node.run_no,
            worker=worker.name,
            shape=self._book.graph.shapes.of({}) if node.init else self.suspects.shape_on(worker, node),
            state=_ASSIGNED,
            assigned_at=now,
            ahead_s=guess_s / max(1, how_many(worker.capacity, node.shape, self._config.ahead_max)),
            init=node.init,
            apart=node.apart,
            chained=bool(after),
            after=after,
            runtime_s=node.runtime_s or 0.0,
        )
        key = (attempt.task_no, attempt.number)
        for earlier in after:
            self._follow(earlier, key)
        self.active[key] = attempt
        self._fleet.give(worker, attempt)
        self._write(attempt)
        self.chains.touched[worker.name] = None
        self._orders.setdefault(worker.name, []).append(attempt)

    def _follow(self, earlier: Key, key: Key) -> None:
        before = self.active[earlier]
        if before.followers is None:
            before.followers = []
        before.followers.append(key)

    def send_orders(self) -> None:
        """Send the orders of this batch: one message per worker and `BATCH_BYTES`. Then request the pending
        promotions."""
        for name, attempts in self._orders.items():
            worker = self._fleet.workers[name]
            batch: list[Attempt] = []
            batch_bytes = 0
            for attempt in attempts:
                size = (
                    self._book.graph.nodes[attempt.task_no].body_bytes + ORDER_BYTES + AFTER_BYTES * len(attempt.after)
                )
                if batch and (len(batch) >= BATCH_COUNT or batch_bytes + size > BATCH_BYTES):
                    self._order(worker, batch)
                    batch, batch_bytes = [], 0
                batch.append(attempt)
                batch_bytes += size
            self._order(worker, batch)
        self._orders = {}
        if self._to_promote:
            self._promote_what_may()

    def _promote_what_may(self) -> None:
        # If two attempts publish under the same name (the task was redone), the later one must publish last.
        now_: list[Attempt] = []
        later: list[Attempt] = []
        waited_for: set[str] = set()
        for attempt in self._to_promote:
            if (attempt.task_no, attempt.number) not in self.promoting:
                continue  # an earlier call of this core did it
            names = _names(attempt)
            if not (self._publishing.isdisjoint(names) and waited_for.isdisjoint(names)):
                waited_for.update(names)
                later.append(attempt)
            else:
                self._publishing.update(names)
                now_.append(attempt)
        for start in range(0, len(now_), BATCH_COUNT):
            self._outbox.call(PromoteFiles(tuple(map(_promotion, now_[start : start + BATCH_COUNT]))))
        self._to_promote = later

    def _order(self, worker: Worker, attempts: Sequence[Attempt]) -> None:
        assert worker.conversation is not None
        orders = []
        for attempt in attempts:
            node = self._book.graph.nodes[attempt.task_no]
            run = self._book.runs[attempt.run_no]
            orders.append(
                AttemptOrder(
                    task_no=attempt.task_no,
                    number=attempt.number,
                    run=run.row.name,
                    run_no=attempt.run_no,
                    asks=node.shape.as_resources if attempt.init else attempt.shape.as_resources,
                    init=attempt.init,
                    after_init=() if attempt.init else tuple(run.inits),
                    after=tuple([AttemptName(*key) for key in attempt.after]),
                    keep_dir=node.keep_dir,
                    tries=max(1, attempt.number - node.unstarted),
                )
            )
        number = self._outbox.say(worker.conversation, StartTasks(tuple(orders)))
        for attempt in attempts:
            attempt.session, attempt.order = worker.conversation.session, number

    def on_declared(self, declared: Mapping[Key, tuple[Result, ...]]) -> None:
        """Set the results that these attempts declare, as their orders listed them."""
        for key, results in declared.items():
            attempt = self.active.get(key)
            if attempt is not None:
                attempt.declares = results

    # --- messages of workers ---------------------------------------------------------------------

    def on_started(self, worker: Worker, started: Iterable[StartedAttempt], now: float) -> None:
        """Record that attempts run. Ended and stopping ones stay as they are."""
        for item in started:
            attempt = worker.held.get((item.task_no, item.number))
            if attempt is not None and attempt.state is _ASSIGNED:
                self._start(attempt, now - min(max(item.ago_s, 0.0), now - attempt.assigned_at))

    def _start(self, attempt: Attempt, at: float) -> None:
        self._move(attempt, _STARTED)
        attempt.started_at = at
        attempt.returning = False
        self._write(attempt)
        node = self._book.graph.nodes.get(attempt.task_no)
        if node is not None and node.state is _READY:
            self._book.move(node, _RUNNING)

    def on_ended(self, worker: Worker, outcomes: Sequence[Outcome], now: float) -> None:
        """Record each outcome once; answer all, so that the worker's spool empties."""
        stale_stages: list[str] = []
        settled: list[Outcome] = []
        for outcome in outcomes:
            key = (outcome.task_no, outcome.number)
            attempt = worker.held.get(key)
            if attempt is not None and attempt.chained and attempt.state is not _STOPPING:
                self._early[key] = outcome  # recorded and answered only after what it waits for
                continue
            settled.append(outcome)
            if attempt is not None:
                self._record(worker, attempt, outcome, now)
            elif outcome.manifest and key not in self.promoting:
                stale_stages.append(stage_name(worker.name, key))
        if stale_stages:
            self._outbox.call(DropStages(tuple(stale_stages)))
        if settled:
            self._acks.add(worker, settled, now)

    def settle(self, now: float) -> None:
        """Before placement: record outcomes of chained attempts whose predecessors are recorded now."""
        while self._due:
            due, self._due = self._due, []
            for key in due:
                attempt, outcome = self.active.get(key), self._early.pop(key, None)
                if attempt is not None and outcome is not None:
                    worker = self._fleet.workers[self.holder(attempt)]
                    self._record(worker, attempt, outcome, now)
                    self._acks.add(worker, [outcome], now)

    def _on_satisfied(self, node: Node) -> None:
        """The dependencies of a task with a chained attempt are recorded: the attempt is like any other from now on."""
        key = (node.task_no, node.assigned)
        attempt = self.active[key]
        self._fleet.unchain(self._fleet.workers[self.holder(attempt)], attempt)
        if attempt.state is _STARTED:
            self._book.move(node, _RUNNING)
        if key in self._early:
            self._due.append(key)

    def _take_followers(self, attempt: Attempt) -> list[Attempt]:
        """The attempt will not succeed: return the attempts that are chained to it, which count for no task from now
        on."""
        keys, attempt.followers = attempt.followers or (), None
        void = []
        for key in keys:
            follower = self.active.get(key)
            if follower is None or not follower.chained or follower.state not in (_ASSIGNED, _STARTED):
                continue
            void.append(follower)
            waiting = self._book.graph.nodes.get(follower.task_no)
            if waiting is not None and waiting.assigned == follower.number:
                waiting.assigned = 0
                self._book.write(waiting)  # with its attempt count
        return void

    def _record(self, worker: Worker, attempt: Attempt, outcome: Outcome, now: float) -> None:
        key = (attempt.task_no, attempt.number)
        self._early.pop(key, None)
        was_stopping = attempt.state is _STOPPING
        outcome, too_large = without_large_value(outcome)
        attempt.outcome = outcome
        # The worker may not have reported the start, or only a heartbeat showed that it runs.
        began_at = now - max(outcome.fetch_s + outcome.run_s + outcome.store_s, 0.0)
        attempt.started_at = max(attempt.assigned_at, min(attempt.started_at or now, began_at))
        if (worker.leaving or attempt.was_leaving) and outcome.is_term and not was_stopping:
            # A machine that shuts down sends SIGTERM to all its processes: not the task's fault. The next process there
            # may be the one that tells of it.
            if outcome.manifest:
                self._outbox.call(DropStages((stage_name(attempt.worker, key),)))
            self._take_back(worker, attempt, AttemptState.RETURNED, _SHUT_DOWN, now)
            return
        self._fleet.free(worker, attempt, now)
        self._learn_inputs(worker, outcome)
        run_s = min(max(outcome.run_s, 0.0), now - attempt.assigned_at)  # whatever the worker reports
        is_success = outcome.cause is Cause.SUCCESS
        publishes, problem = False, None
        if not was_stopping and not attempt.init:
            publishes, problem = self._may_publish(attempt, outcome)
            problem = problem or too_large
        if publishes and problem is None:
            self._move(attempt, _PROMOTING)
            self.promoting[key] = attempt
            self._to_promote.append(attempt)
            self._write(attempt)
            if not is_success and (void := self._take_followers(attempt)):
                self.stop(void, VOID)
            node = self._book.graph.nodes[attempt.task_no]
            if is_success:
                self._runtimes.learn(node, run_s)
            if node.state is _READY:
                self._book.move(node, _RUNNING)
            return
        attempt.reason = problem or attempt.reason
        succeeded = outcome.cause is Cause.SUCCESS and problem is None and not was_stopping
        self._over(attempt, _ENDED, now, succeeded)
        if outcome.manifest:
            self._outbox.call(DropStages((stage_name(attempt.worker, key),)))
        if attempt.init:
            self.inits.on_ended(worker, attempt, outcome)
            return
        maybe = self._wanted(attempt)
        if maybe is None:
            return
        if problem is not None:
            self._fail_or_retry(maybe, Cause.RESULT, problem, now)
        elif outcome.cause is Cause.SUCCESS:
            self._runtimes.learn(maybe, run_s)
            self._book.end(maybe, TaskState.SUCCEEDED, "", now)
        elif outcome.cause is Cause.STOPPED:
            self._book.make_ready(maybe, now, outcome.error)
        else:
            self._fail_or_retry(maybe, outcome.cause, outcome.error, now)

    def _may_publish(self, attempt: Attempt, outcome: Outcome) -> tuple[bool, str | None]:
        """Whether to publish the staged files, and why a success counts as a failure, or None. Of a failure the boss
        publishes only whole outputs; it drops other files, and the attempt fails for its own reason."""
        if not outcome.manifest and not attempt.declares:
            return False, None
        is_success = outcome.cause is Cause.SUCCESS
        declares = publishable(attempt.declares, attempt.number, is_success)
        problem = self._manifest_problem(outcome.manifest, declares, is_success)
        if not is_success:
            return bool(outcome.manifest) and problem is None, None
        if problem is None and outcome.manifest:
            name = self._book.graph.nodes[attempt.task_no].id
            problem = self.shared_names.claim(attempt.run_no, name, outcome.manifest, declares)
        return bool(outcome.manifest), problem

    def _manifest_problem(
        self, manifest: Sequence[ManifestEntry], declares: Sequence[Result], is_success: bool
    ) -> str | None:
        """Why the boss cannot publish these files; None if it can."""
        size, most = manifest_bytes(manifest), self._config.max_value_bytes
        if size > most:
            return (
                f"the list of its {len(manifest):,} result files has {size:,} bytes and the database takes at most "
                f"{most:,}: pack them into an archive, or raise max_allowed_packet of the database to 16M and restart "
                "the boss"
            )
        # Staged files must be declared; for a success, declared results must be staged.
        expected = [result for result in declares if result.local] if is_success else []
        return undeclared(manifest, declares) or not_staged(manifest, expected)

    def _learn_inputs(self, worker: Worker, outcome: Outcome) -> None:
        told = outcome.fetch_bytes or outcome.cause is Cause.SUCCESS  # else it may have ended before it fetched any
        node = self._book.graph.nodes.get(outcome.task_no) if told else None
        if node is not None and node.inputs is not None and node.assigned == outcome.number:
            note_fetched(worker, node.inputs, outcome.fetch_bytes)

    def _fail_or_retry(self, node: Node, cause: Cause, error: str, now: float) -> None:
        if cause in node.retries.on and node.retries_used < node.retries.max:
            backoff_s = Backoff(self._config.retry_backoff_s, MAX_BACKOFF_S).wait_s(node.retries_used)
            node.retries_used += 1
            if cause is Cause.MEMORY:
                self._grow(node)
            node.not_before = now + backoff_s
            self._book.make_ready(node, now, error)
        else:
            self._book.end(node, TaskState.FAILED, error, now)

    def _grow(self, node: Node) -> None:
        """Ask for more memory at the next try, at most what any worker or pool has. A push of another definition ends
        that."""
        asks = node.shape.as_resources
        offers = [worker.capacity for worker in self._fleet.workers.values()]
        offers += [pool.size for pool in self._config.pools if pool.maximum]
        most_mb = max((offer.get("memory_mb", 0.0) for offer in offers), default=0.0)
        wanted_mb = min(asks.get("memory_mb", 0.0) * node.retries.grow, most_mb)
        if wanted_mb > asks.get("memory_mb", 0.0) > 0:
            node.shape = self._book.graph.shapes.of({**asks, "memory_mb": wanted_mb})
            self._outbox.writes.grown[node.task_no] = node.shape.as_resources

    def on_returned(self, worker: Worker, names: Iterable[AttemptName], reason: str, now: float) -> None:
        """Take back attempts that were returned unstarted, or that could not run there."""
        for name in names:
            attempt = worker.held.get((name.task_no, name.number))
            if attempt is not None:
                if reason == "init":
                    self.inits.on_unprepared(worker, attempt.run_no)
                elif reason == UNCHAINED and name.task_no in self._book.graph.nodes:
                    self._book.graph.nodes[name.task_no].unchained = True
                elif not reason and not attempt.returning and attempt.state is not _STOPPING:
                    # The boss did not ask for it: given again now, it might be returned again, for ever.
                    worker.resting.add(attempt.run_no)
                self._take_back(worker, attempt, AttemptState.RETURNED, reason, now)

    def reconcile(self, worker: Worker, inventory: Iterable[HeldAttempt], orders_seen: int, now: float) -> None:
        """Correct differences between a heartbeat's inventory and the boss's state, for orders the worker has received;
        an attempt whose order is still in transit is not lost."""
        assert worker.conversation is not None
        held = {(item.task_no, item.number): item.state for item in inventory}
        stop: list[AttemptName] = []
        for key, attempt in tuple(worker.held.items()):
            state = held.pop(key, None)
            if state is None:
                in_flight = attempt.session == worker.conversation.session and attempt.order > orders_seen
                if not in_flight:
                    over = AttemptState.RETURNED if attempt.state is _ASSIGNED else AttemptState.LOST
                    self._take_back(worker, attempt, over, "the worker no longer has it", now)
            elif attempt.state is _STOPPING:
                if state != "ended":
                    stop.append(AttemptName(*key))
            elif state == "running" and attempt.state is _ASSIGNED:
                self._start(attempt, now)
        stop.extend(AttemptName(*key) for key, state in held.items() if state != "ended")
        for start in range(0, min(len(stop), STOPS_A_HEARTBEAT), BATCH_COUNT):
            names = tuple(stop[start : start + BATCH_COUNT])
            order = StopTasks(names, self._config.stop_grace_s, "the boss no longer wants it")
            self._outbox.say(worker.conversation, order)

    # --- orders of the boss ----------------------------------------------------------------------

    def stop(self, attempts: Iterable[Attempt], reason: str) -> None:
        """Stop attempts whose tasks are cancelled or replaced, and those chained to them. Each keeps its resources
        until it has ended."""
        by_worker: dict[str, list[AttemptName]] = {}
        todo = deque((attempt, reason) for attempt in attempts)
        while todo:
            attempt, why = todo.popleft()
            key = (attempt.task_no, attempt.number)
            if attempt.state in (_ASSIGNED, _STARTED):
                self._move(attempt, _STOPPING)
                attempt.reason = why
                self._write(attempt)
                by_worker.setdefault(self.holder(attempt), []).append(AttemptName(*key))
                if key in self._early:
                    self._due.append(key)
            todo.extend((follower, VOID) for follower in self._take_followers(attempt))
        for name, names in by_worker.items():
            worker = self._fleet.workers.get(name)
            if worker is not None and worker.conversation is not None:
                for start in range(0, len(names), BATCH_COUNT):
                    order = StopTasks(tuple(names[start : start + BATCH_COUNT]), self._config.stop_grace_s, reason)
                    self._outbox.say(worker.conversation, order)

    def retract(self, worker: Worker, attempts: Iterable[Attempt]) -> None:
        """Ask a worker to return attempts that wait there while another worker idles."""
        names = []
        for attempt in attempts:
            attempt.returning = True
            names.append(AttemptName(attempt.task_no, attempt.number))
        if names and worker.conversation is not None:
            worker.slow = True
            self._fleet.touched[worker.name] = None
            self._outbox.say(worker.conversation, ReturnTasks(tuple(names)))

    def lose(self, worker: Worker, reason: str, now: float, by_its_tasks: bool = False) -> None:
        """Remove a lost worker with all attempts it held. This costs no task a retry. `by_its_tasks`: no other
        explanation is known, so a task may have killed it."""
        over = self.suspects.charge(worker, self._early, reason, now) if by_its_tasks else []
        fails = {node.task_no: text for node, text in over}
        held = tuple(worker.held.values())
        for attempt in held:
            self._take_back(worker, attempt, AttemptState.LOST, reason, now, fails.get(attempt.task_no, ""))
        prepared = next((attempt for attempt in held if attempt.init), None)  # init tasks run one after another
        if by_its_tasks and prepared is not None:
            self.inits.on_worker_lost(worker, prepared, reason)

    def holder(self, attempt: Attempt) -> str:
        """The worker process that holds the attempt: the one it was given to, or a newer one of the same home."""
        key = (attempt.task_no, attempt.number)
        worker = self._fleet.workers.get(attempt.worker)
        if worker is not None and key in worker.held:
            return attempt.worker
        return next((name for name, other in self._fleet.workers.items() if key in other.held), attempt.worker)

    def forget_tasks(self, task_nos: set[int]) -> None:
        """Do not write further changes of these tasks' attempts: the tasks' rows are being deleted."""
        self.suspects.forget_tasks(task_nos)
        writes = self._outbox.writes
        writes.attempts = {key: row for key, row in writes.attempts.items() if key[0] not in task_nos}
        for key, attempt in self.active.items():
            if key[0] in task_nos:
                attempt.forgotten = True

    def forget_run(self, run_no: int) -> None:
        """The run is dropped: forget its prepared workers and its run-times."""
        self.inits.forget_run(run_no)
        self.suspects.forget_run(run_no)
        self._runtimes.forget_run(run_no)
        self.shared_names.forget(run_no)

    # --- publishing ------------------------------------------------------------------------------

    def on_promoted(self, results: Iterable[tuple[int, int, str | None]], now: float) -> None:
        """End tasks whose results are under their final names, or could not be put there."""
        self.datastore_trouble = ""
        for task_no, number, error in results:
            attempt = self.promoting.pop((task_no, number), None)
            if attempt is None:
                continue
            self._publishing.difference_update(_names(attempt))
            attempt.reason = error or ""
            succeeded = error is None and attempt.outcome is not None and attempt.outcome.cause is Cause.SUCCESS
            self._over(attempt, _ENDED, now, succeeded)
            node = self._wanted(attempt)
            if node is None:
                continue
            if attempt.outcome is not None and attempt.outcome.cause is not Cause.SUCCESS:
                # Only its outputs were published: it fails for its own reason, whether they were or not.
                self._fail_or_retry(node, attempt.outcome.cause, attempt.outcome.error, now)
            elif error is None:
                self._book.end(node, TaskState.SUCCEEDED, "", now)
            else:
                self._fail_or_retry(node, Cause.RESULT, error, now)

    def on_promotion_delayed(self, promotions: Iterable[Promote], reason: str) -> None:
        """The datastore is not available now: show the reason at these attempts."""
        self.datastore_trouble = reason
        for item in promotions:
            attempt = self.promoting.get((item.task_no, item.number))
            if attempt is not None and attempt.reason != reason:
                attempt.reason = reason
                self._write(attempt)

    def roll_forward(self) -> None:
        """After a start: promote recorded attempts again that were not yet promoted."""
        self._to_promote.extend(self.promoting.values())

    def restore_chains(self) -> None:
        """After a start: the attempt of a waiting task is chained to those of its dependencies."""
        nodes = self._book.graph.nodes
        for key, attempt in self.active.items():
            node = nodes.get(attempt.task_no)
            if node is None or node.assigned != attempt.number or attempt.state is _STOPPING:
                continue
            for dependent_no, _ in node.dependents or ():
                dependent = nodes.get(dependent_no)
                if dependent is not None and dependent.state is TaskState.WAITING and dependent.assigned:
                    follower = (dependent_no, dependent.assigned)
                    self._follow(key, follower)
                    self.active[follower].after += (key,)

    def lose_orphans(self, now: float) -> None:
        """After a start: attempts that no active worker holds are lost."""
        held = {key for worker in self._fleet.workers.values() for key in worker.held}
        for key, attempt in tuple(self.active.items()):
            if key not in held and key not in self.promoting:
                attempt.reason = attempt.reason or "its worker is gone"
                self._over(attempt, AttemptState.LOST, now)
                node = self._wanted(attempt)
                if node is not None:
                    self._book.make_ready(node, now, attempt.reason)
                elif attempt.task_no in self._book.graph.nodes:
                    # With its attempt count: a later boss must not assign the same number again.
                    self._book.write(self._book.graph.nodes[attempt.task_no])

    # --- ends ------------------------------------------------------------------------------------

    def _take_back(
        self, worker: Worker, attempt: Attempt, state: AttemptState, reason: str, now: float, fails: str = ""
    ) -> None:
        """`fails`: why its task fails now; else the task is ready again, or waits for what is redone above it."""
        self._fleet.free(worker, attempt, now)
        attempt.reason = attempt.reason or reason
        if attempt.state is _STARTED and state is AttemptState.RETURNED and attempt.init:
            state = AttemptState.LOST
        self._over(attempt, state, now)
        if attempt.init:
            self.inits.on_taken_back(worker, attempt)
            return
        node = self._wanted(attempt)
        if node is not None and fails:
            self._book.end(node, TaskState.FAILED, fails, now)
        elif node is not None:
            # A lost attempt may have started although no message reported it.
            node.unstarted += state is AttemptState.RETURNED and attempt.started_at is None
            self._book.make_ready(node, now, reason)

    @staticmethod
    def _move(attempt: Attempt, state: AttemptState) -> None:
        """Make one legal move: the only place where the state of an attempt changes."""
        assert (attempt.state, state) in LEGAL_ATTEMPT_MOVES, (
            f"attempt {attempt.task_no}-{attempt.number}: {attempt.state} to {state}"
        )
        attempt.state = state

    def _over(self, attempt: Attempt, state: AttemptState, now: float, succeeded: bool = False) -> None:
        key = (attempt.task_no, attempt.number)
        self._move(attempt, state)
        self.active.pop(key, None)
        self._early.pop(key, None)
        self._write(attempt, now)
        if not succeeded and (void := self._take_followers(attempt)):
            self.stop(void, VOID)
        self.chains.touched[attempt.worker] = None

    def _wanted(self, attempt: Attempt) -> Node | None:
        """The task, if this attempt is the one that counts for it; the task is unassigned from now on."""
        node = self._book.graph.nodes.get(attempt.task_no)
        if node is None or node.assigned != attempt.number:
            return None
        node.assigned = 0
        return node

    def _write(self, attempt: Attempt, ended_at: float | None = None) -> None:
        """Write the attempt's row in its present state."""
        if attempt.forgotten:
            return
        self._outbox.writes.attempts[(attempt.task_no, attempt.number)] = AttemptRow(
            task_no=attempt.task_no,
            number=attempt.number,
            run_no=attempt.run_no,
            worker=attempt.worker,
            state=attempt.state,
            assigned_at=attempt.assigned_at,
            started_at=attempt.started_at,
            ended_at=ended_at,
            reason=attempt.reason,
            outcome=attempt.outcome,
            asks=attempt.shape.as_resources if attempt.state is _STOPPING else None,
        )

    def check(self) -> None:
        """Check invariants: held and active agree; a task's assigned attempt exists and is wanted."""
        self.shared_names.check()
        held = {key for worker in self._fleet.workers.values() for key in worker.held}
        assert held | set(self.promoting) == set(self.active), "held and active attempts differ"
        assert not self._due
        for key, attempt in self.active.items():
            assert (attempt.state is _PROMOTING) == (key in self.promoting)
            assert key not in self._early or attempt.chained, "an outcome waits for nothing"
        for node in self._book.graph.nodes.values():
            if node.inputs is not None:
                holders = {name for part in node.inputs.parts for name in part.holders}
                assert holders <= self._fleet.workers.keys(), "a worker that is gone has inputs"
            if node.assigned:
                attempt = self.active[(node.task_no, node.assigned)]
                assert attempt.state is not _STOPPING, f"task {node.id} counts on an attempt that is being stopped"
                if node.state is _READY:
                    assert attempt.state is _ASSIGNED
                assert attempt.chained == (node.state is TaskState.WAITING), f"task {node.id} is {node.state}"
            else:
                assert node.init or node.state is not _RUNNING, f"task {node.id} runs without an attempt"


def stage_name(worker: str, key: Key) -> str:
    """Name of the stage in which a worker process puts the results of an attempt."""
    return f"{worker}/{key[0]}-{key[1]}"


def _names(attempt: Attempt) -> list[str]:
    """Final names of the files it publishes; several attempts may publish into one directory."""
    assert attempt.outcome is not None
    return [entry.path for entry in attempt.outcome.manifest if entry.kind != "directory"]


def _promotion(attempt: Attempt) -> Promote:
    assert attempt.outcome is not None
    key = (attempt.task_no, attempt.number)
    return Promote(attempt.task_no, attempt.number, stage_name(attempt.worker, key), attempt.outcome.manifest)
