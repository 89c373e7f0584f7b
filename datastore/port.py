"""What every datastore can do, whatever it is made of. Its comments are the contract that `tests/contract` runs.

All names are relative paths with `/`, normalised, without `..`, checked by every method (`BadName`).
A *stage* is a directory of one attempt below `.ecloud/staging/`, on the root's filesystem. Only the boss promotes.
All calls block; they are made from small pools, never from a loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from datastore.problem import PartAway, Problem

STAGING = ".ecloud/staging"
"""Below the root; hidden from listings."""


class DatastoreAway(PartAway):
    """The datastore can't be reached or can't write now. Wait and try again; costs no retry."""


class AccessRefused(DatastoreAway):
    """It takes this key or certificate not, or not any more: another one may open it."""


class BadName(Problem):
    """A name that leads out of the root or into the staging area, is absolute, empty, or holds a NUL."""


class NotThere(Problem):
    """No file or directory of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not in the datastore")
        self.name = name


class Unfit(Problem):
    """Something that no datastore can hold: neither file, directory nor link, not readable, nested too deep, a path
    that is too long. Waiting does not help; the text names it."""


@dataclass(frozen=True)
class Entry:
    """One thing in the datastore. `kind`: file, directory or link. `size` in bytes, `mode` permission bits, `mtime_s`
    epoch seconds.

    `sha256` is hex for a staged file and for one whose sum is known without reading it (`stat` may tell it), the target
    for a link, else empty.
    """

    path: str
    kind: str
    size: int
    mode: int
    mtime_s: float
    sha256: str = ""


@dataclass(frozen=True)
class Promotion:
    """Move what `stage` holds to final names. `entries`: the manifest, parents before children."""

    stage: str
    entries: tuple[Entry, ...]


class Reader(Protocol):
    """What a worker and a door may do."""

    def stat(self, names: list[str]) -> list[Entry | None]:
        """One entry per name, in order; None where there is nothing. 10,000 names are one request."""

    def fetch(self, name: str, to: Path) -> int:
        """Copy a file, or a directory with all below it, to the new local path `to`; the bytes copied.

        Permissions, times and links are kept. `to` appears whole or not at all. Never a hard link: a task may change
        what it fetched. Raises `NotThere`, `Unfit`.
        """

    def listing(self, name: str = "", recursive: bool = False) -> list[Entry]:
        """What lies below `name`, sorted by path, without the staging area. Raises `NotThere`."""


class Stager(Reader, Protocol):
    """What a worker may do besides reading: write below stages of its own."""

    def store(self, stage: str, local: Path, path: str) -> list[Entry]:
        """Put the local file or directory below `stage` under its future final name `path`; what was staged, parents
        first.

        Hashes while copying, once. Storing the same `path` again replaces it. Links stay links. Raises `NotThere`
        if `local` is missing, and `Unfit` before anything is copied.
        """

    def drop_stage(self, stage: str) -> None:
        """Remove a stage; nothing happens where there is none."""


class Publisher(Stager, Protocol):
    """What only the boss may do."""

    def promote(self, promotions: list[Promotion]) -> list[str | None]:
        """Move staged entries to their final names, each atomically, replacing what is there; None or a sentence for
        each. Of one promotion everything is moved, or, where something is neither staged nor published, nothing.

        A name that is none, or leads through a link, is such a sentence too: it must not hold up the others.
        Idempotent: an entry that is no longer staged but stands under its final name with its size counts as promoted.
        A directory in place of a file (or the reverse) is replaced. Removes each stage that was wholly promoted.
        Raises `DatastoreAway` when nothing can be said about the rest; then the whole call is made again.
        """

    def stages(self) -> list[str]:
        """Names of all stages."""

    def put(self, local: Path, path: str) -> list[Entry]:
        """Store and promote one file or directory for a person. Raises as `store`, and leaves no stage behind."""

    def free_mb(self) -> float:
        """Free space below the root, in MB."""
