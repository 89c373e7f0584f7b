"""Keeps the output of a `--local` run's tasks: its cluster is removed at the end, and `logs` with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ecloud.model.text import visible

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

MAX_BYTES = 100_000_000
"""Maximum size of the file; if a run prints more, the outputs of its first tasks are kept."""


def keep_output(engine: Engine, run: str, directory: Path) -> Path | None:
    """Write the output of all tasks into one file of `directory`; returns None if there is no output.

    Raises `OSError` and `DatabaseAway`.
    """
    from ecloud.queries.outputs import outputs

    path = directory / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', run)[:100]}.output.txt"
    size = 0
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for output in outputs(engine, run):
            for stream, text in (("stdout", output.stdout), ("stderr", output.stderr)):
                if not text:
                    continue
                if size > MAX_BYTES:
                    file.write(f"=== output was cut: this file keeps at most {MAX_BYTES:,} bytes\n")
                    return path
                head = f"=== task {visible(output.task)}, attempt {output.number} ({output.ended}): {stream}\n"
                end = "" if text.endswith("\n") else "\n"
                size += file.write(f"{head}{text}{end}")
    if not size:
        path.unlink()
        return None
    return path
