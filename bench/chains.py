"""Chains on one worker through all real parts: 300 × `true`, each after the previous one, compared with the same
processes by `xargs -P1`; and ten steps that pass on a file of 100 MB.

A turn runs both, one after the other; the figure is the median of the turns, and the spread shows the noise.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.report import Figure, seconds
from bench.services import Services, plain_environment
from bench.throughput import wait_until_over
from ecloud.client.client import Client
from ecloud.model.tasks import Dependency, Requirement, Result, TaskDefinition
from ecloud.model.wire import PushOptions

LINKS = 300
TURNS = 5
AIM_MS = 0.5
"""Milliseconds per link, without the process itself."""
STEPS = 10
FILE_BYTES = 100_000_000


def measure(profiles: Path | None = None) -> list[Figure]:
    """Measure milliseconds per link, and the time of ten steps of 100 MB."""
    links: list[float] = []
    alone: list[float] = []
    with Services(profiles) as services:
        worker = services.start_worker("w1", "--cpus", "2")
        with Client(services.client_access()) as client:
            client.connect()
            _push(client, "warm", _chain(100))
            for turn in range(TURNS):
                alone.append(_xargs() / LINKS * 1e3)
                links.append(_push(client, f"run{turn}", _chain(LINKS)) / LINKS * 1e3)
                print(f"chains: turn {turn + 1}: {links[-1]:.2f} ms a link, {alone[-1]:.2f} alone", file=sys.stderr)
            data_s = _push(client, "data", _passing(FILE_BYTES))
            bare_s = _bare()
        services.end(worker)
    above = [link - process for link, process in zip(links, alone)]
    middle = statistics.median(above)
    spread = f"{min(above):.2f} to {max(above):.2f} ms"
    return [
        Figure(f"chain of {LINKS} x true: a process by xargs -P1", f"{statistics.median(alone):.2f} ms"),
        Figure(
            f"chain of {LINKS} x true: a link above the process ({spread} in {TURNS} turns)",
            f"{middle:.2f} ms", aim=f"<= {AIM_MS} ms", met=middle <= AIM_MS,
        ),
        Figure(f"chain of {STEPS} steps that pass {FILE_BYTES // 1_000_000} MB along", seconds(data_s)),
        Figure("the same commands by one shell, without us", seconds(bare_s)),
    ]  # fmt: skip


def _chain(links: int) -> list[TaskDefinition]:
    return [
        TaskDefinition(
            id=f"t{number}", commands=("true",), dependencies=(Dependency(f"t{number - 1}"),) if number else ()
        )
        for number in range(links)
    ]


def _passing(size: int) -> list[TaskDefinition]:
    tasks = []
    for number in range(STEPS):
        first = number == 0
        tasks.append(
            TaskDefinition(
                id=f"s{number}",
                commands=(f"head -c {size} /dev/zero > out" if first else "cat in > out",),
                dependencies=() if first else (Dependency(f"s{number - 1}"),),
                requirements=() if first else (Requirement(f"data/{number - 1}", "in"),),
                results=(Result("out", f"data/{number}"),),
            )
        )
    return tasks


def _push(client: Client, run: str, tasks: list[TaskDefinition]) -> float:
    """Return the seconds from acceptance to the record of the last outcome."""
    client.push(tasks, PushOptions(run=run))
    accepted_at = time.monotonic()
    wait_until_over(client, run)
    return time.monotonic() - accepted_at


def _xargs() -> float:
    numbers = "\n".join(map(str, range(LINKS))).encode()
    began = time.monotonic()
    subprocess.run(["xargs", "-P1", "-n1", "sh", "-c", "true"], input=numbers, env=plain_environment(), check=True)
    return time.monotonic() - began


def _bare() -> float:
    steps = "; ".join(f"cat {number} > {number + 1}" for number in range(STEPS - 1))
    script = f"cd $(mktemp -d) && head -c {FILE_BYTES} /dev/zero > 0; {steps}; rm -r $PWD"
    began = time.monotonic()
    subprocess.run(["sh", "-c", script], env=plain_environment(), check=True)
    return time.monotonic() - began
