"""A cluster of processes on this machine, for one program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ecloud.config.secrets import AccessFile
from ecloud.python.cluster import Cluster

_started: list[Cluster] = []


def access() -> AccessFile | None:
    """The cluster that `start` made; None without one."""
    return _started[-1].access if _started else None


def start(nworkers: int | None = None, **options: object) -> None:
    """Start a boss and workers."""
    _started.append(Cluster(None, nworkers, private=True))


def stop() -> None:
    """End them."""
    if _started:
        _started.pop().close()


@contextlib.contextmanager
def allocate(nworkers: int | None = None, **options: object) -> Iterator[None]:
    """Workers for the time of a `with` block."""
    start(nworkers)
    try:
        yield
    finally:
        stop()
