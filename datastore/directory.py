"""A datastore in a directory that boss and workers share. Stages by copying, promotes by renaming.

Opens directories by handle and never follows a link, so no name leads out of the root.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from datastore.local_tree import Item, walk
from datastore.port import STAGING, BadName, DatastoreAway, Entry, NotThere, Promotion

OWN = STAGING.partition("/")[0]
"""No name begins with this: staged files are not read or overwritten by name."""
LOCK = ".client-"
"""Prefix of the lock files of a gate that serves the same root."""
PIECE = 1 << 20
"""Bytes read and hashed at a time."""
COPIED_AT_ONCE = 64 << 20
"""Bytes that the kernel copies in one call; progress is checked in between."""
_AWAY = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE,
    errno.ENFILE, errno.EACCES, errno.EPERM,
})  # fmt: skip
_T = TypeVar("_T")


def parts_of(name: str) -> list[str]:
    """The parts of a name. Raises `BadName`."""
    if not name or name.startswith("/") or "\0" in name:
        raise BadName(f"{name!r} is not a name in a datastore")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise BadName(f"{name!r} is not a name in a datastore")
    if parts[0] == OWN:
        raise BadName(f"{name!r} is reserved for the datastore")
    return parts


def _below(top: Path, name: str) -> Path:
    """The path of a name below `top`, none of whose parents is a link. Raises `BadName`."""
    path = top
    parts = parts_of(name)
    for part in parts[:-1]:
        path = path / part
        if path.is_symlink():
            raise BadName(f"{name!r} leads through the link {part!r}")
    return path / parts[-1]


@contextmanager
def _told_apart(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _AWAY:
            raise DatastoreAway(f"the datastore {root} cannot be used: {error.strerror}") from error
        raise


class DirectoryDatastore:
    """All of `port.Publisher` on a local or mounted directory."""

    copied_bytes = 0
    """Bytes copied by this process in both directions; approximate, as threads may count at the same moment."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()

    def make(self) -> DirectoryDatastore:
        """Create the root and its staging area. Raises `DatastoreAway`."""
        with _told_apart(self.root):
            (self.root / STAGING).mkdir(parents=True, exist_ok=True)
        return self

    # --- reading ------------------------------------------------------------------------------------

    def stat(self, names: list[str]) -> list[Entry | None]:
        """See `port.Reader.stat`."""
        self._require_root()
        return [self._entry(name) for name in names]

    def _entry(self, name: str) -> Entry | None:
        path = self._path(name)
        try:
            return _entry_of("/".join(parts_of(name)), path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _path(self, name: str) -> Path:
        return _below(self.root, name)

    def _require_root(self) -> None:
        if not self.root.is_dir():
            raise DatastoreAway(f"the datastore {self.root} does not exist: is it mounted?")

    def fetch(self, name: str, to: Path) -> int:
        """See `port.Reader.fetch`."""
        with _told_apart(self.root):
            self._require_root()
            source = self._path(name)
            if not os.path.lexists(source):
                raise NotThere(name)
            items = list(walk(source, ""))
            to.parent.mkdir(parents=True, exist_ok=True)
            return _copy_whole(items, to, None)

    def listing(self, name: str = "", recursive: bool = False) -> list[Entry]:
        """See `port.Reader.listing`."""
        with _told_apart(self.root):
            self._require_root()
            top = self._path(name) if name else self.root
            if not os.path.lexists(top):
                raise NotThere(name)
            if not top.is_dir() or top.is_symlink():
                return [_entry_of(name, top)]
            found = []
            for path in self._walk(top, recursive):
                found.append(_entry_of(str(path.relative_to(self.root)), path))
            return sorted(found, key=lambda entry: entry.path)

    def _walk(self, top: Path, recursive: bool) -> Iterator[Path]:
        for item in os.scandir(top):
            path = Path(item.path)
            if path == self.root / OWN:
                continue
            yield path
            if recursive and item.is_dir(follow_symlinks=False):
                yield from self._walk(path, recursive)

    # --- staging ------------------------------------------------------------------------------------

    def _stage(self, stage: str) -> Path:
        return self.root / STAGING / "/".join(parts_of(stage))

    def store(self, stage: str, local: Path, path: str) -> list[Entry]:
        """See `port.Stager.store`."""
        parts_of(path)
        if not os.path.lexists(local):
            raise NotThere(str(local))
        with _told_apart(self.root):
            self._require_root()
            target = _below(self._stage(stage), path)
            items = list(walk(local, ""))
            target.parent.mkdir(parents=True, exist_ok=True)
            remove(target)
            entries: list[Entry] = []
            _copy_whole(items, target, entries)
            name = "/".join(parts_of(path))
            return [_renamed(entry, name) for entry in entries]

    def remove(self, path: str) -> None:
        """See `port.Publisher.remove`."""
        with _told_apart(self.root):
            self._require_root()
            remove(self._path(path))

    def drop_stage(self, stage: str) -> None:
        """See `port.Stager.drop_stage`."""
        with _told_apart(self.root):
            directory = self._stage(stage)
            _discard(directory)
            with suppress(OSError):
                directory.parent.rmdir()

    # --- publishing ---------------------------------------------------------------------------------

    def promote(self, promotions: list[Promotion]) -> list[str | None]:
        """See `port.Publisher.promote`."""
        with _told_apart(self.root):
            self._require_root()
            return [self._promote(promotion) for promotion in promotions]

    def _promote(self, promotion: Promotion) -> str | None:
        try:
            stage = self._stage(promotion.stage)
            moves = self._moves(stage, promotion.entries)
            if isinstance(moves, str):
                return moves
            for staged, final in moves:
                self._move(staged, final)
            _discard(stage)
        except BadName as error:
            return f"a result cannot be published: {error}"
        except OSError as error:
            if error.errno in _AWAY:
                raise
            # Waiting would not help, and must not hold up the other promotions.
            return f"results cannot be published: {error.strerror}: {error.filename}"
        with suppress(OSError):
            stage.parent.rmdir()
        return None

    def _moves(self, stage: Path, entries: tuple[Entry, ...]) -> list[tuple[Path, Path]] | str:
        """(staged, final) of everything that is still to be moved; or a sentence if something is missing, and then
        nothing may be moved."""
        moves: list[tuple[Path, Path]] = []
        top = ""
        declared = {entry.path for entry in entries}
        for entry in entries:
            staged = _below(stage, entry.path)
            if not os.path.lexists(staged):
                if not self._stands(entry):
                    return f"result {entry.path} is neither staged nor published"
                continue
            wrong = _unlike(staged, entry, declared)
            if wrong:
                return f"result {entry.path} {wrong}"
            if top and entry.path.startswith(top + "/"):
                continue  # below a directory that is moved as a whole
            if entry.kind == "directory":
                top = entry.path
            moves.append((staged, self._path(entry.path)))
        return moves

    def _stands(self, entry: Entry) -> bool:
        """Whether it has its final name already."""
        present = self._entry(entry.path)
        if present is None or present.kind != entry.kind:
            return False
        return entry.kind != "file" or present.size == entry.size

    def _move(self, staged: Path, final: Path) -> None:
        final.parent.mkdir(parents=True, exist_ok=True)
        over_directory = final.is_dir() and not final.is_symlink()
        is_directory = staged.is_dir() and not staged.is_symlink()
        if over_directory or (is_directory and os.path.lexists(final)):
            # No rename replaces a directory that is not empty: move it aside first and remove it afterwards.
            aside = Path(tempfile.mkdtemp(prefix="replaced-", dir=self.root / STAGING))
            os.rename(final, aside / "old")
            os.rename(staged, final)
            remove(aside)
        else:
            os.replace(staged, final)

    def stages(self) -> list[str]:
        """See `port.Publisher.stages`."""
        with _told_apart(self.root):
            self._require_root()
            staging = self.root / STAGING
            found = []
            for worker in os.scandir(staging) if staging.is_dir() else ():
                if worker.is_dir(follow_symlinks=False):
                    names = {name.lstrip(".") for name in os.listdir(worker.path) if not name.startswith(LOCK)}
                    found += [f"{worker.name}/{name}" for name in names]
            return sorted(found)

    def put(self, local: Path, path: str) -> list[Entry]:
        """See `port.Publisher.put`."""
        stage = f"put/{os.getpid()}-{hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()}"
        try:
            entries = self.store(stage, local, path)
            problem = self.promote([Promotion(stage, tuple(entries))])[0]
        except BaseException:
            with suppress(Exception):
                self.drop_stage(stage)
            raise
        if problem is not None:
            self.drop_stage(stage)
            raise DatastoreAway(problem)
        return entries

    def free_mb(self) -> float:
        """See `port.Publisher.free_mb`."""
        with _told_apart(self.root):
            self._require_root()
            return shutil.disk_usage(self.root).free / 1e6

    def tidy(self) -> None:
        """Remove the staging area if it is empty, so that nothing of ECLOUD stays behind."""
        for directory in (self.root / STAGING, self.root / OWN):
            with suppress(OSError):
                for item in os.scandir(directory):
                    if item.is_dir(follow_symlinks=False):
                        with suppress(OSError):
                            os.rmdir(item.path)
                directory.rmdir()


def _unlike(staged: Path, entry: Entry, declared: set[str]) -> str:
    """How a staged entry differs from the manifest; empty if it does not."""
    found = _entry_of(entry.path, staged)
    if found.kind != entry.kind:
        return f"was staged as a {found.kind}, not a {entry.kind}"
    if found.kind == "link" and found.sha256 != entry.sha256:
        return f"is a link to {found.sha256} where it was staged, not to {entry.sha256}"
    if found.kind == "file" and found.size != entry.size:
        return f"has {found.size} bytes where it was staged, not {entry.size}"
    if found.kind == "directory":
        for name in os.listdir(staged):
            if f"{entry.path}/{name}" not in declared:
                return f"holds {name} where it was staged, which its worker did not report"
    return ""


def _discard(stage: Path) -> None:
    """Remove a stage, and the unfinished files that a gate (`datastore/gate.py`) of the same root keeps beside it."""
    remove(stage)
    remove(stage.with_name(f".{stage.name}"))


# --- copying ------------------------------------------------------------------------------------------


def _entry_of(name: str, path: Path, sha256: str = "") -> Entry:
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode):
        return Entry(name, "link", 0, 0o777, info.st_mtime, os.readlink(path))
    kind = "directory" if stat.S_ISDIR(info.st_mode) else "file"
    return Entry(name, kind, info.st_size if kind == "file" else 0, stat.S_IMODE(info.st_mode), info.st_mtime, sha256)


