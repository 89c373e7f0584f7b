"""A cloud whose VMs are workers on listed hosts, started over the user's own `ssh`. A host has room for `slots`
workers.

The hosts keep the state: a worker's directory there carries cluster and intent, so that a boss that restarts, or that
lost an answer, finds it. A host that cannot be reached delays no other: its workers count as unknown until it is back.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from boss.bootstrap.bundle import Bundles, Machine, NoBundle
from boss.bootstrap.guest_scripts import unpack_command
from boss.core.model.cloud_vms import read_nonce
from boss.providers import ssh_hosts_scripts as scripts
from boss.providers.provider import (
    AskForLess,
    Capacity,
    CloudState,
    Stranger,
    TryLater,
    Unanswered,
    VmFound,
    VmOrder,
)
from datastore.problem import Problem
from ecloud.config.secrets import AccessFile
from ecloud.model.foreign_text import Cleaner
from ecloud.model.machine_needs import CLOCK, DISK, HOME, PYTHON, lacks
from ecloud.model.tasks import Resources
from ecloud.model.text import counted

COMMAND_S = 60.0
SEND_S = 180.0
"""Time limit for bringing the code over a slow line."""
AT_ONCE = 16
"""Hosts that are contacted in parallel."""
REST_S = 60.0
"""A host that failed gets no new start before this time has passed."""
FORGET_S = 3600.0
"""The files of a worker that the boss no longer asks about are removed from its host this long after its end."""
LOCAL = "local"
"""In a list of hosts: this machine, without SSH."""
REMEDIES = {
    PYTHON: "install one, or name it on the PATH of /bin/sh",
    DISK: "free some disk space",
    HOME: "check the rights of this user",
    CLOCK: "set it (chronyd, ntpdate)",
}
"""What to do on a host for each need of `machine_needs`."""


class Failed(Problem):
    """A host did not carry out a command; the text gives the reason. `connected`: the script may have run."""

    def __init__(self, text: str, connected: bool = False) -> None:
        super().__init__(text)
        self.connected = connected


class Shell:
    """Runs scripts on hosts through the user's own `ssh`: aliases, jump hosts and agents work. `options`: more words
    for ssh, e.g. `-i KEY`."""

    def __init__(self, options: Sequence[str] = ()) -> None:
        self._options = options

    def run(self, host: str, script: bytes, limit_s: float = COMMAND_S) -> str:
        """Run a script; return its output. Raises `Failed`."""
        return self._run(host, "/bin/sh -s", script, None, limit_s).decode("utf-8", "replace")

    def run_bytes(self, host: str, script: bytes) -> bytes:
        """The same, undecoded. Raises `Failed`."""
        return self._run(host, "/bin/sh -s", script, None, SEND_S)

    def send(self, host: str, command: str, file: Path) -> None:
        """Run a command with a file as its input. Raises `Failed`."""
        self._run(host, command, None, file, SEND_S)

    def feed(self, host: str, command: str, data: bytes) -> None:
        """Run a command with some bytes as its input. Raises `Failed`."""
        self._run(host, command, data, None, SEND_S)

    def _run(self, host: str, command: str, given: bytes | None, file: Path | None, limit_s: float) -> bytes:
        words = self.words(host, command)
        try:
            if file is not None:
                with file.open("rb") as source:
                    done = subprocess.run(words, stdin=source, capture_output=True, check=False, timeout=limit_s)
            else:
                done = subprocess.run(words, input=given, capture_output=True, check=False, timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{host} did not answer within {limit_s:g} s", True) from error
        except OSError as error:
            raise Failed(f"{words[0]} cannot be run on this machine: install the OpenSSH client") from error
        errors = done.stderr.decode("utf-8", "replace").strip().splitlines()
        said = errors[-1] if errors else f"exit code {done.returncode}"
        if host != LOCAL and done.returncode == 255:
            began = any(word in said for word in ("closed by", "Broken pipe", "reset", "not responding"))
            raise Failed(f"{host}: {said}", began)
        if done.returncode != 0:
            raise Failed(f"{host}: {said}")
        return done.stdout

    def words(self, host: str, command: str, *more: str) -> list[str]:
        """Return the command line that runs a command there. `more`: further options of ssh."""
        if host == LOCAL:
            return ["/bin/sh", "-c", command]
        name, _, port = host.partition(":")
        words = [
            "ssh",
            *(more or ("-T",)),
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=10",
            "-o",
            "ServerAliveInterval=15",
        ]
        words += ["-o", "StrictHostKeyChecking=accept-new", *self._options]
        return [*words, *(["-p", port] if port else []), "--", name, *([command] if command else [])]


class SshHosts:
    """Workers of one cluster in one pool. `hosts`: the pool's; `all_hosts`: those of every pool of this kind, which are
    listed together."""

    def __init__(
        self,
        shell: Shell,
        cluster_id: str,
        hosts: Sequence[str],
        slots: int,
        access_of: Callable[[str], AccessFile],
        bundles: Bundles,
        boss_gone_exit_s: float = 3600.0,
        keep_dirs: bool = False,
        all_hosts: Sequence[str] = (),
    ) -> None:
        self._shell = shell
        self._place = scripts.Place(cluster_id)
        self._hosts = tuple(hosts)
        self._all_hosts = tuple(dict.fromkeys((*hosts, *all_hosts)))
        self._slots = slots
        self._access_of = access_of
        self._bundles = bundles
        self._boss_gone_exit_s = boss_gone_exit_s
        self._keep_dirs = keep_dirs
        self._lock = threading.Lock()
        self._taken: dict[str, set[str]] = {}
        """Intents on each host that were listed or started."""
        self._starting: set[str] = set()
        self._rests_until: dict[str, float] = {}
        self._told: set[str] = set()

    # --- starting ---------------------------------------------------------------------------------------

    def start(self, order: VmOrder) -> str:
        """See `provider.Provider.start`. Tries one host after another."""
        reasons: list[str] = []
        with self._lock:
            unknown = [host for host in self._hosts if host not in self._taken]
        if unknown:
            self._look(unknown)
        while (host := self._reserve(order.boot_nonce)) is not None:
            try:
                return self._start_on(host, order)
            except Failed as failed:
                if failed.connected:
                    raise Unanswered(f"{failed}: it is unknown whether its worker was started") from failed
                reasons.append(str(failed))
            except NoBundle as error:
                reasons.append(f"{host}: {error}")
            finally:
                with self._lock:
                    self._starting.discard(order.boot_nonce)
            with self._lock:
                self._taken[host].discard(order.boot_nonce)
                self._rests_until[host] = time.monotonic() + REST_S
        if reasons:
            raise TryLater("no host started a worker: " + "; ".join(reasons))
        raise AskForLess(f"all {len(self._hosts)} hosts of pool {order.pool} are taken or cannot be reached now")

    def _reserve(self, nonce: str) -> str | None:
        """Take a slot of the host with the most free slots; return the host."""
        with self._lock:
            now = time.monotonic()
            free = {
                host: self._slots - len(self._taken[host])
                for host in self._hosts
                if host in self._taken and now >= self._rests_until.get(host, 0.0)
            }
            best = max(free, key=lambda host: free[host], default=None)
            if best is None or free[best] <= 0:
                return None
            self._taken[best].add(nonce)
            self._starting.add(nonce)
            return best

    def _start_on(self, host: str, order: VmOrder) -> str:
        """Start a worker on a host. Raises `Failed`, `NoBundle`."""
        probe = scripts.read_probe(self._shell.run(host, scripts.probe_script(self._place)))
        for lack in lacks(probe.facts()):
            raise Failed(f"{host}: {lack.text}: {REMEDIES[lack.need]}")
        version, architecture, libc, libc_version, python = probe.python
        bundle = self._bundles.get(Machine(pair(version), architecture, libc, pair(libc_version)))
        if bundle.name not in probe.codes:
            self._shell.send(host, unpack_command(python, probe.home, bundle.name), bundle.archive)
        access = self._access_of(f"vm-{order.vm_no}")
        program = scripts.worker_program(
            order, msgspec.json.encode(access), bundle.name, python, self._boss_gone_exit_s, self._keep_dirs
        )
        script = scripts.start_script(self._place, order.boot_nonce, program)
        try:
            said = self._shell.run(host, script).split()
        except Failed as failed:  # a shell may repeat the line that it cannot parse
            clean = Cleaner([access.password, access.key], [script.decode()])
            raise Failed(clean(str(failed)), failed.connected) from None
        if not {"started", "there"} & set(said):
            raise Failed(f"{host} did not confirm that the worker was started", True)
        return scripts.cloud_id_of(host, order.boot_nonce)

    # --- listing ----------------------------------------------------------------------------------------

    def _look(self, hosts: Sequence[str]) -> dict[str, list[VmFound] | str]:
        """Return the list of each host, or the reason why it failed."""

        def look(host: str) -> list[VmFound] | str:
            try:
                found = scripts.read_list(host, self._shell.run(host, scripts.list_script(self._place)))
            except Failed as failed:
                return str(failed)
            return f"{host}: its list of processes is incomplete" if found is None else found

        with ThreadPoolExecutor(AT_ONCE) as pool:
            told = dict(zip(hosts, pool.map(look, hosts)))
        with self._lock:
            for host, found in told.items():
                if isinstance(found, str):
                    continue
                living = {scripts.nonce_of(vm.cloud_id) for vm in found if vm.state is not CloudState.GONE}
                self._taken[host] = living | (self._taken.get(host, set()) & self._starting)
        return told

    def list(self, known: Mapping[str, int] = {}, lost: Mapping[int, str] = {}) -> list[VmFound]:
        """See `provider.Provider.list`."""
        told = self._look(self._all_hosts)
        found: list[VmFound] = []
        for host, vms in told.items():
            if isinstance(vms, str):
                continue
            old: list[str] = []
            for vm in vms:
                asked = vm.cloud_id in known or vm.vm_no in lost
                if vm.state is not CloudState.GONE or asked:
                    found.append(vm)
                elif vm.cloud_id in self._told or vm.ended < time.time() - FORGET_S:
                    old.append(scripts.nonce_of(vm.cloud_id))
                if vm.state is CloudState.GONE and asked:
                    self._told.add(vm.cloud_id)
            if old:
                self._clear(host, old)
        here = {vm.cloud_id for vm in found}
        for cloud_id, vm_no in known.items():
            if cloud_id in here:
                continue
            host = cloud_id.rpartition("#")[0]
            why = told.get(host, f"{host} is no longer in any list of hosts")
            if isinstance(why, str):
                found.append(VmFound(vm_no, cloud_id, CloudState.HIDDEN, "", scripts.address_of(host), 0.0, why))
            else:
                found.append(VmFound(vm_no, cloud_id, CloudState.GONE, "", scripts.address_of(host)))
        return found

    def _clear(self, host: str, nonces: Sequence[str]) -> None:
        try:
            self._shell.run(host, scripts.clear_script(self._place, nonces))
        except Failed:
            return  # the next list tries again
        self._told -= {scripts.cloud_id_of(host, nonce) for nonce in nonces}

    def strangers(self) -> Sequence[Stranger]:
        """See `provider.Provider.strangers`. A cluster's directory on a host is its own."""
        return []

    def room(self) -> Capacity:
        """See `provider.Provider.room`: the free slots of hosts that answer."""
        told = self._look(self._hosts)
        away = [why for why in told.values() if isinstance(why, str)]
        if len(away) == len(self._hosts):
            raise TryLater("no host can be reached: " + "; ".join(away))
        now = time.monotonic()
        with self._lock:
            free = sum(
                max(0, self._slots - len(self._taken.get(host, ())))
                for host, vms in told.items()
                if not isinstance(vms, str) and now >= self._rests_until.get(host, 0.0)
            )
        reason = f"{counted(len(self._hosts), 'host')} with {counted(self._slots, 'slot')} each"
        return Capacity(free, reason + ("; " + "; ".join(away) if away else ""))

    # --- ending -----------------------------------------------------------------------------------------

    def end(self, cloud_id: str) -> None:
        """See `provider.Provider.end`. Sends TERM; a request after a while sends KILL."""
        host, _, nonce = cloud_id.rpartition("#")
        if host in self._all_hosts and read_nonce(nonce) is not None:
            self._ask_end(host, [nonce])

    def _ask_end(self, host: str, nonces: Sequence[str]) -> None:
        try:
            self._shell.run(host, scripts.end_script(self._place, nonces))
        except Failed as failed:
            raise TryLater(str(failed)) from failed

    def end_all(self, wait_s: float) -> Sequence[VmFound]:
        """See `provider.Provider.end_all`. The error names hosts that cannot be reached."""
        until = time.monotonic() + wait_s
        while True:
            told = self._look(self._all_hosts)
            shown = [vm for vms in told.values() if not isinstance(vms, str) for vm in vms]
            left = [vm for vm in shown if vm.state is not CloudState.GONE]
            hosts = {vm.cloud_id.rpartition("#")[0] for vm in left}
            for host in hosts:
                self._ask_end(
                    host, [scripts.nonce_of(vm.cloud_id) for vm in left if vm.cloud_id.startswith(f"{host}#")]
                )
            away = [vms for vms in told.values() if isinstance(vms, str)]
            if away and not left:
                raise TryLater("; ".join(away))
            if not left or time.monotonic() > until:
                return left
            time.sleep(0.3)

    def misfit(self, size: Resources) -> str:
        """See `provider.Provider.misfit`. A host is not measured: the pool states what its workers offer."""
        return ""

    def close(self) -> None:
        """See `provider.Provider.close`. Holds nothing."""


def pair(text: str) -> tuple[int, int]:
    """Return the first two numbers of a version."""
    first, second, *_ = [*map(int, re.findall(r"\d+", text)), 0, 0]
    return first, second
