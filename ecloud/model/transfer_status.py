"""What a worker says of files: which big ones it keeps, and what it moves. Values alone."""

from __future__ import annotations

import msgspec

from ecloud.model.tasks import Int64

BIG_INPUT_BYTES = 8_000_000
"""Less than this is fetched sooner than it is worth another order of tasks."""
INPUTS_TOLD = 32


class HeldInput(msgspec.Struct, frozen=True, array_like=True):
    """A big input that a worker keeps, by the path that it was fetched from last."""

    path: str
    bytes: Int64


class Moving(msgspec.Struct, frozen=True, omit_defaults=True):
    """Files on their way: so many for tasks that begin, so many of tasks that ended; `moved_bytes` of `bytes` so far,
    as near as can be said. `tasks`: whose they are; `since_s`: how long ago the first of what is on its way began."""

    fetching: Int64 = 0
    storing: Int64 = 0
    bytes: Int64 = 0
    moved_bytes: Int64 = 0
    bytes_per_s: Int64 = 0
    tasks: tuple[Int64, ...] = ()
    since_s: float = 0.0
