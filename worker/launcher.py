"""Launchers: each runs one task at a time, and ends everything that the task started.

`python -I -S launcher.py FD CGROUP` is the spare launcher. For each socket that the agent sends it through FD it forks
a launcher that serves this socket. A launcher is a child subreaper: everything that its task starts, daemons included,
stays its descendant and is found without a name or an environment variable. The launcher ends all descendants together
with the task, or immediately when the agent is gone (its end of the socket closes). The spare launcher is a subreaper,
too: it ends what a killed launcher left.

CGROUP: the cgroup (v1 or v2) below which each launcher makes one for its tasks with a memory limit; empty if this
worker may make none. The launcher also checks the memory of such tasks itself: what a task held before it was moved
into the cgroup does not count there.

Imports the standard library only, and nothing of ECLOUD: it must start in milliseconds and stay small.

Frames in both directions: four bytes of length, then a `marshal`led tuple whose first item names the frame.

    agent -> launcher   ("run", argv, directory, environment, shared environment or None, memory limit in bytes or 0,
                                  file for all of stdout or "", the same of stderr, whether stderr goes to stdout)
                                               both environments are added to the launcher's own; None: the shared one
                                               of the last task
                        ("signal", number)     to every process of the task
                        ("stream", is_on)      send output as it arrives, beginning with what is kept
    launcher -> agent   ("output", stream, start, bytes)
                        ("long", pid)          the task has run for LONG_S
                        ("ended", wait status, seconds, peak RSS in KiB, memory exceeded in bytes or 0,
                                  errno with which an output file could not be written or 0,
                                  stdout dropped, stdout tail, stderr dropped, stderr tail)
                        ("failed", errno)      no process could be started
"""

from __future__ import annotations

