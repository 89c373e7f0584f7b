"""Real services for tests: a private Mosquitto (plain or TLS) on a port of its own, and the boss's daemon in a home of
its own. Each ends what it started, by its number."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ecloud.client.broker import BrokerAddress
from ecloud.client.client import Client
from ecloud.config.home import Home
from ecloud.config.secrets import read_access
from ecloud.model.wire import RunChanged

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
USER = "ecloud"
PASSWORD = "not a secret"
START_S = 90.0
"""A deadline, for a machine that is busy with other tests: a boss starts in a second or two."""
DEADLINE_S = 30.0

QUICK: dict[str, Any] = {
    "HEARTBEAT_S": 0.3,
    "LEASE_S": 3.0,
    "LEASE_MARGIN_S": 0.5,
    "STOP_GRACE_S": 1.0,
    "RETRY_BACKOFF_S": 0.1,
    "IDLE_VM_S": 20.0,
    "BOSS_GONE_EXIT_S": 60.0,
    "POOLS": ({"name": "local", "maximum": 2},),
}
"""Times for tests; the lease is long enough for a machine that is busy with other tests."""

_Found = TypeVar("_Found")


def wait_until(condition: Callable[[], _Found], deadline_s: float = DEADLINE_S, what: str = "") -> _Found:
    """The first true value of `condition`; fails the test where none comes in `deadline_s` seconds."""
    asked_at = time.monotonic()
    deadline = asked_at + deadline_s
    while not (found := condition()):
        now = time.monotonic()
        if now > deadline:
            pytest.fail(f"waited {deadline_s:g} s without success{': ' + what if what else ''}; last value: {found!r}")
        time.sleep(min(max(0.02, 2 * (now - asked_at)), 1.0))  # a condition that costs much is asked less often
        asked_at = time.monotonic()
    return found


def free_port() -> int:
    """A loopback port that no process uses now, below those that the system gives to outgoing connections."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.SystemRandom().randrange(10_000, 32_000)
            probe.bind((HOST, port))
            return port


def listens(port: int) -> bool:
    """Whether a server accepts connections there."""
    try:
        with socket.create_connection((HOST, port), 0.5):
            return True
    except OSError:
        return False


def watch_to_the_end(client: Client, run: str, deadline_s: float = 2 * DEADLINE_S) -> RunChanged:
    """The picture of a run that has ended."""
    deadline = time.monotonic() + deadline_s
    for picture in client.watch(run, again_s=1.0):
        if picture.over:
            return picture
        if time.monotonic() > deadline:
            pytest.fail(f"the run {run} is not over after {deadline_s:g} s: {picture}")
    raise AssertionError("a watch does not end without its run")


# --- Mosquitto ------------------------------------------------------------------------------------


