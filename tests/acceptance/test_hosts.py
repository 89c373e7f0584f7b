"""Hosts with sshd as a cloud: one list of hosts in the settings, on which workers start and end with the work."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doors import Doors, ended
from pages import Page, type_all
from services import HOST, Daemon, wait_until
from sshd import Sshd, bare

from boss.bootstrap.bundle import Bundles
from boss.providers.provider import CloudState, TryLater, VmOrder
from boss.providers.ssh_hosts import Shell, SshHosts
from ecloud.config.secrets import AccessFile

pytestmark = pytest.mark.timeout(300)
SIZE = {"cpus": 1.0, "memory_mb": 200.0, "gpus": 0.0}


class Lab:
    """Hosts: each an sshd of its own with a home of its own. One key opens all."""

    def __init__(self, directory: Path, count: int = 3) -> None:
        self.directory = directory
        self.servers = [Sshd(directory / f"host{number}").start() for number in range(count)]
        for server in self.servers:
            self.admit(server)
        self.ssh_options = (
            "-F", "none", "-i", str(self.servers[0].boss_key), "-o", "IdentitiesOnly=yes",
            "-o", f"UserKnownHostsFile={directory}/known_hosts",
        )  # fmt: skip

    def admit(self, server: Sshd) -> None:
        """Let the lab's key in."""
        server.authorized_keys.write_text(self.servers[0].boss_key.with_suffix(".pub").read_text())

    def address(self, server: Sshd) -> str:
        """As a pool lists it."""
        return f"{getpass.getuser()}@{HOST}:{server.port}"

    @property
    def hosts(self) -> list[str]:
        return [self.address(server) for server in self.servers]

    def pool(self, **fields: Any) -> dict[str, Any]:
        """Of all hosts."""
        named = {"name": "lab", "provider": "ssh_hosts", "hosts": self.hosts, "cpus": 1, "memory_mb": 200}
        return {**named, "ssh_options": self.ssh_options, **fields}

    def provider(self, cluster_id: str = "c1", hosts: list[str] | None = None) -> SshHosts:
        """As a boss has it."""
        return SshHosts(
            Shell(self.ssh_options), cluster_id, hosts or self.hosts, 1,
            lambda name: AccessFile(cluster_id, HOST, 1, name, "00" * 32),
            Bundles(self.directory.parents[1] / "bundles"),
        )  # fmt: skip

    def workers(self) -> dict[Path, int]:
        """Living workers by their directories on the hosts."""
        found = {}
        for server in self.servers:
            for process in server.directory.glob(".ecloud-hosts/*/vm-*/process"):
                pid = int(process.read_text().split()[0])
                with contextlib.suppress(OSError):
                    if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        found[process.parent] = pid
        return found

    def end(self) -> None:
        for pid in self.workers().values():
            os.kill(pid, signal.SIGKILL)
        for server in self.servers:
            server.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    yield made
    made.end()


def order(vm_no: int = 1) -> VmOrder:
    return VmOrder(vm_no, "lab", SIZE, f"1-{vm_no}")


def test_workers_come_to_the_hosts_with_work_and_go_when_it_is_done(
    lab: Lab, daemons: Callable[..., Daemon], tmp_path: Path
) -> None:
    doors = Doors(tmp_path / "place", daemons(POOLS=[lab.pool()], IDLE_VM_S=1.0, VM_BOOT_S=100.0).start())
    tasks = [{"id": f"t{number}", "commands": "sleep 0.3; echo $PYTHONPATH > r", "results": [["r", f"r{number}"]]}
             for number in range(40)]  # fmt: skip
    done = doors.push(doors.write("t.json", tasks), "--wait")
    assert "40 succeeded" in done.out
    assert 1 <= len(doors.admin("show_vms", "--all", "--json").json) <= 3
    assert doors.daemon is not None
    assert (doors.daemon.home.datastore / "r0").read_text() == "\n", "a task sees nothing of our Python"
    wait_until(lambda: lab.workers() == {}, 100, "the workers leave")


