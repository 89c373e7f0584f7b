"""Tasks with files on a machine over SSH: many short ones with small files, compared with the same tasks and a
directory as datastore; and a large input that many tasks share. All parts are real: Mosquitto, MariaDB, boss, workers,
sshd, gates.

The gates count the bytes of files that they send: these are the bytes that leave the datastore.
"""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bench.report import Figure, micro, seconds
from bench.services import ROOT, Services, cpu_s, plain_environment, worker_cpu_s
from bench.sshd import Sshd
from bench.throughput import wait_until_over
from datastore.keys import public_line
from ecloud.client.client import Client
from ecloud.config.datastore_address import boss_key
from ecloud.model.tasks import Requirement, Result, TaskDefinition
from ecloud.model.wire import PushOptions

TASKS, FILE_BYTES = 1_000, 1 << 10
TURNS, LAST_S = 4, 40.0
"""No further turn begins after this many seconds."""
WORKERS, SLOTS = 2, 2
LEAST_RATIO, LEAST_RATE = 0.5, 200.0
SHARED_BYTES, SHARING_TASKS, SHARING_WORKERS = 500_000_000, 100, 4
MOST_TIMES = 4.0
PIECE = 1 << 20
COMMAND_S = 60.0

COUNTER = """
import os, runpy, sys
sys.argv = sys.argv[1:]
if not sys.argv[0].endswith(".py"):
    os.execv(sys.executable, [sys.executable, "-IS", *sys.argv])
gate = runpy.run_path(sys.argv[0], run_name="gate")
write = gate["Frames"].write
def counted(self, answer, body=b""):
    if body:
        handle = os.open(COUNTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, b"%d\\n" % len(body))
        os.close(handle)
    write(self, answer, body)
gate["Frames"].write = counted
sys.exit(gate["main"](sys.argv))
"""
"""Starts a gate that counts the bytes of files that it sends. Replaces `python3` on the datastore's machine."""


class Turn(NamedTuple):
    """Time of all tasks, from their acceptance to the last publication."""

    wall_s: float
    cpu: dict[str, float]


