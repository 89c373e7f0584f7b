"""A worker's cache of what it fetched over SSH, from a real sshd, with the bytes on the line counted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cutting_proxy import CuttingProxy
from services import wait_until
from sshd import Sshd

from datastore.port import DatastoreAway, Entry
from datastore.ssh.datastore import SshDatastore
from worker.shell.cache import Cache, key_of

SIZE = 3_000_000
KEPT = 100_000
"""Bytes that are worth keeping."""
FILES = 20
REPOSITORY = Path(__file__).resolve().parents[3]
_FETCHES = """
import sys
from pathlib import Path
from datastore.ssh.access import Access, SshAddress
from datastore.ssh.datastore import SshDatastore
from worker.shell.cache import Cache, key_of

address, key, known_hosts, certificate, directory, limit_bytes, name = sys.argv[1:]
store = SshDatastore(SshAddress.parse(address), Access(Path(key), Path(known_hosts), Path(certificate)))
(top,) = store.stat([name])
entries = [top, *store.listing(name, recursive=True)]
cache = Cache(Path(directory) / "cache")
cache.limit_bytes = int(limit_bytes)
cache.fetch(key_of("here", entries), entries, Path(directory) / "a", lambda path: store.fetch(name, path))
"""
SLACK = 300_000
"""Bytes of handshakes and questions."""


class Bench:
    """A datastore behind a counting proxy, and a worker's cache."""

    def __init__(self, directory: Path, sshd: Sshd, store: SshDatastore, proxy: CuttingProxy) -> None:
        self.directory = directory
        self.sshd = sshd
        self.root = directory / "root"
        self.boss = sshd.boss(self.root)
        self.store = store
        self.proxy = proxy
        self.cache = self.opened()

    def opened(self, limit_bytes: int = 100_000_000) -> Cache:
        """As a process of the worker finds it."""
        self.cache = Cache(self.directory / "cache")
        self.cache.limit_bytes = limit_bytes
        return self.cache

    def put(self, name: str, data: bytes) -> None:
        """As a result that the boss published: with its hash."""
        local = self.directory / "local"
        local.write_bytes(data)
        self.boss.put(local, name)

    def entries(self, name: str) -> list[Entry]:
        (top,) = self.store.stat([name])
        assert top is not None
        return [top, *self.store.listing(name, recursive=True)] if top.kind == "directory" else [top]

    def fetch(self, name: str, to: str) -> int:
        """As a task; the bytes that were moved for it."""
        entries, target = self.entries(name), self.directory / to
        key = key_of("here", entries)
        return self.cache.fetch(key, entries, target, lambda path: self.store.fetch(name, path))

    def begun_by_another_process(self, name: str, limit_bytes: int) -> subprocess.Popen[bytes]:
        """The same as `fetch`, by a process that can be killed."""
        access = self.store.access()
        words = [
            self.sshd.address(self.root, self.proxy.port), access.key, access.known_hosts, access.certificate,
            self.directory, limit_bytes, name,
        ]  # fmt: skip
        return subprocess.Popen([sys.executable, "-c", _FETCHES, *map(str, words)], cwd=REPOSITORY)

    def read(self, to: str) -> bytes:
        return (self.directory / to).read_bytes()


@pytest.fixture
def bench(sshd: Sshd, tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "root").mkdir()
    with CuttingProxy(sshd.port) as proxy:
        store = sshd.worker(tmp_path / "root", "w1", port=proxy.port)
        yield Bench(tmp_path, sshd, store, proxy)
        store.close()


def test_what_a_hundred_tasks_ask_for_crosses_the_network_once(bench: Bench) -> None:
    data = os.urandom(SIZE)
    bench.put("input", data)
    with ThreadPoolExecutor(4) as pool:
        moved = list(pool.map(lambda number: bench.fetch("input", f"copy-{number}"), range(100)))
    assert sorted(moved)[-2:] == [0, SIZE]
    assert SIZE <= bench.proxy.passed < SIZE + SLACK
    assert all(bench.read(f"copy-{number}") == data for number in range(100))
    inodes = {(bench.directory / f"copy-{number}").stat().st_ino for number in range(100)}
    assert len(inodes) == 100, "each task has a file of its own"


def test_a_task_may_change_what_it_fetched(bench: Bench) -> None:
    bench.put("input", b"as it was" * KEPT)
    bench.fetch("input", "mine")
    (bench.directory / "mine").write_bytes(b"spoilt")
    assert bench.fetch("input", "other") == 0
    assert bench.read("other") == b"as it was" * KEPT


def test_it_survives_the_worker_and_is_checked_before_it_is_believed(bench: Bench) -> None:
    data = os.urandom(SIZE)
    bench.put("input", data)
    bench.fetch("input", "first")
    bench.opened()
    assert bench.cache.used_bytes == SIZE
    assert bench.fetch("input", "second") == 0
    (kept,) = (bench.directory / "cache").glob("s-*/it")
    kept.write_bytes(bytes(SIZE))  # as after a crash: the right size, not the right content
    (bench.directory / "cache" / "new-p-half").mkdir()
    bench.opened()
    assert not (bench.directory / "cache" / "new-p-half").exists(), "what was half fetched is dropped"
    assert bench.fetch("input", "third") == SIZE
    assert bench.read("third") == data