def _renamed(entry: Entry, top: str) -> Entry:
    path = f"{top}/{entry.path}" if entry.path else top
    return Entry(path, entry.kind, entry.size, entry.mode, entry.mtime_s, entry.sha256)


def _copy_whole(items: list[Item], target: Path, entries: list[Entry] | None) -> int:
    """Copy under a temporary name, then rename: `target` appears whole. `entries` receives the copied entries with
    hashes and relative names. Returns the bytes copied."""
    # A short name: names are limited to 255 bytes.
    digest = hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()
    aside = target.parent / f".{os.getpid()}-{digest}.part"
    remove(aside)
    try:
        copied = _copy(items, aside, entries)
        remove(target)
        os.rename(aside, target)
    except BaseException:
        remove(aside)
        raise
    return copied


def _copy(items: list[Item], top: Path, entries: list[Entry] | None) -> int:
    copied = 0
    for item in items:
        target = top / item.name if item.name else top
        sha256 = ""
        if item.is_directory:
            target.mkdir()
        elif item.is_file:
            sha256 = _copy_file(item.local, target, hashing=entries is not None)
            copied += item.info.st_size
            _seal(target, item)
        else:
            os.symlink(item.target, target)
        if entries is not None:
            entries.append(_staged_entry(item, target, sha256))
    for item in reversed(items):  # last, because a directory without write permission accepts nothing
        if item.is_directory:
            _seal(top / item.name if item.name else top, item)
    return copied


