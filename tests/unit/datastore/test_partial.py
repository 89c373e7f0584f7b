"""Parts of what is fetched, in the moments between two steps: another process comes just then, or this one ends."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from datastore.partial import Part, seal

REPOSITORY = Path(__file__).resolve().parents[3]
_GOES_ON = """
import os
import sys
from pathlib import Path
from datastore.partial import Part

part = Part(Path(sys.argv[1]))
assert os.read(part.file("token", 4, True), 9) == b"data"
part.finish()
"""


def begun(to: Path) -> Part:
    """All of it is here, and it has not got its name."""
    part = Part(to)
    handle = part.file("token", 4, True)
    os.write(handle, b"data")
    os.close(handle)
    return part


def test_who_comes_when_a_part_was_just_finished_gets_one_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, flock = begun(tmp_path / "a"), fcntl.flock

    def first_is_finished(handle: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.finish()
        flock(handle, operation)

    second = Part(tmp_path / "a")
    monkeypatch.setattr(fcntl, "flock", first_is_finished)
    handle = second.file("token", 4, True)
    assert os.path.samestat(os.fstat(handle), second.path.lstat())
    assert not os.path.samestat(os.fstat(handle), (tmp_path / "a").lstat()), "what has its name is not written to"
    os.close(handle)
    second.drop()
    assert os.listdir(tmp_path) == ["a"]


def test_what_another_begins_under_the_name_of_a_finished_part_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, rename = begun(tmp_path / "a"), Part(tmp_path / "a"), os.rename

    def another_begins(source: Path, target: Path) -> None:
        rename(source, target)
        os.close(second.file("token", 4, True))

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", another_begins)
        first.finish()
    assert second.path.exists()
    second.finish()
    assert os.listdir(tmp_path) == ["a"]


def test_a_read_only_file_continues_when_it_was_cut_off_before_it_got_its_name(tmp_path: Path) -> None:
    part = begun(tmp_path / "a")
    seal(part.path, 0o444, 10**18)
    part.close()
    command = [sys.executable, "-c", _GOES_ON, str(tmp_path / "a")]
    if os.geteuid() == 0:  # who may write whatever its mode
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    subprocess.run(command, check=True, timeout=60, cwd=REPOSITORY)
    assert (tmp_path / "a").read_bytes() == b"data"
    assert os.listdir(tmp_path) == ["a"]
