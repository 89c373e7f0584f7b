"""Files and directories from a gate to this machine: in ranges, many on their way at once, whole or not at all.

A single file that was cut off stays beside its target as `.*.part`, named after the very file it is a part of: the next
call for it goes on there, unless it was replaced meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from pathlib import Path
from typing import Any

from datastore.directory import parts_of, remove
from datastore.fetching_small import write_new
from datastore.gate import PIECE
from datastore.link import Again, Link, Pipeline
from datastore.port import BadName, DatastoreAway, Entry, NotThere

SMALL = 1 << 18
"""Larger files are asked for by themselves, in ranges."""
MANY_BYTES = 1 << 20
MANY_FILES = 200
TIMES = 5
"""How often to begin again where a file is replaced while it is read."""
_ZEROS = bytes(PIECE)

Row = list[Any]


def entry_of(name: str, row: Row) -> Entry:
    """A gate's row as an entry."""
    return Entry(name, row[0], row[1], row[2], row[3] / 1e9, row[4])


def fetch(link: Link, name: str, to: Path) -> int:
    """Copy to the new path `to`; the bytes copied. Raises what `port.Reader.fetch` does."""
    to.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(to)
    try:
        for _ in range(TIMES):
            try:
                copied = _Fetch(link, name, part).run()
            except Again:
                part.drop()
                continue
            remove(to)
            os.rename(part.path, to)
            part.drop()
            return copied
        raise DatastoreAway(f"{name} changed {TIMES} times while it was read")
    except DatastoreAway:
        part.keep()
        raise
    except BaseException:
        part.drop()
        raise
    finally:
        part.close()


class _Part:
    """Where what arrives is put until it is whole: a new directory or link, or a file that may have begun earlier."""

    def __init__(self, to: Path) -> None:
        self._to = to
        digest = hashlib.blake2b(os.fsencode(to.name), digest_size=8).hexdigest()
        self._stem = f".{digest}-"
        self.path = to.with_name(f"{self._stem}{os.getpid()}.part")
        self._handle: int | None = None
        remove(self.path)

    def file(self, token: str, row: Row) -> int:
        """A handle of the file that `token` means, opened for what is lacking. What another process writes just now is
        left to it."""
        self.drop()
        self.path = self._to.with_name(f"{self._stem}{token}.part")
        for path in self._to.parent.glob(f"{self._stem}*.part"):
            if path != self.path and _is_nobodys(path):
                remove(path)
        self._handle = _locked(self.path)
        if self._handle is None:
            self.path = self._to.with_name(f"{self._stem}{token}-{os.getpid()}.part")
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        info = os.fstat(self._handle)
        # After a crash of the machine a file may hold zeros where it never was written: only its sum would tell.
        if info.st_size > row[1] or (info.st_ctime < _booted_s() and not row[4]):
            os.ftruncate(self._handle, 0)
        return os.dup(self._handle)

    def keep(self) -> None:
        """It goes on another time, where it is a file and anything of it is here."""
        if self._handle is None or not os.fstat(self._handle).st_size:
            self.drop()

    def drop(self) -> None:
        """Remove it."""
        self.close()
        remove(self.path)

    def close(self) -> None:
        """Whatever happened."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _locked(path: Path) -> int | None:
    """A handle of the file, made where there is none; None where another has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_nlink:  # else who had it has just finished it
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


def _is_nobodys(path: Path) -> bool:
    """Whether no process writes this part of a file now."""
    with contextlib.suppress(OSError):
        handle = _locked(path) if path.is_file() and not path.is_symlink() else None
        if handle is not None:
            os.close(handle)
            return True
    return False


def _booted_s() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


class _File:
    """A local file that is written from its start to its end, holes kept, hashed where there is a sum to compare.

    `handle`: of one that has begun earlier; else it is a new one.
    """

    def __init__(self, path: Path, row: Row, handle: int | None = None) -> None:
        self.at = 0
        self._row = row
        self._path = path
        self._file = path.open("xb", buffering=0) if handle is None else os.fdopen(handle, "r+b", buffering=0)
        self._digest = hashlib.sha256() if row[4] else None
        while handle is not None and (piece := self._file.read(PIECE)):
            self.at += len(piece)
            if self._digest:
                self._digest.update(piece)

    def begin(self, frame: dict[str, Any], body: bytearray) -> None:
        """The first range, of which a part or all may be here."""
        hole = frame.get("hole", 0)
        if self.at < max(hole, len(body)):
            self.write({"hole": hole - self.at} if hole else {}, body[self.at :])

    def write(self, frame: dict[str, Any], body: bytearray) -> None:
        """The next range."""
        if hole := frame.get("hole", 0):
            if self._digest:
                self._digest.update(_ZEROS[:hole])
            self._file.seek(hole, os.SEEK_CUR)
            self.at += hole
            return
        view = memoryview(body)
        while view:
            view = view[self._file.write(view) :]
        if self._digest:
            self._digest.update(body)
        self.at += len(body)

    def finish(self) -> None:
        """Times and permissions. Raises `Again` where it is not what the datastore noted."""
        self._file.truncate(self.at)
        self.close()
        if self.at != self._row[1] or (self._digest and self._digest.hexdigest() != self._row[4]):
            raise Again(f"{self._path} did not arrive as it was sent")
        finish(self._path, self._row)

    def close(self) -> None:
        """Whatever happened."""
        self._file.close()


