"""Secrets stay where they belong: the cluster's key, peers' keys, the broker's and the database's passwords are in no
log, no command line, no task's environment, no row, no result and no message to a user."""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from databases import MariaDb
from doors import Doors
from services import Daemon, Mosquitto, free_port, wait_until

from ecloud.config.secrets import read_access
from ecloud.db.database import make_engine, migrate

DATABASE_PASSWORD = "Wq7-database-zP3"
PRIVATE = stat.S_IRWXG | stat.S_IRWXO


class Secrets:
    """What must not be told, by name."""

    def __init__(self, daemon: Daemon) -> None:
        home = daemon.home
        self.words = {"the cluster's key": home.cluster_key.read_text().strip(), "the database's": DATABASE_PASSWORD}
        self.words["the broker's"] = read_access(home.client_access).password
        for path in [home.client_access, *home.workers.glob("*/access")]:
            self.words[f"the key in {path.name}"] = read_access(path).key
        assert all(len(word) > 10 for word in self.words.values())

    def told_in(self, text: str | bytes) -> list[str]:
        """Names of those that `text` tells."""
        data = text.encode() if isinstance(text, str) else text
        return [name for name, word in self.words.items() if word.encode() in data]


@pytest.fixture
def daemon(daemons: Callable[..., Daemon], mariadb: MariaDb) -> Iterator[Daemon]:
    """A boss with a broker of its own, and a database whose password is like no other word."""
    url = mariadb.new_url()
    name = url.rpartition("/")[2]
    with mariadb.admin().connect() as connection:
        connection.exec_driver_sql(f"CREATE OR REPLACE USER 'keeper'@'%%' IDENTIFIED BY '{DATABASE_PASSWORD}'")
        connection.exec_driver_sql(f"GRANT ALL ON {name}.* TO 'keeper'@'%%'")
    url = f"mysql+pymysql://keeper:{DATABASE_PASSWORD}@127.0.0.1:{mariadb.port}/{name}"
    engine = make_engine(url)
    migrate(engine)
    engine.dispose()
    yield daemons(DATABASE_URL=url, LOG_LEVEL="DEBUG")
    with mariadb.admin().connect() as connection:
        connection.exec_driver_sql("DROP USER 'keeper'@'%%'")


def processes() -> Iterator[tuple[int, bytes]]:
    """What `ps` shows: every process and its command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                yield int(entry.name), (entry / "cmdline").read_bytes()
            except OSError:
                continue


def environments(pids: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Of those that have not ended meanwhile: a task's `sleep`, or a shell's copy of itself, lives for a moment."""
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield pid, Path(f"/proc/{pid}/environ").read_bytes()


def every_row(daemon: Daemon, mariadb: MariaDb) -> Iterator[tuple[str, bytes]]:
    """Every value of every table, as bytes."""
    name = daemon.settings_file.read_text().partition(f":{mariadb.port}/")[2].partition("'")[0]
    with mariadb.admin().connect() as connection:
        for (table,) in list(connection.exec_driver_sql(f"SHOW TABLES FROM {name}")):
            for row in connection.exec_driver_sql(f"SELECT * FROM {name}.{table}"):
                for value in row:
                    yield table, value if isinstance(value, bytes) else str(value).encode()


