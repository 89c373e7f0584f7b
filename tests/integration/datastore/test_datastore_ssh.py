"""The datastore over a real sshd in bad weather: cut transfers resume, changed files are refused."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from cutting_proxy import CuttingProxy
from services import HOST, wait_until
from sshd import GATE, Sshd, big_file

from datastore import keys
from datastore.directory import DirectoryDatastore
from datastore.port import BadName, DatastoreAway, NotThere, Promotion
from datastore.ssh import installing
from datastore.ssh.access import Access, SshAddress, gate_command
from datastore.ssh.connection import Answer, Connection
from datastore.ssh.datastore import SshDatastore
from datastore.ssh.link import ask

MB = 1 << 20
_Result = TypeVar("_Result")


def arrived(root: Path, stage: str = "w1/1-1") -> int:
    """Bytes of an unfinished file in a stage."""
    owner, name = stage.split("/")
    try:
        return max(
            (part.stat().st_size for part in (root / ".ecloud/staging" / owner / f".{name}").iterdir()), default=0
        )
    except OSError:
        return 0


def publish(server: Sshd, root: Path, path: Path, name: str) -> None:
    server.boss(root).put(path, name)


# --- the whole way ------------------------------------------------------------------------------------


def test_a_worker_stages_the_boss_publishes_another_worker_reads(sshd: Sshd, root: Path, local: Path) -> None:
    first, second, boss = sshd.worker(root, "w1"), sshd.worker(root, "w2"), sshd.boss(root)
    entries = first.store("w1/1-1", big_file(local / "a", 3 * MB + 5), "out/a")
    assert boss.stages() == ["w1/1-1"]
    with pytest.raises(NotThere):
        second.fetch("out/a", local / "early")
    assert boss.promote([Promotion("w1/1-1", tuple(entries))]) == [None]
    assert second.fetch("out/a", local / "b") == 3 * MB + 5
    assert (local / "b").read_bytes() == (local / "a").read_bytes()
    [entry] = second.stat(["out/a"])
    assert entry is not None
    assert entry.sha256 == hashlib.sha256((local / "a").read_bytes()).hexdigest()
    assert first.hello()["name"] == "w1"
    assert boss.hello()["role"] == "boss"


def test_many_threads_share_one_connection(sshd: Sshd, root: Path, local: Path, pool: ThreadPoolExecutor) -> None:
    worker, boss = sshd.worker(root, "w1"), sshd.boss(root)

    def work(number: int) -> Promotion:
        size = (100, 700_000, 3 * MB)[number % 3]
        stage = f"w1/{number}-1"
        return Promotion(stage, tuple(worker.store(stage, big_file(local / f"{number}", size), f"out/{number}")))

    promotions = list(pool.map(work, range(60)))
    assert set(boss.promote(promotions)) == {None}
    list(pool.map(lambda number: worker.fetch(f"out/{number}", local / f"got{number}"), range(60)))
    for number in range(60):
        assert (local / f"got{number}").read_bytes() == (local / f"{number}").read_bytes()
    worker.close()
    boss.close()


def test_ten_thousand_names_are_one_request(sshd: Sshd, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask_really = Connection.ask

    def noted(connection: Connection, request: dict[str, Any], body: bytes = b"") -> Future[Answer]:
        asked.append(request["do"])
        return ask_really(connection, request, body)

    monkeypatch.setattr(Connection, "ask", noted)
    (root / "out").mkdir()
    (root / "out/there").write_text("result")
    boss = sshd.boss(root)
    found = boss.stat([f"out/{number}" for number in range(9_999)] + ["out/there"])
    assert [entry is not None for entry in found] == [False] * 9_999 + [True]
    assert asked == ["stat"]


def test_a_directory_of_large_and_small_files_travels(sshd: Sshd, root: Path, local: Path) -> None:
    tree = local / "tree"
    for number in range(450):
        path = tree / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 20))
    big_file(tree / "d1/large", 5 * MB)
    boss = sshd.boss(root)
    boss.put(tree, "in/tree")
    boss.fetch("in/tree", local / "back")
    told = subprocess.run(["diff", "-r", str(tree), str(local / "back")], capture_output=True, text=True, check=False)
    assert told.stdout == ""


def test_a_gate_ends_with_its_client(own_sshd: Sshd, root: Path) -> None:
    worker = own_sshd.worker(root, "w1")
    worker.listing()
    assert own_sshd.process is not None
    server = psutil.Process(own_sshd.process.pid)
    assert any("--root" in child.cmdline() for child in server.children(recursive=True))
    worker.close()
    wait_until(lambda: not server.children(recursive=True), what="no gate is left")


def test_what_was_staged_over_ssh_is_published_on_the_spot(sshd: Sshd, root: Path, local: Path) -> None:
    worker, on_site = sshd.worker(root, "w1"), DirectoryDatastore(root)
    entries = worker.store("w1/1-1", big_file(local / "a", 3 * MB), "a")
    assert on_site.stages() == ["w1/1-1"]
    assert on_site.promote([Promotion("w1/1-1", tuple(entries))]) == [None]
    assert on_site.stages() == []
    worker.fetch("a", local / "b")
    assert (local / "b").read_bytes() == (local / "a").read_bytes()


def test_no_file_runs_as_the_datastores_user(sshd: Sshd, root: Path, local: Path) -> None:
    path = big_file(local / "a", 10)
    path.chmod(0o6755)
    sshd.boss(root).put(path, "a")
    assert (root / "a").stat().st_mode & 0o7777 == 0o755


def test_a_datastore_that_lists_names_that_lead_out_writes_nothing_there(
    own_sshd: Sshd, root: Path, local: Path
) -> None:
    (root / "tree").mkdir()
    big_file(root / "tree/a", 10)
    lying = own_sshd.gate.read_text().replace(
        "yield [text_of(name)]", "yield [text_of(name).replace('/a', '/../../a')]"
    )
    own_sshd.gate.write_text(lying)
    with pytest.raises(BadName):
        own_sshd.boss(root).fetch("tree", local / "in" / "tree")
    assert os.listdir(local / "in") == []


# --- contents are what they were ----------------------------------------------------------------------


@pytest.mark.parametrize("note", ["kept", "lost"])
def test_a_staged_file_that_changed_is_not_published(sshd: Sshd, root: Path, local: Path, note: str) -> None:
    worker, boss = sshd.worker(root, "w1"), sshd.boss(root)
    entries = worker.store("w1/1-1", big_file(local / "a", 2 * MB), "a")
    staged = root / ".ecloud/staging/w1/1-1/a"
    with staged.open("r+b") as file:
        file.write(b"!")
    if note == "lost" and "user.ecloud.sum" in os.listxattr(staged):
        os.removexattr(staged, "user.ecloud.sum")
    [told] = boss.promote([Promotion("w1/1-1", tuple(entries))])
    assert told is not None
    assert "other contents" in told
    assert boss.listing() == []


def test_a_staged_file_is_published_where_its_sum_was_not_noted(sshd: Sshd, root: Path, local: Path) -> None:
    worker, boss = sshd.worker(root, "w1"), sshd.boss(root)
    entries = worker.store("w1/1-1", big_file(local / "a", 2 * MB), "a")
    staged = root / ".ecloud/staging/w1/1-1/a"
    for name in os.listxattr(staged):
        os.removexattr(staged, name)
    assert boss.promote([Promotion("w1/1-1", tuple(entries))]) == [None]


def test_who_reads_a_file_reads_it_to_its_end_though_it_is_replaced(sshd: Sshd, root: Path, local: Path) -> None:
    worker = sshd.worker(root, "w1")
    publish(sshd, root, big_file(local / "old", 2 * MB), "a")
    [first] = ask(worker._link, {"do": "get", "name": "a", "at": 0, "count": MB, "token": ""})
    publish(sshd, root, big_file(local / "new", 2 * MB), "a")
    future = worker._link.connected().ask({"do": "get", "name": "a", "at": MB, "count": MB, "token": first["token"]})
    _, body = future.result(30)
    assert body == (local / "old").read_bytes()[MB:]
    worker.fetch("a", local / "got")
    assert (local / "got").read_bytes() == (local / "new").read_bytes()


def test_a_file_that_grows_while_it_is_stored_is_stored_as_one_of_its_states(
    sshd: Sshd, root: Path, local: Path
) -> None:
    worker, boss = sshd.worker(root, "w1"), sshd.boss(root)
    path = big_file(local / "a", 4 * MB)
    entries = worker.store("w1/1-1", path, "a")
    with path.open("ab") as file:
        file.write(b"more")
    again = worker.store("w1/1-1", path, "a")
    assert again[0].size == entries[0].size + 4
    assert boss.promote([Promotion("w1/1-1", tuple(again))]) == [None]
    assert (root / "a").read_bytes() == path.read_bytes()


# --- bad weather --------------------------------------------------------------------------------------


def meanwhile(pool: ThreadPoolExecutor, call: Callable[[], _Result]) -> Future[_Result]:
    return pool.submit(call)


def test_an_upload_continues_when_sshd_was_killed_and_is_back(
    own_sshd: Sshd, root: Path, local: Path, pool: ThreadPoolExecutor
) -> None:
    size = 96 * MB
    path = big_file(local / "a", size)
    with CuttingProxy(own_sshd.port) as proxy:
        worker = own_sshd.worker(root, "w1", proxy.port, patience_s=60)
        storing = meanwhile(pool, lambda: worker.store("w1/1-1", path, "a"))
        wait_until(lambda: arrived(root) > 30 * MB, what="a third is there")
        own_sshd.stop()
        had = arrived(root)
        own_sshd.start()
        entries = storing.result(60)
        assert proxy.connections > 1
        assert proxy.passed < size + 25 * MB, f"{had} were there and were sent again"
        worker.close()
    assert own_sshd.boss(root).promote([Promotion("w1/1-1", tuple(entries))]) == [None]
    assert (root / "a").read_bytes() == path.read_bytes()


def test_a_download_continues_when_sshd_was_killed_and_is_back(
    own_sshd: Sshd, root: Path, local: Path, pool: ThreadPoolExecutor
) -> None:
    size = 96 * MB
    big_file(root / "a", size)
    with CuttingProxy(own_sshd.port) as proxy:
        worker = own_sshd.worker(root, "w1", proxy.port, patience_s=60)
        fetching = meanwhile(pool, lambda: worker.fetch("a", local / "a"))
        wait_until(lambda: proxy.passed > 30 * MB, what="a third is here")
        own_sshd.stop()
        assert not (local / "a").exists()
        own_sshd.start()
        assert fetching.result(60) == size
        assert proxy.connections > 1
        assert proxy.passed < size + 25 * MB
        worker.close()
    assert (local / "a").read_bytes() == (root / "a").read_bytes()
    assert os.listdir(local) == ["a"]


def test_an_upload_that_was_given_up_continues_where_it_was(
    own_sshd: Sshd, root: Path, local: Path, pool: ThreadPoolExecutor
) -> None:
    size = 96 * MB
    path = big_file(local / "a", size)
    first = own_sshd.worker(root, "w1", patience_s=0.2)
    storing = meanwhile(pool, lambda: first.store("w1/1-1", path, "a"))
    wait_until(lambda: arrived(root) > 40 * MB, what="a part is there")
    own_sshd.stop()
    with pytest.raises(DatastoreAway):
        storing.result(60)
    assert own_sshd.start().boss(root).stages() == ["w1/1-1"]
    with CuttingProxy(own_sshd.port) as proxy:
        second = own_sshd.worker(root, "w1", proxy.port)
        entries = second.store("w1/1-1", path, "a")
        assert proxy.passed < size - 30 * MB
        second.close()
    assert own_sshd.boss(root).promote([Promotion("w1/1-1", tuple(entries))]) == [None]
    assert (root / "a").read_bytes() == path.read_bytes()
    assert sorted(os.listdir(root / ".ecloud/staging")) == ["w1"]


@pytest.mark.parametrize("by", ["ssh", "directory"])
def test_an_unfinished_upload_is_a_stage_that_is_swept(
    own_sshd: Sshd, root: Path, local: Path, pool: ThreadPoolExecutor, by: str
) -> None:
    worker = own_sshd.worker(root, "w1", patience_s=0.2)
    storing = meanwhile(pool, lambda: worker.store("w1/1-1", big_file(local / "a", 96 * MB), "a"))
    wait_until(lambda: arrived(root) > MB, what="a part is there")
    own_sshd.stop()
    with pytest.raises(DatastoreAway):
        storing.result(60)
    boss = own_sshd.start().boss(root)
    assert boss.stages() == ["w1/1-1"]
    # The boss may as well be on the datastore's own machine.
    on_site = DirectoryDatastore(root)
    assert on_site.stages() == ["w1/1-1"]
    (on_site if by == "directory" else boss).drop_stage("w1/1-1")
    assert boss.stages() == on_site.stages() == []
    assert arrived(root) == 0


def test_an_unreachable_datastore_is_reported_with_its_reason(own_sshd: Sshd, root: Path) -> None:
    worker = own_sshd.worker(root, "w1", patience_s=0.3)
    own_sshd.stop()
    with pytest.raises(DatastoreAway, match="Connection refused"):
        worker.listing()
    own_sshd.start()
    assert worker.listing() == []
    address = SshAddress("nobody", "no-such-host.invalid", 22, "/")
    nowhere = SshDatastore(address, own_sshd.access(root, "w1"), patience_s=0.3)
    with pytest.raises(DatastoreAway, match="resolved"):
        nowhere.listing()
    nowhere.close()


def test_more_connections_than_sshd_takes_at_once_come_in_one_after_the_other(
    tmp_path: Path, root: Path, pool: ThreadPoolExecutor
) -> None:
    server = Sshd(tmp_path / "sshd", "MaxStartups 3:100:3").start()
    try:
        workers = [server.worker(root, f"w{number}", patience_s=60) for number in range(16)]
        assert list(pool.map(lambda worker: worker.listing(), workers)) == [[]] * 16
    finally:
        server.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a small filesystem of its own")
def test_a_full_datastore_is_away_until_there_is_room(sshd: Sshd, root: Path, local: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(root)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this machine does not let a filesystem be mounted")
    worker, boss = sshd.worker(root, "w1"), sshd.boss(root)
    try:
        path = big_file(local / "a", 12 * MB)
        for _ in range(2):
            with pytest.raises(DatastoreAway, match="No space left"):
                worker.store("w1/1-1", path, "a")
        subprocess.run(["mount", "-o", "remount,size=60m", str(root)], check=True)
        entries = worker.store("w1/1-1", path, "a")
        assert boss.promote([Promotion("w1/1-1", tuple(entries))]) == [None]
        assert (root / "a").read_bytes() == path.read_bytes()
    finally:
        worker.close()
        boss.close()
        wait_until(lambda: subprocess.run(["umount", str(root)], capture_output=True, check=False).returncode == 0)


def test_another_host_key_is_refused_loudly(own_sshd: Sshd, root: Path) -> None:
    worker = own_sshd.worker(root, "w1", patience_s=60)
    assert worker.listing() == []
    own_sshd.stop()
    own_sshd.new_host_key()
    own_sshd.start()
    with pytest.raises(DatastoreAway, match="REFUSED: the host key") as told:
        worker.listing()
    assert "set_datastore" in str(told.value)
    assert keys.fingerprint(keys.public_line(own_sshd.host_key)) in str(told.value)
    own_sshd.pin()
    assert worker.listing() == []


# --- access -------------------------------------------------------------------------------------------


def test_an_expired_certificate_opens_nothing(sshd: Sshd, root: Path) -> None:
    worker = sshd.worker(root, "w1", lives_s=-60, patience_s=60)
    with pytest.raises(DatastoreAway, match="not authorised there, or it expired"):
        worker.listing()


def test_a_connection_does_not_outlive_its_certificate_and_continues_with_the_next(sshd: Sshd, root: Path) -> None:
    given: list[Access] = [sshd.access(root, "w1", until_s=time.time() + 2)]
    worker = SshDatastore(sshd.address(root), lambda: given[-1], patience_s=60)
    first = worker.hello()["pid"]
    assert worker.listing() == []
    given.append(sshd.access(root, "w1"))
    wait_until(lambda: worker.listing() == [] and worker.hello()["pid"] != first, what="another connection")
    worker.close()


def test_the_certificate_of_another_authority_or_cluster_opens_nothing(sshd: Sshd, root: Path, tmp_path: Path) -> None:
    command = gate_command("python3", str(sshd.gate), str(root), "worker", "w1")
    key = tmp_path / "key"
    public = keys.make_key(key, "w1")
    others = keys.Authority.make(tmp_path / "authority", "c-test")
    other_cluster = keys.Authority(sshd.authority.key, "ecloud-c-other")
    for authority in (others, other_cluster):
        certificate = tmp_path / "key-cert.pub"
        certificate.write_text(authority.sign(public, "w1", command) + "\n")
        worker = SshDatastore(sshd.address(root), Access(key, sshd.known_hosts, certificate), patience_s=60)
        with pytest.raises(DatastoreAway, match="refuses"):
            worker.listing()
        worker.close()


def test_a_client_reads_and_uploads_and_can_do_nothing_else(sshd: Sshd, root: Path, local: Path) -> None:
    (root / "result").write_text("kept")
    (local / "input").write_text("input")
    client, worker = sshd.client(root), sshd.worker(root, "w1")
    client.put(local / "input", "inputs/a")
    assert (root / "inputs/a").read_text() == "input"
    entries = worker.store("w1/s1", local / "input", "result")
    with pytest.raises(OSError, match="unknown or not allowed"):
        client.remove("result")
    with pytest.raises(OSError, match="unknown or not allowed"):
        client.stages()
    (told,) = client.promote([Promotion("w1/s1", tuple(entries))])
    assert told is not None
    assert "is not put's" in told
    assert (root / "result").read_text() == "kept"


@pytest.mark.parametrize(
    "public", ["", "ssh-ed25519", "ssh-ed25519 AAAA\nssh-ed25519 AAAA", "no key", "ssh-ed25519 -----"]
)
def test_what_is_no_key_is_not_signed(sshd: Sshd, public: str) -> None:
    with pytest.raises((ValueError, keys.KeyToolFailed)):
        sshd.authority.sign(public, "w1", "true")


# --- setting up ---------------------------------------------------------------------------------------


def test_a_machine_is_made_a_datastore_once(own_sshd: Sshd, tmp_path: Path, local: Path) -> None:
    root = tmp_path / "new" / "root with space"
    authorized = tmp_path / "home/.ssh/authorized_keys"
    authorized.parent.mkdir(parents=True)
    authorized.write_text("# no line end")
    host_key = keys.read_host_key(HOST, own_sshd.port)
    assert keys.fingerprint(host_key) == keys.fingerprint(keys.public_line(own_sshd.host_key))
    line = own_sshd.authority.authorized_line()
    for wrote_line in (True, False):
        made = installing.install(own_sshd.address(root), own_sshd.boss_key, host_key, line, str(authorized))
        assert made.python
        assert made.wrote_line == wrote_line
    assert Path(made.gate).read_bytes() == GATE.read_bytes()
    assert authorized.read_text().splitlines() == ["# no line end", line]
    command = gate_command(made.python, made.gate, str(root), "boss")
    boss = SshDatastore(own_sshd.address(root), Access(own_sshd.boss_key, own_sshd.known_hosts, None, command))
    boss.put(big_file(local / "a", 10), "a")
    assert [entry.path for entry in boss.listing(recursive=True)] == ["a"]
    with pytest.raises(BadName):
        boss.put(local / "a", f".ecloud/{Path(made.gate).name}")
    boss.close()


def test_setting_up_refuses_another_host_key(own_sshd: Sshd, root: Path, tmp_path: Path) -> None:
    other = keys.make_key(tmp_path / "other", "other")
    with pytest.raises(DatastoreAway, match="REFUSED"):
        installing.install(own_sshd.address(root), own_sshd.boss_key, other, "line", str(tmp_path / "file"))
    host_key = keys.read_host_key(HOST, own_sshd.port)
    with pytest.raises(DatastoreAway, match="does not accept the boss's key"):
        installing.install(own_sshd.address(root), tmp_path / "other", host_key, "line", str(tmp_path / "file"))


def test_the_gate_is_one_file_of_an_old_python() -> None:
    tree = ast.parse(GATE.read_text(), feature_version=(3, 6))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "datastore" not in {name.split(".")[0] for name in names}
    for python in ("python3.6", "python3.7", "python3.8", "python3.9"):
        path = shutil.which(python)
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            done = subprocess.run([path, "-IS", str(GATE)], capture_output=True, text=True, check=False)
            assert "usage" in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("me@host:/data", SshAddress("me", "host", 22, "/data")),
        ("me@host.example.org:2222:/data/x/", SshAddress("me", "host.example.org", 2222, "/data/x")),
        ("me@[fe80::1]:2222:/d", SshAddress("me", "fe80::1", 2222, "/d")),
    ],
)
def test_addresses_are_read(text: str, expected: SshAddress) -> None:
    assert SshAddress.parse(text) == expected
    assert SshAddress.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "host:/x", "me@host", "me@host:x", "-o@host:/x", "me@-oProxyCommand=x:/x", "me@host:99999:/x", "a@b:/x/../y"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="datastore"):
        SshAddress.parse(text)