import ctypes
import gc
import marshal
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
SIGSET_BYTES = 128
"""sizeof(sigset_t) in glibc and musl."""
TAIL_BYTES = 65_536
READ_BYTES = 65_536
ORDER_BYTES = 8_192
"""Size of one read of orders: few orders are longer."""
LONG_S = 1.0
"""The launcher reports the pid of a task that has run for this long."""
QUICK_S = 0.01
"""How long the output of a new task stays in its pipes: most tasks end earlier, without waking the launcher."""
MEMORY_LOOK_S = 0.2
"""Interval between checks of the memory of a task that has a limit."""
NEAR_LIMIT = 0.9
"""Share of its limit that a task's memory must have reached for the limit to be the reason why the kernel ended it."""
END_ROUNDS = 400
END_WAIT_S = 0.005
"""Number of checks whether killed processes have ended, and the pause between them. Then the launcher gives up and
exits."""
OOM_SCORE = 300
"""Inherited by tasks: when memory runs out, the kernel kills a task, not the agent."""
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Only the agent decides when a launcher ends."""
DEFAULT_IN_TASKS = (*IGNORED, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)


class AgentGone(Exception):
    """The agent closed its end of the socket, or died."""


class Stream:
    """One output stream of the task: a pipe that serves all tasks of this launcher, and the end of the output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.read_end, False)
        self.data = bytearray()
        self.dropped = 0
        self.file = -1
        self.file_errno = 0

    def open(self, path: str) -> None:
        """Also write the output into a new file; "" for none. Raises `OSError`."""
        self.file_errno = 0
        if path:
            self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def close(self) -> None:
        """Close the file."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def read(self) -> bytes:
        """Return the available output; empty if there is none."""
        try:
            return os.read(self.read_end, READ_BYTES)
        except BlockingIOError:
            return b""

    def keep(self, piece: bytes) -> None:
        """Keep at least the last `TAIL_BYTES`, and write everything to the file."""
        self.data += piece
        if self.file >= 0:
            try:
                left = memoryview(piece)
                while left:
                    left = left[os.write(self.file, left) :]
            except OSError as error:  # such as a full disk: the task continues, and its outcome reports the error
                self.file_errno = error.errno or 5
                self.close()
        if len(self.data) > 2 * TAIL_BYTES:
            excess = len(self.data) - TAIL_BYTES
            del self.data[:excess]
            self.dropped += excess


class Launcher:
    """One launcher process. Blocks SIGCHLD and reads it from a descriptor: a signal handler in Python costs more."""

    def __init__(self, control: socket.socket, memory_parent: str) -> None:
        self._control = control
        self._inbox = b""
        self._streams = (Stream("stdout"), Stream("stderr"))
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._ends = signal_descriptor(signal.SIGCHLD)
        self._quick, self._poll, self._output = select.poll(), select.poll(), select.poll()
        for poll in (self._quick, self._poll):
            for descriptor in (self._ends, control.fileno()):
                poll.register(descriptor, select.POLLIN)
        for stream in self._streams:
            self._poll.register(stream.read_end, select.POLLIN)
            self._output.register(stream.read_end, select.POLLIN)
        self._own_environment = dict(os.environb)
        self._environment = self._own_environment
        self._file_actions = [
            (os.POSIX_SPAWN_DUP2, self._null, 0),
            *((os.POSIX_SPAWN_DUP2, stream.write_end, number) for number, stream in enumerate(self._streams, 1)),
        ]
        self._merging = [*self._file_actions[:2], (os.POSIX_SPAWN_DUP2, self._streams[0].write_end, 2)]
        self._pid = 0
        self._began_at = 0.0
        self._look_at = 0.0
        self._is_new = self._is_told = self._is_streaming = False
        self._limit = self._exceeded = 0
        self._memory = MemoryGroup(memory_parent)
        self._end: tuple[int, int] | None = None
        """Wait status and peak RSS of the shell, once it has ended."""
        self._has_children = False
        """Whether the last check found children."""

    def serve(self) -> None:
        """Run tasks until the agent is gone."""
        try:
            while True:
                self._receive()  # blocks: without a task, only the agent's orders matter
                while self._pid:
                    self._watch()
        except (AgentGone, OSError):
            self._is_streaming = False
            self._end_all()
        self._memory.remove()

    def _watch(self) -> None:
        """Wait for the next event of the task, and handle it."""
        if self._is_new:
            self._is_new = False
            ready = self._quick.poll(QUICK_S * 1000)
            if not ready and self._limit:
                self._memory.hold(self._limit)
        else:
            ready = self._poll.poll(self._timeout_ms())
        for descriptor, _ in ready:
            if descriptor == self._ends:
                os.read(descriptor, 4096)
                self._reap()
            elif descriptor == self._control.fileno():
                self._receive()
            else:
                self._read(self._streams[descriptor == self._streams[1].read_end])
        if self._end is not None:
            self._finish(*self._end)
        elif self._pid and self._look_at and time.monotonic() >= self._look_at:
            self._look()

    def _timeout_ms(self) -> float | None:
        return max(0.0, self._look_at - time.monotonic()) * 1000 + 1 if self._look_at else None

    # --- the agent ----------------------------------------------------------------------------------

    def _receive(self) -> None:
        data = self._control.recv(ORDER_BYTES)
        if not data:
            raise AgentGone
        self._inbox += data
        while len(self._inbox) >= 4:
            size = int.from_bytes(self._inbox[:4], "little")
            while len(self._inbox) < 4 + size:
                data = self._control.recv(size)
                if not data:
                    raise AgentGone
                self._inbox += data
            frame = marshal.loads(self._inbox[4 : 4 + size])
            self._inbox = self._inbox[4 + size :]
            getattr(self, "_on_" + frame[0])(*frame[1:])

    def _send(self, *frame: Any) -> None:
        data = marshal.dumps(frame)
        self._control.sendall(len(data).to_bytes(4, "little") + data)

    def _on_run(
        self,
        argv: list[str],
        directory: str,
        environment: dict[bytes, bytes],
        shared: dict[bytes, bytes] | None,
        limit: int,
        out: str,
        err: str,
        is_merged: bool,
    ) -> None:
        self._limit, self._exceeded, self._is_told, self._is_streaming = limit, 0, False, False
        self._memory.holds = False
        if shared is not None:
            self._environment = {**self._own_environment, **shared}
        try:
            if out or err:
                for stream, path in zip(self._streams, (out, err)):
                    stream.open(path)
            os.chdir(directory)  # posix_spawn cannot set a directory; nothing here uses relative paths
            self._pid = os.posix_spawnp(
                argv[0],
                argv,
                {**self._environment, **environment},
                file_actions=self._merging if is_merged else self._file_actions,
                setsid=True,
                setsigmask=(),
                setsigdef=DEFAULT_IN_TASKS,
            )
        except OSError as error:
            for stream in self._streams:
                stream.close()
            self._send("failed", error.errno)
            return
        self._is_new = True
        self._began_at = time.monotonic()
        self._look_at = self._began_at + (MEMORY_LOOK_S if limit else LONG_S)

    def _on_signal(self, number: int) -> None:
        if self._pid:
            signal_group(self._pid, number)
            for pid in descendants(os.getpid()):
                signal_process(pid, number)

    def _on_stream(self, is_on: bool) -> None:
        if self._pid:
            for stream in self._streams:
                if is_on and not self._is_streaming:
                    self._send("output", stream.name, stream.dropped, bytes(stream.data))
            self._is_streaming = is_on

    # --- the task -----------------------------------------------------------------------------------

    def _read(self, stream: Stream) -> bool:
        piece = stream.read()
        if piece and self._is_streaming:
            self._send("output", stream.name, stream.dropped + len(stream.data), piece)
        if piece:
            stream.keep(piece)
        return bool(piece)

    def _reap(self) -> bool:
        """Reap every child that ended, so that no zombie counts against a limit. Return whether any child is left."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self._has_children = False
                return False
            if pid == 0:
                self._has_children = True
                return True
            if pid == self._pid:
                self._end = (status, usage.ru_maxrss)

    def _look(self) -> None:
        now = time.monotonic()
        self._look_at = now + MEMORY_LOOK_S
        if not self._is_told and now >= self._began_at + LONG_S:
            self._is_told = True
            self._send("long", self._pid)
        if self._limit and not self._exceeded:
            if not self._memory.holds:
                self._memory.hold(self._limit)
            used = sum(resident_bytes(pid) for pid in descendants(os.getpid()))
            if used > self._limit or self._memory.has_ended_some:
                self._exceeded = max(used, self._limit)
                self._on_signal(signal.SIGKILL)
        elif not self._limit:
            self._look_at = 0.0  # nothing left to check

    def _finish(self, status: int, peak: int) -> None:
        run_s = time.monotonic() - self._began_at
        if not self._exceeded and self._memory.has_ended_some:
            self._exceeded = self._limit
        is_clean = True
        if self._has_children:  # else nothing of the task is left: its orphans would be children by now
            signal_group(self._pid, signal.SIGKILL)
            is_clean = self._end_all()
        if self._output.poll(0):
            for stream in self._streams:
                while self._read(stream):
                    pass
        file_errno = 0
        for stream in self._streams:
            file_errno = file_errno or stream.file_errno
            if stream.file >= 0:
                stream.close()
        tails = [item for stream in self._streams for item in (stream.dropped, bytes(stream.data))]
        self._pid, self._end, self._look_at = 0, None, 0.0
        self._send("ended", status, run_s, peak, self._exceeded, file_errno, *tails)
        if not is_clean:
            raise AgentGone  # a process that cannot be killed must not count as part of the next task
        for stream in self._streams:
            if stream.data:
                stream.data, stream.dropped = bytearray(), 0

    def _end_all(self) -> bool:
        """KILL all descendants, also those that appear meanwhile. Return False if some do not end."""
        for _ in range(END_ROUNDS):
            if not self._reap():
                return True
            for pid in descendants(os.getpid()):
                signal_process(pid, signal.SIGKILL)
            if not self._reap():
                return True
            for stream in self._streams:  # a writer that waits for room ends as well, but need not wait
                self._read(stream)
            time.sleep(END_WAIT_S)
        return False


