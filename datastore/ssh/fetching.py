"""Files and directories from a gate to this machine: in ranges, many on their way at once, whole or not at all.

What was cut off resumes where it was (`datastore/partial.py`), also of a directory, unless it was replaced meanwhile:
what came earlier is held against its hash, where the datastore knows it, else against its size and time.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from datastore.directory import parts_of
from datastore.gate import PIECE
from datastore.partial import LARGE, Listed, Part, PartTree, is_doubtful, seal, sum_of
from datastore.port import BadName, DatastoreAway, Entry, NotThere
from datastore.ssh.fetching_small import write_new
from datastore.ssh.link import Again, Link, Pipeline, ask

MANY_BYTES = 1 << 20
MANY_FILES = 200
ROWS = 10_000
"""How many files one request asks the checksums of."""
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
    part = Part(to)
    try:
        for _ in range(TIMES):
            try:
                copied = _Fetch(link, name, part).run()
            except Again:
                part.again()
                continue
            part.finish()
            return copied
        raise DatastoreAway(f"{name} changed {TIMES} times while it was read")
    except BaseException as error:
        part.leave(error)
        raise
    finally:
        part.close()


class _File:
    """A local file that is written from its start to its end, holes kept, hashed where there is a sum to compare.
    `handle`: of what is here of it."""

    def __init__(self, path: Path, row: Row, handle: int) -> None:
        self.at = 0
        self._row = row
        self._path = path
        self._file = os.fdopen(handle, "r+b", buffering=0)
        self._digest = hashlib.sha256() if row[4] else None
        while piece := self._file.read(PIECE):
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
            raise Again(f"{self._path} arrived damaged")
        seal(self._path, self._row[2], self._row[3])

    def close(self) -> None:
        """Whatever happened."""
        self._file.close()


class _Fetch:
    """One name to one new path."""

    def __init__(self, link: Link, name: str, part: Part) -> None:
        self._link = link
        self._pipeline = Pipeline(link)
        self._name = name
        self._part = part
        self._open: dict[str, _File] = {}

    def run(self) -> int:
        """The bytes copied. Raises `Again`."""
        frame, body = self._ask(self._name)
        row = frame["row"]
        try:
            if row[0] == "link":
                os.symlink(row[4], self._part.link())
                return 0
            if row[0] == "file":
                handle = self._part.file(frame["token"], row[1], bool(row[4]))
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
        listed = {name[len(self._name) + 1 :]: Listed(*row) for name, row in rows.items()}
        tree = self._part.tree(hashlib.blake2b(os.fsencode(self._name), digest_size=8).hexdigest())
        here = self._verified(tree, tree.fit(listed))
        large: list[str] = []
        batch: list[str] = []
        held = 0
        for name, row in rows.items():
            if row[0] != "file" or name in here:
                continue
            if row[1] > LARGE:
                large.append(name)
            else:
                if held + row[1] > MANY_BYTES or len(batch) >= MANY_FILES:
                    self._ask_many(batch, held)
                    batch, held = [], 0
                    if self._pipeline.is_full:
                        self._take_many(rows, tree)
                batch.append(name)
                held += row[1]
        if batch:
            self._ask_many(batch, held)
        while self._pipeline:
            self._take_many(rows, tree)
        for name in large:
            self._one_of_tree(name, rows[name], tree)
        if self._ask(self._name)[0]["token"] != token:
            raise Again(f"{self._name} was replaced while it was read")
        tree.seal(listed, Listed(*top))
        return sum(row[1] for row in rows.values() if row[0] == "file")

    def _check(self, rows: dict[str, Row]) -> None:
        """Whatever a datastore tells, nothing is written but below the new path."""
        for name in rows:
            parent = "/".join(parts_of(name)[:-1])
            is_below = parent == self._name or rows.get(parent, [""])[0] == "directory"
            if not name.startswith(f"{self._name}/") or not is_below:
                raise BadName(f"the datastore lists {name!r} below {self._name!r}")

    def _path(self, name: str, tree: PartTree) -> Path:
        return tree.top / name[len(self._name) + 1 :]

    def _verified(self, tree: PartTree, kept: list[str]) -> set[str]:
        """Of the files that came earlier those that are what the datastore has; the others go."""
        whole = set()
        for start in range(0, len(kept), ROWS):
            names = [f"{self._name}/{name}" for name in kept[start : start + ROWS]]
            told = ask(self._link, {"do": "stat", "names": names}, self._name)[0]["rows"]
            for name, row in zip(names, told):
                path = self._path(name, tree)
                if row and (sum_of(path) == row[4] if row[4] else not is_doubtful(path.lstat())):
                    whole.add(name)
                else:
                    path.unlink()
        return whole

    def _ask_many(self, names: list[str], held: int) -> None:
        self._pipeline.send({"do": "get_many", "names": names}, name=names[0], note=names, weight=held)

    def _take_many(self, rows: dict[str, Row], tree: PartTree) -> None:
        try:
            frames, body, names = self._pipeline.take()
        except NotThere as gone:
            raise Again(str(gone)) from gone
        view, at = memoryview(body), 0
        for name, (row, length) in zip(names, frames[0]["files"]):
            if length < 0:  # replaced by what is larger, or no file at all: then this names it
                ask(self._link, {"do": "get", "name": name, "at": 0, "count": 1, "token": ""}, name)
            if length < 0 or row[1] != rows[name][1] or row[3] != rows[name][3]:
                raise Again(f"{name} was replaced while it was read")
            data = view[at : at + length]
            if len(data) != row[1] or (row[4] and hashlib.sha256(data).hexdigest() != row[4]):
                raise Again(f"{name} arrived damaged")
            write_new(self._path(name, tree), data, row[2], row[3])
            at += length

    def _one_of_tree(self, name: str, listed: Row, tree: PartTree) -> None:
        try:
            frame, body = self._ask(name)
        except NotThere as gone:
            raise Again(str(gone)) from gone
        row = frame["row"]
        if row[:4] != listed[:4]:
            raise Again(f"{name} was replaced while it was read")
        path = tree.unfinished(name, frame["token"])
        try:
            self._large(name, _File(path, row, tree.opened(path, row[1], bool(row[4]))), frame, body)
        except Again:
            path.unlink()
            raise
        os.rename(path, self._path(name, tree))
