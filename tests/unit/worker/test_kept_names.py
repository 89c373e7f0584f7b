"""Names under which working directories are kept (`--keep_dirs`): one for each attempt."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from worker.shell.files import WorkingDirectories, kept_name

ATTEMPTS = [
    ("r", "a/b", 1), ("r", "a_b", 1), ("r", "a_b", 2), ("r", "n" * 200 + "1", 1), ("r", "n" * 200 + "2", 1),
    ("r", "日" * 120, 1), ("r", "日" * 121, 1), ("a-b", "c", 1), ("a", "b-c", 1), ("r", "x-1", 2), ("r", "x", 12),
    ("r", "..", 1), ("r", "../../etc", 1), ("r", "\udcff", 1),
]  # fmt: skip


def test_no_two_attempts_share_a_name() -> None:
    names = [kept_name(*attempt) for attempt in ATTEMPTS]
    assert len(set(names)) == len(names)
    assert all("/" not in name and len(name.encode()) <= 255 for name in names)


def test_a_plain_name_stays_readable() -> None:
    assert kept_name("run", "task", 3) == "run-task-3"


def test_a_task_that_was_dropped_and_pushed_again_keeps_both(tmp_path: Path) -> None:
    directories = WorkingDirectories(tmp_path, ThreadPoolExecutor(1))
    for text in ("first", "second"):
        path = directories.take()
        (path / "note").write_text(text)
        directories.give_back(path, "r-t-1")
    assert sorted(path.read_text() for path in (tmp_path / "kept").glob("*/note")) == ["first", "second"]
