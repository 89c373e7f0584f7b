"""Every action of the command table while a part is away, and interrupted: an exit code as documented, one sentence, no
traceback. The actions come from the table itself, so a new one is tried, too."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import pytest
from databases import MariaDb
from doors import Doors, ended
from forked_doors import Forked, begin
from services import ROOT, Daemon, Mosquitto, wait_until

from boss.shell.driver import RENEW_S
from datastore.problem import DONE, INTERRUPTED, PART_AWAY
from ecloud.cli.main import main
from ecloud.db.database import make_engine, migrate

DEADLINE_S = 60.0
"""Each answers within 10 s on a machine that has nothing else to do; many of them run at once here."""
SAMPLES = {
    "task": "a", "run": "r", "subject": "a", "tasks": "nobody", "workers": "nobody", "keys": "nothing", "vm": "vm/99",
    "pool": "nowhere",
    "address": "datastore", "local": "interrupted.bin", "file": "drawn", "shell": "bash", "words": "push.json",
    "path": "sent/file",
}  # fmt: skip
"""What a person types for an argument of that name. Orders name what does not exist: they change nothing."""
OPTIONS = {"drop_tasks": ["--yes"], "ls": ["--task", "a"], "sweep": ["r"], "get": ["there.bin", "copy"]}
NOT_TOGETHER = {
    "stop": "tried on its own below", "start": "starts what the others miss", "hosts": "other machines",
    "slurm": "starts and stops the boss", "monitor": "ends by Ctrl-C only", "top": "needs a terminal",
}  # fmt: skip
NEED_NOTHING = {"completion", "invite"}
NOTICED_S = RENEW_S + 1.0
"""After this the boss has noticed that the database is away: it no longer answers from memory."""
ANSWER_WITHOUT_BOSS = {"why"}
"""It asks the boss, and answers from the database if there is none."""
SHOW_UNTIL_INTERRUPTED = ["admin.py", "status", "--watch"]


def actions() -> dict[str, list[str]]:
    """What to type for each action, by its name."""
    found = {"push": ["push_tasks.py", "push.json"]}
    for name, command in main.commands.items():
        if name in NOT_TOGETHER or name == "push":
            continue
        words = ["admin.py", name]
        for param in command.params:
            if isinstance(param, click.Argument) and name not in ("ls", "get", "du", "instantiate_worker", "sweep"):
                assert param.name in SAMPLES, f"{name}: name a sample for its argument {param.name}"
                words.append(SAMPLES[param.name])
        found[name] = [*words, *OPTIONS.get(name, [])]
    return found


class Tried:
    """An action that has ended."""

    def __init__(self, action: Forked) -> None:
        code = action.poll()
        assert code is not None
        self.code = code
        self.seconds = action.seconds
        self.text = b"".join(action.printed()).decode(errors="replace")


class Cluster:
    """A boss with a broker and a database server that can be taken away."""

    def __init__(self, doors: Doors, broker: Mosquitto, database: MariaDb) -> None:
        self.doors = doors
        self.broker = broker
        self.database = database

    def try_all(
        self, typed: list[list[str]], interrupt_at: Sequence[int | str] = (), speak: bool = False
    ) -> list[Tried]:
        """Type all of these at once; the outcome of each. `speak`: each gets Ctrl-C once it has printed something."""
        place, environment = self.doors.place, self.doors.environment
        begun = [begin(words, place, environment, interrupt_at=interrupt_at) for words in typed]
        deadline, asked = time.monotonic() + DEADLINE_S, set[int]()
        while (left := [one for one in begun if one.poll() is None]) and time.monotonic() < deadline:
            for one in left:
                if speak and one.pid not in asked and one.has_printed:
                    one.signal(signal.SIGINT)
                    asked.add(one.pid)
            time.sleep(0.02)
        for one in left:
            one.end()
        found = [Tried(one) for one in begun]
        for words, tried in zip(typed, found, strict=True):
            assert "Traceback" not in tried.text, (words, tried.text)
        unanswered = [words for words, one in zip(typed, begun) if one in left]
        assert not unanswered, f"these gave no answer: {unanswered}"
        return found

    def codes(self, interrupt_at: Sequence[int | str] = ()) -> dict[str, int]:
        """The exit code of each action of the table."""
        typed = actions()
        for made in ("drawn", "copy"):
            (self.doors.place / made).unlink(missing_ok=True)
        found = self.try_all(list(typed.values()), interrupt_at)
        for name, one in zip(typed, found):
            print(f"{name:<24} {one.code:>4} {one.seconds:6.1f} s  {one.text.strip()[-150:]!r}")
            if one.code == PART_AWAY:
                assert one.text.strip(), f"{name} says nothing"
        return {name: one.code for name, one in zip(typed, found)}


@pytest.fixture
def cluster(mariadb: MariaDb, daemons: Callable[..., Daemon], tmp_path: Path) -> Iterator[Cluster]:
    engine = make_engine(mariadb.new_url())
    migrate(engine)
    engine.dispose()
    broker = Mosquitto(tmp_path / "mosquitto").start()
    pools = ({"name": "local", "maximum": 1, "cpus": 8},)
    url = engine.url.render_as_string(hide_password=False)
    daemon = daemons(DATABASE_URL=url, POOLS=pools, LEASE_S=120.0, **broker.settings()).start()
    doors = Doors(tmp_path / "place", daemon)
    doors.write("push.json", {"name": "p", "tasks": [{"id": "p", "commands": "true"}]})
    doors.write("r.json", {"name": "r", "tasks": [{"id": "a", "commands": "echo done >a", "results": ["a"]}]})
    tasks = [{"id": "s", "commands": "echo begun; sleep 1000"}]
    doors.write("s.json", {"name": "s", "tasks": tasks})
    for name in ("interrupted.bin", "there.bin"):
        (doors.place / name).write_bytes(b"x" * 100_000)
    (doors.place / "datastore").symlink_to(daemon.home.datastore)
    doors.push("r.json")
    ended(doors, "r")
    doors.push("s.json")
    doors.admin("put", "there.bin")
    yield Cluster(doors, broker, mariadb)
    broker.stop()


@pytest.mark.timeout(300)
def test_every_action_answers_while_a_part_is_away_and_at_an_interrupt(cluster: Cluster) -> None:
    asks, well = _at_an_interrupt(cluster)
    _while_the_broker_is_down(cluster, asks, well)
    _while_the_database_is_away(cluster, well)
    _while_the_boss_is_down(cluster, asks, well)


def _at_an_interrupt(cluster: Cluster) -> tuple[set[str], dict[str, int]]:
    """Which actions ask the boss, and how the others end when all is well."""
    at_broker = cluster.codes((cluster.broker.port,))
    asks = {name for name, code in at_broker.items() if code == INTERRUPTED} | ANSWER_WITHOUT_BOSS
    well = {name: code for name, code in at_broker.items() if name not in asks}
    assert {"push", "cancel", "plan", "instantiate_worker", "set_datastore"} <= asks
    assert {"status", "show_tasks", "logs", "ls", "events"} <= well.keys()
    assert set(well.values()) <= {DONE, 2}, well
    at_database = cluster.codes((cluster.database.port,))
    deaf = {name for name, code in at_database.items() if code != INTERRUPTED} - asks - NEED_NOTHING
    assert not deaf, f"Ctrl-C while they read the database did not end these: {deaf}"
    _files_are_interrupted(cluster)
    _what_waits_is_interrupted(cluster)
    return asks, well


def _files_are_interrupted(cluster: Cluster) -> None:
    put, get = cluster.try_all(
        [["admin.py", "put", "interrupted.bin"], ["admin.py", "get", "there.bin", "copied"]],
        ("interrupted.bin", "there.bin"),
    )
    assert (put.code, get.code) == (INTERRUPTED, INTERRUPTED), (put, get)
    assert "interrupted: " in put.text
    assert not (cluster.doors.place / "copied").exists()


def _what_waits_is_interrupted(cluster: Cluster) -> None:
    typed = [
        SHOW_UNTIL_INTERRUPTED, [*SHOW_UNTIL_INTERRUPTED, "--json"], ["admin.py", "events", "-f"],
        ["admin.py", "logs", "-f", "s"], ["admin.py", "monitor", "--port", "0"], ["push_tasks.py", "s.json", "--wait"],
        ["push_tasks.py", "push.json", "--after", "s"],
    ]  # fmt: skip
    for words, one in zip(typed, cluster.try_all(typed, speak=True)):
        expected = DONE if words[:3] == SHOW_UNTIL_INTERRUPTED else INTERRUPTED
        assert one.code == expected, (words, one.text)
    assert _interrupted_on_a_terminal(cluster.doors, "top") == INTERRUPTED


def _interrupted_on_a_terminal(doors: Doors, *words: str) -> int:
    """The exit code after Ctrl-C was pressed on the screen that it shows."""
    pid, screen = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, str(ROOT / "admin.py"), *words], doors.environment)
    shown, is_pressed = b"", False

    def is_over() -> bool:
        nonlocal shown, is_pressed
        try:
            shown += os.read(screen, 65_536) if select.select([screen], [], [], 0.1)[0] else b""
        except OSError:  # its side of the terminal is closed
            return True
        if b"tasks" in shown and not is_pressed:
            os.write(screen, b"\x03")
            is_pressed = True
        return False

    try:
        wait_until(is_over, DEADLINE_S, f"{words} ends")
    except BaseException:
        print(f"pressed: {is_pressed}; shown at last: {shown[-1_000:]!r}")
        raise
    os.close(screen)
    assert is_pressed, shown
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _while_the_broker_is_down(cluster: Cluster, asks: set[str], well: dict[str, int]) -> None:
    cluster.broker.kill()
    _expect(cluster.codes(), {**well, **dict.fromkeys(asks - ANSWER_WITHOUT_BOSS, PART_AWAY), "why": DONE})
    cluster.broker.start()


def _while_the_database_is_away(cluster: Cluster, well: dict[str, int]) -> None:
    expected = {name: well[name] if name in NEED_NOTHING else PART_AWAY for name in actions()}
    cluster.database.kill()
    time.sleep(NOTICED_S)
    _expect(cluster.codes(), expected)
    cluster.database.start()
    assert cluster.database.process is not None
    os.kill(cluster.database.process.pid, signal.SIGSTOP)
    try:
        time.sleep(NOTICED_S)
        _expect(cluster.codes(), expected)
        stopped = cluster.doors.admin("stop")
        assert "has left" in stopped.out
    finally:
        os.kill(cluster.database.process.pid, signal.SIGCONT)


def _while_the_boss_is_down(cluster: Cluster, asks: set[str], well: dict[str, int]) -> None:
    _expect(cluster.codes(), {**well, **dict.fromkeys(asks - ANSWER_WITHOUT_BOSS, PART_AWAY), "why": DONE})


def _expect(found: dict[str, int], expected: dict[str, int]) -> None:
    assert {name: code for name, code in found.items() if code != expected[name]} == {}
