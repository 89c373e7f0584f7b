"""The boss's connection to a datastore over SSH, an OpenSSH process: bad links, and what it says when it ends."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from cutting_proxy import CuttingProxy
from services import wait_until
from sshd import Sshd, big_file

from boss.shell.storage import Storage
from datastore import keys
from datastore.directory import DirectoryDatastore
from datastore.gate import HEAD, MAGIC, VERSION
from datastore.port import DatastoreAway, Promotion
from datastore.ssh.access import Access, SshAddress, gate_command
from datastore.ssh.datastore import SshDatastore
from ecloud.config.datastore_address import authority, boss_key
from ecloud.config.home import Home

MB = 1 << 20


@pytest.fixture
def opened() -> Iterator[Callable[..., SshDatastore]]:
    """The boss's datastore with this access, closed with the test."""
    made: list[SshDatastore] = []

    def open_it(address: SshAddress, access: Access, patience_s: float = 0.3, stall_s: float = 60.0) -> SshDatastore:
        made.append(SshDatastore(address, access, patience_s=patience_s, stall_s=stall_s))
        return made[-1]

    yield open_it
    for datastore in made:
        datastore.close()


def boss_access(server: Sshd, root: Path) -> Access:
    gate = gate_command(sys.executable, str(server.gate), str(root), "boss")
    return Access(server.boss_key, server.known_hosts, gate=gate)


# --- bad weather --------------------------------------------------------------------------------------


def test_a_link_that_is_cut_again_and_again_brings_everything(own_sshd: Sshd, root: Path, local: Path) -> None:
    path = big_file(local / "a", 12 * MB)
    with CuttingProxy(own_sshd.port, cut_every=5 * MB) as proxy:
        boss = own_sshd.boss(root, proxy.port, patience_s=60)
        boss.put(path, "a")
        before = proxy.connections
        assert before > 3
        boss.fetch("a", local / "b")
        assert proxy.connections > before + 2
        boss.close()
    assert (local / "b").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_link_that_stalls_is_made_again(
    own_sshd: Sshd, root: Path, local: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datastore.ssh.connection.SLOWEST", 100 * MB)
    path = big_file((local if way == "up" else root) / "a", 12 * MB)
    with CuttingProxy(own_sshd.port, stall_after=4 * MB) as proxy:
        boss = own_sshd.boss(root, proxy.port, stall_s=2.0, patience_s=60)
        if way == "up":
            boss.put(path, "a")
        else:
            boss.fetch("a", local / "a")
        assert proxy.stalled.is_set()
        boss.close()
    assert (local / "a").read_bytes() == (root / "a").read_bytes()


def test_a_link_that_is_silent_from_the_start_is_given_up(
    own_sshd: Sshd, root: Path, opened: Callable[..., SshDatastore]
) -> None:
    with CuttingProxy(own_sshd.port) as proxy:
        proxy.hold()
        boss = opened(own_sshd.address(root, proxy.port), boss_access(own_sshd, root), stall_s=1.0)
        with pytest.raises(DatastoreAway, match="stalled: nothing moved for 1 s"):
            boss.listing()
        boss.close()


def test_a_promotion_continues_when_sshd_was_killed_and_is_back(
    own_sshd: Sshd, root: Path, local: Path, pool: ThreadPoolExecutor
) -> None:
    for number in range(1_000):
        (local / f"{number:04d}").write_bytes(b"%d" % number)
    entries = DirectoryDatastore(root).store("w1/1-1", local, "out")
    boss = own_sshd.boss(root, patience_s=60)
    assert boss.listing() == []
    told = pool.submit(boss.promote, [Promotion("w1/1-1", tuple(entries))])
    own_sshd.stop()
    assert not told.done() or told.result() == [None]
    own_sshd.start()
    assert told.result(60) == [None]
    assert sorted(os.listdir(root / "out")) == sorted(os.listdir(local))
    assert boss.stages() == []


def test_many_threads_share_one_connection_and_lose_it_together(
    own_sshd: Sshd, root: Path, pool: ThreadPoolExecutor
) -> None:
    for number in range(200):
        (root / f"{number}").write_bytes(b"x" * number)
    with CuttingProxy(own_sshd.port) as proxy:
        boss = own_sshd.boss(root, proxy.port, patience_s=60)

        def look(number: int) -> int:
            if number == 100:
                own_sshd.cut()
            [entry] = boss.stat([f"{number}"])
            assert entry is not None
            return entry.size

        assert list(pool.map(look, range(200))) == list(range(200))
        assert proxy.connections == 2
        boss.close()


# --- what it says -------------------------------------------------------------------------------------


def test_a_machine_that_is_away_is_named_with_the_reason(
    own_sshd: Sshd, root: Path, opened: Callable[..., SshDatastore]
) -> None:
    boss = opened(own_sshd.address(root), boss_access(own_sshd, root))
    own_sshd.stop()
    with pytest.raises(DatastoreAway, match=f"the datastore .*{own_sshd.port}:.*: .*Connection refused"):
        boss.listing()
    own_sshd.start()
    assert boss.listing() == []
    nowhere = opened(SshAddress("nobody", "no-such-host.invalid", 22, "/"), boss_access(own_sshd, root))
    with pytest.raises(
        DatastoreAway, match=r"the name of the datastore nobody@no-such-host\.invalid:/ cannot be resolved"
    ):
        nowhere.listing()


def test_another_host_key_is_refused_loudly_and_for_good(own_sshd: Sshd, root: Path) -> None:
    boss = own_sshd.boss(root, patience_s=60)
    assert boss.listing() == []
    own_sshd.stop()
    own_sshd.new_host_key()
    own_sshd.start()
    with pytest.raises(DatastoreAway, match=r"REFUSED: the host key of .* --new_host_key") as told:
        boss.listing()
    assert keys.fingerprint(keys.public_line(own_sshd.host_key)) in str(told.value)
    own_sshd.pin()
    assert boss.listing() == []


def test_a_host_key_of_another_kind_is_refused_as_well(own_sshd: Sshd, root: Path) -> None:
    own_sshd.stop()
    own_sshd.host_key.unlink()
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(own_sshd.host_key)], check=True, input=b"y\n"
    )
    own_sshd.start()
    with pytest.raises(DatastoreAway, match=r"REFUSED: the host key of .* --new_host_key"):
        own_sshd.boss(root, patience_s=60).listing()
    own_sshd.pin()
    assert own_sshd.boss(root).listing() == []


