"""Call hosts of this worker (`worker/callhost.py`): warm interpreters that run calls one after another.

A host is a process like a task's shell: a launcher starts it, ends all that it started, and reports its end. It is
reused for calls of the same kind: the same run, Python, container, resources and environment. A host may hold calls
that wait behind the one in progress. Owns which host has which calls. A host that ends, for whatever reason, fails only
the call in progress.

Calls are the messages of a socket whose reading end both sides have. The kernel gives each message to one reader: a
call that this side reads again has not begun and never will.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ecloud.model.tasks import FAILURE_TAIL_BYTES, Cause, Outcome, TaskBody
from worker.shell.call_output import CallOutputs
from worker.shell.commands import outcome_of, signal_name
from worker.shell.process import NO_OUTPUTS, Finished, Process, Processes
from worker.shell.pythons import Pythons

CALLHOST = Path(__file__).resolve().parents[1] / "callhost.py"
IDLE_S = 60.0
"""A host that has been idle for longer than this is ended."""
IDLE_KEPT = 8
"""Idle hosts of other kinds that are kept when a new host starts."""
READ_BYTES = 1 << 20
MESSAGE_BYTES, STREAMED, VALUE_FILE = 64 * 1024, b"s", ".ecloud-value"
"""The largest message to a host, what announces a larger frame, and the file of a large value, as in
`worker/callhost.py`."""
MEMORY_SHARE = 0.8
"""A host that has used more than this share of the memory that its calls request is replaced after its call."""
LAST_LINES = 3
Key = tuple[int, int]


class HostKind(msgspec.Struct, frozen=True):
    """What two calls must have in common to use the same host. `env`: the variables of the calls."""

    run_no: int
    python: str
    container: str = ""
    gpus: tuple[str, ...] | None = None
    limit_bytes: int = 0
    env: tuple[tuple[bytes, bytes], ...] = ()
    setup: bytes = b""
    project: str = ""


class CallOrder(msgspec.Struct, frozen=True):
    """A call to run, as sent to the host: `head`, followed by `parts`."""

    key: Key
    head: dict[str, Any]
    parts: tuple[bytes, ...]
    timeout_s: float | None = None
    max_calls: int = 10_000
    python: str = ""
    """Version of Python that pickled the call; empty if any will do."""


class CallEnd(msgspec.Struct, frozen=True):
    """How a call ended. `is_in_file`: its value is too large for the outcome, and in the file `VALUE_FILE` of its
    working directory."""

    outcome: Outcome
    is_in_file: bool = False


class Host:
    """One call host, as the worker sees it."""

    def __init__(self, kind: HostKind, process: Process, outputs: str) -> None:
        self.kind = kind
        self.process = process
        self.outputs = outputs
        self.control: socket.socket | None = None
        self.calls_to, self.unread = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        """The socket of the calls: the end that this side writes, and the reading end."""
        self.inbox = bytearray()
        self.held: deque[CallOrder] = deque()
        """The call in progress, and those that wait behind it."""
        self.started_at = 0.0
        self.calls = 0
        self.idle_since = 0.0
        self.is_worn = False
        """Whether it ends with the call in progress."""
        self.stopped_for: Key | None = None
        """The call that it was ended for."""


class CallEvents(Protocol):
    """What the owner of calls learns of them."""

    def call_began(self, key: Key, after: Key) -> None:
        """A host has ended the call `after` and begun this one, which waited behind it. The end of `after` follows."""

    def calls_recalled(self, keys: Sequence[Key]) -> None:
        """These waited behind another call; they have not begun, and no host has them."""

    def call_undone(self, key: Key, ran: bool) -> None:
        """A call that was reported as begun did not begin, or `ran` and ended with its host because of another call."""

    def call_ended(self, end: CallEnd) -> None:
        """A call has ended."""


class CallHosts:
    """All hosts. `owner`: learns what happens to calls."""

    def __init__(self, poll: select.epoll, processes: Processes, control: Path, pythons: Pythons) -> None:
        self._poll = poll
        self._processes = processes
        self._directory = control
        self.pythons = pythons
        self.owner: CallEvents
        self.outputs = CallOutputs()
        self._numbers = 0
        self._hosts: dict[Key, Host] = {}
        """Every host, by the key of its process."""
        self._by_descriptor: dict[int, Host] = {}
        self._unnamed: dict[int, socket.socket] = {}
        self._idle: dict[HostKind, list[Host]] = {}
        self._running: dict[Key, Host] = {}
        """Hosts that run a call, by the key of the call."""
        self._listener: socket.socket | None = None
        self._cloudpickle = _cloudpickle()

    # --- orders -------------------------------------------------------------------------------------

    def run(
        self,
        order: CallOrder,
        kind: HostKind,
        env: dict[bytes, bytes],
        directory: Path,
        argv_of: Callable[[list[str]], list[str]],
        control_inside: str = "",
    ) -> None:
        """Run a call on an idle host of its kind, or on a new one. `argv_of`: wraps a command to run it in a container;
        `control_inside`: the path of the socket's directory inside the container.

        Raises `OSError` if no process can be started, `ContainerMissing`.
        """
        idle = self._idle.get(kind)
        host = idle.pop() if idle else self._start(kind, env, directory, argv_of, control_inside)
        host.held.append(order)
        self._running[order.key] = host
        if host.control is not None:
            self._send_first(host)

    def prefetch(self, order: CallOrder, kind: HostKind, behind: Key, begin_s: float) -> bool:
        """Let a call wait behind the one in progress, to begin within `begin_s` seconds; return whether its host takes
        it."""
        host = self._running.get(behind)
        if host is None or host.control is None or host.held[0].key != behind or host.kind != kind:
            return False
        if host.process.stopped or host.calls + len(host.held) >= order.max_calls:
            return False
        frame = _framed({**order.head, "begin_by": time.monotonic() + begin_s}, order.parts)
        if len(frame) > MESSAGE_BYTES:
            return False
        try:
            host.calls_to.send(frame, socket.MSG_DONTWAIT)
        except OSError:  # its buffer is full, or the host has ended
            return False
        host.held.append(order)
        self._running[order.key] = host
        return True

    def recall(self, key: Key) -> None:
        """Take back the calls that wait at the host of this one, unless it was reported as begun."""
        host = self._running.get(key)
        if host is None or host.held[0].key == key:
            return
        current, taken = host.held[0], self._take_back(host)
        if current in taken:  # it was reported as begun: the host shall begin it
            taken.remove(current)
            host.held.append(current)
            frame = _framed(current.head, current.parts)
            with contextlib.suppress(OSError):  # the host has ended: its launcher reports that
                host.calls_to.send(frame if len(frame) <= MESSAGE_BYTES else STREAMED)
        self._recalled(taken)

    def stop(self, key: Key, grace_s: float) -> bool:
        """End a call together with its host; return whether a host has this call."""
        host = self._running.get(key)
        if host is None:
            return False
        order, taken = host.held[0], self._take_back(host)
        self._recalled([other for other in taken if other is not order])
        if order in taken:  # it has not begun
            del self._running[key]
            if len(_framed(order.head, order.parts)) <= MESSAGE_BYTES:
                self._rest(host)
            else:
                self._hang_up(host)  # the frame is still on its way
            self._end(CallEnd(Outcome(*key, Cause.STOPPED)))
        else:
            host.stopped_for = key
            self._processes.stop(host.process, "stopped", grace_s, time.monotonic())
        return True

    def follow(self, key: Key, until: float) -> bool:
        """Publish the output of a call until that time; return whether it is in progress here."""
        host = self._running.get(key)
        if host is None or host.held[0].key != key:
            return False
        self.outputs.follow(key, host.outputs, until)
        return True

    def _end(self, end: CallEnd) -> None:
        outcome = end.outcome
        self.outputs.end((outcome.task_no, outcome.number), outcome.stdout, outcome.stderr)
        self.owner.call_ended(end)

    @staticmethod
    def _take_back(host: Host) -> list[CallOrder]:
        """Take from a host the calls that it has not begun; return them in order."""
        taken: deque[CallOrder] = deque()
        with contextlib.suppress(OSError):  # nothing is left
            while host.unread.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT):
                taken.appendleft(host.held.pop())
        return list(taken)

    def _recalled(self, orders: Sequence[CallOrder]) -> None:
        for order in orders:
            del self._running[order.key]
        if orders:
            self.owner.calls_recalled([order.key for order in orders])

    def _start(
        self,
        kind: HostKind,
        env: dict[bytes, bytes],
        directory: Path,
        argv_of: Callable[[list[str]], list[str]],
        control_inside: str,
    ) -> Host:
        self._end_some_idle()
        self._listen()
        self._numbers += 1
        key = (-self._numbers, 0)
        place = self._directory / "callhost.py"
        if not place.exists():
            if self._cloudpickle:
                shutil.copytree(self._cloudpickle, self._directory / "cloudpickle", dirs_exist_ok=True)
            shutil.copyfile(CALLHOST, place)
        outputs = f"call-{self._numbers}"
        inside = control_inside or str(self._directory)
        cloudpickle = self._cloudpickle and f"{inside}/cloudpickle"
        argv = argv_of([kind.python, f"{inside}/callhost.py", inside, str(self._numbers), cloudpickle, outputs])
        now = time.monotonic()
        process = self._processes.start(key, argv, directory, env, None, now, kind.limit_bytes, NO_OUTPUTS)
        host = self._hosts[key] = Host(kind, process, str(self._directory / outputs))
        return host

    def _listen(self) -> None:
        if self._listener is not None:
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        directory = os.open(self._directory, os.O_PATH | os.O_CLOEXEC)  # the path of a socket is limited to 107 bytes
        try:
            with contextlib.suppress(FileNotFoundError):
                (self._directory / "calls.sock").unlink()
            listener.bind(f"/proc/self/fd/{directory}/calls.sock")
        finally:
            os.close(directory)
        listener.listen(64)
        self._listener = listener
        self._poll.register(listener.fileno(), select.EPOLLIN)

    def _send_first(self, host: Host) -> None:
        """Send a call to a host that has no other."""
        order, control = host.held[0], host.control
        assert control is not None
        frame = _framed(order.head, order.parts)
        self._begins(host)
        with contextlib.suppress(OSError):  # the host has ended: its launcher reports that
            if len(frame) <= MESSAGE_BYTES:
                host.calls_to.send(frame)
            else:
                host.calls_to.send(STREAMED)
                control.sendall(frame)

    @staticmethod
    def _begins(host: Host) -> None:
        order = host.held[0]
        host.started_at = time.monotonic()
        host.process.timeout_at = None if order.timeout_s is None else host.started_at + order.timeout_s

    # --- events -------------------------------------------------------------------------------------

    def owns(self, descriptor: int) -> bool:
        """Whether an epoll event of this descriptor belongs here."""
        return (
            descriptor in self._by_descriptor
            or descriptor in self._unnamed
            or (self._listener is not None and descriptor == self._listener.fileno())
        )

    def on_ready(self, descriptor: int) -> None:
        """Handle a connection, token or reply of a host."""
        if self._listener is not None and descriptor == self._listener.fileno():
            with contextlib.suppress(BlockingIOError):
                control, _ = self._listener.accept()
                self._unnamed[control.fileno()] = control
                self._poll.register(control.fileno(), select.EPOLLIN)
            return
        if descriptor in self._unnamed:
            self._on_token(descriptor)
            return
        host = self._by_descriptor[descriptor]
        data = self._receive(host.control)
        if data == b"":
            self._hang_up(host)  # its launcher reports its end
        elif data:
            self._on_data(host, data)

    def _on_data(self, host: Host, data: bytes) -> None:
        host.inbox += data
        while (frame := _frame(host.inbox)) is not None:
            self._on_reply(host, *frame)

    @staticmethod
    def _receive(control: socket.socket | None) -> bytes | None:
        """Return what a host sent: None if that is nothing so far, empty if it has closed the socket."""
        assert control is not None
        try:
            return control.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _on_token(self, descriptor: int) -> None:
        data = self._receive(self._unnamed[descriptor])
        if data is None:
            return
        control, inbox = self._unnamed.pop(descriptor), bytearray(data)
        frame = _frame(inbox)  # a frame this short arrives whole
        host = self._hosts.get((-int(frame[0]["token"]), 0)) if frame is not None else None
        if host is None or host.control is not None:
            self._poll.unregister(descriptor)
            control.close()
            return
        host.control = control
        self._by_descriptor[descriptor] = host
        with contextlib.suppress(OSError):  # the host has ended: its launcher reports that
            socket.send_fds(control, [b"c"], [host.unread.fileno()])
        version = frame[0]["python"] if frame is not None else ""
        if host.held and host.held[0].python not in ("", version):
            self._refuse(host, version)
        elif host.held:
            self._send_first(host)
        else:
            self._rest(host)

    def _refuse(self, host: Host, version: str) -> None:
        """End a call whose host, in a container, is another version of Python; and the host."""
        order = host.held.popleft()
        del self._running[order.key]
        self._hang_up(host)
        text = (
            f"the call {order.head['name']} was pickled by Python {order.python} and its container has {version}: "
            f"use an image with Python {order.python}"
        )
        self._end(CallEnd(Outcome(*order.key, Cause.EXIT, exit_code=1, error=text)))

    def _on_reply(self, host: Host, head: dict[str, Any], body: bytes) -> None:
        if not host.held or head.get("call") != list(host.held[0].key):
            return
        order, began_at = host.held.popleft(), host.started_at
        host.process.timeout_at = None
        if host.process.stopped and host.stopped_for is None:
            host.stopped_for = order.key  # it was too late to end this call
        del self._running[order.key]
        if head.get("late"):
            self._begin_next(host, order.key)
            self.owner.call_undone(order.key, ran=False)
            return
        host.calls += 1
        limit = host.kind.limit_bytes * MEMORY_SHARE
        if host.calls >= order.max_calls or head["broken"] or (limit and head["rss_kib"] * 1024 > limit):
            self._recalled(self._take_back(host))
            host.is_worn = True
        self._begin_next(host, order.key)
        self._end(CallEnd(_outcome(order, head, body, began_at), bool(head.get("is_in_file"))))

    def _begin_next(self, host: Host, after: Key) -> None:
        """Handle the end of a host's call: it begins the next one, if it has one."""
        if host.held:
            self._begins(host)
            self.owner.call_began(host.held[0].key, after)
        elif host.is_worn:
            self._hang_up(host)
        else:
            self._rest(host)

    def _rest(self, host: Host) -> None:
        host.idle_since = time.monotonic()
        if host.process.stopped:
            self._hang_up(host)
        else:
            self._idle.setdefault(host.kind, []).append(host)

    def _hang_up(self, host: Host) -> None:
        """Close the sockets to a host. An idle host then ends."""
        host.calls_to.close()
        idle = self._idle.get(host.kind)
        if idle is not None and host in idle:
            idle.remove(host)
            if not idle:
                del self._idle[host.kind]
        if host.control is not None:
            del self._by_descriptor[host.control.fileno()]
            self._poll.unregister(host.control.fileno())
            host.control.close()
            host.control = None

    def is_host(self, key: Key) -> bool:
        """Whether the process with this key is a call host."""
        return key in self._hosts

    def on_finished(self, finished: Finished) -> None:
        """Handle the end of a host and of all that it had started. The call that it ran has ended with it."""
        host = self._hosts.pop(finished.key)
        while host.control is not None and (data := self._receive(host.control)):
            self._on_data(host, data)
        current = host.held[0] if host.held else None
        taken = self._take_back(host)
        self._hang_up(host)
        host.unread.close()
        self._recalled([order for order in taken if order is not current])
        if current is not None:
            del self._running[current.key]
            if current in taken and host.calls:  # the host ended between two calls
                self.owner.call_undone(current.key, ran=False)
            elif host.stopped_for not in (None, current.key):
                self.owner.call_undone(current.key, ran=True)
            else:
                self._end(CallEnd(self._crashed(host, current, finished)))
        for stream in ("stdout", "stderr"):
            with contextlib.suppress(OSError):
                os.unlink(f"{host.outputs}.{stream}")

    def _crashed(self, host: Host, order: CallOrder, finished: Finished) -> Outcome:
        """Build the outcome of a call whose host ended: the cause of that end, and the last lines that the host
        wrote."""
        began = bool(host.started_at)
        stdout, stderr = (_tail(f"{host.outputs}.{stream}") for stream in ("stdout", "stderr"))
        stderr = stderr or finished.stderr.text(FAILURE_TAIL_BYTES)
        body = TaskBody(order.head["name"], timeout_s=order.timeout_s)
        outcome = outcome_of(msgspec.structs.replace(finished, key=order.key), body, 1, "")
        cause = Cause.EXIT if outcome.cause is Cause.SUCCESS else outcome.cause
        lines = " / ".join(stderr.strip().splitlines()[-LAST_LINES:])
        return msgspec.structs.replace(
            outcome,
            cause=cause,
            error=_why(host, order, finished, cause) + (f": {lines}" if lines else ""),
            command=order.head["name"],
            stdout=stdout,
            stderr=stderr,
            run_s=round(time.monotonic() - host.started_at, 6) if began else 0.0,
        )

    # --- time ---------------------------------------------------------------------------------------

    def trim(self, now: float) -> None:
        """End hosts that have been idle for longer than `IDLE_S`."""
        for hosts in tuple(self._idle.values()):
            for host in tuple(hosts):
                if now - host.idle_since > IDLE_S:
                    self._hang_up(host)

    def close(self) -> None:
        """Close all sockets: all hosts have ended."""
        for host in tuple(self._hosts.values()):
            self._hang_up(host)
            host.unread.close()
        for unnamed in (*self._unnamed.values(), *filter(None, [self._listener])):
            unnamed.close()

    def _end_some_idle(self) -> None:
        idle = sorted((host for hosts in self._idle.values() for host in hosts), key=lambda host: host.idle_since)
        for host in idle[: max(0, len(idle) - IDLE_KEPT)]:
            self._hang_up(host)


