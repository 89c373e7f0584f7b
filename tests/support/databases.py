"""Real databases for tests: one private MariaDB per session (of each xdist worker), started when first asked for, with
a database of its own for each test; SQLite files."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from boss.store.statements import StatementQueue
from ecloud.db.database import make_engine, migrate

START_S = 60.0
_TIED = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
"""A server goes with the tests that started it, even where they were killed."""


class MariaDb:
    """A private server on a socket and a free loopback port, its data in a temporary directory."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ecloud-db-"))
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        user = "root" if os.geteuid() == 0 else os.environ.get("USER", "nobody")
        # A server that starts removes what it takes for left-over tables in its tmpdir, another server's as well.
        (self.directory / "tmp").mkdir()
        own = [f"--datadir={self.directory}/data", f"--tmpdir={self.directory}/tmp"]
        self._common = ["--no-defaults", *own, f"--user={user}"]
        install = shutil.which("mariadb-install-db") or "/usr/bin/mariadb-install-db"
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        installed = subprocess.run([install, *self._common, *options], capture_output=True, text=True)
        assert installed.returncode == 0, (installed.stdout + installed.stderr)[-4000:]
        self._start_first()
        with self.admin().connect() as connection:
            connection.exec_driver_sql("CREATE USER 'ecloud'@'%%' IDENTIFIED BY 'secret'")
            connection.exec_driver_sql("GRANT ALL ON *.* TO 'ecloud'@'%%'")
        self.count = 0

    def _start_first(self) -> None:
        for left in (2, 1, 0):
            self.port = _free_port()
            try:
                self.start()
                return
            except RuntimeError:  # another process may have taken the port in the meantime
                if not left:
                    self.stop()
                    raise

    def start(self) -> None:
        """Start, or start again, and wait until it answers."""
        server = shutil.which("mariadbd") or "/usr/sbin/mariadbd"
        options = [f"--socket={self.directory}/socket", f"--port={self.port}", "--bind-address=127.0.0.1"]
        # What is committed outlives the process (`kill`); that it outlives the machine is not worth a sync per commit.
        tuning = ["--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=2", "--skip-log-bin"]
        tuning += ["--skip-name-resolve", f"--pid-file={self.directory}/pid"]
        with (self.directory / "log").open("ab") as log:
            command = [*_TIED, server, *self._common, *options, *tuning]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while not self._answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError((self.directory / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.1)

    def _answers(self) -> bool:
        # A bare socket: PyMySQL leaves its own unclosed when no server listens on a path.
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(f"{self.directory}/socket")
            except OSError:
                return False
        try:
            with self.admin().connect():
                return True
        except sa.exc.OperationalError:
            return False

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def admin(self) -> Engine:
        """An engine without a database of its own."""
        return sa.create_engine(f"mysql+pymysql://root@/?unix_socket={self.directory}/socket", poolclass=sa.NullPool)

    def new_url(self) -> str:
        """A database of its own for one test."""
        self.count += 1
        name = f"test_{os.getpid()}_{self.count}"
        with self.admin().connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        return f"mysql+pymysql://ecloud:secret@127.0.0.1:{self.port}/{name}"

    @contextmanager
    def packets_of(self, size: int) -> Iterator[None]:
        """Take at most `size` bytes in a statement or a value, on connections that are made meanwhile."""
        with self.admin().connect() as connection:
            usual = connection.exec_driver_sql("SELECT @@GLOBAL.max_allowed_packet").scalar_one()
            connection.exec_driver_sql(f"SET GLOBAL max_allowed_packet = {size}")
        try:
            yield
        finally:
            with self.admin().connect() as connection:
                connection.exec_driver_sql(f"SET GLOBAL max_allowed_packet = {usual}")

    def stop(self) -> None:
        """End it and remove its data."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)
        shutil.rmtree(self.directory, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """The beginnings of all statements meanwhile: of the engine, and those that the store sends together."""
    asked: list[str] = []

    def note(connection: object, cursor: object, statement: str, *others: object) -> None:
        asked.append(statement[:80])

    def execute(queue: StatementQueue, statement: str, values: Sequence[Any] = ()) -> None:
        if engine.dialect.name != "sqlite":  # else the engine notes it
            asked.append(statement[:80])
        true_execute(queue, statement, values)

    true_execute = StatementQueue.execute
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        with mock.patch.object(StatementQueue, "execute", execute):
            yield asked
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDb]:
    """The session's server."""
    server = MariaDb()
    yield server
    server.stop()


@pytest.fixture
def mariadb_engine(mariadb: MariaDb) -> Iterator[Engine]:
    """An empty database with our tables."""
    engine = make_engine(mariadb.new_url())
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite_engine(tmp_path: Path) -> Iterator[Engine]:
    """An empty SQLite file with our tables."""
    engine = make_engine(f"sqlite:///{tmp_path}/test.db")
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture(params=["sqlite_engine", "mariadb_engine"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Both kinds in turn."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]
