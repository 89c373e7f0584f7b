"""The attempts that a worker holds: the queue, running ones, resources, init tasks, and outcomes until they are
confirmed. Owns no clock, file or process, and no part of the conversation: it sends through `say`, which its owner
provides.

Everything that it reports about an attempt is true at that time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec

from ecloud.model import wire
from ecloud.model.tasks import ROUNDING, Cause, Outcome, Resources, fits
from ecloud.model.wire import AttemptName, AttemptOrder, HeldAttempt
from worker.core.call_values import MissingValues
from worker.core.events import (
    CallBegan,
    PrefetchCall,
    ResultsComplete,
    StartAttempt,
    StopAttempt,
    WorkerConfig,
    WorkerEffects,
)
from worker.core.followers import Followers
from worker.core.prefetched import BEGIN_S, Prefetched
from worker.core.report_size import CUT_OFF_TIMES, LARGE_BYTES, report_bytes, sendable, without_long_parts

FLUSH_COUNT = 64
"""Outcomes that are sent together. One outcome per message would cost almost half of the speed."""
FLUSH_S = 0.02
"""Longest time that an outcome waits for others while something runs or waits."""
STARTED_S = 0.5
"""An attempt that runs for this long is reported as started. Of most short tasks the boss learns only the end."""

FLUSH_BUSY_COUNT = 192
FLUSH_BUSY_S = 0.15
"""The same while many attempts wait here: then no worker lacks work, and fewer, fuller messages halve the cost for boss
and database."""
FLUSH_STEADY_COUNT = 32
FLUSH_STEADY_S = 0.05
"""And while at least this many wait: tasks that move files end so slowly that each would be sent alone."""
SHORT_S = 1.0
"""Outcomes of attempts shorter than this may be written to disk together."""

INITS_KEPT = 1_000
"""Init tasks whose end is remembered, the latest: a worker may live for months, and the boss orders one again if it
learns that it was forgotten."""
STAGING_MOST = 64
"""Attempts that may stage results after freeing their resources."""

Key = tuple[int, int]


class Running(msgspec.Struct, eq=False):
    """An attempt that was started here. `said`: whether its start was reported to the boss; `staging`: its commands
    ended and its resources are free again."""

    order: AttemptOrder
    gpus: tuple[str, ...]
    started_at: float
    said: bool = False
    stopping: bool = False
    staging: bool = False


class Ended(msgspec.Struct, eq=False):
    """An outcome that the boss has not confirmed, and when it was last sent."""

    outcome: Outcome
    size: int
    said_at: float = 0.0
    is_under_way: bool = False
    """It was sent on the present connection."""
    cut_off: int = 0
    """Connections in a row that ended while it was under way, if it is large."""


class Attempts:
    """Everything that one worker process holds. `effects`: what is to be carried out; its owner takes it."""

    def __init__(self, config: WorkerConfig, say: Callable[[wire.Message], None]) -> None:
        self.config = config
        self.queue: dict[Key, AttemptOrder] = {}
        self.running: dict[Key, Running] = {}
        self._staging = 0
        self.followers = Followers()
        self.missing_values = MissingValues(say)
        self.prefetched = Prefetched()
        self._unwanted: dict[Key, StopAttempt | None] = {}
        """Prefetched calls that the boss stopped or wants back. They are given back if they have not begun; otherwise a
        stopped one is stopped."""
        self._complete: dict[Key, ResultsComplete] = {}
        """Attempts whose results are being staged while others may already use them."""
        self._held_back: dict[Key, AttemptOrder] = {}
        """Outcomes of chained attempts, which are sent after those of the attempts that they followed."""
        self.ended: dict[Key, Ended] = {}
        self.inits: dict[int, str] = {}
        self.free: Resources = dict(config.resources)
        self._all_gpus = config.gpus
        self.free_gpus = dict.fromkeys(config.gpus, 1.0)
        """The free part of each GPU."""
        self.effects = WorkerEffects()
        self.starts_changed = False
        self.flush_at: float | None = None
        self._say = say
        self._queued_without_cpus = 0
        self._unsaid: dict[Key, Ended] = {}
        self._unspooled: list[Outcome] = []
        """Short ones that ended since the last flush: written to disk together before they are sent."""
        for outcome in config.spooled:
            self._keep(*sendable(outcome))

    @property
    def inventory(self) -> tuple[HeldAttempt, ...]:
        """Everything held here."""
        return (
            *(HeldAttempt(*key, "queued") for key in self.queue),
            *(HeldAttempt(*key, "queued") for key in self.followers.waiting),
            *(HeldAttempt(*key, "queued") for key in self.missing_values.waiting),
            *(HeldAttempt(*key, "running") for key in self.running),
            *(HeldAttempt(*key, "ended") for key in self.ended),
        )

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not (self.queue or self.running or self.followers.waiting or self.missing_values.waiting)

    # --- orders and facts --------------------------------------------------------------------------

    def on_start_tasks(self, orders: Iterable[AttemptOrder], takes: bool) -> None:
        """Queue these, except those that are held already. `takes`: whether the worker accepts new attempts."""
        back: list[Key] = []
        for order in orders:
            key = (order.task_no, order.number)
            if self._waits(key) or key in self.running or key in self.ended:
                continue
            if not takes or not fits(self.config.resources, order.asks.items()):
                back.append(key)
                continue
            if order.after:
                self._chain(key, order)
                continue
            self._enqueue(key, order)
            if order.init:
                self.inits.pop(order.task_no, None)
                self.inits[order.task_no] = "queued"  # the latest one now
        if len(self.inits) > INITS_KEPT:
            self._forget_old_inits()
        if back:
            self._say_returned(back, "" if takes else wire.DRAINING)

    def _waits(self, key: Key) -> bool:
        return key in self.queue or key in self.followers or key in self.missing_values

    def _enqueue(self, key: Key, order: AttemptOrder) -> None:
        if order.values_apart:
            self.missing_values.add(key, order)
            return
        self.queue[key] = order
        if not order.asks.get("cpus"):
            self._queued_without_cpus += 1
        self.starts_changed = True

    def _chain(self, key: Key, order: AttemptOrder) -> None:
        """Hold an attempt until those that it follows have succeeded here."""
        self.followers.add(key, order)
        for name in order.after:
            earlier = (name.task_no, name.number)
            if earlier in self._complete:
                self._on_success(self._complete[earlier])
            elif earlier in self.ended:
                outcome = self.ended[earlier].outcome
                if outcome.cause is Cause.SUCCESS:  # else the boss stops it
                    self._on_success(_without_files(outcome))
            elif earlier not in self.running and earlier not in self.queue and earlier not in self.followers:
                self.give_back([key], wire.UNCHAINED)

    def _on_success(self, done: ResultsComplete) -> None:
        ready, back = self.followers.on_success(done)
        for key, order in ready:
            self._enqueue(key, order)
        if back:
            self.give_back(back, wire.UNCHAINED)

    def on_values(self, page: wire.CallValues) -> None:
        """Queue the attempt if these were the last values that it needs."""
        complete = self.missing_values.on_values(page)
        if complete is not None:
            self._enqueue(*complete)

    def on_results_complete(self, done: ResultsComplete) -> None:
        """Release its followers: they need not wait for the staging of its results."""
        key = (done.task_no, done.number)
        if key in self.running:
            self._complete[key] = done
            self._on_success(done)
            self.on_commands_ended(key)

    def _forget_old_inits(self) -> None:
        orders = (*self.queue.values(), *self.followers.orders(), *self.missing_values.waiting.values())
        wanted = {task_no for order in orders for task_no in (order.task_no, *order.after_init)}
        wanted |= {task_no for task_no, _ in self.running}
        for task_no in [task_no for task_no in self.inits if task_no not in wanted][: len(self.inits) - INITS_KEPT]:
            del self.inits[task_no]

    def start(self, now: float) -> None:
        """Start the first in the queue that fit, in order. Nothing more can start before `starts_changed` again."""
        self.starts_changed = False
        started: list[Key] = []
        unready: list[Key] = []
        too_many = math.inf  # CPUs that were not available: larger requests are skipped
        free_cpus = self.free.get("cpus", 0.0)
        for key, order in self.queue.items():
            cpus = order.asks.get("cpus", 0.0)
            if cpus >= too_many or key in self.prefetched:
                continue
            if cpus > free_cpus + ROUNDING:
                if not self._queued_without_cpus and free_cpus <= ROUNDING:
                    break  # do not search a long queue for each task that ends
                too_many = cpus
                continue
            ready = self._init_stands(order) if order.init or order.after_init else True
            if ready is False:
                unready.append(key)
            elif ready and fits(self.free, order.asks.items()) and (gpus := self._pick_gpus(order.asks)) is not None:
                self._start_one(key, order, gpus, now)
                started.append(key)
                free_cpus = self.free.get("cpus", 0.0)
        for key in started:
            self._unqueue(key)
        if unready:
            self.give_back(unready, "init")

    def prefetch(self) -> None:
        """Hand short calls from the front of the queue to hosts that run others of their kind."""
        gpus: tuple[str, ...] | None = () if self.config.gpus else None
        for _, order, behind in self.prefetched.take(self.queue):
            self.effects.prefetches.append(PrefetchCall(order, behind, gpus, BEGIN_S))

    def on_call_began(self, event: CallBegan, now: float) -> None:
        """A host began a prefetched call: it uses the resources of the one before it."""
        key, after = (event.task_no, event.number), event.after
        before = self.running[after]
        assert not before.staging, "a call had given its resources away"
        before.staging = True
        self._staging += 1
        order = self._unqueue(key)
        if self.prefetched.on_next(key, after, order, now):
            self.starts_changed = True
        self.running[key] = Running(order, before.gpus, now)
        stop = self._unwanted.pop(key, None)
        if stop is not None:
            self.running[key].stopping = True
            self.effects.stops.append(stop)

    def on_calls_recalled(self, keys: Iterable[Key]) -> None:
        """These wait in the queue only, or are given back if the boss wants that."""
        keys = list(keys)
        self.prefetched.on_recalled(keys)
        self.starts_changed = True
        unwanted = [key for key in keys if key in self._unwanted]
        for key in unwanted:
            del self._unwanted[key]
        self.give_back(unwanted, "")

    def pass_deadlines(self, now: float) -> None:
        """Recall the calls that wait behind a long one."""
        self.effects.recalls.extend(self.prefetched.overdue(now))

    def _init_stands(self, order: AttemptOrder) -> bool | None:
        """Whether the init tasks that must precede it have succeeded here: True, None (not yet), False (one failed, or
        is unknown here)."""
        if order.init:
            busy = any(running.order.init and running.order.run_no == order.run_no for running in self.running.values())
            return None if busy else True
        stands: bool | None = True
        for task_no in order.after_init:
            state = self.inits.get(task_no, "unknown")
            if state in ("failed", "unknown"):
                return False
            if state != "succeeded":
                stands = None
        return stands

    def on_gpus(self, present: Collection[str]) -> bool:
        """Offer only the GPUs that answer; return whether that changed anything. Attempts on a lost GPU continue;
        queued ones that can never fit now are given back in the next session."""
        offered = tuple(gpu for gpu in self._all_gpus if gpu in present)
        if offered == self.config.gpus:
            return False
        more = len(offered) - len(self.config.gpus)
        used: dict[str, float] = {}
        for running in self.running.values():
            if not running.staging:
                for gpu in running.gpus:
                    used[gpu] = used.get(gpu, 0.0) + min(1.0, running.order.asks["gpus"])
        resources = {**self.config.resources, "gpus": float(len(offered))}
        self.config = msgspec.structs.replace(self.config, gpus=offered, resources=resources)
        self.free["gpus"] = self.free.get("gpus", 0.0) + more
        self.free_gpus = {gpu: 1.0 - used.get(gpu, 0.0) for gpu in offered}
        self.starts_changed = True
        return True

    def _pick_gpus(self, asks: Resources) -> tuple[str, ...] | None:
        """GPUs for one attempt: whole ones, or a share of the fullest that has room. None if none fit."""
        wanted = asks.get("gpus", 0.0)
        if not wanted:
            return ()
        if wanted < 1:
            room = {gpu: free for gpu, free in self.free_gpus.items() if free + ROUNDING >= wanted}
            return (min(room, key=room.__getitem__),) if room else None
        whole = [gpu for gpu, free in self.free_gpus.items() if free > 1 - ROUNDING]
        return tuple(whole[: int(wanted)]) if len(whole) >= int(wanted) else None

    def _start_one(self, key: Key, order: AttemptOrder, gpus: tuple[str, ...], now: float) -> None:
        for name, amount in order.asks.items():
            self.free[name] = self.free.get(name, 0.0) - amount
        for gpu in gpus:
            self.free_gpus[gpu] -= min(1.0, order.asks["gpus"])
        self.running[key] = Running(order, gpus, now)
        if order.init:
            self.inits[order.task_no] = "running"
        self.prefetched.on_began(key, order, now)
        own = self.followers.take(key) if order.after else {}
        self.effects.starts.append(StartAttempt(order, gpus if self.config.gpus else None, own))
        if self.flush_at is None:
            self.flush_at = now + STARTED_S

    def _unqueue(self, key: Key) -> AttemptOrder:
        if order := self.followers.remove(key) or self.missing_values.remove(key):
            return order
        order = self.queue.pop(key)
        if not order.asks.get("cpus"):
            self._queued_without_cpus -= 1
        return order

    def _release(self, key: Key) -> Running | None:
        running = self.running.pop(key, None)
        if running is None:
            return None
        self.prefetched.on_ended(key)
        if running.staging:
            self._staging -= 1
        else:
            self._free(running)
        if not self.running:
            self.free = dict(self.config.resources)
        return running

    def _free(self, running: Running) -> None:
        for name, amount in running.order.asks.items():
            self.free[name] += amount
        for gpu in running.gpus:
            if gpu not in self.free_gpus:
                continue  # it was lost meanwhile
            free = self.free_gpus[gpu] + min(1.0, running.order.asks["gpus"])
            self.free_gpus[gpu] = 1.0 if free > 1 - ROUNDING else free
        self.starts_changed = True

    def on_commands_ended(self, key: Key) -> None:
        """Its commands ended and its results are being staged: free its resources. Only for a limited number of
        attempts at a time, because results for an unreachable datastore accumulate on this disk."""
        running = self.running.get(key)
        if running is not None and not running.staging and self._staging < STAGING_MOST:
            running.staging = True
            self._staging += 1
            self._free(running)

    def on_ended(self, outcome: Outcome) -> None:
        """All its processes have ended: keep its outcome until the boss confirms it."""
        outcome, size = sendable(outcome)
        key = (outcome.task_no, outcome.number)
        running = self._release(key)
        if running is None:
            return
        # Write a long attempt's outcome immediately. A crash soon afterwards may lose several short ones, which costs
        # no more.
        if outcome.cause is Cause.SUCCESS and running.order.body is not None and running.order.body.call is not None:
            self.prefetched.learn(running.order, outcome.run_s)
        waits = self._waiting >= FLUSH_STEADY_COUNT and outcome.run_s < SHORT_S
        (self._unspooled if waits else self.effects.spool).append(outcome)
        self._keep(outcome, size)
        self._say_in_order(key, running.order)
        if self._complete.pop(key, None) is None and outcome.cause is Cause.SUCCESS and self.followers.is_followed(key):
            self._on_success(_without_files(outcome))
        if running.order.init:
            succeeded = outcome.cause is Cause.SUCCESS
            self.inits[outcome.task_no] = "succeeded" if succeeded else "failed"
            if not succeeded:
                run_no = running.order.run_no
                waiting = [(order.task_no, order.number) for order in self.followers.orders() if order.run_no == run_no]
                back = [other for other, order in self.queue.items() if order.run_no == run_no]
                self.give_back([*back, *waiting], "init")

    @property
    def _waiting(self) -> int:
        return len(self.queue) + len(self.followers.waiting)

    def _say_in_order(self, key: Key, order: AttemptOrder) -> None:
        """Do not send an outcome before those of the attempts that it followed: the boss could not record it."""
        if order.after:
            self._held_back[key] = order
            del self._unsaid[key]
        self._release_held_back()

    def _release_held_back(self) -> None:
        """Send outcomes that were held back, once those before them were sent or are gone."""
        again = bool(self._held_back)
        while again:
            again = False
            for other, held in list(self._held_back.items()):
                before = [(name.task_no, name.number) for name in held.after]
                if not any(earlier in self.running or earlier in self._held_back for earlier in before):
                    del self._held_back[other]
                    self._unsaid[other] = self.ended[other]
                    again = bool(self._held_back)

    def _keep(self, outcome: Outcome, size: int) -> None:
        key = (outcome.task_no, outcome.number)
        self.ended[key] = self._unsaid[key] = Ended(outcome, size)

    def on_connection_lost(self) -> None:
        """Give up reports that the broker seems to refuse: it ends each connection on which they are sent."""
        for key, ended in self.ended.items():
            if ended.size > LARGE_BYTES and ended.is_under_way:
                ended.cut_off += 1
            ended.is_under_way = False
            if ended.cut_off >= CUT_OFF_TIMES:
                why = f"ended the connection to the broker {ended.cut_off} times"
                short = without_long_parts(ended.outcome, ended.size, why)
                self.ended[key] = Ended(short, report_bytes(short))
                self.effects.spool.append(short)

    def on_returned(self, key: Key, reason: str, ran: bool, now: float) -> None:
        """It could not be run here: free its resources and tell the boss why. `ran`: its commands had started, so the
        next attempt gets another ECLOUD_ATTEMPT."""
        running = self._release(key)
        self._complete.pop(key, None)
        if running is not None:
            if running.order.init:
                self.inits.pop(key[0], None)
            if ran and not running.said:
                self._say(wire.TasksStarted((wire.StartedAttempt(*key, now - running.started_at),)))
            self._say_returned([key], reason)
            self._release_held_back()

    def on_stored(self, names: Iterable[AttemptName]) -> None:
        """The boss confirmed these outcomes."""
        for name in names:
            key = (name.task_no, name.number)
            self._unsaid.pop(key, None)
            self._held_back.pop(key, None)
            if self.ended.pop(key, None) is not None:
                self.effects.forget.append(key)
        self._release_held_back()

    def on_stop(self, names: Iterable[AttemptName], grace_s: float, reason: str) -> None:
        """Stop those that run, give back those that wait."""
        self.give_back([(name.task_no, name.number) for name in names], "")
        for name in names:
            if (name.task_no, name.number) in self._unwanted:
                self._unwanted[(name.task_no, name.number)] = StopAttempt(name.task_no, name.number, grace_s, reason)
            running = self.running.get((name.task_no, name.number))
            if running is not None and not running.stopping:
                running.stopping = True
                self.effects.stops.append(StopAttempt(name.task_no, name.number, grace_s, reason))

    def give_back(self, keys: Iterable[Key], reason: str) -> None:
        """Give back those of these that wait; prefetched ones when their host no longer has them."""
        back = [key for key in keys if self._waits(key)]
        for key in [key for key in back if key in self.prefetched]:
            back.remove(key)
            self._unwanted.setdefault(key, None)
            self.effects.recalls.append(key)
        for key in back:
            order = self._unqueue(key)
            if order.init:
                self.inits.pop(order.task_no, None)
        if back:
            self._say_returned(back, reason)

    def give_back_queue(self) -> None:
        """Give back everything that waits here."""
        self.give_back([*self.queue, *self.followers.waiting, *self.missing_values.waiting], "")

    def _say_returned(self, keys: Sequence[Key], reason: str) -> None:
        for start in range(0, len(keys), wire.BATCH_COUNT):
            names = tuple(AttemptName(*key) for key in keys[start : start + wire.BATCH_COUNT])
            self._say(wire.TasksReturned(names, reason))

    # --- sending ------------------------------------------------------------------------------------

    def on_session(self, now: float) -> None:
        """Send every outcome again in a new session. The inventory in its first heartbeat reports what runs."""
        self._unsaid = {key: ended for key, ended in self.ended.items() if key not in self._held_back}
        for running in self.running.values():
            running.said = True
        if self.ended:
            self.flush_at = now
        has, waiting = self.config.resources, {**self.queue, **self.missing_values.waiting}
        self.give_back([key for key, order in waiting.items() if not fits(has, order.asks.items())], "")
        self.missing_values.on_session()

    def repeat(self, older_s: float, now: float) -> None:
        """Send again what was sent longer ago than that and was not confirmed."""
        for key, ended in self.ended.items():
            if key not in self._unsaid and key not in self._held_back and now - ended.said_at >= older_s:
                self._unsaid[key] = ended
                self.flush_at = now

    def _spool(self) -> None:
        if self._unspooled:
            self.effects.spool.extend(self._unspooled)
            self._unspooled = []

    def flush(self, now: float, in_session: bool) -> None:
        """Send starts and ends in batches; with a short delay, so that batches form."""
        if not in_session:
            self.flush_at = None
            self._spool()
            return
        unsaid = self._unsaid
        if self.flush_at is None or now < self.flush_at:  # not due yet
            if not unsaid:
                return
            enough, wait_s = _pace(self._waiting)
            if len(unsaid) < enough and (self.queue or self.running):
                latest = now + wait_s
                self.flush_at = latest if self.flush_at is None else min(self.flush_at, latest)
                return
        self.flush_at = None
        self._spool()
        self._say_started(now)
        self._unsaid = {}
        self._say_ended(unsaid.values(), now)

    def _say_started(self, now: float) -> None:
        started = []
        for key, running in self.running.items():
            if running.said:
                continue
            tells_at = running.started_at + STARTED_S
            if now < tells_at:
                self.flush_at = tells_at if self.flush_at is None else min(self.flush_at, tells_at)
                continue
            running.said = True
            started.append(wire.StartedAttempt(*key, now - running.started_at))
        if started:
            self._say(wire.TasksStarted(tuple(started)))

    def _say_ended(self, unsaid: Iterable[Ended], now: float) -> None:
        batch: list[Outcome] = []
        size = 0
        for ended in unsaid:
            if batch and (len(batch) >= wire.BATCH_COUNT or size + ended.size > wire.BATCH_BYTES):
                self._say(wire.TasksEnded(tuple(batch)))
                batch, size = [], 0
            batch.append(ended.outcome)
            size += ended.size
            ended.said_at, ended.is_under_way = now, True
        if batch:
            self._say(wire.TasksEnded(tuple(batch)))

    def check(self) -> None:
        """Invariants: an attempt is in one place; resources add up; each GPU is given once."""
        queue, running, ended = self.queue, self.running, self.ended
        assert ended.keys().isdisjoint(queue), "an attempt is in two places"
        assert ended.keys().isdisjoint(running), "an attempt is in two places"
        assert running.keys().isdisjoint(queue), "an attempt is in two places"
        assert self._unsaid.keys() <= ended.keys(), "an answered outcome waits to be sent"
        assert self._held_back.keys() <= ended.keys() - self._unsaid.keys(), "a held outcome was sent"
        assert self._complete.keys() <= running.keys(), "results of an ended attempt are being staged"
        waiting = self.followers.waiting
        assert waiting.keys().isdisjoint({*queue, *running, *ended}), "a chained attempt is in two places"
        missing = self.missing_values.waiting
        assert missing.keys().isdisjoint({*queue, *running, *ended, *waiting}), "an attempt without values is elsewhere"
        self.missing_values.check(queue)
        self.followers.check()
        self.prefetched.check(queue, running)
        assert all(key in self.prefetched for key in self._unwanted), "what is wanted back is not at a host"
        assert self._queued_without_cpus == sum([not order.asks.get("cpus") for order in queue.values()])
        taken: Resources = {}
        gpus = dict(self.free_gpus)
        staging = 0
        for attempt in running.values():
            if attempt.staging:
                staging += 1
                continue
            for gpu in attempt.gpus:
                if gpu not in gpus:
                    continue
                gpus[gpu] += min(1.0, attempt.order.asks["gpus"])
            for name, amount in attempt.order.asks.items():
                taken[name] = taken.get(name, 0.0) + amount
        assert self._staging == staging
        assert gpus.keys() == set(self.config.gpus), "a GPU is lost"
        assert all(abs(share - 1) < 0.001 for share in gpus.values()), "a GPU is given twice"
        has = self.config.resources
        for name, amount in taken.items():
            if name == "gpus" and len(self.config.gpus) < len(self._all_gpus):
                continue  # what ran on a lost one still counts
            assert amount <= has.get(name, 0.0) + 0.001, f"more {name} taken than there are"
        for name, amount in has.items():
            assert -0.001 < self.free[name] + taken.get(name, 0.0) - amount < 0.001, f"{name} does not add up"


def _without_files(outcome: Outcome) -> ResultsComplete:
    """A completed attempt whose results are staged and no longer here."""
    return ResultsComplete(outcome.task_no, outcome.number, {}, tuple([entry.path for entry in outcome.manifest]))


def _pace(waiting: int) -> tuple[int, float]:
    """Return how many outcomes are sent together, and how long they wait for that, when this many attempts wait to
    start."""
    if waiting >= FLUSH_BUSY_COUNT:
        return FLUSH_BUSY_COUNT, FLUSH_BUSY_S
    return FLUSH_COUNT, FLUSH_STEADY_S if waiting >= FLUSH_STEADY_COUNT else FLUSH_S
