"""What short tasks cost a datastore: their small files come in one request, what they made is published together."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from sshd import Sshd

from boss.core.model.effects import Promote, PromoteFiles
from boss.core.model.events import DatastoreFailed, Event, FilesPromoted
from boss.shell.calls import Calls
from boss.shell.storage import Storage
from datastore.directory import DirectoryDatastore
from datastore.port import BadName, DatastoreAway, Promotion
from ecloud.config.home import Home
from ecloud.model.tasks import ManifestEntry

DEADLINE_S = 30.0
ODD = ("plain", "with space", "-dash", "new\nline", "x" * 255, "deep/er/file")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    for number, name in enumerate(ODD):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"%d" % number * 100)
    return path


def test_several_files_come_at_once_with_their_modes_and_times(sshd: Sshd, root: Path, tmp_path: Path) -> None:
    (root / "plain").chmod(0o750)
    worker = sshd.worker(root, "w1")
    wanted = [(name, tmp_path / f"work/{number}/it") for number, name in enumerate(ODD)]
    found = worker.fetch_small(wanted, 1000)
    assert found is not None
    assert [(entry.path, entry.size) for entry in found] == [(name, 100) for name in ODD]
    for name, to in wanted:
        assert to.read_bytes() == (root / name).read_bytes()
        assert to.stat().st_mtime_ns == (root / name).stat().st_mtime_ns
    assert wanted[0][1].stat().st_mode & 0o777 == 0o750


def test_what_is_not_as_simple_is_left_to_the_long_way(sshd: Sshd, root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to("plain")
    worker = sshd.worker(root, "w1")
    for other in ("missing", "deep", "link", "plain/below", "deep/missing"):
        assert worker.fetch_small([("plain", tmp_path / "a"), (other, tmp_path / "b")], 1000) is None
    assert worker.fetch_small([("plain", tmp_path / "a")], 99) is None
    assert worker.fetch_small([("plain", tmp_path / "a")] * 101, 1000) is None
    with pytest.raises(BadName):
        worker.fetch_small([("../etc/passwd", tmp_path / "a")], 1000)
    assert not (tmp_path / "a").exists()
    assert worker.fetch_small([("plain", tmp_path / "a")], 100) is not None, "the connection stays usable"


def test_contents_that_are_not_those_noted_are_not_taken(sshd: Sshd, root: Path, tmp_path: Path) -> None:
    boss = sshd.boss(root)
    (tmp_path / "local").write_bytes(b"true")
    boss.put(tmp_path / "local", "noted")
    before = (root / "noted").stat()
    (root / "noted").chmod(0o600)
    (root / "noted").write_bytes(b"lies")
    os.utime(root / "noted", ns=(before.st_atime_ns, before.st_mtime_ns))
    worker = sshd.worker(root, "w1")
    assert worker.fetch_small([("noted", tmp_path / "a")], 1000) is None
    assert not (tmp_path / "a").exists()


class SlowDatastore(DirectoryDatastore):
    """Publishes when it is let."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.let, self.asked = threading.Event(), threading.Event()
        self.counts: list[int] = []
        self.is_away = False

    def promote(self, promotions: Sequence[Promotion]) -> list[str | None]:
        """As a directory does, later."""
        self.counts.append(len(promotions))
        self.asked.set()
        assert self.let.wait(DEADLINE_S)
        if self.is_away:
            raise DatastoreAway("it is away")
        return super().promote(list(promotions))


class SlowStorage(Storage):
    """Holds it."""

    def __init__(self, home: Home, datastore: SlowDatastore) -> None:
        super().__init__(home, "c0ffee")
        self._publisher = datastore


def staged(datastore: DirectoryDatastore, tmp_path: Path, task_no: int) -> PromoteFiles:
    (tmp_path / "made").write_text(str(task_no))
    entries = datastore.store(f"w1/{task_no}-1", tmp_path / "made", f"out/{task_no}")
    manifest = tuple(ManifestEntry(e.path, e.size, e.sha256, e.kind, e.mode) for e in entries)
    return PromoteFiles((Promote(task_no, 1, f"w1/{task_no}-1", manifest),))


@pytest.mark.parametrize("is_away", [False, True])
def test_what_ends_while_results_are_published_is_published_together(tmp_path: Path, is_away: bool) -> None:
    datastore = SlowDatastore(tmp_path / "root")
    datastore.make()
    inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    calls = Calls(SlowStorage(Home(tmp_path), datastore), {}, {}, inbox.put)
    try:
        calls.make(staged(datastore, tmp_path, 1))
        assert datastore.asked.wait(DEADLINE_S)
        for task_no in range(2, 7):
            calls.make(staged(datastore, tmp_path, task_no))
        datastore.is_away = is_away
        datastore.let.set()
        told: list[int] = []
        for _ in range(2):
            event = inbox.get(timeout=DEADLINE_S)
            if is_away:
                assert isinstance(event, DatastoreFailed)
                assert isinstance(event.call, PromoteFiles)
                told += [item.task_no for item in event.call.promotions]
            else:
                assert isinstance(event, FilesPromoted)
                assert all(problem is None for *_, problem in event.results)
                told += [task_no for task_no, *_ in event.results]
        assert told == [1, 2, 3, 4, 5, 6]
        assert datastore.counts == [1, 5]
        datastore.is_away = False
        calls.make(staged(datastore, tmp_path, 7))
        assert isinstance(inbox.get(timeout=DEADLINE_S), FilesPromoted)
        assert (tmp_path / "root/out/7").read_text() == "7"
    finally:
        calls.close()
