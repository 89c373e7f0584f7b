"""Texts for transfers in progress. Pure."""

from __future__ import annotations

from ecloud.model.text import byte_size, counted, duration, visible
from ecloud.model.transfer_status import Moving
from ecloud.queries.views import Transfer

TASKS_NAMED = 2
OLD_S = 12.0
"""A report older than this is shown with its age: slightly more than two heartbeats with usual settings."""


def transfer_line(transfer: Transfer, now: float) -> str:
    """ "w4c2  fetching 1 file, 120 of 300 MB, 20 MB/s, for 6 s: big:t7"."""
    moving = Moving(transfer.fetching, transfer.storing, transfer.bytes, transfer.moved_bytes, transfer.bytes_per_s)
    since = f", for {duration(transfer.told_at - transfer.since)}"
    tasks = ", ".join(visible(name) for name in transfer.tasks[:TASKS_NAMED])
    more = f" and {counted(len(transfer.tasks) - TASKS_NAMED, 'other')}" if len(transfer.tasks) > TASKS_NAMED else ""
    age = f" (reported {duration(now - transfer.told_at)} ago)" if now - transfer.told_at > OLD_S else ""
    return f"{visible(transfer.worker)}  {moving_line(moving)}{since}" + (f": {tasks}{more}" if tasks else "") + age


def moving_line(moving: Moving) -> str:
    """ "fetching 3 files, 1.2 of 4 GB, 85 MB/s"."""
    parts = [
        f"{verb} {counted(count, 'file')}"
        for verb, count in (("fetching", moving.fetching), ("storing", moving.storing))
        if count
    ]
    total, so_far = byte_size(moving.bytes), byte_size(moving.moved_bytes)
    if total.split()[1:] == so_far.split()[1:]:
        so_far = so_far.split()[0]
    parts.append(f"{so_far} of {total}" if moving.moved_bytes < moving.bytes else total)
    if moving.bytes_per_s:
        parts.append(f"{byte_size(moving.bytes_per_s)}/s")
    return ", ".join(parts)
