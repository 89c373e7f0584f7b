"""Rules for paths in the datastore and in working directories. Opens nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from ecloud.formats.problems import shown

MAX_PATH_BYTES = 4_000
"""Longest path that Linux opens (PATH_MAX is 4,096), less the root's own path."""
MAX_PART_BYTES = 255
"""NAME_MAX of every common file system."""
RESERVED = ".ecloud"
"""The datastore's own directory, where results are staged."""
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
"""A quick test: most valid paths match, and no invalid one does."""
_GLOB = re.compile(r"[*?\[]")


def is_glob(path: str) -> bool:
    """Whether a result is a pattern."""
    return _GLOB.search(path) is not None


def normalised(path: str) -> str:
    """`a//b/./c/` is a/b/c. A path that is absolute or leads out is returned unchanged, for `path_problem` to
    report."""
    if path.startswith("/"):
        return path
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/".join(parts) or ("." if path else "")


def fixed_part(pattern: str) -> str:
    """The directory of a glob before its first wildcard: `a/b/*/c.png` is a/b, `*.png` is `.`."""
    parts: list[str] = []
    for part in pattern.split("/")[:-1]:
        if is_glob(part):
            break
        parts.append(part)
    return "/".join(parts) or "."


def above(path: str) -> Iterator[str]:
    """The directories above a path, the nearest first: a/b/c is in a/b and in a. Not the root."""
    while (cut := path.rfind("/")) > 0:
        path = path[:cut]
        yield path


def pattern_of(glob: str) -> list[str]:
    """The parts of a glob after its fixed part."""
    fixed = fixed_part(glob)
    return (glob if fixed == "." else glob[len(fixed) + 1 :]).split("/")


def matches_pattern(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a pattern matches a name or a directory above it. `**` stands for any number of directories.

    A name also matches if it equals the pattern literally: `sample[1].txt` is `sample[1].txt`.
    """
    if list(parts[: len(pattern)]) == list(pattern):
        return True
    lengths = {0}
    """Lengths of the beginnings of the name that the pattern so far matches."""
    for position, part in enumerate(pattern):
        if part == "**":
            least = min(lengths, default=len(parts) + 1) + (position == len(pattern) - 1)
            lengths = set(range(least, len(parts) + 1))
        else:
            lengths = {at + 1 for at in lengths if at < len(parts) and fnmatchcase(parts[at], part)}
    return bool(lengths)


def path_problem(path: str, in_datastore: bool = True) -> str | None:
    """Why a path cannot be a name below the datastore's root (or in a working directory); None if it can."""
    if len(path) <= MAX_PART_BYTES and _PLAIN.fullmatch(path):
        return None
    if not path:
        return "an empty path"
    if path[0] == "/":
        below = "the datastore's root" if in_datastore else "the working directory"
        return f"{shown(path)!r} is absolute; paths are relative to {below}"
    if "\0" in path:
        return f"{shown(path)!r} holds a NUL character"
    parts = path.split("/")
    if ".." in parts:
        return f"{shown(path)!r} leads outside its directory"
    if "" in parts or "." in parts:
        return f"{shown(path)!r} is not the name of a file: it has an empty part or a dot as a part"
    if in_datastore and parts[0] == RESERVED:
        return f"{shown(path)!r}: {RESERVED} is reserved for the datastore"
    if len(path) * 4 <= MAX_PART_BYTES:
        short = True
    else:
        encoded = path.encode("utf-8", "surrogatepass")
        short = len(encoded) <= MAX_PATH_BYTES and max(map(len, encoded.split(b"/"))) <= MAX_PART_BYTES
    if not short:
        return f"{shown(path)!r} is too long: at most {MAX_PATH_BYTES:,} bytes, {MAX_PART_BYTES} for each part"
    return text_problem(path, shown(path))


def text_problem(text: str, what: str) -> str | None:
    """Why `text` cannot be passed to a process or a database; None if it can. `what` it is, for the message."""
    if "\0" in text:
        return f"{what} holds a NUL character"
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{what} is not valid Unicode (a lone surrogate)"
    return None
