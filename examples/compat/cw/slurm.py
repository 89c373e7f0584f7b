"""A cluster whose workers are Slurm jobs: `admin.py slurm start` and `stop`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from ecloud import slurm_master_host as master_host

__all__ = ["allocate", "master_host", "start", "stop"]

_ADMIN = [sys.executable, "-c", "from ecloud.cli.main import admin; admin()", "slurm"]


def start(nworkers: int, **options: object) -> None:
    """Start a boss, and workers as Slurm jobs."""
    _admin("start", "-n", str(nworkers))


def stop(**options: object) -> None:
    """End them."""
    _admin("stop")


def _admin(*arguments: str) -> None:
    """Run an action of `admin.py slurm`, which says what is wrong itself."""
    code = subprocess.run([*_ADMIN, *arguments], check=False).returncode
    if code:
        raise SystemExit(code)


@contextlib.contextmanager
def allocate(nworkers: int, **options: object) -> Iterator[None]:
    """Workers for the time of a `with` block."""
    start(nworkers)
    try:
        yield
    finally:
        stop()
