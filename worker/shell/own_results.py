"""Results on this worker, for attempts that are chained to those that made them.

Reads and hashes what an attempt left in its working directory before anything is staged, and copies it into the working
directories of others. Owns no directory: `jobs` keeps each as long as it is needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from datastore.port import BadName
from ecloud.model.tasks import ManifestEntry, TaskBody
from worker.shell.results import found

_CLONE = 0x40049409
"""FICLONE of <linux/fs.h>: the copy shares the original's blocks until one of them is written."""
PIECE = 1 << 20


class OwnResults(msgspec.Struct, frozen=True):
    """Results of an attempt. `files`: SHA-256 by final name; `paths`: local paths; `others`: final names of directories
    and links."""

    files: dict[str, str]
    paths: dict[str, Path]
    others: tuple[str, ...]


def read(body: TaskBody, directory: Path) -> OwnResults:
    """Find and hash the results of an attempt whose commands ended. Raises `ResultUnusable`, `BadName`, `OSError`."""
    files: dict[str, str] = {}
    paths: dict[str, Path] = {}
    others: list[str] = []
    for result in body.results:
        for local, name in found(result, directory):
            for path, final in _below(local, plain(name)):
                if stat.S_ISREG(path.lstat().st_mode):
                    files[final], paths[final] = _hash(path), path
                else:
                    others.append(final)
    return OwnResults(files, paths, tuple(others))


def changed(own: OwnResults, manifest: tuple[ManifestEntry, ...]) -> str:
    """Return the name of a result that was staged with other content than its followers got; else ""."""
    staged = {entry.path: entry.sha256 for entry in manifest if entry.kind == "file"}
    return next((name for name, sha256 in own.files.items() if staged.get(name) != sha256), "")


def copy(source: Path, to: Path) -> int:
    """Copy a file, sharing its blocks if the file system can. Returns its bytes. `to` appears whole. Raises
    `OSError`."""
    to.parent.mkdir(parents=True, exist_ok=True)
    aside = to.parent / f".{os.getpid()}-{to.name[:200]}.part"
    with contextlib.suppress(FileNotFoundError):
        aside.unlink()
    try:
        with open(source, "rb") as read_from, open(aside, "xb") as write_to:
            try:
                fcntl.ioctl(write_to.fileno(), _CLONE, read_from.fileno())
            except OSError:  # another file system, or one that cannot share blocks
                shutil.copyfileobj(read_from, write_to, PIECE)
        shutil.copystat(source, aside)
        os.rename(aside, to)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    return to.lstat().st_size


def plain(name: str) -> str:
    """Return the shortest form of a name in the datastore. Raises `BadName` if it leads out of it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise BadName(f"{name!r} is not a name in a datastore")
    return "/".join(parts)


def sources(own: Mapping[str, tuple[int, int]], made: Mapping[tuple[int, int], OwnResults]) -> dict[str, Path] | None:
    """Return the local path of each required file; None if one of them no longer exists here."""
    places = {}
    for path, key in own.items():
        results = made.get(key)
        if results is None or plain(path) not in results.paths:
            return None
        places[path] = results.paths[plain(path)]
    return places


def _below(path: Path, name: str) -> Iterator[tuple[Path, str]]:
    yield path, name
    if path.is_dir() and not path.is_symlink():
        for item in sorted(os.listdir(path)):
            yield from _below(path / item, f"{name}/{item}")


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()
