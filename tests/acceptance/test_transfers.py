"""What crosses the network and what does not: inputs that many tasks share, requirements that are not there, disks that
are too small, turns to be waited for. A real sshd, behind a proxy that counts."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cutting_proxy import CuttingProxy
from doors import Doors, ended
from services import Daemon, wait_until
from sshd import Sshd

from datastore.keys import public_line
from ecloud.config.datastore_address import boss_key

SIZE = 5_000_000
SLACK = 1_000_000
"""Bytes of handshakes, questions and answers."""


class Far:
    """A cluster whose datastore is behind an sshd and a proxy."""

    def __init__(self, doors: Doors, root: Path, proxy: CuttingProxy) -> None:
        self.doors, self.root, self.proxy = doors, root, proxy


@pytest.fixture
def far(own_sshd: Sshd, daemons: Callable[..., Daemon], tmp_path: Path) -> Iterator[Far]:
    yield from made(own_sshd, daemons, tmp_path, workers=1)


@pytest.fixture
def far_and_bare(own_bare_sshd: Sshd, daemons: Callable[..., Daemon], tmp_path: Path) -> Iterator[Far]:
    yield from made(own_bare_sshd, daemons, tmp_path, workers=1)


@pytest.fixture
def far_of_five(own_sshd: Sshd, daemons: Callable[..., Daemon], tmp_path: Path) -> Iterator[Far]:
    yield from made(own_sshd, daemons, tmp_path, workers=5)


def made(
    own_sshd: Sshd, daemons: Callable[..., Daemon], tmp_path: Path, workers: int, **settings: float
) -> Iterator[Far]:
    """With one lane for all workers."""
    pools = [{"name": "local", "cloud": "local", "minimum": workers, "maximum": workers, "cpus": 4}]
    daemon = daemons(POOLS=pools, **{"TRANSFER_LANES": 1, "HEARTBEAT_S": 0.5, **settings}).start()
    with own_sshd.authorized_keys.open("a") as file:
        file.write(public_line(boss_key(daemon.home)) + "\n")
    root = tmp_path / "root"
    root.mkdir()
    with CuttingProxy(own_sshd.port) as proxy:
        doors = Doors(tmp_path / "place", daemon)
        doors.admin("set_datastore", str(own_sshd.address(root, proxy.port)))
        yield Far(doors, root, proxy)


def test_an_input_of_a_hundred_tasks_leaves_the_datastore_once_for_their_worker(far: Far) -> None:
    (far.root / "input").write_bytes(os.urandom(SIZE))
    tasks = [{"id": f"t{i}", "commands": "wc -c < in", "requirements": [["input", "in"]]} for i in range(100)]
    before = far.proxy.passed
    assert "100 succeeded" in far.doors.push(far.doors.write("t.json", tasks), "--wait").out
    assert SIZE <= far.proxy.passed - before < SIZE + SLACK
    details = [far.doors.admin("show_task", f"t{i}", "--json").json["attempts"][0] for i in (0, 99)]
    assert [detail["fetch_bytes"] for detail in details] == [SIZE, SIZE]
    assert details[1]["cached_bytes"] == SIZE
    shown = far.doors.admin("show_task", "t99").out
    assert "fetching 5 MB in" in shown
    assert "5 MB of it from its cache" in shown
    status = far.doors.admin("status", "--json").json
    assert status["transfers_turns"] == 1, "no worker waits: it keeps its lane"
    wait_until(lambda: not far.doors.admin("status", "--json").json["transfers"], what="all transfers have ended")
    assert "transfers  nothing moves, 1 holds its turn over SSH" in far.doors.admin("status").out


@pytest.fixture
def far_and_quiet(own_sshd: Sshd, daemons: Callable[..., Daemon], tmp_path: Path) -> Iterator[Far]:
    """Heartbeats are further apart than anything takes here."""
    yield from made(own_sshd, daemons, tmp_path, workers=1, HEARTBEAT_S=600, LEASE_S=6_000)


def test_the_first_tasks_after_a_move_wait_for_no_heartbeat(far_and_quiet: Far, own_sshd: Sshd) -> None:
    far = far_and_quiet
    far.doors.push(far.doors.write("first.json", [{"id": "f", "commands": "true"}]), "--wait")
    far.root = far.root.with_name("moved")
    far.root.mkdir()
    (far.root / "input").write_text("here")
    far.doors.admin("set_datastore", str(own_sshd.address(far.root, far.proxy.port)))
    task = {"id": "t", "commands": "cat in > out", "requirements": [["input", "in"]], "results": ["out"]}
    far.doors.push(far.doors.write("t.json", [task]))
    assert ended(far.doors, "t") == {"t": "succeeded"}
    assert (far.root / "out").read_text() == "here"


def test_a_missing_requirement_fails_at_once_and_names_who_should_have_made_it(far: Far) -> None:
    (far.root / "there").write_bytes(os.urandom(SIZE))
    tasks = [
        {"id": "make", "commands": "mkdir out; touch out/a", "results": [["out", "made"]]},
        {"id": "use", "commands": "true", "dependencies": ["make"], "requirements": ["there", "made/b"]},
        {"id": "lone", "commands": "true", "requirements": ["nowhere"]},
    ]
    before = far.proxy.passed
    far.doors.push(far.doors.write("t.json", tasks))
    assert ended(far.doors, "t") == {"make": "succeeded", "use": "failed", "lone": "failed"}
    assert far.proxy.passed - before < SIZE, "what is there is not fetched for nothing"
    failed = far.doors.admin("show_failed").out.replace("\n", " ")
    assert "requirement made/b is not in the datastore; task make (succeeded) should have produced it" in failed
    assert "requirement nowhere is not in the datastore; no task of its run produces it" in failed
    assert "task make (succeeded) should have produced it" in far.doors.admin("why", "use").out.replace("\n", " ")
    what_does_not_fit_on_the_disk_is_given_back_without_blame(far)


def what_does_not_fit_on_the_disk_is_given_back_without_blame(far: Far) -> None:
    with (far.root / "huge").open("wb") as file:
        file.truncate(10**13)
    task = {"id": "t", "commands": "true", "requirements": ["huge"], "retries": 0}
    far.doors.push(far.doors.write("big.json", [task]))
    wait_until(
        lambda: "too little disk space for its requirements" in far.doors.admin("why", "t", "--all").out,
        60,
        "why tells",
    )
    assert far.doors.admin("show_task", "t", "--json").json["retries_used"] == 0
    (far.root / "huge").unlink()
    (far.root / "huge").write_text("small now")
    assert ended(far.doors, "big") == {"t": "succeeded"}


def test_workers_take_turns_so_that_none_is_turned_away(far_of_five: Far, own_sshd: Sshd) -> None:
    far = far_of_five
    wait_until(lambda: len(far.doors.admin("show_workers", "--json").json) == 5, what="all workers are there")
    (far.root / "input").write_bytes(os.urandom(SIZE))
    tasks = [
        {
            "id": f"t{i}",
            "commands": "cat in > out; echo $ECLOUD_WORKER > who",
            "requirements": [["input", "in"]],
            "results": [["out", f"out{i}"], ["who", f"who{i}"]],
            "resources": {"cpus": 4},
        }
        for i in range(10)
    ]
    # It takes in the boss and one more at once; set_datastore alone, which asks for all its keys, would be too much.
    own_sshd.stop()
    own_sshd.config.write_text(re.sub("MaxStartups .*", "MaxStartups 2:100:2", own_sshd.config.read_text()))
    own_sshd.start()
    before = far.proxy.passed
    far.doors.push(far.doors.write("t.json", tasks))
    assert set(ended(far.doors, "t").values()) == {"succeeded"}
    assert {(far.root / f"out{i}").stat().st_size for i in range(10)} == {SIZE}
    workers = {(far.root / f"who{i}").read_text() for i in range(10)}
    assert len(workers) == 5, "each had its turn"
    moved = far.proxy.passed - before
    assert moved < (len(workers) + len(tasks)) * SIZE + 4 * SLACK, "each worker fetched the input once"
    assert "MaxStartups" not in (own_sshd.directory / "log").read_text(), "the sshd refused a connection"


def test_who_waits_sees_files_on_their_way(far: Far) -> None:
    (far.root / "input").write_bytes(os.urandom(SIZE))
    tasks = [{"id": "t", "commands": "wc -c < in > out", "requirements": [["input", "in"]], "results": ["out"]}]
    far.doors.push(far.doors.write("first.json", [{"id": "f", "commands": "true", "results": []}]), "--wait")
    far.proxy.bytes_per_s = SIZE / 9  # seconds in which heartbeats tell of it
    watching = far.doors.begin("push_tasks.py", far.doors.write("t.json", tasks), "--wait")
    told = watching.communicate(timeout=90)[0].decode()
    assert re.search(r"fetching 1 file, [\d.]+( MB| kB| B)? of 5 MB, \d+", told), told
    assert "1 succeeded" in told


def test_status_shows_what_moves_while_it_moves_and_not_a_moment_longer(far: Far) -> None:
    (far.root / "input").write_bytes(os.urandom(SIZE))
    commands = "wc -c < in > out; head -c 6000000 /dev/urandom > made; while ! test -e $GO; do sleep 0.1; done"
    tasks = [
        {"id": "t", "commands": commands, "requirements": [["input", "in"]], "results": ["out", "made"],
         "env": {"GO": str(far.doors.place / "go")}},
    ]  # fmt: skip
    far.doors.push(far.doors.write("first.json", [{"id": "f", "commands": "true", "results": []}]), "--wait")
    far.proxy.bytes_per_s = SIZE / 9
    far.doors.push(far.doors.write("big.json", tasks))

    def moving(what: str) -> dict[str, Any]:
        """The transfer in progress, once part of it is done."""
        shown: list[dict[str, Any]] = []

        def begun() -> bool:
            shown[:] = far.doors.admin("status", "--json").json["transfers"]
            return any(transfer[what] and transfer["moved_bytes"] for transfer in shown)

        wait_until(begun, 60, f"{what} is shown")
        assert len(shown) == 1
        return shown[0]

    def rests() -> bool:
        return not far.doors.admin("status", "--json").json["transfers"]

    fetching = moving("fetching")
    assert (fetching["tasks"], fetching["fetching"], fetching["storing"]) == (["big:t"], 1, 0)
    assert fetching["bytes"] == SIZE
    assert 0 < fetching["moved_bytes"] < SIZE
    told = far.doors.admin("status").out
    assert re.search(r"transfers  1 worker moves files, 1 holds its turn over SSH\n", told), told
    assert re.search(r"\n  w\w+  fetching 1 file, .* of 5 MB, [^\n]*, for [^\n]*: big:t\n", told), told
    wait_until(lambda: "running" in far.doors.admin("show_task", "t").out and rests(), 60, "its commands run")
    (far.doors.place / "go").touch()
    storing = moving("storing")
    assert (storing["tasks"], storing["fetching"], storing["storing"]) == (["big:t"], 0, 2)
    far.proxy.bytes_per_s = 0.0
    assert ended(far.doors, "big") == {"t": "succeeded"}
    wait_until(rests, 20, "all transfers have ended")


@pytest.mark.parametrize("by", ["far", pytest.param("far_and_bare", marks=pytest.mark.long)])
def test_a_push_after_an_interrupt_continues_where_it_stopped(by: str, request: pytest.FixtureRequest) -> None:
    far: Far = request.getfixturevalue(by)
    size = 24_000_000
    place = far.doors.place
    (place / "up").mkdir()
    (place / "up/large").write_bytes(os.urandom(size))
    for number in range(300):
        (place / f"up/small{number}").write_text(str(number))
    task = [{"id": "t", "commands": "cat small7 > r", "requirements": ["small7", "large"], "results": ["r"]}]
    list_file = far.doors.write("t.json", task)
    staging = far.root / ".ecloud/staging/put"

    def arrived() -> int:
        return sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())

    far.proxy.bytes_per_s = size / 80
    uploading = far.doors.begin("push_tasks.py", list_file, "--upload", "up")
    wait_until(lambda: len(list(far.root.glob("small*"))) == 300, 60, "the small ones arrived")
    far.proxy.bytes_per_s = size / 10
    wait_until(lambda: arrived() > size / 2, 60, "half of the large one arrived")
    uploading.send_signal(signal.SIGINT)
    told = uploading.communicate(timeout=60)[0].decode()
    assert uploading.returncode == 130
    assert "interrupted: 300 of 301 files arrived; the next call resumes there" in told
    far.proxy.bytes_per_s, before = 0.0, far.proxy.passed
    done = far.doors.push(list_file, "--upload", "up", "--wait")
    assert "uploaded 1 file, 300 were there" in done.err
    assert "1 succeeded" in done.out
    # The worker fetches it too; of the upload a quarter at least did not travel again.
    assert far.proxy.passed - before < 1.75 * size + SLACK
    assert (far.root / "large").read_bytes() == (place / "up/large").read_bytes()


@pytest.mark.parametrize("by", ["far", pytest.param("far_and_bare", marks=pytest.mark.long)])
def test_a_get_after_an_interrupt_continues_where_it_stopped(by: str, request: pytest.FixtureRequest) -> None:
    far: Far = request.getfixturevalue(by)
    size, files = 1_000_000, 20
    (far.root / "out").mkdir()
    for number in range(files):
        (far.root / f"out/{number:02}").write_bytes(os.urandom(size))
    place, before = far.doors.place, far.proxy.passed
    far.proxy.bytes_per_s = files * size / 4
    getting = far.doors.begin("admin.py", "get", "out", "here")
    wait_until(lambda: far.proxy.passed - before > 0.6 * files * size, what="more than half of it is here")
    getting.send_signal(signal.SIGINT)
    told = getting.communicate(timeout=60)[0].decode()
    assert getting.returncode == 130
    assert "interrupted: what arrived is kept beside it as .*.part: run get again to resume" in told
    assert not (place / "here").exists()
    far.proxy.bytes_per_s, before = 0.0, far.proxy.passed
    far.doors.admin("get", "out", "here")
    assert far.proxy.passed - before < 0.6 * files * size + SLACK
    for path in (far.root / "out").iterdir():
        assert (place / "here" / path.name).read_bytes() == path.read_bytes()
    assert list(place.glob(".*.part")) == []


def test_a_get_of_all_results_continues_with_the_missing_ones(far: Far) -> None:
    task = {"id": "t", "commands": "echo 1 > a; echo 2 > b", "results": [["a", "out/a"], ["b", "out/b"]]}
    far.doors.push(far.doors.write("t.json", [task]), "--wait")
    (far.doors.place / "here").mkdir()
    far.doors.admin("get", "out/a", "here")
    assert far.doors.admin("get", "--task", "t", "here").out.split() == ["here/a", "here/b"]
    (far.doors.place / "here/b").write_text("mine, and longer")
    assert "here/b exists" in far.doors.admin("get", "--task", "t", "here", code=2).err


def test_a_file_is_put_into_a_directory_and_not_in_its_place(far: Far) -> None:
    (far.doors.place / "a").write_text("a")
    (far.root / "in").mkdir()
    (far.root / "in/old").write_text("old")
    assert "in/a:" in far.doors.admin("put", "a", "in").out
    assert "new/a:" in far.doors.admin("put", "a", "new/").out
    assert {str(path.relative_to(far.root)) for path in far.root.rglob("*") if path.is_file()} >= {
        "in/a", "in/old", "new/a",
    }  # fmt: skip
    (far.doors.place / "b").mkdir()
    assert "in/a is a file in the datastore" in far.doors.admin("put", "b", "in/a", code=2).err
    assert (far.root / "in/a").read_text() == "a"
    for arguments in (("ls", "none"), ("get", "none", "to"), ("du", "none")):
        assert "none is not in the datastore" in far.doors.admin(*arguments, code=2).err
