"""Hosts made of namespaces: each with a network address, a hostname, processes, a root home and an sshd of its own.

Their `/root` is a directory of the test, so that what stays on a host can be counted; `reboot` ends all its processes
and keeps its files. Needs root, unshare, nsenter and ip.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from services import wait_until
from sshd import QUICK_EXCHANGE, SSHD, without_python

from datastore import keys

SPACES = ("unshare", "--net", "--mount", "--pid", "--uts", "--fork")
INSIDE = r"""
hostname "$1"
mount -t proc proc /proc
mount --make-rprivate /
mount --bind "$2" /root
[ -z "$4" ] || mount -t tmpfs -o "size=$4" none /root
[ -z "$4" ] || { mkdir -m 700 /root/.ssh; cp "$2.keys" /root/.ssh/authorized_keys; }
ip link set lo up
while ! ip addr show dev eth0 2>/dev/null | grep -q inet; do sleep 0.05; done
exec "$3" -D -e -f "$2.sshd_config"
"""


class Network:
    """A bridge that this machine and the hosts are on."""

    def __init__(self) -> None:
        pid = os.getpid()
        self.bridge = f"ec{pid}"
        self._net = f"10.{200 + pid % 50}.{pid // 50 % 250}"
        self._numbers = iter(range(2, 250))
        self.end()
        _ip("link", "add", "name", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self._net}.1/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    def next(self) -> tuple[str, str]:
        """The name of another link here, and the address at its other end."""
        number = next(self._numbers)
        return f"{self.bridge}x{number}", f"{self._net}.{number}"

    def end(self) -> None:
        """As if it had never been."""
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)


class NetHost:
    """One of them. `fault`: `no python`, `disk full`, `clock` (an hour ahead), `closed` (accepts no key)."""

    def __init__(self, directory: Path, name: str, public_key: str, network: Network, fault: str = "") -> None:
        self._network = network
        self.name = name
        self.home = directory / name
        self.home.mkdir(parents=True)
        self._fault = fault
        self._link, self.address = network.next()
        # A machine keeps its MAC address over a reboot; else others would send to the old one for up to 45 s.
        self._mac = ":".join(["02", "ec", *(f"{int(part):02x}" for part in self.address.split("."))])
        self._outside: subprocess.Popen[bytes] | None = None
        (self.home / ".ssh").mkdir(mode=0o700)
        authorized = self.home / ".ssh" / "authorized_keys"
        authorized.write_text("" if fault == "closed" else public_key + "\n")
        shutil.copy(authorized, f"{self.home}.keys")
        host_key = directory / f"{name}.host_key"
        keys.make_key(host_key, name)
        sees = f'SetEnv "HOME=/root" "PATH={os.environ["PATH"]}"'
        if fault == "no python":
            sees = without_python(directory / f"{name}.bare").replace(str(directory / f"{name}.bare") + '"', '/root"')
        if fault == "clock":
            tools = directory / f"{name}.tools"
            tools.mkdir()
            (tools / "date").write_text('#!/bin/sh\nexec /bin/date -d "+1 hour" "$@"\n')
            (tools / "date").chmod(0o755)
            sees = f'SetEnv "HOME=/root" "PATH={tools}:{os.environ["PATH"]}"'
        lines = [
            "Port 22", f"HostKey {host_key}", "PidFile none", "UsePAM no", "StrictModes no",
            "PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin yes",
            "AllowTcpForwarding yes", "MaxStartups 100:30:200", QUICK_EXCHANGE, "Subsystem sftp internal-sftp", sees,
        ]  # fmt: skip
        Path(f"{self.home}.sshd_config").write_text("\n".join(lines) + "\n")

    def start(self) -> NetHost:
        """Boot it."""
        words = [
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--uts",
            "--fork",
            "--kill-child",
            "/bin/sh",
            "-c",
            INSIDE,
            "sh",
        ]
        words += [self.name, str(self.home), SSHD, "60m" if self._fault == "disk full" else ""]
        with Path(f"{self.home}.log").open("ab") as log:
            self._outside = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        first = wait_until(self._first, what="the namespaces are there")
        _ip(
            "link", "add", self._link, "type", "veth",
            "peer", "name", "eth0", "address", self._mac, "netns", str(first),
        )  # fmt: skip
        _ip("link", "set", self._link, "master", self._network.bridge, "up")
        for words in (["link", "set", "eth0", "up"], ["addr", "add", f"{self.address}/24", "dev", "eth0"]):
            subprocess.run(["nsenter", "-t", str(first), "-n", "ip", *words], check=True)
        wait_until(self._answers, what=f"sshd of {self.name} answers")
        return self

    def _first(self) -> int | None:
        assert self._outside is not None
        if self._outside.poll() is not None:
            pytest.fail(Path(f"{self.home}.log").read_text())
        inside = psutil.Process(self._outside.pid).children()
        own = os.readlink("/proc/self/ns/net")
        return inside[0].pid if inside and os.readlink(f"/proc/{inside[0].pid}/ns/net") != own else None

    def _answers(self) -> bool:
        done = subprocess.run(["ssh-keyscan", "-T", "2", self.address], capture_output=True, check=False)
        return bool(done.stdout)

    def stop(self) -> None:
        """Power cut."""
        if self._outside is not None:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(self._outside.pid).children():
                    child.send_signal(signal.SIGKILL)
            self._outside.kill()
            self._outside.wait()
            self._outside = None
            subprocess.run(["ip", "link", "del", self._link], capture_output=True, check=False)

    def reboot(self) -> None:
        """All processes end, files stay."""
        self.stop()
        self.start()

    def processes(self) -> list[str]:
        """Command lines of what runs there besides sshd."""
        found = []
        if self._outside is not None:
            for process in psutil.Process(self._outside.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    words = process.cmdline()
                    if words and "sshd" not in words[0]:
                        found.append(" ".join(words))
        return found

    def ask(self, *words: str) -> str:
        """What a command prints there."""
        first = self._first()
        assert first is not None
        command = ["nsenter", "-t", str(first), "-n", "-m", "-p", "-u", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def cut(self) -> None:
        """All connections of its sshd end; what they started stays."""
        first = self._first()
        assert first is not None
        for child in psutil.Process(first).children():
            with contextlib.suppress(psutil.Error):
                if child.cmdline() and child.cmdline()[0].startswith("sshd:"):
                    child.send_signal(signal.SIGKILL)

    def authorized(self) -> list[str]:
        """Lines of its `authorized_keys`."""
        return (self.home / ".ssh" / "authorized_keys").read_text().splitlines()

    def files(self) -> list[str]:
        """What is in its home besides the keys."""
        return sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*") if ".ssh" not in path.parts)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def why_not() -> str:
    """Why no such hosts can be made here; empty where they can."""
    if os.geteuid() != 0 or not all(shutil.which(name) for name in ("unshare", "nsenter", "ip", "ssh-keyscan")):
        return "root, unshare, nsenter, ip and ssh are needed"
    done = subprocess.run(
        [*SPACES, "ip", "link", "add", "name", "br0", "type", "bridge"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stderr.strip() if done.returncode else ""


class NetHosts:
    """Some hosts that accept one key."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self.key = directory / "key"
        self.public = keys.make_key(self.key, "user")
        self._made: list[NetHost] = []
        self._network = Network()

    def add(self, name: str, fault: str = "") -> NetHost:
        """One more, which runs."""
        made = NetHost(self.directory, name, self.public, self._network, fault)
        self._made.append(made)
        return made.start()

    def options(self, hosts: Sequence[NetHost]) -> list[str]:
        """Of `admin.py hosts up`."""
        known = f"UserKnownHostsFile={self.directory}/known_hosts"
        addresses = ",".join(f"root@{host.address}" for host in hosts)
        return ["-a", addresses, "-i", str(self.key), "-o", known, "-o", "LogLevel=ERROR"]

    def end(self) -> None:
        """Power cut for all."""
        for host in self._made:
            host.stop()
        self._network.end()


@pytest.fixture
def net_hosts(tmp_path: Path) -> Iterator[NetHosts]:
    """None yet."""
    if reason := why_not():
        pytest.skip(reason)
    made = NetHosts(tmp_path / "net")
    yield made
    made.end()
