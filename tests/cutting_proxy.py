"""A TCP proxy of bad weather: cuts connections after so many bytes, or lets them stall, and counts what passed."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from services import HOST

PIECE = 1 << 15


class CuttingProxy:
    """Forwards to a loopback port. `cut_every`: each connection is cut after so many bytes (either way).

    `stall_after`: one connection goes silent, without an end, after so many bytes.
    """

    def __init__(self, port: int, cut_every: int = 0, stall_after: int = 0) -> None:
        self.target = port
        self.cut_every = cut_every
        self.stall_after = stall_after
        self.passed = 0
        self.connections = 0
        self.stalled = threading.Event()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._start(self._accept)

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
        with suppress(OSError):
            while data := source.recv(PIECE):
                with self._lock:
                    count[0] += len(data)
                    self.passed += len(data)
                    stalls = self.stall_after and count[0] >= self.stall_after
                if self.cut_every and count[0] >= self.cut_every:
                    break
                if stalls:
                    self.stall_after = 0
                    self.stalled.set()
                    self._over.wait()
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all."""
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for end in self._sockets:
            end.close()

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, *told: object) -> None:
        self.close()
