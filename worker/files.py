"""Directories and files of attempts: working directories, requirements in, results out. Everything that blocks runs
in a pool.

Publishes nothing: results are staged; the boss promotes them.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from datastore.directory import DirectoryDatastore
from datastore.keys import write_known_hosts
from datastore.port import BadName, DatastoreAway, Entry, NotThere, Stager
from datastore.ssh import ALIAS, Access, SshAddress, SshDatastore
from ecloud.formats.paths import is_glob
from ecloud.tasks import ManifestEntry, Result, TaskBody
from ecloud.wire import DatastoreAccess

FILE_THREADS = 4
EMPTY_KEPT = 64
"""Empty working directories kept for the next attempts (facts: 5 us instead of 50)."""
MIN_FREE_MB = 50.0
"""Below this nothing is started: an outcome must still fit."""


class RequirementMissing(Exception):
    """A required file is not in the datastore; the text names it."""


class ResultMissing(Exception):
    """A promised result was not there after the commands; the text names it."""


def open_datastore(access: DatastoreAccess, ssh: Path) -> Stager:
    """The datastore that the boss named. `ssh`: the directory with this worker's key; the certificate is written there.

    Raises `DatastoreAway` where it can't be used from here.
    """
    if access.address.startswith("dir:"):
        root = Path(access.address[4:])
        if not root.is_dir():
            raise DatastoreAway(f"the datastore directory {root} is not on this machine: mount it here too")
        return DirectoryDatastore(root)
    try:
        address = SshAddress.parse(access.address)
    except ValueError as error:
        raise DatastoreAway(str(error)) from None
    if not (ssh / "key").exists():
        raise DatastoreAway("this worker has no SSH key: install the OpenSSH client here, and start it again")
    known_hosts, certificate = ssh / "known_hosts", ssh / "certificate.pub"
    write_known_hosts(known_hosts, ALIAS, access.host_key)
    write_certificate(access, ssh)
    return SshDatastore(address, Access(ssh / "key", known_hosts, certificate))


def write_certificate(access: DatastoreAccess, ssh: Path) -> None:
    """Renewed access, for connections that are made from now on."""
    aside = ssh / "certificate.new"
    aside.write_text(access.credential + "\n")
    aside.replace(ssh / "certificate.pub")


class WorkingDirectories:
    """Empty directories, one per attempt, used again while they stay empty."""

    def __init__(self, home: Path, pool: ThreadPoolExecutor) -> None:
        self._top = home / "work"
        self._kept = home / "kept"
        self._pool = pool
        self._empty: list[Path] = []
        self._count = 0
        shutil.rmtree(self._top, ignore_errors=True)
        self._top.mkdir(parents=True)

    def take(self) -> Path:
        """An empty directory. Raises `OSError`."""
        if self._empty:
            return self._empty.pop()
        self._count += 1
        path = self._top / f"d{self._count}"
        path.mkdir()
        return path

    def give_back(self, path: Path, keep_as: str = "") -> None:
        """The attempt is over; `keep_as` keeps it under that name."""
        if keep_as:
            self._kept.mkdir(exist_ok=True)
            os.rename(path, self._kept / keep_as)
            return
        try:
            # The cheapest look: an empty directory can be removed, but then it must be made again.
            with os.scandir(path) as items:
                is_empty = next(items, None) is None
        except OSError:
            return
        if is_empty and len(self._empty) < EMPTY_KEPT:
            self._empty.append(path)
        else:
            self._pool.submit(_remove, path)


def _remove(path: Path) -> None:
    shutil.rmtree(path, onerror=_make_writable)


def _make_writable(function: Callable[[str], object], name: str, error: object) -> None:
    with contextlib.suppress(OSError):
        os.chmod(Path(name).parent, 0o700)
        os.chmod(name, 0o700)
        function(name)


class Files:
    """Transfers of attempts."""

    def __init__(self, ssh: Path) -> None:
        self.pool = ThreadPoolExecutor(FILE_THREADS, "files")
        self._ssh = ssh
        self._access = DatastoreAccess("")
        self._datastore: Stager | None = None
        self._opening = threading.Lock()

    def use(self, access: DatastoreAccess) -> None:
        """Where the datastore is from now on, and what opens it."""
        if access == self._access:
            return
        moved = (access.address, access.host_key) != (self._access.address, self._access.host_key)
        self._access = access
        if moved:
            self._datastore = None
        elif self._datastore is not None and access.credential:
            write_certificate(access, self._ssh)

    def _store(self) -> Stager:
        with self._opening:
            if self._datastore is None:
                self._datastore = open_datastore(self._access, self._ssh)
            return self._datastore

    def probe(self) -> None:
        """Ask the datastore something. Raises `DatastoreAway`."""
        if self._access.address:
            self._store().stat(["probe"])

    def fetch(self, body: TaskBody, directory: Path) -> Future[int]:
        """Bring the requirements into the working directory; the bytes. Fails with `RequirementMissing`,
        `DatastoreAway`, `OSError`."""
        return self.pool.submit(self._fetch, body, directory)

    def _fetch(self, body: TaskBody, directory: Path) -> int:
        store, total = self._store(), 0
        for requirement in body.requirements:
            try:
                total += store.fetch(requirement.path, directory / requirement.local)
            except NotThere:
                raise RequirementMissing(f"requirement {requirement.path} is not in the datastore") from None
            except BadName as error:
                raise RequirementMissing(f"requirement {requirement.path}: {error}") from None
        return total

    def stage(self, stage: str, body: TaskBody, directory: Path) -> Future[tuple[ManifestEntry, ...]]:
        """Put the results below a stage; the manifest. Fails with `ResultMissing`, `DatastoreAway`, `OSError`."""
        return self.pool.submit(self._stage, stage, body, directory)

    def _stage(self, stage: str, body: TaskBody, directory: Path) -> tuple[ManifestEntry, ...]:
        store = self._store()
        manifest: list[ManifestEntry] = []
        for result in body.results:
            for local, path in matches(result, directory):
                try:
                    entries = store.store(stage, local, path)
                except NotThere:
                    raise ResultMissing(f"result {result.local} was not there after the commands") from None
                manifest.extend(_manifest_entry(result, entry) for entry in entries)
        return tuple(manifest)

    def drop(self, stage: str) -> None:
        """Remove what an attempt staged in vain; what can't be removed now is swept by the boss."""

        def drop() -> None:
            with contextlib.suppress(DatastoreAway, OSError):
                self._store().drop_stage(stage)

        self.pool.submit(drop)


