"""What the boss asks of a datastore over SSH, through both that may carry it, in turns against a real sshd here: names
looked for and listed by the thousand, staged files published, a question and its answer. The boss goes by fabric.

The aim is on the boss's own call for `overwrite_result: false` and `--skip_existing`. CPU seconds are this process's
own, which are those that the boss would lack.
"""

from __future__ import annotations

import queue
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.data import memory
from bench.report import Figure, micro, seconds
from bench.sshd import GATE, Sshd
from boss.core.model.effects import FindResults
from boss.core.model.events import Event, ResultsFound
from boss.shell.calls import Calls
from boss.shell.storage import Storage
from datastore.directory import DirectoryDatastore
from datastore.keys import public_line
from datastore.port import Promotion
from datastore.ssh.datastore import Carry, SshDatastore, by_process
from datastore.ssh.fabric_carrier import by_fabric
from ecloud.config.datastore_address import boss_key
from ecloud.config.home import Home

NAMES, STAGED, QUESTIONS = 10_000, 5_000, 500
TURNS, LASTS_S = 7, 40.0
"""No further turn is begun after so long."""
MOST_S = 1.0
ANSWER_S = 60.0
TICK_S = 0.001
CARRIERS: dict[str, Carry] = {"fabric": by_fabric, "OpenSSH": by_process}


class Cost(NamedTuple):
    """One request, or one of many."""

    wall_s: float
    cpu_s: float
    held_s: float
    """How long another thread, which wants to run every millisecond, did not."""


def measure() -> list[Figure]:
    """Medians of alternating turns."""
    directory = Path(tempfile.mkdtemp(prefix="ecloud-bench-carriers-", dir=memory()))
    try:
        root = directory / "root"
        _write_results(root / "out")
        (directory / "sshd").mkdir()
        with Sshd(directory / "sshd") as sshd:
            return [_find_results(directory, sshd, root), *_beside(directory, sshd, root)]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _write_results(directory: Path) -> None:
    """Every second one of those that will be looked for."""
    directory.mkdir(parents=True)
    for number in range(0, 2 * NAMES, 2):
        (directory / f"result-{number:05d}.dat").write_bytes(b"result")


# --- the boss's own call ----------------------------------------------------------------------------------


def _find_results(directory: Path, sshd: Sshd, root: Path) -> Figure:
    """As when tasks are pushed that keep what is there."""
    storage = Storage(Home(directory / "home"), "bench")
    with sshd.authorized_keys.open("a") as file:
        file.write(public_line(boss_key(Home(directory / "home"))) + "\n")
    storage.use(sshd.address(root), public_line(directory / "sshd" / "host_key"), sys.executable, str(GATE))
    answers: queue.SimpleQueue[Event] = queue.SimpleQueue()
    calls = Calls(storage, {}, {}, answers.put)
    paths = tuple(f"out/result-{number:05d}.dat" for number in range(NAMES))
    costs: list[Cost] = []

    def find() -> None:
        calls.make(FindResults(1, paths))
        told = answers.get(timeout=ANSWER_S)
        assert isinstance(told, ResultsFound), told
        assert len(told.existing) == NAMES // 2

    try:
        find()  # connects
        costs = [_cost(find) for _ in range(TURNS)]
    finally:
        calls.close()
        assert isinstance(storage.publisher, SshDatastore)
        storage.publisher.close()
    wall_s = statistics.median(cost.wall_s for cost in costs)
    cpu_s = statistics.median(cost.cpu_s for cost in costs)
    return Figure(
        f"carriers: the boss looks for {NAMES:,} results in one listing over SSH", seconds(wall_s), seconds(cpu_s), "",
        f"less than {MOST_S:g} s", wall_s < MOST_S,
    )  # fmt: skip


# --- both carriers ----------------------------------------------------------------------------------------


def _beside(directory: Path, sshd: Sshd, root: Path) -> list[Figure]:
    datastores = {name: sshd.datastore(root, carry) for name, carry in CARRIERS.items()}
    works: dict[str, Callable[[SshDatastore, str], Callable[[], object]]] = {
        f"{NAMES:,} names looked for": lambda datastore, _: lambda: datastore.stat(_names()),
        f"{NAMES:,} names listed": lambda datastore, _: lambda: datastore.listing("out"),
        f"{STAGED:,} staged files verified, published": lambda datastore, turn: _promote(
            directory, root, datastore, turn
        ),
        "a question and its answer": lambda datastore, _: lambda: [datastore.free_mb() for _ in range(QUESTIONS)],
    }
    costs: dict[tuple[str, str], list[Cost]] = {(work, name): [] for work in works for name in datastores}
    began = time.monotonic()
    try:
        for turn in range(TURNS):
            if turn > 1 and time.monotonic() - began > LASTS_S:
                break
            for name in sorted(datastores, reverse=bool(turn % 2)):
                for work, prepare in works.items():
                    cost = _cost(prepare(datastores[name], f"{name}-{turn}"))
                    if turn:  # the first connects
                        costs[work, name].append(cost)
    finally:
        for datastore in datastores.values():
            datastore.close()
    return [_figure(work, name, costs) for work in works for name in CARRIERS]


def _names() -> list[str]:
    return [f"out/result-{number:05d}.dat" for number in range(NAMES)]


def _promote(directory: Path, root: Path, datastore: SshDatastore, turn: str) -> Callable[[], object]:
    """Stages what is to be published, on the spot."""
    source = directory / "staged"
    if not source.exists():
        source.mkdir()
        for number in range(STAGED):
            (source / f"result-{number:05d}.dat").write_bytes(b"%d" % number)
    shutil.rmtree(root / "published", ignore_errors=True)
    stage = f"w1/{turn}"
    promotion = Promotion(stage, tuple(DirectoryDatastore(root).store(stage, source, f"published/{turn}")))

    def promote() -> None:
        assert datastore.promote([promotion]) == [None]

    return promote


def _cost(work: Callable[[], object]) -> Cost:
    held = [0.0]
    over = threading.Event()

    def tick() -> None:
        last = time.monotonic()
        while not over.wait(TICK_S):
            now = time.monotonic()
            held[0], last = max(held[0], now - last - TICK_S), now

    ticking = threading.Thread(target=tick)
    ticking.start()
    began, cpu_began = time.monotonic(), time.process_time()
    try:
        work()
        return Cost(time.monotonic() - began, time.process_time() - cpu_began, held[0])
    finally:
        over.set()
        ticking.join()


def _figure(work: str, name: str, costs: dict[tuple[str, str], list[Cost]]) -> Figure:
    wall_s, cpu_s, held_s = (statistics.median(column) for column in zip(*costs[work, name]))
    ratio = statistics.median(
        ours.wall_s / theirs.wall_s for ours, theirs in zip(costs[work, name], costs[work, "OpenSSH"])
    )
    told = f"carriers: {work}: {name}"
    if work.startswith("a question"):
        return Figure(told, micro(wall_s / QUESTIONS), micro(cpu_s / QUESTIONS), f"{ratio:.2f} x")
    return Figure(f"{told}; others held {held_s * 1e3:.0f} ms", seconds(wall_s), seconds(cpu_s), f"{ratio:.2f} x")
