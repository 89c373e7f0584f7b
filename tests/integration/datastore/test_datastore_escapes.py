"""What a worker's certificate must not open. Each test is an attempt, with the means of OpenSSH or with frames
that no client of ECLOUD would send."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from services import HOST, free_port, wait_until
from sshd import Sshd

from datastore.gate import HEAD, MAGIC, MAX_BODY, MAX_JSON
from datastore.port import BadName, DatastoreAway
from datastore.ssh.access import Access, ssh_command
from datastore.ssh.datastore import SshDatastore
from datastore.ssh.link import ask

EVIL = [
    "../secret", "a/../../secret", "/etc/passwd", "..", "a/..", "", ".", "nul\0x", "way_out/secret",
    "way_out/../secret",
    ".ecloud/staging/w2/1-1/theirs", ".ecloud", "./.ecloud/staging", ".ecloud//gate.py",
]  # fmt: skip
"""Names that lead out, through a link, or into what is reserved for the datastore."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A datastore with a link out of it, a secret beside it, and something that another worker staged."""
    root = tmp_path / "root"
    theirs = root / ".ecloud/staging/w2/1-1"
    theirs.mkdir(parents=True)
    (theirs / "theirs").write_text("theirs")
    (tmp_path / "outside").mkdir()
    for path in (tmp_path / "secret", tmp_path / "outside/secret", root / "open"):
        path.write_text("secret" if path.name == "secret" else "open")
    (root / "way_out").symlink_to(tmp_path / "outside")
    (root / "link").symlink_to(tmp_path / "secret")
    return root


@pytest.fixture
def worker(sshd: Sshd, root: Path) -> SshDatastore:
    return sshd.worker(root, "w1", patience_s=0.5)


def tree(directory: Path) -> dict[str, str]:
    """All there is, with its contents; the locks of clients left out."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if not path.name.startswith(".client-"):
            found[str(path)] = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else ""
    return found


def outside(root: Path) -> dict[str, str]:
    """All but the worker's own staging directory."""
    own = str(root / ".ecloud/staging/w1")
    return {path: text for path, text in tree(root.parent).items() if not path.startswith(own)}


def put(worker: SshDatastore, stage: str, *items: list[Any]) -> None:
    """Frames that no client of ECLOUD would send."""
    ask(worker._link, {"do": "put", "client": "aa", "stage": stage, "items": list(items)})


# --- names and links ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVIL)
def test_no_name_leads_out(worker: SshDatastore, root: Path, name: str) -> None:
    before = outside(root)
    for request in (
        {"do": "stat", "names": [name]},
        {"do": "get", "name": name, "at": 0, "count": 10, "token": ""},
        {"do": "get_many", "names": [name]},
        *([{"do": "list", "name": name, "recursive": True}] if name else []),
        {"do": "part", "client": "aa", "stage": "w1/1-1", "path": name, "size": 1, "mtime_ns": 1},
        {"do": "staged", "client": "aa", "stage": "w1/1-1", "path": name},
    ):
        try:
            answer = ask(worker._link, dict(request))
        except BadName:
            continue
        # A name of a stage: nothing of what the root's link leads to.
        assert request["do"] in ("part", "staged")
        assert answer in ([{"have": 0}], [{"rows": []}])
    if not name.startswith("way_out"):  # below a stage that is a name as any other
        for item in (["piece", name, 0, 0o644, 0, 0, 0, ""], ["directory", name], ["clear", name], ["link", name, "x"]):
            with pytest.raises(BadName):
                put(worker, "w1/1-1", item)
    with pytest.raises(BadName):
        worker.drop_stage(name)
    assert outside(root) == before


def test_links_are_listed_and_never_followed(worker: SshDatastore, root: Path, tmp_path: Path) -> None:
    [entry] = worker.stat(["link"])
    assert entry is not None
    assert entry.kind == "link"
    worker.fetch("link", tmp_path / "fetched")
    assert (tmp_path / "fetched").is_symlink()
    with pytest.raises(OSError, match="symbolic"):
        ask(worker._link, {"do": "get_many", "names": ["link"]})
    with pytest.raises(BadName):
        worker.listing("way_out/x")
    assert [entry.path for entry in worker.listing(recursive=True)] == ["link", "open", "way_out"]


def test_nothing_is_written_through_a_link_of_ones_own(worker: SshDatastore, root: Path) -> None:
    before = outside(root)
    put(worker, "w1/1-1", ["link", "door", str(root.parent / "outside")], ["link", "file", str(root.parent / "secret")])
    data = [
        "piece",
        "door/secret",
        0,
        0o777,
        0,
        0,
        0,
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ]
    for item in (
        data,
        ["directory", "door/new"],
        ["clear", "door/secret"],
        ["seal", "door", 0o777, 0],
        ["link", "door/x", "y"],
    ):
        with pytest.raises(BadName):
            put(worker, "w1/1-1", item)
    staged = {"do": "staged", "client": "aa", "stage": "w1/1-1"}
    [told] = ask(worker._link, {**staged, "path": "door"})
    assert [(name, kind) for name, kind, *_ in told["rows"]] == [("door", "link")]
    with pytest.raises(BadName):
        ask(worker._link, {**staged, "path": "door/secret"})
    put(worker, "w1/1-1", [*data[:1], "file", *data[2:]])  # replaces the link itself
    assert not (root / ".ecloud/staging/w1/1-1/file").is_symlink()
    assert outside(root) == before


