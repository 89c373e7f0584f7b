"""Detects a broker that ends the connection because a message is too large: repeating it would not help."""

from __future__ import annotations

from collections.abc import Mapping

from ecloud.formats.large_tasks import largest_part
from ecloud.formats.problems import shown
from ecloud.model.tasks import TaskDefinition

LARGE_BYTES = 900_000
"""A message that a broker may refuse: the smallest usual limit is 1 MB."""
CUT_OFF_TIMES = 3
"""Connections in a row that end while a large message is under way, before it is given up."""


def too_large_for_broker(task: TaskDefinition, size: int) -> str:
    """Why the push of a task whose definition has `size` bytes is given up, and what to do."""
    part = largest_part(task)
    return (
        f"task {shown(task.id)}: its definition has {size:,} bytes, {part.size:,} of them {part.name}, and the "
        f"connection to the broker ended {CUT_OFF_TIMES} times while it was sent: the broker seems to take smaller "
        f"messages only; {part.remedy}, or raise max_packet_size and message_size_limit of the broker"
    )


def request_too_large(verb: str, arguments: Mapping[str, object], size: int) -> str:
    """The message for a request of `size` bytes that ended the connection each time."""
    count = max((len(value) for value in arguments.values() if isinstance(value, list)), default=0)
    return (
        f"{verb}: the request has {size:,} bytes and names {count:,} things, and the connection to the broker ended "
        f"{CUT_OFF_TIMES} times while it was sent: the broker seems to take smaller messages only. Nothing was done. "
        "Select tasks by --run, --state or --label, name a range of an array such as a[1-50000], name fewer at a time, "
        "or raise the broker's limits (Mosquitto: max_packet_size and message_size_limit)"
    )
