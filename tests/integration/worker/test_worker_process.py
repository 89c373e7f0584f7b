"""Attempts as real processes: what runs, what is reported of it, and that nothing of it stays behind."""

from __future__ import annotations

import hashlib
import heapq
import os
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import psutil
import pytest
from services import wait_until
from systemd_machine import UNIFIED

from datastore.directory import DirectoryDatastore
from ecloud.model.tasks import (
    FAILURE_TAIL_BYTES,
    SUCCESS_TAIL_BYTES,
    Cause,
    Container,
    Outcome,
    Requirement,
    Result,
    TaskBody,
)
from ecloud.model.wire import AttemptOrder, DatastoreAccess
from worker.core.events import (
    AttemptEnded,
    AttemptReturned,
    Event,
    ResultsComplete,
    StartAttempt,
    StopAttempt,
    TroubleChanged,
)
from worker.shell.call_hosts import CallHosts
from worker.shell.environment import encoded, inherited
from worker.shell.files import Files, WorkingDirectories
from worker.shell.home import WorkerHome
from worker.shell.jobs import Jobs
from worker.shell.memory_groups import AGENT, parent_of_tasks
from worker.shell.own_results import copy, read
from worker.shell.process import Processes
from worker.shell.pythons import Pythons

DEADLINE_S = 30.0


