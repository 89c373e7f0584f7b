"""A datastore on another machine, reached over SSH through its gate (`datastore/gate.py`).

All of `port.Publisher` for the boss, whose own key starts the gate; for a worker, whose certificate starts it with the
worker's name, what publishes is answered with an error. One connection is kept and shared by all threads; it is
made when first needed, and again after a cut. Nothing asks for a password, an agent or the user's own configuration.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shlex
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from datastore.directory import parts_of
from datastore.gate import AWAY
from datastore.port import DatastoreAway, Entry, NotThere, Promotion
from datastore.ssh import fetching, fetching_small, storing
from datastore.ssh.carrier import Carrier, Lost
from datastore.ssh.link import Link, Pipeline, ask
from datastore.ssh.process_carrier import ProcessCarrier
from datastore.ssh.sshd_limits import Limits, read_limits

ALIAS = "ecloud-datastore"
"""The datastore's name in its known_hosts file, whatever its address."""
CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes256-ctr,aes128-ctr"
"""With the AES of the processor 40 % faster than the default for large files."""
STALL_S = 60.0
PATIENCE_S = 10.0
CONNECT_S = 20
ALIVE_S = 15
NAMES_AT_ONCE = 20_000
CHARACTERS_AT_ONCE = 4_000_000
PROMOTED_AT_ONCE = 20_000
"""Entries in one request: some MB of JSON."""
_ADDRESS = re.compile(
    r"(?P<user>[A-Za-z0-9_][\w.-]*)@(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<host>[A-Za-z0-9_][\w.-]*))"
    r"(?::(?P<port>\d{1,5}))?:(?P<root>/[^\0\n]*)"
)


@dataclass(frozen=True)
class SshAddress:
    """`user@host[:port]:/root`; an IPv6 address stands in brackets."""

    user: str
    host: str
    port: int
    root: str

    @classmethod
    def parse(cls, text: str) -> SshAddress:
        """Raises `ValueError` with a sentence."""
        found = _ADDRESS.fullmatch(text)
        port = int(found["port"] or 22) if found else 0
        if not found or not 0 < port < 65536:
            raise ValueError(f"{text!r} is no address of a datastore: user@host[:port]:/root")
        root = found["root"].rstrip("/") or "/"
        if ".." in root.split("/"):
            raise ValueError(f"the root {root!r} of a datastore holds no ..")
        return cls(found["user"], found["six"] or found["host"], port, root)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == 22 else f":{self.port}"
        return f"{self.user}@{host}{port}:{self.root}"


@dataclass(frozen=True)
class Access:
    """What opens a datastore. `gate`: the command that starts it (a certificate brings its own and needs none)."""

    key: Path
    known_hosts: Path
    certificate: Path | None = None
    gate: str = ""


def gate_command(python: str, gate: str, root: str, name: str | None = None, until_s: float | None = None) -> str:
    """The shell command that starts the gate: for the worker `name`, or for the boss. `until_s`: epoch seconds."""
    words = ["exec", python, "-IS", gate, "--root", root]
    if until_s is not None:
        words += ["--until", str(int(until_s))]
    return shlex.join([*words, "boss"] if name is None else [*words, "worker", name])


def ssh_command(address: SshAddress, access: Access) -> list[str]:
    """The OpenSSH client, told everything: no file of the user's or of the machine's changes what it does."""
    options = {
        "BatchMode": "yes", "IdentitiesOnly": "yes", "IdentityAgent": "none", "IdentityFile": _quoted(access.key),
        "UserKnownHostsFile": _quoted(access.known_hosts), "GlobalKnownHostsFile": "none", "HostKeyAlias": ALIAS,
        "StrictHostKeyChecking": "yes", "UpdateHostKeys": "no", "CheckHostIP": "no", "VerifyHostKeyDNS": "no",
        "PreferredAuthentications": "publickey", "ClearAllForwardings": "yes", "ForwardAgent": "no",
        "ControlMaster": "no", "ControlPath": "none", "PermitLocalCommand": "no", "EscapeChar": "none",
        "ConnectTimeout": str(CONNECT_S), "ServerAliveInterval": str(ALIVE_S), "ServerAliveCountMax": "4",
        "Ciphers": CIPHERS, "Compression": "no", "LogLevel": "ERROR",
    }  # fmt: skip
    if access.certificate is not None:
        options["CertificateFile"] = _quoted(access.certificate)
    words = ["ssh", "-F", "none", "-T"]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    return [*words, "-p", str(address.port), "-l", address.user, "--", address.host, access.gate or "gate"]


def sftp_command(address: SshAddress, access: Access) -> list[str]:
    """The OpenSSH client that asks for the server's SFTP."""
    words = ssh_command(address, replace(access, gate="sftp"))
    return [words[0], "-s", *words[1:]]


