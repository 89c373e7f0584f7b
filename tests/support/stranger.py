"""A peer that keeps to no rule: it has a place at the broker and some key, and says what a test likes. And a boss for
it to talk to, with checks whether that did anything."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from databases import MariaDb
from doors import Doors
from services import DEADLINE_S, Daemon, Mosquitto, wait_until, watch_to_the_end

from ecloud.client.broker import BrokerAddress, BrokerConnection
from ecloud.config.secrets import cluster_secret, derive_key, read_access
from ecloud.db import schema
from ecloud.db.database import make_engine, migrate
from ecloud.model import wire
from ecloud.model.tasks import Result, TaskDefinition
from ecloud.model.topics import boss_topic, peer_topic
from ecloud.model.wire import Envelope, Goodbye, Hello, Message, PushOptions, Unreadable, Welcome

ESCAPE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e"
"""Clears a screen, names a window, colours, and turns the writing round."""
TABLES = ("runs", "tasks", "definitions", "dependencies", "attempts", "context", "pushes", "revoked_keys", "vms")


class Stranger:
    """One connection to a boss's broker. `key_name` decides which of the cluster's keys it signs with."""

    def __init__(self, daemon: Daemon, peer: str = "stranger", key_name: str = "client", listen: str = "") -> None:
        self.access = read_access(daemon.home.client_access)
        self.peer = peer
        self.key_name = key_name
        self.key = derive_key(cluster_secret(daemon.home), key_name)
        self.topic = boss_topic(self.access.cluster_id, peer)
        self.own_topic = peer_topic(self.access.cluster_id, peer)
        self.session = ""
        self.overheard: list[tuple[str, bytes]] = []
        self._heard: queue.SimpleQueue[Envelope] = queue.SimpleQueue()
        self._number = 0
        topics = [self.own_topic, *([self.path(listen)] if listen else [])]
        access = self.access
        address = BrokerAddress(access.host, access.port, access.user, access.password, access.ca, access.tls)
        self.connection = BrokerConnection(
            address, f"stranger-{peer}", topics, self._on_message, lambda: None, lambda reason: None
        )

    def __enter__(self) -> Stranger:
        self.connection.start()
        wait_until(lambda: self.connection.is_connected, what="the stranger is connected")
        return self

    def __exit__(self, *exception: object) -> None:
        self.connection.stop(5.0)

    def path(self, tail: str) -> str:
        """A topic of this cluster."""
        return f"ecloud/{self.access.cluster_id}/{tail}"

    # --- saying -------------------------------------------------------------------------------------

    def throw(self, topic: str, payload: bytes) -> None:
        """Any bytes on any topic."""
        wait_until(lambda: self.connection.publish(topic, payload), what=f"{len(payload)} bytes are thrown on {topic}")

    def heave(self, topic: str, size: int) -> None:
        """This many zeros on a topic, by a connection of their own: paho copies the rest with each piece it sends."""
        access = self.access
        words = [b"MQTT", b"\x04\xc2\0\x3c", b"heaver", access.user.encode(), access.password.encode()]
        connect = b"".join(word if word is words[1] else _counted(word) for word in words)
        with socket.create_connection((access.host, access.port), DEADLINE_S) as sock:
            sock.sendall(b"\x10" + _length(len(connect)) + connect)
            assert sock.recv(4) == b"\x20\x02\0\0", "the broker accepts it"
            name = _counted(topic.encode())
            sock.sendall(b"\x30" + _length(len(name) + size) + name)
            sock.sendall(memoryview(bytes(size)))
            sock.sendall(b"\xc0\0")
            assert sock.recv(2) == b"\xd0\0", "the broker has read it all"

    def signed(self, text: bytes, topic: str = "") -> bytes:
        """Any text, rightly signed."""
        signature = wire._signature(self.key, topic or self.topic, text)
        return b"ecloud %b %b\n%b" % (self.key_name.encode(), signature, text)

    def say(self, message: Message, **odd: Any) -> None:
        """A message in the session, but for what is odd in its envelope."""
        self._number += 1
        fields = {"v": wire.PROTOCOL_VERSION, "peer": self.peer, "session": self.session, "number": self._number, **odd}
        self.throw(self.topic, wire.encode(Envelope(message=message, **fields), self.topic, self.key_name, self.key))

    def hello(self, kind: str, patience_s: float = DEADLINE_S, **fields: Any) -> Welcome:
        """Open, and continue in the session that the boss names. Sent again until it is answered: a restarted
        boss may not listen yet."""
        self.session = ""
        nonce = f"nonce-{self._number}"
        deadline = time.monotonic() + patience_s
        while True:
            self.say(Hello(nonce=nonce, kind=kind, **fields))
            try:
                welcome: Welcome = self.hears(Welcome, patience_s=min(patience_s, 2.0))
                break
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
        assert welcome.nonce == nonce
        self.session, self._number = welcome.session, 0
        return welcome

    # --- hearing ------------------------------------------------------------------------------------

    def hears(self, *kinds: type, patience_s: float = DEADLINE_S) -> Any:
        """The next message of one of these kinds; others are passed over."""
        while True:
            try:
                message = self._heard.get(timeout=patience_s).message
            except queue.Empty:
                raise AssertionError(f"no {kinds} is heard") from None
            if isinstance(message, kinds):
                return message

    def _on_message(self, topic: str, payload: bytes) -> None:
        if topic != self.own_topic:
            self.overheard.append((topic, payload))
            return
        try:
            envelope, _ = wire.decode(payload, topic, lambda name: self.key)
        except Unreadable:
            return
        self._heard.put(envelope)


def _counted(word: bytes) -> bytes:
    return len(word).to_bytes(2, "big") + word


def _length(count: int) -> bytes:
    found = bytearray()
    while count > 127:
        found.append(count % 128 | 128)
        count //= 128
    return bytes([*found, count])


# --- a boss among strangers -----------------------------------------------------------------------


@pytest.fixture
def besieged(daemons: Callable[..., Daemon], mariadb: MariaDb, mosquitto: Mosquitto) -> Daemon:
    """A boss with servers, one worker of its own for ever, and a run that has ended."""
    url = mariadb.new_url()
    engine = make_engine(url)
    migrate(engine)
    engine.dispose()
    pools = ({"name": "local", "minimum": 1, "maximum": 1},)
    # A stranger is silent while a door is typed, which takes as long as the machine is busy.
    daemon = daemons(DATABASE_URL=url, **mosquitto.settings(), POOLS=pools, LEASE_S=120.0)
    daemon.database_url = url  # type: ignore[attr-defined]
    daemon.start()
    a_run_succeeds(daemon, "before")
    return daemon


def a_run_succeeds(daemon: Daemon, name: str) -> None:
    """The boss does its work."""
    tasks = [
        TaskDefinition(f"t{index}", ("echo hello > out",), results=(Result("out", f"{name}/{index}"),))
        for index in range(5)
    ]
    with daemon.client() as client:
        client.push(tasks, PushOptions(name))
        assert watch_to_the_end(client, name).states == {"succeeded": 5}


def picture(daemon: Daemon) -> dict[str, list[str]]:
    """All that is recorded, but for who was there, when it was written, and when the cloud says that the VM began: its
    next list tells that."""
    engine = make_engine(daemon.database_url)  # type: ignore[attr-defined]
    try:
        with engine.connect() as connection:
            found = {}
            for name in TABLES:
                table = schema.metadata.tables[name]
                query = sa.select(*[column for column in table.columns if column.name != "started_at" or name != "vms"])
                found[name] = sorted(map(repr, connection.execute(query)))
            return found
    finally:
        engine.dispose()


def worker_of(daemon: Daemon) -> str:
    """The peer name of its own worker that is up."""
    engine = make_engine(daemon.database_url)  # type: ignore[attr-defined]
    try:
        with engine.connect() as connection:
            query = "SELECT worker FROM workers WHERE state = 'up' AND vm_no IS NOT NULL"
            found = connection.exec_driver_sql(query).scalar()
            return found.decode() if isinstance(found, bytes) else str(found)
    finally:
        engine.dispose()


@contextmanager
def nothing_changes(daemon: Daemon, place: Path) -> Iterator[None]:
    """Nothing recorded changes, the same boss leads, the same worker works, `status` answers again and again."""
    before, pid, worker = picture(daemon), daemon.process.pid if daemon.process else 0, worker_of(daemon)
    with status_answers(daemon, place):
        yield
    assert daemon.process is not None
    assert not daemon.is_over, daemon.log[-3_000:]
    assert daemon.process.pid == pid
    assert picture(daemon) == before
    assert worker_of(daemon) == worker
    is_calm(daemon)


def is_calm(daemon: Daemon) -> None:
    """No process failed, and no message reaches a terminal or another line of the log through the log."""
    logs = [daemon.home.log, *daemon.home.workers.glob("*/log")]
    for path in logs:
        words = path.read_text(errors="replace")
        assert "Traceback" not in words, words[words.index("Traceback") :][:3_000]
        assert "refuses a batch" not in words, words[words.index("refuses a batch") :][:1_000]
        shows_no_escapes(words)


def shows_no_escapes(text: str) -> None:
    """No character that a terminal acts on."""
    bad = {character for character in text if not (character.isprintable() or character in "\n\t")}
    assert not bad, f"{bad!r} in {text[:2_000]!r}"


@contextmanager
def status_answers(daemon: Daemon, place: Path) -> Iterator[None]:
    """`admin.py status` is typed again and again meanwhile."""
    doors, over, wrong, times = Doors(place / "status", daemon), threading.Event(), [], [0]

    def look() -> None:
        while not over.is_set() or not times[0]:
            try:
                shows_no_escapes(doors.admin("status").text)
                times[0] += 1
                over.wait(0.2)
            except BaseException as error:
                wrong.append(error)
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not wrong, wrong[0]


def is_heard_out(stranger: Stranger) -> None:
    """All that it said before was read: its next Hello is answered."""
    stranger.hello("client")
    stranger.say(Goodbye())