class Bench:
    """Everything of a worker but its conversation: orders in, events out."""

    def __init__(self, directory: Path, memory_group: str | None = None) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.store = DirectoryDatastore(directory / "datastore").make()
        self.home = WorkerHome(directory / "home")
        self.poll = select.epoll()
        self.later: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.files = Files(self.home.ssh, self.home.cache, self.later.put, lambda _: None)
        self.files.use(DatastoreAccess(f"dir:{self.store.root}"))
        own = {"ECLOUD_WORKER": "w1", "ECLOUD_WORKER_DIR": str(self.home.shared)}
        environment = encoded({**inherited(os.environ), **own})
        self.memory_group = parent_of_tasks() if memory_group is None else memory_group
        self.processes = Processes(self.poll, environment, lambda *_: None, memory_group=self.memory_group)
        directories = WorkingDirectories(self.home.path, self.files.pool)
        self.jobs = Jobs(
            "w1",
            self.home,
            self.files,
            directories,
            self.processes,
            self.later.put,
            self._at,
            keep_dirs=False,
            hosts=CallHosts(self.poll, self.processes, self.home.control, Pythons(os.environ)),
        )
        self.jobs.stop_grace_s = 0.3
        self.events: list[Event] = []
        self.count = 0

    def _at(self, wait_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (time.monotonic() + wait_s, len(self.timers), action))

    def begin(
        self, *commands: str, gpus: tuple[str, ...] | None = None, asks: dict[str, float] | None = None, **fields: Any
    ) -> int:
        """Start an attempt; its task number."""
        self.count += 1
        of_order = {name: fields.pop(name) for name in ("number", "run", "keep_dir") if name in fields}
        of_order = {"number": 1, "run": "run-a", **of_order}
        body = TaskBody(id=fields.pop("id", f"task-{self.count}"), commands=commands, **fields)
        order = AttemptOrder(task_no=self.count, run_no=1, asks={"cpus": 1.0, **(asks or {})}, body=body, **of_order)
        self.jobs.start(StartAttempt(order, gpus))
        return self.count

    def turn(self) -> None:
        """Once through what a worker's loop does."""
        for descriptor, _ in self.poll.poll(0.02):
            if self.processes.owns(descriptor):
                for _, finished in self.processes.on_ready(descriptor, time.monotonic()):
                    self.jobs.finished(finished)
        try:
            while True:
                self.later.get_nowait()()
        except Empty:
            pass
        while self.timers and self.timers[0][0] <= time.monotonic():
            heapq.heappop(self.timers)[2]()
        self.processes.pass_deadlines(self.jobs.stop_grace_s, time.monotonic())
        self.jobs.tidy()
        self.events += self.jobs.events
        self.jobs.events = []

    def until(self, condition: Callable[[], Any]) -> Any:
        """Turn until `condition` holds; its value."""
        deadline = time.monotonic() + DEADLINE_S
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited too long; so far: {self.events}"
            self.turn()
        return value

    def outcome(self, task_no: int) -> Outcome:
        """How that attempt ended, once it has."""

        def ended() -> Outcome | None:
            found = [event.outcome for event in self.events if isinstance(event, AttemptEnded)]
            return next((outcome for outcome in found if outcome.task_no == task_no), None)

        outcome = self.until(ended)
        assert isinstance(outcome, Outcome)
        return outcome

    def run(self, *commands: str, **fields: Any) -> Outcome:
        """Start an attempt and wait for its end."""
        return self.outcome(self.begin(*commands, **fields))

    def groups_left(self) -> list[Path]:
        """Cgroups of launchers that have ended."""
        found = Path(self.memory_group).glob("ecloud-[0-9]*") if self.memory_group else ()
        return [path for path in found if not Path("/proc", path.name.removeprefix("ecloud-")).exists()]

    def close(self) -> None:
        """Leave nothing behind."""
        for process in tuple(self.processes.running.values()):
            self.processes.stop(process, "stopped", 0.0, time.monotonic())
        self.until(lambda: not self.processes.running)
        self.processes.end_all()
        wait_until(lambda: not self.groups_left(), what="no cgroup is left of launchers that have ended")
        self.files.pool.shutdown()
        self.poll.close()
        os.close(self.home._lock)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def is_alive(pid: int) -> bool:
    """Whether that process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def pid_in(path: Path) -> int:
    return int(path.read_text())


# --- commands -------------------------------------------------------------------------------------


def test_commands_share_one_shell_and_the_first_that_fails_is_named(bench: Bench) -> None:
    outcome = bench.run("cd / && export WHO=me", 'echo "$PWD $WHO"', "echo 'went wrong' >&2; (exit 3)", "echo never")
    assert (outcome.cause, outcome.exit_code) == (Cause.EXIT, 3)
    assert outcome.stdout == "/ me\n"
    assert outcome.command == "echo 'went wrong' >&2; (exit 3)"
    assert outcome.error.startswith("command 3 of 4 failed with exit code 3: ")
    assert outcome.error.endswith(": went wrong")
    assert list(bench.home.control.iterdir()) == []


def test_a_single_command_fails_by_name(bench: Bench) -> None:
    outcome = bench.run("exit 7")
    assert (outcome.cause, outcome.exit_code, outcome.error) == (
        Cause.EXIT,
        7,
        "the command failed with exit code 7: exit 7",
    )


def test_a_missing_command_is_reported(bench: Bench) -> None:
    outcome = bench.run("true", "no_such_program_here --x")
    assert outcome.exit_code == 127
    assert "command 2 of 2" in outcome.error
    assert "not found" in outcome.error


def test_quotes_newlines_and_here_documents_survive(bench: Bench) -> None:
    outcome = bench.run("cat <<'END'\nit's \"here\" $HOME\nEND", "printf '%s' 'a  b'", "false || echo ' mended'")
    assert outcome.cause is Cause.SUCCESS
    assert outcome.stdout == 'it\'s "here" $HOME\na  b mended\n'


@pytest.mark.parametrize("code", [126, 127, 128, 129, 130, 137, 143, 150, 192, 255])
def test_any_exit_code_is_an_exit_code(bench: Bench, code: int) -> None:
    for commands in ([f"exit {code}"], ["true", f"exit {code}"]):
        outcome = bench.run(*commands)
        assert (outcome.cause, outcome.exit_code, outcome.signal) == (Cause.EXIT, code, None)
        assert f"exit code {code}" in outcome.error
        assert (code in (129, 130, 137, 143, 150, 192)) == ("shells report this" in outcome.error)


def test_a_code_that_hints_at_a_signal_names_it(bench: Bench) -> None:
    assert (
        "128 + 9: shells report this for a command that SIGKILL ended" in bench.run("sh -c 'kill -9 $$'; exit $?").error
    )


def test_a_signal_is_named(bench: Bench) -> None:
    outcome = bench.run("true", "kill -SEGV $$")
    assert (outcome.cause, outcome.signal) == (Cause.SIGNAL, 11)
    assert "command 2 of 2 was ended by SIGSEGV" in outcome.error


@pytest.mark.parametrize("extra", [(), ("echo after",)])
def test_a_megabyte_of_command_runs(bench: Bench, extra: tuple[str, ...]) -> None:
    outcome = bench.run(f"x='{'ü' * 500_000}'; echo ${{#x}}", *extra)
    assert outcome.cause is Cause.SUCCESS, outcome.error
    assert outcome.stdout.split()[0] in ("500000", "1000000")  # the shell counts characters or bytes
    assert list(bench.home.control.iterdir()) == []


def test_an_environment_too_large_fails_the_task_and_says_why(bench: Bench) -> None:
    outcome = bench.run("true", env={"BIG": "x" * 3_000_000})
    assert outcome.cause is Cause.EXIT
    assert "too long" in outcome.error


def test_no_commands_succeed_and_stdin_is_empty(bench: Bench) -> None:
    assert bench.run().cause is Cause.SUCCESS
    outcome = bench.run("cat; echo end")
    assert (outcome.cause, outcome.stdout) == (Cause.SUCCESS, "end\n")


# --- output ---------------------------------------------------------------------------------------


def test_output_of_any_bytes_is_text(bench: Bench) -> None:
    outcome = bench.run("echo 'grüße ☃ 你好'; printf '\\377\\000x' >&2")
    assert outcome.stdout == "grüße ☃ 你好\n"
    assert outcome.stderr == "\ufffd\ufffdx"


def test_of_much_output_the_end_is_kept(bench: Bench) -> None:
    outcome = bench.run("seq 1 1000000")
    assert outcome.cause is Cause.SUCCESS
    assert outcome.stdout.endswith("\n999999\n1000000\n")
    assert SUCCESS_TAIL_BYTES - 200 < len(outcome.stdout) <= SUCCESS_TAIL_BYTES
    assert re.match(r"\[ECLOUD kept .*: 6,\d+,\d+ bytes are missing before this line\]\n\d+\n", outcome.stdout)
    failed = bench.run("seq 1 1000000; seq 1 1000000 >&2; exit 1")
    assert failed.stderr.endswith("\n999999\n1000000\n")
    assert failed.stdout == failed.stderr
    assert FAILURE_TAIL_BYTES - 200 < len(failed.stdout) <= FAILURE_TAIL_BYTES


# --- what it sees ---------------------------------------------------------------------------------


def test_a_task_knows_who_it_is(bench: Bench) -> None:
    names = "$ECLOUD_TASK|$ECLOUD_RUN|$ECLOUD_ATTEMPT|$ECLOUD_WORKER|$MINE"
    outcome = bench.run(
        f'echo "{names}"; test -d "$ECLOUD_WORKER_DIR"', id="färben 1", number=2, env={"MINE": "a b", "ECLOUD_RUN": "x"}
    )
    assert (outcome.cause, outcome.stdout) == (Cause.SUCCESS, "färben 1|run-a|2|w1|a b\n")
    assert bench.run("echo $ECLOUD_ATTEMPT").stdout == "1\n"


def test_a_task_sees_no_secrets_of_the_worker(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = Path(__file__).resolve().parents[3]
    monkeypatch.setenv("ECLOUD_ACCESS", "hidden-access")
    monkeypatch.setenv("ECLOUD_SETTINGS", "hidden-settings")
    monkeypatch.setenv("PYTHONPATH", f"{checkout}:/somewhere")
    other = Bench(bench.directory / "other")
    try:
        outcome = other.run('env | grep hidden; echo "path $PYTHONPATH"')
    finally:
        other.close()
    assert outcome.stdout == "path /somewhere\n"


def test_gpus_are_shown_by_index(bench: Bench) -> None:
    show = 'echo "${CUDA_VISIBLE_DEVICES-unset}"'
    env = {"CUDA_VISIBLE_DEVICES": "7"}
    assert bench.run(show, gpus=("1", "3")).stdout == "1,3\n"
    assert bench.run(show, gpus=(), env=env).stdout == "\n"
    assert bench.run(show, gpus=None, env=env).stdout == "7\n"


def test_each_attempt_works_in_an_empty_directory_that_goes_away(bench: Bench) -> None:
    first = bench.run("pwd; touch left; mkdir -p a/b; chmod 500 a")
    second = bench.run("pwd; ls -A")
    assert second.stdout.count("\n") == 1
    assert first.stdout != second.stdout
    wait_until(lambda: not Path(first.stdout.strip()).exists())


def test_a_working_directory_is_kept_where_that_is_wanted(bench: Bench) -> None:
    bench.run("echo precious > found", id="a/b", number=2, keep_dir=True)
    kept = list((bench.home.path / "kept").iterdir())
    assert re.fullmatch(r"run-a-a_b-[0-9a-f]{8}-2", kept[0].name)
    assert (kept[0] / "found").read_text() == "precious\n"


# --- nothing outlives an attempt ------------------------------------------------------------------


def test_a_background_process_that_holds_the_pipe_does_not_hold_the_attempt(bench: Bench) -> None:
    outcome = bench.run(f"sleep 1000 & echo $! > {bench.directory}/pid; echo done")
    assert (outcome.cause, outcome.stdout) == (Cause.SUCCESS, "done\n")
    wait_until(lambda: not is_alive(pid_in(bench.directory / "pid")))


def test_a_daemon_that_left_the_group_is_ended_with_its_attempt(bench: Bench) -> None:
    pid_file = bench.directory / "pid"
    daemon = f"setsid sh -c '(echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 1000) & wait' &"
    outcome = bench.run(f"{daemon} while ! test -e {pid_file}; do sleep 0.01; done")
    assert outcome.cause is Cause.SUCCESS
    assert not is_alive(pid_in(pid_file))


def test_a_timeout_ends_all_even_a_daemon_and_what_ignores_term(bench: Bench) -> None:
    pid_file = bench.directory / "pid"
    daemon = f"setsid sh -c 'trap \"\" TERM; echo $$ > {pid_file}; while :; do sleep 1; done' &"
    outcome = bench.run(f"trap '' TERM; {daemon} echo begun; while :; do sleep 1; done", timeout_s=3.0)
    assert (outcome.cause, outcome.stdout) == (Cause.TIMEOUT, "begun\n")
    assert "ran longer than timeout_s = 3 s" in outcome.error
    assert not is_alive(pid_in(pid_file))


EATER = "x = bytearray(150_000_000); import time; time.sleep(1000)"


@pytest.mark.parametrize("how", ["exec", "", "setsid"])
def test_more_memory_than_asked_for_ends_the_task(bench: Bench, how: str) -> None:
    hidden = f"{how} {sys.executable} -c '{EATER}'" + (" & sleep 1000" if how == "setsid" else "")
    outcome = bench.run(hidden, asks={"memory_mb": 100.0})
    assert outcome.cause is Cause.MEMORY
    assert "more than the memory_mb that the task asks for" in outcome.error


def test_the_kernel_holds_the_limit_where_this_worker_may_make_a_cgroup(bench: Bench) -> None:
    """It ends what would exceed the limit, and the launcher the rest of the task, although its shell continues."""
    if not bench.memory_group:
        pytest.skip("this account may not limit memory by cgroups here")
    moved = "until grep -q ecloud- /proc/self/cgroup; do sleep 0.01; done"
    outcome = bench.run(f"{moved}; {sys.executable} -c '{EATER}'; sleep 1000", asks={"memory_mb": 100.0})
    assert outcome.cause is Cause.MEMORY
    assert "more than the memory_mb that the task asks for" in outcome.error
    assert (outcome.max_rss_mb or 0.0) < 110


def test_with_cgroup_v2_the_agent_moves_to_a_group_of_its_own(tmp_path: Path) -> None:
    """A directory in place of the kernel's: test machines lack v2's memory controller."""
    for name, text in (("cgroup.subtree_control", ""), ("cgroup.procs", f"{os.getpid()}\n")):
        (tmp_path / name).write_text(text)
    assert parent_of_tasks(tmp_path) == str(tmp_path)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory"
    assert (tmp_path / AGENT / "cgroup.procs").read_text() == str(os.getpid())
    (tmp_path / "cgroup.subtree_control").write_text("memory")
    assert parent_of_tasks(tmp_path / AGENT) == str(tmp_path), "after it began anew"

    (tmp_path / "cgroup.subtree_control").write_text("")
    (tmp_path / "cgroup.procs").write_text("1\n2\n")
    assert parent_of_tasks(tmp_path) == "", "a group with other processes"


@pytest.fixture
def unified() -> Iterator[Path]:
    """A cgroup of the kernel's v2, with its memory controller if that is not v1's."""
    top = next((place for place in UNIFIED if (place / "cgroup.controllers").exists()), None)
    if top is None or not os.access(top, os.W_OK):
        pytest.skip("no cgroup v2 may be changed here")
    made = top / f"ecloud-test-{os.getpid()}"
    made.mkdir()
    if "memory" in (made / "cgroup.controllers").read_text().split():
        (made / "cgroup.subtree_control").write_text("+memory")
    yield made
    made.rmdir()  # fails if a group is left in it


def test_a_limit_holds_in_a_real_cgroup_v2_and_no_group_stays(tmp_path: Path, unified: Path) -> None:
    """Where v1 has the memory controller, the kernel refuses the limit, and the launcher holds it alone."""
    bench = Bench(tmp_path, str(unified))
    try:
        outcome = bench.run(f"sleep 0.05; {sys.executable} -c '{EATER}'", asks={"memory_mb": 100.0})
        assert outcome.cause is Cause.MEMORY
        assert bench.run("sleep 0.05", asks={"memory_mb": 200.0}).cause is Cause.SUCCESS

        killed = bench.begin("sleep 1001 & echo $! > left; sleep 1000", asks={"memory_mb": 100.0})
        (job,) = bench.jobs.under_way.values()
        left = bench.until(lambda: (job.directory / "left").exists() and pid_in(job.directory / "left"))
        (group,) = bench.until(lambda: [path for path in unified.glob("ecloud-*") if has_launcher_of(path, left)])
        os.kill(int(group.name.removeprefix("ecloud-")), signal.SIGKILL)
        assert bench.outcome(killed).cause is not Cause.SUCCESS
        bench.until(lambda: not group.exists() and not is_alive(left))
    finally:
        bench.close()


def has_launcher_of(group: Path, pid: int) -> bool:
    """Whether this is the group of the launcher that the process descends from."""
    launcher = int(group.name.removeprefix("ecloud-"))
    return launcher in [parent.pid for parent in psutil.Process(pid).parents()]


def test_memory_is_free_where_none_is_asked_for_and_up_to_the_limit(bench: Bench) -> None:
    small = f"{sys.executable} -c 'x = bytearray(50_000_000); import time; time.sleep(0.5)'"
    assert bench.run(small, asks={"memory_mb": 300.0}).cause is Cause.SUCCESS
    assert bench.run(small).cause is Cause.SUCCESS


def test_stop_asks_first_and_then_insists(bench: Bench) -> None:
    asked = bench.begin("trap 'echo tidied; exit 0' TERM; echo ready; touch ready; while :; do sleep 0.05; done")
    deaf = bench.begin("trap '' TERM; touch ready; while :; do sleep 0.05; done")
    jobs = bench.jobs.under_way.values()
    bench.until(lambda: all((job.directory / "ready").exists() for job in jobs))
    bench.jobs.stop(StopAttempt(asked, 1, 20.0, "cancelled"))
    bench.jobs.stop(StopAttempt(deaf, 1, 0.2, ""))
    outcome = bench.outcome(asked)
    assert (outcome.cause, outcome.error) == (Cause.STOPPED, "stopped: cancelled")
    assert outcome.stdout == "ready\ntidied\n"
    assert bench.outcome(deaf).cause is Cause.STOPPED


def test_what_is_stopped_while_its_input_is_fetched_never_runs(bench: Bench) -> None:
    (bench.store.root / "input").write_text("x")
    marker = bench.directory / "ran"
    number = bench.begin(f"touch {marker}", requirements=(Requirement("input", "input"),))
    fetching = bench.jobs.under_way[(number, 1)].fetching
    assert fetching is not None
    fetching.result(DEADLINE_S)  # it is here, and the worker has not seen it yet
    bench.jobs.stop(StopAttempt(number, 1, 1.0, "cancelled"))
    outcome = bench.outcome(number)
    assert (outcome.cause, outcome.error) == (Cause.STOPPED, "stopped: cancelled")
    assert not marker.exists()
    assert not bench.jobs.under_way


def test_what_is_stopped_while_its_results_are_staged_does_not_succeed(bench: Bench) -> None:
    """The datastore is away when its commands end; it is back before the results are staged again."""
    away = bench.store.root.with_name("elsewhere")
    os.rename(bench.store.root, away)
    number = bench.begin("echo made > out", results=(Result("out", "final/out"),))
    bench.until(lambda: any(isinstance(event, TroubleChanged) for event in bench.events))
    bench.jobs.stop(StopAttempt(number, 1, 1.0, "cancelled"))
    os.rename(away, bench.store.root)
    outcome = bench.outcome(number)
    assert (outcome.cause, outcome.error, outcome.manifest) == (Cause.STOPPED, "stopped: cancelled", ())
    bench.files.pool.submit(int).result(DEADLINE_S)
    assert not (bench.store.root / "final").exists()


def test_two_attempts_do_not_end_each_others_daemons(bench: Bench) -> None:
    pid_file = bench.directory / "pid"
    long = bench.begin(f"setsid sh -c 'echo $$ > {pid_file}; sleep 1000' & while ! test -e stop; do sleep 0.02; done")
    bench.until(lambda: pid_file.exists() and pid_file.read_text().strip())
    assert bench.run("true").cause is Cause.SUCCESS
    assert is_alive(pid_in(pid_file))
    (bench.jobs.under_way[(long, 1)].directory / "stop").touch()
    assert bench.outcome(long).cause is Cause.SUCCESS
    assert not is_alive(pid_in(pid_file))


# --- a machine that shuts down --------------------------------------------------------------------


@pytest.mark.parametrize("command", ["kill -TERM $$; sleep 10", "exit 143"])
def test_term_that_comes_with_the_shutdown_gives_the_attempt_back(bench: Bench, command: str) -> None:
    task_no = bench.begin(command)
    bench.jobs.is_leaving = lambda: True
    bench.until(lambda: any(isinstance(event, AttemptReturned) for event in bench.events))
    assert [type(event) for event in bench.events] == [AttemptReturned]
    assert not bench.jobs.under_way, task_no


def test_term_at_any_other_time_fails_the_task(bench: Bench) -> None:
    assert bench.run("kill -TERM $$; sleep 10").cause is Cause.SIGNAL
    assert bench.run("exit 143").exit_code == 143


def test_a_failure_of_its_own_counts_while_the_worker_leaves(bench: Bench) -> None:
    bench.jobs.is_leaving = lambda: True
    assert bench.run("exit 3").exit_code == 3


def test_a_shell_that_is_not_there_fails_its_task_and_no_other(bench: Bench) -> None:
    outcome = bench.run("true", shell="no-such-shell -e")
    assert outcome.cause is Cause.EXIT
    assert "no-such-shell" in outcome.error
    assert bench.run("true").cause is Cause.SUCCESS


# --- files ----------------------------------------------------------------------------------------


def test_requirements_come_in_and_results_are_staged(bench: Bench) -> None:
    (bench.store.root / "in").mkdir()
    (bench.store.root / "in/words").write_text("b\na\n")
    outcome = bench.run(
        "sort data/words > sorted",
        "mkdir parts && touch parts/1 parts/2",
        requirements=(Requirement("in/words", "data/words"),),
        results=(Result("sorted", "out/sorted"), Result("parts/*", "out/parts")),
    )
    assert outcome.cause is Cause.SUCCESS, outcome.error
    assert [entry.path for entry in outcome.manifest] == ["out/parts/1", "out/parts/2", "out/sorted"]
    assert outcome.manifest[2].size == 4
    assert not (bench.store.root / "out").exists()
    assert bench.store.stages() == [f"w1/{outcome.task_no}-1"]


def test_what_is_missing_is_named(bench: Bench) -> None:
    outcome = bench.run("touch ran", requirements=(Requirement("in/none", "none"),))
    assert (outcome.cause, outcome.error) == (Cause.REQUIREMENT, "requirement in/none is not in the datastore")
    outcome = bench.run("true", results=(Result("out", "out"),))
    assert (outcome.cause, outcome.error) == (Cause.RESULT, "result out was missing after the commands")
    outcome = bench.run("true", results=(Result("*.csv", "tables"),))
    assert (outcome.cause, outcome.error) == (Cause.RESULT, "result *.csv matched nothing after the commands")


def test_a_result_whose_name_is_not_text_fails_its_task_alone(bench: Bench) -> None:
    outcome = bench.run("mkdir out; touch \"out/$(printf 'odd\\377')\"", results=(Result("out", "out"),))
    assert outcome.cause is Cause.RESULT
    assert "is not UTF-8" in outcome.error
    outcome.error.encode()
    outcome = bench.run("touch \"$(printf 'odd\\377')\"", results=(Result("odd*", "out"),))
    assert outcome.cause is Cause.RESULT


def test_finished_work_waits_for_the_datastore(bench: Bench) -> None:
    root = bench.store.root
    task_no = bench.begin(f"echo once >> {bench.directory}/ran; echo x > out", results=(Result("out", "out"),))
    shutil.rmtree(root)
    bench.until(lambda: any(isinstance(event, TroubleChanged) for event in bench.events))
    trouble = next(event for event in bench.events if isinstance(event, TroubleChanged))
    assert "results cannot be stored" in trouble.text
    assert str(root) in trouble.text
    bench.store.make()
    outcome = bench.outcome(task_no)
    assert outcome.cause is Cause.SUCCESS
    assert (bench.directory / "ran").read_text() == "once\n"
    assert [event for event in bench.events if isinstance(event, TroubleChanged)][-1].text == ""


def test_what_cannot_be_fetched_now_is_given_back(bench: Bench) -> None:
    shutil.rmtree(bench.store.root)
    task_no = bench.begin("true", requirements=(Requirement("in/x", "x"),))
    bench.until(lambda: any(isinstance(event, AttemptReturned) for event in bench.events))
    returned = next(event for event in bench.events if isinstance(event, AttemptReturned))
    assert (returned.task_no, returned.number) == (task_no, 1)
    assert "datastore" in returned.reason
    assert not any(isinstance(event, AttemptEnded) for event in bench.events)


# --- containers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("runtime", "program"), [("bubblewrap", "bwrap"), ("charliecloud", "ch-run")])
class TestContainers:
    """Real ones, of the runtimes that need neither a daemon nor rights."""

    @pytest.fixture
    def inside(self, runtime: str, program: str, image: Path) -> Container:
        assert shutil.which(program), f"{program} is not here: make services"
        return Container(str(image), runtime)

    def test_it_works_as_without_one(self, bench: Bench, inside: Container) -> None:
        (bench.store.root / "in").write_text("input")
        outcome = bench.run(
            "cat /etc/image in; echo", 'echo "$PWD $ECLOUD_WORKER_DIR $ECLOUD_TASK $MINE"',
            "echo made > out", "touch $ECLOUD_WORKER_DIR/x",
            id="t", env={"MINE": "a b"}, container=inside,
            requirements=(Requirement("in", "in"),), results=(Result("out", "out"),),
        )  # fmt: skip
        assert outcome.error == ""
        assert outcome.stdout == "the imageinput\n/ecloud/work /ecloud/shared t a b\n"
        assert outcome.manifest[0].size == 5
        assert (bench.home.shared / "x").exists()

    def test_what_fails_is_named(self, bench: Bench, inside: Container) -> None:
        outcome = bench.run("true", "exit 7", container=inside)
        assert (outcome.cause, outcome.exit_code) == (Cause.EXIT, 7)
        assert "command 2 of 2" in outcome.error

    def test_nothing_is_left_of_it(self, bench: Bench, inside: Container) -> None:
        before = sleepers()
        daemon = "setsid sleep 77.75 > /dev/null 2>&1 &"
        assert bench.run(f"{daemon} sleep 0.1", container=inside).cause is Cause.SUCCESS
        assert sleepers() == before
        stuck = bench.begin(f"{daemon} sleep 77.75", container=inside)
        bench.until(lambda: len(sleepers()) >= len(before) + 2)
        bench.jobs.stop(StopAttempt(stuck, 1, 0.2, "cancelled"))
        assert bench.outcome(stuck).cause is Cause.STOPPED
        assert sleepers() == before


def sleepers() -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"sleep\x0077.75\0" in path.read_bytes() and is_alive(int(path.parent.name)):
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_missing_image_or_runtime_fails_its_task_with_the_remedy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = bench.run("true", container=Container("/no/such/image", "bubblewrap"))
    assert outcome.cause is Cause.EXIT
    assert "the container image /no/such/image is not on host" in outcome.error
    monkeypatch.setenv("PATH", "/nowhere")
    outcome = bench.run("true", container=Container("debian:12"))
    assert outcome.cause is Cause.EXIT
    assert "install apptainer or podman or docker there" in outcome.error


# --- chained attempts: inputs come from the worker's own storage, before anything is staged ------------


def follow(bench: Bench, command: str, own: dict[str, tuple[int, int]], *requirements: Requirement) -> int:
    """Start an attempt that takes requirements from others here."""
    bench.count += 1
    body = TaskBody(
        id=f"task-{bench.count}", commands=(command,), requirements=requirements, results=(Result("next", "next"),)
    )
    order = AttemptOrder(task_no=bench.count, number=1, run="run-a", run_no=1, asks={"cpus": 1.0}, body=body)
    bench.jobs.start(StartAttempt(order, None, own))
    return bench.count


def made(bench: Bench, task_no: int) -> ResultsComplete:
    """What the attempt tells of its results."""
    found = bench.until(
        lambda: next((e for e in bench.events if isinstance(e, ResultsComplete) and e.task_no == task_no), None)
    )
    assert isinstance(found, ResultsComplete)
    return found


def test_inputs_come_from_the_attempt_before_while_the_datastore_is_away(bench: Bench) -> None:
    followed = {(1, 1)}
    bench.jobs.is_followed = followed.__contains__
    away = bench.store.root.with_name("elsewhere")
    os.rename(bench.store.root, away)
    first = bench.begin(
        "echo hello > out; mkdir d; echo x > d/x", results=(Result("out", "made/out"), Result("d", "made/d"))
    )
    done = made(bench, first)
    assert done.files["made/out"] == hashlib.sha256(b"hello\n").hexdigest()
    assert set(done.files) == {"made/out", "made/d/x"}
    assert done.others == ("made/d",)
    second = follow(bench, "cat in > next; echo changed > in", {"made/out": (1, 1)}, Requirement("made/out", "in"))
    followed.clear()
    bench.until(lambda: bench.jobs.under_way[(second, 1)].outcome)
    assert not (away / "made").exists()
    os.rename(away, bench.store.root)
    outcomes = [bench.outcome(first), bench.outcome(second)]
    assert [one.cause for one in outcomes] == [Cause.SUCCESS, Cause.SUCCESS]
    assert outcomes[1].fetch_bytes == outcomes[1].cached_bytes == 6
    hashes = {entry.path: entry.sha256 for one in outcomes for entry in one.manifest}
    assert hashes["made/out"] == hashes["next"] == done.files["made/out"]
    bench.turn()
    assert not bench.jobs._made, "these results are no longer needed"


def test_results_that_are_gone_are_not_replaced_by_what_the_datastore_has(bench: Bench) -> None:
    (bench.store.root / "out").write_text("of another run")
    number = follow(bench, "cat in > next", {"out": (77, 1)}, Requirement("out", "in"))
    bench.until(lambda: AttemptReturned(number, 1, "chained") in bench.events)


def test_a_result_that_changes_after_others_read_it_is_no_success(bench: Bench) -> None:
    bench.jobs.is_followed = lambda key: True
    away = bench.store.root.with_name("elsewhere")
    os.rename(bench.store.root, away)
    first = bench.begin("echo hello > out", results=(Result("out", "out"),))
    made(bench, first)
    (bench.jobs.under_way[(first, 1)].directory / "out").write_text("another")
    os.rename(away, bench.store.root)
    outcome = bench.outcome(first)
    assert outcome.cause is Cause.RESULT
    assert outcome.error == "result out changed after the commands had ended"


def test_copies_share_nothing_and_keep_modes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3_000_000))
    source.chmod(0o750)
    to = tmp_path / "deep" / "to"
    assert copy(source, to) == 3_000_000
    assert to.read_bytes() == source.read_bytes()
    assert to.stat().st_mode & 0o777 == 0o750
    to.write_text("mine")
    assert source.stat().st_size == 3_000_000
    assert [path.name for path in to.parent.iterdir()] == ["to"]


def test_globs_are_read_as_they_are_staged(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for name in ("a.dat", "b.dat"):
        (tmp_path / "parts" / name).write_text(name)
    own = read(TaskBody(id="t", results=(Result("parts/*.dat", "all/./parts"),)), tmp_path)
    assert set(own.files) == {"all/parts/a.dat", "all/parts/b.dat"}