class Carry(Protocol):
    """Starts what serves a datastore and carries the bytes: `by_process`, or `fabric_carrier.by_fabric`."""

    def __call__(
        self, address: SshAddress, access: Access, where: str, stall_s: float, *, by_sftp: bool = False
    ) -> Carrier:
        """`where`: its name for people; `stall_s`: how long to wait for a connection; `by_sftp`: the server's SFTP is
        wanted, not the gate. Raises `Lost`."""


def by_process(
    address: SshAddress, access: Access, where: str, stall_s: float, *, by_sftp: bool = False
) -> ProcessCarrier:
    """By an OpenSSH process. It starts at once: whether it gets there, its greeting tells."""
    return ProcessCarrier(sftp_command(address, access) if by_sftp else ssh_command(address, access), where)


def _quoted(path: Path) -> str:
    """A path as a value of ssh's options: spaces are kept, percent signs mean themselves."""
    return '"' + str(path.absolute()).replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"') + '"'


class OverSsh(ABC):
    """What is the same of every datastore over SSH, whatever serves it there."""

    address: SshAddress

    def __init__(self, address: SshAddress, access: Access | Callable[[], Access]) -> None:
        self.address = address
        self._access = access

    def access(self) -> Access:
        """What opens it now."""
        return self._access() if callable(self._access) else self._access

    def limits(self) -> Limits | None:
        """How many connections its sshd takes in at once; None where that can't be read."""
        return read_limits(ssh_command(self.address, replace(self.access(), gate="exec /bin/sh")))

    @abstractmethod
    def close(self) -> None:
        """End the connection; a further call makes another."""

    @abstractmethod
    def listing(self, name: str = "", recursive: bool = False) -> list[Entry]:
        """See `port.Reader.listing`."""

    @abstractmethod
    def store(self, stage: str, local: Path, path: str) -> list[Entry]:
        """See `port.Stager.store`."""

    @abstractmethod
    def drop_stage(self, stage: str) -> None:
        """See `port.Stager.drop_stage`."""

    @abstractmethod
    def promote(self, promotions: list[Promotion]) -> list[str | None]:
        """See `port.Publisher.promote`."""

    def put(self, local: Path, path: str) -> list[Entry]:
        """See `port.Publisher.put`. One that was cut off goes on where it was when it is put again from here."""
        where = f"{socket.gethostname()}\0{local.absolute()}\0{path}"
        with _held(local) as alone:
            # What another command puts just now is left to it: two that write one unfinished file would spoil it.
            whose = hashlib.sha256(os.fsencode(where)).hexdigest()[:24] if alone else secrets.token_hex(12)
            stage = f"put/{whose}"
            entries = self.store(stage, local, path)
            problem = self.promote([Promotion(stage, tuple(entries))])[0]
            if problem is not None:
                self.drop_stage(stage)  # it is of no use to go on with
                raise DatastoreAway(problem)
            return entries


