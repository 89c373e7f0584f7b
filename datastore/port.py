"""The interface of every datastore. `tests/contract` tests what its docstrings promise.

All names are relative paths with `/`, normalised, without `..`, checked by every method (`BadName`). A *stage* is a
directory of one attempt below `.ecloud/staging/`, on the root's file system. Only the boss promotes. All calls block:
call them from threads, never from an event loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from datastore.problem import PartAway, Problem

STAGING = ".ecloud/staging"
"""Below the root; hidden from listings."""


class DatastoreAway(PartAway):
    """The datastore cannot be reached or cannot write now. Wait and try again; this uses no retry."""


class AccessRefused(DatastoreAway):
    """The datastore does not, or no longer, accept this key or certificate."""


class BadName(Problem):
    """A name that leads out of the root or into the staging area, is absolute, empty, or contains a NUL."""


class NotThere(Problem):
    """No file or directory has that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not in the datastore")
        self.name = name


class Unfit(Problem):
    """An entry that no datastore can hold: neither file, directory nor link, not readable, nested too deep, or with too
    long a path. Waiting does not help. The text names it."""


@dataclass(frozen=True)
class Entry:
    """One entry of the datastore. `kind`: file, directory or link. `size` in bytes, `mode` permission bits, `mtime_s`
    epoch seconds.

    `sha256`: hex for a staged file and for one whose sum is known without reading it (`stat` may return it); for a link
    its target; else empty.
    """

    path: str
    kind: str
    size: int
    mode: int
    mtime_s: float
    sha256: str = ""


@dataclass(frozen=True)
class Promotion:
    """Move the contents of `stage` to their final names. `entries`: the manifest, parents before children."""

    stage: str
    entries: tuple[Entry, ...]


class Reader(Protocol):
    """What workers and commands may do."""

    def stat(self, names: list[str]) -> list[Entry | None]:
        """One entry per name, in order; None for a name that does not exist. 10,000 names are one request."""

    def fetch(self, name: str, to: Path) -> int:
        """Copy a file, or a directory with everything below it, to the new local path `to`. Returns the bytes copied.

        Keeps permissions, times and links. `to` appears whole or not at all, and never as a hard link: a task may
        change it. Raises `NotThere`, `Unfit`.
        """

    def listing(self, name: str = "", recursive: bool = False) -> list[Entry]:
        """The entries below `name`, sorted by path, without the staging area. Raises `NotThere`."""


class Stager(Reader, Protocol):
    """What a worker may also do: write below its own stages."""

    def store(self, stage: str, local: Path, path: str) -> list[Entry]:
        """Copy the local file or directory below `stage` under its final name `path`. Returns the staged entries,
        parents first.

        Hashes once, while copying. Storing the same `path` again replaces it. Links stay links. Raises `NotThere` if
        `local` is missing, and `Unfit` before anything is copied.
        """

    def drop_stage(self, stage: str) -> None:
        """Remove a stage, if it exists."""


class Publisher(Stager, Protocol):
    """What only the boss may do."""

    def promote(self, promotions: list[Promotion]) -> list[str | None]:
        """Move staged entries to their final names, each atomically, replacing what is there. Returns None or a
        sentence per promotion. All of a promotion is moved, or, if an entry is neither staged nor published, none of
        it.

        An invalid name, or one that leads through a link, also gives a sentence and does not hold up the others.
        Idempotent: an entry that is no longer staged, but has its final name and size, counts as promoted. A directory
        replaces a file and the reverse. Removes each stage that was promoted completely. Raises `DatastoreAway` if the
        rest is unknown; then the whole call is repeated.
        """

    def stages(self) -> list[str]:
        """Names of all stages."""

    def put(self, local: Path, path: str) -> list[Entry]:
        """Store and promote one file or directory for a person. Raises as `store`, and leaves no stage behind."""

    def remove(self, path: str) -> None:
        """Remove a published file, link, or directory with everything below it, if it exists. A name that leads through
        a link raises `BadName`."""

    def free_mb(self) -> float:
        """Free space below the root, in MB."""
