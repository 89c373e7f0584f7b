"""The agent's side of its launchers (`worker/launcher.py`): each runs one task at a time; one epoll watches all.

Owns the launchers' sockets and the deadlines of running tasks. `start` sends a launcher its task; the task's end comes
as `Finished`. When this process ends, for any reason, its launchers end all tasks immediately.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import marshal
import os
import select
import signal
import socket
import sys
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from worker.shell.tail import Decoder, Tail

log = logging.getLogger("worker")
READ_BYTES = 16_384
"""A larger buffer would make each end of a task map and unmap memory."""
IDLE_KEPT = 2
"""Launchers that are kept however long they are idle."""
IDLE_S = 60.0
END_WAIT_S = 5.0
"""How long to wait at the end for all launchers to end their tasks."""
MARK = b"ECLOUD_MARK"
"""In the environment of everything that an attempt starts: for people who inspect processes."""
LAUNCHER = str(Path(__file__).resolve().parents[1] / "launcher.py")
Key = tuple[int, int]


class Finished(msgspec.Struct, frozen=True):
    """A shell ended, and everything that it had started.

    `code`: exit code, negative for a signal. `run_s`: wall seconds. `failed_errno`: no process could be started.
    `exceeded_mb`: the memory that it held, above its limit. `is_lost`: its launcher was killed. `output_errno`: a file
    for its whole output could not be written.
    """

    key: Key
    code: int = 0
    run_s: float = 0.0
    max_rss_mb: float = 0.0
    stopped: str = ""
    stdout: Tail = msgspec.field(default_factory=Tail)
    stderr: Tail = msgspec.field(default_factory=Tail)
    failed_errno: int = 0
    exceeded_mb: float = 0.0
    output_errno: int = 0
    is_lost: bool = False


class Outputs(NamedTuple):
    """Files for everything that a task writes, "" for none. `is_merged`: stderr goes to stdout."""

    stdout: str = ""
    stderr: str = ""
    is_merged: bool = False


NO_OUTPUTS = Outputs()
NO_VARIABLES: dict[bytes, bytes] = {}


class Slot:
    """The agent's view of one launcher."""

    def __init__(self, control: socket.socket, now: float) -> None:
        self.control = control
        self.inbox = b""
        self.process: Process | None = None
        self.idle_since = now
        self.pid = 0
        """The launcher's pid; 0 until the spare launcher reports it."""
        self.shared: dict[bytes, bytes] | None = None
        """The environment that this launcher was last sent for many tasks."""

    def send(self, *frame: Any) -> None:
        """Send a frame. Raises `OSError` if the launcher has ended."""
        data = marshal.dumps(frame)
        self.control.sendall(len(data).to_bytes(4, "little") + data)


@dataclass
class Process:
    """One running shell. `pid`: 0 until it has run for a second."""

    key: Key
    slot: Slot
    started_at: float
    timeout_at: float | None
    pid: int = 0
    stopped: str = ""
    kill_at: float | None = None
    stream_until: float = 0.0
    decoders: dict[str, Decoder] = field(default_factory=lambda: defaultdict(Decoder))


