"""The shell of a simulated worker: the real core, jobs that are durations, a home that outlives processes.

The disk (`WorkerHome`: the spool) survives the process, but not the machine. Effects are carried out in the core's
order: outcomes are in the spool before they are sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from datastore.port import DatastoreAway
from ecloud.model import wire
from ecloud.model.tasks import SIGTERM, Cause, ManifestEntry, Outcome, Resources, TaskBody, output_path
from ecloud.model.topics import boss_topic, peer_topic
from ecloud.model.wire import AttemptOrder, Envelope
from sim.checker import Checker
from sim.datastore import Datastore
from sim.faults import Faults
from sim.invariants import Violation
from sim.network import Network, decoded
from sim.store import CLUSTER_ID
from sim.world import TICK_S, World
from worker.core.events import (
    AttemptEnded,
    AttemptReturned,
    CallBegan,
    CallsRecalled,
    ConnectionFound,
    ConnectionLost,
    Event,
    Leave,
    MessageArrived,
    PrefetchCall,
    ResultsComplete,
    StartAttempt,
    StopAttempt,
    TermReceived,
    TroubleChanged,
    WorkerConfig,
    WorkerEffects,
)
from worker.core.report_size import LARGE_BYTES
from worker.core.worker_core import WorkerCore

RETRY_S = 0.5
"""Interval at which an unreachable datastore is tried again."""
BYTES_PER_S = 100e6
"""Rate at which workers fetch big inputs."""
CHECKED_ALWAYS, CHECKED_EACH = 40, 40
"""A core is checked after each of its first batches, later after this many; with many workers, after this many
batches."""
HOST_LIVES = frozenset({Cause.SUCCESS, Cause.EXIT})
"""Ends of a call after which its host begins the next one."""
NO_TIME_S = 1e-7
"""The run times of commands differ by multiples of this, so that no two outcomes of a world are equal."""
TERM_SPREAD_S = 0.8
"""SIGTERM reaches the processes of a machine that shuts down within this time."""
MANY = 200
Key = tuple[int, int]


class WorkerHome(msgspec.Struct):
    """A machine's disk and resources. `key_name`: the key with which its processes sign."""

    name: str
    resources: Resources
    key_name: str
    vm: str = ""
    boot_nonce: str = ""
    spool: dict[Key, Outcome] = {}
    heard: tuple[int, int] = (0, 0)
    """Epoch and batch of the boss, as stored in the spool."""
    processes: int = 0
    gpus: tuple[str, ...] = ()
    ssh_key: str = ""
    disk_full: bool = False
    kept: set[str] = set()
    """Big inputs that it cached."""
    address: str = ""
    machine: str = ""
    """The machine, if it is shared with other homes."""
    machine_has: Resources = {}
    ends_at: float = math.inf
    """Time at which the machine ends, if its workers know it."""


class Places(msgspec.Struct):
    """Objects that a worker uses."""

    world: World
    faults: Faults
    network: Network
    datastore: Datastore
    checker: Checker
    outcomes: int = 0
    """Number of outcomes so far."""


class Job(msgspec.Struct, eq=False):
    """An attempt that runs on this worker."""

    order: AttemptOrder
    body: TaskBody
    stopped: str = ""
    over: bool = False
    own: dict[str, Key] = {}
    """Requirements in this worker's own storage, with the attempts that made them."""
    read: dict[str, str] = {}
    """Contents that it read of its requirements, by path."""
    fetch_bytes: int = 0
    began_at: float | None = None
    """Time at which its commands started."""
    run_s: float = 0.0
    failed: tuple[Cause, str] | None = None
    """Cause and error of its failed commands, while their outputs are staged."""


