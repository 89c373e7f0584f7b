"""What a dead worker left is ended, and nothing that only has the pid of what it left."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecloud.config import left_overs, this_host
from ecloud.config.processes import start_time

Started = subprocess.Popen[bytes]


@pytest.fixture
def sleeper() -> Iterator[Started]:
    """A process that leads a session of its own, as each task does."""
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def record(home: Path, pid: int, trace: str) -> None:
    """The record of `home` names this process."""
    (home / left_overs.RUNNING).mkdir()
    os.symlink(trace, home / left_overs.RUNNING / str(pid))


def test_what_the_record_names_is_ended(tmp_path: Path, sleeper: Started) -> None:
    record(tmp_path, sleeper.pid, left_overs.trace(sleeper.pid))
    assert left_overs.end(tmp_path) == 1
    assert sleeper.wait(10) == -9
    assert list((tmp_path / left_overs.RUNNING).iterdir()) == []


def test_in_a_home_of_another_account_only_its_own_processes_are_ended(tmp_path: Path, sleeper: Started) -> None:
    """The owner of the home may have written any pid into it, with its true start."""
    record(tmp_path, sleeper.pid, left_overs.trace(sleeper.pid))
    assert left_overs.find(tmp_path, os.geteuid() + 1) == set()
    assert left_overs.find(tmp_path, os.geteuid()) == {sleeper.pid}
    assert left_overs.end(tmp_path, uid=os.geteuid() + 1) == 0
    assert sleeper.poll() is None


@pytest.mark.parametrize("trace", ["{boot}:1", "another boot:{start}", "{boot}:gone", "nonsense"])
def test_a_process_that_got_the_pid_later_is_not_ended(tmp_path: Path, sleeper: Started, trace: str) -> None:
    told = trace.format(boot=this_host.boot_id(), start=start_time(sleeper.pid))
    record(tmp_path, sleeper.pid, told)
    assert left_overs.end(tmp_path) == 0
    assert sleeper.poll() is None
    assert list((tmp_path / left_overs.RUNNING).iterdir()) == [], "and it is forgotten"
