"""A private sshd on a loopback port: own host key, own authorized_keys, a gate, datastores over it; ended by its
number. One per session; a test that wants to kill or spoil it makes its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from services import HOST, free_port, listens, wait_until

from datastore import keys
from datastore.ssh.access import ALIAS, Access, SshAddress, gate_command
from datastore.ssh.datastore import SshDatastore

GATE = Path(__file__).resolve().parents[2] / "datastore/gate.py"
CLUSTER = "c-test"
PYTHON = os.environ.get("ECLOUD_TEST_GATE_PYTHON", sys.executable)
"""What runs the gate: another one shows that the gate needs no newer."""
QUICK_EXCHANGE = "KexAlgorithms curve25519-sha256,curve25519-sha256@libssh.org"
"""A third of the CPU of a connection with OpenSSH's default exchange, which guests (`guests.py`) have."""
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
_TIED = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


class Sshd:
    """An sshd that accepts this user: with the boss's key to anything, with a certificate to its command."""

    def __init__(self, directory: Path, *extra: str) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.host_key = directory / "host_key"
        self.known_hosts = directory / "known_hosts"
        # The home of who logs in is below this directory: what is installed there touches no real files.
        (directory / ".ssh").mkdir(mode=0o700, exist_ok=True)
        self.authorized_keys = directory / ".ssh" / "authorized_keys"
        self.gate = directory / "gate.py"
        shutil.copy(GATE, self.gate)
        self.boss_key = directory / "boss_key"
        self.authority = keys.Authority.make(directory / "authority", CLUSTER)
        self.authorized_keys.write_text(
            keys.make_key(self.boss_key, "boss") + "\n" + self.authority.authorized_line() + "\n"
        )
        self.new_host_key()
        self.pin()
        self.config = directory / "sshd_config"
        lines = [
            *extra,  # of each keyword sshd takes the first
            f"Port {self.port}", f"ListenAddress {HOST}", f'HostKey "{self.host_key}"', "PidFile none", "UsePAM no",
            f'AuthorizedKeysFile "{self.authorized_keys}"', "StrictModes no", "PasswordAuthentication no",
            "KbdInteractiveAuthentication no", "PermitRootLogin yes", "AllowTcpForwarding yes", "LogLevel VERBOSE",
            "MaxStartups 100:30:200", QUICK_EXCHANGE, "Subsystem sftp internal-sftp", f'SetEnv "HOME={directory}"',
        ]  # fmt: skip
        self.config.write_text("\n".join(lines) + "\n")
        self.process: subprocess.Popen[bytes] | None = None
        self.lacks: list[str] = []
        """Words before its command, by which it lacks what it would have otherwise."""
        self._handed_out: list[SshDatastore] = []

    def new_host_key(self) -> None:
        """As a machine that is reinstalled without notice."""
        for path in (self.host_key, self.host_key.with_name("host_key.pub")):
            path.unlink(missing_ok=True)
        keys.make_key(self.host_key, "host")

    def pin(self) -> None:
        """Its present key is the one to expect."""
        keys.write_known_hosts(self.known_hosts, ALIAS, keys.public_line(self.host_key))

    def start(self) -> Sshd:
        """Up, and listening."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen([*_TIED, *self.lacks, SSHD, "-D", "-e", "-f", str(self.config)], stderr=log)
        process = self.process
        wait_until(lambda: listens(self.port) or process.poll() is not None, what="sshd listens")
        if process.poll() is not None:
            pytest.fail(f"sshd ended: {(self.directory / 'log').read_text()}")
        return self

    def cut(self) -> None:
        """All connections end at once; the listener stays."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children():
            child.send_signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """To the listener and all connections, and what they run."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.send_signal(number)

    def stop(self) -> None:
        """As when the machine goes away: the listener and all connections, at once."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)  # accepts no connection while its children end
            self.cut()
            self.process.kill()
            self.process.wait()
            self.process = None

    def address(self, root: Path, port: int = 0) -> SshAddress:
        """Of a directory behind it."""
        return SshAddress(getpass.getuser(), HOST, port or self.port, str(root))

    def boss(self, root: Path, port: int = 0, **options: Any) -> SshDatastore:
        """The datastore for the boss."""
        gate = gate_command(PYTHON, str(self.gate), str(root), "boss")
        return self._keep(
            SshDatastore(self.address(root, port), Access(self.boss_key, self.known_hosts, None, gate), **options)
        )

    def access(self, root: Path, name: str, lives_s: float = keys.LIVES_S, until_s: float | None = None) -> Access:
        """A worker's key with a certificate for its name."""
        return self._certified(
            name, gate_command(PYTHON, str(self.gate), str(root), "worker", name, until_s=until_s), lives_s
        )

    def _certified(self, name: str, command: str, lives_s: float) -> Access:
        key = self.directory / f"key-{name}"
        line = self.authority.sign(keys.make_key(key, name), name, command, lives_s)
        certificate = self.directory / f"key-{name}-cert.pub"
        certificate.write_text(line + "\n")
        return Access(key, self.known_hosts, certificate)

    def client(self, root: Path) -> SshDatastore:
        """The datastore for a user's program."""
        access = self._certified("client", gate_command(PYTHON, str(self.gate), str(root), "client"), keys.LIVES_S)
        return self._keep(SshDatastore(self.address(root), access))

    def worker(
        self, root: Path, name: str, port: int = 0, lives_s: float = keys.LIVES_S, **options: Any
    ) -> SshDatastore:
        """The datastore for a worker."""
        return self._keep(SshDatastore(self.address(root, port), self.access(root, name, lives_s), **options))

    def _keep(self, datastore: SshDatastore) -> SshDatastore:
        self._handed_out.append(datastore)
        return datastore

    def close_clients(self) -> None:
        """End every connection that was handed out."""
        for datastore in self._handed_out:
            datastore.close()
        self._handed_out.clear()

    def close(self) -> None:
        """End every connection, then itself."""
        self.close_clients()
        self.stop()


