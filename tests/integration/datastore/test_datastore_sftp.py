"""The datastore by SFTP alone in bad weather: what is cut goes on, what is torn is never published, and what a worker's
certificate opens there. The rest of its promises are those of every datastore: tests/contract."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cutting_proxy import CuttingProxy
from services import HOST
from sshd import Sshd, big_file

from datastore import keys
from datastore.port import DatastoreAway, Promotion
from datastore.sftp import SftpDatastore
from datastore.ssh import installing
from datastore.ssh.datastore import Access, Carry, by_process, sftp_command, ssh_command
from datastore.ssh.fabric_carrier import by_fabric

MB = 1 << 20
STAGE = "w1/1-1"


@pytest.fixture(params=["bare_sshd", "sftp_sshd"])
def server(request: pytest.FixtureRequest) -> Sshd:
    """With a shell that has sha256sum, and without a shell."""
    found: Sshd = request.getfixturevalue(request.param)
    return found


def test_a_cut_upload_goes_on_where_it_was(server: Sshd, root: Path, local: Path) -> None:
    size = 24 * MB
    path = big_file(local / "big", size)
    with CuttingProxy(server.port, cut_every=7 * MB) as proxy:
        worker = server.worker_by_sftp(root, "w1", proxy.port, patience_s=60)
        entries = worker.store(STAGE, path, "out/big")
        worker.close()
        assert proxy.connections >= 3
        assert proxy.passed < 2 * size, "what had arrived was not sent again"
    assert entries[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert server.boss_by_sftp(root).promote([Promotion(STAGE, tuple(entries))]) == [None]
    assert (root / "out/big").read_bytes() == path.read_bytes()


def test_a_cut_download_goes_on_where_it_was(server: Sshd, root: Path, local: Path) -> None:
    size = 24 * MB
    (root / "tree").mkdir()
    big_file(root / "tree/big", size)
    for number in range(300):
        (root / f"tree/{number}").write_text(str(number))
    with CuttingProxy(server.port, cut_every=7 * MB) as proxy:
        worker = server.worker_by_sftp(root, "w1", proxy.port, patience_s=60)
        assert worker.fetch("tree", local / "tree") > size
        worker.close()
        assert proxy.connections >= 3
        assert proxy.passed < 2 * size, "what had arrived was not fetched again"
    assert (local / "tree/big").read_bytes() == (root / "tree/big").read_bytes()
    assert {(local / f"tree/{number}").read_text() for number in range(300)} == {str(number) for number in range(300)}


@pytest.mark.parametrize("size", [10, 3 * MB])
def test_what_is_torn_in_its_stage_is_never_published(server: Sshd, root: Path, local: Path, size: int) -> None:
    boss = server.boss_by_sftp(root)
    good = boss.store("w1/1-1", big_file(local / "good", size), "out/good")
    torn = boss.store("w1/2-1", big_file(local / "torn", size), "out/torn")
    with (root / ".ecloud/staging/w1/2-1/out/torn").open("r+b") as file:
        file.seek(size // 2)
        byte = file.read(1)[0]
        file.seek(size // 2)
        file.write(bytes([byte ^ 1]))
    told = boss.promote([Promotion("w1/2-1", tuple(torn)), Promotion("w1/1-1", tuple(good))])
    assert told[0] is not None
    assert "other contents" in told[0]
    assert told[1] is None
    assert [path.name for path in (root / "out").iterdir()] == ["good"]
    # Stored again it is published.
    again = boss.store("w1/2-1", local / "torn", "out/torn")
    assert boss.promote([Promotion("w1/2-1", tuple(again))]) == [None]


def test_a_promotion_that_was_killed_is_carried_through(server: Sshd, root: Path, local: Path) -> None:
    boss = server.boss_by_sftp(root)
    names = [f"out/{number}" for number in range(40)]
    entries = []
    for name in names:
        entries += boss.store(STAGE, big_file(local / "file", 1000), name)
    (root / "out").mkdir()
    for name in names[:17]:  # so far it came
        os.rename(root / ".ecloud/staging" / STAGE / name, root / name)
    assert boss.promote([Promotion(STAGE, tuple(entries))]) == [None]
    assert {f"out/{name}" for name in os.listdir(root / "out")} == set(names)
    assert boss.stages() == []


def test_a_name_that_is_no_utf_8_is_a_name(bare_sshd: Sshd, root: Path, local: Path) -> None:
    (root / "tree").mkdir()
    odd = os.fsencode(root / "tree") + b"/\xff\xfe"
    with open(odd, "wb") as file:
        file.write(b"odd")
    boss = bare_sshd.boss_by_sftp(root)
    [entry] = boss.listing("tree")
    assert os.fsencode(entry.path) == b"tree/\xff\xfe"
    boss.fetch("tree", local / "tree")
    assert os.listdir(os.fsencode(local / "tree")) == [b"\xff\xfe"]


@pytest.mark.parametrize("carry", [by_fabric, by_process])
def test_a_server_that_goes_silent_is_told(bare_sshd: Sshd, root: Path, local: Path, carry: Carry) -> None:
    with CuttingProxy(bare_sshd.port, stall_after=300_000) as proxy:
        boss = bare_sshd.boss_by_sftp(root, proxy.port, stall_s=1.0, patience_s=30, carry=carry)
        boss.put(big_file(local / "a", 600_000), "a")
        assert proxy.connections >= 2
        proxy.hold()
        boss = bare_sshd.boss_by_sftp(root, proxy.port, stall_s=0.3, patience_s=0.3, carry=carry)
        with pytest.raises(DatastoreAway, match="stalled"):
            boss.listing()
        boss.close()


@pytest.mark.parametrize("carry", [by_fabric, by_process])
def test_a_machine_that_is_gone_is_away_and_another_host_key_is_refused(
    own_bare_sshd: Sshd, root: Path, carry: Carry
) -> None:
    boss = own_bare_sshd.boss_by_sftp(root, patience_s=0.3, carry=carry)
    boss.stat(["a"])
    own_bare_sshd.stop()
    with pytest.raises(DatastoreAway):
        boss.stat(["a"])
    own_bare_sshd.new_host_key()
    own_bare_sshd.start()
    with pytest.raises(DatastoreAway, match="REFUSED: the host key"):
        boss.stat(["a"])
    boss.close()


@pytest.mark.parametrize("command", ["id", "exec /bin/sh", "cat /etc/passwd"])
def test_a_workers_certificate_opens_sftp_and_no_shell(bare_sshd: Sshd, root: Path, command: str) -> None:
    worker = bare_sshd.worker_by_sftp(root, "w1")
    worker.hello()
    access = Access(bare_sshd.directory / "key-w1", bare_sshd.known_hosts, bare_sshd.directory / "key-w1-cert.pub")
    address = bare_sshd.address(root)
    words = ssh_command(address, Access(access.key, access.known_hosts, access.certificate, command))
    done = subprocess.run(words, capture_output=True, timeout=30, stdin=subprocess.DEVNULL)
    assert b"uid=" not in done.stdout
    assert b"root:" not in done.stdout
    assert done.returncode != 0
    aside = shutil.copy(access.key, bare_sshd.directory / "key-alone")  # ssh takes a certificate that lies beside
    without = sftp_command(address, Access(Path(aside), access.known_hosts))
    assert subprocess.run(without, capture_output=True, timeout=30, stdin=subprocess.DEVNULL).returncode == 255


@pytest.mark.parametrize(("kind", "has_shell"), [("bare_sshd", True), ("sftp_sshd", False)])
def test_a_machine_without_python_is_made_a_datastore(
    kind: str, has_shell: bool, request: pytest.FixtureRequest, tmp_path: Path, local: Path
) -> None:
    server: Sshd = request.getfixturevalue(kind)
    root = tmp_path / "root with space"
    root.mkdir()
    authorized = tmp_path / "authorized_keys"
    authorized.write_text("# no line end")
    host_key = keys.read_host_key(HOST, server.port)
    line = server.authority.authorized_line()
    for _ in range(2):
        made = installing.install(server.address(root), server.boss_key, host_key, line, str(authorized))
        assert (made.python, made.gate, made.has_shell) == ("", "", has_shell)
        assert made.is_authorised
    assert authorized.read_text().splitlines() == ["# no line end", line]
    boss: SftpDatastore = server.boss_by_sftp(root)
    boss.put(big_file(local / "a", 10), "a")
    assert [entry.path for entry in boss.listing(recursive=True)] == ["a"]
