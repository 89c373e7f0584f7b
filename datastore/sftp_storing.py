"""Files and directories from this machine into a stage on an SFTP server: hashed once, while they are read. What
arrived before a cut is not sent again."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
from collections import deque
from concurrent.futures import Future
from pathlib import Path

from datastore import sftp_connection as sftp
from datastore.partial import sum_of
from datastore.port import DatastoreAway, Entry
from datastore.sftp_connection import Attributes, Refused, Reply, string
from datastore.sftp_tree import AT_ONCE, Tree, at, kind_of, raw, stage_place, unfinished_place
from datastore.ssh.link import Again
from datastore.ssh.storing import ASKED_FROM, Item, walk

SMALL = 1 << 15
"""Files up to this size travel in one request, many together."""
MODES = 0o777
PIECE = 1 << 17
WINDOW_BYTES = 4 << 20


class Storing:
    """One local file or directory into one stage. `run` may be called again after a cut, with another connection."""

    def __init__(self, stage: str, local: Path, path: str) -> None:
        self._place = stage_place(stage)
        self._unfinished = unfinished_place(stage)
        self._local = local
        self._path = path
        self._whole: dict[str, tuple[int, str]] = {}
        """Files that are there: their time here, and their sum."""
        self._is_cleared = False

    def run(self, tree: Tree) -> list[Entry]:
        """What was staged, parents first. Raises `Again` where a file changed while it was read, `Lost`."""
        tree.require_root()
        target = f"{self._place}/{self._path}"
        top = self._local.lstat()
        # Links that were staged before lie only below the stage: nobody but us makes what is above.
        tree.refuse_links([target])
        tree.make([target.rpartition("/")[0], *([self._unfinished] if top.st_size > SMALL else [])])
        items = list(walk(self._local, self._path))
        if not self._is_cleared:
            self._clear(tree, target, items)
            self._is_cleared = True
        entries: list[Entry] = []
        directories: list[tuple[str, os.stat_result]] = []
        small: list[tuple[Path, str, os.stat_result]] = []
        for local, name, info in items:
            staged, mode = f"{self._place}/{name}", stat.S_IMODE(info.st_mode)
            if stat.S_ISLNK(info.st_mode):
                points_to = os.readlink(local)
                tree.remove(staged)
                # OpenSSH takes the two the other way round than the protocol says.
                made = tree.connection.send(sftp.SYMLINK, string(raw(points_to)) + string(tree.path(staged)))
                _done(staged, made)
                entries.append(Entry(name, "link", 0, 0o777, info.st_mtime, points_to))
            elif stat.S_ISDIR(info.st_mode):
                tree.make([staged])
                directories.append((staged, info))
                entries.append(Entry(name, "directory", 0, mode, info.st_mtime))
            elif stat.S_ISREG(info.st_mode):
                if info.st_size > SMALL and self._whole.get(name, (0, ""))[0] != info.st_mtime_ns:
                    self._whole[name] = (info.st_mtime_ns, self._large(tree, local, name, info))
                elif info.st_size <= SMALL:
                    small.append((local, name, info))
                    if len(small) >= AT_ONCE:
                        self._many(tree, small)
                        small = []
                entries.append(Entry(name, "file", info.st_size, mode, info.st_mtime))
            else:
                raise OSError(errno.EINVAL, f"{local} is neither file, directory nor link")
        self._many(tree, small)
        sealed = [_seal(tree, name, info) for name, info in reversed(directories)]
        for (name, _), future in zip(reversed(directories), sealed):
            _done(name, future)
        sums = {name: sum for name, (_, sum) in self._whole.items()}
        return [
            Entry(e.path, e.kind, e.size, e.mode, e.mtime_s, sums[e.path] if e.kind == "file" else e.sha256)
            for e in entries
        ]

    def _clear(self, tree: Tree, target: str, items: list[Item]) -> None:
        """What was staged goes, but the files that an earlier call staged of this very directory. Small ones are sent
        again: they were written in place."""
        total = sum(info.st_size for _, _, info in items if stat.S_ISREG(info.st_mode))
        top = tree.looked_at([target])[target]
        # A link would be followed: what it leads to is not ours.
        is_kept = top is not None and kind_of(top) == "directory" and total >= ASKED_FROM
        if not is_kept or not stat.S_ISDIR(items[0][2].st_mode):
            tree.remove(target)
            return
        there = tree.below(target, recursive=True)
        _done(target, tree.send(sftp.SETSTAT, target, sftp.attributes(mode=0o755)))
        wanted = {f"{self._place}/{name}": (local, name, info) for local, name, info in items}
        gone = ""
        for staged, found in there.items():
            local, name, info = wanted.get(staged, (self._local, "", None))
            if gone and staged.startswith(f"{gone}/"):
                continue
            if info is not None and kind_of(found) == "directory" and stat.S_ISDIR(info.st_mode):
                _done(staged, tree.send(sftp.SETSTAT, staged, sftp.attributes(mode=0o755)))
            elif info is not None and _is_same(found, info):
                self._whole[name] = (info.st_mtime_ns, sum_of(local))
            else:
                tree.remove(staged)
                gone = staged

    def _many(self, tree: Tree, files: list[tuple[Path, str, os.stat_result]]) -> None:
        """Small files at once. They are written in place: promotion compares the sums."""
        files = [item for item in files if self._whole.get(item[1], (-1, ""))[0] != item[2].st_mtime_ns]
        flags = struct.pack("!II", sftp.TO_WRITE | sftp.TO_MAKE | sftp.TO_MAKE_ANEW, 0)
        for _, name, _ in files:
            tree.send(sftp.REMOVE, f"{self._place}/{name}")
        opening = [tree.send(sftp.OPEN, f"{self._place}/{name}", flags) for _, name, _ in files]
        asked: list[tuple[str, Future[Reply]]] = []
        sums: dict[str, tuple[int, str]] = {}
        for (local, name, info), future in zip(files, opening):
            handle = _opened(name, future)
            with local.open("rb", buffering=0) as file:
                data = file.read(info.st_size + 1)
            if len(data) != info.st_size:
                raise Again(f"{local} changed while it was read")
            if data:
                asked.append((name, tree.connection.send(sftp.WRITE, at(handle, 0) + string(data))))
            asked.append((name, tree.connection.send(sftp.FSETSTAT, string(handle) + _kept(info))))
            asked.append((name, tree.connection.send(sftp.CLOSE, string(handle))))
            sums[name] = (info.st_mtime_ns, hashlib.sha256(data).hexdigest())
        for name, future in asked:
            _done(name, future)
        self._whole.update(sums)

    def _large(self, tree: Tree, local: Path, name: str, info: os.stat_result) -> str:
        """Beside the stage until it is whole, under a name for this version of it; its sum."""
        told = f"{info.st_size} {info.st_mtime_ns} {name}".encode("utf-8", "surrogateescape")
        part = f"{self._unfinished}/{hashlib.sha256(told).hexdigest()[:24]}"
        tree.make([self._unfinished])
        found = tree.looked_at([part])[part]
        have = min(found.size, info.st_size) // PIECE * PIECE if found is not None else 0
        flags = sftp.TO_WRITE | sftp.TO_MAKE | (0 if have else sftp.TO_EMPTY)
        handle = _opened(name, tree.send(sftp.OPEN, part, struct.pack("!II", flags, 0)))
        digest = hashlib.sha256()
        waiting: deque[tuple[int, Future[Reply]]] = deque()
        held = sent = 0
        with local.open("rb", buffering=0) as file:
            while sent < info.st_size:
                data = file.read(PIECE)
                digest.update(data)
                if not data or sent + len(data) > info.st_size:
                    raise Again(f"{local} changed while it was read")
                if sent >= have and data.count(0) != len(data):  # a hole is what is not written
                    for start in range(0, len(data), tree.connection.piece):
                        body = data[start : start + tree.connection.piece]
                        future = tree.connection.send(sftp.WRITE, at(handle, sent + start) + string(body))
                        waiting.append((len(body), future))
                        held += len(body)
                sent += len(data)
                while waiting and (held > WINDOW_BYTES or sent >= info.st_size):
                    size, future = waiting.popleft()
                    _done(name, future)
                    held -= size
        if local.lstat().st_mtime_ns != info.st_mtime_ns:
            raise Again(f"{local} changed while it was read")
        kept = sftp.attributes(stat.S_IMODE(info.st_mode) & MODES, int(info.st_mtime), info.st_size)
        _done(name, tree.connection.send(sftp.FSETSTAT, string(handle) + kept))
        _done(name, tree.connection.send(sftp.CLOSE, string(handle)))
        staged = f"{self._place}/{name}"
        there = tree.looked_at([staged])[staged]
        if there is not None and kind_of(there) == "directory":
            tree.remove(staged)
        _done(name, tree.rename(part, staged))
        return digest.hexdigest()


def _is_same(found: Attributes, info: os.stat_result) -> bool:
    if kind_of(found) != "file" or not stat.S_ISREG(info.st_mode) or info.st_size <= SMALL:
        return False
    wanted = (info.st_size, int(info.st_mtime), stat.S_IMODE(info.st_mode) & MODES)
    return (found.size, found.mtime_s, stat.S_IMODE(found.mode)) == wanted


def _kept(info: os.stat_result) -> bytes:
    return sftp.attributes(stat.S_IMODE(info.st_mode) & MODES, int(info.st_mtime))


def _seal(tree: Tree, name: str, info: os.stat_result) -> Future[Reply]:
    return tree.send(sftp.SETSTAT, name, _kept(info))


def _opened(name: str, future: Future[Reply]) -> bytes:
    try:
        return sftp.handle_of(future.result())
    except Refused as refused:
        raise DatastoreAway(f"{name} can't be written in the datastore: {refused}") from refused


def _done(name: str, future: Future[Reply]) -> None:
    try:
        sftp.done(future.result())
    except Refused as refused:
        raise DatastoreAway(f"{name} can't be written in the datastore (is its disk full?): {refused}") from refused