def _frame(inbox: bytearray) -> tuple[dict[str, Any], bytes] | None:
    """Take the first complete frame from the inbox; None if there is none yet."""
    if len(inbox) < 8:
        return None
    head_end = 8 + int.from_bytes(inbox[:4], "little")
    end = head_end + int.from_bytes(inbox[4:8], "little")
    if len(inbox) < end:
        return None
    head: dict[str, Any] = json.loads(inbox[8:head_end])
    body = bytes(inbox[head_end:end])
    del inbox[:end]
    return head, body


def _framed(head: dict[str, Any], parts: Sequence[bytes]) -> bytes:
    text = json.dumps(head).encode()
    size = sum(map(len, parts))
    return b"".join((len(text).to_bytes(4, "little"), size.to_bytes(4, "little"), text, *parts))


def _outcome(order: CallOrder, head: dict[str, Any], body: bytes, began_at: float) -> Outcome:
    """Build the outcome of a call from the reply of its host."""
    value_bytes, stdout_bytes, stderr_bytes = head["sizes"]
    stdout_end = value_bytes + stdout_bytes
    return Outcome(
        task_no=order.key[0],
        number=order.key[1],
        cause=Cause.SUCCESS if head["ok"] else Cause.EXIT,
        exit_code=0 if head["ok"] else 1,
        error=head["error"],
        command="" if head["ok"] else order.head["name"],
        stdout=body[value_bytes:stdout_end].decode("utf-8", "replace"),
        stderr=body[stdout_end : stdout_end + stderr_bytes].decode("utf-8", "replace"),
        run_s=min(float(head["run_s"]), round(time.monotonic() - began_at, 6)),
        max_rss_mb=round(head["rss_kib"] * 1024 / 1e6, 1),
        value=body[:value_bytes],
    )


