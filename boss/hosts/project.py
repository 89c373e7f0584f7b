"""A project directory as an archive that is named by its content."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

import msgspec

from datastore.problem import Problem

LEFT_OUT = frozenset((
    ".git", ".hg", ".svn", "__pycache__", ".venv", "venv", ".mypy_cache", ".pytest_cache", ".ruff_cache",
    "node_modules", ".ipynb_checkpoints",
))  # fmt: skip
MAX_BYTES = 500_000_000
"""Larger projects are refused: data belongs in the datastore."""


class Project(msgspec.Struct, frozen=True):
    """`name`: by content, 16 hexadecimal digits; `package`: the name of its directory; `archive`: .tar.gz."""

    name: str
    package: str
    archive: bytes


def pack(directory: Path) -> Project:
    """Pack all files of a project, except those of version control, caches and virtual environments, as `PACKAGE/...`.
    Raises `Problem`."""
    packed, digest, size = io.BytesIO(), hashlib.sha256(), 0
    try:
        with (
            gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", dereference=True) as archive,
        ):
            for path in _files(directory):
                data = path.read_bytes()
                size += len(data)
                if size > MAX_BYTES:
                    raise Problem(
                        f"the project {directory} has more than {MAX_BYTES // 1_000_000} MB",
                        "move data out of it and into the datastore (python admin.py put)",
                    )
                entry = tarfile.TarInfo(str(Path(directory.name) / path.relative_to(directory)))
                entry.size, entry.mode = len(data), 0o755 if os.access(path, os.X_OK) else 0o644
                digest.update(f"{entry.name}\0{entry.mode}\0{entry.size}\0".encode() + data)
                archive.addfile(entry, io.BytesIO(data))
    except OSError as error:
        raise Problem(f"the project's {error.filename} cannot be read: {error.strerror}") from None
    return Project(digest.hexdigest()[:16], directory.name, packed.getvalue())


def _files(directory: Path) -> list[Path]:
    found = []
    for place, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if name not in LEFT_OUT)
        found += [path for name in sorted(names) if (path := Path(place, name)).is_file()]
    return found