@pytest.mark.parametrize(
    "stage", ["w2/1-1", "w2/new", "w1/../w2", "w1", "w1/1-1/deeper", "../w2/1-1", "w1/.1-1", ".w1/1", "put/1"]
)
def test_anothers_staging_is_out_of_reach(worker: SshDatastore, root: Path, stage: str) -> None:
    before = outside(root)
    for call in (
        lambda: put(worker, stage, ["directory", "x"]),
        lambda: ask(worker._link, {"do": "drop_stage", "stage": stage}),
        lambda: ask(
            worker._link, {"do": "part", "client": "aa", "stage": stage, "path": "x", "size": 1, "mtime_ns": 1}
        ),
        lambda: ask(worker._link, {"do": "staged", "client": "aa", "stage": stage, "path": "theirs"}),
    ):
        with pytest.raises(BadName):
            call()
    assert outside(root) == before


@pytest.mark.parametrize("request_", [
    {"do": "promote", "sync": False, "promotions": [["w1/1-1", [["open", "file", 1, ""]]]]}, {"do": "stages"},
    {"do": "put"}, {"do": "put", "client": "aa", "stage": "w1/1-1", "items": [["rm", "x"]]},
    {"do": "put", "client": "../aa", "stage": "w1/1-1", "items": []}, {"do": "hold"}, {"do": "__init__"},
    {"do": ["stat"]},
    {"do": "stat", "names": [7]}, {"do": "stat", "names": None}, {"do": "get", "name": "open"}, {},
    {"do": "get", "name": "open", "at": -1, "count": 5, "token": ""},
    {"do": "get", "name": "open", "at": 0, "count": "x", "token": ""},
])  # fmt: skip
def test_what_is_not_a_workers_to_ask_is_answered_with_an_error(
    worker: SshDatastore, root: Path, request_: dict[str, Any]
) -> None:
    before = outside(root)
    with pytest.raises((OSError, DatastoreAway)):
        ask(worker._link, request_)
    assert outside(root) == before
    assert worker.stat(["open"]) != [None]


# --- frames -------------------------------------------------------------------------------------------


def converse(command: list[str], data: bytes) -> list[dict[str, Any]]:
    """What a gate answers after its hello until it ends."""
    done = subprocess.run(command, input=data, capture_output=True, timeout=60, check=False)
    told, frames = done.stdout.partition(MAGIC)[2], []
    while told:
        length, body = HEAD.unpack(told[: HEAD.size])
        frames.append(json.loads(told[HEAD.size : HEAD.size + length]))
        told = told[HEAD.size + length + body :]
    return frames[1:]


@pytest.mark.parametrize("data", [
    b"GET / HTTP/1.1\r\n\r\n" * 20, b"\xff" * 1000, b"\0" * 8 + b"{}", HEAD.pack(MAX_JSON + 1, 0),
    HEAD.pack(2, MAX_BODY + 1) + b"{}",
    HEAD.pack(2, 0) + b"[]", HEAD.pack(4, 0) + b"null", HEAD.pack(6, 0) + b'{"do":',
    HEAD.pack(200, 0) + b"{}", b"abc",
    HEAD.pack(2, 100) + b"{}short", b"exit\n", b"\n",
], ids=range(13))  # fmt: skip
def test_a_bad_frame_is_answered_by_one_error_and_the_end(sshd: Sshd, root: Path, data: bytes) -> None:
    frames = converse(ssh_command(sshd.address(root), sshd.access(root, "w1")), data)
    assert [frame["error"] for frame in frames] == ["bad_frame"]


# --- OpenSSH's own means --------------------------------------------------------------------------------


def client(sshd: Sshd, root: Path, *options: str, command: str | None = None) -> list[str]:
    """The OpenSSH client with a worker's certificate, and further options before all others."""
    words = ssh_command(sshd.address(root), sshd.access(root, "w1"))
    if command is None:
        words = words[:-1]
    else:
        words[-1] = command
    return [*words[:1], *options, *words[1:]]


