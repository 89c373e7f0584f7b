"""A TCP proxy of bad weather: cuts connections after a number of bytes, delays them, makes them stall, and counts."""

from __future__ import annotations

import queue
import socket
import threading
import time
from contextlib import suppress

from services import HOST

PIECE = 1 << 15
ON_THE_WAY = 4096
"""Pieces that a delayed link holds in each direction."""


class CuttingProxy:
    """Forwards to a loopback port. `cut_every`: each connection is cut after this many bytes (either way). `delay_s`: a
    question and its answer take so much longer; nothing else is slowed down.

    `stall_after`: one connection goes silent, without an end, after this many bytes. `hold` silences all of them, and
    those that come meanwhile, until `let_go`.
    """

    def __init__(self, port: int, cut_every: int = 0, stall_after: int = 0, delay_s: float = 0.0) -> None:
        self.target = port
        self.cut_every = cut_every
        self.stall_after = stall_after
        self.delay_s = delay_s
        self.bytes_per_s = 0.0
        """A narrow link, where it is not 0; may be set at any time."""
        self.passed = 0
        self.connections = 0
        self.stalled = threading.Event()
        self._flows = threading.Event()
        self._flows.set()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._start(self._accept)

    def hold(self) -> None:
        """Nothing moves, and no connection ends."""
        self._flows.clear()

    def let_go(self) -> None:
        """All moves again, first what was held."""
        self._flows.set()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                far = socket.create_connection((HOST, self.target), 10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._sockets += [near, far]
            count = [0]
            self._start(self._forward, near, far, count)
            self._start(self._forward, far, near, count)

    def _forward(self, source: socket.socket, sink: socket.socket, count: list[int]) -> None:
        late: queue.Queue[tuple[float, bytes]] | None = None
        if self.delay_s:
            late = queue.Queue(ON_THE_WAY)
            self._start(self._bring_late, late, source, sink)
        with suppress(OSError):
            while data := source.recv(PIECE):
                with self._lock:
                    count[0] += len(data)
                    self.passed += len(data)
                    stalls = self.stall_after and count[0] >= self.stall_after
                if self.bytes_per_s:
                    self._over.wait(len(data) / self.bytes_per_s)
                if self.cut_every and count[0] >= self.cut_every:
                    break
                if stalls:
                    self.stall_after = 0
                    self.stalled.set()
                    self._over.wait()
                self._flows.wait()
                if late is None:
                    sink.sendall(data)
                else:
                    late.put((time.monotonic() + self.delay_s / 2, data))
        if late is None:
            _end(source, sink)
        else:
            late.put((0.0, b""))

    def _bring_late(self, late: queue.Queue[tuple[float, bytes]], source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while True:
                due_s, data = late.get()
                if not data:
                    break
                self._over.wait(max(0.0, due_s - time.monotonic()))
                sink.sendall(data)
        _end(source, sink)

    def close(self) -> None:
        """End all."""
        self._over.set()
        self._flows.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        _end(*self._sockets)
        for thread in self._threads:
            thread.join(10)
        for end in self._sockets:
            end.close()

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, *told: object) -> None:
        self.close()


def _end(*sockets: socket.socket) -> None:
    for end in sockets:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
