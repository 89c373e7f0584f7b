"""Asks hosts side by side, over one connection each, and reads what they are. Decides nothing."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from boss.bootstrap.bundle import Machine
from boss.providers import ssh_hosts_scripts as scripts
from boss.providers.ssh_hosts import AT_ONCE, LEAST_DISK_MB, LOCAL, Shell, pair
from boss.providers.ssh_hosts_scripts import HostProbe, Place
from datastore.problem import Problem
from ecloud.config.hosts_file import HostsFile

CLOCK_S = 60.0
"""A clock that is off by more makes certificates and times in the tables wrong."""
PERSIST_S = 20
"""How long a connection is kept after its last command, where this program is killed."""
_Told = TypeVar("_Told")


class Fleet:
    """The hosts of a deployment. `shell`: how they are reached; `file`: what is kept of them."""

    def __init__(self, file: HostsFile, shell: Shell) -> None:
        self.file = file
        self.shell = shell

    def place(self, kind: str) -> Place:
        """Where processes of a kind live on each host."""
        return Place(self.file.deployment, self.file.options.remote_path, kind)

    def each(self, hosts: Sequence[str], ask: Callable[[str], _Told]) -> dict[str, _Told | str]:
        """What `ask` returns for each host, or the sentence of its `Problem`."""

        def one(host: str) -> _Told | str:
            try:
                return ask(host)
            except Problem as problem:
                return str(problem)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(zip(hosts, pool.map(one, hosts)))

    def run(self, host: str, script: bytes) -> str:
        """What a script prints there. Raises `Failed`."""
        return self.shell.run(host, script)

    def probe(self, host: str) -> HostProbe:
        """What a host has. `clock` is how many seconds its clock is ahead of this one. Raises `Failed`."""
        before = time.time()
        probe = scripts.read_probe(self.run(host, scripts.probe_script(self.place("worker"), with_facts=True)))
        if probe.clock is None:
            return probe
        now = time.time()
        ahead_s = probe.clock - min(max(probe.clock, before - 1), now)  # it was read at some moment in between
        return msgspec.structs.replace(probe, clock=ahead_s)

    def problems(self, host: str, probe: HostProbe) -> list[str]:
        """Why a host can't work, each with what to do."""
        told = []
        if not probe.python:
            told.append(f"{host} has no Python of 3.10 or later: install one, or name it on the PATH of /bin/sh")
        if not probe.home:
            told.append(f"{host}: {self.file.options.remote_path} can't be made there: name another place with -r")
        if probe.disk_mb < LEAST_DISK_MB:
            told.append(
                f"{host} has {probe.disk_mb:.0f} MB free below {probe.home}: {LEAST_DISK_MB:.0f} are needed; "
                "make room, or name another place with -r"
            )
        if probe.clock is not None and abs(probe.clock) > CLOCK_S:
            where = "ahead of" if probe.clock > 0 else "behind"
            told.append(f"the clock of {host} is {abs(probe.clock):.0f} s {where} this one: set it (chronyd, ntpdate)")
        return told


def machine_of(probe: HostProbe) -> Machine:
    """What decides which packages fit."""
    version, architecture, libc, libc_version, _ = probe.python
    return Machine(pair(version), architecture, libc, pair(libc_version))


@contextlib.contextmanager
def connected(file: HostsFile, hosts: Sequence[str]) -> Iterator[Fleet]:
    """The hosts of a file. All commands on a host share a connection, which is closed at the end."""
    sockets = Path(tempfile.mkdtemp(prefix="ecloud-", dir="/tmp"))  # the path of a socket is short
    share = ("-o", "ControlMaster=auto", "-o", f"ControlPath={sockets}/%C", "-o", f"ControlPersist={PERSIST_S}")
    shell = Shell((*file.options.words, *share))
    try:
        yield Fleet(file, shell)
    finally:
        for host in hosts:
            if host != LOCAL:
                words = shell.words(host, "", "-O", "exit")
                subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=20)
        shutil.rmtree(sockets, ignore_errors=True)