class _Cluster:
    """Services whose datastore is set by `admin.py`."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def trust(self, sshd: Sshd) -> None:
        """Authorise the boss, as the user does once."""
        with sshd.authorized_keys.open("a") as file:
            file.write(public_line(boss_key(self.services.home)) + "\n")

    def set_datastore(self, address: str) -> None:
        """Run `admin.py set_datastore`, as a user does."""
        command = [sys.executable, "admin.py", "set_datastore", address]
        env = {**plain_environment(), "ECLOUD_SETTINGS": str(self.services.directory / "settings.py")}
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"set_datastore {address}: {done.stderr or done.stdout}")


def measure(directory: Path, profiles: Path | None = None) -> list[Figure]:
    """Measure small files, then the shared input. The caller removes `directory`."""
    figures: list[Figure] = []
    for name, part in (("small", _small), ("shared", _shared)):
        with Services(profiles and profiles / name) as services:
            part_directory = directory / f"tasks-{name}"
            part_directory.mkdir()
            figures += part(services, part_directory)
    return figures


# --- many short tasks -------------------------------------------------------------------------------------


def _small(services: Services, directory: Path) -> list[Figure]:
    roots = {way: directory / way for way in ("directory", "ssh")}
    for root in roots.values():
        _write_inputs(root / "in")
    turns: dict[str, list[Turn]] = {way: [] for way in roots}
    (directory / "sshd").mkdir()
    with Sshd(directory / "sshd") as sshd:
        cluster = _Cluster(services)
        cluster.trust(sshd)
        workers = [services.start_worker(f"w{number}", "--cpus", str(SLOTS)) for number in range(WORKERS)]
        parts = {"boss": [services.boss], "workers": workers, "MariaDB": [services.database]}
        addresses = {"directory": str(roots["directory"]), "ssh": sshd.address(roots["ssh"])}
        with Client(services.client_access()) as client:
            client.connect()
            began, plain = time.monotonic(), []
            for turn in range(TURNS):
                if time.monotonic() - began > LAST_S:
                    break
                plain.append(_xargs_s())
                for way in ("directory", "ssh") if turn % 2 == 0 else ("ssh", "directory"):
                    cluster.set_datastore(addresses[way])
                    _push(client, _small_tasks(20), f"warm-{way}-{turn}", parts)
                    turns[way].append(_push(client, _small_tasks(TASKS), f"{way}-{turn}", parts))
                    text = f"{TASKS / turns[way][-1].wall_s:,.0f} tasks/s"
                    print(f"data: small files, turn {turn + 1}, {way}: {text}", file=sys.stderr)
        for worker in workers:
            services.end(worker)
    told = f"{TASKS / statistics.median(plain):,.0f}/s"
    beside = Figure(
        f"data: {TASKS:,} x true by xargs -P{WORKERS} meanwhile", seconds(statistics.median(plain)), "", told
    )
    return [beside, *_small_figures(turns)]


def _xargs_s() -> float:
    """Return the time of `xargs`: the current speed of the machine."""
    began = time.monotonic()
    numbers = "\n".join(map(str, range(TASKS))).encode()
    command = ["xargs", f"-P{WORKERS}", "-n1", "sh", "-c", "true"]
    subprocess.run(command, input=numbers, env=plain_environment(), check=True)
    return time.monotonic() - began


def _write_inputs(directory: Path) -> None:
    directory.mkdir(parents=True)
    for number in range(TASKS):
        (directory / str(number)).write_bytes(b"%04d" % number * (FILE_BYTES // 4))


def _small_tasks(count: int) -> list[TaskDefinition]:
    return [
        TaskDefinition(
            id=f"t{number}",
            commands=("cat in > out",),
            requirements=(Requirement(f"in/{number}", "in"),),
            results=(Result("out", f"out/{number}"),),
        )
        for number in range(count)
    ]


def _push(
    client: Client, tasks: list[TaskDefinition], run: str, parts: dict[str, list[subprocess.Popen[bytes]]]
) -> Turn:
    client.push(tasks, PushOptions(run=run))
    before, began = _cpu(parts), time.monotonic()
    wait_until_over(client, run)
    wall_s = time.monotonic() - began
    return Turn(wall_s, {name: used - before[name] for name, used in _cpu(parts).items()})


def _cpu(parts: dict[str, list[subprocess.Popen[bytes]]]) -> dict[str, float]:
    used = {name: sum(map(cpu_s, processes)) for name, processes in parts.items()}
    workers = [worker_cpu_s(worker) for worker in parts.get("workers", [])]
    if workers:
        used["workers"] = sum(own for own, _ in workers)
    return {**used, "their shells": sum(shells for _, shells in workers)}


def _small_figures(turns: dict[str, list[Turn]]) -> list[Figure]:
    text = f"data: {TASKS:,} tasks that read and write {FILE_BYTES >> 10} KB"
    wall = {way: statistics.median(turn.wall_s for turn in turns[way]) for way in turns}
    ratio = statistics.median(near.wall_s / far.wall_s for near, far in zip(turns["directory"], turns["ssh"]))
    rate = TASKS / wall["ssh"]
    figures = []
    for way, named in (("directory", "a directory"), ("ssh", "SSH")):
        cpu = statistics.median(sum(turn.cpu.values()) for turn in turns[way])
        figures.append(
            Figure(f"{text}: {named}", seconds(wall[way]), micro(cpu / TASKS), f"{TASKS / wall[way]:,.0f}/s")
        )
    figures[-1] = replace(figures[-1], aim=f"at least {LEAST_RATE:g}/s", met=rate >= LEAST_RATE)
    figures.append(
        Figure("data: the same, ratio", "", "", f"{ratio:.2f}", f"at least {LEAST_RATIO:g}", ratio >= LEAST_RATIO)
    )
    for name in turns["ssh"][0].cpu:
        both = [statistics.median(turn.cpu[name] for turn in turns[way]) / TASKS for way in ("directory", "ssh")]
        figures.append(Figure(f"data: the same, CPU a task, {name}: directory, SSH", micro(both[0]), micro(both[1])))
    return figures


# --- one large shared input -------------------------------------------------------------------------------


def _shared(services: Services, directory: Path) -> list[Figure]:
    root = directory / "root"
    root.mkdir()
    _write_shared(root / "shared")
    counts = directory / "counts"
    (directory / "sshd").mkdir()
    with Sshd(directory / "sshd", f"PATH={_counting_python(directory, counts)}:{os.environ['PATH']}") as sshd:
        cluster = _Cluster(services)
        cluster.trust(sshd)
        cluster.set_datastore(sshd.address(root))
        workers = [services.start_worker(f"w{number}", "--cpus", "2") for number in range(SHARING_WORKERS)]
        tasks = [
            TaskDefinition(
                id=f"t{number}", commands=("test -s shared",), requirements=(Requirement("shared", "shared"),)
            )
            for number in range(SHARING_TASKS)
        ]
        with Client(services.client_access()) as client:
            client.connect()
            turn = _push(client, tasks, "shared", {"boss": [services.boss], "workers": workers})
        for worker in workers:
            services.end(worker)
    sent = sum(map(int, counts.read_text().split()))
    times = sent / SHARED_BYTES
    text = f"data: {SHARED_BYTES / 1e6:,.0f} MB for {SHARING_TASKS} tasks on {SHARING_WORKERS} workers: sent, times"
    cpu = seconds(sum(turn.cpu.values()))
    return [Figure(text, seconds(turn.wall_s), cpu, f"{times:.3f}", f"at most {MOST_TIMES:g}", times <= MOST_TIMES)]


def _write_shared(path: Path) -> None:
    with path.open("wb") as file:
        for start in range(0, SHARED_BYTES, PIECE):
            file.write(os.urandom(min(PIECE, SHARED_BYTES - start)))


def _counting_python(directory: Path, counts: Path) -> Path:
    """Make a directory whose `python3` counts bytes."""
    place = directory / "bin"
    place.mkdir()
    counter = place / "counter.py"
    counter.write_text(f"COUNTS = {str(counts)!r}\n{COUNTER}")
    python = place / "python3"
    # The gate asks it for its path, and must get this one.
    python.write_text(
        f"#!/bin/sh\nshift\ncase $1 in -c) echo {shlex.quote(str(python))} 3 11; exit;; esac\n"
        f'exec {shlex.quote(sys.executable)} -IS {shlex.quote(str(counter))} "$@"\n'
    )
    python.chmod(0o755)
    return place
