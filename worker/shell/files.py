"""Directories and files of attempts: working directories, requirements in, results out. Everything that blocks runs in
a pool.

Never publishes: the worker stages results, the boss promotes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from datastore.directory import DirectoryDatastore
from datastore.keys import write_known_hosts
from datastore.port import BadName, DatastoreAway, Entry, NotThere, Stager, Unfit
from datastore.problem import Problem
from datastore.ssh.access import ALIAS, Access, SshAddress
from datastore.ssh.datastore import PATIENCE_S, STALL_S, SshDatastore
from datastore.stamps import stamp
from ecloud.model.tasks import MAX_STAMPS, ManifestEntry, Result, TaskBody
from ecloud.model.text import byte_size
from ecloud.model.transfer_status import HeldInput
from ecloud.model.wire import DatastoreAccess
from worker.core.events import TransfersChanged
from worker.shell.cache import SMALL_BYTES, Cache, key_of
from worker.shell.meter import Meter
from worker.shell.results import ResultUnusable, found, size_of
from worker.shell.transfers import Transfers

EMPTY_KEPT = 64
"""Empty working directories kept for the next attempts: using one takes 5 µs, making one 50."""
NAMED = 5
"""Missing requirements that are named."""
KEPT_NAME_BYTES = 180
"""Limit for run and task in the name of a kept directory; a name has at most 255 bytes."""
MIN_FREE_MB = 50.0
"""With less free space than this the worker starts nothing: an outcome must still fit."""


class RequirementMissing(Problem):
    """A required file is not in the datastore; the text names it."""


class NoRoom(Problem):
    """The requirements do not fit on this machine's disk now; the text gives the missing amount."""


def open_datastore(access: DatastoreAccess, ssh: Path, stall_s: float = STALL_S) -> Stager:
    """Open the datastore that the boss named. `ssh`: the directory with this worker's key, into which the certificate
    is written. `stall_s`: see `SshDatastore`.

    Raises `DatastoreAway` if it cannot be used from here.
    """
    if access.address.startswith("dir:"):
        root = Path(access.address[4:])
        if not root.is_dir():
            raise DatastoreAway(f"the datastore directory {root} is not on this machine: mount it here too")
        return DirectoryDatastore(root)
    try:
        address = _via(SshAddress.parse(access.address))
    except ValueError as error:
        raise DatastoreAway(str(error)) from None
    if not (ssh / "key").exists():
        raise DatastoreAway("this worker has no SSH key: install the OpenSSH client here and restart the worker")
    known_hosts, certificate = ssh / "known_hosts", ssh / "certificate.pub"
    write_known_hosts(known_hosts, ALIAS, access.host_key)
    write_certificate(access, ssh)
    return SshDatastore(
        address, Access(ssh / "key", known_hosts, certificate), stall_s=stall_s, patience_s=min(stall_s, PATIENCE_S)
    )


def _via(address: SshAddress) -> SshAddress:
    """Return the datastore's address through a tunnel, if this worker has one (`admin.py hosts up --tunnel`)."""
    host, _, port = os.environ.get("ECLOUD_DATASTORE_VIA", "").rpartition(":")
    return dataclasses.replace(address, host=host, port=int(port)) if host and port.isdecimal() else address


def write_certificate(access: DatastoreAccess, ssh: Path) -> None:
    """Write a renewed certificate, for all connections made from now on."""
    aside = ssh / "certificate.new"
    aside.write_text(access.credential + "\n")
    aside.replace(ssh / "certificate.pub")


