"""Whole outputs: files to which launchers write everything that a task prints, until they are staged with its
results."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ecloud.model.tasks import MERGED, Result, TaskBody, output_path
from worker.shell.process import Outputs


def output_files(body: TaskBody, control: str) -> Outputs:
    """Return the files for the outputs that the task wants whole. `control`: a path of this attempt alone."""
    is_merged = body.stderr == MERGED
    stdout = f"{control}.stdout" if body.stdout else ""
    stderr = f"{control}.stderr" if body.stderr and not is_merged else ""
    return Outputs(stdout, stderr, is_merged)


def outputs_of(body: TaskBody, number: int, control: str) -> tuple[Result, ...]:
    """Return the existing files, with the names that the task gives them in the datastore."""
    files = output_files(body, control)
    wanted = ((files.stdout, body.stdout), (files.stderr, body.stderr))
    return tuple(
        Result(local, output_path(template, body.id, number))
        for local, template in wanted
        if local and Path(local).is_file()
    )


def forget_outputs(control: str) -> None:
    """Remove the files."""
    for ending in (".stdout", ".stderr"):
        with contextlib.suppress(OSError):
            Path(control + ending).unlink(missing_ok=True)
