"""What makes the definition of a task large, and what its user can do about it: for those that refuse it."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ecloud.model.tasks import TaskDefinition

MAX_DEFINITION_BYTES = 8 * 1024 * 1024
"""Size of one task as JSON: half of the largest message, half of MariaDB's default packet."""


class LargePart(NamedTuple):
    """The largest part of a definition: what it is, its size in bytes as JSON, and how to make it smaller."""

    name: str
    size: int
    remedy: str


def largest_part(task: TaskDefinition) -> LargePart:
    """The part that takes most of a task's definition."""
    call = task.call
    code = None if call is None else msgspec.structs.replace(call, needs=())
    smaller_waits = (
        "let it depend on a few tasks that each depend on a part of these"
        if call is None
        else "let other calls combine a part of these values each"
    )
    parts = (
        ("commands and variables", (task.commands, task.env), "put long commands into a file that the task requires"),
        ("pickles", code, "pass smaller arguments"),
        (
            f"{len(task.dependencies):,} dependencies",
            (task.dependencies, call.needs if call is not None else ()),
            smaller_waits,
        ),
        (f"{len(task.requirements):,} requirements", task.requirements, "require a directory that contains these"),
        (f"{len(task.results):,} results", task.results, "declare a directory that contains these"),
        ("entries", task.array and task.array.entries, "put long entries into files"),
    )
    found = [LargePart(name, len(msgspec.json.encode(part)), remedy) for name, part, remedy in parts]
    return max(found, key=lambda part: part.size)


def too_large(task: TaskDefinition, size: int) -> str:
    """Why a task whose definition has `size` bytes is refused everywhere, and what to do."""
    part = largest_part(task)
    return (
        f"{size:,} bytes as JSON, {part.size:,} of them {part.name}; at most {MAX_DEFINITION_BYTES:,} are allowed: "
        f"{part.remedy}"
    )