@pytest.mark.parametrize("command", [
    "id", "; touch {mark}", "$(touch {mark})", "`touch {mark}`", "| touch {mark}", "& touch {mark} &",
    "\n touch {mark}\n",
    "rsync --server --sender -logDtpre.iLsfxCIvu . /etc/passwd", "rsync --server -vlogDtpre.iLsfxCIvu . {mark}",
    "scp -f /etc/passwd", "scp -t {mark}",
    "/bin/sh -i", "python3 -c 'open(\"{mark}\", \"w\")'", "boss", "--root / boss",
])  # fmt: skip
def test_what_the_client_wants_to_run_is_never_run(sshd: Sshd, root: Path, tmp_path: Path, command: str) -> None:
    mark = tmp_path / "mark"
    told = subprocess.run(
        client(sshd, root, command=command.format(mark=mark)), input=b"", capture_output=True, timeout=60, check=False
    )
    hello = json.loads(told.stdout.partition(MAGIC)[2][HEAD.size :])
    assert (hello["role"], hello["name"]) == ("worker", "w1")
    assert b"root:" not in told.stdout
    assert not mark.exists()


def test_there_is_no_interactive_shell(sshd: Sshd, root: Path, tmp_path: Path) -> None:
    script = f"touch {tmp_path}/mark\nexit\n".encode()
    for options in (("-tt",), ("-t",), ()):
        told = subprocess.run(client(sshd, root, *options), input=script, capture_output=True, timeout=60, check=False)
        assert told.returncode != 0
        assert b"bad_frame" in told.stdout
    assert not (tmp_path / "mark").exists()


def test_there_is_no_sftp(sshd: Sshd, root: Path, tmp_path: Path) -> None:
    words = client(sshd, root)[1:]
    host = words.pop()
    words = [word for word in words if word not in ("-T", "--")]
    port, login = words.index("-p"), words.index("-l")
    options = [*words[: min(port, login)], "-P", words[port + 1]]
    told = subprocess.run(
        ["sftp", *options, f"{words[login + 1]}@{host}:/etc/passwd", str(tmp_path / "got")],
        input=b"", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert told.returncode != 0
    assert not (tmp_path / "got").exists()


@pytest.fixture
def inner() -> Iterator[tuple[int, threading.Event]]:
    """A server that only the datastore's machine should reach, and whether a client connected."""
    came = threading.Event()
    server = socket.create_server((HOST, 0))

    def take() -> None:
        with suppress(OSError):
            while True:
                guest, _ = server.accept()
                came.set()
                guest.close()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    yield int(server.getsockname()[1]), came
    with suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(10)


def test_no_port_is_forwarded(sshd: Sshd, root: Path, inner: tuple[int, threading.Event]) -> None:
    port, came = inner
    free = ["-o", "ClearAllForwardings=no"]
    told = subprocess.run(
        client(sshd, root, *free, "-W", f"{HOST}:{port}"), input=b"x", capture_output=True, timeout=60, check=False
    )
    assert told.returncode != 0
    backwards = ["-o", "ExitOnForwardFailure=yes", "-N", "-R", f"{free_port()}:{HOST}:{port}"]
    told = subprocess.run(client(sshd, root, *free, *backwards), capture_output=True, timeout=60, check=False)
    assert told.returncode != 0
    near = free_port()
    process = subprocess.Popen(
        client(sshd, root, *free, "-N", "-L", f"{HOST}:{near}:{HOST}:{port}"), stderr=subprocess.DEVNULL
    )
    try:

        def ends() -> bool:
            try:
                with socket.create_connection((HOST, near), 5) as guest:
                    return guest.recv(10) == b""
            except ConnectionResetError:
                return True
            except OSError:
                return False

        wait_until(ends, what="the forwarded connection is closed")
    finally:
        process.kill()
        process.wait()
    assert not came.is_set()


def test_the_key_alone_without_its_certificate_opens_nothing(sshd: Sshd, root: Path) -> None:
    access = sshd.access(root, "w1")
    aside = sshd.directory / "bare"
    aside.write_bytes(access.key.read_bytes())
    aside.chmod(0o600)
    bare = SshDatastore(sshd.address(root), Access(aside, access.known_hosts), patience_s=0.5)
    with pytest.raises(DatastoreAway, match="refuses"):
        bare.listing()
    bare.close()


def test_an_access_that_has_expired_opens_nothing(sshd: Sshd, root: Path) -> None:
    """Neither to a new connection, nor on one that was opened in time."""
    before = tree(root)
    late = ssh_command(sshd.address(root), sshd.access(root, "w1", lives_s=-60))
    told = subprocess.run(late, input=b"", capture_output=True, timeout=60, check=False)
    assert told.returncode == 255
    assert b"Permission denied" in told.stderr
    assert MAGIC not in told.stdout
    opened = ssh_command(sshd.address(root), sshd.access(root, "w1", until_s=1.0))
    request = b'{"do":"get_many","names":["open"]}'
    assert converse(opened, HEAD.pack(len(request), 0) + request) == []
    assert tree(root) == before


def test_a_certificate_opens_nothing_for_another_key(sshd: Sshd, root: Path) -> None:
    mine, theirs = sshd.access(root, "w1"), sshd.access(root, "w2")
    mixed = Access(mine.key, mine.known_hosts, theirs.certificate)
    told = subprocess.run(
        ssh_command(sshd.address(root), mixed), input=b"", capture_output=True, timeout=60, check=False
    )
    assert told.returncode == 255
    assert MAGIC not in told.stdout
