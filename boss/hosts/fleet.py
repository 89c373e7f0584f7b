"""Runs commands on hosts in parallel, over one connection each, and reads their facts. Decides nothing."""

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
from boss.providers.ssh_hosts import AT_ONCE, LOCAL, REMEDIES, Shell, pair
from boss.providers.ssh_hosts_scripts import HostProbe, Place
from datastore.problem import Problem
from ecloud.config.hosts_file import HostsFile
from ecloud.model.machine_needs import DISK, HOME, lacks

PERSIST_S = 20
"""How long a connection outlives its last command if this program is killed."""
_Told = TypeVar("_Told")


class Fleet:
    """The hosts of a deployment. `shell`: how to reach them; `file`: their record in `hosts.toml`."""

    def __init__(self, file: HostsFile, shell: Shell) -> None:
        self.file = file
        self.shell = shell

    def place(self, kind: str) -> Place:
        """Return where processes of a kind are on each host."""
        return Place(self.file.deployment, self.file.options.remote_path, kind)

    def each(self, hosts: Sequence[str], ask: Callable[[str], _Told]) -> dict[str, _Told | str]:
        """Return what `ask` returns for each host, or the sentence of its `Problem`."""

        def one(host: str) -> _Told | str:
            try:
                return ask(host)
            except Problem as problem:
                return str(problem)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(zip(hosts, pool.map(one, hosts)))

    def run(self, host: str, script: bytes) -> str:
        """Run a script on a host; return its output. Raises `Failed`."""
        return self.shell.run(host, script)

    def probe(self, host: str) -> HostProbe:
        """Probe a host. Its `clock` becomes the number of seconds by which it is ahead of this machine's. Raises
        `Failed`."""
        before = time.time()
        probe = scripts.read_probe(self.run(host, scripts.probe_script(self.place("worker"), with_facts=True)))
        if probe.clock is None:
            return probe
        now = time.time()
        # the host read its clock at some moment between the two
        ahead_s = probe.clock - min(max(probe.clock, before - 1), now)
        return msgspec.structs.replace(probe, clock=ahead_s)

    def problems(self, host: str, probe: HostProbe) -> list[str]:
        """Return the reasons why a host cannot be used, each with its remedy."""
        home = "" if probe.home else f"{self.file.options.remote_path} cannot be created"
        elsewhere = "or name another directory with -r"
        remedies = {
            **REMEDIES,
            DISK: f"{REMEDIES[DISK]} below {probe.home}, {elsewhere}",
            HOME: f"{REMEDIES[HOME]}, {elsewhere}",
        }
        return [f"{host}: {lack.text}: {remedies[lack.need]}" for lack in lacks(probe.facts(home))]


def machine_of(probe: HostProbe) -> Machine:
    """Return the facts that decide which packages fit."""
    version, architecture, libc, libc_version, _ = probe.python
    return Machine(pair(version), architecture, libc, pair(libc_version))


@contextlib.contextmanager
def connected(file: HostsFile, hosts: Sequence[str]) -> Iterator[Fleet]:
    """Open the hosts of a file. All commands on a host share a connection, which is closed at the end."""
    sockets = Path(tempfile.mkdtemp(prefix="ecloud-", dir="/tmp"))  # the path of a socket must be short
    share = ("-o", "ControlMaster=auto", "-o", f"ControlPath={sockets}/%C", "-o", f"ControlPersist={PERSIST_S}")
    shell = Shell((*file.options.words, *share))
    try:
        yield Fleet(file, shell)
    finally:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda host: _close(shell, host), [host for host in hosts if host != LOCAL]))
        shutil.rmtree(sockets, ignore_errors=True)


def _close(shell: Shell, host: str) -> None:
    """Close the connection to a host, if there is one."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        words = shell.words(host, "", "-O", "exit")
        subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=20)
