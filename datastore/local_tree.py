"""Lists a local file or directory that is to be stored, and checks it before the first byte is copied.

Owns the rules of what can be stored. Copies nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from datastore.port import Unfit

MAX_DEPTH = 500
"""Nested directories: most tools cannot walk or remove deeper trees."""
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4_096
"""Longest path that Linux accepts."""
_REFUSED = {
    errno.EACCES: "may not be read by this account",
    errno.EPERM: "may not be read by this account",
    errno.ENAMETOOLONG: f"has a path over {MAX_PATH_BYTES:,} bytes",
}


class Item(NamedTuple):
    """One entry to store. `target`: of a link."""

    local: Path
    name: str
    info: os.stat_result
    target: str = ""

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.info.st_mode)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.info.st_mode)


def walk(local: Path, name: str, leave_out: Path | None = None, depth: int = 0) -> Iterator[Item]:
    """`local` and everything below it, parents first, with names in the datastore (`name` for `local` itself).

    Links stay links. `leave_out` is skipped. `depth`: of `local`. Raises `Unfit`, `OSError`.
    """
    if local == leave_out:
        return
    with _reading(local):
        info = local.lstat()
        _require_name(local, name, depth)
        names: list[str] = []
        if stat.S_ISLNK(info.st_mode):
            yield Item(local, name, info, os.readlink(local))
            return
        if stat.S_ISDIR(info.st_mode):
            names = sorted(os.listdir(local))
        elif not stat.S_ISREG(info.st_mode):
            raise Unfit(f"{local} is a {kind_of(info.st_mode)}: only files, directories and links can be stored")
        elif not os.access(local, os.R_OK, effective_ids=True):
            raise Unfit(f"{local} {_REFUSED[errno.EACCES]}")
    yield Item(local, name, info)
    for item in names:
        yield from walk(local / item, f"{name}/{item}" if name else item, leave_out, depth + 1)


def _require_name(local: Path, name: str, depth: int) -> None:
    raw = os.fsencode(name)
    if depth > MAX_DEPTH:
        raise Unfit(f"{_short(local)} is nested deeper than {MAX_DEPTH} directories")
    if len(raw) > MAX_PATH_BYTES:
        raise Unfit(f"{_short(local)} {_REFUSED[errno.ENAMETOOLONG]}")
    if len(raw.rpartition(b"/")[2]) > MAX_NAME_BYTES:
        raise Unfit(f"{_short(local)} has a name over {MAX_NAME_BYTES} bytes")


@contextmanager
def _reading(local: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _REFUSED:
            raise Unfit(f"{_short(local)} {_REFUSED[error.errno]}") from error
        raise


def kind_of(mode: int) -> str:
    """The usual word for an entry that is neither file, directory nor link."""
    kinds = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    return kinds.get(stat.S_IFMT(mode), "thing of an unknown kind")


def _short(path: Path) -> str:
    """The begin and end of a path that is too long."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}…{text[-60:]}"
