"""Files and directories from an SFTP server to this machine: pieces of many files on their way at once, whole or not at
all. What arrived before a cut is not fetched again.

The server tells no sums: what arrives is held against sizes and times, before and afterwards.
"""

from __future__ import annotations

import os
import stat
import struct
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from datastore import sftp_connection as sftp
from datastore.directory import parts_of
from datastore.link import Again
from datastore.port import BadName, DatastoreAway, NotThere
from datastore.sftp_connection import Attributes, Missing, Refused, Reply, string
from datastore.sftp_tree import AT_ONCE, Tree, at, kind_of, text

WINDOW_BYTES = 4 << 20
"""Asked for at once: enough for 0.1 s at 40 MB/s."""


class Fetching:
    """One name to the new path `aside`. `run` may be called again after a cut, with another connection."""

    def __init__(self, name: str, aside: Path) -> None:
        self.name = name
        self._aside = aside
        self._top: Attributes | None = None
        self._rows: dict[str, Attributes] = {}
        self._whole: set[str] = set()

    def run(self, tree: Tree) -> int:
        """The bytes copied. Raises `NotThere`, `Again` where it was replaced meanwhile, `Lost`."""
        top = tree.looked_at([self.name])[self.name]
        if top is None:
            raise NotThere(self.name)
        if self._top is None:
            self._top = top
        elif self._top != top:
            raise Again(f"{self.name} was replaced while it was read")
        if kind_of(top) == "link":
            self._link(tree, self.name, self._aside)
            return 0
        if kind_of(top) == "file":
            self._files(tree, {self.name: top})
            return top.size
        self._directory(tree, top)
        return sum(found.size for found in self._rows.values() if kind_of(found) == "file")

    def _path(self, name: str) -> Path:
        return self._aside if name == self.name else self._aside / name[len(self.name) + 1 :]

    def _link(self, tree: Tree, name: str, path: Path) -> None:
        if not os.path.lexists(path):
            target = sftp.names_of(tree.send(sftp.READLINK, name).result())[0][0]
            os.symlink(text(target), path)

    def _directory(self, tree: Tree, top: Attributes) -> None:
        rows = tree.below(self.name, recursive=True)
        if self._rows and rows != self._rows:
            raise Again(f"{self.name} was replaced while it was read")
        self._rows = rows
        self._check()
        self._aside.mkdir(mode=0o700, exist_ok=True)
        for name, found in rows.items():
            if kind_of(found) == "directory":
                self._path(name).mkdir(mode=0o700, exist_ok=True)
            elif kind_of(found) == "link":
                self._link(tree, name, self._path(name))
        self._files(tree, {name: found for name, found in rows.items() if kind_of(found) == "file"})
        if tree.below(self.name, recursive=True) != rows:
            raise Again(f"{self.name} changed while it was read")
        for name, found in reversed(list(rows.items())):
            if kind_of(found) == "directory":
                _finish(self._path(name), found)
        _finish(self._aside, top)

    def _check(self) -> None:
        """Whatever a datastore tells, nothing is written but below the new path."""
        for name in self._rows:
            if "/".join(parts_of(name)) != name or not name.startswith(f"{self.name}/"):
                raise BadName(f"the datastore lists {name!r} below {self.name!r}")

    def _files(self, tree: Tree, wanted: dict[str, Attributes]) -> None:
        names = iter(name for name in wanted if name not in self._whole)
        while part := list(islice(names, AT_ONCE)):
            opening = {name: tree.send(sftp.OPEN, name, struct.pack("!II", sftp.TO_READ, 0)) for name in part}
            handles: dict[str, bytes] = {}
            try:
                for name, future in opening.items():
                    handles[name] = _opened(name, future)
                self._read(tree, {name: (handle, wanted[name]) for name, handle in handles.items()})
            finally:
                for handle in handles.values():
                    tree.connection.send(sftp.CLOSE, string(handle))

    def _read(self, tree: Tree, files: dict[str, tuple[bytes, Attributes]]) -> None:
        """All of these, in turn; the next pieces are asked for while one is awaited."""
        asked = {name: tree.connection.send(sftp.FSTAT, string(handle)) for name, (handle, _) in files.items()}
        for name, future in asked.items():
            now = sftp.attributes_of(future.result())
            if (now.size, now.mtime_s) != (files[name][1].size, files[name][1].mtime_s):
                raise Again(f"{name} was replaced while it was read")
        with ExitStack() as opened:
            writers = {}
            for name in files:
                writers[name] = writer = _Writer(self._path(name))
                opened.callback(writer.close)
            pieces = _pieces(files, writers, tree.connection.piece)
            waiting: deque[tuple[str, int, int, Future[Reply]]] = deque()
            held = 0
            while True:
                while held < WINDOW_BYTES and (piece := next(pieces, None)):
                    name, start, count = piece
                    waiting.append((name, start, count, _ask(tree, files[name][0], start, count)))
                    held += count
                if not waiting:
                    break
                name, start, count, future = waiting.popleft()
                held -= count
                data = _data(name, future)
                if len(data) < count:  # less than was asked for: the rest of it comes next
                    start, count = start + len(data), count - len(data)
                    waiting.appendleft((name, start, count, _ask(tree, files[name][0], start, count)))
                    held += count
                writers[name].write(data)
            for name, (_, found) in files.items():
                writers[name].finish(found)
                self._whole.add(name)


def _ask(tree: Tree, handle: bytes, start: int, count: int) -> Future[Reply]:
    return tree.connection.send(sftp.READ, at(handle, start) + struct.pack("!I", count), count)


def _opened(name: str, future: Future[Reply]) -> bytes:
    try:
        return sftp.handle_of(future.result())
    except Missing:
        raise Again(f"{name} was replaced while it was read") from None
    except Refused as refused:
        raise DatastoreAway(f"{name} in the datastore can't be read: {refused}") from refused


def _data(name: str, future: Future[Reply]) -> bytes:
    try:
        return sftp.data_of(future.result())
    except sftp.EndOfFile:
        raise Again(f"{name} became shorter while it was read") from None
    except Refused as refused:
        raise DatastoreAway(f"{name} in the datastore can't be read: {refused}") from refused


def _pieces(
    files: dict[str, tuple[bytes, Attributes]], writers: dict[str, _Writer], piece: int
) -> Iterator[tuple[str, int, int]]:
    """(name, start, count) of all that is not here yet."""
    for name, (_, found) in files.items():
        for start in range(writers[name].at, found.size, piece):
            yield name, start, min(piece, found.size - start)


class _Writer:
    """A local file that is written from where an earlier try ended to its end, holes kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b", buffering=0)
        self.at = self._file.seek(0, os.SEEK_END)

    def write(self, data: bytes) -> None:
        if data.count(0) == len(data):
            self._file.truncate(self.at + len(data))
            self._file.seek(len(data), os.SEEK_CUR)
        else:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        self.at += len(data)

    def finish(self, found: Attributes) -> None:
        self.close()
        if self.at != found.size:
            raise Again(f"{self._path} did not arrive as it was sent")
        _finish(self._path, found)

    def close(self) -> None:
        self._file.close()


def _finish(path: Path, found: Attributes) -> None:
    os.utime(path, (found.mtime_s, found.mtime_s))
    os.chmod(path, stat.S_IMODE(found.mode))
