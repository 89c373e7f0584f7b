"""Visits to VMs by SSH: looks what is there, and brings code and packages where the image has none.

Owns the connection to one guest at a time, from any thread; each visit ends within `VISIT_S`. The host key is pinned at
the first visit of a VM and asked for at each later one, whatever address the VM has by then. A visit may be broken off
anywhere and made again: what is there already is not sent again, and what runs is not started again.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from boss.bootstrap.bundle import Bundles, Machine, NoBundle
from boss.bootstrap.guest_scripts import OWN_SCRIPT, PROBE, Probed, as_root, read_probe, start_command, unpack_command
from boss.bootstrap.start_script import SCRIPT
from boss.core.model.effects import VisitVm
from boss.core.model.events import VmVisited
from datastore.keys import fingerprint
from ecloud.model.boot_diagnosis import LEAST_DISK_MB, LEAST_PYTHON, Visit, version

log = logging.getLogger("boss")
CONNECT_S = 10.0
HANDSHAKE_S = 20.0
"""For the banner and for letting us in: 50 guests that start at once on few hosts are slow."""
VISIT_S = 180.0
"""A whole visit; a bundle of 1 MB over a slow line is the longest part."""
MAX_ANSWER_BYTES = 100_000
CHUNK_BYTES = 65_536
NO_EXIT_CODE = -1
"""What paramiko says where a channel was closed without one."""


class Broken(Exception):
    """The visit could not go on; `contact` is one of those of `Visit`, the text says what happened."""

    def __init__(self, contact: str, text: str) -> None:
        super().__init__(text)
        self.contact = contact


class Visitor:
    """Visits VMs of one pool. `key`: the private key that their sshd lets in; `user` and `port`: at their addresses."""

    def __init__(self, key: Path, bundles: Bundles, user: str = "root", port: int = 22) -> None:
        self._key = key
        self._bundles = bundles
        self._user = user
        self._port = port
        self._lock = threading.Lock()
        self._guests: set[Guest] = set()
        """Those that are visited now."""
        self._closed = False

    def close(self) -> None:
        """Break off every visit, so that none holds up a boss that leaves; begin none any more."""
        with self._lock:
            self._closed = True
            guests = tuple(self._guests)
        for guest in guests:
            guest.close()

    def visit(self, call: VisitVm) -> VmVisited:
        """Look, and prepare where the call says so. Never raises for what is the guest's fault."""
        begun = time.monotonic()
        done: dict[str, float] = {}
        guest = Guest(call.address, self._port, self._user, self._key, call.host_key, begun + VISIT_S)
        with self._lock:
            self._guests.add(guest)
            closed = self._closed
        try:
            if closed:
                raise Broken("broken", "the boss leaves")
            guest.open()
            done["ssh"] = time.monotonic()
            visit = self._inside(guest, call, done)
        except Broken as error:
            visit = Visit(error.contact, said=str(error), vm=guest.vm, boot_nonce=guest.boot_nonce)
        except Refused as error:  # a guest that can't even be looked at
            visit = Visit("broken", said=f"what is there can't be looked at: {error}")
        finally:
            guest.close()
            with self._lock:
                self._guests.discard(guest)
        now = time.monotonic()
        ago_s = {step: now - at for step, at in done.items()}
        # Where it broke off later, as when the VM ends meanwhile, it had said already who it is.
        known = visit.contact == "ok" or (visit.vm, visit.boot_nonce) == (str(call.vm_no), call.boot_nonce)
        host_key = call.host_key or (guest.shown if known else "")
        return VmVisited(call.vm_no, call.address, host_key, visit, ago_s)

    def _inside(self, guest: Guest, call: VisitVm, done: dict[str, float]) -> Visit:
        asked = time.time()
        probed = read_probe(guest.run("sh -s", PROBE.encode()))
        guest.vm, guest.boot_nonce = probed.visit.vm, probed.visit.boot_nonce
        # It tells whole seconds, when the script begins.
        ahead_s = probed.date - asked if probed.date is not None else None
        visit = msgspec.structs.replace(probed.visit, clock_s=ahead_s, by_ssh=call.prepare)
        if probed.date is not None:
            done["clock"] = time.monotonic()
        if version(visit.python) >= LEAST_PYTHON:
            done["python"] = time.monotonic()
        if not call.prepare or visit.agent or not _may_be_prepared(visit, call):
            return visit
        try:
            bundle = self._bundles.get(_machine(probed))
            if bundle.name not in probed.codes:
                guest.send(unpack_command(probed.python[4], probed.home, bundle.name), bundle.archive)
            done["code"] = time.monotonic()
            visit = msgspec.structs.replace(visit, code=bundle.name)
            said = guest.run(start_command(probed.home, bundle.name), SCRIPT.encode())
        except (NoBundle, Refused) as error:
            return msgspec.structs.replace(visit, problem=str(error))
        return msgspec.structs.replace(visit, agent=True, log=f"{visit.log}\n{said}".strip())


