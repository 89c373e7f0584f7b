"""`python -m worker` as it is run: killed and started again on its home, told to leave, cut off, and its scripts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from services import DEADLINE_S, ROOT, Daemon, Mosquitto, wait_until, watch_to_the_end

from ecloud.db.database import make_engine
from ecloud.model.tasks import Result, TaskDefinition
from ecloud.model.wire import PushOptions

NOBODY = ({"name": "nobody", "maximum": 0},)
"""No VM is started: the only worker is that of the test."""


class Agent:
    """Worker processes of one home."""

    def __init__(self, daemon: Daemon, home: Path) -> None:
        self.daemon = daemon
        self.home = home
        self.words_file = home.with_name(home.name + ".stderr")
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str, program: tuple[str, ...] = (sys.executable, "-m", "worker")) -> Agent:
        """Begin one more process; it need not be up when this returns."""
        arguments = [str(self.daemon.home.client_access), "--home", str(self.home), "--cpus", "1", *options]
        with self.words_file.open("ab") as words:
            process = subprocess.Popen(
                [*program, *arguments], cwd=ROOT, env=self.daemon.environment, stdin=subprocess.DEVNULL,
                stdout=words, stderr=words,
            )  # fmt: skip
        self.processes.append(process)
        return self

    @property
    def words(self) -> str:
        """All that its processes printed."""
        return self.words_file.read_text(errors="replace")

    def kill(self) -> None:
        """As a power cut would, but for what it started."""
        self.processes[-1].kill()
        self.processes[-1].wait()

    def term(self) -> None:
        """Tell it to leave."""
        self.processes[-1].terminate()

    def code(self) -> int:
        """Its exit code, once it has one."""
        return self.processes[-1].wait(DEADLINE_S)

    @property
    def spooled(self) -> list[str]:
        """Outcomes in its spool, which has lines of another kind, too: what was heard of the boss."""
        try:
            return [line for line in (self.home / "spool.jsonl").read_text().splitlines() if '"epoch"' not in line]
        except FileNotFoundError:
            return []

    def end(self) -> None:
        """Nothing of it is left."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        shared = f"ECLOUD_WORKER_DIR={self.home}/shared".encode()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and shared in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue


@pytest.fixture
def daemon(daemons: Callable[..., Daemon]) -> Daemon:
    """A boss without workers, with a broker of its own."""
    return daemons(POOLS=NOBODY).start()


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Callable[[Daemon], Agent]]:
    """Makes workers, not started yet; all end with the test."""
    made: list[Agent] = []

    def make(daemon: Daemon) -> Agent:
        made.append(Agent(daemon, tmp_path / f"worker-{len(made)}"))
        return made[-1]

    yield make
    for agent in made:
        agent.end()


# --- words of the stories -------------------------------------------------------------------------


def push(daemon: Daemon, *commands: str, run: str = "r", results: tuple[Result, ...] = ()) -> None:
    """One task per command: t0, t1, …"""
    tasks = [
        TaskDefinition(id=f"t{index}", commands=(command,), results=results) for index, command in enumerate(commands)
    ]
    client = daemon.client()
    client.push(tasks, PushOptions(run=run))
    client.close()


def is_over(daemon: Daemon, run: str = "r") -> dict[str, int]:
    """Tasks by state when the run has ended."""
    client = daemon.client()
    try:
        return {state: count for state, count in watch_to_the_end(client, run).states.items() if count}
    finally:
        client.close()


def rows(daemon: Daemon, query: str) -> list[tuple[Any, ...]]:
    """What the daemon's tables hold."""
    engine = make_engine(f"sqlite:///{daemon.home.database}")
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]
    finally:
        engine.dispose()


def attempts(daemon: Daemon) -> list[tuple[Any, ...]]:
    """(number, state, cause) of every attempt."""
    return rows(daemon, "SELECT number, state, cause FROM attempts ORDER BY task_no, number")


def number_in(path: Path) -> int:
    """A whole line with a number, once it is there."""
    text = wait_until(lambda: path.exists() and path.read_text().endswith("\n") and path.read_text(), what=str(path))
    return int(text)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


# --- killed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["recorded", "young"])
def test_a_killed_worker_leaves_nothing_running_and_its_task_is_done_again(
    daemon: Daemon, agents: Callable[[Daemon], Agent], tmp_path: Path, when: str
) -> None:
    agent = agents(daemon).start()
    again = f"if [ $ECLOUD_ATTEMPT = 2 ]; then echo done >> {tmp_path}/journal; exit 0; fi"
    background = f"setsid sh -c 'echo $$ > {tmp_path}/daemon; exec sleep 1000' &"
    push(daemon, f"{again}; {background} echo $$ > {tmp_path}/shell; sleep 1000; echo never >> {tmp_path}/journal")
    left = [number_in(tmp_path / name) for name in ("shell", "daemon")]
    if when == "recorded":
        wait_until(lambda: (agent.home / "running" / str(left[0])).is_symlink())
    agent.kill()
    wait_until(lambda: not any(map(is_alive, left)), what="its tasks end with it, before anybody starts it again")
    agent.start()
    assert is_over(daemon) == {"succeeded": 1}
    assert (tmp_path / "journal").read_text() == "done\n"


