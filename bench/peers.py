"""`python -m bench.peers`: the same work by ECLOUD and by Ray, Dask, Celery, HyperQueue and Parsl, in turns.

A: 4,000 x `sh -c true` with two slots. B: a chain of 300. H: from submit to the start of the command on an idle
cluster. C: 10,000 Python calls by submit and by map, and one call. It takes about seven minutes on two quiet cores, and
as long to install the peers. ECLOUD commits to a durable MariaDB; the peers keep nothing on disk. The peers are in
their own environment (`.peers`), which the first run creates.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.peer_programs import CALLS, LINKS, PEERS, TASKS, WARM, Calls, figures, note_start, singles
from bench.services import ROOT, Services, plain_environment
from bench.throughput import wait_until_over
from ecloud import VERSION
from ecloud.client.client import Client
from ecloud.config.secrets import write_access
from ecloud.model.tasks import Dependency, TaskDefinition
from ecloud.model.wire import PushOptions
from ecloud.python.executor import ClusterExecutor

ENVIRONMENT = ROOT / ".peers"
REQUIREMENTS = ROOT / "bench" / "requirements-peers.txt"
TURNS = 2
PEER_S = 150.0
"""Maximum duration of a turn of one peer: several times the usual one."""
OURS = "ECLOUD"
Found = dict[str, Any]


def make_environment() -> Path:
    """Return the Python of the peers. Raises `CalledProcessError` if pip cannot install them."""
    python = ENVIRONMENT / "bin" / "python"
    mark = ENVIRONMENT / "requirements.txt"
    if not mark.exists() or mark.read_text() != REQUIREMENTS.read_text():
        print(f"peers: installing them into {ENVIRONMENT}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        subprocess.run([python, "-m", "pip", "-q", "install", "-r", REQUIREMENTS], check=True)
        mark.write_text(REQUIREMENTS.read_text())
    return python


def by_peer(name: str, python: Path) -> Found:
    """Run one turn of a peer. Raises `RuntimeError` with the end of its output."""
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as directory:
        command = [str(python), str(ROOT / "bench" / "peer_programs.py"), name, directory]
        environment = {**plain_environment(), "RAY_USAGE_STATS_ENABLED": "0"}
        environment |= {name: os.environ[name] for name in ("BENCH_SMALL",) if name in os.environ}
        environment["PATH"] = f"{python.parent}:{environment.get('PATH', '')}"
        try:
            ran = subprocess.run(command, env=environment, capture_output=True, timeout=PEER_S, cwd=directory)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"it did not end within {PEER_S:g} s") from None
    if ran.returncode:
        raise RuntimeError(ran.stderr.decode(errors="replace").strip()[-300:])
    found: Found = json.loads(ran.stdout.splitlines()[-1])
    return found


def by_us() -> Found:
    """Run one turn of ECLOUD, through MariaDB, Mosquitto, boss and one worker."""
    with Services() as services, tempfile.TemporaryDirectory(prefix="bench-ours-") as directory:
        worker = services.start_worker("w1", "--cpus", "2")
        try:
            with Client(services.client_access()) as client:
                client.connect()
                found = _by_us(services, client, Path(directory))
        finally:
            services.end(worker)
    return {**found, "version": VERSION}


def _by_us(services: Services, client: Client, directory: Path) -> Found:
    numbers = iter(range(1_000_000))

    def push(tasks: list[TaskDefinition]) -> None:
        run = f"run{next(numbers)}"
        client.push(tasks, PushOptions(run=run))
        wait_until_over(client, run)

    def one(path: str) -> None:
        push([TaskDefinition(id="t", commands=(f"date +%s%N > {path}",))])

    def chain(links: int) -> None:
        push([
            TaskDefinition(id=f"t{n}", commands=("true",), dependencies=(Dependency(f"t{n - 1}"),) if n else ())
            for n in range(links)
        ])  # fmt: skip

    access = directory / "client.access"
    write_access(access, services.client_access())
    with ClusterExecutor(access) as executor:

        def calls(count: int) -> None:
            for future in [executor.submit(nothing, number) for number in range(count)]:
                future.result()

        def nothing(number: int) -> int:
            """The call of the peers. A function within a function travels by value: workers do not have this module."""
            return number

        def one_call() -> None:
            executor.submit(nothing, 1).result()

        return figures(
            lambda count: push([TaskDefinition(id=f"t{n}", commands=("true",)) for n in range(count)]),
            chain, one, Calls(calls, lambda count: list(executor.map(nothing, range(count))), one_call), directory,
        )  # fmt: skip


def by_xargs() -> Found:
    """Run the limit: the same processes without a scheduler."""
    found: Found = {"A": TASKS / _xargs(TASKS, 2), "B": _xargs(LINKS, 1) / LINKS * 1e3}
    with tempfile.TemporaryDirectory(prefix="bench-limit-") as directory:
        found["H"] = singles(Path(directory), note_start)
    return found


def _xargs(count: int, slots: int) -> float:
    numbers = "\n".join(map(str, range(count))).encode()
    began = time.monotonic()
    command = ["xargs", f"-P{slots}", "-n1", "sh", "-c", "true"]
    subprocess.run(command, input=numbers, env=plain_environment(), check=True)
    return time.monotonic() - began


def table(turns: dict[str, list[Found]]) -> str:
    """Return a Markdown table: a line for each system, with medians of the turns. A is also shown as a ratio to xargs
    in the same turn."""
    lines = [
        "| | version | A: tasks/s | A: of xargs | B: ms a link | B: ms above the process | H: ms p50 | H: ms p99 "
        "| C: submit, calls/s | C: map, calls/s | C: one call, ms p50 |",
        "|---" * 11 + "|",
    ]
    for name, found in turns.items():
        if not found:
            lines.append(f"| {name} | not measured" + " | –" * 9 + " |")
            continue
        ratios = [one["A"] / limit["A"] for one, limit in zip(found, turns["xargs"])]
        above = [one["B"] - limit["B"] for one, limit in zip(found, turns["xargs"])]
        latencies = sorted(latency for one in found for latency in one.get("H", ()))
        cells = [
            name, str(found[0].get("version", "")), f"{_median(found, 'A'):,.0f}", f"{statistics.median(ratios):.2f}",
            f"{_median(found, 'B'):.2f}", f"{statistics.median(above):.2f}",
            f"{latencies[len(latencies) // 2]:.1f}" if latencies else "–",
            f"{latencies[int(len(latencies) * 0.99)]:.1f}" if latencies else "–",
            *(f"{_median(found, what):,.0f}" if what in found[0] else "–" for what in ("submit", "map")),
            f"{_median(found, 'call'):.1f}" if "call" in found[0] else "–",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _median(found: list[Found], name: str) -> float:
    return float(statistics.median(one[name] for one in found))


def main() -> int:
    """Measure in turns and print; return 1 if a system could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="Beside peers. See bench/README.md.")
    parser.add_argument("names", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)} [all]")
    parser.add_argument("--turns", type=int, default=TURNS, metavar="N")
    parser.add_argument("--python", type=Path, metavar="FILE", help="an interpreter that has the peers [.peers]")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that started processes are ended
    if unknown := set(options.names) - set(PEERS):
        parser.error(f"{', '.join(sorted(unknown))}: there is only {', '.join(PEERS)}")
    names = options.names or list(PEERS)
    python = options.python or make_environment()
    turns: dict[str, list[Found]] = {name: [] for name in ("xargs", OURS, *names)}
    others: list[float] = []
    failed: set[str] = set()
    for turn in range(options.turns):
        for name in turns:
            if name in failed:
                continue
            began = time.monotonic()
            try:
                found = by_xargs() if name == "xargs" else by_us() if name == OURS else by_peer(name, python)
                turns[name].append(found)
            except Exception as error:  # whatever it is, the others are measured
                failed.add(name)
                turns[name].clear()
                print(f"peers: {name}: not measured: {error}", file=sys.stderr)
            print(f"peers: turn {turn + 1}: {name} in {time.monotonic() - began:.0f} s", file=sys.stderr)
        others.append(os.getloadavg()[0])
    print(f"{os.cpu_count()} cores; load after each turn: {', '.join(f'{load:.1f}' for load in others)}")
    print(f"{TASKS:,} tasks, {LINKS} links, {CALLS:,} calls, medians of {options.turns} turns after {WARM} of each\n")
    print(table(turns))
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
