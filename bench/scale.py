"""`python -m bench.scale`: how cost grows with tasks and with workers.

For each number of tasks (a graph with two edges a task): the push (F), `status` (K), a restart with all of them
unfinished (G), and their run by workers that answer immediately (D). For each number of idle workers, which are real
MQTT clients: the boss's CPU (J). Prints a table, and draws it with `--plot FILE`. About ten minutes on two quiet cores;
a size that takes much longer is given up.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.idle_workers import IdleCrew, allow_connections
from bench.services import Services, cpu_s
from bench.simulated import Crew, graph
from bench.throughput import wait_until_over
from ecloud.client.client import Client
from ecloud.model.wire import PushOptions
from ecloud.queries import status as queries

TASKS = (10_000, 100_000, 1_000_000)
WORKERS = (100, 1_000, 3_000)
MOST_WIDTH = 4_000
STATUSES = 3
IDLE_S = 30.0
RESTART_S = 180.0
LONGEST_S = 420.0
AIMS = {
    "push, s": "1,000,000: <= 45", "push, boss MB at most": "1,000,000: <= 1,200", "status, s": "<= 0.3",
    "restart, s": "1,000,000: <= 15", "run, tasks/s": ">= 15,000", "run, boss us a task": "<= 30",
    "run, MariaDB us a task": "<= 35", "idle, boss % of a core": "3,000: <= 6",
}  # fmt: skip
Row = dict[str, float]


def of_tasks(count: int) -> Row:
    """Measure F, K, G and D with this many tasks."""
    with Services() as services, Client(services.client_access()) as client:
        client.connect()
        found = _push(services, client, count)
        found["status, s"] = _status_s(services)
        found["restart, s"] = _restart_s(services)
        found |= _run(services, client, count)
    return found


def _push(services: Services, client: Client, count: int) -> Row:
    tasks = graph(count, min(MOST_WIDTH, count // 10))
    boss, database, began = cpu_s(services.boss), cpu_s(services.database), time.monotonic()
    client.push(tasks, PushOptions(run="large"))
    return {
        "push, s": time.monotonic() - began,
        "push, boss us a task": (cpu_s(services.boss) - boss) / count * 1e6,
        "push, MariaDB us a task": (cpu_s(services.database) - database) / count * 1e6,
        "push, boss MB at most": memory_mb(services.boss, "VmHWM"),
    }


def _status_s(services: Services) -> float:
    taken = []
    for _ in range(STATUSES):
        engine = services.engine()
        began = time.monotonic()
        queries.status(engine)
        taken.append(time.monotonic() - began)
        engine.dispose()
    return statistics.median(taken)


def _restart_s(services: Services) -> float:
    """Return the seconds from the start of the process until it leads with everything loaded; includes Python's own
    start."""
    services.end(services.boss)
    before = services.boss_log().count(" unfinished tasks, ")
    began = time.monotonic()
    services.start_boss()
    while services.boss_log().count(" unfinished tasks, ") == before:
        if time.monotonic() - began > RESTART_S:
            raise TimeoutError(f"the boss does not start within {RESTART_S:g} s")
        time.sleep(0.02)
    return time.monotonic() - began


def _run(services: Services, client: Client, count: int) -> Row:
    boss, database, began = cpu_s(services.boss), cpu_s(services.database), time.monotonic()
    with Crew(services):
        wait_until_over(client, "large", LONGEST_S)
        wall_s = time.monotonic() - began
    return {
        "run, tasks/s": count / wall_s,
        "run, boss us a task": (cpu_s(services.boss) - boss) / count * 1e6,
        "run, MariaDB us a task": (cpu_s(services.database) - database) / count * 1e6,
        "boss MB after a restart": memory_mb(services.boss, "VmHWM"),
    }


def of_workers(count: int) -> Row:
    """Measure J with this many workers."""
    allow_connections(count)
    with Services() as services:
        crew = IdleCrew(services, count)
        try:
            crew.report()
            crew.tend(10.0)
            boss, broker, began = cpu_s(services.boss), cpu_s(services.broker), time.monotonic()
            crew.tend(IDLE_S)
            wall_s = time.monotonic() - began
            found = {
                "idle, boss % of a core": (cpu_s(services.boss) - boss) / wall_s * 100,
                "idle, Mosquitto % of a core": (cpu_s(services.broker) - broker) / wall_s * 100,
                "idle, boss MB": memory_mb(services.boss, "VmRSS"),
            }
        finally:
            crew.close()
    return found


def memory_mb(process: subprocess.Popen[bytes], what: str) -> float:
    """Return `VmRSS`, or `VmHWM` for the maximum so far."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def table(rows: dict[int, Row]) -> str:
    """Return a Markdown table: a line for each figure, a column for each size."""
    sizes = sorted(rows)
    names = list(dict.fromkeys(name for size in sizes for name in rows[size]))
    lines = ["| | " + " | ".join(f"{size:,}" for size in sizes) + " | aim |", "|---" * (len(sizes) + 2) + "|"]
    for name in names:
        values = [_shown(rows[size].get(name)) for size in sizes]
        lines.append(f"| {name} | " + " | ".join(values) + f" | {AIMS.get(name, '')} |")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def draw(path: Path, tasks: dict[int, Row], workers: dict[int, Row]) -> None:
    """Plot each figure over the number of tasks or workers, with logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
    _curves(axes[0][0], tasks, ("push, s", "restart, s", "status, s"), "seconds", "tasks")
    costs = ("push, boss us a task", "push, MariaDB us a task", "run, boss us a task", "run, MariaDB us a task")
    _curves(axes[0][1], tasks, costs, "CPU, us a task", "tasks")
    _curves(axes[1][0], tasks, ("push, boss MB at most", "boss MB after a restart"), "MB", "tasks")
    idle = ("idle, boss % of a core", "idle, Mosquitto % of a core", "idle, boss MB")
    _curves(axes[1][1], workers, idle, "% of a core; MB", "idle workers")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _curves(axis: Any, rows: dict[int, Row], names: tuple[str, ...], unit: str, of: str) -> None:
    sizes = sorted(rows)
    for name in names:
        points = [(size, rows[size][name]) for size in sizes if name in rows[size]]
        axis.plot([size for size, _ in points], [value for _, value in points], marker="o", label=name)
    axis.set(xscale="log", yscale="log", xlabel=of, ylabel=unit)
    axis.grid(visible=True, which="major", alpha=0.3)
    if sizes:
        axis.legend(fontsize=8)


def main() -> int:
    """Measure and print; return 1 if a size could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description="How cost grows. See bench/README.md.")
    parser.add_argument("--tasks", type=int, nargs="*", default=TASKS, metavar="N")
    parser.add_argument("--workers", type=int, nargs="*", default=WORKERS, metavar="N")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that started processes are ended
    tasks: dict[int, Row] = {}
    workers: dict[int, Row] = {}
    failed = False
    for rows, sizes, measure, what in (
        (tasks, options.tasks, of_tasks, "tasks"), (workers, options.workers, of_workers, "idle workers"),
    ):  # fmt: skip
        for size in sizes:
            began = time.monotonic()
            try:
                rows[size] = measure(size)
            except (TimeoutError, ConnectionError, RuntimeError, ValueError) as error:
                failed = True
                print(f"scale: {size:,} {what}: not measured: {error}", file=sys.stderr)
            load = os.getloadavg()[0]
            print(f"scale: {size:,} {what} in {time.monotonic() - began:.0f} s, load {load:.1f}", file=sys.stderr)
    load_text = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load_text}\n")
    print("\n\n".join(table(rows) for rows in (tasks, workers) if rows))
    if options.plot:
        draw(options.plot, tasks, workers)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
