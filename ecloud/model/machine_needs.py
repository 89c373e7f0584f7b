"""What a machine needs to run a worker: the list of checks that `doctor`, `hosts up`, `worker/debug.sh` and the boss's
probes of VMs and hosts share. Each gathers the facts in its own way and adds its own remedies.

Pure, and only the standard library: `worker/debug.py` imports this before it knows that packages are installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

LEAST_PYTHON = (3, 10)
LEAST_DISK_MB = 300.0
"""With less free space a worker has no room for its code and starts nothing."""
CLOCK_OFF_S = 60.0
"""A clock that differs by more than this is wrong: certificates and time-outs of tasks would be wrong, too."""
PYTHON, DISK, HOME, CLOCK = "python", "disk", "home", "clock"
PREVENT_START = frozenset({PYTHON, DISK, HOME})
"""Without these no worker starts; a wrong clock may become right while the worker waits."""


@dataclass(frozen=True)
class MachineFacts:
    """The facts to check; None means that a fact is unknown and is not checked.

    `python`: version of the newest usable Python, else of any, "" for none; `disk_mb`: free space for a worker; `home`:
    why a worker cannot have its directory there, or ""; `clock_s`: how far the clock is ahead of the boss's.
    """

    python: str | None = None
    disk_mb: float | None = None
    home: str = ""
    clock_s: float | None = None


@dataclass(frozen=True)
class Lack:
    """A need that a machine does not meet. `text`: a clause about "it", the machine, without a remedy."""

    need: str
    text: str


def lacks(facts: MachineFacts, least_disk_mb: float = LEAST_DISK_MB) -> Iterator[Lack]:
    """Yield the needs that a machine does not meet, in the order in which they should be repaired."""
    if facts.python is not None and version(facts.python) < LEAST_PYTHON:
        what = f"its Python is {facts.python}" if facts.python else "it has no Python"
        yield Lack(PYTHON, f"{what}; ECLOUD needs {'.'.join(map(str, LEAST_PYTHON))} or later")
    if facts.disk_mb is not None and facts.disk_mb < least_disk_mb:
        yield Lack(DISK, f"it has {facts.disk_mb:.0f} MB free, {least_disk_mb:.0f} are needed")
    if facts.home:
        yield Lack(HOME, f"a worker cannot use its home there: {facts.home}")
    if facts.clock_s is not None and abs(facts.clock_s) > CLOCK_OFF_S:
        yield Lack(
            CLOCK, f"its clock is wrong by {abs(facts.clock_s):.0f} s ({'ahead' if facts.clock_s > 0 else 'behind'})"
        )


def version(text: str) -> tuple[int, ...]:
    """Return `3.11` as numbers; a text that is no version is older than all."""
    parts = text.split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else (0,)