def test_no_secret_is_shown_while_a_run_continues(daemon: Daemon, mariadb: MariaDb, tmp_path: Path) -> None:
    daemon.start()
    doors = Doors(tmp_path / "place", daemon)
    curious = (
        "env; cat /proc/self/environ /proc/$PPID/cmdline; ps axeww 2>/dev/null; echo $ECLOUD_SETTINGS $ECLOUD_ACCESS"
    )
    tasks = [
        {"id": "curious", "commands": [f"({curious}) > seen", "cat seen", "cat seen >&2"], "results": ["seen"]},
        {"id": "fails", "commands": f"{curious}; exit 3"},
        {"id": "lasts", "commands": f"until [ -e {tmp_path}/go ]; do sleep 0.1; done"},
    ]
    doors.push(doors.write("curious.json", tasks))
    secrets = Secrets(daemon)

    def lasts() -> list[int]:
        return [pid for pid, command in processes() if str(tmp_path / "go").encode() in command]

    running = wait_until(lasts, what="a task runs")
    for _, command in processes():
        assert not secrets.told_in(command), command
    told = {pid: secrets.told_in(text) for pid, text in environments([*running, *daemon.processes()])}
    assert told, "nothing that runs could be read"
    assert not any(told.values()), told
    (tmp_path / "go").touch()
    shown = [
        doors.admin(*action.split(), code=None).text for action in ("status", "doctor", "show_context", "show_workers")
    ]
    wait_until(lambda: doors.admin("status", "--json").json["tasks"].get("failed"), what="the failing task has ended")
    wait_until(lambda: (daemon.home.datastore / "seen").exists(), what="the curious one has ended")
    shown += [
        doors.admin(*action.split()).text for action in ("show_failed", "logs fails", "logs curious", "show_task fails")
    ]
    shown.append(json.dumps(doors.admin("show_workers", "--json").json))
    for text in shown:
        assert not secrets.told_in(text), text
    values = list(every_row(daemon, mariadb))
    assert {"attempts", "definitions", "workers", "context"} <= {table for table, _ in values}
    assert not {(table, tuple(names)) for table, value in values if (names := secrets.told_in(value))}
    assert daemon.stop() == 0
    no_file_tells(daemon, secrets)


def no_file_tells(daemon: Daemon, secrets: Secrets) -> None:
    """A secret is only in files that their owner alone can read, and in no log."""
    files = [path for path in daemon.directory.rglob("*") if path.is_file() and path != daemon.settings_file]
    assert daemon.home.log in files
    for path in files:
        names = secrets.told_in(path.read_bytes())
        if path.suffix in (".log", ".jsonl") or path.name in ("log", "stderr", "seen"):
            assert not names, f"{path} tells {names}"
        assert not names or not path.stat().st_mode & PRIVATE, f"{path} shows {names} to all users"


def test_no_error_tells_a_secret(daemon: Daemon, mariadb: MariaDb, tmp_path: Path) -> None:
    """A database and a broker that are away, or refuse the password: the sentences name them, not the password."""
    url = f"mysql://keeper:{DATABASE_PASSWORD}"
    wrong = [
        {"DATABASE_URL": f"{url}@127.0.0.1:{free_port()}/d"},
        {"DATABASE_URL": f"{url}@127.0.0.1:{mariadb.port}/nowhere"},
        {"DATABASE_URL": f"{url}x@127.0.0.1:{mariadb.port}/nowhere"},
        {"DATABASE_URL": f"{url}@no.such.host.invalid/d"},
        {"DATABASE_URL": f"{url}@127.0.0.1:port/d"},
        {"DATABASE_URL": f"oracle://keeper:{DATABASE_PASSWORD}@h/d"},
        {"DATABASE_URL": DATABASE_PASSWORD},
        {"DATABASE_URL": [DATABASE_PASSWORD]},
        {
            "BROKER_HOST": "127.0.0.1",
            "BROKER_PORT": free_port(),
            "BROKER_USER": "u",
            "BROKER_PASSWORD": DATABASE_PASSWORD,
        },
        {"BROKER_HOST": "127.0.0.1", "BROKER_PASSWORD": [DATABASE_PASSWORD]},
        {"OPENNEBULA_PASSWORD": 5, "OPENNEBULA_PROXY": [DATABASE_PASSWORD]},
    ]
    for settings in wrong:
        daemon.configure(**settings)
        doors = Doors(tmp_path / "place", daemon)
        process = daemon.launch()
        said = [doors.admin(action, code=None).text for action in ("doctor", "status")]
        if process.poll() is None:
            process.terminate()
        process.wait(30)
        said += [daemon.words, daemon.home.log.read_text() if daemon.home.log.exists() else ""]
        for text in said:
            assert DATABASE_PASSWORD not in text, (settings, text)


def test_a_broker_that_refuses_the_password_is_named_without_it(
    daemon: Daemon, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    daemon.configure(**{**mosquitto.settings(), "BROKER_PASSWORD": DATABASE_PASSWORD})
    daemon.start()
    wait_until(lambda: "check BROKER_USER and BROKER_PASSWORD" in daemon.log, what="the boss says what is wrong")
    doors = Doors(tmp_path / "place", daemon)
    for text in (
        daemon.log,
        daemon.words,
        doors.admin("doctor", code=None).text,
        doors.admin("status", code=None).text,
    ):
        assert DATABASE_PASSWORD not in text
