"""Nothing of a task outlives the task, its agent or its launcher, whatever the task does to its processes."""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from services import ROOT, wait_until

from ecloud.config import left_overs
from worker.launcher import descendants
from worker.shell.process import Finished, Processes

HIDES = {
    "daemon of its own session": "setsid sh -c '{body}' &",
    "no environment": "env -i setsid sh -c '{body}' >/dev/null 2>&1 </dev/null &",
    "double fork": "(setsid sh -c '({body}) & exit' &)",
    "another title": "perl -e 'use POSIX; exit if fork; setsid; exit if fork; %ENV = (); exec q[{body}]'",
}  # fmt: skip


class Bench:
    """Launchers without the rest of a worker."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.poll = select.epoll()
        self.output: list[tuple[str, int, bytes]] = []
        environment = {name.encode(): value.encode() for name, value in os.environ.items()}
        self.processes = Processes(self.poll, environment, lambda _, *piece: self.output.append(piece))
        self.finished: dict[int, Finished] = {}
        self.count = 0

    def begin(self, script: str) -> int:
        """Start a task; its number."""
        self.count += 1
        argv = ["/bin/sh", "-c", script]
        path = {b"PATH": os.environ["PATH"].encode()}
        self.processes.start((self.count, 1), argv, self.directory, path, None, time.monotonic())
        return self.count

    def end_of(self, number: int) -> Finished:
        """How it ended."""
        wait_until(lambda: self.turn() or number in self.finished)
        return self.finished[number]

    def turn(self) -> None:
        """Hear what the launchers say."""
        for descriptor, _ in self.poll.poll(0.02):
            if self.processes.owns(descriptor):
                for process, finished in self.processes.on_ready(descriptor, time.monotonic()):
                    self.finished[process.key[0]] = finished

    def path(self, name: str) -> Path:
        """A file of the test."""
        return self.directory / name


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.processes.end_all()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in b"ZX"
    except OSError:
        return False


def pid_in(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text().strip())
    return int(path.read_text())


def hidden(how: str, pid_file: Path) -> str:
    body = pid_file.with_name("body")
    body.write_text(f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 7775")
    return HIDES[how].format(body=f"sh {body}")


@pytest.mark.parametrize("how", HIDES)
def test_a_daemon_ends_with_its_task_however_it_hides(bench: Bench, how: str) -> None:
    pid_file = bench.path("pid")
    number = bench.begin(f"{hidden(how, pid_file)}\nwhile ! test -e {pid_file}; do sleep 0.01; done; echo done")
    assert bench.end_of(number).code == 0
    assert not is_alive(pid_in(pid_file))


def test_redis_ends_with_its_task(bench: Bench) -> None:
    pid_file = bench.path("redis.pid")
    server = f"redis-server --daemonize yes --port 0 --unixsocket {bench.path('s')} --pidfile {pid_file}"
    bench.end_of(bench.begin(f"{server}; while ! test -s {pid_file}; do sleep 0.01; done"))
    wait_until(lambda: not is_alive(int(pid_file.read_text())) if pid_file.exists() else True)


def test_a_task_beside_it_keeps_its_own_daemon(bench: Bench) -> None:
    pid_file = bench.path("pid")
    long = bench.begin(
        f"{hidden('no environment', pid_file)}\nwhile ! test -e {bench.path('stop')}; do sleep 0.02; done"
    )
    pid = pid_in(pid_file)
    assert bench.end_of(bench.begin("true")).code == 0
    assert is_alive(pid)
    bench.path("stop").touch()
    assert bench.end_of(long).code == 0
    assert not is_alive(pid)


def test_zombies_are_reaped_while_the_task_runs(bench: Bench) -> None:
    forks = "i=0; while [ $i -lt 600 ]; do (true &); i=$((i+1)); done"
    number = bench.begin(
        f"{forks}; touch {bench.path('forked')}; while ! test -e {bench.path('stop')}; do sleep 0.02; done"
    )
    wait_until(bench.path("forked").exists)
    wait_until(lambda: zombies_below(os.getpid()) == 0)
    assert number not in bench.finished
    bench.path("stop").touch()
    assert bench.end_of(number).code == 0


def zombies_below(pid: int) -> int:
    return sum(not is_alive(process) for process in descendants(pid))


@pytest.mark.parametrize("how", ["plain", *HIDES])
def test_tasks_end_at_once_with_a_killed_agent(tmp_path: Path, how: str) -> None:
    """The agent is a process of its own here, and is killed."""
    pid_file, shell_file = tmp_path / "pid", tmp_path / "shell"
    hide = "" if how == "plain" else hidden(how, pid_file)
    script = f"echo $$ > {shell_file}.new; mv {shell_file}.new {shell_file}; {hide}\nsleep 7775"
    agent = agent_that_runs(script, tmp_path)
    pids = [pid_in(shell_file)] + ([] if how == "plain" else [pid_in(pid_file)])
    launchers = descendants(agent.pid)
    assert all(map(is_alive, pids))
    agent.kill()
    agent.wait()
    wait_until(lambda: not any(map(is_alive, pids + launchers)))


def agent_that_runs(script: str, directory: Path, home: Path | None = None) -> subprocess.Popen[bytes]:
    program = f"""