def _tail(path: str) -> str:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - FAILURE_TAIL_BYTES))
        return file.read().decode("utf-8", "replace")
    return ""


def _why(host: Host, order: CallOrder, finished: Finished, cause: Cause) -> str:
    """Return a sentence that explains what ended a host during a call."""
    name, python = order.head["name"], host.kind.python
    if finished.failed_errno:
        return f"{python} cannot be started: {os.strerror(finished.failed_errno)}"
    if not host.started_at:
        return f"{python} ended before it took the call {name}"
    if cause is Cause.TIMEOUT:
        return f"the call {name} ran longer than timeout_s = {order.timeout_s:g} s"
    if cause is Cause.MEMORY:
        held = f"it held {finished.exceeded_mb:,.0f} MB"
        return f"the call {name} needed more than the memory_mb that it asks for ({held})"
    if cause is Cause.SIGNAL:
        hint = " (out of memory?)" if finished.code == -signal.SIGKILL else ""
        return f"the interpreter of the call {name} was ended by {signal_name(-finished.code)}{hint}"
    return f"the call {name} ended its interpreter with exit code {finished.code}"


def _cloudpickle() -> str:
    """Return the directory of this worker's own cloudpickle, for Pythons that lack it."""
    found = importlib.util.find_spec("cloudpickle")
    return os.path.dirname(found.origin) if found is not None and found.origin else ""