def test_what_was_replaced_is_fetched_anew_and_the_same_content_is_not(bench: Bench) -> None:
    bench.put("input", b"1" * KEPT)
    bench.put("twin", b"1" * KEPT)
    assert bench.fetch("input", "a") == KEPT
    assert bench.fetch("twin", "b") == 0, "the same content under another name"
    bench.put("input", b"2" * KEPT)
    assert bench.fetch("input", "c") == KEPT
    assert bench.read("c") == b"2" * KEPT


def test_a_file_without_a_known_hash_is_recognised_by_path_size_and_time(bench: Bench) -> None:
    path = bench.root / "input"
    path.write_bytes(b"h" * KEPT)
    os.utime(path, (1_000_000, 1_000_000))
    path.chmod(0o640)
    assert bench.fetch("input", "a") == KEPT
    assert bench.fetch("input", "b") == 0
    assert (bench.directory / "b").stat().st_mtime == 1_000_000
    assert (bench.directory / "b").stat().st_mode & 0o777 == 0o640
    path.write_bytes(b"a" * KEPT)
    assert bench.fetch("input", "c") == KEPT


def test_directories_are_kept_whole(bench: Bench) -> None:
    inside = bench.root / "made" / "deep"
    inside.mkdir(parents=True)
    for number in range(20):
        (inside / f"f{number}").write_text(f"{number:10000}")
    os.symlink("f1", inside / "link")
    first = bench.fetch("made", "a")
    assert first > 0
    assert bench.fetch("made", "b") == 0
    assert os.readlink(bench.directory / "b" / "deep" / "link") == "f1"
    assert (bench.directory / "b" / "deep" / "f7").read_text().strip() == "7"
    (inside / "f7").write_text("seven")
    assert bench.fetch("made", "c") > 0
    assert (bench.directory / "c" / "deep" / "f7").read_text() == "seven"


def test_the_least_recently_used_goes_first_and_the_limit_is_kept(bench: Bench) -> None:
    for name in "abcd":
        bench.put(name, name.encode() * KEPT)
    bench.opened(limit_bytes=3 * KEPT + 1)
    for name in "abc":
        assert bench.fetch(name, f"1{name}") == KEPT
    assert bench.fetch("a", "2a") == 0
    assert bench.fetch("d", "1d") == KEPT
    assert bench.cache.used_bytes <= 3 * KEPT + 1
    bench.opened(limit_bytes=3 * KEPT + 1)
    assert bench.fetch("a", "3a") == 0
    assert bench.fetch("b", "2b") == KEPT, "it was used before all others"
    bench.put("much", bytes(5 * KEPT))
    assert bench.fetch("much", "m") == 5 * KEPT
    assert bench.fetch("much", "n") == 5 * KEPT, "what is larger than the limit goes past it"
    bench.put("little", b"x")
    assert [bench.fetch("little", "l1"), bench.fetch("little", "l2")] == [1, 1], "what is small is not worth keeping"
    bench.opened(limit_bytes=0)
    assert bench.fetch("a", "4a") == KEPT, "0 is off"
    bench.cache.shrink()
    assert bench.cache.used_bytes == 0


