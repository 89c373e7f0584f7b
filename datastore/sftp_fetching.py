"""Files and directories from an SFTP server to this machine: pieces of many files on their way at once, whole or not at
all. What arrived before a cut is not fetched again, nor what an earlier call left (`datastore/partial.py`).

The server tells no sums: what arrives is held against sizes and times, before and afterwards. What an earlier call left
is compared with the datastore's bytes when it is whole (`datastore/sftp_comparing.py`).
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from datastore import sftp_connection as sftp
from datastore.directory import parts_of
from datastore.partial import LARGE, Listed, Part, PartTree, is_doubtful, seal
from datastore.port import BadName, DatastoreAway, NotThere
from datastore.sftp_connection import Attributes, Missing, Refused, Reply, string
from datastore.sftp_tree import AT_ONCE, Tree, at, kind_of, text
from datastore.ssh.link import Again

WINDOW_BYTES = 4 << 20
"""Asked for at once: enough for 0.1 s at 40 MB/s."""


class Fetching:
    """One name to where its part is put. `run` may be called again after a cut, with another connection.

    `where`: names the datastore. `unlike`: of local files, given with their size, those that are not what the datastore
    has under their name.
    """

    def __init__(
        self, name: str, where: str, part: Part, unlike: Callable[[Tree, dict[str, tuple[Path, int]]], list[str]]
    ) -> None:
        self.name = name
        self._where = where
        self._part = part
        self._unlike = unlike
        self._top: Attributes | None = None
        self._rows: dict[str, Attributes] = {}
        self._tree: PartTree | None = None
        self._begun: dict[str, Path] = {}
        """Where each file is put that is on its way or whole."""
        self._whole: set[str] = set()
        self._left: set[str] = set()
        """Of which an earlier call left something."""

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
            target = sftp.names_of(tree.send(sftp.READLINK, self.name).result())[0][0]
            os.symlink(text(target), self._part.link())
            return 0
        if kind_of(top) == "file":
            self._files(tree, {self.name: top})
            return top.size
        self._directory(tree, top)
        return sum(found.size for found in self._rows.values() if kind_of(found) == "file")

    def _token(self, name: str, found: Attributes | None = None) -> str:
        named = f"{self._where}\0{name}"
        version = "" if found is None else f"-{found.size}.{found.mtime_s}"
        return hashlib.blake2b(os.fsencode(named), digest_size=8).hexdigest() + version

    def _directory(self, tree: Tree, top: Attributes) -> None:
        rows = tree.below(self.name, recursive=True)
        if self._rows and rows != self._rows:
            raise Again(f"{self.name} was replaced while it was read")
        if self._tree is None:
            self._rows = rows
            self._check()
            self._take_up(tree)
        self._files(tree, {name: found for name, found in rows.items() if kind_of(found) == "file"})
        if tree.below(self.name, recursive=True) != rows:
            raise Again(f"{self.name} changed while it was read")
        assert self._tree is not None
        self._tree.seal({self._below(name): _listed(found) for name, found in rows.items()}, _listed(top))

    def _below(self, name: str) -> str:
        return name[len(self.name) + 1 :]

    def _take_up(self, tree: Tree) -> None:
        """The directories and links; and what an earlier call left, but small files: to compare them costs as much."""
        links = {name: tree.send(sftp.READLINK, name) for name, one in self._rows.items() if kind_of(one) == "link"}
        targets = {name: text(sftp.names_of(future.result())[0][0]) for name, future in links.items()}
        part = self._part.tree(self._token(self.name))
        listed = {self._below(name): _listed(found, targets.get(name, "")) for name, found in self._rows.items()}
        for below in part.fit(listed):
            path = part.top / below
            if listed[below].size <= LARGE or is_doubtful(path.lstat()):
                path.unlink()
                continue
            name = f"{self.name}/{below}"
            self._begun[name] = path
            self._whole.add(name)
            self._left.add(name)
        self._tree = part

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
        self._compare(tree, wanted)

    def _compare(self, tree: Tree, wanted: dict[str, Attributes]) -> None:
        """What an earlier call left is a part of this very content. Raises `Again`."""
        unlike = self._unlike(tree, {name: (self._begun[name], wanted[name].size) for name in self._left})
        for name in unlike:
            self._begun[name].unlink()
        if unlike:
            raise Again(f"{unlike[0]} was replaced since a part of it was fetched")
        self._left.clear()

    def _begin(self, name: str, found: Attributes) -> Path:
        """Where a file is put until it is whole."""
        path = self._begun.get(name)
        if path is not None:
            return path
        if self._tree is None:
            handle = self._part.file(self._token(name, found), found.size, False)
            path = self._part.path
        elif found.size <= LARGE:
            path = self._begun[name] = self._tree.top / self._below(name)
            return path
        else:
            path = self._tree.unfinished(name, self._token(name, found))
            handle = self._tree.opened(path, found.size, False)
        if os.fstat(handle).st_size:
            self._left.add(name)
        os.close(handle)
        self._begun[name] = path
        return path

    def _end(self, name: str) -> None:
        """It is whole."""
        self._whole.add(name)
        if self._tree is not None:
            path = self._tree.top / self._below(name)
            if path != self._begun[name]:
                os.rename(self._begun[name], path)
                self._begun[name] = path

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
                writers[name] = writer = _Writer(self._begin(name, files[name][1]))
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
                self._end(name)


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
        seal(self._path, stat.S_IMODE(found.mode), found.mtime_s * 10**9)

    def close(self) -> None:
        self._file.close()


def _listed(found: Attributes, target: str = "") -> Listed:
    return Listed(kind_of(found), found.size, stat.S_IMODE(found.mode), found.mtime_s * 10**9, target)