import os, select, sys, time
from pathlib import Path
from worker.shell.process import Processes
environment = {{os.fsencode(n): os.fsencode(v) for n, v in os.environ.items()}}
processes = Processes(select.epoll(), environment, print)
processes.start((1, 1), ["/bin/sh", "-c", sys.argv[1]], Path({str(directory)!r}), dict(environment), None, 0.0)
time.sleep(1000)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if home is not None:
        environment["ECLOUD_WORKER_DIR"] = str(home / left_overs.SHARED)
    return subprocess.Popen([sys.executable, "-c", program, script], env=environment)


@pytest.mark.parametrize("how", HIDES)
def test_what_a_killed_launcher_leaves_is_ended_before_the_task_has_ended(bench: Bench, how: str) -> None:
    pid_file, shell_file = bench.path("pid"), bench.path("shell")
    number = bench.begin(f"echo $$ > {shell_file}; {hidden(how, pid_file)}\nsleep 7775")
    pids = [pid_in(shell_file), pid_in(pid_file)]
    os.kill(parent_of(pids[0]), signal.SIGKILL)
    finished = bench.end_of(number)
    assert (finished.is_lost, finished.code) == (True, -signal.SIGKILL)
    assert not any(map(is_alive, pids))
    assert bench.end_of(bench.begin("true")).code == 0


def parent_of(pid: int) -> int:
    found = re.search(r"^PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def test_a_killed_spare_launcher_is_replaced(bench: Bench) -> None:
    long = bench.begin(f"while ! test -e {bench.path('stop')}; do sleep 0.02; done")
    os.kill(bench.processes._spare_pid, signal.SIGKILL)
    at_once = bench.end_of(bench.begin("true"))
    assert (at_once.code, at_once.failed_errno) in ((0, 0), (0, errno.EAGAIN)), "it ran, or the worker gives it back"
    assert bench.end_of(bench.begin("exit 3")).code == 3
    bench.path("stop").touch()
    assert bench.end_of(long).code == 0


def test_idle_launchers_that_were_killed_cost_no_task(bench: Bench) -> None:
    for _ in range(3):
        number = bench.begin("echo $PPID > launcher")
        assert bench.end_of(number).code == 0
        os.kill(pid_in(bench.path("launcher")), signal.SIGKILL)
        wait_until(lambda: not is_alive(pid_in(bench.path("launcher"))))
    assert bench.end_of(bench.begin("true")).code == 0


@pytest.mark.parametrize("how", ["plain", "daemon of its own session", "double fork"])
def test_left_overs_of_agent_and_launchers_killed_together_are_found_from_the_home(tmp_path: Path, how: str) -> None:
    pid_file, shell_file, home = tmp_path / "pid", tmp_path / "shell", tmp_path / "home"
    (home / left_overs.RUNNING).mkdir(parents=True)
    hide = "" if how == "plain" else hidden(how, pid_file)
    agent = agent_that_runs(f"echo $$ > {shell_file}; {hide}\nsleep 7775", tmp_path, home)
    pids = [pid_in(shell_file)] + ([] if how == "plain" else [pid_in(pid_file)])
    launchers = [pid for pid in descendants(agent.pid) if b"launcher.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for pid in (agent.pid, *launchers):
        os.kill(pid, signal.SIGSTOP)
    for pid in (agent.pid, *launchers):
        os.kill(pid, signal.SIGKILL)
    agent.wait()
    assert all(map(is_alive, pids))
    assert left_overs.end(home) >= len(pids)
    assert not any(map(is_alive, pids))
    assert left_overs.end(home) == 0


def test_output_is_streamed_from_what_is_kept_on(bench: Bench) -> None:
    number = bench.begin(
        f"echo one; touch {bench.path('ready')}; while ! test -e {bench.path('go')}; do sleep 0.01; done; echo two"
    )
    wait_until(bench.path("ready").exists)
    bench.processes.stream(bench.processes.running[(number, 1)], time.monotonic() + 100)
    wait_until(lambda: bench.turn() or ("stdout", 0, b"one\n") in bench.output)
    bench.path("go").touch()
    assert bytes(bench.end_of(number).stdout.data) == b"one\ntwo\n"
    assert ("stdout", 4, b"two\n") in bench.output


def test_a_task_inherits_three_streams_and_nothing_else(bench: Bench) -> None:
    listed = bytes(bench.end_of(bench.begin("exec ls -l /proc/self/fd")).stdout.data).decode()
    assert re.findall(r" (\d+) -> (\S+)", listed)[0] == ("0", "/dev/null")
    assert [number for number, _ in re.findall(r" (\d+) -> (\S+)", listed)] == ["0", "1", "2", "3"], (
        "3 is what ls reads"
    )


def test_many_tasks_at_once_each_have_a_launcher(bench: Bench) -> None:
    numbers = [bench.begin(f"echo {number}; sleep 0.2; exit {number}") for number in range(30)]
    for code, number in enumerate(numbers):
        finished = bench.end_of(number)
        assert (finished.code, bytes(finished.stdout.data)) == (code, b"%d\n" % code)
    bench.processes.trim(time.monotonic() + 1000)
    assert len(bench.processes._slots) == 2
