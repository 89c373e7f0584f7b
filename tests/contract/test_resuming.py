"""Transfers that were cut off resume, whichever client asks again and however the datastore is reached: only missing
bytes are sent, and files that changed meanwhile are fetched again. A real sshd, behind a proxy that counts."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from cutting_proxy import CuttingProxy
from services import wait_until

from datastore.port import DatastoreAway, Stager
from datastore.ssh.datastore import SshDatastore

MB = 1 << 20
FILES = 16
SLACK = 3 * MB
"""Bytes of handshakes and questions, and of what was on its way when it was cut."""
OPENERS: dict[str, Callable[[pytest.FixtureRequest, Path, int], SshDatastore]] = {
    "a worker by the gate": lambda ask, root, port: ask.getfixturevalue("sshd").worker(root, "w1", port, **IMPATIENT),
    "the boss by the gate": lambda ask, root, port: ask.getfixturevalue("sshd").boss(root, port, **IMPATIENT),
}
IMPATIENT: dict[str, Any] = {"patience_s": 0.2}
STAGE = "w1/7-1"


@dataclass
class Site:
    """A datastore behind a proxy, the directory it serves, and one for local files."""

    opened: Callable[[], SshDatastore]
    root: Path
    local: Path
    proxy: CuttingProxy

    def cut_at(self, passed: int, call: Callable[[Stager], object]) -> None:
        """Begin the call, and end the link for good after about this many bytes."""
        store, before = self.opened(), self.proxy.passed
        self.proxy.bytes_per_s = 40e6  # slow enough to be cut where it is wanted
        with ThreadPoolExecutor(1) as pool:
            going_on = pool.submit(call, store)
            wait_until(lambda: self.proxy.passed - before > passed, what="a part of it went over the link")
            self.proxy.cut_every = 1
            assert isinstance(going_on.exception(60), DatastoreAway)
        self.proxy.cut_every, self.proxy.bytes_per_s = 0, 0.0
        store.close()

    def travelled(self, call: Callable[[Stager], object]) -> int:
        """The bytes that went over the link for a call of another process."""
        store, before = self.opened(), self.proxy.passed
        call(store)
        store.close()
        return self.proxy.passed - before

    def publish(self, name: str, size: int, mtime_s: float = 1e9) -> None:
        """With its sum noted where the datastore can note it."""
        path = self.local / "new"
        path.write_bytes(os.urandom(size))
        os.utime(path, (mtime_s, mtime_s))
        store = self.opened()
        store.drop_stage(STAGE)
        store.store(STAGE, path, name)
        staged = self.root / ".ecloud/staging" / STAGE / name
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, self.root / name)
        store.close()

    def tree(self) -> None:
        """16 files of 1 MB, 100 of a few bytes, one of 4 MB, a link and an empty directory."""
        (self.root / "tree/deep/empty").mkdir(parents=True)
        for number in range(FILES):
            (self.root / f"tree/deep/{number:02}").write_bytes(os.urandom(MB))
        for number in range(100):
            (self.root / f"tree/small{number}").write_text(str(number))
        (self.root / "tree/zz large").write_bytes(os.urandom(4 * MB))
        (self.root / "tree/link").symlink_to("small1")

    def staged(self, name: str) -> dict[str, tuple[int, str]]:
        """What is staged under a name."""
        return contents(self.root / ".ecloud/staging" / STAGE / name)

    def is_like(self, name: str) -> bool:
        """Whether what was fetched is what is in the datastore now, and nothing else is left."""
        assert [path.name for path in self.local.iterdir() if path.name.startswith(".")] == []
        return contents(self.local / name) == contents(self.root / name)


def contents(top: Path) -> dict[str, tuple[int, str]]:
    """Of everything below: its mode and time, and what it holds."""
    found = {}
    for path in [top, *sorted(top.rglob("*"))]:
        info = path.lstat()
        held = os.readlink(path) if path.is_symlink() else ""
        if path.is_file() and not path.is_symlink():
            held = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(top))] = (0 if path.is_symlink() else info.st_mode, held)
    return found


USUAL = ["a worker by the gate"]


def change_the_first(deep: Path) -> None:
    """The first files of a tree become others, and other things."""
    (deep / "00").write_bytes(os.urandom(MB + 1))
    (deep / "01").unlink()
    (deep / "02").unlink()
    (deep / "02").mkdir()
    (deep / "02/within").write_text("a directory where a file was")
    (deep / "03").rename(deep / "another name")
    (deep / "03").symlink_to("04")


@pytest.fixture(params=USUAL)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    for name in ("root", "local"):
        (tmp_path / name).mkdir()
    with CuttingProxy(request.getfixturevalue("sshd").port) as proxy:
        opener = OPENERS[request.param]
        yield Site(lambda: opener(request, tmp_path / "root", proxy.port), tmp_path / "root", tmp_path / "local", proxy)


# --- fetching -----------------------------------------------------------------------------------------


def test_a_download_continues_where_it_was_cut(site: Site) -> None:
    (site.root / "a").write_bytes(os.urandom(16 * MB))
    site.cut_at(11 * MB, lambda store: store.fetch("a", site.local / "a"))
    assert not (site.local / "a").exists()
    assert site.travelled(lambda store: store.fetch("a", site.local / "a")) < 5 * MB + SLACK
    assert site.is_like("a")


def test_a_directory_continues_with_what_is_whole_and_what_is_not(site: Site) -> None:
    site.tree()
    site.cut_at(12 * MB, lambda store: store.fetch("tree", site.local / "tree"))
    assert not (site.local / "tree").exists()
    rest = site.travelled(lambda store: store.fetch("tree", site.local / "tree"))
    assert rest < 8 * MB + SLACK, "what was whole did not travel again"
    assert site.is_like("tree")


def test_a_directory_that_is_cut_in_its_large_file_continues_in_the_middle_of_it(site: Site) -> None:
    (site.root / "tree").mkdir()
    (site.root / "tree/large").write_bytes(os.urandom(16 * MB))
    site.cut_at(11 * MB, lambda store: store.fetch("tree", site.local / "tree"))
    assert site.travelled(lambda store: store.fetch("tree", site.local / "tree")) < 5 * MB + SLACK
    assert site.is_like("tree")


def test_what_changed_meanwhile_is_fetched_as_it_is_now(site: Site) -> None:
    site.tree()
    site.cut_at(12 * MB, lambda store: store.fetch("tree", site.local / "tree"))
    deep = site.root / "tree/deep"
    change_the_first(deep)  # which were whole already
    for number in range(4, FILES):  # and one of these was on its way
        os.utime(deep / f"{number:02}", (2e9 + number, 2e9 + number))
    (site.root / "tree/link").unlink()
    (site.root / "tree/link").symlink_to("small2")
    shutil.rmtree(deep / "empty")
    (deep / "empty").write_text("a file where a directory was")
    store = site.opened()
    store.fetch("tree", site.local / "tree")
    assert site.is_like("tree")


def test_a_file_that_was_replaced_meanwhile_begins_again(site: Site) -> None:
    (site.root / "a").write_bytes(os.urandom(10 * MB))
    site.cut_at(7 * MB, lambda store: store.fetch("a", site.local / "a"))
    (site.root / "a").write_bytes(os.urandom(10 * MB))
    os.utime(site.root / "a", (2e9, 2e9))
    assert site.opened().fetch("a", site.local / "a") == 10 * MB
    assert site.is_like("a")


@pytest.mark.parametrize("site", [*USUAL, "the boss by the gate"], indirect=True)
@pytest.mark.parametrize("name", ["a", "tree/deep/a"])
def test_other_contents_of_the_same_size_and_time_are_never_mixed(site: Site, name: str) -> None:
    """A task that is done again in the same second may leave another file of the same size."""
    size = 8 * MB
    site.publish(name, size)
    if name != "a":
        site.publish("tree/b", 2 * MB)
    top = name.split("/")[0]
    site.cut_at(6 * MB, lambda store: store.fetch(top, site.local / top))
    site.publish(name, size)
    if name != "a":
        site.publish("tree/b", 2 * MB)
    site.opened().fetch(top, site.local / top)
    assert site.is_like(top)


@pytest.mark.parametrize("site", [*USUAL, "the boss by the gate"], indirect=True)
def test_the_datastores_sum_detects_a_part_that_was_spoiled_on_this_machine(site: Site) -> None:
    """Where no sum is known, pieces are compared: here all of the beginning is wrong."""
    site.publish("a", 10 * MB)
    site.cut_at(7 * MB, lambda store: store.fetch("a", site.local / "a"))
    (part,) = site.local.glob(".*.part")
    with part.open("r+b") as file:
        file.write(bytes(4 * MB))
    assert site.opened().fetch("a", site.local / "a") == 10 * MB
    assert site.is_like("a")


def test_what_another_process_fetches_just_now_is_left_to_it(site: Site) -> None:
    (site.root / "a").write_bytes(os.urandom(8 * MB))
    site.cut_at(5 * MB, lambda store: store.fetch("a", site.local / "a"))
    (left,) = site.local.glob(".*.part")
    theirs = os.open(left, os.O_RDWR)
    fcntl.flock(theirs, fcntl.LOCK_EX)
    site.opened().fetch("a", site.local / "a")
    assert (site.local / "a").read_bytes() == (site.root / "a").read_bytes()
    assert list(site.local.glob(".*")) == [left]
    os.close(theirs)


def test_nothing_is_left_of_a_file_that_no_longer_exists(site: Site) -> None:
    (site.root / "a").write_bytes(os.urandom(8 * MB))
    site.cut_at(5 * MB, lambda store: store.fetch("a", site.local / "a"))
    (site.root / "a").unlink()
    (site.root / "a").mkdir()
    (site.root / "a/b").write_text("now a directory")
    site.opened().fetch("a", site.local / "a")
    assert site.is_like("a")


# --- storing ------------------------------------------------------------------------------------------


def test_an_upload_continues_where_it_was_cut(site: Site) -> None:
    (site.local / "a").write_bytes(os.urandom(16 * MB))
    site.cut_at(11 * MB, lambda store: store.store(STAGE, site.local / "a", "a"))
    assert site.travelled(lambda store: store.store(STAGE, site.local / "a", "a")) < 5 * MB + SLACK
    assert site.staged("a") == contents(site.local / "a")


def test_an_upload_of_a_directory_continues_with_what_is_whole(site: Site) -> None:
    site.tree()
    (site.root / "tree").rename(site.local / "tree")
    site.cut_at(12 * MB, lambda store: store.store(STAGE, site.local / "tree", "tree"))
    told = []
    rest = site.travelled(lambda store: told.extend(store.store(STAGE, site.local / "tree", "tree")))
    assert rest < 8 * MB + SLACK, "what was whole did not travel again"
    assert site.staged("tree") == contents(site.local / "tree")
    sums = {entry.path: entry.sha256 for entry in told if entry.kind == "file"}
    assert sums == {
        f"tree/{path.relative_to(site.local / 'tree')}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (site.local / "tree").rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def test_of_a_directory_that_changed_meanwhile_what_it_is_now_is_stored(site: Site) -> None:
    site.tree()
    (site.root / "tree").rename(site.local / "tree")
    site.cut_at(12 * MB, lambda store: store.store(STAGE, site.local / "tree", "tree"))
    deep = site.local / "tree/deep"
    change_the_first(deep)  # which were staged already
    (deep / "04").chmod(0o600)
    (site.local / "tree/deep/empty").rmdir()
    (site.local / "tree/deep/empty").write_text("a file where a directory was")
    site.opened().store(STAGE, site.local / "tree", "tree")
    assert site.staged("tree") == contents(site.local / "tree")


def test_a_directory_that_was_staged_whole_is_staged_again_at_once(site: Site) -> None:
    """As when the answer was lost; its directories may have lost the right to be written in."""
    (site.local / "tree/shut").mkdir(parents=True)
    (site.local / "tree/shut/a").write_bytes(os.urandom(10 * MB))
    (site.local / "tree/shut").chmod(0o555)
    (site.local / "tree").chmod(0o555)
    for _ in range(2):
        site.opened().store(STAGE, site.local / "tree", "tree")
        assert site.staged("tree") == contents(site.local / "tree")
    (site.local / "tree").chmod(0o755)


@pytest.mark.parametrize("site", ["the boss by the gate"], indirect=True)
def test_what_another_command_puts_just_now_is_left_to_it(site: Site) -> None:
    (site.local / "a").write_bytes(os.urandom(16 * MB))
    site.cut_at(11 * MB, lambda store: cast(SshDatastore, store).put(site.local / "a", "a"))
    with (site.local / "a").open() as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        assert site.travelled(lambda store: cast(SshDatastore, store).put(site.local / "a", "a")) > 16 * MB
    assert contents(site.root / "a") == contents(site.local / "a")
    staged = (site.root / ".ecloud/staging/put").rglob("*")
    unfinished = [path for path in staged if path.is_file() and not path.name.startswith(".client-")]
    assert len(unfinished) == 1
    assert site.travelled(lambda store: cast(SshDatastore, store).put(site.local / "a", "a")) < 5 * MB + SLACK
    assert not unfinished[0].exists()


def test_a_link_that_was_staged_gives_way_to_the_large_directory_of_its_name(site: Site) -> None:
    (site.root / "elsewhere").mkdir()
    (site.root / "elsewhere/kept").write_text("of somebody else")
    (site.local / "tree").symlink_to(site.root / "elsewhere")
    site.opened().store(STAGE, site.local / "tree", "tree")
    (site.local / "tree").unlink()
    (site.local / "tree").mkdir()
    (site.local / "tree/a").write_bytes(os.urandom(9 * MB))
    site.opened().store(STAGE, site.local / "tree", "tree")
    assert site.staged("tree") == contents(site.local / "tree")
    assert (site.root / "elsewhere/kept").exists()
