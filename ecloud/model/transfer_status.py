"""What a worker reports about files: the large ones that it keeps, and those that it transfers. Values only."""

from __future__ import annotations

import msgspec

from ecloud.model.tasks import Int64

BIG_INPUT_BYTES = 8_000_000
"""Inputs below this size are not considered when tasks are placed: fetching them takes too little time."""
INPUTS_TOLD = 32


class HeldInput(msgspec.Struct, frozen=True, array_like=True):
    """A large input that a worker keeps, by the path that it was last fetched from."""

    path: str
    bytes: Int64


class Moving(msgspec.Struct, frozen=True, omit_defaults=True):
    """Transfers in progress: number of files for tasks that begin, and of tasks that ended; `moved_bytes` of `bytes` so
    far, approximately. `tasks`: the tasks that they belong to; `since_s`: how long ago the earliest of them began."""

    fetching: Int64 = 0
    storing: Int64 = 0
    bytes: Int64 = 0
    moved_bytes: Int64 = 0
    bytes_per_s: Int64 = 0
    tasks: tuple[Int64, ...] = ()
    since_s: float = 0.0
