"""The boss's requests to a datastore over SSH (with a real sshd): looking up 10,000 results, as with `overwrite_result:
false` and `--skip_existing`. CPU seconds are those of this process, in the boss's place."""

from __future__ import annotations

import queue
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.data import memory
from bench.report import Figure, seconds
from bench.sshd import GATE, Sshd
from boss.core.model.effects import FindResults
from boss.core.model.events import Event, ResultsFound
from boss.shell.calls import Calls
from boss.shell.storage import Storage
from datastore.keys import public_line
from datastore.ssh.datastore import SshDatastore
from ecloud.config.datastore_address import boss_key
from ecloud.config.home import Home

NAMES = 10_000
TURNS = 7
MOST_S = 1.0
ANSWER_S = 60.0


def measure() -> list[Figure]:
    """Measure medians."""
    directory = Path(tempfile.mkdtemp(prefix="ecloud-bench-over-ssh-", dir=memory()))
    try:
        root = directory / "root"
        _write_results(root / "out")
        (directory / "sshd").mkdir()
        with Sshd(directory / "sshd") as sshd:
            return [_find_results(directory, sshd, root)]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _write_results(directory: Path) -> None:
    """Write every second one of the results that will be looked up."""
    directory.mkdir(parents=True)
    for number in range(0, 2 * NAMES, 2):
        (directory / f"result-{number:05d}.dat").write_bytes(b"result")


def _find_results(directory: Path, sshd: Sshd, root: Path) -> Figure:
    """Look up results, as a push does that keeps existing ones."""
    storage = Storage(Home(directory / "home"), "bench")
    with sshd.authorized_keys.open("a") as file:
        file.write(public_line(boss_key(Home(directory / "home"))) + "\n")
    storage.use(sshd.address(root), public_line(directory / "sshd" / "host_key"), sys.executable, str(GATE))
    answers: queue.SimpleQueue[Event] = queue.SimpleQueue()
    calls = Calls(storage, {}, {}, answers.put)
    paths = tuple(f"out/result-{number:05d}.dat" for number in range(NAMES))
    costs: list[tuple[float, float]] = []

    def find() -> None:
        calls.make(FindResults(1, paths))
        told = answers.get(timeout=ANSWER_S)
        assert isinstance(told, ResultsFound), told
        assert len(told.existing) == NAMES // 2

    try:
        find()  # connects
        for _ in range(TURNS):
            began, cpu_began = time.monotonic(), time.process_time()
            find()
            costs.append((time.monotonic() - began, time.process_time() - cpu_began))
    finally:
        calls.close()
        assert isinstance(storage.publisher, SshDatastore)
        storage.publisher.close()
    wall_s, cpu_s = (statistics.median(column) for column in zip(*costs))
    return Figure(
        f"over SSH: the boss looks for {NAMES:,} results in one listing", seconds(wall_s), seconds(cpu_s), "",
        f"less than {MOST_S:g} s", wall_s < MOST_S,
    )  # fmt: skip
