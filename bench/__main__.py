"""`python -m bench [NAME…]`: measure and print; without names, all benchmarks."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
from pathlib import Path

from bench.report import Figure, table
from bench.services import NotInstalled

MEASURES = (
    "core",
    "simulation",
    "throughput",
    "chains",
    "simulated",
    "push",
    "questions",
    "arrays",
    "doors",
    "over_ssh",
    "data",
    "vms",
    "hosts",
)


def main() -> int:
    """Return 0 if all benchmarks ran; 1 if one could not run or missed its aim."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="How fast ECLOUD is here. See bench/README.md."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(MEASURES)} [all]")
    parser.add_argument("--profile", metavar="DIR", type=Path, help="write cProfile's files of boss and worker there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that started processes are ended
    unknown = [name for name in options.names if name not in MEASURES]
    if unknown:
        parser.error(f"{', '.join(unknown)}: there is only {', '.join(MEASURES)}")
    figures: list[Figure] = []
    for name in options.names or MEASURES:
        began = time.monotonic()
        module = importlib.import_module(f"bench.{name}")
        takes_profiles = options.profile is not None and name in ("throughput", "chains", "simulated", "push", "data")
        try:
            figures += module.measure(options.profile) if takes_profiles else module.measure()
        except NotInstalled as error:
            figures.append(Figure(f"{name}: not measured: {error}", met=False))
        print(f"{name}: measured in {time.monotonic() - began:.0f} s", file=sys.stderr)
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}; CPU is per task, summed over cores")
    print(table(figures))
    return 1 if any(figure.met is False for figure in figures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
