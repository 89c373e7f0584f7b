"""A datastore on another machine, reached over SSH through its gate (`datastore/gate.py`).

Offers all of `port.Publisher` to the boss, whose own key starts the gate. A worker's certificate starts the gate with
the worker's name, and publishing is answered with an error. All threads share one connection, made when first needed
and again after a loss. Never asks for a password, and ignores agents and the user's configuration.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from datastore.directory import parts_of
from datastore.gate import AWAY, UNLISTED
from datastore.port import DatastoreAway, Entry, NotThere, Promotion
from datastore.ssh import fetching, fetching_small, storing
from datastore.ssh.access import Access, SshAddress, ssh_command
from datastore.ssh.carrier import Carrier, Lost
from datastore.ssh.link import Link, Pipeline, ask
from datastore.ssh.sshd_limits import Limits, read_limits

STALL_S = 60.0
PATIENCE_S = 10.0
NAMES_AT_ONCE = 20_000
CHARACTERS_AT_ONCE = 4_000_000
PROMOTED_AT_ONCE = 20_000
"""Entries in one request: a few MB of JSON."""


class SshDatastore:
    """See `datastore.port`. `stall_s`: a connection without progress for this long is replaced; `patience_s`: a call
    without progress for this long raises `DatastoreAway` with the reason.

    `durable`: whether promoted files are flushed to the datastore's disk before they get their final names.
    """

    def __init__(
        self,
        address: SshAddress,
        access: Access | Callable[[], Access],
        *,
        stall_s: float = STALL_S,
        patience_s: float = PATIENCE_S,
        durable: bool = True,
    ) -> None:
        self.address = address
        self._access = access
        self.durable = durable
        where = f"the datastore {address}"
        self._link = Link(lambda: Carrier(ssh_command(address, self.access()), where), where, stall_s, patience_s)
        self._client = secrets.token_hex(8)

    def access(self) -> Access:
        """The access that opens it now."""
        return self._access() if callable(self._access) else self._access

    def limits(self) -> Limits | None:
        """How many connections its sshd accepts at once; None if that cannot be read."""
        return read_limits(ssh_command(self.address, replace(self.access(), gate="exec /bin/sh")))

    def close(self) -> None:
        """End the connection; a further call makes a new one."""
        self._link.close()

    def hello(self) -> dict[str, object]:
        """The gate's first frame: `gate` (version), `python`, `clock_s`, `role`, `name`; and `ahead_s`, how far its
        clock was ahead of this machine's when the connection was made.

        Raises `DatastoreAway`.
        """
        try:
            return dict(self._link.connected().hello)
        except Lost as lost:
            raise DatastoreAway(lost.text, lost.remedy) from lost

    # --- reading ------------------------------------------------------------------------------------

    def stat(self, names: list[str]) -> list[Entry | None]:
        """See `port.Reader.stat`. Includes a file's `sha256` if it is known without reading the file."""
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
        """Fetch several files in one request; None if one is no file, larger than `most_bytes`, or missing."""
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

    def put(self, local: Path, path: str) -> list[Entry]:
        """See `port.Publisher.put`. Repeating an interrupted call from this machine resumes it."""
        where = f"{socket.gethostname()}\0{local.absolute()}\0{path}"
        with _held(local) as alone:
            # Leave alone what another command puts now: two writers would spoil an unfinished file.
            whose = hashlib.sha256(os.fsencode(where)).hexdigest()[:24] if alone else secrets.token_hex(12)
            stage = f"put/{whose}"
            entries = self.store(stage, local, path)
            problem = self.promote([Promotion(stage, tuple(entries))])[0]
            if problem is not None:
                self.drop_stage(stage)  # it cannot be resumed
                raise DatastoreAway(problem)
            return entries

    def remove(self, path: str) -> None:
        """See `port.Publisher.remove`."""
        ask(self._link, {"do": "remove", "name": normalised(path)}, path)

    def free_mb(self) -> float:
        """See `port.Publisher.free_mb`."""
        return float(ask(self._link, {"do": "free"})[0]["free"]) / 1e6


def normalised(name: str) -> str:
    """A name normalised. Raises `BadName`."""
    return "/".join(parts_of(name))


def _bounded(names: list[str]) -> Iterator[list[str]]:
    """Names in lists that each fit into one request, even if fully escaped."""
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
    """Entries for the gate. Of a very large promotion only those that move: files were verified as they arrived."""
    rows: list[list[object]] = []
    top = ""
    unlisted = len(promotion.entries) > PROMOTED_AT_ONCE
    for entry in promotion.entries:
        inside = bool(top) and entry.path.startswith(top + "/")
        if inside and unlisted:
            continue
        if entry.kind == "directory" and not inside:
            top = entry.path
        rows.append(
            [entry.path, entry.kind, entry.size, UNLISTED if entry.kind == "directory" and unlisted else entry.sha256]
        )
    return rows


@contextmanager
def _held(local: Path) -> Iterator[bool]:
    """Hold a lock on a local file or directory. Yields False if another process on this machine has it."""
    try:
        handle = os.open(local, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield False  # a link, or unreadable
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
    """Raise errors of this machine's disk as `DatastoreAway` that names this machine: they are waited for as well."""
    try:
        yield
    except OSError as error:
        if error.errno in AWAY and error.filename is not None:
            raise DatastoreAway(f"{error.filename} cannot be used on this machine: {error.strerror}") from error
        if error.errno in AWAY:
            raise DatastoreAway(f"{local} cannot be copied: {error.strerror}") from error
        raise