def kept_name(run: str, task: str, number: int) -> str:
    """The name under which an attempt's directory is kept; no two attempts share one.

    Names that a directory cannot have, or only in part, are followed by a hash of the whole name. A run's name with a
    hyphen is, too: `a-b` and `c` are not `a` and `b-c`.
    """
    name = f"{run}-{task}"
    shown = name.replace("/", "_").encode("utf-8", "replace")[:KEPT_NAME_BYTES].decode("utf-8", "ignore")
    if shown != name or "-" in run:
        shown += "-" + hashlib.blake2b(f"{run}\0{task}".encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"{shown}-{number}"


class WorkingDirectories:
    """Empty directories, one per attempt, reused while they stay empty."""

    def __init__(self, home: Path, pool: ThreadPoolExecutor) -> None:
        self.top = home / "work"
        self._kept = home / "kept"
        self._pool = pool
        self._empty: list[Path] = []
        self._count = 0
        shutil.rmtree(self.top, ignore_errors=True)
        self.top.mkdir(parents=True)

    def take(self) -> Path:
        """Return an empty directory. Raises `OSError`."""
        if self._empty:
            return self._empty.pop()
        self._count += 1
        path = self.top / f"d{self._count}"
        path.mkdir()
        return path

    def give_back(self, path: Path, keep_as: str = "") -> None:
        """Take back the directory of an ended attempt. `keep_as`: keep it under that name."""
        if keep_as:
            self._kept.mkdir(exist_ok=True)
            target, count = self._kept / keep_as, 1
            while target.exists():  # of a task that was dropped and pushed again
                count += 1
                target = self._kept / f"{keep_as}.{count}"
            os.rename(path, target)
            return
        try:
            # The cheapest check: an rmdir would test emptiness as well, but then the directory must be made again.
            with os.scandir(path) as items:
                is_empty = next(items, None) is None
        except OSError:
            return
        if is_empty and len(self._empty) < EMPTY_KEPT:
            self._empty.append(path)
        else:
            self._pool.submit(_remove, path)


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path, onerror=_make_writable)
    except RecursionError:  # too deep for Python
        subprocess.run(["rm", "-rf", "--", str(path)], check=False, stderr=subprocess.DEVNULL)


def _make_writable(function: Callable[[str], object], name: str, error: object) -> None:
    with contextlib.suppress(OSError):
        os.chmod(Path(name).parent, 0o700)
        os.chmod(name, 0o700)
        function(name)


class Fetched(NamedTuple):
    """What the requirements of an attempt were: their bytes, how many of them crossed the network, and stamps by path
    (`datastore.stamps`)."""

    bytes: int
    moved_bytes: int
    stamps: Mapping[str, str] = MappingProxyType({})