def _may_be_prepared(visit: Visit, call: VisitVm) -> bool:
    """Whether it is worth while, and the right machine. What is only slow (its name server, its clock) may mend itself
    while the worker waits."""
    fits = version(visit.python) >= LEAST_PYTHON and not visit.home and OWN_SCRIPT not in visit.starting
    room = visit.disk_mb is None or visit.disk_mb >= LEAST_DISK_MB
    return fits and room and (visit.vm, visit.boot_nonce) == (str(call.vm_no), call.boot_nonce)


def _machine(probed: Probed) -> Machine:
    if len(probed.python) < 5:
        raise NoBundle("its Python does not say what it is; use an image with another one")
    python, architecture, libc, libc_version, _ = probed.python[:5]
    return Machine(_pair(python), architecture, libc, _pair(libc_version))


def _pair(text: str) -> tuple[int, int]:
    first, second, *_ = [*map(int, re.findall(r"\d+", text)), 0, 0]
    return first, second


# --- one guest ------------------------------------------------------------------------------------


class Refused(Exception):
    """A command ended with an exit code that is not 0; the text is what it said."""


class Guest:
    """A connection to one guest. `shown`: its host key, as `type base64`; `vm`, `boot_nonce`: who it said it is."""

    def __init__(self, address: str, port: int, user: str, key: Path, host_key: str, until: float) -> None:
        self._where = address if port == 22 else f"{address}:{port}"
        self._address = address
        self._port = port
        self._user = user
        self._key = key
        self._host_key = host_key
        self._until = until
        self._connection: Any = None
        self.shown = self.vm = self.boot_nonce = ""

    def open(self) -> None:
        """Connect, look at the host key, be let in. Raises `Broken`."""
        import fabric  # type: ignore[import-untyped]  # costs time that a boss without VMs need not spend
        import paramiko  # type: ignore[import-untyped]

        logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # it logs each failure with its stack
        config = fabric.Config(overrides={"load_ssh_configs": False})
        options = {
            "key_filename": str(self._key),
            "allow_agent": False,
            "look_for_keys": False,
            "banner_timeout": HANDSHAKE_S,
            "auth_timeout": HANDSHAKE_S,
        }
        connection = fabric.Connection(
            self._address, self._user, self._port, config, connect_timeout=CONNECT_S, connect_kwargs=options
        )
        self._connection = connection
        connection.client.set_missing_host_key_policy(_Pin(self._see))
        if self._host_key:
            self._pin(connection.client, paramiko)
        try:
            connection.open()
        except paramiko.BadHostKeyException as error:
            shown = fingerprint(error.key.get_base64())
            raise Broken("changed", f"{shown} instead of {fingerprint(self._host_key)}") from error
        except _OtherKey as error:
            raise Broken("changed", str(error)) from error
        except paramiko.AuthenticationException as error:
            raise Broken("denied", f"{self._user}@{self._where}: Permission denied (publickey)") from error
        except (paramiko.SSHException, EOFError) as error:
            raise Broken("closed", f"{self._where}: {_words(error)}") from error
        except (TimeoutError, OSError) as error:
            raise _no_way(self._where, error) from error
        with suppress(OSError):  # else each exchange takes 44 ms
            connection.transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _pin(self, client: Any, paramiko: Any) -> None:
        """Of several keys that it has it shows the kind that is asked for: ours."""
        kind, _, blob = self._host_key.partition(" ")
        entry = paramiko.hostkeys.HostKeyEntry.from_line(f"ecloud {kind} {blob}")
        if entry is None:
            raise Broken("changed", f"the pinned key is no key: {self._host_key[:40]}")
        name = self._address if self._port == 22 else f"[{self._address}]:{self._port}"
        client.get_host_keys().add(name, kind, entry.key)

    def _see(self, key: Any) -> None:
        self.shown = f"{key.get_name()} {key.get_base64()}"
        if self._host_key and self.shown != self._host_key:
            raise _OtherKey(f"{fingerprint(self.shown)} instead of {fingerprint(self._host_key)}")

    def run(self, command: str, given: bytes) -> str:
        """What it prints, with `given` as input. Raises `Broken`, `Refused`."""
        return self._ask(command, lambda channel: channel.sendall(given))

    def send(self, command: str, path: Path) -> None:
        """Run it with a file as input. Raises `Broken`, `Refused`."""

        def give(channel: Any) -> None:
            with path.open("rb") as file:
                while piece := file.read(CHUNK_BYTES):
                    self._limit(channel)
                    channel.sendall(piece)

        self._ask(command, give)

    def _ask(self, command: str, give: Callable[[Any], None]) -> str:
        import paramiko

        try:
            channel = self._connection.transport.open_session(timeout=self._left_s())
            try:
                channel.set_combine_stderr(True)
                self._limit(channel)
                channel.exec_command(as_root(command))
                with suppress(BrokenPipeError):  # it ended before it had read everything: it says why
                    give(channel)
                    channel.shutdown_write()
                told = self._read(channel)
                code = self._exit_code(channel)
            finally:
                channel.close()
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise Broken("broken", f"{self._where}: {_words(error)}") from error
        text = told.decode("utf-8", "replace")
        if code == NO_EXIT_CODE:
            raise Broken("broken", f"{self._where}: the connection was cut, or the command killed")
        if code != 0:
            last = text.strip().splitlines()[-1:] or [f"exit code {code}"]
            raise Refused(last[0])
        return text

    def _read(self, channel: Any) -> bytes:
        told = b""
        while True:
            self._limit(channel)
            piece = channel.recv(CHUNK_BYTES)
            if not piece:
                return told
            if len(told) < MAX_ANSWER_BYTES:
                told += piece

    def _exit_code(self, channel: Any) -> int:
        if not channel.status_event.wait(self._left_s()):
            raise TimeoutError("no exit code came")
        return int(channel.recv_exit_status())

    def _limit(self, channel: Any) -> None:
        channel.settimeout(self._left_s())

    def _left_s(self) -> float:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"the visit was not over within {VISIT_S:.0f} s")
        return left_s

    def close(self) -> None:
        """End the connection, whatever it does."""
        if self._connection is not None:
            with suppress(Exception):
                self._connection.close()
            with suppress(Exception):  # one that never was let in is not known to fabric as open
                self._connection.client.close()


class _OtherKey(Exception):
    """Another host key than the pinned one, of another kind."""


class _Pin:
    """paramiko's question what to do about a host key that it does not know."""

    def __init__(self, see: Callable[[Any], None]) -> None:
        self._see = see

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        """Take it, or raise."""
        self._see(key)


def _no_way(where: str, error: Exception) -> Broken:
    errors = getattr(error, "errors", None)  # of paramiko: what was tried, by address
    reason = next(iter(errors.values())) if errors else error
    shut = isinstance(reason, ConnectionRefusedError)
    closed = isinstance(reason, (ConnectionResetError, BrokenPipeError))
    contact = "shut" if shut else "closed" if closed else "silent"
    return Broken(contact, f"{where}: {_words(reason)}")


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
