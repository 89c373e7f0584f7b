"""Runs each attempt from order to outcome on this machine: fetch, run, stage. Owns the attempts under way and never
talks to the boss.

Reports facts as events of `worker.core.events`. Every blocking step is a future of the pool, whose result comes back
through `later`.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import msgspec

from datastore.backoff import Backoff
from datastore.port import AccessRefused, DatastoreAway
from ecloud.config.this_host import machine_is_stopping
from ecloud.model.tasks import Cause, Container, Outcome, Result
from ecloud.model.wire import UNCHAINED
from worker.core.containers import CONTROL, SHARED, Place
from worker.core.events import (
    AccessEnded,
    AttemptEnded,
    AttemptReturned,
    CallBegan,
    CallsRecalled,
    CommandsEnded,
    Event,
    PrefetchCall,
    ResultsComplete,
    StartAttempt,
    StopAttempt,
    TroubleChanged,
)
from worker.shell.call_hosts import VALUE_FILE, CallEnd, CallHosts
from worker.shell.calls import CallImpossible, CallRunner, without_kept
from worker.shell.commands import failed_step, forget_control, outcome_of, shell_argv
from worker.shell.container_runtimes import ContainerMissing, argv_in_container, clear_away
from worker.shell.environment import encoded, of_gpus, of_resources
from worker.shell.files import Fetched, Files, NoRoom, RequirementMissing, WorkingDirectories, kept_name
from worker.shell.home import WorkerHome
from worker.shell.job import Job, Key
from worker.shell.long_bodies import BodyUnusable, with_long_body
from worker.shell.outputs import forget_outputs, output_files, outputs_of
from worker.shell.own_results import OwnResults, changed, copy, read, sources
from worker.shell.process import NO_OUTPUTS, Finished, Processes
from worker.shell.results import ResultUnusable, are_small

log = logging.getLogger("worker")
STORE_BACKOFF = Backoff(0.5, 15.0)
"""Pause between attempts to store results in an unreachable datastore."""
SHUTDOWN_HEARD_S = 1.0
"""A machine that shuts down sends SIGTERM to all processes together: how long this process waits for its own
SIGTERM."""
SHUT_DOWN = "its worker was ordered to leave, or its machine shuts down"


class Jobs:
    """All attempts under way."""

    def __init__(
        self,
        peer: str,
        home: WorkerHome,
        files: Files,
        directories: WorkingDirectories,
        processes: Processes,
        later: Callable[[Callable[[], None]], None],
        at: Callable[[float, Callable[[], None]], None],
        keep_dirs: bool,
        hosts: CallHosts,
    ) -> None:
        self._peer = peer
        self._home = home
        self._files = files
        self._directories = directories
        self._processes = processes
        self._later = later
        self._at = at
        self._keep_dirs = keep_dirs
        self.is_leaving: Callable[[], bool] = lambda: False
        """Whether this worker was ordered to leave."""
        self.shell = "/bin/sh"
        self.container: Container | None = None
        """For the commands of tasks that name none."""
        self.stop_grace_s = 10.0
        self.under_way: dict[Key, Job] = {}
        self.events: list[Event] = []
        self._control = str(home.control)
        self._used: list[tuple[Key, Path, str]] = []
        self.is_followed: Callable[[Key], bool] = lambda key: False
        """Whether other attempts wait for this attempt, or need its results."""
        self.calls = CallRunner(hosts, home, peer, directories)
        hosts.owner = self
        self._made: dict[Key, OwnResults] = {}
        self._copied: Counter[Key] = Counter()
        """Attempts whose results are being copied for other attempts, and the number of those copies."""

    # --- orders -------------------------------------------------------------------------------------

    def start(self, start: StartAttempt) -> None:
        """Begin an attempt: fetch its requirements, or run immediately if it has none."""
        order = start.order
        try:
            directory = self._directories.take()
        except OSError as error:
            self._impossible(
                (order.task_no, order.number), f"the working directory cannot be created: {error.strerror}"
            )
            return
        job = Job(start, directory, f"{self._control}/{order.task_no}-{order.number}")
        job.body = without_kept(job.body, self.calls.objects)
        self.under_way[job.key] = job
        if job.body.requirements:
            self._fetch(job)
        else:
            self._run(job)

    def prefetch(self, prefetch: PrefetchCall) -> None:
        """Let a call wait at the host of a running one."""
        key = (prefetch.order.task_no, prefetch.order.number)
        try:
            directory = self._directories.take()
        except OSError:
            self.events.append(CallsRecalled((key,)))
            return
        job = Job(StartAttempt(prefetch.order, prefetch.gpus), directory, "")
        job.body = without_kept(job.body, self.calls.objects)
        self.under_way[key] = job
        env = {**of_resources(job.order.asks), **self._environment(job)}
        if not self.calls.prefetch(job, env, prefetch.behind, prefetch.begin_s):
            self.calls_recalled([key])

    def stop(self, stop: StopAttempt) -> None:
        """End an attempt, in whatever step it is."""
        job = self.under_way.get((stop.task_no, stop.number))
        if job is None:
            return
        job.stop_reason = stop.reason or "the boss ordered it"
        process = self._processes.running.get(job.key)
        if job.body.call is not None and self.calls.hosts.stop(job.key, stop.grace_s):
            pass
        elif process is not None:
            self._processes.stop(process, "stopped", stop.grace_s, time.monotonic())
        elif job.fetching is not None:
            job.fetching.cancel()  # no effect once the transfer has begun: it then runs to its end

    # --- steps --------------------------------------------------------------------------------------

    def _fetch(self, job: Job) -> None:
        job.began_at = time.monotonic()
        if not job.own:
            future = self._files.fetch(job.body, job.directory, job.order.task_no)
        else:
            places = sources(job.own, self._made)
            if places is None:
                self._forget(job)
                self.events.append(AttemptReturned(*job.key, UNCHAINED))
                return
            self._copied.update(set(job.own.values()))
            pairs = [
                (places[one.path], job.directory / one.local) for one in job.body.requirements if one.path in places
            ]
            others = tuple([one for one in job.body.requirements if one.path not in places])
            body = msgspec.structs.replace(job.body, requirements=others)

            def bring() -> int:
                return sum([copy(source, to) for source, to in pairs])

            future = self._files.fetch(body, job.directory, job.order.task_no, bring)
        job.fetching = future
        future.add_done_callback(lambda done: self._later(lambda: self._fetched(job, done)))

    def _fetched(self, job: Job, done: Future[Fetched]) -> None:
        job.fetch_s = time.monotonic() - job.began_at
        self._copied -= Counter(set(job.own.values()))
        error = CancelledError() if done.cancelled() else done.exception()
        if job.stop_reason is not None:
            self._end(job, self._bare(job, Cause.STOPPED, f"stopped: {job.stop_reason}"))
        elif error is None:
            job.fetched = done.result()
            self._run(job)
        elif isinstance(error, RequirementMissing):
            self._end(job, self._bare(job, Cause.REQUIREMENT, str(error)))
        else:
            self._note_refusal(error)
            self._give_back(job, _sentence(error))

    def _run(self, job: Job) -> None:
        try:
            job.body = with_long_body(job.body, job.directory)
            env, shared = self._environment(job), of_resources(job.order.asks)
            if job.body.call is not None:
                self.calls.run(job, {**shared, **env})
                return
            argv = self._argv(job, env, shared)
            now = time.monotonic()
            body = job.body
            files = output_files(body, job.control) if body.stdout or body.stderr else NO_OUTPUTS
            self._processes.start(
                job.key, argv, job.directory, env, body.timeout_s, now, _limit_bytes(job), files, shared
            )
        except OSError as error:
            self._give_back(job, f"no process can be started: {error.strerror}")
        except BodyUnusable as error:
            self._end(job, self._bare(job, Cause.REQUIREMENT, str(error)))
        except (ContainerMissing, CallImpossible) as error:
            self._end(job, self._bare(job, Cause.EXIT, str(error)))
        except ValueError as error:
            self._end(job, self._bare(job, Cause.EXIT, f"its commands cannot be run: {error}"))

    def _argv(self, job: Job, env: dict[bytes, bytes], shared: dict[bytes, bytes]) -> list[str]:
        """Build the command line. Raises `OSError`, `ValueError` and `ContainerMissing`."""
        container = job.body.container or self.container
        if container is None:
            return shell_argv(self.shell, job.body, job.control)
        inside = f"{CONTROL}/{Path(job.control).name}"
        env[b"ECLOUD_WORKER_DIR"] = SHARED.encode()
        env[b"ECLOUD_WORKER"] = os.fsencode(self._peer)
        if "USER" not in os.environ:  # charliecloud refuses to start without USER
            env.setdefault(b"USER", b"%d" % os.geteuid())
        place = Place(
            directory=str(job.directory),
            shared=str(self._home.shared),
            control=self._control,
            name=f"ecloud-{self._peer}-{job.order.task_no}-{job.order.number}",
            user=os.geteuid(),
            group=os.getegid(),
            variables=sorted(os.fsdecode(name) for name in {**shared, **env}),
            gpus=job.gpus,
            memory_bytes=_limit_bytes(job),
        )
        job.container_argv = argv_in_container(container, shell_argv(self.shell, job.body, job.control, inside), place)
        job.container_name = place.name
        return job.container_argv

    def _not_started(self, job: Job, number: int) -> None:
        """End or return an attempt whose shell this machine could not start. Some errors are the task's own fault."""
        if job.stop_reason is not None:
            self._end(job, self._bare(job, Cause.STOPPED, f"stopped: {job.stop_reason}"))
        elif number == errno.E2BIG:
            self._end(job, self._bare(job, Cause.EXIT, "its environment and commands are too long for this machine"))
        elif job.body.shell and number in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR):
            text = f"its shell cannot be started on this machine: {job.body.shell}: {os.strerror(number)}"
            self._end(job, self._bare(job, Cause.EXIT, text))
        else:
            self._give_back(job, f"no process can be started: {os.strerror(number)}")

    def _environment(self, job: Job) -> dict[bytes, bytes]:
        """Build the variables that precede those of `of_resources`."""
        order = job.order
        own = {
            **job.body.env,
            "ECLOUD_TASK": job.body.id,
            "ECLOUD_RUN": order.run,
            "ECLOUD_ATTEMPT": str(order.tries or order.number),
        }
        if job.gpus is not None:
            own.update(of_gpus(job.gpus))
        return encoded(own)

    # --- calls (`CallEvents`) -----------------------------------------------------------------------

    def call_began(self, key: Key, after: Key) -> None:
        """Pass it on to the core."""
        self.events.append(CallBegan(*key, after))

    def calls_recalled(self, keys: Sequence[Key]) -> None:
        """Forget these attempts: the core starts them later."""
        for key in keys:
            self._forget(self.under_way[key])
        self.events.append(CallsRecalled(tuple(keys)))

    def call_undone(self, key: Key, ran: bool) -> None:
        """Give the attempt back, unless it was to be stopped."""
        job = self.under_way[key]
        if job.stop_reason is not None:
            self._end(job, self._bare(job, Cause.STOPPED, f"stopped: {job.stop_reason}"))
        else:
            self._forget(job)
            self.events.append(AttemptReturned(*key, "its call host ended", ran))

    def call_ended(self, end: CallEnd) -> None:
        """Handle the end of a call: its value is in the outcome, or in a file that is staged like a result."""
        job = self.under_way[(end.outcome.task_no, end.outcome.number)]
        outcome = _with_fetched(end.outcome, job)
        if outcome.cause is Cause.STOPPED or job.stop_reason is not None:
            self._end(job, self._bare(job, Cause.STOPPED, f"stopped: {job.stop_reason}"))
            return
        if end.is_in_file and job.body.call is not None:
            job.outputs = (Result(str(job.directory / VALUE_FILE), job.body.call.value.replace("%a", str(job.key[1]))),)
        self._processes_ended(job, outcome)

    def finished(self, finished: Finished) -> None:
        """Handle the end of an attempt's processes: stage the results, or end the attempt."""
        if self.calls.hosts.is_host(finished.key):
            self.calls.hosts.on_finished(finished)
            return
        job = self.under_way[finished.key]
        if job.container_argv:
            self._files.pool.submit(clear_away, job.container_argv, job.container_name)
        if finished.failed_errno:
            forget_control(job.body, job.control)
            self._not_started(job, finished.failed_errno)
            return
        step = failed_step(job.body, job.control)
        outcome = outcome_of(finished, job.body, step, job.stop_reason or "")
        outcome = _with_fetched(outcome, job)
        forget_control(job.body, job.control)
        if outcome.cause is Cause.SUCCESS and finished.output_errno:
            text = f"its output is incomplete: {os.strerror(finished.output_errno)}"
            outcome = msgspec.structs.replace(outcome, cause=Cause.RESULT, error=text)
        self._processes_ended(job, outcome)

    def _processes_ended(self, job: Job, outcome: Outcome) -> None:
        if outcome.is_term:
            # If the machine shuts down, this process receives SIGTERM soon, too.
            wait_s = 0.0 if self.is_leaving() else SHUTDOWN_HEARD_S
            self._at(wait_s, lambda: self._after_term(job, outcome))
        else:
            self._commands_ended(job, outcome)

    def _after_term(self, job: Job, outcome: Outcome) -> None:
        if job.stop_reason is None and (self.is_leaving() or machine_is_stopping()):
            log.warning("attempt %d-%d is returned: %s", *job.key, SHUT_DOWN)
            self._forget(job)
            self.events.append(AttemptReturned(*job.key, SHUT_DOWN, ran=True))
        else:
            self._commands_ended(job, outcome)

    def _commands_ended(self, job: Job, outcome: Outcome) -> None:
        if job.body.call is None and (job.body.stdout or job.body.stderr):
            job.outputs = outputs_of(job.body, job.key[1], job.control)
        is_success = outcome.cause is Cause.SUCCESS
        if (is_success and job.body.results) or (job.outputs and job.stop_reason is None):
            job.outcome = outcome
            if is_success and not job.outputs and are_small(job.body, job.directory):
                self.events.append(CommandsEnded(*job.key))
            if is_success and self.is_followed(job.key):
                future = self._files.pool.submit(read, job.body, job.directory)
                future.add_done_callback(lambda done: self._later(lambda: self._complete(job, done)))
            else:
                self._stage(job)
        else:
            self._end(job, outcome)

    def _complete(self, job: Job, done: Future[OwnResults]) -> None:
        """Give the results, which have been read, to the attempts that follow. Staging reports any fault of the
        results."""
        if done.exception() is None and job.stop_reason is None:
            job.made = self._made[job.key] = done.result()
            self.events.append(ResultsComplete(*job.key, job.made.files, job.made.others))
        self._stage(job)

    def _stage(self, job: Job) -> None:
        assert job.outcome is not None
        job.began_at = time.monotonic()
        body = job.body
        if job.outcome.cause is not Cause.SUCCESS:
            body = msgspec.structs.replace(body, results=())  # it failed: keep only its outputs
        future = self._files.stage(self._stage_name(job), body, job.directory, job.key[0], job.outputs)
        future.add_done_callback(lambda done: self._later(lambda: self._staged(job, done)))

    def _staged(self, job: Job, done: Future[Any]) -> None:
        assert job.outcome is not None
        error = done.exception()
        store_s = round(time.monotonic() - job.began_at, 6)
        if job.stop_reason is not None:
            self._files.drop(self._stage_name(job))
            self._end(job, self._bare(job, Cause.STOPPED, f"stopped: {job.stop_reason}"))
        elif error is None and job.made is not None and (name := changed(job.made, done.result())):
            self._files.drop(self._stage_name(job))
            text = f"result {name} changed after the commands had ended"
            self._end(job, msgspec.structs.replace(job.outcome, cause=Cause.RESULT, error=text, store_s=store_s))
        elif error is None:
            self._clear_trouble(job)
            self._end(job, msgspec.structs.replace(job.outcome, manifest=done.result(), store_s=store_s))
        elif not isinstance(error, (DatastoreAway, ConnectionError, TimeoutError)):
            # Waiting does not help: the fault is the task's own, and must not delay other tasks.
            self._files.drop(self._stage_name(job))
            if job.outcome.cause is not Cause.SUCCESS:
                self._end(job, job.outcome)
                return
            text = str(error) if isinstance(error, ResultUnusable) else f"results cannot be stored: {_sentence(error)}"
            outcome = msgspec.structs.replace(job.outcome, cause=Cause.RESULT, error=text, store_s=store_s)
            self._end(job, outcome)
        else:
            # The work is done: keep its results, and store them when the datastore accepts them again.
            self._note_refusal(error)
            self.events.append(TroubleChanged(f"results cannot be stored: {_sentence(error)}"))
            self._at(STORE_BACKOFF.wait_s(job.store_failures), lambda: self._stage(job))
            job.store_failures += 1

    def _note_refusal(self, error: BaseException) -> None:
        if isinstance(error, AccessRefused):
            self.events.append(AccessEnded())

    def _clear_trouble(self, job: Job) -> None:
        if job.store_failures:
            self.events.append(TroubleChanged(""))

    def _stage_name(self, job: Job) -> str:
        return f"{self._peer}/{job.order.task_no}-{job.order.number}"

    # --- ends ---------------------------------------------------------------------------------------

    def _bare(self, job: Job, cause: Cause, error: str) -> Outcome:
        bare = Outcome(job.order.task_no, job.order.number, cause, error=error)
        return _with_fetched(bare, job)

    def _end(self, job: Job, outcome: Outcome) -> None:
        self._forget(job)
        self.events.append(AttemptEnded(outcome))

    def _give_back(self, job: Job, reason: str) -> None:
        self._forget(job)
        self._impossible(job.key, reason)

    def _impossible(self, key: Key, reason: str) -> None:
        log.warning("attempt %d-%d is returned: %s", *key, reason)
        self.events.append(TroubleChanged(reason))
        self.events.append(AttemptReturned(*key, reason))

    def _forget(self, job: Job) -> None:
        del self.under_way[job.key]
        if job.body.stdout or job.body.stderr:
            forget_outputs(job.control)
        is_kept = job.order.keep_dir or self._keep_dirs
        keep_as = kept_name(job.order.run, job.body.id, job.order.number) if is_kept else ""
        self._used.append((job.key, job.directory, keep_as))

    def tidy(self) -> None:
        """Release the working directories of ended attempts, once no other attempt needs their results."""
        used, self._used = self._used, []
        for key, directory, keep_as in used:
            if key in self._made:
                if self._copied[key] or self.is_followed(key):
                    self._used.append((key, directory, keep_as))
                    continue
                del self._made[key]
            try:
                self._directories.give_back(directory, keep_as)
            except OSError as error:
                log.warning("working directory %s could not be removed: %s", directory, error)


def _with_fetched(outcome: Outcome, job: Job) -> Outcome:
    fetched = job.fetched
    return msgspec.structs.replace(
        outcome,
        fetch_s=round(job.fetch_s, 6),
        fetch_bytes=fetched.bytes,
        cached_bytes=max(0, fetched.bytes - fetched.moved_bytes),
        stamps=dict(fetched.stamps) if outcome.cause is Cause.SUCCESS else {},
    )


def _sentence(error: BaseException) -> str:
    if isinstance(error, (DatastoreAway, NoRoom)):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return f"{type(error).__name__}: {error}"


def _limit_bytes(job: Job) -> int:
    """Its memory limit; 0 for none."""
    return int(job.order.asks.get("memory_mb", 0.0) * 1e6)