def finish(path: Path, row: Row) -> None:
    """Permissions and times of a file or directory."""
    os.utime(path, ns=(row[3], row[3]))
    os.chmod(path, row[2])


class _Fetch:
    """One name to one new path."""

    def __init__(self, link: Link, name: str, part: _Part) -> None:
        self._pipeline = Pipeline(link)
        self._name = name
        self._part = part
        self._aside = part.path
        self._open: dict[str, _File] = {}

    def run(self) -> int:
        """The bytes copied. Raises `Again`."""
        frame, body = self._ask(self._name)
        row = frame["row"]
        try:
            if row[0] == "link":
                os.symlink(row[4], self._aside)
                return 0
            if row[0] == "file":
                handle = self._part.file(frame["token"], row)
                self._large(self._name, _File(self._part.path, row, handle), frame, body)
                return int(row[1])
            return self._tree(row, frame["token"])
        finally:
            for file in self._open.values():
                file.close()

    def _ask(self, name: str) -> tuple[dict[str, Any], bytearray]:
        request = {"do": "get", "name": name, "at": 0, "count": PIECE, "token": ""}
        self._pipeline.send(request, name=name, weight=PIECE)
        frames, body, _ = self._pipeline.take()
        return frames[0], body

    def _large(self, name: str, file: _File, frame: dict[str, Any], body: bytearray) -> None:
        """The rest of a file whose beginning is here; nothing else is on its way."""
        self._open[name] = file
        file.begin(frame, body)
        for at in range(file.at, frame["row"][1], PIECE):
            if self._pipeline.is_full:
                self._range(file)
            request = {"do": "get", "name": name, "at": at, "count": PIECE, "token": frame["token"]}
            self._pipeline.send(request, name=name, weight=PIECE)
        while self._pipeline:
            self._range(file)
        del self._open[name]
        file.finish()

    def _range(self, file: _File) -> None:
        frames, body, _ = self._pipeline.take()
        file.write(frames[0], body)

    def _tree(self, top: Row, token: str) -> int:
        """A directory with all below it."""
        self._pipeline.send({"do": "list", "name": self._name, "recursive": True}, name=self._name)
        rows = {row[0]: row[1:] for frame in self._pipeline.take()[0] for row in frame["rows"]}
        self._check(rows)
        self._aside.mkdir(mode=0o700)
        large: list[str] = []
        batch: list[str] = []
        held = 0
        for name, row in rows.items():
            if row[0] == "directory":
                self._path(name).mkdir(mode=0o700)
            elif row[0] == "link":
                os.symlink(row[4], self._path(name))
            elif row[1] > SMALL:
                large.append(name)
            else:
                if held + row[1] > MANY_BYTES or len(batch) >= MANY_FILES:
                    self._ask_many(batch, held)
                    batch, held = [], 0
                    if self._pipeline.is_full:
                        self._take_many(rows)
                batch.append(name)
                held += row[1]
        if batch:
            self._ask_many(batch, held)
        while self._pipeline:
            self._take_many(rows)
        for name in large:
            self._one_of_tree(name, rows[name])
        self._seal(rows, top, token)
        return sum(row[1] for row in rows.values() if row[0] == "file")

    def _check(self, rows: dict[str, Row]) -> None:
        """Whatever a datastore tells, nothing is written but below the new path."""
        for name in rows:
            parent = "/".join(parts_of(name)[:-1])
            is_below = parent == self._name or rows.get(parent, [""])[0] == "directory"
            if not name.startswith(f"{self._name}/") or not is_below:
                raise BadName(f"the datastore lists {name!r} below {self._name!r}")

    def _path(self, name: str) -> Path:
        return self._aside / name[len(self._name) + 1 :]

    def _ask_many(self, names: list[str], held: int) -> None:
        self._pipeline.send({"do": "get_many", "names": names}, name=names[0], note=names, weight=held)

    def _take_many(self, rows: dict[str, Row]) -> None:
        try:
            frames, body, names = self._pipeline.take()
        except NotThere as gone:
            raise Again(str(gone)) from gone
        view, at = memoryview(body), 0
        for name, (row, length) in zip(names, frames[0]["files"]):
            if length < 0 or row[1] != rows[name][1] or row[3] != rows[name][3]:
                raise Again(f"{name} was replaced while it was read")
            data = view[at : at + length]
            if len(data) != row[1] or (row[4] and hashlib.sha256(data).hexdigest() != row[4]):
                raise Again(f"{name} did not arrive as it was sent")
            write_new(self._path(name), data, row[2], row[3])
            at += length

    def _one_of_tree(self, name: str, listed: Row) -> None:
        try:
            frame, body = self._ask(name)
        except NotThere as gone:
            raise Again(str(gone)) from gone
        if frame["row"][:4] != listed[:4]:
            raise Again(f"{name} was replaced while it was read")
        self._large(name, _File(self._path(name), frame["row"]), frame, body)

    def _seal(self, rows: dict[str, Row], top: Row, token: str) -> None:
        """Directories last, the deepest first; and the directory is still the one whose files were read."""
        frame, _ = self._ask(self._name)
        if frame["token"] != token:
            raise Again(f"{self._name} was replaced while it was read")
        for name, row in reversed(list(rows.items())):
            if row[0] == "directory":
                finish(self._path(name), row)
        finish(self._aside, top)
