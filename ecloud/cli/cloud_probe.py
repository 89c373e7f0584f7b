"""What clouds say, asked by a process of the boss's code: clouds are its business, and a door that waits for one must
not need what only the boss needs. Starts and ends nothing on its own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec

from datastore.problem import PartAway
from ecloud.config.settings import ROOT, Settings, child_environment

CLOUDS_S = 60.0
MACHINE_S = 400.0
"""For a VM to be made and get its address."""


class CloudsAway(PartAway):
    """No answer from a cloud; its text says why."""


def has_clouds(settings: Settings) -> bool:
    """Whether any pool is of a cloud that is not this machine."""
    return any(pool.cloud != "local" for pool in settings.all_pools)


def ask(*arguments: str, limit_s: float = CLOUDS_S) -> list[dict[str, Any]]:
    """What `python -m boss.providers.registry` says: rows of a table. Raises `CloudsAway`."""
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
        raise CloudsAway(words or "left no word", "mend the settings") from None
