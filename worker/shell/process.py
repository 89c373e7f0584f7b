"""Running commands: one shell per attempt, in a session of its own, watched by one epoll. Nothing it starts outlives
it.

Owns processes and their output pipes. Decides nothing: what to run comes as `Launch`, what happened goes out as
`Finished`. One thread, no preexec_fn (a real fork costs 2 to 20 ms; facts), no waiting for end-of-file (a left-over
process may hold a pipe).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from worker.shell.tail import Decoder, Tail

PR_SET_CHILD_SUBREAPER = 36
PR_SET_PDEATHSIG = 1
READ_BYTES = 65_536
SHORT_READ_BYTES = 2_048
"""A list of children that is shorter than half a page came whole."""
READ_AFTER_S = 0.05
"""Output is watched from then on: most short tasks end before, and what they wrote waits in the pipe. One that fills
it (64 KiB) sooner waits until then."""
REAP_ROUNDS = 200
REAP_WAIT_S = 0.005
# Put into the environment of everything an attempt starts: what left its process group is known again by it.
MARK = b"ECLOUD_MARK"
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
Key = tuple[int, int]


def adopt_orphans() -> None:
    """Processes that lose their parent become ours, so that they can be found and ended. Linux; needs no rights."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(signal_number: int = signal.SIGTERM) -> None:
    """Get a signal when the process that started this one ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)


@dataclass(frozen=True)
class Finished:
    """A shell ended, and everything it had started. `code`: exit code, negative for a signal. `run_s`: wall seconds."""

    key: Key
    code: int
    run_s: float
    max_rss_mb: float
    stopped: str


@dataclass
class Process:
    """One shell that runs."""

    key: Key
    pid: int
    pidfd: int
    streams: dict[int, tuple[str, Tail]]
    tails: dict[str, Tail]
    started_at: float
    timeout_at: float | None
    mark: bytes
    stopped: str = ""
    kill_at: float | None = None
    stream_until: float = 0.0
    decoders: dict[str, Decoder] = field(default_factory=lambda: {"stdout": Decoder(), "stderr": Decoder()})


class Processes:
    """All shells of this worker, in one epoll that others may add their descriptors to."""

    def __init__(self, poll: select.epoll, on_output: Callable[[Process, str, int, bytes], None]) -> None:
        self._poll = poll
        self._on_output = on_output
        self._by_fd: dict[int, Process] = {}
        self.running: dict[Key, Process] = {}
        self._pids: set[int] = set()
        self._unread: deque[tuple[float, Process]] = deque()
        """Shells whose output is not watched yet, by when it will be."""
        # Opened once: each costs as much as a pipe, and a short task costs little else.
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._own_directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._children = _open_children()
        _inherit_nothing()

    def start(
        self, key: Key, argv: list[str], directory: Path, env: dict[bytes, bytes], timeout_s: float | None, now: float
    ) -> Process:
        """Start a shell. Raises `OSError` where the machine can't."""
        mark = f"{key[0]}-{key[1]}"
        out_read, out_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        err_read, err_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.fcntl(out_write, fcntl.F_SETFL, 0)  # theirs blocks, ours does not
        fcntl.fcntl(err_write, fcntl.F_SETFL, 0)
        try:
            pid = self._spawn(argv, directory, {**env, MARK: mark.encode()}, out_write, err_write)
        except BaseException:
            os.close(out_read)
            os.close(err_read)
            raise
        finally:
            os.close(out_write)
            os.close(err_write)
        tails = {"stdout": Tail(), "stderr": Tail()}
        process = Process(
            key=key,
            pid=pid,
            pidfd=os.pidfd_open(pid),
            streams={out_read: ("stdout", tails["stdout"]), err_read: ("stderr", tails["stderr"])},
            tails=tails,
            started_at=now,
            timeout_at=None if timeout_s is None else now + timeout_s,
            mark=MARK + b"=" + mark.encode(),
        )
        self._by_fd[process.pidfd] = process
        self._poll.register(process.pidfd, select.EPOLLIN)
        self._unread.append((now + READ_AFTER_S, process))
        self.running[key] = process
        self._pids.add(process.pid)
        return process

    def _spawn(self, argv: list[str], directory: Path, env: dict[bytes, bytes], stdout: int, stderr: int) -> int:
        """A process in a session of its own; its pid. `posix_spawn` costs a short task 20 us less than `Popen`.

        It knows no working directory: ours is changed for that moment. Nothing here uses relative paths.
        """
        streams = ((self._null, 0), (stdout, 1), (stderr, 2))
        os.chdir(directory)
        try:
            return os.posix_spawnp(
                argv[0],
                argv,
                env,
                file_actions=[(os.POSIX_SPAWN_DUP2, descriptor, number) for descriptor, number in streams],
                setsid=True,
                setsigdef=_IGNORED_BY_PYTHON,
            )
        finally:
            os.fchdir(self._own_directory)

    def owns(self, descriptor: int) -> bool:
        """Whether an event of the epoll is for us. An event of a descriptor closed a moment ago is for nobody."""
        return descriptor in self._by_fd

    def on_ready(self, descriptor: int, now: float) -> Finished | None:
        """Read output, or notice an end."""
        process = self._by_fd[descriptor]
        if descriptor == process.pidfd:
            return self._finish(process, now)
        if not self._read(process, descriptor):
            self._close(descriptor, process)
        return None

    def stop(self, process: Process, why: str, grace_s: float, now: float) -> None:
        """TERM to all it started; KILL after `grace_s`. `why` tells the outcome's cause."""
        if not process.stopped:
            process.stopped = why
            process.kill_at = now + grace_s
            _signal_group(process.pid, signal.SIGTERM)
            for pid in self._left_behind(process):
                _signal_group(pid, signal.SIGTERM)
        process.kill_at = min(process.kill_at or now, now + grace_s)

    def pass_deadlines(self, grace_s: float, now: float) -> None:
        """End what ran out of time; KILL what ignored TERM."""
        while self._unread and self._unread[0][0] <= now:
            self._watch_output(self._unread.popleft()[1])
        for process in self.running.values():
            if process.timeout_at is not None and now >= process.timeout_at and not process.stopped:
                self.stop(process, "timeout", grace_s, now)
            if process.kill_at is not None and now >= process.kill_at:
                process.kill_at = None
                _signal_group(process.pid, signal.SIGKILL)

    def _watch_output(self, process: Process) -> None:
        if self.running.get(process.key) is process:
            for descriptor in process.streams:
                self._by_fd[descriptor] = process
                self._poll.register(descriptor, select.EPOLLIN)

    def next_deadline(self) -> float | None:
        """When `pass_deadlines` has something to do."""
        while self._unread and self.running.get(self._unread[0][1].key) is not self._unread[0][1]:
            self._unread.popleft()
        times = [
            at
            for process in self.running.values()
            for at in (process.kill_at, None if process.stopped else process.timeout_at)
            if at is not None
        ]
        if self._unread:
            times.append(self._unread[0][0])
        return min(times, default=None)

    # --- ends ---------------------------------------------------------------------------------------

    def _finish(self, process: Process, now: float) -> Finished | None:
        try:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status, usage = process.pid, 0, None
        if pid == 0:
            return None
        self._pids.discard(process.pid)
        _signal_group(process.pid, signal.SIGKILL)
        self._end_left_behind(process)
        for descriptor in tuple(process.streams):
            while self._read(process, descriptor):
                pass
            self._close(descriptor, process)
        self._close(process.pidfd, process)
        del self.running[process.key]
        max_rss_mb = usage.ru_maxrss / 1000 if usage is not None else 0.0
        code = os.waitstatus_to_exitcode(status)
        return Finished(process.key, code, now - process.started_at, max_rss_mb, process.stopped)

    def _read(self, process: Process, descriptor: int) -> bool:
        """Take what is there; False at the end, or when there is nothing now."""
        try:
            piece = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return False
        if not piece:
            return False
        name, tail = process.streams[descriptor]
        if process.stream_until:
            self._on_output(process, name, tail.dropped + len(tail.data), piece)
        tail.add(piece)
        return True

    def _close(self, descriptor: int, process: Process) -> None:
        if self._by_fd.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)
        process.streams.pop(descriptor, None)
        os.close(descriptor)

    def _end_left_behind(self, process: Process) -> None:
        """KILL what left the group, also daemons; their children become ours in turn, so look until there is none."""
        for _ in range(REAP_ROUNDS):
            left = list(self._left_behind(process))
            if not left:
                return
            for pid in left:
                _signal_group(pid, signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    if os.waitpid(pid, os.WNOHANG)[0] == 0:
                        select.select([], [], [], REAP_WAIT_S)

    def _our_children(self) -> list[int]:
        if self._children is None:
            return []
        data = b""
        while piece := os.pread(self._children, READ_BYTES, len(data)):
            data += piece
            if len(piece) < SHORT_READ_BYTES:
                break
        return [int(pid) for pid in data.split()]

    def _left_behind(self, process: Process) -> Iterator[int]:
        """Our children that no running shell is: orphans we adopted, of this attempt by their environment."""
        for pid in self._our_children():
            if pid in self._pids:
                continue
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            if not environment:
                # A zombie, or one without any environment: reaped where it is dead.
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            elif process.mark in environment.split(b"\0"):
                yield pid


def _open_children() -> int | None:
    """The list of our children. Orphans are given to a process's first thread, whichever had started their parents."""
    try:
        return os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None  # a kernel that does not tell


def _inherit_nothing() -> None:
    """What this process was started with beyond the standard streams is not for tasks. What Python opens never is."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2:
                os.set_inheritable(int(name), False)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
