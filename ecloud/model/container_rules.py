"""What a container's description may say, in a task as in a pool."""

from __future__ import annotations

from collections.abc import Iterator

from ecloud.model.tasks import RUNTIMES, Container

MAX_TEXT_CHARS = 1_000
MAX_BINDS = 100
SHOWN_CHARS = 80


def container_problems(container: Container) -> Iterator[str]:
    """Yield a sentence for each problem."""
    for text in (container.image, *container.binds):
        if not 0 < len(text) <= MAX_TEXT_CHARS or not text.isprintable():
            yield f"{_shown(text)} is neither an image nor a path"
    if container.image.startswith("-"):
        yield f"{_shown(container.image)} cannot be the name of an image"
    if container.runtime not in RUNTIMES:
        yield f"runtime {_shown(container.runtime)}: known are {', '.join(RUNTIMES)}"
    if len(container.binds) > MAX_BINDS:
        yield f"{len(container.binds):,} binds; at most {MAX_BINDS} are allowed"
    for bind in container.binds:
        paths = bind.split(":")
        if (
            len(paths) > 3
            or not all(path.startswith("/") for path in paths[:2])
            or paths[2:] not in ([], ["ro"], ["rw"])
        ):
            yield f"bind {_shown(bind)}: here, here:there or here:there:ro, absolute paths"


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…")