def _staged_entry(item: Item, target: Path, sha256: str) -> Entry:
    if item.is_directory:
        return Entry(item.name, "directory", 0, stat.S_IMODE(item.info.st_mode), item.info.st_mtime)
    return _entry_of(item.name, target, sha256)


def _seal(target: Path, item: Item) -> None:
    os.chmod(target, stat.S_IMODE(item.info.st_mode))
    os.utime(target, ns=(item.info.st_atime_ns, item.info.st_mtime_ns))


def _copy_file(source: Path, target: Path, hashing: bool) -> str:
    """Copy a file and keep its holes. Returns its SHA-256 if wanted, computed while reading."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        if not hashing and _copy_in_kernel(reader.fileno(), writer.fileno()):
            return ""
        end_in_hole = False
        while piece := reader.read(PIECE):
            if hashing:
                digest.update(piece)
            end_in_hole = piece.count(0) == len(piece)
            if end_in_hole:
                writer.seek(len(piece), os.SEEK_CUR)
            else:
                writer.write(piece)
            DirectoryDatastore.copied_bytes += len(piece)
        if end_in_hole:
            writer.truncate()
    return digest.hexdigest() if hashing else ""


def _copy_in_kernel(source: int, target: int) -> bool:
    """Let the kernel copy (it shares blocks if the file system can)."""
    size = os.fstat(source).st_size
    if size > os.fstat(source).st_blocks * 512:
        return False  # sparse: the kernel would fill the holes
    copied = 0
    try:
        while copied < size:
            count = os.copy_file_range(source, target, min(size - copied, COPIED_AT_ONCE))
            if count == 0:
                break
            copied += count
            DirectoryDatastore.copied_bytes += count
    except OSError:
        os.ftruncate(target, 0)
        os.lseek(target, 0, os.SEEK_SET)
        os.lseek(source, 0, os.SEEK_SET)
        return False
    return copied == size


def remove(path: Path) -> None:
    """Remove a file or tree, first adding missing permissions to directories."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(info.st_mode):
        path.unlink(missing_ok=True)
        return

    def again(function: Callable[[str], object], name: str, error: object) -> None:
        with suppress(OSError):
            os.chmod(Path(name).parent, 0o700)
            os.chmod(name, 0o700)
            function(name)

    shutil.rmtree(path, onerror=again)