class SshDatastore(OverSsh):
    """See `datastore.port`. `stall_s`: a connection on which nothing moves for so long is ended and made again;
    `patience_s`: a call that makes no progress for so long raises `DatastoreAway`, with the reason.

    `durable`: what is promoted is on the datastore's disk before it gets its final name. `carry`: what its bytes go
    through.
    """

    def __init__(
        self,
        address: SshAddress,
        access: Access | Callable[[], Access],
        *,
        stall_s: float = STALL_S,
        patience_s: float = PATIENCE_S,
        durable: bool = True,
        carry: Carry = by_process,
    ) -> None:
        super().__init__(address, access)
        self.durable = durable
        where = f"the datastore {address}"
        self._link = Link(lambda: carry(address, self.access(), where, stall_s), where, stall_s, patience_s)
        self._client = secrets.token_hex(8)

    def close(self) -> None:
        """End the connection; a further call makes another."""
        self._link.close()

    def hello(self) -> dict[str, object]:
        """What the gate said of itself: `gate` (version), `python`, `clock_s`, `role`, `name`; and `ahead_s`, how far
        its clock was ahead of this machine's when the connection was made.

        Raises `DatastoreAway`.
        """
        try:
            return dict(self._link.connected().hello)
        except Lost as lost:
            raise DatastoreAway(str(lost)) from lost

    # --- reading ------------------------------------------------------------------------------------

    def stat(self, names: list[str]) -> list[Entry | None]:
        """See `port.Reader.stat`. A file's `sha256` is told where it is known without reading it."""
        asked_for = [normalised(name) for name in names]
        pipeline = Pipeline(self._link)
        found: list[Entry | None] = []
        for asked in _bounded(asked_for):
            pipeline.send({"do": "stat", "names": asked}, note=asked)
        while pipeline:
            frames, _, asked = pipeline.take()
            for name, row in zip(asked, frames[0]["rows"]):
                found.append(None if row is None else fetching.entry_of(name, row))
        return found

    def fetch(self, name: str, to: Path) -> int:
        """See `port.Reader.fetch`."""
        source = normalised(name)
        with told_apart(to):
            return fetching.fetch(self._link, source, to)

    def fetch_small(self, wanted: list[tuple[str, Path]], most_bytes: int) -> list[Entry] | None:
        """Fetch several files in one request; None where one is no file, larger than that, or not there."""
        with told_apart(wanted[0][1].parent):
            return fetching_small.fetch_small(self._link, [(normalised(name), to) for name, to in wanted], most_bytes)

    def listing(self, name: str = "", recursive: bool = False) -> list[Entry]:
        """See `port.Reader.listing`."""
        top = normalised(name) if name else ""
        frames = ask(self._link, {"do": "list", "name": top, "recursive": recursive}, top)
        entries = [fetching.entry_of(row[0], row[1:]) for frame in frames for row in frame["rows"]]
        return sorted(entries, key=lambda entry: entry.path)

    # --- staging ------------------------------------------------------------------------------------

    def store(self, stage: str, local: Path, path: str) -> list[Entry]:
        """See `port.Stager.store`."""
        final = normalised(path)
        normalised(stage)
        if not os.path.lexists(local):
            raise NotThere(str(local))
        with told_apart(local):
            return storing.store(self._link, self._client, stage, local, final)

    def drop_stage(self, stage: str) -> None:
        """See `port.Stager.drop_stage`."""
        normalised(stage)
        ask(self._link, {"do": "drop_stage", "stage": stage}, stage)

    # --- publishing ---------------------------------------------------------------------------------

    def promote(self, promotions: list[Promotion]) -> list[str | None]:
        """See `port.Publisher.promote`."""
        pipeline = Pipeline(self._link)
        told: list[str | None] = []
        batch: list[object] = []
        entries = 0

        def flush() -> None:
            if batch:
                pipeline.send({"do": "promote", "sync": self.durable, "promotions": batch.copy()})
                batch.clear()

        for promotion in promotions:
            rows = _rows(promotion)
            if entries + len(rows) > PROMOTED_AT_ONCE:
                flush()
                entries = 0
            batch.append([promotion.stage, rows])
            entries += len(rows) + 1
        flush()
        while pipeline:
            told += pipeline.take()[0][0]["told"]
        return told

    def stages(self) -> list[str]:
        """See `port.Publisher.stages`."""
        return list(ask(self._link, {"do": "stages"})[0]["stages"])

    def free_mb(self) -> float:
        """See `port.Publisher.free_mb`."""
        return float(ask(self._link, {"do": "free"})[0]["free"]) / 1e6


def normalised(name: str) -> str:
    """A name normalised. Raises `BadName`."""
    return "/".join(parts_of(name))


def _bounded(names: list[str]) -> Iterator[list[str]]:
    """Names in lists that fit into one request each, escaped as they may be."""
    batch: list[str] = []
    held = 0
    for name in names:
        if len(batch) >= NAMES_AT_ONCE or held + len(name) > CHARACTERS_AT_ONCE:
            yield batch
            batch, held = [], 0
        batch.append(name)
        held += len(name)
    if batch:
        yield batch


def _rows(promotion: Promotion) -> list[list[object]]:
    """Entries for the gate. Of a very large directory only what moves: its files were verified as they arrived."""
    rows: list[list[object]] = []
    top = ""
    for entry in promotion.entries:
        inside = bool(top) and entry.path.startswith(top + "/")
        if inside and len(promotion.entries) > PROMOTED_AT_ONCE:
            continue
        if entry.kind == "directory" and not inside:
            top = entry.path
        rows.append([entry.path, entry.kind, entry.size, entry.sha256 if entry.kind == "file" else ""])
    return rows


@contextmanager
def _held(local: Path) -> Iterator[bool]:
    """Whether nobody else on this machine holds it; meanwhile nobody else does."""
    try:
        handle = os.open(local, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield False  # a link, or what can't be read
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


@contextmanager
def told_apart(local: Path) -> Iterator[None]:
    """What is wrong on this side is waited for as well, under its own name."""
    try:
        yield
    except OSError as error:
        if error.errno in AWAY and error.filename is not None:
            raise DatastoreAway(f"{error.filename} can't be used on this machine: {error.strerror}") from error
        if error.errno in AWAY:
            raise DatastoreAway(f"{local} can't be copied: {error.strerror}") from error
        raise
