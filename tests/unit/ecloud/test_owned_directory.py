"""Temporary directories of a process: who removes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from services import ROOT

from ecloud.config import owned_directory
from ecloud.config.owned_directory import KEY, LOCAL, OWNER, VALUES, OwnedDirectory, remove_left_overs


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(owned_directory, "_remove_at_term", lambda: None)


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


@pytest.mark.parametrize("prefix", [LOCAL, VALUES, KEY])
def test_directories_of_a_killed_process_are_removed(prefix: str, tmp_path: Path) -> None:
    left, young, used = (tmp_path / f"{prefix}{name}" for name in ("left", "young", "used"))
    for directory in (left, young):
        (directory / "below").mkdir(parents=True)
    (left / "below" / "file").write_text("content")
    (left / OWNER).touch()
    own = OwnedDirectory(prefix)
    own.path.rename(used)
    remove_left_overs()
    assert names(tmp_path) == [used.name, young.name]


def test_a_home_is_kept_while_its_boss_runs(tmp_path: Path) -> None:
    home = tmp_path / f"{LOCAL}left"
    home.mkdir()
    (home / OWNER).touch()
    code = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(); input()"
    argv = [sys.executable, "-c", code, str(home / "boss.lock")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as boss:
        assert boss.stdin is not None
        assert boss.stdout is not None
        boss.stdout.readline()
        remove_left_overs()
        assert home.exists()
        boss.stdin.close()
    remove_left_overs()
    assert not home.exists()


def test_a_directory_is_removed_once_and_with_its_object(tmp_path: Path) -> None:
    first, second = OwnedDirectory(VALUES), OwnedDirectory(KEY)
    (second.path / "key").write_text("secret")
    first.remove()
    first.remove()
    assert names(tmp_path) == [second.path.name]
    del second
    assert names(tmp_path) == []


def test_a_fork_does_not_remove_the_directories_of_its_parent(tmp_path: Path) -> None:
    own = OwnedDirectory(VALUES)
    child = os.fork()
    if not child:
        own.remove()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert own.path.exists()


PROGRAM = """
import os, subprocess, sys, time
from ecloud.config.owned_directory import KEY, LOCAL, VALUES, OwnedDirectory
values, home, key = map(OwnedDirectory, (VALUES, LOCAL, KEY))
(key.path / "key").write_text("secret")
boss = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
home.is_used_by(boss)
print(boss.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_program_that_is_ended_leaves_nothing_for_long(number: signal.Signals, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE)
    assert program.stdout is not None
    boss = int(program.stdout.readline())
    program.send_signal(number)
    assert program.wait(30) == -number
    program.stdout.close()
    if number == signal.SIGKILL:
        os.kill(boss, number)
        assert len(names(tmp_path)) == 3
        remove_left_overs()
    else:
        assert not Path(f"/proc/{boss}").exists()
    assert names(tmp_path) == []
