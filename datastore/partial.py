"""Unfinished downloads: kept beside their target as `.*.part`, a file or a directory, until they are whole. After an
interruption the next call for the same target resumes there.

Knows no datastore. A part is named after the exact file version that it belongs to; the files of a directory are
compared with the listing of the next try. The caller compares sums, if there are any.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datastore.directory import remove
from datastore.port import DatastoreAway

LARGE = 1 << 18
"""Larger files of a directory resume in their middle; smaller ones are whole or absent."""
_PIECE = 1 << 20


class Listed(NamedTuple):
    """What a datastore lists about one name. `target`: of a link."""

    kind: str
    size: int
    mode: int
    mtime_ns: int
    target: str = ""


class Part:
    """The unfinished download of `to`: a link at `path`, a file, or a tree."""

    def __init__(self, to: Path) -> None:
        self._to = to
        digest = hashlib.blake2b(os.fsencode(to.name), digest_size=8).hexdigest()
        self._stem = f".{digest}-"
        self._own = to.with_name(f"{self._stem}{os.getpid()}.part")
        self._handle: int | None = None
        self._is_shared = False
        self._tree: PartTree | None = None
        self.path = self._own
        remove(self.path)

    def link(self) -> Path:
        """A new path for a link."""
        self.drop()
        self.path = self._own
        return self.path

    def file(self, token: str, size: int, has_sum: bool) -> int:
        """A handle of the file version `token`, opened where the missing bytes begin. Never opens a part that another
        process writes."""
        if self._tree is not None:
            self.drop()
        self._begin(token, directory=False)
        assert self._handle is not None
        info = os.fstat(self._handle)
        if info.st_size > size or (not has_sum and is_doubtful(info)):
            os.ftruncate(self._handle, 0)
        return os.dup(self._handle)

    def tree(self, token: str) -> PartTree:
        """The unfinished directory of version `token`."""
        if self._tree is None:
            self._begin(token, directory=True)
            self._tree = PartTree(self.path)
        return self._tree

    def _begin(self, token: str, directory: bool) -> None:
        """Lock the part of that name. Removes abandoned parts of other versions."""
        self.close()
        self.path = self._to.with_name(f"{self._stem}{token}.part")
        for path in self._to.parent.glob(f"{self._stem}*.part"):
            if path != self.path and _is_nobodys(path):
                remove(path)
        self._handle = _locked(self.path, directory)
        self._is_shared = self._handle is not None
        if self._handle is None:
            self.path = self._own
            remove(self.path)
            self._handle = _locked(self.path, directory)

    def finish(self) -> None:
        """Rename the whole download to its final name, replacing what is there."""
        remove(self._to)
        if self._tree is None:
            os.rename(self.path, self._to)
            self.close()  # from now on the old name belongs to another download
        else:
            os.rename(self._tree.top, self._to)
            self.drop()

    def again(self) -> None:
        """The datastore's version changed: discard a file; of a directory keep the files that did not change."""
        if self._tree is None:
            self.drop()

    def leave(self, error: BaseException) -> None:
        """Keep the part for another try, after an error that such a try may overcome; else remove it."""
        if isinstance(error, DatastoreAway) or not isinstance(error, Exception):
            self._keep()
        else:
            self.drop()

    def _keep(self) -> None:
        if self._handle is None or not self._is_shared:
            self.drop()
        elif self._tree is not None:
            if self._tree.is_empty:
                self.drop()
        elif not os.fstat(self._handle).st_size:
            self.drop()

    def drop(self) -> None:
        """Remove the part while it is locked, as another process may adopt parts."""
        remove(self.path)
        self.close()
        self._tree = None

    def close(self) -> None:
        """Release the part."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class PartTree:
    """An unfinished directory: `top` in its final form, and beside it the unfinished files under names of their own
    (their names plus a version could exceed the limit)."""

    def __init__(self, path: Path) -> None:
        self.top = path / "tree"
        self._unfinished = path / "files"
        self._unfinished.mkdir(mode=0o700, exist_ok=True)

    @property
    def is_empty(self) -> bool:
        """Whether it has no file yet."""
        return not any(names for place in (self.top, self._unfinished) for _, _, names in os.walk(place))

    def fit(self, rows: dict[str, Listed]) -> list[str]:
        """Create all directories and links of `rows`, relative names and parents first. Remove earlier files whose size
        or time differ; returns the names of the others."""
        with contextlib.suppress(FileExistsError):
            self.top.mkdir(mode=0o700)
            self._make(rows, set())
            return []
        os.chmod(self.top, 0o700)
        kept = dict(self._kept(self.top, "", rows))
        self._make(rows, set(kept))
        return [name for name, kind in kept.items() if kind == "file"]

    def _make(self, rows: dict[str, Listed], but: set[str]) -> None:
        for name, row in rows.items():
            if name in but:
                continue
            if row.kind == "directory":
                (self.top / name).mkdir(mode=0o700)
            elif row.kind == "link":
                os.symlink(row.target, self.top / name)

    def _kept(self, directory: Path, prefix: str, rows: dict[str, Listed]) -> Iterator[tuple[str, str]]:
        for item in list(os.scandir(directory)):
            name, path = prefix + item.name, Path(item.path)
            info, row = item.stat(follow_symlinks=False), rows.get(name)
            if row is None or not _is_as_listed(path, info, row):
                remove(path)
                continue
            yield name, row.kind
            if row.kind == "file":
                os.chmod(path, row.mode)
            elif row.kind == "directory":
                os.chmod(path, 0o700)
                yield from self._kept(path, name + "/", rows)

    def unfinished(self, name: str, token: str) -> Path:
        """The path of that file version until it is whole."""
        whole = f"{name}\0{token}"
        return self._unfinished / hashlib.blake2b(os.fsencode(whole), digest_size=16).hexdigest()

    def opened(self, path: Path, size: int, has_sum: bool) -> int:
        """A handle of an unfinished file, opened where the missing bytes begin."""
        with contextlib.suppress(FileNotFoundError):
            os.chmod(path, 0o600)  # it may have been interrupted after its permissions were set
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        info = os.fstat(handle)
        if info.st_size > size or (not has_sum and is_doubtful(info)):
            os.ftruncate(handle, 0)
        return handle

    def seal(self, rows: dict[str, Listed], top: Listed) -> None:
        """Set permissions and times of directories, the deepest first."""
        for name, row in reversed(list(rows.items())):
            if row.kind == "directory":
                seal(self.top / name, row.mode, row.mtime_ns)
        seal(self.top, top.mode, top.mtime_ns)


def seal(path: Path, mode: int, mtime_ns: int) -> None:
    """Set permissions and times of a file or directory."""
    os.utime(path, ns=(mtime_ns, mtime_ns))
    os.chmod(path, mode)


def is_doubtful(info: os.stat_result) -> bool:
    """Whether only its sum can prove the file: after a crash of the machine it may hold zeros that were never
    written."""
    return info.st_ctime < time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def sum_of(path: Path) -> str:
    """The SHA-256 of a local file."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _is_as_listed(path: Path, info: os.stat_result, row: Listed) -> bool:
    if row.kind == "directory":
        return stat.S_ISDIR(info.st_mode)
    if row.kind == "link":
        return stat.S_ISLNK(info.st_mode) and os.readlink(path) == row.target
    return stat.S_ISREG(info.st_mode) and (info.st_size, info.st_mtime_ns) == (row.size, row.mtime_ns)


