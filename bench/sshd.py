"""A private sshd on a loopback port for benchmarks, and plain rsync over it. CPU time of both ends is read from the
processes themselves.

Ends the processes that it started, by process id, and no others.
"""

from __future__ import annotations

import getpass
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from bench.services import NotInstalled, children_cpu_s, plain_environment
from datastore import keys
from datastore.ssh.access import ALIAS, Access, SshAddress, gate_command
from datastore.ssh.datastore import SshDatastore

GATE = Path(__file__).resolve().parent.parent / "datastore" / "gate.py"
HOST = "127.0.0.1"
START_S = 20.0
LEAVE_S = 20.0
"""Time for sessions to end after their client has left."""


class Sshd:
    """Accepts this user with one key, without restrictions; the home of its sessions is below `directory`. `addresses`:
    loopback addresses to listen on, each with a home of its own."""

    def __init__(self, directory: Path, *more: str, addresses: Mapping[str, Path] = {}) -> None:
        self.directory = directory
        self.key, self.known_hosts = directory / "key", directory / "known_hosts"
        self.authorized_keys = directory / ".ssh" / "authorized_keys"
        self.authorized_keys.parent.mkdir(mode=0o700, parents=True)
        self.authorized_keys.write_text(keys.make_key(self.key, "bench") + "\n")
        host_key = directory / "host_key"
        keys.write_known_hosts(self.known_hosts, ALIAS, keys.make_key(host_key, "host"))
        self.port = _free_port()
        lines = [
            f"Port {self.port}", *(f"ListenAddress {address}" for address in addresses or (HOST,)),
            f'HostKey "{host_key}"', "PidFile none", "UsePAM no", "MaxStartups 200",
            f'AuthorizedKeysFile "{self.authorized_keys}"', "StrictModes no", "PasswordAuthentication no",
            "KbdInteractiveAuthentication no", "PermitRootLogin yes", "LogLevel ERROR", "Subsystem sftp internal-sftp",
            *([] if addresses else [f'SetEnv "HOME={directory}"' + "".join(f' "{line}"' for line in more)]),
            *(f'Match LocalAddress {address}\n    SetEnv "HOME={home}"' for address, home in addresses.items()),
        ]  # fmt: skip
        self._address = next(iter(addresses), HOST)
        config = directory / "sshd_config"
        config.write_text("\n".join(lines) + "\n")
        self.process = self._start(config)

    def _start(self, config: Path) -> subprocess.Popen[bytes]:
        program = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise NotInstalled("sshd is not installed")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + START_S
        while not _listens(self._address, self.port):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(f"sshd does not start: {(self.directory / 'log').read_text(errors='replace')}")
            time.sleep(0.02)
        return process

    def __enter__(self) -> Sshd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait()

    def address(self, root: Path) -> str:
        """Return the address of a directory on it, as a user writes it."""
        return str(SshAddress(getpass.getuser(), HOST, self.port, str(root)))

    def datastore(self, root: Path) -> SshDatastore:
        """Return a directory on it as a datastore, with the boss's rights."""
        gate = gate_command(sys.executable, str(GATE), str(root))
        access = Access(self.key, self.known_hosts, gate=gate)
        return SshDatastore(SshAddress.parse(self.address(root)), access)

    def rsync(self, source: Path, target: Path, to_it: bool, cipher: str = "") -> None:
        """Run plain `rsync -a -e ssh`, in either direction."""
        if shutil.which("rsync") is None:
            raise NotInstalled("rsync is not installed")
        options = [f"-p {self.port}", f"-i {self.key}", f"-o UserKnownHostsFile={self.known_hosts}", "-F none"]
        options += [f"-o HostKeyAlias={ALIAS}", "-o IdentitiesOnly=yes", "-o BatchMode=yes"]
        if cipher:
            options.append(f"-c {cipher}")
        far, near = (str(target), str(source)) if to_it else (str(source), str(target))
        there = f"{getpass.getuser()}@{HOST}:{far}"
        ways = [near, there] if to_it else [there, near]
        command = ["rsync", "-a", "-e", " ".join(["ssh", *options]), *ways]
        subprocess.run(command, check=True, env=plain_environment(), stdin=subprocess.DEVNULL)

    def children_cpu_s(self) -> float:
        """Return the CPU seconds of all ended sessions."""
        return children_cpu_s(self.process)

    def cpu_s(self) -> float:
        """Return the CPU seconds of all ended sessions, and of this process with its children, once no session is
        left."""
        deadline = time.monotonic() + LEAVE_S
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while children.read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.01)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children_cpu_s(self.process) + time.process_time() + used.ru_utime + used.ru_stime


def _listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])
