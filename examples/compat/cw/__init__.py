"""cluster-workers' package on ECLOUD: put `examples/compat` on `PYTHONPATH`, and its programs run unchanged."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

from ecloud import slurm_master_host
from ecloud.config.settings import load_settings

__all__ = ["PORT", "allocate", "client", "mp", "randid", "slurm", "slurm_master_host"]

PORT = 5494
"""cluster-workers' port: accepted and ignored."""


def randid() -> int:
    """A new job id."""
    return random.getrandbits(128)


@contextlib.contextmanager
def allocate(nworkers: int, **options: object) -> Iterator[None]:
    """Workers for the time of a `with` block: Slurm jobs if the settings have such a pool, else local processes."""
    from cw import mp, slurm

    has_slurm = any(pool.cloud == "slurm" for pool in load_settings().all_pools)
    with (slurm if has_slurm else mp).allocate(nworkers, **options):
        yield