def test_a_boss_that_is_killed_finds_its_workers_again(
    lab: Lab, daemons: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = daemons(POOLS=[lab.pool(maximum=1)], VM_BOOT_S=100.0).start()
    doors = Doors(tmp_path / "place", daemon)
    gate = tmp_path / "gate"
    doors.push(doors.write("t.json", [{"id": "t", "commands": f"while [ ! -e '{gate}' ]; do sleep 0.1; done"}]))
    wait_until(lambda: doors.admin("show_task_status", "t", "--json").json["state"] == "running", 100)
    before = lab.workers()
    assert len(before) == 1
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()
    daemon.start()
    gate.write_text("")
    assert ended(doors, "t") == {"t": "succeeded"}
    assert lab.workers() in (before, {}), "no other worker took its place"
    doors.admin("stop", "--vms")
    assert lab.workers() == {}


# --- the provider alone -------------------------------------------------------------------------------


def test_a_host_that_is_away_holds_up_no_other_and_is_adopted_when_it_is_back(lab: Lab) -> None:
    mine = lab.provider()
    ids = {mine.start(order(vm_no)): vm_no for vm_no in (1, 2, 3)}
    first, *others = ids
    away = next(server for server in lab.servers if first.startswith(lab.address(server)))
    away.stop()
    states = {vm.cloud_id: vm for vm in mine.list(ids)}
    assert states[first].state is CloudState.HIDDEN
    assert "refused" in states[first].text
    assert {states[cloud_id].state for cloud_id in others} == {CloudState.RUNNING}
    assert "Connection refused" in lab.provider().room().reason
    away.start()
    assert {vm.state for vm in mine.list(ids)} == {CloudState.RUNNING}
    assert list(mine.end_all(60)) == []


def test_a_host_that_can_not_work_is_named_and_the_next_one_is_taken(lab: Lab, tmp_path: Path) -> None:
    without_python = bare(tmp_path / "bare").start()
    lab.admit(without_python)
    closed = Sshd(tmp_path / "closed").start()  # does not know the lab's key
    try:
        bad = [lab.address(without_python), lab.address(closed)]
        with pytest.raises(TryLater) as told:
            lab.provider("c2", bad).start(order())
        assert "it has no Python; ECLOUD needs 3.10 or later: install one" in str(told.value)
        with pytest.raises(TryLater, match="Permission denied"):
            lab.provider("c2", bad[1:]).room()
        good = lab.provider("c2", [*bad, lab.hosts[0]])
        assert good.start(order()).startswith(lab.hosts[0])
        assert list(lab.provider("c2").end_all(60)) == []
    finally:
        without_python.close()
        closed.close()


def test_a_start_that_is_made_twice_makes_one_worker(lab: Lab) -> None:
    """The answer was lost, and the same script runs again."""
    mine = lab.provider("c3", lab.hosts[:1])
    cloud_id = mine.start(order(5))
    again = lab.provider("c3", lab.hosts[:1])
    assert again._start_on(lab.hosts[0], order(5)) == cloud_id
    assert [(vm.vm_no, vm.cloud_id) for vm in again.list(lost={5: "1-5"})] == [(5, cloud_id)]
    assert len(lab.workers()) == 1
    assert list(again.end_all(60)) == []


@pytest.mark.long
def test_the_hosts_page_does_what_it_shows(lab: Lab, daemons: Callable[..., Daemon], tmp_path: Path) -> None:
    page = Page("docs/hosts.md", "A pool that starts workers when tasks wait")
    daemon = daemons()
    settings = page.marked("settings")
    for shown, real in zip(("anna@host1", "anna@host2:2222", "host3"), lab.hosts):
        assert shown in settings
        settings = settings.replace(shown, real)
    settings = settings.replace('["-i", "/home/anna/.ssh/lab"]', repr(lab.ssh_options))
    settings = settings.replace('"anna@files:/srv/ecloud"', repr(str(tmp_path / "shared")))
    (tmp_path / "shared").mkdir()
    daemon.settings_file.write_text(daemon.settings_file.read_text() + settings)
    doors = Doors(tmp_path / "place", daemon)
    try:
        type_all(page, doors.place, doors.environment)
        assert lab.workers() == {}
    finally:
        doors.admin("stop", "--vms", code=None)
