"""Files and directories from this machine into a stage behind a gate: hashed once, while they are read. Of large ones
what an earlier call brought there is not sent again."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from datastore.gate import MODES, PIECE
from datastore.local_tree import Item, walk
from datastore.partial import sum_of
from datastore.port import Entry
from datastore.ssh.carrier import Lost
from datastore.ssh.link import Again, Link, Pipeline, ask

SMALL = 1 << 18
"""Larger files travel on their own, in pieces."""
BATCH_BYTES = 1 << 20
BATCH_ITEMS = 200
ASKED_FROM = 8 << 20
"""For files and directories of at least this size, the gate is asked how much arrived before."""
TIMES = 3
"""How often to begin again where a file changes while it is read."""
KINDS = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "link": stat.S_IFLNK}
_ZEROS = bytes(PIECE)


def store(link: Link, client: str, stage: str, local: Path, path: str) -> list[Entry]:
    """Put `local` below the stage under its future name; what was staged, parents first."""
    for _ in range(TIMES):
        try:
            return _Store(link, client, stage, list(walk(local, path))).run()
        except Again as again:
            told = str(again)
    raise OSError(errno.EAGAIN, f"{local} cannot be stored: {told}")


class _Store:
    """One local file or directory into one stage."""

    def __init__(self, link: Link, client: str, stage: str, items: list[Item]) -> None:
        self._link = link
        self._pipeline = Pipeline(link)
        self._client = client
        self._stage = stage
        self._items = items
        self._path = items[0].name
        self._batch: list[Any] = []
        self._body = bytearray()
        self._entries: list[Entry] = []

    def run(self) -> list[Entry]:
        """What was staged. Raises `Again`."""
        directories: list[list[Any]] = []
        staged = self._staged()
        for item in self._items:
            local, name, info = item.local, item.name, item.info
            mode = stat.S_IMODE(info.st_mode)
            if item.is_directory:
                if name == self._path:
                    self._clear(staged)
                self._add(["directory", name])
                directories.append(["seal", name, mode, info.st_mtime_ns])
                self._entries.append(Entry(name, "directory", 0, mode, info.st_mtime))
            elif item.is_file:
                sha256 = _there(local, info, staged.get(name))
                if not sha256:
                    sha256 = self._small(local, name, info) if info.st_size <= SMALL else self._large(local, name, info)
                self._entries.append(Entry(name, "file", info.st_size, mode, info.st_mtime, sha256))
            else:
                self._add(["link", name, item.target])
                self._entries.append(Entry(name, "link", 0, 0o777, info.st_mtime, item.target))
        for seal in reversed(directories):
            self._add(seal)
        self._flush()
        self._drain()
        return self._entries

    def _staged(self) -> dict[str, list[Any]]:
        """Rows by name of what an earlier call staged of a large directory, where the gate can tell."""
        total = sum(item.info.st_size for item in self._items if item.is_file)
        if not self._items[0].is_directory or total < ASKED_FROM:
            return {}
        try:
            if "staged" not in self._link.connected().hello.get("can", ()):
                return {}
        except Lost:
            return {}
        request = {"do": "staged", "client": self._client, "stage": self._stage, "path": self._path}
        rows = {row[0]: row[1:] for frame in ask(self._link, request, self._path) for row in frame["rows"]}
        sealed = any(row[0] == "directory" and row[2] & 0o700 != 0o700 for row in rows.values())
        return {} if sealed else rows

    def _clear(self, staged: dict[str, list[Any]]) -> None:
        """What was staged goes, but what is staged of this very directory."""
        if not staged:
            self._add(["clear", self._path])
            return
        kinds = {item.name: stat.S_IFMT(item.info.st_mode) for item in self._items}
        gone = ""
        for name, row in staged.items():
            if (not gone or not name.startswith(f"{gone}/")) and kinds.get(name) != KINDS[row[0]]:
                self._add(["clear", name])
                gone = name

    def _add(self, item: list[Any], data: bytes = b"") -> None:
        if len(self._body) + len(data) > BATCH_BYTES or len(self._batch) >= BATCH_ITEMS:
            self._flush()
        self._batch.append(item)
        self._body += data

    def _flush(self) -> None:
        if self._batch:
            self._send(self._batch, self._body)
            self._batch, self._body = [], bytearray()

    def _send(self, items: list[Any], body: bytes | bytearray) -> None:
        while self._pipeline.is_full:
            self._pipeline.take()
        request = {"do": "put", "client": self._client, "stage": self._stage, "items": items}
        self._pipeline.send(request, memoryview(body), name=self._path)

    def _drain(self) -> None:
        while self._pipeline:
            self._pipeline.take()

    def _small(self, local: Path, name: str, info: os.stat_result) -> str:
        with local.open("rb", buffering=0) as file:
            data = file.read(info.st_size + 1)
        if len(data) != info.st_size:
            raise Again(f"{local} changed while it was read")
        sha256 = hashlib.sha256(data).hexdigest()
        self._add(_piece(name, info, 0, len(data), sha256), data)
        return sha256

    def _large(self, local: Path, name: str, info: os.stat_result) -> str:
        self._flush()
        at = self._arrived(name, info) if info.st_size >= ASKED_FROM else 0
        digest = hashlib.sha256()
        with local.open("rb", buffering=0) as file:
            done = 0
            while done < info.st_size:
                data = file.read(PIECE)
                digest.update(data)
                if not data or done + len(data) > info.st_size:
                    raise Again(f"{local} changed while it was read")
                if done >= at:
                    sha256 = digest.hexdigest() if done + len(data) == info.st_size else ""
                    if len(data) == PIECE and data == _ZEROS:
                        self._send([_piece(name, info, done, -PIECE, sha256)], b"")
                    else:
                        self._send([_piece(name, info, done, len(data), sha256)], data)
                done += len(data)
        if local.stat().st_mtime_ns != info.st_mtime_ns:
            raise Again(f"{local} changed while it was read")
        return digest.hexdigest()

    def _arrived(self, name: str, info: os.stat_result) -> int:
        """Bytes that an earlier try brought there: whole pieces, and never all, as the last one ends the file."""
        self._drain()
        request = {"do": "part", "client": self._client, "stage": self._stage, "path": name}
        self._pipeline.send({**request, "size": info.st_size, "mtime_ns": info.st_mtime_ns}, name=name)
        have = int(self._pipeline.take()[0][0]["have"])
        return min(have, info.st_size - 1) // PIECE * PIECE


def _there(local: Path, info: os.stat_result, row: list[Any] | None) -> str:
    """The sum of a local file, where the very same is staged; else empty."""
    if row is None or row[:2] != ["file", info.st_size] or row[3] != info.st_mtime_ns or not row[4]:
        return ""
    if row[2] != stat.S_IMODE(info.st_mode) & MODES:
        return ""
    return str(row[4]) if sum_of(local) == row[4] else ""


def _piece(name: str, info: os.stat_result, at: int, count: int, sha256: str) -> list[Any]:
    return ["piece", name, info.st_size, stat.S_IMODE(info.st_mode), info.st_mtime_ns, at, count, sha256]