# --- memory -------------------------------------------------------------------------------------------


class MemoryGroup:
    """The cgroup of one launcher's tasks with a memory limit, made when it is first needed. The kernel ends processes
    that would exceed the limit. `parent`: the cgroup to make it in, or empty."""

    def __init__(self, parent: str) -> None:
        self.holds = False
        """Whether the present task is in it."""
        self._path = group_path(parent, os.getpid())
        self._is_v1 = os.path.exists(f"{parent}/memory.limit_in_bytes")
        self._limit = self._ended = 0

    def hold(self, limit: int) -> None:
        """Move all descendants of this process into it. Does nothing where the system does not allow that."""
        if not self._path:
            return
        with suppress(OSError):
            if limit != self._limit or not os.path.exists(self._path):
                self._make(limit)
            if self._is_v1:
                self._write("memory.max_usage_in_bytes", 0)
            self._ended = self._count("oom_kill")
            moved: set[int] = set()
            while new := [pid for pid in descendants(os.getpid()) if pid not in moved]:
                for pid in new:  # their later children begin in it
                    with suppress(ProcessLookupError):
                        self._write("cgroup.procs", pid)
                moved.update(new)
            self.holds = True

    @property
    def has_ended_some(self) -> bool:
        """Whether the kernel ended a process of the present task because of this limit, not of another one."""
        if not self.holds or self._count("oom_kill") <= self._ended:
            return False
        if not self._is_v1:
            return self._count("oom") > 0
        try:
            with open(f"{self._path}/memory.max_usage_in_bytes") as file:
                return int(file.read()) > NEAR_LIMIT * self._limit
        except (OSError, ValueError):
            return False

    def remove(self) -> None:
        """Remove it, if it was made."""
        if self._path:
            remove_group(self._path)

    def _make(self, limit: int) -> None:
        self._limit = 0
        remove_group(self._path)
        os.mkdir(self._path)
        if self._is_v1:
            self._write("memory.limit_in_bytes", limit)
            with suppress(OSError):  # a kernel that does not count swap
                self._write("memory.memsw.limit_in_bytes", limit)
        else:
            self._write("memory.max", limit)
            for name, value in (("memory.swap.max", 0), ("memory.oom.group", 1)):
                with suppress(OSError):  # an older kernel, or no swap
                    self._write(name, value)
        self._limit = limit

    def _write(self, name: str, value: int) -> None:
        with open(f"{self._path}/{name}", "w") as file:
            file.write(str(value))

    def _count(self, name: str) -> int:
        """Read a counter of the kernel's; 0 if there is none."""
        try:
            with open(f"{self._path}/{'memory.oom_control' if self._is_v1 else 'memory.events'}") as file:
                words = file.read().split()
            return int(words[words.index(name) + 1])
        except (OSError, ValueError):
            return 0