def _locked(path: Path, directory: bool) -> int | None:
    """A locked handle of the file or directory, created if missing; None if another process has it."""
    flags = os.O_RDWR | os.O_CREAT
    if directory:
        flags = os.O_RDONLY | os.O_DIRECTORY
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o600)
    except PermissionError as denied:
        if not _is_unsealed(path, denied):
            return None
        handle = os.open(path, flags, 0o600)
    return handle if _is_held(handle, path) else None


def _is_held(handle: int, path: Path) -> bool:
    """Whether this process alone holds it; otherwise closes it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Otherwise its former holder has just finished it and given it another name.
        if os.path.samestat(os.fstat(handle), os.lstat(path)):
            return True
    except OSError:
        pass
    os.close(handle)
    return False


def _is_unsealed(path: Path, denied: PermissionError) -> bool:
    """Make a file writable that was interrupted after its permissions were set. False if another process has it; raises
    `denied` if that was not the reason."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        raise denied from None
    if not _is_held(handle, path):
        return False
    try:
        os.fchmod(handle, 0o600)
    except OSError:
        raise denied from None
    finally:
        os.close(handle)
    return True


def _is_nobodys(path: Path) -> bool:
    """Whether no process writes this part now."""
    with contextlib.suppress(OSError):
        handle = None if path.is_symlink() else _locked(path, path.is_dir())
        if handle is not None:
            os.close(handle)
            return True
    return False
