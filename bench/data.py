"""Files over SSH, with a real sshd on this machine: one large file and a directory of small ones, compared with plain
`rsync -a -e ssh`, in turns; then tasks with files (`bench/data_tasks.py`).

Each turn opens its own connection, as rsync does; fetched files are verified, and stored files are published. CPU
seconds are those of both ends.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench import data_tasks
from bench.report import Figure, seconds
from bench.services import NotInstalled, process_cpu_s
from bench.sshd import Sshd
from datastore.ssh.datastore import SshDatastore

LARGE_BYTES = 2 << 30
LARGE_TURNS = 3
SMALL_COUNT, SMALL_BYTES = 5_000, 4 << 10
SMALL_TURNS = 5
LARGE_LASTS_S, SMALL_LASTS_S = 60.0, 20.0
"""No further turn begins after this many seconds."""
MOST_LARGE, MOST_SMALL = 1.25, 1.0
ROOM_BYTES, SMALL_ROOM_BYTES = 5 * LARGE_BYTES, 1 << 30
PIECE = 1 << 20


class Cost(NamedTuple):
    """Cost of one turn in one direction."""

    wall_s: float
    cpu_s: float


def measure(profiles: Path | None = None) -> list[Figure]:
    """Measure ratios: the medians of alternating turns."""
    directory = Path(tempfile.mkdtemp(prefix="ecloud-bench-data-"))
    try:
        if shutil.disk_usage(directory).free < ROOM_BYTES:
            raise NotInstalled(f"{ROOM_BYTES >> 30} GB must be free in {directory.parent} (TMPDIR says where)")
        (directory / "sshd").mkdir()
        with Sshd(directory / "sshd") as sshd:
            figures = _Copies(directory, sshd).large()
            with tempfile.TemporaryDirectory(prefix="ecloud-bench-data-", dir=memory()) as place:
                figures += _Copies(Path(place), sshd).small()
        return figures + data_tasks.measure(directory, profiles)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def memory() -> str | None:
    """Return a directory in memory for small files, or None if there is none. On a disk, the journal's work for the
    previous turn makes the second one two to four times as slow."""
    memory = Path("/dev/shm")
    is_usable = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > SMALL_ROOM_BYTES
    return str(memory) if is_usable else None


class _Copies:
    """Copies files below `directory`, in both directions, by rsync and by ECLOUD."""

    def __init__(self, directory: Path, sshd: Sshd) -> None:
        self._directory = directory
        self._sshd = sshd
        self._root = directory / "root"
        self._root.mkdir()
        self._gate_s = 0.0

    def large(self) -> list[Figure]:
        """Measure one file."""
        source = self._directory / "large"
        _write_large(source)
        text = f"data: {LARGE_BYTES >> 30} GB in one file"
        figures = self._beside(text, source, LARGE_TURNS, LARGE_LASTS_S, MOST_LARGE)
        source.unlink()
        return figures

    def small(self) -> list[Figure]:
        """Measure one directory."""
        source = self._directory / "small"
        _write_small(source)
        text = f"data: {SMALL_COUNT:,} files of {SMALL_BYTES >> 10} KB in one directory"
        return self._beside(text, source, SMALL_TURNS, SMALL_LASTS_S, MOST_SMALL)

    def _beside(self, text: str, source: Path, turns: int, lasts_s: float, most: float) -> list[Figure]:
        costs: dict[str, list[Cost]] = {"rsync put": [], "put": [], "rsync get": [], "get": []}
        began = time.monotonic()
        for turn in range(turns):
            if time.monotonic() - began > lasts_s:
                break
            for name in costs if turn % 2 == 0 else ("put", "rsync put", "get", "rsync get"):
                costs[name].append(self._cost(name, source))
            ratio = {way: costs[way][-1].wall_s / costs[f"rsync {way}"][-1].wall_s for way in ("put", "get")}
            print(f"{text}: turn {turn + 1}: put {ratio['put']:.2f}, get {ratio['get']:.2f} of rsync", file=sys.stderr)
            self._forget()
        return [figure for way in ("put", "get") for figure in _figures(text, way, costs, most)]

    def _cost(self, name: str, source: Path) -> Cost:
        ways: dict[str, Callable[[], None]] = {
            "rsync put": lambda: self._sshd.rsync(source, self._root / "by rsync", True),
            "put": lambda: self._put(source),
            "rsync get": lambda: self._sshd.rsync(self._root / "by rsync", self._directory / "got by rsync", False),
            "get": lambda: self._get(self._directory / "got"),
        }
        os.sync()  # pending writes of the previous turn must not slow down this one
        before, self._gate_s, began = self._sshd.cpu_s(), 0.0, time.monotonic()
        ways[name]()
        wall_s = time.monotonic() - began
        cost = Cost(wall_s, self._sshd.cpu_s() - before + self._gate_s)
        for path in self._directory.glob("got*"):
            _remove(path)
        return cost

    def _put(self, source: Path) -> None:
        datastore = self._sshd.datastore(self._root)
        try:
            datastore.put(source, "by us")
            self._count_gate(datastore)
        finally:
            datastore.close()

    def _get(self, to: Path) -> None:
        datastore = self._sshd.datastore(self._root)
        try:
            datastore.fetch("by us", to)
            self._count_gate(datastore)
        finally:
            datastore.close()

    def _count_gate(self, datastore: SshDatastore) -> None:
        """Add the CPU time of the gate: it ends a moment after its session, so sshd's sum lacks it."""
        self._gate_s = process_cpu_s(int(str(datastore.hello()["pid"])))

    def _forget(self) -> None:
        """Remove the copies before the next turn."""
        for path in (self._root / "by rsync", self._root / "by us"):
            _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _figures(text: str, way: str, costs: dict[str, list[Cost]], most: float) -> list[Figure]:
    theirs, ours = costs[f"rsync {way}"], costs[way]
    wall = [statistics.median(cost.wall_s for cost in turns) for turns in (theirs, ours)]
    cpu = [statistics.median(cost.cpu_s for cost in turns) for turns in (theirs, ours)]
    ratio = statistics.median(our.wall_s / their.wall_s for our, their in zip(ours, theirs))
    return [
        Figure(f"{text}: {way} by rsync", seconds(wall[0]), seconds(cpu[0])),
        Figure(
            f"{text}: {way} by us", seconds(wall[1]), seconds(cpu[1]),
            f"{ratio:.2f} x", f"at most {most:g} x", ratio <= most,
        ),
    ]  # fmt: skip


def _write_large(path: Path) -> None:
    """Write a large file of random bytes: nothing in it can be compressed, left out or deduplicated."""
    source = random.Random(2)
    with path.open("wb") as file:
        for _ in range(LARGE_BYTES // PIECE):
            file.write(source.randbytes(PIECE))


def _write_small(path: Path) -> None:
    source = random.Random(3)
    path.mkdir()
    for number in range(SMALL_COUNT):
        (path / f"result-{number:05d}.dat").write_bytes(source.randbytes(SMALL_BYTES))
