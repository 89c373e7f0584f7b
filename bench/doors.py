"""Start time of the commands: `--help`, compared with an empty Python."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

from bench.report import Figure, seconds
from bench.services import ROOT, NotInstalled, plain_environment

MOST_HELP_S = 0.4
REPEATS = 7


def measure() -> list[Figure]:
    """Return the median of some starts of each; the first start, which writes byte code, is not counted."""
    missing = [door for door in ("admin.py", "push_tasks.py") if not (ROOT / door).exists()]
    if missing:
        raise NotInstalled(f"{' and '.join(missing)} is not there")
    commands = {
        "python -c pass": ["-c", "pass"],
        "admin.py --help": ["admin.py", "--help"],
        "push_tasks.py --help": ["push_tasks.py", "--help"],
    }
    figures = []
    for name, arguments in commands.items():
        _run(arguments)
        starts = [_run(arguments) for _ in range(REPEATS)]
        wall, cpu = (statistics.median(column) for column in zip(*starts, strict=True))
        aim = f"less than {MOST_HELP_S:g} s" if name == "admin.py --help" else ""
        met = wall < MOST_HELP_S if aim else None
        figures.append(Figure(f"doors: {name}", seconds(wall), seconds(cpu), "", aim, met))
    return figures


def _run(arguments: list[str]) -> tuple[float, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=plain_environment(), check=True, capture_output=True)
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
