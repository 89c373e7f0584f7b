"""A home that stayed, and a copy of one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from ecloud.config import identity
from worker.shell.home import HomeTaken, WorkerHome


def mark(**changes: object) -> str:
    plain = {"machine": "m", "boot": "b1", "device": 1, "inode": 7, "hardware": ("52:54:00:00:00:01",), **changes}
    return msgspec.json.encode(plain).decode()


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({}, True),
        ({"inode": 8}, False),  # cp -r
        ({"device": 2}, False),  # a container of the same image
        ({"boot": "b2"}, True),  # the machine booted again
        ({"boot": "b2", "device": 9}, True),  # and numbered its devices again
        ({"boot": "b2", "hardware": ()}, True),  # nothing is known of it
        ({"boot": "b2", "hardware": ("52:54:00:00:00:01", "another card")}, True),
        ({"boot": "b2", "hardware": ("52:54:00:00:00:02",)}, False),  # a snapshot's clone
        ({"boot": "b2", "machine": "n"}, False),
        ({"boot": "b2", "inode": 8}, False),
    ],
)
def test_what_makes_a_copy(changes: dict[str, object], is_same: bool) -> None:
    assert identity.is_same(mark(), mark(**changes)) is is_same
    assert not identity.is_same("not a mark", mark())


def opened(path: Path) -> WorkerHome:
    home = WorkerHome(path)
    os.close(home._lock)
    return home


def test_a_copied_home_is_a_new_worker_without_the_work_of_the_old_one(tmp_path: Path) -> None:
    first = opened(tmp_path / "ca")
    (first.path / "spool.jsonl").write_text('{"task_no": 1}\n')
    (first.ssh / "key").write_text("private")
    shutil.copytree(first.path, tmp_path / "cb")
    again = opened(tmp_path / "ca")
    assert (again.name, again.copied_from) == (first.name, "")
    assert (again.path / "spool.jsonl").exists()
    clone = opened(tmp_path / "cb")
    assert clone.name != first.name
    assert clone.copied_from == first.name
    assert not (clone.path / "spool.jsonl").exists()
    assert not (clone.ssh / "key").exists()
    assert (opened(tmp_path / "cb").name, opened(tmp_path / "cb").copied_from) == (clone.name, "")


def test_a_moved_home_stays_itself(tmp_path: Path) -> None:
    first = opened(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert opened(tmp_path / "b").name == first.name


def test_a_home_of_an_earlier_version_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/name").write_text("h0123456789abcdef")
    assert opened(tmp_path / "a").name == "h0123456789abcdef"
    assert (tmp_path / "a/name").read_text().startswith("h0123456789abcdef\n{")


def test_a_home_is_taken_by_one(tmp_path: Path) -> None:
    home = WorkerHome(tmp_path)
    with pytest.raises(HomeTaken):
        WorkerHome(tmp_path)
    os.close(home._lock)
