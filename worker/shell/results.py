"""An attempt's results on disk: finds the files of a declaration, and checks whether they can be stored.

Checks before anything is copied, so that a result that can never be stored fails its task immediately. A link to
something inside the working directory counts as its target. Faults of the task are `ResultUnusable`.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import stat
from pathlib import Path

from datastore.problem import Problem
from ecloud.formats.paths import fixed_part, is_glob
from ecloud.model.tasks import Result, TaskBody
from worker.shell.cache import SMALL_BYTES

MAX_DEPTH = 500
"""Nested directories; most tools cannot handle deeper trees."""
MAX_PATH_BYTES = 4_096
"""Longest path that Linux accepts."""
MAX_COPIES = 100
"""Links to directories that are replaced by copies, per result: links may lead to links."""
_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class ResultUnusable(Problem):
    """A promised result is missing, or cannot be stored. The text names it and the reason."""


def found(result: Result, directory: Path) -> list[tuple[Path, str]]:
    """Return (local path, name in the datastore) of each file or directory of a result.

    Links are resolved; links below a directory that lead out of it are replaced by their targets. Raises
    `ResultUnusable`.
    """
    pairs = []
    for local, path in matches(result, directory):
        pairs.append((_usable(result, local, Path(os.path.realpath(directory))), path))
    return pairs


def matches(result: Result, directory: Path) -> list[tuple[Path, str]]:
    """Return (local path, name in the datastore) of each file or directory that a result names. Raises
    `ResultUnusable`.

    A file whose name is exactly that of the result takes precedence over matches of the name as a pattern.
    """
    if not is_glob(result.local):
        return [(directory / result.local, result.path)]
    fixed = fixed_part(result.local)
    prefix = "" if fixed == "." else fixed
    if os.path.lexists(directory / result.local):
        if result.path != fixed and not (directory / result.local).is_dir():
            return [(directory / result.local, result.path)]
        names = [result.local]
    else:
        names = sorted(glob.glob(result.local, root_dir=directory, recursive=True))
    pairs = []
    for name in names:
        relative = name[len(prefix) + 1 :] if prefix else name
        if not relative:
            continue  # `a/**` also matches a itself, whose contents match anyway
        pairs.append((directory / name, relative if result.path == "." else f"{result.path}/{relative}"))
    if not pairs:
        raise ResultUnusable(f"result {result.local} matched nothing after the commands")
    return pairs


def _usable(result: Result, local: Path, top: Path) -> Path:
    """Return the real file or directory of a name, after checking that all of it can be stored. Raises
    `ResultUnusable`."""
    if not os.path.lexists(local):
        raise ResultUnusable(f"result {result.local} was missing after the commands")
    try:
        real = _resolved(result, local, top)
        copies = 0
        todo = [(real, 0)]
        while todo:
            path, depth = todo.pop()
            kind = _checked(result, path, depth, top)
            if kind == "directory":
                with os.scandir(path) as items:
                    todo += [(path / item.name, depth + 1) for item in items]
            elif kind == "link" and not _stays_within(path, real):
                copies += 1
                if copies > MAX_COPIES and path.is_dir():
                    raise ResultUnusable(f"result {result.local} has too many links to directories")
                _replace(path, _resolved(result, path, top))
                todo.append((path, depth))
    except OSError as error:
        named = shortened(os.fsdecode(error.filename or local), top)
        raise ResultUnusable(f"result {result.local} cannot be stored: {named}: {error.strerror}") from None
    return real


def _checked(result: Result, path: Path, depth: int, top: Path) -> str:
    """Return the kind of one entry: file, directory or link. Raises `ResultUnusable` and `OSError`."""

    def refuse(why: str) -> ResultUnusable:
        return ResultUnusable(f"result {result.local} cannot be stored: {shortened(str(path), top)} {why}")

    if depth > MAX_DEPTH:
        raise refuse(f"lies more than {MAX_DEPTH} directories deep")
    if len(os.fsencode(path)) >= MAX_PATH_BYTES:
        raise refuse(f"is a path of more than {MAX_PATH_BYTES} bytes")
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "link"
    for is_kind, name in _KINDS:
        if is_kind(mode):
            raise refuse(f"is {name}: only files, directories and links are stored")
    is_directory = stat.S_ISDIR(mode)
    if not os.access(path, os.R_OK | (os.X_OK if is_directory else 0)):
        raise refuse("cannot be read by the worker: chmod it in the commands")
    return "directory" if is_directory else "file"


def _resolved(result: Result, path: Path, top: Path) -> Path:
    """Return the target of a name, inside the working directory. Raises `ResultUnusable`."""
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(top) or real == top:
        to = f" leads to {real}," if path.is_symlink() else ""
        raise ResultUnusable(
            f"result {result.local} cannot be stored: {shortened(str(path), top)}{to} outside of the working directory:"
            " copy it in the commands (cp -L)"
        )
    if not os.path.lexists(real) or real.is_symlink():
        raise ResultUnusable(
            f"result {result.local} cannot be stored: {shortened(str(path), top)} is a link to"
            f" {shortened(os.readlink(path), top)}, which does not exist"
        )
    return real


def _stays_within(link: Path, tree: Path) -> bool:
    """Whether a link has the same meaning when the tree is moved."""
    target = os.readlink(link)
    if os.path.isabs(target):
        return False
    return Path(os.path.normpath(link.parent / target)).is_relative_to(tree) and os.path.exists(link)


def _replace(link: Path, real: Path) -> None:
    """Replace a link by a copy of its target. Raises `OSError`."""
    if link.is_relative_to(real):
        raise OSError(40, "the link leads to a directory that contains it", str(link))
    aside = link.with_name(f".{os.getpid()}.link")
    if real.is_dir():
        shutil.copytree(real, aside, symlinks=True)
        link.unlink()
    else:
        try:
            os.link(real, aside)
        except OSError:
            shutil.copy2(real, aside)
    os.rename(aside, link)


def shortened(path: str, top: Path) -> str:
    """Return a path relative to the working directory, for messages."""
    text = os.path.relpath(path, top) if path.startswith(f"{top}/") else path
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 200 else f"{text[:100]}…{text[-80:]}"


def size_of(body: TaskBody, directory: Path) -> int:
    """Return the bytes of the results that are plain files: enough to recognise large ones."""
    total = 0
    for result in body.results:
        with contextlib.suppress(OSError):
            total += os.lstat(directory / result.local).st_size
    return total


def are_small(body: TaskBody, directory: Path) -> bool:
    """Whether all results are files, and so small that even many of them can wait on this disk."""
    for result in body.results:
        try:
            info = os.lstat(directory / result.local)
        except OSError:
            return False
        if not stat.S_ISREG(info.st_mode) or info.st_size > SMALL_BYTES:
            return False
    return True