class Processes:
    """All shells of this worker, in one epoll that other code may use, too.

    `environment`: of the launchers and everything that they start. `on_output(process, stream, start, bytes)`: called
    with output of a process that streams. `on_long(process)`: called when it has run for a second, and has a `pid`.
    `memory_group`: the cgroup in which launchers limit their tasks' memory, if any.
    """

    def __init__(
        self,
        poll: select.epoll,
        environment: dict[bytes, bytes],
        on_output: Callable[[Process, str, int, bytes], None],
        on_long: Callable[[Process], None] = lambda process: None,
        memory_group: str = "",
    ) -> None:
        self._poll = poll
        self._environment = environment
        self._on_output = on_output
        self._on_long = on_long
        self._memory_group = memory_group
        self.running: dict[Key, Process] = {}
        self._slots: dict[int, Slot] = {}
        """By the descriptor of their socket."""
        self._idle: list[Slot] = []
        self._unnamed: deque[Slot] = deque()
        """Slots whose launcher's pid is not known yet, in order of creation."""
        self._lost: dict[int, Process] = {}
        """By the pid of a killed launcher: its task, until nothing of it is left."""
        self._spare = self._start_spare()

    # --- launchers ----------------------------------------------------------------------------------

    def _start_spare(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        os.set_inheritable(theirs.fileno(), True)
        argv = [sys.executable, "-I", "-S", LAUNCHER, str(theirs.fileno()), self._memory_group]
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._spare_pid = os.posix_spawn(
                sys.executable, argv, self._environment, file_actions=[(os.POSIX_SPAWN_DUP2, null, 0)], setsid=True
            )
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(null)
            theirs.close()
        self._poll.register(ours.fileno(), select.EPOLLIN)
        return ours

    def prepare(self, count: int, now: float) -> None:
        """Start launchers in advance, so that the first tasks need not wait for them."""
        while len(self._slots) < count:
            self._idle.append(self._new_slot(now))

    def _new_slot(self, now: float) -> Slot:
        """Make a slot with a launcher. Raises `OSError`."""
        ours, theirs = socket.socketpair()
        try:
            try:
                socket.send_fds(self._spare, [b"x"], [theirs.fileno()])
            except OSError:  # it was killed: reading its socket detects that
                self._replace_spare()
                socket.send_fds(self._spare, [b"x"], [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        slot = Slot(ours, now)
        self._slots[ours.fileno()] = slot
        self._unnamed.append(slot)
        self._poll.register(ours.fileno(), select.EPOLLIN)
        return slot

    def _replace_spare(self) -> None:
        log.warning("the spare launcher was killed: starting another one")
        _wait_for(self._spare_pid)
        old, self._spare = self._spare, self._start_spare()
        self._poll.unregister(old.fileno())
        old.close()
        self._unnamed.clear()

    def trim(self, now: float) -> None:
        """End launchers that have been idle for a while."""
        while len(self._idle) > IDLE_KEPT and now - self._idle[0].idle_since > IDLE_S:
            self._drop(self._idle.pop(0))

    def _drop(self, slot: Slot) -> None:
        self._poll.unregister(slot.control.fileno())
        del self._slots[slot.control.fileno()]
        slot.control.close()

    # --- orders -------------------------------------------------------------------------------------

    def start(
        self,
        key: Key,
        argv: list[str],
        directory: Path,
        env: dict[bytes, bytes],
        timeout_s: float | None,
        now: float,
        limit_bytes: int = 0,
        outputs: Outputs = NO_OUTPUTS,
        shared: dict[bytes, bytes] = NO_VARIABLES,
    ) -> Process:
        """Start a shell. `env`: its own variables; `limit_bytes`: of memory, 0 for none; `outputs`: files for
        everything that it writes; `shared`: one object with variables that many tasks have, sent only when it changes;
        `env` precedes it.

        Raises `OSError` if no launcher can be started.
        """
        env[MARK] = b"%d-%d" % key
        while True:
            slot = self._idle.pop() if self._idle else self._new_slot(now)
            try:
                new = None if slot.shared is shared else shared
                slot.send("run", argv, str(directory), env, new, limit_bytes, *outputs)
                slot.shared = shared
                break
            except OSError:  # it was killed while it was idle
                self._drop(slot)
        process = Process(key, slot, now, None if timeout_s is None else now + timeout_s)
        slot.process = self.running[key] = process
        return process

    def stop(self, process: Process, why: str, grace_s: float, now: float) -> None:
        """Send TERM to everything that it started; KILL after `grace_s`. `why` becomes the outcome's cause."""
        if not process.stopped:
            process.stopped = why
            process.kill_at = now + grace_s
            self._signal(process, signal.SIGTERM)
        process.kill_at = min(process.kill_at or now, now + grace_s)

    def stream(self, process: Process, until: float) -> None:
        """Report its output until then, beginning with what is kept; 0: stop reporting."""
        if bool(until) != bool(process.stream_until):
            with contextlib.suppress(OSError):
                process.slot.send("stream", bool(until))
        process.stream_until = until

    def _signal(self, process: Process, number: int) -> None:
        with contextlib.suppress(OSError):  # the launcher is gone: reading its socket detects that
            process.slot.send("signal", int(number))

    # --- events and time ----------------------------------------------------------------------------

    def owns(self, descriptor: int) -> bool:
        """Whether an event of the epoll belongs here. An event of a descriptor that was just closed belongs nowhere."""
        return descriptor in self._slots or descriptor == self._spare.fileno()

    def on_ready(self, descriptor: int, now: float) -> list[tuple[Process, Finished]]:
        """Read a launcher's messages. Returns the shells that ended."""
        if descriptor == self._spare.fileno():
            return self._hear_spare(now)
        slot = self._slots[descriptor]
        try:
            data = slot.control.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            return self._lose(slot)
        slot.inbox += data
        ended = []
        while len(slot.inbox) >= 4:
            end = 4 + int.from_bytes(slot.inbox[:4], "little")
            if len(slot.inbox) < end:
                break
            frame = marshal.loads(slot.inbox[4:end])
            slot.inbox = slot.inbox[end:]
            finished = self._hear(slot, frame, now)
            if finished is not None:
                ended.append(finished)
        return ended

    def _hear(self, slot: Slot, frame: tuple[Any, ...], now: float) -> tuple[Process, Finished] | None:
        process = slot.process
        assert process is not None, "a launcher without a task sent a message"
        match frame:
            case ("ended", int(status), float(run_s), int(peak_kib), int(exceeded), int(file_errno), *tails):
                return self._free(slot, process, Finished(
                    process.key, os.waitstatus_to_exitcode(status), run_s, peak_kib * 1024 / 1e6, process.stopped,
                    Tail(*tails[:2]), Tail(*tails[2:]), exceeded_mb=exceeded / 1e6, output_errno=file_errno,
                ), now)  # fmt: skip
            case ("failed", int(number)):
                return self._free(
                    slot, process, Finished(process.key, stopped=process.stopped, failed_errno=number), now
                )
            case ("output", str(stream), int(start), bytes(piece)):
                if now >= process.stream_until:
                    self.stream(process, 0.0)
                else:
                    self._on_output(process, stream, start, piece)
            case ("long", int(pid)):
                process.pid = pid
                self._on_long(process)
        return None

    def _free(self, slot: Slot, process: Process, finished: Finished, now: float) -> tuple[Process, Finished]:
        slot.process = None
        slot.idle_since = now
        self._idle.append(slot)
        del self.running[process.key]
        return process, finished

    def pass_deadlines(self, grace_s: float, now: float) -> None:
        """Stop tasks that exceeded their time; KILL those that ignored TERM."""
        for process in self.running.values():
            if process.timeout_at is not None and now >= process.timeout_at and not process.stopped:
                self.stop(process, "timeout", grace_s, now)
            if process.kill_at is not None and now >= process.kill_at:
                process.kill_at = None
                self._signal(process, signal.SIGKILL)

    def next_deadline(self) -> float | None:
        """When `pass_deadlines` must be called next."""
        times = [
            at
            for process in self.running.values()
            for at in (process.kill_at, None if process.stopped else process.timeout_at)
            if at is not None
        ]
        return min(times, default=None)

    # --- launchers that were killed -----------------------------------------------------------------

    def _lose(self, slot: Slot) -> list[tuple[Process, Finished]]:
        """Handle the loss of a launcher. Its task ends when the spare launcher has ended all processes of the task."""
        self._drop(slot)
        if slot in self._idle:
            self._idle.remove(slot)
        if slot.process is None:
            return []
        if slot.pid:
            self._lost[slot.pid] = slot.process
            return []
        process = slot.process  # the spare launcher was killed before it made this launcher
        del self.running[process.key]
        return [(process, Finished(process.key, stopped=process.stopped, failed_errno=errno.EAGAIN))]

    def _give_up(self, process: Process) -> tuple[Process, Finished]:
        del self.running[process.key]
        return process, Finished(process.key, -signal.SIGKILL, stopped=process.stopped, is_lost=True)

    def _hear_spare(self, now: float) -> list[tuple[Process, Finished]]:
        try:
            data = self._spare.recv(5, socket.MSG_DONTWAIT | socket.MSG_PEEK)
            if len(data) == 5:
                self._spare.recv(5)
            elif data:
                return []
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            lost, self._lost = self._lost, {}
            self._replace_spare()
            return [self._give_up(process) for process in lost.values()]
        pid = int.from_bytes(data[1:], "little")
        if data[:1] == b"+":
            if self._unnamed:
                self._unnamed.popleft().pid = pid
            return []
        ended: list[tuple[Process, Finished]] = []
        for descriptor in [descriptor for descriptor, slot in self._slots.items() if slot.pid == pid]:
            while descriptor in self._slots:  # first read what it sent before it ended
                ended += self.on_ready(descriptor, now)
        process = self._lost.pop(pid, None)
        return ended if process is None else [*ended, self._give_up(process)]

    def end_all(self) -> None:
        """End every task immediately, and the launchers. For an agent that leaves, for any reason."""
        for slot in self._slots.values():
            with contextlib.suppress(OSError):
                slot.control.shutdown(socket.SHUT_WR)
        for slot in tuple(self._slots.values()):
            slot.control.settimeout(END_WAIT_S)
            with contextlib.suppress(OSError):
                while slot.control.recv(READ_BYTES):
                    pass
            self._drop(slot)
        self._spare.close()
        _wait_for(self._spare_pid)
        self.running.clear()
        self._idle.clear()


def _wait_for(pid: int) -> None:
    """Wait until this child ends, within limits."""
    with contextlib.suppress(ChildProcessError):
        descriptor = os.pidfd_open(pid)
        try:
            select.select([descriptor], [], [], END_WAIT_S)
        finally:
            os.close(descriptor)
        os.waitpid(pid, os.WNOHANG)