def matches(result: Result, directory: Path) -> list[tuple[Path, str]]:
    """(local path, name in the datastore) of each file or directory that a result means. Raises `ResultMissing`."""
    if not is_glob(result.local):
        return [(directory / result.local, result.path)]
    found = sorted(glob.glob(result.local, root_dir=directory, recursive=True))
    if not found:
        raise ResultMissing(f"result {result.local} matched nothing after the commands")
    fixed = []
    for part in result.local.split("/")[:-1]:
        if is_glob(part):
            break
        fixed.append(part)
    prefix = "/".join(fixed)
    pairs = []
    for name in found:
        relative = name[len(prefix) + 1 :] if prefix else name
        pairs.append((directory / name, relative if result.path == "." else f"{result.path}/{relative}"))
    return pairs


def _manifest_entry(result: Result, entry: Entry) -> ManifestEntry:
    """Raises `ResultMissing` for a name that no message can carry."""
    try:
        (entry.path + entry.sha256).encode()
    except UnicodeEncodeError:
        named = ascii(entry.path)
        raise ResultMissing(
            f"result {result.local}: the name {named} is not UTF-8: rename it in the commands"
        ) from None
    return ManifestEntry(entry.path, entry.size, entry.sha256, entry.kind, entry.mode)


def free_disk_mb(path: Path) -> float:
    """Free space, in MB."""
    return shutil.disk_usage(path).free / 1e6
