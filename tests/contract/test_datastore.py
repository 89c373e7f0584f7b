"""What every datastore promises (datastore/port.py), run against each implementation.

A further implementation joins by one line in `MAKERS`: a function from an empty directory that it is to serve (and the
request of the test, for servers it needs) to a `Publisher`. The tests check that directory from outside where the
port itself has no eyes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from datastore.directory import DirectoryDatastore
from datastore.existing import existing
from datastore.port import BadName, DatastoreAway, Entry, NotThere, Promotion, Publisher, Unfit

MAKERS: dict[str, Callable[[Path, pytest.FixtureRequest], Publisher]] = {
    "directory": lambda root, request: DirectoryDatastore(root).make(),
    "ssh": lambda root, request: request.getfixturevalue("sshd").boss(root),
}
STAGE = "w1/7-1"


@dataclass
class Site:
    """A datastore, the directory it serves, and one for local files."""

    store: Publisher
    root: Path
    local: Path

    def write(self, name: str, data: bytes = b"data", mode: int = 0o644, mtime_s: float | None = None) -> Path:
        """A local file."""
        path = self.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
        if mtime_s is not None:
            os.utime(path, (mtime_s, mtime_s))
        return path

    def stage(self, local: Path, name: str, stage: str = STAGE) -> list[Entry]:
        """Stage one local file or directory."""
        return self.store.store(stage, local, name)

    def promote(self, *entries: Entry, stage: str = STAGE) -> str | None:
        """Promote these of one stage."""
        answers = self.store.promote([Promotion(stage, entries)])
        assert len(answers) == 1
        return answers[0]

    def fetched(self, name: str) -> Path:
        """Fetch it to a new local path."""
        to = self.local / f"fetched-{len(os.listdir(self.local))}"
        self.store.fetch(name, to)
        return to

    def names(self) -> list[str]:
        """Everything that is published."""
        return [entry.path for entry in self.store.listing(recursive=True)]


@pytest.fixture(params=sorted(MAKERS))
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    for name in ("root", "local"):
        (tmp_path / name).mkdir()
    return Site(MAKERS[request.param](tmp_path / "root", request), tmp_path / "root", tmp_path / "local")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- from a worker to the final name --------------------------------------------------------------


def test_a_file_is_staged_then_published_then_fetched(site: Site) -> None:
    entries = site.stage(site.write("a", b"hello"), "out/deep/a")
    assert [(e.path, e.kind, e.size, e.sha256) for e in entries] == [("out/deep/a", "file", 5, sha256(b"hello"))]
    assert site.names() == []
    assert site.store.stat(["out/deep/a"]) == [None]
    assert site.store.stages() == [STAGE]
    assert site.promote(*entries) is None
    assert site.names() == ["out", "out/deep", "out/deep/a"]
    assert site.store.stages() == []
    assert site.fetched("out/deep/a").read_bytes() == b"hello"


def test_the_same_name_staged_again_replaces_what_was_staged(site: Site) -> None:
    site.stage(site.write("a", b"first, longer"), "out")
    entries = site.stage(site.write("b", b"second"), "out")
    assert site.promote(*entries) is None
    assert site.fetched("out").read_bytes() == b"second"
    site.stage(site.write("tree/x"), "out")
    entries = site.stage(site.local / "tree", "out")
    assert [e.path for e in entries] == ["out", "out/x"]
    assert site.promote(*entries) is None
    assert site.names() == ["out", "out/x"]


def test_a_directory_comes_with_all_below_it_parents_first(site: Site) -> None:
    site.write("tree/a", b"1")
    site.write("tree/sub/b", b"22")
    (site.local / "tree/empty").mkdir()
    entries = site.stage(site.local / "tree", "results/tree")
    assert [(e.path, e.kind) for e in entries] == [
        ("results/tree", "directory"),
        ("results/tree/a", "file"),
        ("results/tree/empty", "directory"),
        ("results/tree/sub", "directory"),
        ("results/tree/sub/b", "file"),
    ]
    assert site.promote(*entries) is None
    fetched = site.fetched("results/tree")
    assert (fetched / "a").read_bytes() == b"1"
    assert (fetched / "sub/b").read_bytes() == b"22"
    assert (fetched / "empty").is_dir()


def test_what_is_missing_is_not_there(site: Site) -> None:
    with pytest.raises(NotThere):
        site.stage(site.local / "none", "out")
    with pytest.raises(NotThere):
        site.store.fetch("none", site.local / "to")
    with pytest.raises(NotThere):
        site.store.listing("none")
    assert not (site.local / "to").exists()
    assert site.store.stat(["none", "none/below"]) == [None, None]


def test_a_dropped_stage_is_gone_and_others_stay(site: Site) -> None:
    site.stage(site.write("a"), "a", "w1/1-1")
    site.stage(site.write("b"), "b", "w1/2-1")
    site.store.drop_stage("w1/1-1")
    site.store.drop_stage("w1/1-1")
    site.store.drop_stage("w9/9-9")
    assert site.store.stages() == ["w1/2-1"]
    assert site.names() == []


def test_what_is_removed_is_gone_and_what_is_beside_it_stays(site: Site) -> None:
    site.write("calls/a", b"1")
    site.write("calls/below/b", b"2")
    site.promote(*site.stage(site.local / "calls", "calls/run"), *site.stage(site.write("f"), "calls/run2"))
    site.store.remove("calls/run")
    site.store.remove("calls/run")
    site.store.remove("none")
    assert site.names() == ["calls", "calls/run2"]
    for name in ("../out", ".ecloud/staging", ""):
        with pytest.raises(BadName):
            site.store.remove(name)


# --- promotion ------------------------------------------------------------------------------------


def test_promoting_again_changes_nothing(site: Site) -> None:
    site.write("tree/a", b"1")
    entries = [*site.stage(site.write("f", b"file"), "f"), *site.stage(site.local / "tree", "tree")]
    for _ in range(3):
        assert site.promote(*entries) is None
    assert site.names() == ["f", "tree", "tree/a"]


def test_a_promotion_that_was_cut_off_is_completed(site: Site) -> None:
    first = site.stage(site.write("a", b"1"), "a")
    second = site.stage(site.write("b", b"22"), "b")
    assert site.promote(*first) is None
    restaged = site.stage(site.write("b", b"22"), "b")
    assert restaged[0].sha256 == second[0].sha256
    assert site.promote(*first, *restaged) is None
    assert site.names() == ["a", "b"]
    assert site.store.stages() == []


def test_nothing_of_a_promotion_that_lacks_a_file_is_published(site: Site) -> None:
    there = site.stage(site.write("a", b"1"), "a")
    lacking = Entry("b", "file", 5, 0o644, 0.0, "00")
    told = site.promote(*there, lacking)
    assert told is not None
    assert "b" in told
    assert site.names() == []
    assert site.store.stages() == [STAGE]


def test_a_staged_file_of_another_size_is_refused(site: Site) -> None:
    entry = site.stage(site.write("a", b"12345"), "a")[0]
    wrong = Entry(entry.path, entry.kind, 4, entry.mode, entry.mtime_s, entry.sha256)
    assert site.promote(wrong) is not None
    assert site.names() == []


def test_each_promotion_is_answered_for_itself(site: Site) -> None:
    good = Promotion("w1/1-1", tuple(site.stage(site.write("a"), "a", "w1/1-1")))
    bad = Promotion("w1/2-1", (Entry("b", "file", 1, 0o644, 0.0),))
    last = Promotion("w1/3-1", tuple(site.stage(site.write("c"), "c", "w1/3-1")))
    answers = site.store.promote([good, bad, last])
    assert [answer is None for answer in answers] == [True, False, True]
    assert site.names() == ["a", "c"]
    assert site.store.promote([]) == []


@pytest.mark.parametrize("before", ["file", "directory", "link"])
@pytest.mark.parametrize("after", ["file", "directory", "link"])
def test_what_was_there_is_replaced(site: Site, before: str, after: str) -> None:
    def thing(kind: str, name: str) -> Path:
        path = site.local / name
        if kind == "file":
            return site.write(name, name.encode())
        if kind == "link":
            path.symlink_to(f"target-of-{name}")
            return path
        site.write(f"{name}/{name}", name.encode())
        return path

    assert site.promote(*site.stage(thing(before, "old"), "x")) is None
    assert site.promote(*site.stage(thing(after, "new"), "x")) is None
    [entry] = [entry for entry in site.store.listing() if entry.path == "x"]
    assert entry.kind == after
    expected = {"file": ["x"], "link": ["x"], "directory": ["x", "x/new"]}[after]
    assert site.names() == expected
    assert site.store.stages() == []


def test_results_of_two_attempts_share_a_directory(site: Site) -> None:
    for number in (1, 2):
        stage = f"w{number}/1-{number}"
        entries = site.stage(site.write(f"part{number}"), f"parts/{number}", stage)
        assert site.promote(*entries, stage=stage) is None
    assert site.names() == ["parts", "parts/1", "parts/2"]


def test_a_file_in_the_way_of_a_directory_is_reported_and_delays_no_other(site: Site) -> None:
    assert site.promote(*site.stage(site.write("a"), "out")) is None
    blocked = Promotion("w1/1-1", tuple(site.stage(site.write("b"), "out/b", "w1/1-1")))
    good = Promotion("w1/2-1", tuple(site.stage(site.write("c"), "c", "w1/2-1")))
    told = site.store.promote([blocked, good])
    assert told[0] is not None
    assert "out" in told[0]
    assert told[1] is None
    assert site.names() == ["c", "out"]


def test_an_empty_promotion_removes_its_stage(site: Site) -> None:
    site.stage(site.write("a"), "a")
    assert site.promote() is None
    assert site.store.stages() == []
    assert site.promote() is None


# --- contents -------------------------------------------------------------------------------------


def test_empty_files_and_directories_survive(site: Site) -> None:
    (site.local / "nothing").mkdir()
    entries = [*site.stage(site.write("empty", b""), "empty"), *site.stage(site.local / "nothing", "nothing")]
    assert [(e.kind, e.size) for e in entries] == [("file", 0), ("directory", 0)]
    assert entries[0].sha256 == sha256(b"")
    assert site.promote(*entries) is None
    assert site.fetched("empty").read_bytes() == b""
    assert list(site.fetched("nothing").iterdir()) == []


@pytest.mark.parametrize("tail", [b"", b"end"])
def test_a_sparse_file_keeps_its_size_its_contents_and_its_holes(site: Site, tail: bytes) -> None:
    size = 64 << 20
    path = site.local / "sparse"
    with path.open("wb") as file:
        file.write(b"begin")
        file.truncate(size - len(tail))
        file.seek(0, os.SEEK_END)
        file.write(tail)
    entries = site.stage(path, "sparse")
    assert entries[0].size == size
    assert site.promote(*entries) is None
    for copy in (site.root / "sparse", site.fetched("sparse")):
        assert copy.stat().st_size == size
        with copy.open("rb") as file:
            assert file.read(5) == b"begin"
            file.seek(size - 3)
            assert file.read() == (tail or b"\0\0\0")
        assert copy.stat().st_blocks * 512 < size // 4


def test_a_file_of_many_pieces_is_whole(site: Site) -> None:
    data = os.urandom(1 << 20) * 3 + b"odd"
    entries = site.stage(site.write("big", data), "big")
    assert (entries[0].size, entries[0].sha256) == (len(data), sha256(data))
    assert site.promote(*entries) is None
    assert site.fetched("big").read_bytes() == data


def test_permissions_and_times_are_kept(site: Site) -> None:
    site.write("tree/run.sh", b"#!/bin/sh\n", 0o750, 1_000_000_000.25)
    site.write("tree/closed/secret", b"s", 0o400, 1_100_000_000.0)
    (site.local / "tree/closed").chmod(0o500)
    os.utime(site.local / "tree", (1_200_000_000, 1_200_000_000))
    entries = site.stage(site.local / "tree", "tree")
    assert {entry.path: entry.mode for entry in entries}["tree/run.sh"] == 0o750
    assert site.promote(*entries) is None
    for top in (site.root / "tree", site.fetched("tree")):
        modes = {name: stat.S_IMODE((top / name).stat().st_mode) for name in ("run.sh", "closed", "closed/secret")}
        assert modes == {"run.sh": 0o750, "closed": 0o500, "closed/secret": 0o400}
        assert (top / "run.sh").stat().st_mtime == pytest.approx(1_000_000_000.25, abs=0.01)
        assert top.stat().st_mtime == pytest.approx(1_200_000_000, abs=1)
    [entry] = site.store.stat(["tree/run.sh"])
    assert entry is not None
    assert (entry.mode, entry.mtime_s) == (0o750, pytest.approx(1_000_000_000.25, abs=1))


def test_what_is_fetched_is_a_copy(site: Site) -> None:
    assert site.promote(*site.stage(site.write("a", b"original"), "a")) is None
    fetched = site.fetched("a")
    fetched.write_bytes(b"spoiled!")
    assert site.fetched("a").read_bytes() == b"original"
    staged = site.write("b", b"original")
    entries = site.stage(staged, "b")
    staged.write_bytes(b"changed after it was staged")
    assert site.promote(*entries) is None
    assert site.fetched("b").read_bytes() == b"original"


def test_fetching_tells_the_bytes_and_makes_parents(site: Site) -> None:
    site.write("tree/a", b"12345")
    site.write("tree/b", b"678")
    assert site.promote(*site.stage(site.local / "tree", "tree")) is None
    assert site.store.fetch("tree", site.local / "new/place/tree") == 8
    assert (site.local / "new/place/tree/b").read_bytes() == b"678"


# --- links ----------------------------------------------------------------------------------------


def test_a_link_stays_a_link(site: Site) -> None:
    site.write("tree/a", b"1")
    (site.local / "tree/to_a").symlink_to("a")
    (site.local / "tree/broken").symlink_to("nowhere")
    entries = site.stage(site.local / "tree", "tree")
    told = {entry.path: (entry.kind, entry.sha256) for entry in entries}
    assert told["tree/to_a"] == ("link", "a")
    assert told["tree/broken"] == ("link", "nowhere")
    assert site.promote(*entries) is None
    assert site.fetched("tree/to_a").is_symlink()
    assert os.readlink(site.fetched("tree") / "broken") == "nowhere"
    [entry] = site.store.stat(["tree/to_a"])
    assert entry is not None
    assert entry.kind == "link"


def test_a_link_counts_as_there_where_it_leads_to_something(site: Site) -> None:
    (site.root / "d").mkdir()
    (site.root / "d/a").write_text("a")
    for name, target in (
        ("to_a", "d/a"), ("d/again", "../to_a"), ("dangling", "none"), ("out", "../local"), ("absolute", "/etc/passwd"),
        ("self", "self"),
    ):  # fmt: skip
        (site.root / name).symlink_to(target)
    names = ["d", "d/a", "to_a", "d/again", "dangling", "out", "absolute", "self", "none"]
    assert existing(site.store, names) == {"d", "d/a", "to_a", "d/again"}
    assert existing(site.store, []) == frozenset()


# --- what cannot be stored -------------------------------------------------------------------------


def make_unfit(top: Path, kind: str) -> str:
    """A kind of file that no datastore holds below a directory; the message about it."""
    (top / "a").write_text("fine")
    if kind == "fifo":
        os.mkfifo(top / "p")
        return "p is a FIFO"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(top / "s"))
        return "s is a socket"
    place = os.open(top, os.O_RDONLY)
    count, length = (520, 1) if kind == "deep" else (20, 250)
    for _ in range(count):
        os.mkdir("d" * length, dir_fd=place)
        below = os.open("d" * length, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    return "nested deeper than 500 directories" if kind == "deep" else "path over 4,096 bytes"


@pytest.mark.parametrize("kind", ["fifo", "socket", "deep", "long"])
def test_what_no_datastore_holds_is_named_before_anything_is_copied(site: Site, kind: str) -> None:
    (site.local / "tree").mkdir()
    why = make_unfit(site.local / "tree", kind)
    with pytest.raises(Unfit, match=why):
        site.stage(site.local / "tree", "tree")
    with pytest.raises(Unfit, match=why):
        site.store.put(site.local / "tree", "tree")
    assert site.store.stages() == []
    assert site.names() == []
    subprocess.run(["rm", "-rf", str(site.local / "tree")], check=True)


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_something_in_the_datastore_that_is_no_file_is_named_when_it_is_fetched(site: Site, kind: str) -> None:
    (site.root / "tree").mkdir()
    make_unfit(site.root / "tree", kind)
    name = {"fifo": "p", "socket": "s"}[kind]
    for wanted in ("tree", f"tree/{name}"):
        with pytest.raises(Unfit, match=f"{name} is "):
            site.store.fetch(wanted, site.local / "to")
        assert list(site.local.iterdir()) == []


def test_what_may_not_be_read_is_named(site: Site) -> None:
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root reads everything")
    site.write("tree/closed/a", mode=0)
    code = "import sys, pathlib; from datastore.local_tree import walk; from datastore.port import Unfit\n"
    code += "try: list(walk(pathlib.Path(sys.argv[1]), 'x'))\nexcept Unfit as error: print(error)"
    words = [sys.executable, "-c", code, str(site.local / "tree")]
    if os.geteuid() == 0:
        words = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *words]
    for closed in (site.local / "tree/closed/a", site.local / "tree/closed"):
        closed.chmod(0)
        said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
        assert said == f"{closed} may not be read by this account\n"
    (site.local / "tree/closed").chmod(0o700)


# --- manifests ------------------------------------------------------------------------------------


def test_a_link_that_was_changed_where_it_was_staged_is_not_published(site: Site) -> None:
    (site.local / "tree").mkdir()
    (site.local / "tree/link").symlink_to("a")
    site.write("tree/a")
    entries = site.stage(site.local / "tree", "tree")
    staged = site.root / ".ecloud/staging" / STAGE / "tree"
    (staged / "link").unlink()
    (staged / "link").symlink_to("/etc/passwd")
    assert site.promote(*entries) == "result tree/link is a link to /etc/passwd where it was staged, not to a"
    (staged / "link").unlink()
    (staged / "link").write_text("a file")
    assert site.promote(*entries) == "result tree/link was staged as a file, not a link"
    assert site.names() == []


def test_what_a_worker_did_not_report_is_not_published_with_its_directory(site: Site) -> None:
    site.write("tree/sub/a")
    entries = site.stage(site.local / "tree", "tree")
    staged = site.root / ".ecloud/staging" / STAGE / "tree"
    (staged / "sub/more").symlink_to("/etc/passwd")
    told = site.promote(*entries)
    assert told == "result tree/sub holds more where it was staged, which its worker did not report"
    assert site.names() == []
    (staged / "sub/more").unlink()
    assert site.promote(*entries) is None


def test_a_link_out_of_the_root_leads_nowhere(site: Site, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (site.root / "way_out").symlink_to(outside)
    with pytest.raises(BadName):
        site.store.fetch("way_out/secret", site.local / "got")
    with pytest.raises(BadName):
        site.store.stat(["way_out/secret"])
    with pytest.raises(BadName):
        site.store.listing("way_out/below")
    assert not (site.local / "got").exists()
    assert [entry.path for entry in site.store.listing(recursive=True)] == ["way_out"]


def test_nothing_is_published_through_a_link(site: Site, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (site.root / "way_out").symlink_to(outside)
    evil = Promotion(STAGE, tuple(site.stage(site.write("a", b"evil"), "way_out/a")))
    good = Promotion("w2/1-1", tuple(site.stage(site.write("b"), "b", "w2/1-1")))
    told = site.store.promote([evil, good])
    assert told[0] is not None
    assert "way_out" in told[0]
    assert told[1] is None
    assert list(outside.iterdir()) == []


def test_nothing_is_taken_through_a_link_that_was_staged(site: Site, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (site.local / "link").symlink_to(outside)
    entries = site.stage(site.local / "link", "way_out")
    assert site.promote(*entries, Entry("way_out/secret", "file", 6, 0o644, 0.0)) is not None
    assert (outside / "secret").read_text() == "secret"
    assert site.names() == []


def test_nothing_is_staged_through_a_link_that_was_staged_before(site: Site, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (site.local / "link").symlink_to(outside)
    site.stage(site.local / "link", "way_out")
    with pytest.raises(BadName):
        site.stage(site.write("a", b"evil"), "way_out/a")
    assert list(outside.iterdir()) == []


# --- names ----------------------------------------------------------------------------------------

ODD = [
    "with space",
    " leading and trailing ",
    "-rf",
    "new\nline",
    "tab\tand\rreturn",
    'quote\'s "and" `ticks` $HOME ; | & * ? [a] {b} \\ back',
    "ünïcödé ☃ 你好",
    "x" * 255,
    "ü" * 127,
    "...",
    ".hidden",
    "%41",
    "#x",
    "~",
]


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_odd_names_are_names(site: Site, name: str) -> None:
    entries = site.stage(site.write("a", name.encode()), f"dir/{name}")
    assert [entry.path for entry in entries] == [f"dir/{name}"]
    assert site.promote(*entries) is None
    assert [entry.path for entry in site.store.listing("dir")] == [f"dir/{name}"]
    assert site.fetched(f"dir/{name}").read_bytes() == name.encode()
    [entry] = site.store.stat([f"dir/{name}"])
    assert entry is not None
    assert entry.size == len(name.encode())


def test_a_directory_of_odd_names_travels_whole(site: Site) -> None:
    for name in ODD:
        site.write(f"tree/{name}", name.encode())
    entries = site.stage(site.local / "tree", "-tree")
    assert site.promote(*entries) is None
    fetched = site.fetched("-tree")
    assert sorted(os.listdir(fetched)) == sorted(ODD)


NONE = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../../x",
    "a/..",
    ".",
    "./.",
    "nul\0x",
    ".ecloud",
    "./.ecloud/staging/w2/x",
]


@pytest.mark.parametrize("name", NONE)
def test_names_that_are_none_are_refused(site: Site, name: str) -> None:
    local = site.write("a")
    with pytest.raises(BadName):
        site.store.fetch(name, site.local / "to")
    with pytest.raises(BadName):
        site.store.stat([name])
    with pytest.raises(BadName):
        site.stage(local, name)
    with pytest.raises(BadName):
        site.stage(local, "x", stage=name)
    with pytest.raises(BadName):
        site.store.put(local, name)
    assert site.promote(Entry(name, "file", 4, 0o644, 0.0)) is not None
    with pytest.raises(BadName):
        site.store.drop_stage(name)
    assert site.names() == []


def test_names_are_normalised(site: Site) -> None:
    assert site.promote(*site.stage(site.write("a"), "./out//a")) is None
    assert site.names() == ["out", "out/a"]
    [entry] = site.store.stat(["out/./a"])
    assert entry is not None
    assert entry.path == "out/a"


# --- looking --------------------------------------------------------------------------------------


def test_a_listing_is_sorted_and_hides_the_staging_area(site: Site) -> None:
    for name in ("b", "a/2", "a/1", "a/sub/x", "c"):
        assert site.promote(*site.stage(site.write("f"), name)) is None
    site.stage(site.write("g"), "staged")
    assert [entry.path for entry in site.store.listing()] == ["a", "b", "c"]
    assert [entry.path for entry in site.store.listing("a")] == ["a/1", "a/2", "a/sub"]
    assert site.names() == ["a", "a/1", "a/2", "a/sub", "a/sub/x", "b", "c"]
    assert [entry.path for entry in site.store.listing("a/1")] == ["a/1"]


def test_many_names_are_one_question_answered_in_order(site: Site) -> None:
    assert site.promote(*site.stage(site.write("f", b"123"), "there")) is None
    names = [f"none{number}" for number in range(5000)]
    answers = site.store.stat([*names, "there", *names])
    assert len(answers) == 10_001
    assert [index for index, answer in enumerate(answers) if answer is not None] == [5000]
    assert site.store.stat([]) == []


def test_a_person_puts_a_file_or_a_directory(site: Site) -> None:
    site.store.put(site.write("a", b"1"), "in/a")
    site.write("tree/b", b"2")
    entries = site.store.put(site.local / "tree", "in/tree")
    assert [entry.path for entry in entries] == ["in/tree", "in/tree/b"]
    site.store.put(site.write("c", b"anew"), "in/a")
    assert site.fetched("in/a").read_bytes() == b"anew"
    assert site.store.stages() == []
    assert site.store.free_mb() > 0
    with pytest.raises(NotThere):
        site.store.put(site.local / "none", "in/none")


def test_a_datastore_that_is_gone_is_away_and_comes_back(site: Site) -> None:
    entries = site.stage(site.write("a"), "a")
    aside = site.root.with_name("aside")
    site.root.rename(aside)
    for call in (
        lambda: site.store.stat(["a"]),
        lambda: site.store.fetch("a", site.local / "to"),
        lambda: site.store.listing(),
        lambda: site.stage(site.local / "a", "b"),
        lambda: site.promote(*entries),
        lambda: site.store.stages(),
        lambda: site.store.free_mb(),
    ):
        with pytest.raises(DatastoreAway):
            call()
    assert not site.root.exists()
    aside.rename(site.root)
    assert site.promote(*entries) is None
    assert site.names() == ["a"]