def test_an_agent_whose_home_was_removed_lives_and_reports_it(
    daemon: Daemon, agents: Callable[[Daemon], Agent], tmp_path: Path
) -> None:
    agent = agents(daemon).start()
    push(daemon, f"echo $$ > {tmp_path}/shell; until test -e {tmp_path}/gate; do sleep 0.05; done")
    shell = number_in(tmp_path / "shell")
    shutil.rmtree(agent.home, ignore_errors=True)
    wait_until(lambda: "cannot be used" in agent.words)
    assert is_alive(shell)
    (tmp_path / "gate").touch()
    assert is_over(daemon) == {"succeeded": 1}
    agent.term()
    assert agent.code() == 0


def test_hangup_is_a_clean_stop(daemon: Daemon, agents: Callable[[Daemon], Agent], tmp_path: Path) -> None:
    agent = agents(daemon).start()
    wait_until(lambda: "on duty" in agent.words)
    agent.processes[-1].send_signal(signal.SIGHUP)
    assert agent.code() == 0
    assert "left behind" not in agent.words
    assert "launcher was killed" not in agent.words


def test_the_next_process_reports_what_ended_while_no_boss_ran(
    daemon: Daemon, agents: Callable[[Daemon], Agent], tmp_path: Path
) -> None:
    agent = agents(daemon).start()
    gate, journal = tmp_path / "gate", tmp_path / "journal"
    waiting = f"echo begun > {tmp_path}/begun; until test -e {gate}; do sleep 0.05; done"
    push(daemon, f"{waiting}; echo x >> {journal}; echo kept > out", results=(Result("out", "results/out"),))
    wait_until((tmp_path / "begun").exists)
    daemon.kill()
    gate.touch()
    wait_until(lambda: len(agent.spooled) == 1)
    agent.kill()
    agent.start()
    daemon.start()
    assert is_over(daemon) == {"succeeded": 1}
    assert attempts(daemon) == [(1, "ended", "success")]
    assert journal.read_text() == "x\n"
    assert (daemon.home.datastore / "results/out").read_text() == "kept\n"
    wait_until(lambda: rows(daemon, "SELECT COUNT(*) FROM workers WHERE state = 'up'") == [(1,)])
    agent.term()
    assert agent.code() == 0
    assert agent.spooled == []


def test_a_home_belongs_to_one_process(daemon: Daemon, agents: Callable[[Daemon], Agent]) -> None:
    agent = agents(daemon).start()
    wait_until(lambda: "on duty" in agent.words)
    agent.start()
    assert agent.code() == 3
    assert "another worker process uses" in agent.words
    assert "Traceback" not in agent.words
    assert agent.processes[0].poll() is None


# --- told to leave --------------------------------------------------------------------------------


def test_told_to_leave_it_ends_what_runs_and_gives_back_the_rest(
    daemon: Daemon, agents: Callable[[Daemon], Agent], tmp_path: Path
) -> None:
    first = agents(daemon).start()
    gate = tmp_path / "gate"
    slow = f"echo x >> {tmp_path}/begun; until test -e {gate}; do sleep 0.05; done; echo $ECLOUD_WORKER"
    push(daemon, slow, *["true"] * 5)
    wait_until((tmp_path / "begun").exists)
    first.term()
    wait_until(lambda: "ordered to leave" in first.words)
    second = agents(daemon).start()
    wait_until(lambda: rows(daemon, "SELECT COUNT(*) FROM tasks WHERE state = 'succeeded'") == [(5,)])
    assert first.processes[0].poll() is None
    gate.touch()
    assert first.code() == 0
    assert is_over(daemon) == {"succeeded": 6}
    assert (tmp_path / "begun").read_text() == "x\n"
    assert first.spooled == []
    assert second.processes[0].poll() is None
    assert "Traceback" not in first.words + second.words


def test_told_twice_it_leaves_at_once(daemon: Daemon, agents: Callable[[Daemon], Agent], tmp_path: Path) -> None:
    first = agents(daemon).start()
    push(daemon, f"[ $ECLOUD_ATTEMPT = 1 ] || exit 0; echo $$ > {tmp_path}/pid; sleep 1000")
    pid = number_in(tmp_path / "pid")
    first.term()
    wait_until(lambda: "ordered to leave" in first.words)
    first.term()
    assert first.code() == 0
    assert not is_alive(pid)
    agents(daemon).start()
    assert is_over(daemon) == {"succeeded": 1}


def test_without_a_boss_it_leaves_too(daemon: Daemon, agents: Callable[[Daemon], Agent]) -> None:
    agent = agents(daemon).start()
    wait_until(lambda: "on duty" in agent.words)
    daemon.kill()
    agent.term()
    assert agent.code() == 0


# --- cut off --------------------------------------------------------------------------------------


