"""A person's files: what cannot be stored is named and nothing is left behind; `get` replaces only when told to."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from doors import Doors
from services import Daemon


@pytest.fixture
def doors(daemons: Callable[..., Daemon], tmp_path: Path) -> Doors:
    return Doors(tmp_path / "place", daemons().start())


def fifo(top: Path) -> None:
    os.mkfifo(top / "p")


def deep(top: Path) -> None:
    place = os.open(top, os.O_RDONLY)
    for _ in range(520):
        os.mkdir("d", dir_fd=place)
        below = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)


def test_what_can_not_be_stored_is_named_and_nothing_is_left(doors: Doors) -> None:
    assert doors.daemon is not None
    tasks = doors.write("t.json", [{"id": "t", "commands": "true"}])
    for make, why in ((fifo, "p is a FIFO"), (deep, "nested deeper than 500 directories")):
        place = doors.place / make.__name__
        place.mkdir()
        (place / "a").write_text("fine")
        make(place)
        for told in (doors.admin("put", place, "x", code=2), doors.push(tasks, "--upload", place, code=2)):
            assert why in told.err.replace("\n", " ")
        subprocess.run(["rm", "-rf", place], check=True)
    assert [path for path in (doors.daemon.home.datastore / ".ecloud").rglob("*") if not path.is_dir()] == []
    assert doors.admin("ls", "-r", "--json").json == []
    # If a user put one into the datastore's directory, or nested directories too deep for any path.
    os.mkfifo(doors.daemon.home.datastore / "p")
    assert "p is a FIFO" in doors.admin("get", "p", "here", code=2).err.replace("\n", " ")
    (doors.place / "a").write_text("new")
    doors.admin("put", "a", "a")
    assert "File name too long" in doors.admin("get", "a", "x" * 300, code=2).err


def test_get_replaces_what_is_there_only_when_told_to(doors: Doors) -> None:
    here = doors.place / "here"
    (doors.place / "a").write_text("new")
    doors.admin("put", "a", "a")
    here.write_text("old")
    assert "replace it with --force" in doors.admin("get", "a", "here", code=2).err.replace("\n", " ")
    assert here.read_text() == "old"
    doors.admin("get", "a", "here", "--force")
    assert here.read_text() == "new"
    (doors.place / "d/a").mkdir(parents=True)
    assert "d/a is a directory and a is not" in doors.admin("get", "a", "d", "--force", code=2).err.replace("\n", " ")


def test_skip_existing_does_not_take_a_dangling_link_for_a_file(doors: Doors) -> None:
    assert doors.daemon is not None
    root = doors.daemon.home.datastore
    root.mkdir(exist_ok=True)
    (root / "result").symlink_to("nowhere")
    (root / "there").write_text("there")
    (root / "linked").symlink_to("there")
    tasks = [{"id": name, "commands": f"echo made > {name}", "results": [name]} for name in ("result", "linked")]
    doors.push(doors.write("t.json", tasks), "--skip_existing", "--wait")
    assert (root / "result").read_text() == "made\n"
    assert (root / "linked").read_text() == "there"