class Mosquitto:
    """A private broker that accepts one user. `extra`: further lines of its configuration."""

    def __init__(self, directory: Path, *extra: str, ca: str = "") -> None:
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.address = BrokerAddress(HOST, self.port, USER, PASSWORD, ca, bool(ca))
        self.process: subprocess.Popen[bytes] | None = None
        passwords = directory / "passwords"
        subprocess.run(
            ["mosquitto_passwd", "-c", "-b", str(passwords), USER, PASSWORD], check=True, capture_output=True
        )
        owner = "root" if os.geteuid() == 0 else os.environ.get("USER", "nobody")
        lines = [
            f"listener {self.port} {HOST}",
            "allow_anonymous false",
            f"password_file {passwords}",
            "set_tcp_nodelay true",
            "max_queued_messages 0",
            f"user {owner}",
            *extra,
        ]
        (directory / "mosquitto.conf").write_text("\n".join(lines) + "\n")

    def start(self) -> Mosquitto:
        """Start it, or start it again on the same port; returns when it listens."""
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, "-c", str(self.directory / "mosquitto.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: self._is_over() or listens(self.port), START_S, "Mosquitto listens")
        assert not self._is_over(), (self.directory / "log").read_text(errors="replace")
        return self

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continues."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, whatever it is in."""
        if self.process is not None and not self._is_over():
            self.kill()

    def _is_over(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def settings(self) -> dict[str, Any]:
        """What a settings file says to use it."""
        return {
            "BROKER_HOST": HOST,
            "BROKER_PORT": self.port,
            "BROKER_USER": USER,
            "BROKER_PASSWORD": PASSWORD,
        }


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker that wants a user and password, as a user's own Mosquitto would."""
    broker = Mosquitto(tmp_path / "mosquitto").start()
    yield broker
    broker.stop()


class Authority:
    """A certificate authority in a directory, with one server certificate for the loopback address."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.ca = directory / "ca.pem"
        self.key = directory / "server.key"
        self.certificate = directory / "server.pem"
        ca_key, request, extensions = directory / "ca.key", directory / "server.csr", directory / "extensions"
        ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        extensions.write_text(f"subjectAltName=IP:{HOST},DNS:localhost\n")
        _openssl("req", "-x509", *ec, "-keyout", ca_key, "-out", self.ca, "-days", "2", "-subj", "/CN=test authority")
        _openssl("req", *ec, "-keyout", self.key, "-out", request, "-subj", "/CN=localhost")
        signing = ["-CA", self.ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2", "-extfile", extensions]
        _openssl("x509", "-req", "-in", request, "-out", self.certificate, *signing)

    @property
    def pem(self) -> str:
        """Its own certificate as text."""
        return self.ca.read_text()


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def mosquitto_tls(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker behind TLS, with a certificate of an authority of its own (`address.ca`)."""
    authority = Authority(tmp_path / "authority")
    files = [f"certfile {authority.certificate}", f"keyfile {authority.key}"]
    broker = Mosquitto(tmp_path / "mosquitto_tls", *files, ca=authority.pem).start()
    yield broker
    broker.stop()


# --- the daemon -----------------------------------------------------------------------------------


class Daemon:
    """`python -m boss` in a home below a temporary directory. Started by `start`; ended, with every process that works
    for its home, by `end`."""

    program: Sequence[str] = ("-m", "boss")
    """What Python runs."""

    def __init__(self, directory: Path, *options: str, **settings: Any) -> None:
        self.directory = directory
        self.home = Home(directory / "home")
        self.options = options
        self.settings_file = directory / "settings.py"
        self.process: subprocess.Popen[bytes] | None = None
        self._others: list[subprocess.Popen[bytes]] = []
        directory.mkdir(parents=True, exist_ok=True)
        self.configure(**settings)

    def configure(self, **settings: Any) -> None:
        """Write the settings file again."""
        values = {"HOME": str(self.home.path), **QUICK, **settings}
        self.settings_file.write_text("".join(f"{name} = {value!r}\n" for name, value in values.items()))

    @property
    def environment(self) -> dict[str, str]:
        """What its processes see."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ECLOUD_")}
        return {**kept, "ECLOUD_SETTINGS": str(self.settings_file)}

    def launch(self, *options: str) -> subprocess.Popen[bytes]:
        """Begin one more boss of this home; it is ended by `end` too. Its stderr is in `words`."""
        with (self.directory / "stderr").open("ab") as stderr:
            process = subprocess.Popen(
                [sys.executable, *self.program, *self.options, *options],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        self._others.append(process)
        return process

    def start(self, *options: str) -> Daemon:
        """Begin; returns when it leads."""
        self.process = self.launch(*options)
        wait_until(lambda: self.leads(self.process) or self.is_over, START_S, "the boss leads")
        assert not self.is_over, self.words
        return self

    def leads(self, process: subprocess.Popen[bytes] | None) -> bool:
        """Whether that process is the home's boss and its loop has begun."""
        try:
            return process is not None and f'"pid": {process.pid},' in self.home.boss_pid.read_text()
        except OSError:
            return False

    @property
    def is_over(self) -> bool:
        """Whether its process has ended."""
        return self.process is not None and self.process.poll() is not None

    @property
    def words(self) -> str:
        """What it printed."""
        return (self.directory / "stderr").read_text(errors="replace")

    @property
    def log(self) -> str:
        """What its log says."""
        return self.home.log.read_text(errors="replace")

    def run(self, *options: str) -> tuple[int, str]:
        """One boss that is expected to exit: its exit code and what it printed."""
        command = [sys.executable, *self.program, *self.options, *options]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=60
        )
        return done.returncode, (done.stdout + done.stderr).decode()

    def client(self, **options: Any) -> Client:
        """A client that was welcomed."""
        client = Client(read_access(self.home.client_access), **options)
        client.connect(DEADLINE_S)
        return client

    def kill(self) -> None:
        """As a power cut would: its workers and its broker are not asked."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """TERM, and its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(DEADLINE_S)

    def restart(self, *options: str) -> Daemon:
        """Kill it and start it again on the same home."""
        self.kill()
        return self.start(*options)

    def processes(self) -> dict[int, str]:
        """Every process that works for this home, by its command line or its directory: number and command line."""
        found = {}
        place = str(self.directory)
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                works = place in command or os.readlink(entry / "cwd").startswith(place)
            except OSError:
                continue
            if works and command:
                found[int(entry.name)] = command
        return found

    def end(self) -> None:
        """End everything that was started here."""
        for process in self._others:
            if process.poll() is None:
                process.kill()
            process.wait()
        deadline = time.monotonic() + DEADLINE_S
        while (left := [pid for pid in self.processes() if pid != os.getpid()]) and time.monotonic() < deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Makes daemons, not started yet: `daemons(DATABASE_URL=…)`; all end with the test."""
    made: list[Daemon] = []

    def make(*options: str, directory: str = "", **settings: Any) -> Daemon:
        made.append(Daemon(tmp_path / (directory or f"daemon-{len(made)}"), *options, **settings))
        return made[-1]

    yield make
    for daemon in made:
        daemon.end()
