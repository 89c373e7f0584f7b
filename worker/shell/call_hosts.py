"""Call hosts of this worker (`worker/callhost.py`): warm interpreters that run calls one after another.

A host is a process like a task's shell: a launcher starts it, ends all that it started, and reports its end. It is
reused for calls of the same kind: the same run, Python, container, resources and environment. Owns which host runs
which call. A host that ends, for whatever reason, fails only the call in progress.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ecloud.model.tasks import FAILURE_TAIL_BYTES, Cause, Outcome, TaskBody
from worker.shell.commands import outcome_of, signal_name
from worker.shell.process import NO_OUTPUTS, Finished, Process, Processes
from worker.shell.pythons import Pythons

CALLHOST = Path(__file__).resolve().parents[1] / "callhost.py"
IDLE_S = 60.0
"""A host that has been idle for longer than this is ended."""
IDLE_KEPT = 8
"""Idle hosts of other kinds that are kept when a new host starts."""
READ_BYTES = 1 << 20
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


class CallEnd(msgspec.Struct, frozen=True):
    """How a call ended. `value_file`: the file with a value that is too large for the outcome."""

    outcome: Outcome
    value_file: str = ""


class Host:
    """One call host, as the worker sees it."""

    def __init__(self, kind: HostKind, process: Process, outputs: str) -> None:
        self.kind = kind
        self.process = process
        self.outputs = outputs
        self.control: socket.socket | None = None
        self.inbox = bytearray()
        self.call: CallOrder | None = None
        self.started_at = 0.0
        self.calls = 0
        self.idle_since = 0.0
        self.is_ending = False


class CallHosts:
    """All hosts. Calls `on_end` when a call has ended."""

    def __init__(self, poll: select.epoll, processes: Processes, control: Path, pythons: Pythons) -> None:
        self._poll = poll
        self._processes = processes
        self._directory = control
        self.pythons = pythons
        self.on_end: Callable[[CallEnd], None] = lambda end: None
        self._numbers = 0
        self._hosts: dict[Key, Host] = {}
        """By the key of their process."""
        self._by_descriptor: dict[int, Host] = {}
        self._unnamed: dict[int, socket.socket] = {}
        self._idle: dict[HostKind, list[Host]] = {}
        self._running: dict[Key, Host] = {}
        """By the key of their call."""
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
        host.call = order
        self._running[order.key] = host
        if host.control is not None:
            self._send(host)

    def stop(self, key: Key, grace_s: float) -> bool:
        """End a call together with its host; return whether a host runs this call."""
        host = self._running.get(key)
        if host is not None:
            self._processes.stop(host.process, "stopped", grace_s, time.monotonic())
        return host is not None

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
            shutil.copyfile(CALLHOST, place)
        outputs = f"call-{self._numbers}"
        inside = control_inside or str(self._directory)
        argv = argv_of([kind.python, f"{inside}/callhost.py", inside, str(self._numbers), self._cloudpickle, outputs])
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

    def _send(self, host: Host) -> None:
        order, control = host.call, host.control
        assert order is not None
        assert control is not None
        head = json.dumps(order.head).encode()
        size = sum(map(len, order.parts))
        frame = b"".join((len(head).to_bytes(4, "little"), size.to_bytes(4, "little"), head, *order.parts))
        host.started_at = time.monotonic()
        host.process.timeout_at = None if order.timeout_s is None else host.started_at + order.timeout_s
        with contextlib.suppress(OSError):  # the host has ended: its launcher reports that
            control.sendall(frame)

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
        if not data:
            self._hang_up(host)  # its launcher reports its end
            return
        host.inbox += data
        while (frame := _frame(host.inbox)) is not None:
            self._on_reply(host, *frame)

    @staticmethod
    def _receive(control: socket.socket | None) -> bytes:
        assert control is not None
        try:
            return control.recv(READ_BYTES)
        except OSError:
            return b""

    def _on_token(self, descriptor: int) -> None:
        control = self._unnamed.pop(descriptor)
        inbox = bytearray(self._receive(control))
        frame = _frame(inbox)  # a frame this short arrives whole
        host = self._hosts.get((-int(frame[0]["token"]), 0)) if frame is not None else None
        if host is None or host.control is not None:
            self._poll.unregister(descriptor)
            control.close()
            return
        host.control = control
        self._by_descriptor[descriptor] = host
        if host.call is not None:
            self._send(host)
        else:
            self._rest(host)

    def _on_reply(self, host: Host, head: dict[str, Any], body: bytes) -> None:
        order = host.call
        if order is None or head.get("call") != list(order.key):
            return
        host.call = None
        host.process.timeout_at = None
        del self._running[order.key]
        now = time.monotonic()
        value_bytes, stdout_bytes, stderr_bytes = head["sizes"]
        stdout_end = value_bytes + stdout_bytes
        outcome = Outcome(
            task_no=order.key[0],
            number=order.key[1],
            cause=Cause.SUCCESS if head["ok"] else Cause.EXIT,
            exit_code=0 if head["ok"] else 1,
            error=head["error"],
            command="" if head["ok"] else order.head["name"],
            stdout=body[value_bytes:stdout_end].decode("utf-8", "replace"),
            stderr=body[stdout_end : stdout_end + stderr_bytes].decode("utf-8", "replace"),
            run_s=min(float(head["run_s"]), round(now - host.started_at, 6)),
            max_rss_mb=round(head["rss_kib"] * 1024 / 1e6, 1),
            value=body[:value_bytes],
        )
        host.calls += 1
        limit = host.kind.limit_bytes * MEMORY_SHARE
        if host.calls >= order.max_calls or head["broken"] or (limit and head["rss_kib"] * 1024 > limit):
            self._hang_up(host)
        else:
            self._rest(host)
        self.on_end(CallEnd(outcome, head.get("file", "")))

    def _rest(self, host: Host) -> None:
        host.idle_since = time.monotonic()
        if host.process.stopped:
            self._hang_up(host)
        else:
            self._idle.setdefault(host.kind, []).append(host)

    def _hang_up(self, host: Host) -> None:
        """Close the socket of a host. An idle host then ends."""
        host.is_ending = True
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
        self._hang_up(host)
        order = host.call
        if order is not None:
            del self._running[order.key]
            self.on_end(CallEnd(self._crashed(host, order, finished)))
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