def group_path(parent: str, pid: int) -> str:
    """Return the cgroup of the launcher `pid`."""
    return f"{parent}/ecloud-{pid}" if parent else ""


def remove_group(path: str) -> None:
    """Remove a cgroup without processes, if it exists."""
    with suppress(OSError):
        os.rmdir(path)


# --- processes ----------------------------------------------------------------------------------------


def signal_group(pid: int, number: int) -> None:
    """Send a signal to a process group, if it exists."""
    with suppress(OSError):
        os.killpg(pid, number)


def signal_process(pid: int, number: int) -> None:
    """Send a signal to one process, if it exists and belongs to this user."""
    with suppress(OSError):
        os.kill(pid, number)


def children(pid: int) -> list[int]:
    """Return the pids of the children of a process, zombies included."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except FileNotFoundError:
        if os.path.exists(f"/proc/{pid}") and not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
            return _children_by_parent(pid)  # a kernel without CONFIG_PROC_CHILDREN
    except OSError:
        pass
    return found


def _children_by_parent(parent: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    if int(file.read().rpartition(b")")[2].split()[1]) == parent:
                        found.append(int(name))
            except OSError:
                pass
    return found


def descendants(pid: int) -> list[int]:
    """Return the pids of all descendants, parents before their children."""
    found: list[int] = []
    todo = children(pid)
    while todo:
        found += todo
        todo = [child for parent in todo for child in children(parent)]
    return found


def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds and shares with no file; 0 if the process has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            _, resident, shared = map(int, file.read().split()[:3])
    except (OSError, ValueError):
        return 0
    return max(0, resident - shared) * os.sysconf("SC_PAGE_SIZE")


# --- the spare launcher -------------------------------------------------------------------------------


def become_subreaper() -> None:
    """Make orphans among the descendants of this process its children. Linux only; needs no privileges."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def signal_descriptor(number: int) -> int:
    """Block a signal, and return a descriptor that is readable while the signal is pending. Raises `OSError`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    libc = ctypes.CDLL(None, use_errno=True)
    signals = ctypes.create_string_buffer(SIGSET_BYTES)
    libc.sigemptyset(signals)
    libc.sigaddset(signals, int(number))
    descriptor = libc.signalfd(-1, signals, os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return int(descriptor)


class Spare:
    """Forks a launcher for each socket that it receives, and ends what a killed launcher left.

    Answers each socket with `+` and the launcher's pid, and sends `-` and the pid when a launcher has ended and nothing
    of its task is left. A pid has four bytes.
    """

    def __init__(self, control: socket.socket, memory_parent: str) -> None:
        self._control = control
        self._memory_parent = memory_parent
        self._launchers: set[int] = set()
        self._ended: list[int] = []
        self._wake, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        """Serve until the agent is gone and all processes of its tasks have ended."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._serve()
        self._ended.append(0)  # from now on, every child that is no launcher is a stranger
        for _ in range(2 * END_ROUNDS):
            self._reap()
            if not self._end_strangers() and not self._launchers:
                return
            time.sleep(END_WAIT_S)

    def _serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll(END_WAIT_S * 1000 if self._ended else None):
                if descriptor == self._wake:
                    os.read(self._wake, 4096)
                elif not self._fork():
                    return
            self._reap()
            if not self._end_strangers():
                for pid in self._ended:
                    self._say(b"-", pid)
                    if self._memory_parent:  # a launcher that was killed did not remove it
                        remove_group(group_path(self._memory_parent, pid))
                self._ended = []

    def _fork(self) -> bool:
        data, sockets, _, _ = socket.recv_fds(self._control, 1, 1)
        if not data:
            return False
        for descriptor in sockets:
            os.set_inheritable(descriptor, False)  # recv_fds of Python 3.11 ignores MSG_CMSG_CLOEXEC
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for own in (self._control.fileno(), self._wake, self._wake_write):
                    os.close(own)
                become_subreaper()
                Launcher(socket.socket(fileno=descriptor), self._memory_parent).serve()
                os._exit(0)
            self._launchers.add(pid)
            os.close(descriptor)
            self._say(b"+", pid)
        return True

    def _say(self, what: bytes, pid: int) -> None:
        self._control.sendall(what + pid.to_bytes(4, "little"))

    def _reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._launchers:
                self._launchers.discard(pid)
                self._ended.append(pid)

    def _end_strangers(self) -> bool:
        """KILL children that are no launchers: orphans of killed launchers. Return whether there were any."""
        if not self._ended:
            return False
        strangers = [pid for pid in children(os.getpid()) if pid not in self._launchers]
        for pid in strangers:
            for process in (pid, *descendants(pid)):
                signal_process(process, signal.SIGKILL)
        return bool(strangers)


def main() -> None:
    """Run the spare launcher until the agent is gone."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(OOM_SCORE))
    except OSError:
        pass  # the agent has a higher score already, or /proc is read-only
    become_subreaper()
    gc.disable()  # nothing here makes cycles
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    for name in os.listdir("/proc/self/fd"):  # tasks must not inherit the agent's descriptors
        if int(name) not in (0, 1, 2, control.fileno()):
            with suppress(OSError):
                os.close(int(name))
    Spare(control, sys.argv[2]).run()


if __name__ == "__main__":
    main()