def test_a_key_that_is_not_authorised_is_not_tried_again(
    own_sshd: Sshd, root: Path, tmp_path: Path, opened: Callable[..., SshDatastore]
) -> None:
    other = tmp_path / "other"
    keys.make_key(other, "other")
    with CuttingProxy(own_sshd.port) as proxy:
        access = Access(other, own_sshd.known_hosts, gate="gate")
        boss = opened(own_sshd.address(root, proxy.port), access, patience_s=60)
        with pytest.raises(DatastoreAway, match="refuses this key or certificate: it is not authorised there"):
            boss.listing()
        assert proxy.connections == 1
        boss.close()


def test_a_datastore_without_its_gate_says_what_to_do(
    own_sshd: Sshd, root: Path, opened: Callable[..., SshDatastore]
) -> None:
    boss = opened(own_sshd.address(root), boss_access(own_sshd, root), patience_s=60)
    own_sshd.gate.unlink()
    with pytest.raises(DatastoreAway, match=r"has no gate or no python3 .*set_datastore"):
        boss.listing()


def test_a_shell_that_prints_at_login_does_no_harm(sshd: Sshd, root: Path, opened: Callable[..., SshDatastore]) -> None:
    access = boss_access(sshd, root)
    noisy = Access(access.key, access.known_hosts, gate=f"echo Welcome; echo to all >&2; {access.gate}")
    assert opened(sshd.address(root), noisy).listing() == []


def test_what_speaks_no_frames_is_a_connection_that_ended(
    sshd: Sshd, root: Path, opened: Callable[..., SshDatastore], pool: ThreadPoolExecutor
) -> None:
    hello = f'{{"gate":{VERSION}}}'
    spoken = MAGIC + HEAD.pack(len(hello), 0) + hello.encode() + HEAD.pack(1, 0) + b"1"
    code = f"import os,sys; os.write(1, {spoken!r}); sys.stdin.buffer.read()"  # until the connection ends
    access = Access(sshd.boss_key, sshd.known_hosts, gate=shlex.join(["exec", sys.executable, "-c", code]))
    boss = opened(sshd.address(root), access)
    told = pool.submit(boss.listing).exception(60)
    assert isinstance(told, DatastoreAway)
    assert "the connection was cut" in str(told)


def test_threads_do_not_wait_for_a_gate_that_never_speaks(
    sshd: Sshd, root: Path, opened: Callable[..., SshDatastore]
) -> None:
    access = Access(sshd.boss_key, sshd.known_hosts, gate="exec cat > /dev/null")  # it reads, until the connection ends
    boss = opened(sshd.address(root), access, stall_s=2.0, patience_s=0.5)
    before = threading.active_count()
    with pytest.raises(DatastoreAway, match="stalled"):
        boss.listing()
    boss.close()
    assert threading.active_count() <= before


# --- processes ----------------------------------------------------------------------------------------


def test_the_boss_keeps_one_connection_until_it_goes_elsewhere(own_sshd: Sshd, root: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    storage = Storage(home, "c0ffee")
    line = authority(home, "c0ffee").authorized_line()
    with own_sshd.authorized_keys.open("a") as file:
        file.write(f"{keys.public_line(boss_key(home))}\n{line}\n")
    (root / "a").write_text("here")
    storage.use(str(own_sshd.address(root)), keys.public_line(own_sshd.host_key), sys.executable, str(own_sshd.gate))
    assert isinstance(storage.publisher, SshDatastore)
    for _ in range(3):
        assert [entry.path for entry in storage.publisher.listing()] == ["a"]
    assert own_sshd.process is not None
    serving = psutil.Process(own_sshd.process.pid)
    assert len(serving.children()) == 1
    storage.use(str(tmp_path / "elsewhere"))
    wait_until(lambda: serving.children() == [], what="the connection to the former datastore is closed")
    assert [child for child in psutil.Process().children() if child.name() == "ssh"] == []


def test_a_process_that_opens_no_shell_on_another_machine_loads_no_fabric() -> None:
    code = "import sys, boss.shell.storage, boss.bootstrap.visit, datastore.ssh.installing\n"
    code += "assert not {'fabric', 'paramiko'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
