"""Long commands travel through the datastore: what is moved there, what stays, and what the worker makes of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from datastore.directory import DirectoryDatastore
from datastore.port import DatastoreAway, Publisher
from ecloud.cli.long_bodies import commands_of, move_long_bodies
from ecloud.formats import check
from ecloud.model.tasks import ArrayOf, TaskBody, TaskDefinition, definition_json
from worker.shell.long_bodies import BodyUnusable, with_long_body

LONG = TaskDefinition("long", ("echo " + "x" * 3_000_000, "true"), env={"A": "b" * 90_000})


@pytest.fixture
def datastore(tmp_path: Path) -> DirectoryDatastore:
    return DirectoryDatastore(tmp_path / "datastore").make()


def body_of(task: TaskDefinition) -> TaskBody:
    return msgspec.json.decode(definition_json(task), type=TaskBody)


def test_only_long_bodies_are_moved_and_equal_ones_once(datastore: DirectoryDatastore) -> None:
    short = TaskDefinition("short", ("true",))
    array = TaskDefinition("array", LONG.commands, array=ArrayOf("1-3"))
    moved = move_long_bodies([short, LONG, array, msgspec.structs.replace(LONG, id="twin")], lambda: datastore)
    assert [moved[0], moved[2]] == [short, array]
    assert [len(definition_json(moved[k])) < 1_000 for k in (1, 3)] == [True, True]
    assert moved[1].requirements == moved[3].requirements
    assert check([moved[1]]) == []
    assert len(datastore.listing("commands")) == 1
    assert commands_of(moved[1], lambda: datastore) == LONG.commands
    assert commands_of(short, lambda: datastore) == ("true",)


def test_many_escapes_count(datastore: DirectoryDatastore) -> None:
    (moved,) = move_long_bodies([TaskDefinition("t", ("\x01" * 50_000,))], lambda: datastore)
    assert moved.body_file


def test_without_long_bodies_the_datastore_is_not_opened() -> None:
    tasks = [TaskDefinition("t", ("x" * 250_000,))]
    assert move_long_bodies(tasks, _away) == tasks


def _away() -> Publisher:
    raise DatastoreAway("nobody answers")


def test_where_the_datastore_cannot_be_used_the_task_stays_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert move_long_bodies([LONG], _away) == [LONG]
    said = capsys.readouterr().err
    assert "task long" in said
    assert "nobody answers" in said


def test_a_worker_runs_what_was_pushed_and_leaves_no_file(datastore: DirectoryDatastore, tmp_path: Path) -> None:
    (moved,) = move_long_bodies([LONG], lambda: datastore)
    (tmp_path / "place").mkdir()
    (requirement,) = moved.requirements
    datastore.fetch(requirement.path, tmp_path / "place" / requirement.local)
    body = with_long_body(body_of(moved), tmp_path / "place")
    assert (body.commands, body.env) == (LONG.commands, LONG.env)
    assert list((tmp_path / "place").iterdir()) == []


@pytest.mark.parametrize("content", [b"{}", b'{"commands":["true"]}'])
def test_a_file_that_was_changed_is_not_run(datastore: DirectoryDatastore, tmp_path: Path, content: bytes) -> None:
    (moved,) = move_long_bodies([LONG], lambda: datastore)
    (tmp_path / moved.body_file).write_bytes(content)
    with pytest.raises(BodyUnusable, match="changed since the push"):
        with_long_body(body_of(moved), tmp_path)


def test_a_worker_that_does_not_know_of_it_fails_the_task(datastore: DirectoryDatastore) -> None:
    (moved,) = move_long_bodies([LONG], lambda: datastore)
    done = subprocess.run(["sh", "-c", moved.commands[0]], capture_output=True, text=True)
    assert done.returncode == 1
    assert "update ECLOUD on this worker" in done.stderr


def test_the_boss_checks_what_refers_to_the_file(datastore: DirectoryDatastore) -> None:
    (moved,) = move_long_bodies([LONG], lambda: datastore)
    assert "none of its requirements" in check([msgspec.structs.replace(moved, requirements=())])[0]
    assert "cannot hold the commands" in check([msgspec.structs.replace(moved, array=ArrayOf("1-3"))])[0]
