"""`admin.py slurm`: workers as Slurm jobs, started on request."""

from __future__ import annotations

from datastore.problem import DONE, Problem
from ecloud.cli import app, daemon, request
from ecloud.config.settings import Settings, load_settings


def start(number: int, pool: str, as_json: bool) -> int:
    """Start the boss if none runs, then `number` workers of a Slurm pool that stay when idle.

    Raises `Problem`, and as `request.ask`.
    """
    settings = load_settings()
    name = _pool(settings, pool)
    if app.running_boss(settings.home_directory) is None:
        code = daemon.start(False, False)
        if code != DONE:
            return code
    return request.instantiate(number, name, True, True, as_json)


def _pool(settings: Settings, wanted: str) -> str:
    names = [pool.name for pool in settings.all_pools if pool.cloud == "slurm"]
    if not names:
        raise Problem('no pool of cloud "slurm" in POOLS of settings.py: see docs/slurm.md')
    if wanted and wanted not in names:
        raise Problem(f"{wanted} is not a pool of cloud slurm; there are  {', '.join(names)}")
    return wanted or names[0]
