"""Idle workers as real MQTT clients: thousands of connections in one thread, which send a Hello and then only
heartbeats.

Implements only the needed part of MQTT 3.1.1 (CONNECT, SUBSCRIBE, PUBLISH, their acknowledgements, PINGREQ), so that
the clients cost less than the measured boss.
"""

from __future__ import annotations

import heapq
import resource
import selectors
import socket
import time

from bench.services import Services
from ecloud.config.secrets import AccessFile
from ecloud.model import wire
from ecloud.model.topics import boss_topic, peer_topic
from ecloud.model.wire import Envelope

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, PING = 0x10, 0x32, 0x40, 0x82, 0xC0
KEEPALIVE_S = 60
PING_S = 30.0
WELCOME_S = 120.0
HELLO_AGAIN_S = 5.0


class IdleWorker:
    """One connection and one session."""

    def __init__(self, access: AccessFile, name: str) -> None:
        self.name = name
        self.heartbeat_s = 0.0
        self._access = access
        self._to_boss = boss_topic(access.cluster_id, name)
        self._from_boss = peer_topic(access.cluster_id, name)
        self._session = ""
        self._number = self._seen = self._packet = 0
        self._inbox = b""
        self.socket = socket.create_connection((access.host, access.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._send(CONNECT, _text("MQTT") + bytes((4, 2)) + KEEPALIVE_S.to_bytes(2, "big") + _text(name))
        self._send(SUBSCRIBE, self._next() + _text(self._from_boss) + b"\1")

    @property
    def is_on_duty(self) -> bool:
        """Return whether the boss has answered with Welcome."""
        return bool(self._session)

    def hello(self) -> None:
        """Send a Hello, which opens a session."""
        nonce = f"{self.name}-{self._packet}"
        hello = wire.Hello(nonce, "worker", home=self.name, resources={"cpus": 1.0}, chains=True)
        self._say(Envelope(wire.PROTOCOL_VERSION, self.name, "", 0, hello))

    def heartbeat(self) -> None:
        """Send a heartbeat without attempts."""
        self._number += 1
        message = wire.Heartbeat(self._seen)
        self._say(Envelope(wire.PROTOCOL_VERSION, self.name, self._session, self._number, message))

    def ping(self) -> None:
        """Send a PINGREQ to the broker."""
        self._send(PING, b"")

    def read(self) -> None:
        """Read received packets. Raises `ConnectionError`."""
        data = self.socket.recv(65_536)
        if not data:
            raise ConnectionError(f"the broker closed the connection of {self.name}")
        self._inbox += data
        while (found := _packet(self._inbox)) is not None:
            kind, body, size = found
            self._inbox = self._inbox[size:]
            if kind & 0xF0 == PUBLISH & 0xF0:
                self._on_publish(kind, body)

    def _on_publish(self, kind: int, body: bytes) -> None:
        start = 2 + int.from_bytes(body[:2], "big")
        if kind & 0x06:
            self._send(PUBACK, body[start : start + 2])
            start += 2
        envelope, _ = wire.decode(body[start:], self._from_boss, lambda name: self._access.key_bytes)
        if isinstance(envelope.message, wire.Welcome):
            self._session, self._number, self._seen = envelope.message.session, 0, 0
            self.heartbeat_s = envelope.message.heartbeat_s
            self.heartbeat()
        else:
            self._seen = envelope.number
            if isinstance(envelope.message, wire.HeartbeatAnswered):
                self.heartbeat_s = envelope.message.heartbeat_s or self.heartbeat_s

    def _say(self, envelope: Envelope) -> None:
        payload = wire.encode(envelope, self._to_boss, self._access.key_name, self._access.key_bytes)
        self._send(PUBLISH, _text(self._to_boss) + self._next() + payload)

    def _next(self) -> bytes:
        self._packet = self._packet % 65_535 + 1
        return self._packet.to_bytes(2, "big")

    def _send(self, kind: int, body: bytes) -> None:
        length, rest = bytearray(), len(body)
        while True:
            length.append(rest % 128 | (128 if rest >= 128 else 0))
            rest //= 128
            if not rest:
                break
        self.socket.sendall(bytes((kind,)) + bytes(length) + body)


class IdleCrew:
    """`count` idle workers. `tend` keeps them alive for a while."""

    def __init__(self, services: Services, count: int) -> None:
        self._poll = selectors.DefaultSelector()
        self._due: list[tuple[float, int]] = []
        self._pings_at = time.monotonic() + PING_S
        self.workers: list[IdleWorker] = []
        access = services.access("invite-idle")
        for number in range(count):
            worker = IdleWorker(access, f"idle{number}")
            self.workers.append(worker)
            self._poll.register(worker.socket, selectors.EVENT_READ, worker)
            if number % 100 == 99:
                self._read(0.0)

    def report(self) -> None:
        """Wait until the boss has welcomed all. Raises `TimeoutError`."""
        give_up_at = time.monotonic() + WELCOME_S
        again_at = 0.0
        while waiting := [worker for worker in self.workers if not worker.is_on_duty]:
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"the boss does not welcome {len(waiting)} of {len(self.workers)} workers")
            if time.monotonic() >= again_at:
                again_at = time.monotonic() + HELLO_AGAIN_S
                for worker in waiting:
                    worker.hello()
            self._read(0.2)
        now = time.monotonic()
        for number, worker in enumerate(self.workers):  # spread over the interval, as in a real cluster
            heapq.heappush(self._due, (now + worker.heartbeat_s * number / len(self.workers), number))

    def tend(self, seconds: float) -> None:
        """Send heartbeats and read, for this many seconds."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            while self._due[0][0] <= now:
                at, number = heapq.heappop(self._due)
                worker = self.workers[number]
                worker.heartbeat()
                heapq.heappush(self._due, (at + worker.heartbeat_s, number))
            if now >= self._pings_at:
                self._pings_at = now + PING_S
                for worker in self.workers:
                    worker.ping()
            self._read(max(0.0, min(self._due[0][0], until) - now))

    def close(self) -> None:
        """Close all connections."""
        for worker in self.workers:
            self._poll.unregister(worker.socket)
            worker.socket.close()
        self._poll.close()

    def _read(self, wait_s: float) -> None:
        for key, _ in self._poll.select(wait_s):
            key.data.read()


def allow_connections(count: int) -> None:
    """Raise this process's limit of descriptors, which the broker inherits. Raises `ValueError` if it may not."""
    wanted = count + 1_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data


def _packet(data: bytes) -> tuple[int, bytes, int] | None:
    """Return the first packet: kind, body, total size; None if it is incomplete."""
    size, shift, at = 0, 0, 1
    while True:
        if at >= len(data):
            return None
        size |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 128:
            break
    return None if len(data) < at + size else (data[0], data[at : at + size], at + size)
