"""Sweeps: a program and values of its parameters -> one task for each combination. Pure: bytes in, values out."""

from ecloud.formats.sweep.reading import is_sweep, read_sweep
from ecloud.formats.sweep.tasks import sweep_tasks

__all__ = ["is_sweep", "read_sweep", "sweep_tasks"]
