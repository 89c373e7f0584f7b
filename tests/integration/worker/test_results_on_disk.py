"""Results on disk: links become what they lead to, and what can never be stored fails its task at once, naming it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from datastore.directory import DirectoryDatastore
from ecloud.model.tasks import Result
from worker.shell.results import ResultUnusable, found


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    (directory / "out").mkdir(parents=True)
    return directory


def stored(work: Path, local: str) -> Path:
    """Where a result lies in a datastore, after it was staged."""
    store = DirectoryDatastore(work.parent / "store").make()
    for path, name in found(Result(local, local), work):
        store.store("w/1-1", path, name)
    return store.root / ".ecloud/staging/w/1-1" / local


def refusal(work: Path, local: str) -> str:
    with pytest.raises(ResultUnusable) as caught:
        found(Result(local, local), work)
    return str(caught.value)


@pytest.mark.parametrize("target", ["real.txt", "{work}/real.txt", "other", "./out/../real.txt"])
def test_a_link_to_a_file_inside_is_stored_as_its_content(work: Path, target: str) -> None:
    (work / "real.txt").write_text("hello\n")
    (work / "other").symlink_to("real.txt")
    (work / "latest").symlink_to(target.format(work=work))
    at = stored(work, "latest")
    assert not at.is_symlink()
    assert at.read_text() == "hello\n"
    assert (work / "real.txt").exists()


def test_a_link_to_a_directory_inside_is_stored_as_its_content(work: Path) -> None:
    (work / "run-7").mkdir()
    (work / "run-7/x").write_text("x")
    (work / "latest").symlink_to("run-7")
    assert (stored(work, "latest") / "x").read_text() == "x"


def test_links_within_a_directory_stay_links_and_those_that_lead_out_of_it_are_replaced(work: Path) -> None:
    (work / "data").mkdir()
    (work / "data/a").write_text("a")
    (work / "out/lib.so.1").write_text("lib")
    (work / "out/lib.so").symlink_to("lib.so.1")
    (work / "out/file").symlink_to(work / "data/a")
    (work / "out/tree").symlink_to("../data")
    at = stored(work, "out")
    assert os.readlink(at / "lib.so") == "lib.so.1"
    assert (at / "file").read_text() == "a"
    assert not (at / "file").is_symlink()
    assert (at / "tree/a").read_text() == "a"
    assert not (at / "tree").is_symlink()
    assert (work / "data/a").read_text() == "a"


@pytest.mark.parametrize("name", ["d", "out/d"])
@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nowhere", "which does not exist"),
        ("/etc/passwd", "outside of the working directory"),
        ("../../../../../../../../etc", "outside of the working directory"),
        ("/", "outside of the working directory"),
        ("d", "which does not exist"),
    ],
)
def test_a_link_that_cannot_be_stored_fails(work: Path, name: str, target: str, says: str) -> None:
    (work / name).symlink_to(target)
    assert says in refusal(work, name.split("/")[0])


def test_a_result_below_a_link_that_leads_out_fails(work: Path) -> None:
    (work / "etc").symlink_to("/etc")
    assert "outside of the working directory" in refusal(work, "etc/passwd")


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (os.mkfifo, "a FIFO"),
        (make_socket, "a socket"),
        (lambda path: os.mknod(path, 0o20600, os.makedev(1, 3)), "a character device"),
    ],
)
def test_what_is_no_file_is_named(work: Path, make: Callable[[Path], None], says: str, inside: bool) -> None:
    path = work / ("out/p" if inside else "p")
    try:
        make(path)
    except PermissionError:
        pytest.skip("only root makes devices")
    (work / "out/a").write_text("1")
    text = refusal(work, "out" if inside else "p")
    assert says in text
    assert ("out/p" if inside else "p") in text


@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes nobody for a moment")
@pytest.mark.parametrize("unreadable", ["out", "out/a"])
def test_what_the_worker_may_not_read_is_named(unreadable: str) -> None:
    top = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        top.chmod(0o755)
        (top / "out").mkdir()
        (top / "out/a").touch()
        (top / unreadable).chmod(0)
        os.setresuid(65_534, 65_534, 0)
        try:
            text = refusal(top, "out")
        finally:
            os.setresuid(0, 0, 0)
        assert "cannot be read by the worker" in text
        assert unreadable in text
    finally:
        shutil.rmtree(top)


def test_a_tree_that_is_too_deep_is_refused_in_time(work: Path) -> None:
    here = os.getcwd()
    os.chdir(work / "out")
    try:
        for _ in range(1_200):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    try:
        assert "500 directories deep" in refusal(work, "out")
    finally:
        subprocess.run(["rm", "-rf", str(work)], check=True)


def test_a_path_that_is_too_long_is_refused(work: Path) -> None:
    here = os.getcwd()
    os.chdir(work / "out")
    try:
        for _ in range(18):
            os.mkdir("x" * 250)
            os.chdir("x" * 250)
        Path("file").touch()
    finally:
        os.chdir(here)
    text = refusal(work, "out")
    assert "4096 bytes" in text or "too long" in text
    assert len(text) < 500


def test_a_file_of_exactly_the_declared_name_is_preferred_to_the_pattern(work: Path) -> None:
    for name in ("sample[1].txt", "sample1.txt", "q?.txt", "qx.txt"):
        (work / name).touch()
    assert found(Result("sample[1].txt", "."), work) == [(work / "sample[1].txt", "sample[1].txt")]
    assert found(Result("q?.txt", "renamed.txt"), work) == [(work / "q?.txt", "renamed.txt")]
    assert found(Result("sample[[]1].txt", "."), work) == [(work / "sample[1].txt", "sample[1].txt")]
    assert found(Result("sample?.txt", "to"), work) == [(work / "sample1.txt", "to/sample1.txt")]
