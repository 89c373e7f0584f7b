"""`admin.py hosts up` and `down` with 100 hosts: loopback addresses of a few sshds, each with a home of its own.

All hosts share this machine's cores: the work of their Pythons is a part of the measured time.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.report import Figure, seconds
from bench.services import ROOT, plain_environment
from bench.sshd import Sshd

HOSTS = 100
LISTENS = 16
"""Addresses of one sshd: it listens on no more."""
MOST_UP_S = 60.0
MOST_DOWN_S = 30.0


def measure() -> list[Figure]:
    """Bring them up, which installs the code on each; down; up again, with the code there; down with `--purge`."""
    addresses = [f"127.0.1.{number}" for number in range(1, HOSTS + 1)]
    with tempfile.TemporaryDirectory(prefix="ecloud-hosts-") as name:
        directory = Path(name)
        with contextlib.ExitStack() as stack:
            sshds: dict[str, Sshd] = {}
            for start in range(0, HOSTS, LISTENS):
                some = addresses[start : start + LISTENS]
                sshd = stack.enter_context(Sshd(directory / f"sshd{start}", addresses=_homes(directory, some)))
                sshds.update(dict.fromkeys(some, sshd))
            key = sshds[addresses[0]].key
            for sshd in sshds.values():
                sshd.authorized_keys.write_text(key.with_suffix(".pub").read_text())
            door = _Door(directory, list(dict.fromkeys(sshds.values())))
            hosts = ",".join(f"{getpass.getuser()}@{address}:{sshds[address].port}" for address in addresses)
            files = directory / "files"
            files.mkdir()
            first = ["up", "-a", hosts, "-i", str(key), "-o", f"UserKnownHostsFile={directory}/known"]
            try:
                return [
                    door.figure("first up", [*first, "--datastore", str(files)], MOST_UP_S),
                    door.figure("down", ["down"], MOST_DOWN_S),
                    door.figure("second up", ["up", "-f"], MOST_UP_S),
                    door.figure("down --purge", ["down", "--purge"], MOST_DOWN_S),
                ]
            finally:
                door.run("down", "--purge")


def _homes(directory: Path, addresses: Sequence[str]) -> dict[str, Path]:
    homes = {address: directory / address for address in addresses}
    for home in homes.values():
        home.mkdir()
    return homes


class _Door:
    """`admin.py hosts` of one deployment."""

    def __init__(self, directory: Path, sshds: Sequence[Sshd]) -> None:
        self._directory = directory
        self._sshds = sshds
        settings = directory / "settings.py"
        settings.write_text(f"HOME = {str(directory / 'home')!r}\n")
        self._environment = {**plain_environment(), "ECLOUD_SETTINGS": str(settings)}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run an action."""
        command = [sys.executable, str(ROOT / "admin.py"), "hosts", *words]
        return subprocess.run(
            command, env=self._environment, cwd=self._directory, capture_output=True, text=True, check=False
        )

    def _sessions_cpu_s(self) -> float:
        return sum(sshd.children_cpu_s() for sshd in self._sshds)

    def figure(self, name: str, words: Sequence[str], most_s: float) -> Figure:
        """Measure an action. CPU: of the command and of the sessions that have ended; a worker's own is not counted."""
        before, sessions_before = resource.getrusage(resource.RUSAGE_CHILDREN), self._sessions_cpu_s()
        began = time.monotonic()
        done = self.run(*words)
        wall = time.monotonic() - began
        if done.returncode != 0:
            raise RuntimeError(f"hosts {name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        cpu += self._sessions_cpu_s() - sessions_before
        load = f"load {os.getloadavg()[0]:.1f}"
        aim = f"at most {most_s:g} s"
        return Figure(f"{HOSTS} hosts: {name}", seconds(wall), seconds(cpu), load, aim, wall <= most_s)
