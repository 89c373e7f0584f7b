"""The address of the boss in a Slurm cluster."""

from __future__ import annotations

from ecloud.cli import app
from ecloud.config.settings import load_settings


def slurm_master_host() -> str:
    """Return the host of the boss's broker, from the access file: `$ECLOUD_ACCESS`, or the one in ECLOUD's home, which
    nodes of a Slurm cluster usually share. Raises `Problem` if there is none."""
    return app.find_access(load_settings()).host
