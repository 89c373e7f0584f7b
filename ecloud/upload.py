"""Bytes from a person's disk into the datastore, before tasks ask for them. Skips what is there; can be done again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from datastore.directory import DirectoryDatastore
from datastore.port import Publisher
from ecloud.doors import Fault
from ecloud.formats.scaled import initial_input_bytes

NAMES_A_REQUEST = 1_000
SAME_TIME_S = 1.0
"""Times may be kept in whole seconds."""


def open_datastore(address: str) -> Publisher:
    """The datastore at `dir:PATH` or PATH. Raises `Fault`, `DatastoreAway`."""
    path = address.removeprefix("dir:")
    if address.startswith("ssh:") or ("@" in path and not path.startswith("/")):
        raise Fault(f"the datastore {address} is on another machine; this ECLOUD knows directories")
    return DirectoryDatastore(Path(path)).make()


def upload(directory: Path, datastore: Publisher, on_file: Callable[[str], None]) -> tuple[int, int]:
    """Put every file below `directory` under its relative name; how many were sent, and how many were there already.

    Raises `Fault` where `directory` is none, `DatastoreAway`, `OSError`.
    """
    if not directory.is_dir():
        raise Fault(f"--upload {directory}: there is no such directory")
    files = sorted(path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    sent = 0
    for start in range(0, len(files), NAMES_A_REQUEST):
        part = files[start : start + NAMES_A_REQUEST]
        names = [path.relative_to(directory).as_posix() for path in part]
        for path, name, entry in zip(part, names, datastore.stat(names)):
            status = os.lstat(path)
            if (
                entry is not None
                and entry.size == status.st_size
                and abs(entry.mtime_s - status.st_mtime) < SAME_TIME_S
            ):
                continue
            on_file(name)
            datastore.put(path, name)
            sent += 1
    return sent, len(files) - sent


def make_initial_inputs(inputs: Iterable[tuple[str, int]], scale: float, datastore: Publisher) -> int:
    """Write the files that no task of a scaled WfFormat list makes; how many were missing."""
    inputs = list(inputs)
    made = 0
    for (path, size), entry in zip(inputs, datastore.stat([path for path, _ in inputs])):
        header = next(initial_input_bytes(path, size, scale))
        if entry is not None and entry.size == max(len(header), int(size * scale)):
            continue
        with tempfile.NamedTemporaryFile() as file:
            for piece in initial_input_bytes(path, size, scale):
                file.write(piece)
            file.flush()
            os.chmod(file.name, 0o644)
            datastore.put(Path(file.name), path)
        made += 1
    return made
