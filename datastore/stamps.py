"""Tells whether a file or directory is still what a task once required, by size, time and content.

Owns no list of what was required. Reads contents of small files only.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from datastore.local_tree import walk
from datastore.port import Entry, NotThere, Reader

HASHED_BYTES = 16_000_000
"""A file up to this size is compared by its content, too. Of a larger one size and time of change count."""


def stamp(path: Path) -> str:
    """Of a local copy that has the times of the original: "size time hash", "directory hash" or "link target".

    Raises `OSError`.
    """
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode):
        return f"link {os.readlink(path)}"
    if stat.S_ISDIR(info.st_mode):
        return _directory((item.name, item.info.st_size, item.info.st_mtime) for item in walk(path, "") if item.is_file)
    content = hashlib.sha256(path.read_bytes()).hexdigest()[:32] if info.st_size <= HASHED_BYTES else ""
    return f"{info.st_size} {_ms(info.st_mtime)} {content}"


def is_same(kept: str, now: Entry, datastore: Reader) -> bool:
    """Whether what is in the datastore now is what `kept` was made of. Raises `DatastoreAway`."""
    if now.kind == "link":
        return kept == f"link {now.sha256}"
    if now.kind == "directory":
        found = datastore.listing(now.path, recursive=True)
        files = [entry for entry in found if entry.kind == "file"]
        return kept == _directory((entry.path[len(now.path) + 1 :], entry.size, entry.mtime_s) for entry in files)
    size, _, rest = kept.partition(" ")
    time_ms, _, content = rest.partition(" ")
    if size != str(now.size):
        return False
    if time_ms == str(_ms(now.mtime_s)):
        return True
    return bool(content) and now.size <= HASHED_BYTES and content == _content(now, datastore)


def _content(entry: Entry, datastore: Reader) -> str:
    if entry.sha256:
        return entry.sha256[:32]
    with tempfile.TemporaryDirectory(prefix="ecloud-stamp-") as directory:
        local = Path(directory) / "file"
        try:
            datastore.fetch(entry.path, local)
        except NotThere:
            return ""
        return hashlib.sha256(local.read_bytes()).hexdigest()[:32]


def _directory(files: Iterable[tuple[str, int, float]]) -> str:
    lines = sorted(f"{name}\0{size}\0{_ms(mtime_s)}" for name, size, mtime_s in files)
    return "directory " + hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
