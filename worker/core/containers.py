"""The command line that runs a command in a container, for each runtime. Pure: reads no file and starts nothing.

In each container the attempt's working directory is `/ecloud/work`, and `$ECLOUD_WORKER_DIR` is `/ecloud/shared`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ecloud.model.tasks import Container

TOP = "/ecloud"
WORK, SHARED, CONTROL = f"{TOP}/work", f"{TOP}/shared", f"{TOP}/control"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = {
    "apptainer": ("apptainer", "singularity"),
    "podman": ("podman",),
    "docker": ("docker",),
    "charliecloud": ("ch-run",),
    "bubblewrap": ("bwrap",),
}
"""Names of programs in PATH, by runtime."""
FOR_DIRECTORIES = ("bubblewrap", "charliecloud", "apptainer")
FOR_FILES = ("apptainer",)
FOR_NAMES = ("apptainer", "podman", "docker")
"""Runtimes in the order in which `auto` tries them: for an image that is a directory, a file, or a name in a
registry."""
OWN_IN_BUBBLEWRAP = ("dev", "proc", "sys", "tmp", "run")
"""Top-level directories that bubblewrap provides itself, in place of the image's."""


class Place(msgspec.Struct, frozen=True):
    """Where an attempt runs on this machine.

    `memory_bytes`: the task's limit, 0 for none, which an engine that runs it elsewhere must hold.
    `name`: unique among all attempts of the cluster; `variables`: names of its environment variables; `tops`: the
    top-level entries of an image that is a directory, each with its target if it is a link.
    """

    directory: str
    shared: str
    control: str
    name: str
    user: int
    group: int
    variables: Sequence[str] = ()
    gpus: Sequence[str] | None = None
    tops: Sequence[tuple[str, str]] = ()
    memory_bytes: int = 0


def container_argv(container: Container, runtime: str, program: str, inner: Sequence[str], place: Place) -> list[str]:
    """The command line that runs `inner` in a container. `program`: the runtime's program on this machine."""
    return [program, *_BUILDERS[runtime](container, place), *inner]


def _binds(container: Container, place: Place) -> list[tuple[str, str, str]]:
    """(path here, path in the container, options) of each bind."""
    own = [(place.directory, WORK, ""), (place.shared, SHARED, ""), (place.control, CONTROL, "")]
    for bind in container.binds:
        here, _, rest = bind.partition(":")
        there, _, options = rest.partition(":")
        own.append((here, there or here, options))
    return own


def _apptainer(container: Container, place: Place) -> list[str]:
    image = container.image
    if "://" not in image and not image.startswith(("/", "./")) and not image.endswith(".sif"):
        image = f"docker://{image}"
    argv = ["exec", "--no-home", "--pwd", WORK]
    for here, there, options in _binds(container, place):
        argv += ["--bind", ":".join(part for part in (here, there, options) if part)]
    if container.gpus:
        argv.append("--nv")
    return [*argv, image]


def _engine(container: Container, place: Place) -> list[str]:
    argv = ["run", "--rm", "--init", "--name", place.name, "--workdir", WORK, "--network", "host"]
    for here, there, options in _binds(container, place):
        argv += ["--volume", ":".join(part for part in (here, there, options) if part)]
    for name in place.variables:
        argv += ["--env", name]
    if place.memory_bytes:
        argv += ["--memory", f"{place.memory_bytes}b"]
    return argv


def _docker(container: Container, place: Place) -> list[str]:
    argv = [*_engine(container, place), "--user", f"{place.user}:{place.group}"]
    if container.gpus:
        argv += ["--gpus", "all" if place.gpus is None else f'"device={",".join(place.gpus)}"']
    return [*argv, "--entrypoint", "", container.image]


def _podman(container: Container, place: Place) -> list[str]:
    argv = _engine(container, place)
    if place.user:
        argv += ["--userns", "keep-id"]
    if container.gpus:
        for gpu in place.gpus or ("all",):
            argv += ["--device", f"nvidia.com/gpu={gpu}"]
    return [*argv, "--entrypoint", "", container.image]


def _charliecloud(container: Container, place: Place) -> list[str]:
    argv = [f"--cd={WORK}", f"--set-env=PATH={PATH}"]
    argv += [f"--bind={here}:{there}" for here, there, _ in _binds(container, place)]
    return [*argv, container.image, "--"]


def _bubblewrap(container: Container, place: Place) -> list[str]:
    argv = ["--tmpfs", "/"]
    for name, target in place.tops:
        if target:
            argv += ["--symlink", target, f"/{name}"]
        elif name not in OWN_IN_BUBBLEWRAP:
            argv += ["--ro-bind", f"{container.image.rstrip('/')}/{name}", f"/{name}"]
    argv += ["--dev-bind", "/dev", "/dev"] if container.gpus else ["--dev", "/dev"]
    argv += ["--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/run"]
    for here, there, options in _binds(container, place):
        argv += ["--ro-bind" if options == "ro" else "--bind", here, there]
    return [*argv, "--unshare-pid", "--chdir", WORK, "--setenv", "PATH", PATH, "--"]


_BUILDERS = {
    "apptainer": _apptainer,
    "podman": _podman,
    "docker": _docker,
    "charliecloud": _charliecloud,
    "bubblewrap": _bubblewrap,
}
