"""The worker's loop: one thread, one epoll. Passes events to the core and carries out the core's orders in the order
given."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from datastore.port import AccessRefused, DatastoreAway
from ecloud.client.broker import BrokerAddress, BrokerConnection
from ecloud.config import this_host
from ecloud.config.secrets import AccessFile
from ecloud.model import wire
from ecloud.model.tasks import Outcome
from ecloud.model.topics import boss_topic, logs_topic, peer_topic, presence_topic
from ecloud.model.wire import Envelope, Unreadable
from worker.core.events import (
    AccessEnded,
    ConnectionFound,
    ConnectionLost,
    Event,
    GpusMeasured,
    Leave,
    MessageArrived,
    MovingMeasured,
    StateMeasured,
    StreamOutput,
    TermReceived,
    TroubleChanged,
    WorkerConfig,
    WorkerEffects,
)
from worker.core.worker_core import WorkerCore
from worker.shell.call_hosts import CallHosts
from worker.shell.call_output import LOOK_EVERY_S as CALLS_EVERY_S
from worker.shell.environment import encoded, inherited
from worker.shell.files import MIN_FREE_MB, Files, WorkingDirectories, free_disk_mb
from worker.shell.home import RunningRecord, Spool, WorkerHome
from worker.shell.jobs import Jobs
from worker.shell.memory_groups import parent_of_tasks
from worker.shell.process import Process, Processes
from worker.shell.pythons import Pythons
from worker.shell.tail import Decoder

log = logging.getLogger("worker")
READY_AT_ONCE = 256
ENOUGH_AGAIN = 1.25
"""A worker that stopped because its disk was full continues once this multiple of the required space is free."""
LOOK_EVERY_S = 1.0
"""Interval between checks of the disk, of trouble and of long-running processes."""
GPUS_EVERY_S = 5.0
"""Interval between checks of the GPUs: about one heartbeat."""
SWEEP_EVERY_S = 3600.0
"""Interval between removals of old interrupted downloads."""
GOODBYE_S = 1.0
"""Time limit for sending the last messages."""


class WorkerRuntime:
    """One worker process."""

    def __init__(
        self,
        access: AccessFile,
        config: WorkerConfig,
        home: WorkerHome,
        spool: Spool,
        keep_dirs: bool = False,
        tied: bool = False,
        pythons: Pythons | None = None,
    ) -> None:
        self._access = access
        self._key = access.key_bytes
        self._home = home
        self._spool = spool
        self._tied = tied
        self._core = WorkerCore(config, time.monotonic())
        self._record = RunningRecord(home)
        left_over = self._record.end_left_over()  # before this process starts its first launcher
        home.clear_control()
        if left_over:
            log.warning("ended %d processes that an earlier process of this home left behind", left_over)
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.EPOLLIN)
        self._inbox: deque[Event | tuple[str, bytes] | Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        own = {"ECLOUD_WORKER": config.peer, "ECLOUD_WORKER_DIR": str(home.shared)}
        environment = encoded({**inherited(os.environ), **own})
        self._processes = Processes(self._poll, environment, self._on_output, self._on_long, parent_of_tasks())
        self._files = Files(home.ssh, home.cache, self._put, self._put)
        self._files.meter.stopped = lambda: self._put(
            lambda: self._inbox.append(MovingMeasured(self._files.meter.read()))
        )
        directories = WorkingDirectories(home.path, self._files.pool)
        self._hosts = CallHosts(self._poll, self._processes, home.control, pythons or Pythons(os.environ))
        self._jobs = Jobs(
            config.peer, home, self._files, directories, self._processes, self._put, self._after, keep_dirs, self._hosts
        )
        self._hosts.outputs.publish = self._publish_lines
        self._follows_calls = False
        self._jobs.is_leaving = lambda: self._core.then_exit or self._core.leaving
        self._jobs.is_followed = self._core.attempts.followers.is_followed
        self._unspooled: list[Outcome] = []
        self.begins_anew = False
        """After `run`: whether another process must take over."""
        self._checking: Future[None] | None = None
        self._gpus = config.gpus
        self._gpus_at = time.monotonic() + GPUS_EVERY_S
        self._gpu_look: threading.Thread | None = None
        self._status = self._session = ""
        self._peer_topic = peer_topic(access.cluster_id, config.peer)
        self._boss_topic = boss_topic(access.cluster_id, config.peer)
        address = BrokerAddress.of(access)
        self._broker = BrokerConnection(
            address,
            config.peer,
            [self._peer_topic],
            lambda topic, payload: self._put((topic, payload)),
            lambda: self._put(ConnectionFound()),
            lambda reason: self._put(ConnectionLost(reason)),
            will=(presence_topic(access.cluster_id, config.peer), b"gone"),
        )

    # --- the loop -----------------------------------------------------------------------------------

    def run(self) -> int:
        """Work until ordered to leave; return the exit code. Ends all tasks, whatever ends this process."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, lambda *_: self._on_signal())
        try:
            return self._work()
        except BaseException:
            log.exception("this worker cannot continue and ends its tasks")
            self._processes.end_all()
            raise

    def _work(self) -> int:
        self._look()
        self._after(SWEEP_EVERY_S, self._sweep)
        self._broker.start()
        self._say_status(f"waiting for the broker at {self._access.host}:{self._access.port}")
        while True:
            events = self._wait()
            now = time.monotonic()
            self._processes.pass_deadlines(self._jobs.stop_grace_s, now)
            events += self._jobs.events
            self._jobs.events = []
            effects = self._core.handle(events, now)
            leave = self._carry_out(effects)
            if leave is not None:
                return self._end(leave)

    def _wait(self) -> list[Event]:
        """Wait for events and return them."""
        timeout = self._timeout()
        events: list[Event] = []
        for descriptor, _ in self._poll.poll(timeout, READY_AT_ONCE):
            if descriptor == self._wake:
                os.eventfd_read(self._wake)
            elif self._processes.owns(descriptor):
                self._on_descriptor(descriptor)
            elif self._hosts.owns(descriptor):
                self._hosts.on_ready(descriptor)
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, tuple):
                self._decode(item[0], item[1], events)
            elif callable(item):
                item()
            else:
                self._note(item)
                events.append(item)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        return events

    def _timeout(self) -> float:
        if self._inbox or self._jobs.events:
            return 0.0
        deadlines = [
            self._core.next_deadline(),
            self._processes.next_deadline(),
            self._timers[0][0] if self._timers else None,
        ]
        nearest = min((at for at in deadlines if at is not None), default=None)
        return -1 if nearest is None else max(0.0, nearest - time.monotonic())

    def _on_descriptor(self, descriptor: int) -> None:
        for process, finished in self._processes.on_ready(descriptor, time.monotonic()):
            if process.pid:
                self._record.remove(process.pid)
            if process.stream_until:
                for stream, tail in (("stdout", finished.stdout), ("stderr", finished.stderr)):
                    end = tail.dropped + len(tail.data)
                    self._publish_lines(process.key, process.decoders[stream], stream, end, b"", ended=True)
            self._jobs.finished(finished)

    def _on_long(self, process: Process) -> None:
        self._record.add(process.pid)

    def _put(self, item: Event | tuple[str, bytes] | Callable[[], None]) -> None:
        """Hand an item to the loop. Thread-safe."""
        self._inbox.append(item)
        os.eventfd_write(self._wake, 1)

    def _after(self, wait_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + wait_s, next(self._sequence), action))

    def _on_signal(self) -> None:
        self._put(TermReceived())
        if self._tied:
            self._put(TermReceived())

    # --- what comes in ------------------------------------------------------------------------------

    def _decode(self, topic: str, payload: bytes, events: list[Event]) -> None:
        try:
            envelope, _ = wire.decode(payload, topic, lambda name: self._key if name == self._access.key_name else None)
        except Unreadable as error:
            log.warning("a message on %s is ignored: %s: %s", topic, error.why, error)
            return
        message = envelope.message
        if isinstance(message, wire.Refused) and message.code != "session":
            log.warning("the boss refuses: %s", message.reason)
        events.append(MessageArrived(envelope))

    def _note(self, event: Event) -> None:
        if isinstance(event, ConnectionLost):
            self._say_status(f"waiting for the broker: {event.reason}")
        elif isinstance(event, ConnectionFound):
            self._say_status("waiting for the boss: the broker answers, the boss does not yet")
        elif isinstance(event, TermReceived):
            self._say_status("ordered to leave: running tasks continue to their end")
        elif isinstance(event, TroubleChanged) and event.text not in ("", self._core.trouble):
            log.warning("starts no tasks now: %s", event.text)

    def _say_status(self, text: str) -> None:
        if text != self._status:
            self._status = text
            log.info("%s", text)

    # --- what goes out ------------------------------------------------------------------------------

    def _carry_out(self, effects: WorkerEffects) -> Leave | None:
        with self._disk_faults_reported():
            self._files.use(self._core.datastore, self._core.lane.number, self._core.lane.is_open)
        for stop in effects.stops:
            self._jobs.stop(stop)
        for start in effects.starts:  # first: a free slot must not wait for work that can be done while a shell runs
            self._jobs.start(start)
        for key in effects.recalls:
            self._hosts.recall(key)
        for prefetch in effects.prefetches:
            self._jobs.prefetch(prefetch)
        if effects.spool or self._unspooled:
            self._write_spool(effects.spool)
        if effects.forget:
            with self._disk_faults_reported():
                self._spool.forget(effects.forget)
        for stream in effects.streams:
            self._stream(stream)
        for envelope in effects.says:
            self._publish(self._boss_topic, envelope)
        self._jobs.tidy()
        core = self._core
        if core.session and core.session != self._session:
            self._session = core.session
            self._say_status(f"on duty as {core.config.peer} (boss epoch {core.epoch})")
            self._jobs.shell, self._jobs.container = core.shell, core.container
            self._jobs.stop_grace_s = core.settings.get("stop_grace_s", self._jobs.stop_grace_s)
            self._files.limit_cache(core.settings.get("cache_mb", 0.0))
            self._files.stall_s = core.settings.get("stall_s", self._files.stall_s)
        return effects.leave

    @contextlib.contextmanager
    def _disk_faults_reported(self) -> Iterator[None]:
        """Report a home or disk that cannot be used: the worker then starts nothing, and running attempts continue."""
        try:
            yield
        except OSError as error:
            self._put(TroubleChanged(f"its home {self._home.path} cannot be used: {error.strerror or error}"))

    def _write_spool(self, outcomes: list[Outcome]) -> None:
        """Write outcomes to disk before they are sent. If the disk is full, they are sent anyway, and written once
        there is room."""
        self._unspooled += outcomes
        try:
            self._spool.add(self._unspooled, (self._core.epoch, self._core.batch))
            self._unspooled = []
        except OSError as error:
            self._put(TroubleChanged(f"outcomes cannot be kept on disk: {error.strerror}"))

    def _publish(self, topic: str, envelope: Envelope) -> None:
        self._broker.publish(topic, wire.encode(envelope, topic, self._access.key_name, self._key))

    # --- live output --------------------------------------------------------------------------------

    def _stream(self, order: StreamOutput) -> None:
        process = self._processes.running.get((order.task_no, order.number))
        if process is not None:
            self._processes.stream(process, time.monotonic() + order.seconds if order.seconds else 0.0)
        elif self._hosts.follow((order.task_no, order.number), time.monotonic() + order.seconds):
            self._look_at_calls()

    def _look_at_calls(self) -> None:
        """Publish new output of calls, as long as anybody follows one."""
        self._hosts.outputs.look(time.monotonic())
        if not self._hosts.outputs.is_idle and not self._follows_calls:
            self._follows_calls = True
            self._after(CALLS_EVERY_S, self._look_at_calls_again)

    def _look_at_calls_again(self) -> None:
        self._follows_calls = False
        self._look_at_calls()

    def _on_output(self, process: Process, stream: str, start: int, piece: bytes) -> None:
        self._publish_lines(process.key, process.decoders[stream], stream, start, piece)

    def _publish_lines(
        self, key: tuple[int, int], decoder: Decoder, stream: str, start: int, piece: bytes, ended: bool = False
    ) -> None:
        if piece or ended:
            task_no, number = key
            before, text = decoder.add(piece, ended)
            if not text and not ended:
                return  # an incomplete character: sent with the rest
            message = wire.LogLines(task_no, number, stream, start - before, text, ended)
            envelope = Envelope(wire.PROTOCOL_VERSION, self._core.config.peer, self._core.session, 0, message)
            self._publish(logs_topic(self._access.cluster_id, task_no), envelope)

    # --- looking after itself -----------------------------------------------------------------------

    def _sweep(self) -> None:
        self._after(SWEEP_EVERY_S, self._sweep)
        self._files.sweep()
        self._files.pool.submit(self._jobs.calls.sweep, time.time())

    def _look(self) -> None:
        self._after(LOOK_EVERY_S, self._look)
        self._processes.trim(time.monotonic())
        self._hosts.trim(time.monotonic())
        with self._disk_faults_reported():
            self._look_at_disk()

    def _look_at_disk(self) -> None:
        free_mb = free_disk_mb(self._home.path)
        self._inbox.append(StateMeasured(round(free_mb, 1), this_host.load(), self._files.inputs))
        self._inbox.append(MovingMeasured(self._files.meter.read()))
        self._look_at_gpus()
        trouble = self._core.trouble
        # The text names no amount of free space: a text that changes is logged and sent again.
        text = f"disk full: less than {MIN_FREE_MB:.0f} MB are left in {self._home.path}"
        if free_mb < MIN_FREE_MB * (ENOUGH_AGAIN if trouble == text else 1.0):
            self._inbox.append(TroubleChanged(text))
        elif trouble and self._checking is None:
            self._checking = self._can_work_again()
            self._checking.add_done_callback(lambda done: self._put(lambda: self._checked(done)))

    def _look_at_gpus(self) -> None:
        """Check whether the offered GPUs still answer. Runs in a thread: the driver of a lost GPU is slow."""
        now = time.monotonic()
        if not self._gpus or now < self._gpus_at or (self._gpu_look is not None and self._gpu_look.is_alive()):
            return
        self._gpus_at = now + GPUS_EVERY_S

        def look() -> None:
            if (answer := this_host.gpus_that_answer(self._gpus)) is not None:
                self._put(GpusMeasured(answer))

        self._gpu_look = threading.Thread(target=look, name="gpus", daemon=True)
        self._gpu_look.start()

    def _can_work_again(self) -> Future[None]:
        """Check disk and datastore. Fails with the fault that remains."""
        probe = self._home.path / "probe"
        try:
            probe.write_bytes(b"x" * 65536)
            probe.unlink()
        except OSError as error:
            failed: Future[None] = Future()
            failed.set_exception(error)
            return failed
        return self._files.probe()

    def _checked(self, done: Future[None]) -> None:
        self._checking = None
        error = done.exception()
        storing = any(job.outcome is not None for job in self._jobs.under_way.values())
        if error is None and not storing:
            self._inbox.append(TroubleChanged(""))
        elif error is not None:
            if isinstance(error, AccessRefused):
                self._inbox.append(AccessEnded())
            text = str(error) if isinstance(error, DatastoreAway) else f"the disk cannot be written: {error}"
            text = f"results cannot be stored: {text}" if storing else text
            self._inbox.append(TroubleChanged(text))

    def _end(self, leave: Leave) -> int:
        """End all running attempts, send the last messages, and stop."""
        self._say_status(f"leaving: {leave.reason}")
        deadline = time.monotonic() + GOODBYE_S + self._jobs.stop_grace_s
        for process in tuple(self._processes.running.values()):
            self._processes.stop(process, "stopped", 0.0, time.monotonic())
        while self._processes.running and time.monotonic() < deadline:
            self._processes.pass_deadlines(0.0, time.monotonic())
            for descriptor, _ in self._poll.poll(0.1, READY_AT_ONCE):
                if self._processes.owns(descriptor):
                    self._processes.on_ready(descriptor, time.monotonic())
        self._processes.end_all()
        self._hosts.close()
        self._record.clear()
        self._broker.stop(GOODBYE_S)
        self._files.pool.shutdown(wait=False, cancel_futures=True)
        if leave.anew:
            log.info("dropping %d outcomes that the boss does not know", self._spool.drop())
        self._spool.close()
        self.begins_anew = leave.anew
        return leave.code