@pytest.mark.parametrize("limit_bytes", [1_000_000_000, 1_000_000], ids=["kept", "too large to be kept"])
def test_what_was_cut_off_continues_when_it_is_requested_again(bench: Bench, limit_bytes: int) -> None:
    """By another task, in another directory, after the first was told that the datastore is away."""
    size = 30_000_000
    bench.put("input", data := os.urandom(size))
    bench.opened(limit_bytes)
    bench.store = bench.sshd.worker(bench.root, "w1", bench.proxy.port, patience_s=0.2)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(bench.fetch, "input", "a")
        wait_until(lambda: bench.proxy.passed > size // 2, what="half of it is here")
        bench.proxy.cut_every = 1
        assert isinstance(first.exception(60), DatastoreAway)
    bench.proxy.cut_every = 0
    before = bench.proxy.passed
    bench.fetch("input", "b")
    assert bench.proxy.passed - before < size * 3 // 4
    assert bench.read("b") == data
    assert not list((bench.directory / "cache").glob("new-*"))
    assert not (bench.directory / "a").exists()


@pytest.mark.parametrize("limit_bytes", [1_000_000_000, 1_000_000], ids=["kept", "too large to be kept"])
def test_a_directory_that_a_killed_worker_had_begun_continues_with_the_next_process(
    bench: Bench, limit_bytes: int
) -> None:
    (bench.root / "tree").mkdir()
    for number in range(FILES):
        bench.put(f"tree/{number:02}", os.urandom(1_000_000))
    bench.proxy.bytes_per_s = 30e6
    fetching = bench.begun_by_another_process("tree", limit_bytes)
    before = bench.proxy.passed
    wait_until(lambda: bench.proxy.passed - before > FILES * 700_000, what="more than half of it is here")
    fetching.kill()
    fetching.wait(30)
    bench.proxy.bytes_per_s, before = 0.0, bench.proxy.passed
    assert bench.opened(limit_bytes).used_bytes > FILES * 400_000, "what is here counts"
    bench.fetch("tree", "b")
    assert bench.proxy.passed - before < FILES * 600_000 + SLACK
    for number in range(FILES):
        assert bench.read(f"b/{number:02}") == (bench.root / f"tree/{number:02}").read_bytes()
    assert not list((bench.directory / "cache").glob("new-*"))


def test_what_was_cut_off_long_ago_is_not_kept_over_a_start(bench: Bench) -> None:
    for name, age_s in (("new-s-old", 2 * 86_400.0), ("new-s-fresh", 60.0)):
        part = bench.directory / "cache" / name / ".x.part"
        part.parent.mkdir()
        part.write_bytes(bytes(KEPT))
        os.utime(part, (time.time() - age_s, time.time() - age_s))
    assert bench.opened().used_bytes == KEPT
    assert os.listdir(bench.directory / "cache") == ["new-s-fresh"]
    bench.cache.limit_bytes = KEPT // 2
    bench.cache.shrink()
    assert os.listdir(bench.directory / "cache") == []


def test_a_worker_that_lives_on_does_not_keep_what_was_cut_off_long_ago(bench: Bench) -> None:
    part = bench.directory / "cache/new-s-cut/.x.part"
    part.parent.mkdir()
    part.write_bytes(bytes(KEPT))
    cache = bench.opened()
    cache.sweep()
    assert cache.used_bytes == KEPT
    os.utime(part, (time.time() - 2 * 86_400, time.time() - 2 * 86_400))
    cache.sweep()
    assert os.listdir(bench.directory / "cache") == []
    assert cache.used_bytes == 0


def test_what_was_cut_off_and_replaced_meanwhile_is_fetched_anew(bench: Bench) -> None:
    size = 20_000_000
    path = bench.root / "input"
    path.write_bytes(os.urandom(size))
    bench.store = bench.sshd.worker(bench.root, "w1", bench.proxy.port, patience_s=0.2)
    entries = bench.entries("input")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(bench.store.fetch, "input", bench.directory / "a")
        wait_until(lambda: bench.proxy.passed > size // 2, what="half of it is here")
        bench.proxy.cut_every = 1
        assert isinstance(first.exception(60), DatastoreAway)
    assert [item.suffix for item in bench.directory.glob(".*")] == [".part"]
    bench.proxy.cut_every = 0
    path.write_bytes(data := os.urandom(size))
    assert bench.entries("input") != entries
    assert bench.store.fetch("input", bench.directory / "a") == size
    assert bench.read("a") == data
    assert not list(bench.directory.glob(".*"))


def test_what_was_cut_off_goes_before_what_is_kept(bench: Bench) -> None:
    bench.put("kept", bytes(KEPT))
    bench.fetch("kept", "a")
    bench.put("cut", os.urandom(KEPT))

    def cuts(path: Path) -> int:
        path.with_name(".part").write_bytes(bytes(KEPT // 2))
        raise DatastoreAway("cut")

    with pytest.raises(DatastoreAway):
        bench.cache.fetch("s-cut", bench.entries("cut"), bench.directory / "b", cuts)
    assert bench.cache.used_bytes == KEPT + KEPT // 2
    bench.cache.limit_bytes = KEPT + 1
    bench.cache.shrink()
    assert bench.cache.used_bytes == KEPT
    assert bench.fetch("kept", "c") == 0


def test_of_what_was_cut_off_before_anything_came_nothing_is_left(bench: Bench) -> None:
    bench.put("cut", os.urandom(KEPT))

    def cuts(path: Path) -> int:
        raise DatastoreAway("cut")

    with pytest.raises(DatastoreAway):
        bench.cache.fetch("s-cut", bench.entries("cut"), bench.directory / "b", cuts)
    assert os.listdir(bench.directory / "cache") == []


def test_a_directory_that_a_user_emptied_delays_no_task(bench: Bench) -> None:
    part = bench.directory / "cache/new-s-cut/.x.part"
    part.parent.mkdir()
    part.write_bytes(bytes(KEPT))
    cache = bench.opened(limit_bytes=KEPT - 1)
    part.unlink()
    part.parent.rmdir()
    cache.shrink()
    assert cache.used_bytes == 0


def test_a_task_that_waits_for_a_transfer_that_fails_tries_on_its_own(bench: Bench) -> None:
    bench.put("input", b"data" * KEPT)
    entries = bench.entries("input")
    begun, go_on = threading.Event(), threading.Event()

    def fails(path: Path) -> int:
        begun.set()
        assert go_on.wait(30)
        raise OSError("cut")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(bench.cache.fetch, "s-1", entries, bench.directory / "a", fails)
        assert begun.wait(30)
        second = pool.submit(
            bench.cache.fetch, "s-1", entries, bench.directory / "b", lambda path: bench.store.fetch("input", path)
        )
        go_on.set()
        assert isinstance(first.exception(30), OSError)
        assert second.result(30) == 4 * KEPT
    assert bench.read("b") == b"data" * KEPT
    assert not (bench.directory / "a").exists()
