"""Caches what this worker fetched over SSH for later attempts: by content, up to a limit of bytes.

An entry is a directory `<key>.<bytes>` that holds the file or tree as `it`; its time is that of its last use, so the
whole cache survives the process. Each caller gets a copy, which shares blocks if the file system can, because a task
may change it. Never keeps anything whose content it cannot identify.

An interrupted download stays as `new-<key>` until it is requested again. It is evicted before any entry, and after a
day without a request.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

from datastore.directory import DirectoryDatastore, remove
from datastore.port import DatastoreAway, Entry, NotThere
from ecloud.model.transfer_status import BIG_INPUT_BYTES, INPUTS_TOLD, HeldInput

PART_OF_DISK = 0.5
"""Largest share of the space that is free or its own."""
SMALL_BYTES = 1 << 16
"""Smaller files are not kept: fetching one costs no more than the check whether it is unchanged."""
COPIES = 3
"""The disk must have room for this many copies of an entry; otherwise it is fetched without being kept."""
TIMES = 3
"""How often an entry that vanished is fetched again before the cache is bypassed."""
CUT_S = 86_400.0
"""Interrupted downloads older than this are removed."""
IT = "it"
PATH = "path"
"""File beside a big entry: the path that it was fetched from, to be reported also after a restart."""
_NEW = "new-"
_PIECE = 1 << 20


class Cache:
    """Entries by key. For any thread; requests for an entry that is being fetched wait for that transfer."""

    def __init__(self, directory: Path) -> None:
        self.limit_bytes = 0
        self._top = directory
        self._lock = threading.Lock()
        self._total = 0
        self._under_way: dict[str, Future[None]] = {}
        self._entries: dict[str, int] = {}
        """Bytes by key, least recently used first."""
        self._coming: dict[str, int] = {}
        """Bytes by key of entries that are being fetched."""
        self._cut: dict[str, int] = {}
        """Bytes by key of interrupted downloads, oldest first."""
        self._in_use: Counter[str] = Counter()
        self._trusted: set[str] = set()
        self._paths: dict[str, str] = {}
        """Paths of big entries, by key."""
        self._told: tuple[HeldInput, ...] | None = ()
        self._load()

    def _load(self) -> None:
        self._top.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = []
        for path in sorted(self._top.iterdir(), key=lambda path: path.lstat().st_mtime_ns):
            if path.name.startswith(_NEW) and _is_recent(path):
                self._cut[path.name[len(_NEW) :]] = _bytes_below(path)
                continue
            key, _, count = path.name.rpartition(".")
            if key and count.isdigit() and os.path.lexists(path / IT):
                found.append((path.stat().st_mtime_ns, key, int(count)))
                self._load_path(path / PATH, key)
            else:
                remove(path)
        for _, key, size in sorted(found):
            self._entries[key] = size
            self._total += size

    def _load_path(self, file: Path, key: str) -> None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            self._paths[key] = file.read_text("utf-8")
            self._told = None

    def big_inputs(self) -> tuple[HeldInput, ...]:
        """Return its big entries, last used first, as many as heartbeats report."""
        told = self._told
        if told is None:
            with self._lock:
                keys = [key for key in self._entries if key in self._paths]
                sizes = {self._paths[key]: self._entries[key] for key in keys}
                told = self._told = tuple(HeldInput(path, sizes[path]) for path in reversed(sizes))[:INPUTS_TOLD]
        return told

    @property
    def used_bytes(self) -> int:
        """Bytes of entries, of downloads under way, and of interrupted ones."""
        with self._lock:
            return self._total + sum(self._coming.values()) + sum(self._cut.values())

    def fetch(self, key: str, entries: list[Entry], to: Path, transfer: Callable[[Path], int]) -> int:
        """Copy the content of `key` to the new path `to`. Returns the bytes that crossed the network: 0 on a hit.

        `entries`: the datastore's present list, the top first. `transfer` fetches the content to a path, and raises
        what `port.Reader.fetch` does.
        """
        size = sum(entry.size for entry in entries)
        if not self._may_hold(key, size):
            return transfer(to) if size < SMALL_BYTES else self._pass_on(key, size, to, transfer)
        moved = 0
        with self._kept(key):
            for _ in range(TIMES):
                if not self._holds(key, entries):
                    moved += self._bring(key, size, entries[0].path, transfer)
                try:
                    DirectoryDatastore(self._path(key, size)).fetch(IT, to)
                except (NotThere, DatastoreAway):
                    if (self._path(key, size) / IT).exists():
                        raise  # the disk is full or not writable
                    self._forget(key)  # the transfer that this one waited for failed, or the directory was emptied
                    continue
                if entries[0].kind == "file":  # the same content may exist with several times and modes
                    os.utime(to, (entries[0].mtime_s, entries[0].mtime_s))
                    os.chmod(to, entries[0].mode)
                self._use(key, size)
                return moved
        return moved + transfer(to)

    def make_room(self, wanted_bytes: int) -> None:
        """Evict until this many bytes are free, or nothing is left."""
        while shutil.disk_usage(self._top).free < wanted_bytes and self._evict():
            pass

    def shrink(self) -> None:
        """Evict down to the limit, which may have changed."""
        while self.used_bytes > self._limit() and self._evict():
            pass

    def sweep(self) -> None:
        """Remove interrupted downloads that were not requested for a day."""
        while self._drop_cut(old=True):
            pass

    # --- one entry -----------------------------------------------------------------------------------

    def _path(self, key: str, size: int) -> Path:
        return self._top / f"{key}.{size}"

    @contextlib.contextmanager
    def _kept(self, key: str) -> Iterator[None]:
        """Protect the entry from eviction meanwhile."""
        with self._lock:
            self._in_use[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_use[key] -= 1
                if not self._in_use[key]:
                    del self._in_use[key]

    def _holds(self, key: str, entries: list[Entry]) -> bool:
        """Whether the cache has the entry. An entry of an earlier process is checked once, and read if its hash is
        known."""
        size = self._entries.get(key)
        if size is None:
            return False
        if key not in self._trusted:
            if not _is_whole(self._path(key, size) / IT, entries):
                self._forget(key)
                return False
            self._trusted.add(key)
        return True

    def _bring(self, key: str, size: int, path: str, transfer: Callable[[Path], int]) -> int:
        """Fetch the entry, or wait for the transfer under way. Raises what `transfer` raises."""
        with self._lock:
            other = self._under_way.get(key)
            if other is None:
                if key in self._entries:
                    return 0
                mine = self._under_way[key] = Future()
                self._coming[key] = size
        if other is not None:
            other.exception()  # if it failed, this caller finds no entry and tries itself
            return 0
        try:
            return self._transfer(key, size, path, transfer)
        finally:
            with self._lock:
                del self._under_way[key], self._coming[key]
            mine.set_result(None)

    def _pass_on(self, key: str, size: int, to: Path, transfer: Callable[[Path], int]) -> int:
        """Fetch without keeping; still assembled here, so that it can resume after an interruption."""
        mine: Future[None] = Future()
        with self._lock:
            is_mine = self._under_way.setdefault(key, mine) is mine
        if not is_mine:
            return transfer(to)
        try:
            moved = self._put_together(key, transfer)
            shutil.move(self._aside(key) / IT, to)
            remove(self._aside(key))
            return moved
        finally:
            with self._lock:
                del self._under_way[key]
            mine.set_result(None)

    def _aside(self, key: str) -> Path:
        return self._top / f"{_NEW}{key}"

    def _put_together(self, key: str, transfer: Callable[[Path], int]) -> int:
        """Fetch it to its temporary place, resuming an interrupted download. Raises what `transfer` raises."""
        aside = self._aside(key)
        with self._lock:
            self._cut.pop(key, None)
        try:
            aside.mkdir(mode=0o700, exist_ok=True)
            return transfer(aside / IT)
        except DatastoreAway:
            if here := _bytes_below(aside):
                with self._lock:
                    self._cut[key] = here
            else:
                remove(aside)
            raise
        except BaseException:
            remove(aside)
            raise

    def _transfer(self, key: str, size: int, path: str, transfer: Callable[[Path], int]) -> int:
        self.shrink()
        moved = self._put_together(key, transfer)
        is_told = size >= BIG_INPUT_BYTES and _is_text(path)
        try:
            if is_told:
                (self._aside(key) / PATH).write_text(path, "utf-8")
            os.rename(self._aside(key), self._path(key, size))
        except OSError:
            remove(self._aside(key))
            raise
        with self._lock:
            self._coming[key] = 0
            self._entries[key] = size
            self._total += size
            self._trusted.add(key)
            if is_told:
                self._paths[key], self._told = path, None
        return moved

    def _use(self, key: str, size: int) -> None:
        with self._lock, contextlib.suppress(OSError):
            if key in self._entries:
                self._entries[key] = self._entries.pop(key)
            os.utime(self._path(key, size))

    # --- limits --------------------------------------------------------------------------------------

    def _limit(self) -> float:
        free = shutil.disk_usage(self._top).free
        return min(float(self.limit_bytes), PART_OF_DISK * (free + self.used_bytes))

    def _may_hold(self, key: str, size: int) -> bool:
        """Whether the cache has the entry, or it is worth keeping and small enough: its copy for the task needs room as
        well."""
        if not SMALL_BYTES <= size <= self._limit():
            return False
        return key in self._entries or COPIES * size <= shutil.disk_usage(self._top).free + self.used_bytes

    def _evict(self) -> bool:
        """Evict an interrupted download, else the least recently used entry that is not being copied. Returns whether
        there was one."""
        if self._drop_cut():
            return True
        with self._lock:
            key = next((key for key in self._entries if key not in self._in_use), "")
        if key:
            self._forget(key)
        return bool(key)

    def _drop_cut(self, old: bool = False) -> bool:
        """Remove the oldest interrupted download; `old`: only one that was not requested for a day. Returns whether
        there was one."""
        with self._lock:
            keys = (key for key in self._cut if key not in self._under_way)
            key = next((key for key in keys if not (old and _is_recent(self._aside(key)))), "")
            gone = self._top / f"gone-{key}"
            if key:
                del self._cut[key]
                with contextlib.suppress(OSError):  # the directory may have been emptied
                    os.rename(self._aside(key), gone)
        if key:
            remove(gone)
        return bool(key)

    def _forget(self, key: str) -> None:
        with self._lock:
            size = self._entries.pop(key, None)
            if self._paths.pop(key, None) is not None:
                self._told = None
            self._total -= size or 0
            self._trusted.discard(key)
        if size is not None:
            gone = self._top / f"gone-{key}"
            with contextlib.suppress(OSError):
                os.rename(self._path(key, size), gone)
            remove(gone)


def _is_text(path: str) -> bool:
    """Whether a message can contain the name: a name on disk may be any bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def key_of(where: str, entries: list[Entry]) -> str:
    """The key of a content: a file's hash if the datastore knows it, else its names, sizes and times in the datastore
    `where`."""
    top = entries[0]
    if top.kind == "file" and top.sha256:
        return f"s-{top.sha256}"
    digest = hashlib.blake2b(os.fsencode(where), digest_size=24)
    for entry in entries:
        told = f"\0{entry.path}\0{entry.kind}\0{entry.size}\0{entry.mode}\0{entry.mtime_s!r}\0{entry.sha256}"
        digest.update(os.fsencode(told))
    return f"p-{digest.hexdigest()}"


def _bytes_below(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())


def _is_recent(directory: Path) -> bool:
    times_s = [path.lstat().st_mtime for path in directory.rglob("*.part")]
    return max(times_s, default=0.0) > time.time() - CUT_S


def _is_whole(path: Path, entries: list[Entry]) -> bool:
    """Whether a file or tree matches the datastore's list, as far as that can show: after a crash it may not."""
    top = entries[0]
    try:
        for entry in entries:
            if entry.kind == "file" and (path / entry.path[len(top.path) + 1 :]).lstat().st_size != entry.size:
                return False
        if not top.sha256:
            return True
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError:
        return False
    return digest.hexdigest() == top.sha256
