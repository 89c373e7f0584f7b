"""Finds a container's runtime and image on this machine, and removes what a runtime leaves behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from datastore.problem import Problem
from ecloud.model.tasks import Container
from worker.core.containers import (
    CONTROL,
    FOR_DIRECTORIES,
    FOR_FILES,
    FOR_NAMES,
    PROGRAMS,
    SHARED,
    WORK,
    Place,
    container_argv,
)

CLEAR_S = 30.0


class ContainerMissing(Problem):
    """A task's container cannot run here. The text names the runtime or the image, the host and the remedy."""


def argv_in_container(container: Container, inner: Sequence[str], place: Place) -> list[str]:
    """The command line that runs `inner` in the container. Raises `ContainerMissing`."""
    runtime, program = _runtime(container)
    image = Path(container.image)
    if image.is_absolute() and not image.exists():
        raise ContainerMissing(
            f"the container image {image} is not on host {socket.gethostname()}: copy it there, or to a directory that"
            " all workers share"
        )
    if runtime in ("bubblewrap", "charliecloud") and not image.is_dir():
        raise ContainerMissing(
            f"the container image {image} on host {socket.gethostname()} is no directory: {runtime} takes an image that"
            " is unpacked into a directory, by its absolute path"
        )
    if runtime == "bubblewrap":
        tops = [(item.name, os.readlink(item.path) if item.is_symlink() else "") for item in os.scandir(image)]
        place = msgspec.structs.replace(place, tops=sorted(tops))
    if runtime == "charliecloud":
        for inside in (WORK, SHARED, CONTROL):  # it creates no mount points
            with contextlib.suppress(OSError):
                (image / inside.lstrip("/")).mkdir(parents=True, exist_ok=True)
    return container_argv(container, runtime, program, inner, place)


def _runtime(container: Container) -> tuple[str, str]:
    """The runtime and its program. Raises `ContainerMissing`."""
    names: Sequence[str] = (container.runtime,)
    if container.runtime == "auto":
        image = Path(container.image)
        names = FOR_DIRECTORIES if image.is_dir() else FOR_FILES if image.suffix == ".sif" else FOR_NAMES
    for name in names:
        for candidate in PROGRAMS[name]:
            if program := shutil.which(candidate):
                return name, program
    raise ContainerMissing(
        f"no container runtime for image {container.image} is on host {socket.gethostname()}: install"
        f" {' or '.join(names)} there, give the task another runtime, or let it ask for a resource that only such"
        " workers offer (--resource NAME=N)"
    )


def clear_away(argv: Sequence[str], name: str) -> None:
    """End a container that its engine runs outside of the program that started it. Blocks."""
    if os.path.basename(argv[0]) in ("docker", "podman"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run([argv[0], "rm", "--force", name], capture_output=True, timeout=CLEAR_S, check=False)