class Files:
    """Transfers of attempts. Called from the loop; `later` and `tell`: see `worker.shell.transfers`."""

    def __init__(
        self,
        ssh: Path,
        cache: Path,
        later: Callable[[Callable[[], None]], None],
        tell: Callable[[TransfersChanged], None],
    ) -> None:
        self._transfers = Transfers(later, tell)
        self.pool = self._transfers.pool
        self._ssh = ssh
        self._cache = Cache(cache)
        self._access = DatastoreAccess("")
        self._datastore: Stager | None = None
        self._opening = threading.Lock()
        self._lane = 0
        self.stall_s = STALL_S
        self.meter = Meter()

    def use(self, access: DatastoreAccess, lane: int = 0, lane_is_open: bool = False) -> None:
        """Set the datastore, its credential and the lane for transfers. `lane_is_open`: whether transfers may begin in
        it."""
        if access != self._access:
            moved = not access.is_same_place(self._access)
            self._access = access
            if moved:
                self._hang_up()
                self._datastore = None
                self._transfers.needs_lane = self.meter.is_far = bool(access.host_key)
            elif self._datastore is not None and access.credential:
                write_certificate(access, self._ssh)
        if lane != self._lane and self._lane:
            self._hang_up()
        self._lane = lane
        self._transfers.begin(lane_is_open)

    def limit_cache(self, limit_mb: float) -> None:
        """Set how much of what was fetched over SSH the cache may keep, in MB."""
        limit_bytes = int(limit_mb * 1e6)
        if limit_bytes != self._cache.limit_bytes:
            self._cache.limit_bytes = limit_bytes
            self.pool.submit(self._cache.shrink)

    def sweep(self) -> None:
        """Remove what interrupted transfers left long ago."""
        self.pool.submit(self._cache.sweep)

    @property
    def inputs(self) -> tuple[HeldInput, ...]:
        """The large inputs in the cache, most recently used first."""
        return self._cache.big_inputs()

    def _hang_up(self) -> None:
        """Close the connection together with its lane; the next lane opens another."""
        if isinstance(self._datastore, SshDatastore):
            self.pool.submit(self._datastore.close)

    def _store(self) -> Stager:
        with self._opening:
            if self._datastore is None:
                self._datastore = open_datastore(self._access, self._ssh, self.stall_s)
            return self._datastore

    def probe(self) -> Future[None]:
        """Send the datastore a request. Fails with `DatastoreAway`."""

        def probe() -> None:
            if self._access.address:
                self._store().stat(["probe"])

        return self._transfers.submit(probe)

    def fetch(
        self, body: TaskBody, directory: Path, task_no: int = 0, own: Callable[[], int] | None = None
    ) -> Future[Fetched]:
        """Bring the requirements into the working directory; `own` brings others from this worker's own storage. Fails
        with `RequirementMissing`, `NoRoom`, `DatastoreAway`, `OSError`. A fetch that still waits for a lane can be
        cancelled."""

        def fetch() -> Fetched:
            brought = 0 if own is None else own()
            if not body.requirements:
                return Fetched(brought, 0)
            fetched = self._fetch(body, directory, task_no)
            return Fetched(fetched.bytes + brought, fetched.moved_bytes, _stamps(body, directory))

        return self._transfers.submit(fetch) if body.requirements else self.pool.submit(fetch)

    def _fetch(self, body: TaskBody, directory: Path, task_no: int) -> Fetched:
        store = self._store()
        small = self._fetch_small(store, body, directory)
        if small is not None:
            return small
        wanted = [self._below(store, entry) for entry in _found(store, body)]
        sizes = [sum(entry.size for entry in entries) for entries in wanted]
        self._look_for_room(sum(sizes), directory)
        moved = 0
        with self.meter.moving("fetch", len(body.requirements), sum(sizes), task_no):
            for requirement, entries, size in zip(body.requirements, wanted, sizes):
                try:
                    moved += self._fetch_one(store, entries, directory / requirement.local, size)
                except NotThere:
                    raise RequirementMissing(f"requirement {requirement.path} is not in the datastore") from None
                except Unfit as error:
                    raise RequirementMissing(f"requirement {requirement.path} cannot be fetched: {error}") from None
        return Fetched(max(sum(sizes), moved), moved)  # a directory that is read directly has no known size in advance

    def _fetch_small(self, store: Stager, body: TaskBody, directory: Path) -> Fetched | None:
        """Fetch all requirements in one request over SSH, if they are files too small for the cache; else return
        None."""
        if not isinstance(store, SshDatastore):
            return None
        self._look_for_room(SMALL_BYTES * len(body.requirements), directory)
        wanted = [(requirement.path, directory / requirement.local) for requirement in body.requirements]
        try:
            found = store.fetch_small(wanted, SMALL_BYTES - 1)
        except BadName:
            return None  # the general path finds the bad name
        size = sum(entry.size for entry in found or ())
        return None if found is None else Fetched(size, size)

    def _below(self, store: Stager, entry: Entry) -> list[Entry]:
        """Return the entry, and over SSH everything below it."""
        if entry.kind == "directory" and isinstance(store, SshDatastore):
            with contextlib.suppress(NotThere):
                return [entry, *store.listing(entry.path, recursive=True)]
        return [entry]

    def _fetch_one(self, store: Stager, entries: list[Entry], to: Path, size: int) -> int:
        """Fetch one requirement; return the bytes that crossed the network."""
        top = entries[0]
        if isinstance(store, SshDatastore) and top.kind != "link":
            key = key_of(str(store.address), entries)
            return self._cache.fetch(key, entries, to, lambda path: _verified(store, top, path))
        return _verified(store, top, to)

    def _look_for_room(self, size: int, directory: Path) -> None:
        """Make room in the cache if needed. Raises `NoRoom`."""
        kept = int(MIN_FREE_MB * 1e6)
        if size + kept > shutil.disk_usage(directory).free:
            self._cache.make_room(size + kept)
        free = shutil.disk_usage(directory).free
        if size + kept > free:
            raise NoRoom(
                f"too little disk space for its requirements: {byte_size(size)} needed, {byte_size(free)} are free in"
                f" {directory.parent}, of which {byte_size(kept)} must stay free"
            )

    def stage(
        self, stage: str, body: TaskBody, directory: Path, task_no: int = 0, outputs: Sequence[Result] = ()
    ) -> Future[tuple[ManifestEntry, ...]]:
        """Store the results, and `outputs` (by their absolute local names), below a stage; return the manifest.

        Fails with `ResultUnusable`, `DatastoreAway`, `OSError`.
        """
        size = size_of(body, directory) + sum(os.path.getsize(output.local) for output in outputs)
        return self._transfers.submit(lambda: self._stage(stage, body, directory, task_no, outputs, size), size)

    def _stage(
        self, stage: str, body: TaskBody, directory: Path, task_no: int, outputs: Sequence[Result], size: int
    ) -> tuple[ManifestEntry, ...]:
        store = self._store()
        manifest: list[ManifestEntry] = []
        with self.meter.moving("store", len(body.results) + len(outputs), size, task_no):
            stored = [(path, local, result) for result in body.results for local, path in found(result, directory)]
            stored += [(output.path, Path(output.local), output) for output in outputs]
            # Directories before the files inside them: the boss publishes in this order, so no entry replaces an
            # earlier one.
            for path, local, result in sorted(stored, key=lambda item: item[0].split("/")):
                try:
                    entries = store.store(stage, local, path)
                except NotThere:
                    raise ResultUnusable(f"result {result.local} was missing after the commands") from None
                except (BadName, Unfit) as error:
                    raise ResultUnusable(f"result {result.local} cannot be stored: {error}") from None
                if result.merge:
                    # Only files: publishing a directory of the manifest replaces the whole existing directory.
                    entries = [entry for entry in entries if entry.kind != "directory"]
                manifest.extend(_manifest_entry(result, entry) for entry in entries)
        return tuple(manifest)

    def drop(self, stage: str) -> None:
        """Remove the stage of an attempt whose results are not used. The boss sweeps what cannot be removed now."""

        def drop() -> None:
            with contextlib.suppress(DatastoreAway, OSError):
                self._store().drop_stage(stage)

        self._transfers.submit(drop)


