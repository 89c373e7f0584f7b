"""The spool on disk: outcomes, what was heard of the boss before they were written, and what a torn write leaves."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from ecloud.model.tasks import Cause, Outcome
from worker.shell.home import Spool, WorkerHome

OUTCOMES = [Outcome(number, 1, Cause.SUCCESS, exit_code=0) for number in (1, 2, 3)]


@pytest.fixture
def home(tmp_path: Path) -> WorkerHome:
    return WorkerHome(tmp_path / "home")


def test_a_new_process_finds_what_was_not_answered_and_what_was_heard(home: WorkerHome) -> None:
    spool = Spool(home)
    assert (spool.found, spool.heard) == ((), (0, 0))
    spool.add(OUTCOMES[:1], (7, 40))
    spool.add(OUTCOMES[1:], (7, 44))
    spool.forget([(1, 1)])
    spool.close()
    with closing(Spool(home)) as again:
        assert [outcome.task_no for outcome in again.found] == [1, 2, 3], "one that was answered may be said again"
        assert again.heard == (7, 44)
        again.forget([(1, 1), (2, 1), (3, 1)])
    with closing(Spool(home)) as last:
        assert (last.found, last.heard) == ((), (0, 0))


def test_a_torn_last_line_is_skipped_and_the_next_one_is_whole(home: WorkerHome) -> None:
    spool = Spool(home)
    spool.add(OUTCOMES[:2], (7, 40))
    spool.close()
    path = home.path / "spool.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with closing(Spool(home)) as again:
        assert again.found == (OUTCOMES[0],)
        again.add(OUTCOMES[2:], (7, 41))
    with closing(Spool(home)) as last:
        assert last.found == (OUTCOMES[0], OUTCOMES[2])


def test_what_is_dropped_is_gone(home: WorkerHome) -> None:
    spool = Spool(home)
    spool.add(OUTCOMES, (7, 40))
    assert spool.drop() == 3
    spool.close()
    with closing(Spool(home)) as again:
        assert again.found == ()


def test_notes_of_attempts_that_a_killed_process_left_are_removed(home: WorkerHome) -> None:
    for name in ("1-1.step", "2-1.script"):
        (home.control / name).write_text("1")
    home.clear_control()
    assert list(home.control.iterdir()) == []