def big_file(path: Path, size: int) -> Path:
    """Bytes that do not repeat."""
    path.write_bytes(os.urandom(size))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty directory to be served."""
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """An empty directory of who reads and stores."""
    path = tmp_path / "local"
    path.mkdir()
    return path


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """For calls that continue meanwhile."""
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture(scope="session")
def shared_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """One for the session."""
    server = Sshd(tmp_path_factory.mktemp("sshd")).start()
    yield server
    server.close()


TOOLS = (
    "sh",
    "cat",
    "dirname",
    "env",
    "grep",
    "mkdir",
    "mv",
    "printf",
    "rmdir",
    "sha256sum",
    "sync",
    "tail",
    "test",
    "touch",
)


def without_python(directory: Path) -> str:
    """A line for sshd_config: who logs in finds no python3, as on a small server."""
    tools = directory / "tools"
    tools.mkdir(parents=True, exist_ok=True)
    for name in TOOLS:
        found = shutil.which(name)
        if found and not (tools / name).exists():
            (tools / name).symlink_to(found)
    return f'SetEnv "HOME={directory}" "PATH={tools}"'


def bare(directory: Path, *extra: str) -> Sshd:
    """An sshd of a machine without python3."""
    # The first line of a kind counts.
    server = Sshd(directory, *extra)
    lines = [line for line in server.config.read_text().splitlines() if not line.startswith("SetEnv")]
    server.config.write_text("\n".join([*lines, without_python(directory)]) + "\n")
    return server


@pytest.fixture
def sshd(shared_sshd: Sshd) -> Iterator[Sshd]:
    """One for all that do it no harm; the test's connections end with it."""
    yield shared_sshd
    shared_sshd.close_clients()


@pytest.fixture
def own_bare_sshd(tmp_path: Path) -> Iterator[Sshd]:
    """One without python3, to be killed or spoiled."""
    server = bare(tmp_path / "bare sshd").start()
    yield server
    server.close()


@pytest.fixture
def own_sshd(tmp_path: Path) -> Iterator[Sshd]:
    """One to be killed or spoiled."""
    server = Sshd(tmp_path / "own sshd").start()
    yield server
    server.close()
