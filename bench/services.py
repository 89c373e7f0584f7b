"""Private services for benchmarks: MariaDB, Mosquitto, a boss and workers, on their own ports below one temporary
directory.

Ends the processes that it started, by process id, and no others. CPU time is read from the processes themselves.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ecloud.client.broker import BrokerAddress, probe
from ecloud.config.home import Home
from ecloud.config.secrets import AccessFile, cluster_secret, derive_key, read_access, write_access
from ecloud.db.database import make_engine, migrate
from worker.launcher import descendants

START_S = 60.0
STOP_S = 30.0
ROOT = Path(__file__).resolve().parent.parent
_TICKS = os.sysconf("SC_CLK_TCK")


class NotInstalled(Exception):
    """A server that this benchmark needs is not installed; the text names it."""


class Services:
    """MariaDB, Mosquitto and a boss that uses both. `profiles`: a directory for cProfile's files of boss and
    workers."""

    def __init__(self, profiles: Path | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ecloud-bench-"))
        self._profiles = profiles
        self._started: list[subprocess.Popen[bytes]] = []
        self.home = Home(self.directory / "home")
        try:
            self.database = self._start_database()
            self.database_url = self._make_tables()
            self.broker, self.address = self._start_broker()
            self.boss = self.start_boss()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Services:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- MariaDB ------------------------------------------------------------------------------------

    def _start_database(self) -> subprocess.Popen[bytes]:
        server, install = _program("mariadbd"), _program("mariadb-install-db")
        user = "root" if os.geteuid() == 0 else os.environ.get("USER", "nobody")
        common = ["--no-defaults", f"--datadir={self.directory}/data", f"--user={user}"]
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run([install, *common, *options], check=True, capture_output=True)
        place = [f"--socket={self.directory}/socket", "--skip-networking", f"--pid-file={self.directory}/pid"]
        # The options for durable commits keep their defaults.
        process = self._start([server, *common, *place, "--innodb-buffer-pool-size=256M"], "mariadb")
        self._wait(process, "mariadb", self._database_answers)
        return process

    def _database_answers(self) -> bool:
        try:
            with self._server().connect():
                return True
        except sa.exc.OperationalError:
            return False

    def _server(self) -> Engine:
        return sa.create_engine(f"mysql+pymysql://root@/?unix_socket={self.directory}/socket", poolclass=sa.NullPool)

    def _make_tables(self) -> str:
        with self._server().connect() as connection:
            connection.exec_driver_sql("CREATE DATABASE ecloud")
        url = f"mysql+pymysql://root@/ecloud?unix_socket={self.directory}/socket"
        engine = make_engine(url)
        migrate(engine)
        engine.dispose()
        return url

    def engine(self) -> Engine:
        """The database, as commands use it."""
        return make_engine(self.database_url)

    # --- Mosquitto ----------------------------------------------------------------------------------

    def _start_broker(self) -> tuple[subprocess.Popen[bytes], BrokerAddress]:
        port = _free_port()
        config = self.directory / "mosquitto.conf"
        limits = "max_queued_messages 0\nmax_inflight_messages 200\npersistence false\nset_tcp_nodelay true\n"
        user = f"user {'root' if os.geteuid() == 0 else os.environ.get('USER', 'nobody')}\n"
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n{user}{limits}log_type error\n")
        process = self._start([_program("mosquitto"), "-c", str(config)], "mosquitto")
        address = BrokerAddress("127.0.0.1", port)
        self._wait(process, "mosquitto", lambda: probe(address, 1.0) is None)
        return process, address

    # --- boss and workers ---------------------------------------------------------------------------

    def start_boss(self) -> subprocess.Popen[bytes]:
        """Start a boss, and set `self.boss`."""
        self.settings = self.directory / "settings.py"
        self.settings.write_text(
            f"HOME = {str(self.home.path)!r}\n"
            f"DATABASE_URL = {self.database_url!r}\n"
            f"BROKER_HOST = '127.0.0.1'\nBROKER_PORT = {self.address.port}\n"
            "POOLS = ({'name': 'local', 'cloud': 'local', 'minimum': 0, 'maximum': 0, 'cpus': 1},)\n"
        )
        process = self._start(self._python("boss"), "boss", {"ECLOUD_SETTINGS": str(self.settings)})
        self.boss = process
        self._wait(process, "boss", self.home.boss_pid.exists)
        return process

    def boss_log(self) -> str:
        """Return the boss's output so far."""
        return (self.home.path / "boss.log").read_text(errors="replace")

    def start_worker(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        """Start a real worker process."""
        access = self.directory / f"{name}.access"
        write_access(access, self.access(f"invite-{name}"))
        command = [*self._python("worker", name), str(access), "--home", str(self.directory / name), *options]
        return self._start(command, name)

    def _python(self, module: str, name: str = "") -> list[str]:
        if self._profiles is None:
            return [sys.executable, "-m", module]
        self._profiles.mkdir(parents=True, exist_ok=True)
        output = self._profiles.absolute() / f"{name or module}.prof"
        return [sys.executable, "-m", "cProfile", "-o", str(output), "-m", module]

    def access(self, key_name: str) -> AccessFile:
        """Return the access file of a peer of that name."""
        key = derive_key(cluster_secret(self.home), key_name).hex()
        return msgspec.structs.replace(self.client_access(), key_name=key_name, key=key)

    def client_access(self) -> AccessFile:
        """Return the access file of a client on this machine."""
        return read_access(self.home.client_access)

    # --- processes ----------------------------------------------------------------------------------

    def _start(self, command: list[str], name: str, more: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**plain_environment(), **(more or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._started.append(process)
        return process

    def _wait(self, process: subprocess.Popen[bytes], name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                text = (self.directory / f"{name}.log").read_text(errors="replace")
                raise RuntimeError(f"{name} does not start:\n{text[-2000:]}")
            time.sleep(0.02)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End a process of these services, and wait for it."""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stop(self) -> None:
        """End all processes, the last one first, and remove the directory."""
        for process in reversed(self._started):
            self.end(process)
        shutil.rmtree(self.directory, ignore_errors=True)


def plain_environment() -> dict[str, str]:
    """Return the environment of a service: each variable is additional work for every process that is started, by
    ECLOUD and by xargs."""
    kept = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ}


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        raise NotInstalled(f"{name} is not installed")
    return found


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    """Return the CPU seconds of a process and all its threads, without its children."""
    return process_cpu_s(process.pid)


def process_cpu_s(pid: int) -> float:
    """Return the same by process id."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS


def children_cpu_s(process: subprocess.Popen[bytes]) -> float:
    """Return the CPU seconds of the children for which it has waited."""
    fields = _stat(process.pid)
    return (int(fields[13]) + int(fields[14])) / _TICKS


def worker_cpu_s(worker: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Return the CPU seconds of an agent with its launchers, and of the tasks' processes that have ended."""
    own, tasks = cpu_s(worker), children_cpu_s(worker)
    for pid in descendants(worker.pid):
        try:
            is_launcher = b"launcher.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
            fields = _stat(pid)
        except OSError:
            continue  # it has just ended
        if is_launcher:
            own += (int(fields[11]) + int(fields[12])) / _TICKS
            tasks += (int(fields[13]) + int(fields[14])) / _TICKS
    return own, tasks


def machine_cpu_s() -> float:
    """Return the CPU seconds of all processes on this machine since it booted."""
    fields = Path("/proc/stat").read_bytes().split(b"\n", 1)[0].split()[1:]
    user, nice, system, _idle, _waiting, irq, soft_irq, steal = map(int, fields[:8])
    return (user + nice + system + irq + soft_irq + steal) / _TICKS


def _stat(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