def _found(store: Stager, body: TaskBody) -> list[Entry]:
    """Return one entry per requirement, from a single request. Raises `RequirementMissing`, which names the missing
    ones."""
    try:
        found = store.stat([requirement.path for requirement in body.requirements])
    except BadName as error:
        raise RequirementMissing(f"a requirement cannot be fetched: {error}") from None
    missing = [requirement.path for requirement, entry in zip(body.requirements, found) if entry is None]
    if missing:
        more = f", nor {len(missing) - 1} more: {', '.join(missing[1:NAMED])}" if len(missing) > 1 else ""
        raise RequirementMissing(f"requirement {missing[0]} is not in the datastore{more}")
    return [entry for entry in found if entry is not None]


def _stamps(body: TaskBody, directory: Path) -> dict[str, str]:
    found = {}
    for requirement in body.requirements[:MAX_STAMPS]:
        with contextlib.suppress(OSError, ValueError):  # then it is not told whether it changed
            found[requirement.path] = stamp(directory / requirement.local)
    return found


def _verified(store: Stager, top: Entry, to: Path) -> int:
    """Fetch, and compare the size with the one that the datastore reports (over SSH, the transfer itself compares the
    hash)."""
    moved = store.fetch(top.path, to)
    if top.kind == "file" and os.lstat(to).st_size != top.size:
        again = store.stat([top.path])[0]
        if again is None or again.size != os.lstat(to).st_size:
            raise DatastoreAway(f"{top.path} arrived incomplete: {moved} bytes of {top.size}")
    return moved


def _manifest_entry(result: Result, entry: Entry) -> ManifestEntry:
    """Build a manifest entry. Raises `ResultUnusable` for a name that no message can carry."""
    try:
        (entry.path + entry.sha256).encode()
    except UnicodeEncodeError:
        named = ascii(entry.path)
        raise ResultUnusable(
            f"result {result.local}: the name {named} is not UTF-8: rename it in the commands"
        ) from None
    return ManifestEntry(entry.path, entry.size, entry.sha256, entry.kind, entry.mode)


def free_disk_mb(path: Path) -> float:
    """Return the free space, in MB."""
    return shutil.disk_usage(path).free / 1e6