class WorkerProcess:
    """One process of a home, from its start to its death."""

    def __init__(self, home: WorkerHome, places: Places, ended: Callable[[str], None]) -> None:
        home.processes += 1
        self.name = f"{home.name}p{home.processes}"
        self.home = home
        self.world, self.faults = places.world, places.faults
        self.datastore, self.checker = places.datastore, places.checker
        self.places = places
        self.network = places.network
        self.alive = True
        self.frozen = False
        self.jobs: dict[Key, Job] = {}
        self._ahead: dict[Key, list[tuple[PrefetchCall, float]]] = {}
        """Calls that wait at the host of a running one, and when each must have begun."""
        self.kept: dict[Key, str] = {}
        """Results of attempts that have followers, in this worker's own storage."""
        self._ended = ended
        self._inbox: list[Event] = []
        self._handled = 0
        self._unspooled: list[Outcome] = []
        self._sent: dict[tuple[str, int], float] = {}
        self._said_in = ""
        self._hellos: dict[str, float] = {}
        """Times of its unanswered Hellos, by nonce."""
        self._clock_s = self.world.random.uniform(0.0, 1e6)
        """Its clock is independent of all others."""
        self._later: list[Callable[[], None]] = []
        self._woken = False
        self._wake_at: float | None = None
        self._alarms: set[float] = set()
        """Times of alarms, which may have no effect by then."""
        self._topic = boss_topic(CLUSTER_ID, self.name)
        config = WorkerConfig(
            peer=self.name,
            home=home.name,
            resources=home.resources,
            vm=home.vm,
            boot_nonce=home.boot_nonce,
            spooled=tuple(home.spool.values()),
            heard=home.heard if home.spool else (0, 0),
            gpus=home.gpus,
            ssh_key=home.ssh_key,
            addresses=(home.address,) if home.address else (),
            boot_id=home.machine,
            machine_has=home.machine_has,
            lives_s=max(0.0, home.ends_at - self.world.now) if home.ends_at < math.inf else None,
        )
        self.checker.fleet.ends[self.name] = home.ends_at
        self.core = WorkerCore(config, self._now)
        self.link = places.network.connect(
            peer_topic(CLUSTER_ID, self.name),
            decoded(self._hear),
            lambda: self._put(ConnectionFound()),
            lambda reason: self._put(ConnectionLost(reason)),
        )
        self.link.backlog = lambda: len(self._inbox)
        self.world.tell(self.name, f"starts with {len(home.spool)} outcomes in its spool")

    # --- faults ------------------------------------------------------------------------------------

    def die(self, why: str) -> None:
        """End the process, with all its jobs."""
        if self.alive:
            self.world.tell(self.name, f"dies: {why}")
            self.alive = False
            self.link.close()
            ran, self.jobs = set(self.jobs), {}
            self.checker.on_worker_dead(self.name, ran)
            self._ended(why)

    def freeze(self, seconds: float) -> None:
        """Suspend the process, with all its jobs."""
        if self.alive and not self.frozen:
            self.world.tell(self.name, f"stands still for {seconds:.1f} s")
            self.frozen = True
            self.world.after(seconds, self.thaw)

    def thaw(self) -> None:
        """Resume: everything that became due meanwhile is due now."""
        if self.alive and self.frozen:
            self.world.tell(self.name, "continues")
            self.frozen = False
            later, self._later = self._later, []
            for action in later:
                action()
            self._wake()

    def fill_disk(self, seconds: float) -> None:
        """Fill its disk for a while."""
        if not self.home.disk_full:
            self.world.tell(self.name, f"has no room on its disk for {seconds:.1f} s")
            self.home.disk_full = True
            self.world.after(seconds, self._make_room)
            self._put(TroubleChanged("disk full"))
            self._after(RETRY_S, self._look_again)

    def _make_room(self) -> None:
        self.home.disk_full = False

    def leave(self) -> None:
        """Order it to leave."""
        self._put(TermReceived())

    def shut_down(self) -> None:
        """Send SIGTERM to the agent and to the commands of its jobs: its machine shuts down."""
        self.world.tell(self.name, "its machine shuts down")
        self.checker.shut_down.add(self.name)
        self._after(self.world.random.uniform(0.0, TERM_SPREAD_S), self.leave)
        for key, job in self.jobs.items():
            self._after(self.world.random.uniform(0.0, TERM_SPREAD_S), self._term, key, job)

    def _term(self, key: Key, job: Job) -> None:
        """Handle commands that SIGTERM ended. The agent waits for its own SIGTERM, and returns the attempt; or it
        reports the end as that of a failure, as an agent does whose task ended just before."""
        if job.over or job.stopped or job.began_at is None or job.run_s:
            return
        if not (self.core.then_exit or self.core.leaving):
            self._after(TERM_SPREAD_S / 10, self._term, key, job)
        elif self.world.random.random() < 0.5:
            self._over(key, job, AttemptReturned(*key, "its machine shuts down", ran=True))
        else:
            self._end(key, job, Cause.SIGNAL, "its commands were ended by SIGTERM", number=SIGTERM)

    # --- the loop --------------------------------------------------------------------------------

    @property
    def _now(self) -> float:
        return self.world.now + self._clock_s

    def _hear(self, envelope: Envelope, key_name: str) -> None:
        message = envelope.message
        if isinstance(message, wire.HeartbeatAnswered) and envelope.session == self._said_in and not self.frozen:
            sent_at = self._sent.pop((envelope.session, message.number), None)
            if sent_at is not None:
                self.checker.fleet.on_lease(self.name, sent_at)
        elif isinstance(message, wire.Welcome):
            self.checker.fleet.on_welcome(self.name, self._hellos.pop(message.nonce, self.world.now))
        self._hand(MessageArrived(envelope))

    def _hand(self, event: Event) -> None:
        """Handle an event immediately, unless events are batched or the process is suspended."""
        if self.alive and not self._woken and not self.frozen:
            self._inbox.append(event)
            self._take()
        else:
            self._put(event)

    def _put(self, event: Event) -> None:
        """Handle an event a moment later, together with those that arrive meanwhile."""
        if self.alive:
            self._inbox.append(event)
            self._wake()

    def _wake(self) -> None:
        if not self._woken and not self.frozen:
            self._woken = True
            self.world.after(0.00005, self._take)

    def _take(self) -> None:
        self._woken = False
        if not self.alive or self.frozen:
            return
        events, self._inbox = self._inbox, []
        self._carry_out(self.core.handle(events, self._now))
        self._handled += 1
        if self._handled % CHECKED_EACH == 0 or (self._handled < CHECKED_ALWAYS and len(self.network.links) < MANY):
            self.core.check()
        if self.alive:
            self._set_alarm()

    def _set_alarm(self) -> None:
        deadline = self.core.next_deadline()
        if deadline is None:
            return
        at = deadline - self._clock_s + TICK_S
        if self._wake_at is None or at < self._wake_at or self._wake_at <= self.world.now:
            self._wake_at = at
            if at not in self._alarms:
                self._alarms.add(at)
                self.world.at(at, partial(self._ring, at))

    def _ring(self, at: float) -> None:
        self._alarms.discard(at)
        if self._wake_at == at:
            self._wake_at = None
            if self.alive:
                if self.frozen:
                    self._later.append(self._wake)
                else:
                    self._take()

    def _after(self, seconds: float, action: Callable[..., None], *of: Any) -> None:
        """Run the action later, unless the process is dead by then; if it is suspended then, when it resumes."""
        self.world.after(seconds, partial(self._happen, action, *of))

    def _happen(self, action: Callable[..., None], *of: Any) -> None:
        if self.alive:
            if self.frozen:
                self._later.append(partial(action, *of))
            else:
                action(*of)

    def _carry_out(self, effects: WorkerEffects) -> None:
        if effects.spool or self._unspooled:
            self._spool(effects.spool)
        for key in effects.forget:
            self.home.spool.pop(key, None)
            if self._unspooled:
                self._unspooled = [item for item in self._unspooled if (item.task_no, item.number) != key]
        for stop in effects.stops:
            self._stop(stop)
        for start in effects.starts:
            if not self.alive:
                return
            self._start(start)
        if not self.alive:
            return
        for key in effects.recalls:
            self._recall(next((head for head, calls in self._ahead.items() if key in _names(calls)), None))
        for prefetch in effects.prefetches:
            self._prefetch(prefetch)
        for envelope in effects.says:
            kind = type(envelope.message)
            if kind is wire.Heartbeat:
                if envelope.session != self._said_in:
                    self._said_in, self._sent = envelope.session, {}
                self._sent[(envelope.session, envelope.number)] = self.world.now
            elif isinstance(envelope.message, wire.Hello):
                self._said_in = ""
                self._hellos[envelope.message.nonce] = self.world.now
            self.link.publish(self.name, envelope, self.home.key_name, self._topic)
        followers = self.core.attempts.followers
        for key in [key for key in self.kept if key not in self.jobs and not followers.is_followed(key)]:
            del self.kept[key]
        if effects.leave is not None:
            self._leave(effects.leave)

    def _spool(self, outcomes: list[Outcome]) -> None:
        """Write outcomes to disk before they are sent; if the disk is full, they are sent nevertheless and written
        later."""
        self._unspooled += outcomes
        for outcome in outcomes:
            self.checker.on_spooled(self.name, outcome)
        if not self._unspooled:
            return
        if self.home.disk_full:
            if outcomes:
                self._put(TroubleChanged("outcomes cannot be kept on disk"))
                self._after(RETRY_S, self._look_again)
            return
        self.home.heard = (self.core.epoch, self.core.batch)
        self.home.spool.update({(outcome.task_no, outcome.number): outcome for outcome in self._unspooled})
        self._unspooled = []

    def _leave(self, leave: Leave) -> None:
        # The last messages are sent before the connection ends.
        self.world.tell(self.name, f"leaves: {leave.reason}")
        if leave.anew:
            self.home.spool = {}
        self.die("starts again" if leave.anew else "left")

    # --- jobs ------------------------------------------------------------------------------------

    def _prefetch(self, prefetch: PrefetchCall) -> None:
        """Hand a call to the host of a running one; the host may refuse it, as one that is to be replaced does."""
        key = (prefetch.order.task_no, prefetch.order.number)
        if prefetch.behind not in self.jobs or self.world.fault("call_refused", self.faults.call_refused):
            self._put(CallsRecalled((key,)))
        else:
            self._ahead.setdefault(prefetch.behind, []).append((prefetch, self.world.now + prefetch.begin_s))

    def _recall(self, head: Key | None) -> None:
        """Take the calls back that the host of `head` has not begun."""
        calls = self._ahead.pop(head, []) if head is not None else []
        if calls:
            self._put(CallsRecalled(_names(calls)))

    def _begin_next(self, head: Key, cause: Cause) -> None:
        """The host of `head`, which ended so, begins the next call, unless it ended itself or it is too late."""
        calls = self._ahead.pop(head, [])
        if not calls:
            return
        prefetch, begin_by = calls[0]
        if cause not in HOST_LIVES or self.world.now > begin_by:
            self._hand(CallsRecalled(_names(calls)))
            return
        key = (prefetch.order.task_no, prefetch.order.number)
        if calls[1:]:
            self._ahead[key] = calls[1:]
        assert prefetch.order.body is not None
        job = self.jobs[key] = Job(prefetch.order, prefetch.order.body)
        self.checker.on_started(self.name, prefetch.order, self.home.resources, prefetch.gpus or ())
        self._run(key, job)
        self._hand(CallBegan(*key, after=head))

    def _start(self, start: StartAttempt) -> None:
        order = start.order
        assert order.body is not None
        key = (order.task_no, order.number)
        job = self.jobs[key] = Job(order, order.body, own=start.own)
        self.checker.on_started(self.name, order, self.home.resources, start.gpus or ())
        if order.after and self._is_cut():
            return
        for path, earlier in start.own.items():
            if earlier not in self.kept:
                raise Violation("promised-there", f"{self.name} keeps {path} of {earlier} no more for {key}")
            job.read = {**job.read, path: self.kept[earlier]}
        if len(job.own) < len({item.path for item in job.body.requirements}):
            self._after(self.world.random.uniform(0.0001, 0.002), self._fetch, key, job)
        else:
            self._run(key, job)

    def _fetch(self, key: Key, job: Job) -> None:
        if job.over:
            return
        wanted = [item.path for item in job.body.requirements if item.path not in job.own]
        try:
            self._require_access()
            missing = [path for path in wanted if not self.datastore.has(self.name, path)]
        except DatastoreAway as error:
            self._put(TroubleChanged(str(error)))
            self._after(RETRY_S, self._look_again)
            self._over(key, job, AttemptReturned(*key, str(error)))
            return
        self.checker.looked["promised-there"] += 1
        if missing:
            self.checker.on_missing(self.name, job.order, missing)
            self._end(key, job, Cause.REQUIREMENT, f"{missing[0]} is not in the datastore")
            return
        job.read = {**job.read, **{path: self.datastore.final[path] for path in wanted}}
        job.fetch_bytes, moved_bytes = self.datastore.fetch(wanted, self.home.kept)
        if moved_bytes:
            self._after(moved_bytes / BYTES_PER_S, self._run, key, job)
        else:
            self._run(key, job)

    def _run(self, key: Key, job: Job) -> None:
        if job.over:
            return
        job.began_at = self.world.now
        call = job.body.call
        seconds, fails, kills, needs_mb = _plan(job.body.commands if call is None else (call.name,))
        run_s = seconds * self.world.random.uniform(0.5, 1.5)
        limit, memory_mb = job.body.timeout_s, job.order.asks.get("memory_mb", 0.0)
        if kills:
            self._after(seconds, self._kill, job)
        elif 0 < memory_mb < needs_mb:
            self._after(run_s, self._fail, key, job, Cause.MEMORY, f"more than {memory_mb:g} MB")
        elif limit is not None and run_s > limit:
            self._after(limit, self._fail, key, job, Cause.TIMEOUT, f"over {limit:g} s")
        elif self.world.chance(fails):
            self._after(run_s, self._fail, key, job, Cause.EXIT, "exit code 1")
        elif call is not None and self.world.fault("call_host_death", self.faults.call_host_death):
            self._after(run_s / 2, self._fail, key, job, Cause.SIGNAL, "its interpreter was ended by SIGSEGV")
        else:
            self._after(run_s, self._succeed, key, job)

    def _fail(self, key: Key, job: Job, cause: Cause, error: str) -> None:
        """Handle failed commands: only whole outputs are staged."""
        if not job.over and job.body.stdout:
            job.failed = (cause, error)
            self._store(key, job)
        else:
            self._end(key, job, cause, error)

    def _is_cut(self) -> bool:
        """Draw whether the process dies here, in the middle of a chain."""
        if self.alive and self.faults.worker_cut and self.world.fault("worker_cut", self.faults.worker_cut):
            self.die("killed between two steps of a chain")
        return not self.alive

    def _succeed(self, key: Key, job: Job) -> None:
        """Handle succeeded commands: notify the followers, then stage the results."""
        if job.over:
            return
        job.run_s = self._ran_s(job)
        followed = self.core.attempts.followers.is_followed(key)
        if (followed or job.order.after) and self._is_cut():
            return
        if not followed or not job.body.results:
            self._store(key, job)
            return
        self.checker.on_complete(self.name, key)
        self.kept[key] = content = f"{self.name}:{key[0]}-{key[1]}"
        self._hand(ResultsComplete(*key, {result.path: content for result in job.body.results}))
        if not self._is_cut():
            self._after(self.world.random.uniform(0.0005, 0.05), self._store, key, job)

    def _kill(self, job: Job) -> None:
        if not job.over:
            self.world.fired["poison"] += 1
            self.die("killed by its task")

    def _look_again(self) -> None:
        try:
            if self.core.datastore.credential:
                self._require_access()
            self.datastore.require(self.name)
        except DatastoreAway:
            self._after(RETRY_S, self._look_again)
            return
        if self.home.disk_full:
            self._after(RETRY_S, self._look_again)
            return
        self._spool([])
        self._put(TroubleChanged(""))

    def _require_access(self) -> None:
        """Require a valid certificate for the worker's own key, over SSH: sshd refuses any other."""
        access = self.core.datastore
        if not access.host_key:
            return
        key, _, until = access.credential.partition(" ")
        self.checker.looked["access"] += 1
        if key != self.home.ssh_key:
            self.checker.on_no_access(self.name, access.credential)
        if float(until) < self.world.now:
            raise DatastoreAway("sshd refuses a certificate that has expired")

    def _store(self, key: Key, job: Job) -> None:
        """Stage the results; repeat while the datastore is unreachable."""
        if job.over:
            return
        if not job.run_s:
            job.run_s = self._ran_s(job)
        cause, error = job.failed or (Cause.SUCCESS, "")
        paths = [] if job.failed else [result.path for result in job.body.results]
        if job.body.stdout:
            paths.append(output_path(job.body.stdout, job.body.id, key[1]))
        if not paths:
            self._end(key, job, cause, error)
            return
        try:
            content = f"{self.name}:{key[0]}-{key[1]}"
            stage = f"{self.name}/{key[0]}-{key[1]}"
            self._require_access()
            manifest = self.datastore.store(self.name, stage, paths, content)
        except DatastoreAway as away:
            self._put(TroubleChanged(str(away)))
            self._after(RETRY_S, self._look_again)
            self._after(RETRY_S, self._store, key, job)
            return
        self._end(key, job, cause, error, manifest)

    def _stop(self, stop: StopAttempt) -> None:
        key = (stop.task_no, stop.number)
        job = self.jobs.get(key)
        if job is not None and not job.over:
            job.stopped = stop.reason or "stopped"
            after_s = self.world.random.uniform(0.001, stop.grace_s)
            self._after(after_s, self._end, key, job, Cause.STOPPED, stop.reason)

    def _end(self, key: Key, job: Job, cause: Cause, error: str, manifest: tuple[ManifestEntry, ...] = (),
             number: int | None = None) -> None:  # fmt: skip
        if not job.over:
            self.places.outcomes += 1
            run_s = (job.run_s or self._ran_s(job)) + NO_TIME_S * self.places.outcomes
            value = value_of(key) if job.body.call is not None and cause is Cause.SUCCESS else b""
            outcome = Outcome(
                *key,
                cause,
                signal=number,
                error=error,
                run_s=run_s,
                manifest=manifest,
                fetch_bytes=job.fetch_bytes,
                value=value,
            )
            if manifest and self.world.fault("long_report", self.faults.long_report):
                outcome = msgspec.structs.replace(outcome, stdout="x" * LARGE_BYTES)
            self.checker.on_came_to(self.name, job.order, outcome, job.read)
            if job.order.after and self._is_cut():
                return
            self._over(key, job, AttemptEnded(outcome))

    def _ran_s(self, job: Job) -> float:
        return 0.0 if job.began_at is None else self.world.now - job.began_at

    def _over(self, key: Key, job: Job, event: Event) -> None:
        job.over = True
        self.jobs.pop(key, None)
        self.checker.on_over(self.name, key)
        if key in self._ahead:
            self._begin_next(key, event.outcome.cause if isinstance(event, AttemptEnded) else Cause.STOPPED)
        self._hand(event)


def _names(calls: list[tuple[PrefetchCall, float]]) -> tuple[Key, ...]:
    return tuple([(prefetch.order.task_no, prefetch.order.number) for prefetch, _ in calls])


def command(seconds: float, fails: float) -> str:
    """Command of a simulated task: its run time and its probability of failure."""
    return f"simulate {seconds:.4f} {fails:.3f}"


def poison(seconds: float) -> str:
    """Command of a task that kills its worker process after this many seconds."""
    return f"{command(seconds, 0.0)} kills"


def greedy(seconds: float, needs_mb: float) -> str:
    """Command of a task that needs this much memory, if there is a limit."""
    return f"{command(seconds, 0.0)} needs {needs_mb:g}"


def value_of(key: Key) -> bytes:
    """Return the value of a simulated call, which names the attempt that made it."""
    return f"value of {key[0]}-{key[1]}".encode()


def _plan(commands: tuple[str, ...]) -> tuple[float, float, bool, float]:
    """Return the run time in seconds, the probability of failure, whether it kills its worker, and the memory it
    needs."""
    _, seconds, fails, *more = commands[0].split()
    return float(seconds), float(fails), more == ["kills"], float(more[1]) if more[:1] == ["needs"] else 0.0
