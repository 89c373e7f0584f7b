"""Queries to clouds, by a process of the boss's code: a command must not need the packages that only the boss needs.
Starts and ends no VM unless asked."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec

from datastore.problem import PartAway
from ecloud.config.settings import ROOT, Settings, child_environment

CLOUDS_S = 60.0
MACHINE_S = 400.0
"""Time limit for a VM to be created and get its address."""


class CloudsAway(PartAway):
    """A cloud did not answer; the text explains why."""


def has_clouds(settings: Settings) -> bool:
    """Whether any pool belongs to a cloud other than this machine."""
    return any(pool.cloud != "local" for pool in settings.all_pools)


def ask(*arguments: str, limit_s: float = CLOUDS_S) -> list[dict[str, Any]]:
    """Return the table that `python -m boss.providers.registry` prints. Raises `CloudsAway`."""
    command = [sys.executable, "-X", "utf8", "-m", "boss.providers.registry", *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=child_environment(), capture_output=True, timeout=limit_s, stdin=subprocess.DEVNULL
        )
        found: list[dict[str, Any]] = msgspec.json.decode(done.stdout)
        return found
    except subprocess.TimeoutExpired:
        raise CloudsAway(f"does not answer within {limit_s:.0f} s", "check OPENNEBULA_URL and the network") from None
    except msgspec.MsgspecError:
        words = done.stderr.decode(errors="replace").strip()[-300:]
        raise CloudsAway(words or "no output", "correct the settings") from None
