"""Whole programs with a private cluster: the outcome of calls when the program ends, in any way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from services import wait_until

from ecloud import ClusterExecutor
from ecloud.cli.app import running_boss
from ecloud.config.home import Home
from ecloud.config.secrets import write_access
from ecloud.python.cluster import Cluster

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 110.0


def start(place: Path, text: str) -> subprocess.Popen[str]:
    """A program of its own, which may import ECLOUD and its own directory."""
    program = place / "program.py"
    program.write_text(text)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ECLOUD_HOME": str(place / "none"), "PYTHONWARNINGS": "error"}
    argv = [sys.executable, str(program)]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, cwd=place, env=env, text=True, stdout=pipe, stderr=pipe, preexec_fn=_heed_interrupts)


def _heed_interrupts() -> None:
    """Tests that run in the background ignore SIGINT, and their programs would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_calls_end_before_the_program_does_and_its_modules_travel(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def double(number): return 2 * number\n")
    program = start(
        tmp_path,
        """
import atexit
from pathlib import Path
from ecloud import ClusterExecutor
import helper

def note(place):
    import time
    time.sleep(0.5)
    Path(place).write_text("noted")

def run_last():
    try:
        executor.submit(abs, 1)
    except RuntimeError as error:
        print(error)

if __name__ == "__main__":
    atexit.register(run_last)
    executor = ClusterExecutor(max_workers=1, run="program")
    print(executor.submit(helper.double, 21).result())
    executor.submit(note, str(Path("note").absolute()))
""",
    )
    out, err = program.communicate(timeout=PATIENCE_S)
    assert (out, program.returncode) == ("42\ncannot schedule new futures after shutdown\n", 0)
    assert err in ("", "waiting for 1 call of run program; Ctrl-C ends it\n")
    assert (tmp_path / "note").read_text() == "noted"


def test_ctrl_c_prints_what_happens_to_the_calls(tmp_path: Path) -> None:
    program = start(
        tmp_path,
        """
import time
from ecloud import ClusterExecutor

if __name__ == "__main__":
    with ClusterExecutor(max_workers=1) as executor:
        executor.submit(abs, 1).result()
        executor.submit(time.sleep, 600)
        print("waits", flush=True)
""",
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "waits\n"
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=PATIENCE_S)
    assert "interrupted: the private cluster ends, and 1 call with it" in err
    assert program.returncode != 0


def test_large_values_are_there_after_the_private_cluster_ended_and_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    program = start(
        tmp_path,
        """
import os, tempfile
tempfile.tempdir = os.path.abspath("temporary")
from ecloud import ClusterExecutor

if __name__ == "__main__":
    with ClusterExecutor(max_workers=1) as executor:
        future = executor.submit(bytes, 100_000)
    print(len(future.result()))
""",
    )
    out, err = program.communicate(timeout=PATIENCE_S)
    assert (out, err, program.returncode) == ("100000\n", "", 0)
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_program_that_is_ended_leaves_no_values_behind(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    text = """
import os, tempfile, time
tempfile.tempdir = os.path.abspath("temporary")
from ecloud import ClusterExecutor

if __name__ == "__main__":
    with ClusterExecutor(max_workers=1) as executor:
        print(len(executor.submit(bytes, 100_000).result()), flush=True)
        WAIT
"""
    program = start(tmp_path, text.replace("WAIT", "executor.submit(time.sleep, 600).result()"))
    assert program.stdout is not None
    assert program.stdout.readline() == "100000\n"
    program.send_signal(number)
    _, err = program.communicate(timeout=PATIENCE_S)
    assert (program.returncode, err) == (-number, "")
    temporary = tmp_path / "temporary"
    if number == signal.SIGKILL:
        (home,) = temporary.glob("ecloud-local-*")
        wait_until(lambda: running_boss(Home(home)) is None, 60.0)
        next_one = start(tmp_path, text.replace("WAIT", ""))
        assert next_one.communicate(timeout=PATIENCE_S) == ("100000\n", "")
    assert list(temporary.iterdir()) == []


def test_a_directory_that_is_too_large_fails_only_calls_that_need_it(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def double(number): return 2 * number\n")
    with open(tmp_path / "data.bin", "wb") as file:
        file.truncate(200_000_000)
    program = start(
        tmp_path,
        """
import helper
from ecloud import ClusterExecutor

if __name__ == "__main__":
    with ClusterExecutor(max_workers=1) as executor:
        print(executor.submit(pow, 2, 5).result())
        print(executor.submit(lambda: 7).result())
        try:
            executor.submit(helper.double, 4)
        except Exception as error:
            print(type(error).__name__)
""",
    )
    out, err = program.communicate(timeout=PATIENCE_S)
    assert (program.returncode, out) == (0, "32\n7\nProjectUnusable\n")
    assert err.count("calls are sent without the modules of this program") == 1
    assert "data.bin (200" in err


def test_modules_of_a_program_may_have_the_names_of_ecloud_s_packages(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("x = 40\n")
    (tmp_path / "boss").mkdir()
    (tmp_path / "boss/__init__.py").write_text("def order(number): return -number\n")
    program = start(
        tmp_path,
        """
import boss, worker
from ecloud import ClusterExecutor

def add(number):
    return worker.x + number

if __name__ == "__main__":
    with ClusterExecutor(max_workers=1) as executor:
        print(executor.submit(add, 2).result(), executor.submit(boss.order, 3).result())
""",
    )
    out, err = program.communicate(timeout=PATIENCE_S)
    assert (out, err, program.returncode) == ("42 -3\n", "", 0)


WRITES = """
import sys
from pathlib import Path
from ecloud import ClientThread, ClusterExecutor

def write(place):
    Path(place).touch()

if __name__ == "__main__":
    Path("done").mkdir()
    places = [str(Path("done", str(number)).absolute()) for number in range(8)]
"""


@pytest.mark.parametrize(
    "body",
    [
        """
    executor = ClusterExecutor(max_workers=1)
    for place in places:
        executor.submit(write, place)
    executor.shutdown(wait=False)
""",
        """
    client = ClientThread(print, executor=None)
    for place in places:
        client.submit(place, write, place)
    client.stop()
""",
    ],
    ids=["executor", "client thread"],
)
def test_calls_end_also_after_a_shutdown_that_does_not_wait(tmp_path: Path, body: str) -> None:
    program = start(tmp_path, WRITES + body)
    _, err = program.communicate(timeout=PATIENCE_S)
    assert program.returncode == 0, err
    assert len(list((tmp_path / "done").iterdir())) == 8


@pytest.fixture
def access(cluster: Cluster, tmp_path: Path) -> Path:
    """The access file of a cluster that continues after the program."""
    write_access(tmp_path / "access", cluster.access)
    return tmp_path / "access"


def test_a_shutdown_that_does_not_wait_loses_no_call_of_a_cluster(access: Path, tmp_path: Path) -> None:
    program = start(
        tmp_path,
        """
from ecloud import ClusterExecutor

if __name__ == "__main__":
    executor = ClusterExecutor("access", run="unwaited")
    for number in range(3_000):
        executor.submit(abs, number)
    executor.shutdown(wait=False)
""",
    )
    _, err = program.communicate(timeout=PATIENCE_S)
    assert program.returncode == 0, err
    with ClusterExecutor(access) as executor:
        assert len(executor.attach("unwaited").futures()) == 3_000


def test_the_end_of_a_program_says_what_it_waits_for_and_ctrl_c_ends_the_wait(access: Path, tmp_path: Path) -> None:
    program = start(
        tmp_path,
        """
import time
from ecloud import ClusterExecutor

if __name__ == "__main__":
    executor = ClusterExecutor("access", run="left")
    executor.submit(time.sleep, 600)
    executor.submit(time.sleep, 600)
    raise ValueError("the program is wrong")
""",
    )
    assert program.stderr is not None
    lines = iter(program.stderr.readline, "")
    waiting = next(line for line in lines if "waiting" in line)
    assert waiting.startswith("waiting for 2 calls of run left; Ctrl-C leaves them; to get their values: ")
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=PATIENCE_S)
    assert "interrupted: 2 calls of run left continue; to get their values: ClusterExecutor().attach('left')" in err
    assert "Traceback" not in err
    with ClusterExecutor(access) as executor:
        assert [future.cancel() for future in executor.attach("left").futures()] == [True, True]


def test_calls_of_a_map_continue_after_ctrl_c(access: Path, tmp_path: Path) -> None:
    program = start(
        tmp_path,
        """
import time
from pathlib import Path
from ecloud import ClusterExecutor

def nap(number, begun):
    Path(begun).touch()
    time.sleep(2.0 if number < 4 else 0.0)
    return number

if __name__ == "__main__":
    with ClusterExecutor("access", run="mapped") as executor:
        list(executor.map(nap, range(20), [str(Path("begun").absolute())] * 20))
""",
    )
    wait_until((tmp_path / "begun").exists, PATIENCE_S)
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=PATIENCE_S)
    assert "of run mapped continue" in err
    with ClusterExecutor(access) as executor:
        futures = executor.attach("mapped").futures()
        assert sorted(number for future in futures for number in future.result(PATIENCE_S)) == list(range(20))


def test_a_forked_process_leaves_the_executor_to_its_parent(tmp_path: Path) -> None:
    program = start(
        tmp_path,
        """
import os, sys, time
from pathlib import Path
from ecloud import ClusterExecutor

def refusal(function):
    try:
        return function()
    except RuntimeError as error:
        return str(error).replace(str(os.getppid()), "PARENT").replace(str(os.getpid()), "CHILD")

def wait_for(place):
    while not os.path.exists(place):
        time.sleep(0.01)
    return "ended"

if __name__ == "__main__":
    executor = ClusterExecutor(max_workers=1)
    large = executor.submit(bytes, 100_000)
    large.result()
    pending = executor.submit(wait_for, os.path.abspath("go"))
    if os.fork() == 0:
        for function in (
            lambda: executor.submit(abs, 1), lambda: executor.map(abs, [1]), executor.attach, pending.result,
            pending.cancel, large.result,
        ):
            print(refusal(function) == "this executor belongs to process PARENT, which forked this one (CHILD): make "
                "one here" or refusal(function) == bytes(100_000))
        executor.shutdown()
        sys.exit(3)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
    Path("go").touch()
    print(pending.result(), len(large.result()))
""",
    )
    out, err = program.communicate(timeout=PATIENCE_S)
    assert (program.returncode, out) == (0, "True\n" * 6 + "3\nended 100000\n"), err


def test_a_callback_may_wait_for_another_call_at_the_end_of_the_program(tmp_path: Path) -> None:
    program = start(
        tmp_path,
        """
import time
from ecloud import ClusterExecutor

def nap(seconds):
    time.sleep(seconds)
    return seconds

if __name__ == "__main__":
    executor = ClusterExecutor(max_workers=2)
    short, long = executor.submit(nap, 0.5), executor.submit(nap, 1.0)
    short.add_done_callback(lambda done: print(done.result(), long.result()))
    executor.shutdown(wait=False)
""",
    )
    out, err = program.communicate(timeout=PATIENCE_S)
    assert (out, program.returncode) == ("0.5 1.0\n", 0), err
