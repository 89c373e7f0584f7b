"""The invitations made on this machine: a list in the boss's home. Keys are derived from their names, and not
stored."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import msgspec

from ecloud.config.home import Home


class Invitation(msgspec.Struct, frozen=True):
    """A key that was given to a user. `file`: where its access file was written; `at`: when, epoch seconds."""

    name: str
    role: str
    file: str
    at: float


def record(home: Home, name: str, role: str, file: str) -> None:
    """Add an invitation to the list. Raises `OSError`."""
    line = msgspec.json.encode(Invitation(name, role, file, time.time())) + b"\n"
    handle = os.open(home.invitations, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, line)
    finally:
        os.close(handle)


def invitations(home: Home) -> Iterator[Invitation]:
    """Yield all of them, oldest first, without lines that were cut off. Raises `OSError`."""
    if home.invitations.exists():
        for line in home.invitations.read_bytes().splitlines():
            try:
                yield msgspec.json.decode(line, type=Invitation)
            except msgspec.MsgspecError:
                continue