def test_the_broker_goes_and_comes_back_and_nothing_is_lost_or_done_twice(
    daemons: Callable[..., Daemon], agents: Callable[[Daemon], Agent], mosquitto: Mosquitto, tmp_path: Path
) -> None:
    daemon = daemons(POOLS=NOBODY, LEASE_S=120.0, **mosquitto.settings()).start()
    agent = agents(daemon).start()
    gate, journal = tmp_path / "gate", tmp_path / "journal"
    slow = f"echo x >> {journal}; until test -e {gate}; do sleep 0.05; done"
    push(daemon, slow, *[f"echo x >> {journal}"] * 3)
    wait_until(journal.exists)
    mosquitto.kill()
    wait_until(lambda: "waiting for the broker: " in agent.words)
    gate.touch()
    wait_until(lambda: len(agent.spooled) >= 1)
    mosquitto.start()
    assert is_over(daemon) == {"succeeded": 4}
    assert attempts(daemon) == [(1, "ended", "success")] * 4
    assert journal.read_text() == "x\n" * 4
    assert agent.words.count("on duty as") >= 2


# --- its scripts ----------------------------------------------------------------------------------


def script(daemon: Daemon, name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run one of the worker's scripts to its end."""
    environment = {**daemon.environment, "HOME": str(cwd)}
    return subprocess.run(
        [str(ROOT / "worker" / name), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )


def marks(text: str) -> dict[str, str]:
    """ok, WRONG or not tried, by the name of the check."""
    pairs = [line.split(":")[:2] for line in text.splitlines() if not line.startswith(("verdict", "$"))]
    return {name.strip(): mark.strip() for name, mark in pairs}


def test_start_starts_a_worker_from_anywhere(
    daemon: Daemon, agents: Callable[[Daemon], Agent], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    agent = agents(daemon).start(program=(str(ROOT / "worker/start.sh"),))
    push(daemon, f"echo ${{PYTHONPATH-unset}} > {tmp_path}/path")
    assert is_over(daemon) == {"succeeded": 1}
    assert str(ROOT) not in (tmp_path / "path").read_text()
    agent.term()
    assert agent.code() == 0
    told = script(daemon, "start.sh", "none.access", cwd=tmp_path)
    assert told.returncode == 2
    assert told.stderr.startswith("worker: access file none.access: No such file or directory; ")
    assert told.stdout == ""


def test_debug_finds_everything_well_and_changes_nothing(daemon: Daemon, tmp_path: Path) -> None:
    told = script(daemon, "debug.sh", str(daemon.home.client_access), "--cpus", "1", cwd=tmp_path)
    assert told.returncode == 0, told.stdout
    assert set(marks(told.stdout).values()) == {"ok"}
    assert {"Python", "address", "DNS", "clock", "broker", "boss", "key", "datastore", "disk"} < set(marks(told.stdout))
    assert told.stdout.splitlines()[-1] == "verdict: ok, a worker can work here"
    assert "$ python=" in told.stderr
    access = json.loads(daemon.home.client_access.read_text())
    assert access["key"] not in told.stdout + told.stderr
    assert access["password"] not in told.stdout + told.stderr
    assert rows(daemon, "SELECT COUNT(*) FROM workers") == [(0,)]
    assert not [path for path in daemon.home.datastore.rglob("*") if path.is_file()]


def test_debug_says_what_is_wrong_and_what_to_do(daemon: Daemon, tmp_path: Path) -> None:
    access = json.loads(daemon.home.client_access.read_text())
    file = tmp_path / "my.access"

    def debug(*arguments: str, **changes: Any) -> tuple[dict[str, str], str]:
        file.write_text(json.dumps({**access, **changes}))
        told = script(daemon, "debug.sh", *arguments, cwd=tmp_path)
        assert told.returncode == 1
        assert "Traceback" not in told.stdout + told.stderr
        assert told.stdout.splitlines()[-1].startswith("verdict: a worker cannot work here; wrong: ")
        assert access["key"] not in told.stdout + told.stderr
        return marks(told.stdout), told.stdout

    found, text = debug()
    assert (found["access file"], found["broker"], found["Python"]) == ("WRONG", "not tried", "ok")
    assert "python admin.py invite" in text
    found, text = debug("my.access", host="no-such-host.invalid")
    assert (found["DNS"], found["broker"]) == ("WRONG", "WRONG")
    found, text = debug("my.access", password="wrong")
    assert (found["broker"], found["boss"], found["key"]) == ("WRONG", "not tried", "not tried")
    assert "password" in text
    found, text = debug("my.access", key="00" * 32)
    assert (found["broker"], found["key"], found["datastore"]) == ("ok", "WRONG", "not tried")
    found, text = debug("my.access", "--cpus", "many")
    assert found["access file"] == "WRONG"
    assert "--cpus" in text
    file.write_text("{}")
    told = script(daemon, "debug.sh", str(file), cwd=tmp_path)
    assert (told.returncode, marks(told.stdout)["access file"]) == (1, "WRONG")
    assert "damaged" in told.stdout


def test_debug_tells_that_no_broker_is_there(daemon: Daemon, tmp_path: Path) -> None:
    daemon.end()
    told = script(daemon, "debug.sh", str(daemon.home.client_access), cwd=tmp_path)
    assert told.returncode == 1
    assert marks(told.stdout)["broker"] == "WRONG"
    assert "no broker listens at" in told.stdout
