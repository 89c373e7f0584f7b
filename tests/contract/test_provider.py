"""What every cloud promises (boss/providers/provider.py): local processes, an OpenNebula, Slurm, and listed hosts."""

from __future__ import annotations

import contextlib
import getpass
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from opennebula_double import OpenNebula
from services import HOST, ROOT, free_port, wait_until
from slurm import Slurm
from sshd import Sshd

from boss.bootstrap.bundle import Bundles
from boss.core.model.cloud_vms import boot_nonce
from boss.providers.local import LocalCloud
from boss.providers.opennebula.provider import Connection, OpenNebulaCloud
from boss.providers.opennebula.transport import Endpoint
from boss.providers.provider import Capacity, CloudState, Gone, Provider, TryLater, VmFound, VmOrder
from boss.providers.slurm import Commands, SlurmCloud
from boss.providers.slurm_jobs import JobOptions
from boss.providers.ssh_hosts import Shell, SshHosts
from ecloud.config.home import Home
from ecloud.config.secrets import AccessFile

SIZE = {"cpus": 1.0, "memory_mb": 100.0, "gpus": 0.0}


class LocalKind:
    """Processes of this machine."""

    address = "127."

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = free_port()

    def provider(self, cluster_id: str) -> Provider:
        """A boss's cloud, new at each of its starts."""
        home = Home(self._directory / cluster_id).make()
        return LocalCloud(home, lambda name: access(cluster_id, name, self._port), tied=False, boss_gone_exit_s=120)

    def agents(self, cloud_id: str) -> list[int]:
        """Processes of workers in that VM."""
        pid = int(cloud_id.partition(":")[0])
        return [pid] if Path(f"/proc/{pid}/cmdline").exists() else []

    def end(self) -> None:
        """End all that a test has left."""
        for cluster_id in ("one", "two"):
            if (self._directory / cluster_id).exists():
                self.provider(cluster_id).end_all(20)


class OpenNebulaKind:
    """VMs of the double."""

    address = "127."

    def __init__(self, directory: Path) -> None:
        self.double = OpenNebula(directory / "cloud").start()
        self.double.add_worker_template()
        self._port = free_port()

    def provider(self, cluster_id: str) -> Provider:
        """A boss's cloud, new at each of its starts."""
        connection = Connection(Endpoint(self.double.url, "alice", "PASSWORD"))
        return OpenNebulaCloud(
            connection, cluster_id, "worker", lambda name: access(cluster_id, name, self._port), boss_gone_exit_s=120
        )

    def agents(self, cloud_id: str) -> list[int]:
        """Processes of workers in that VM."""
        guest = self.double.vms[int(cloud_id)].guest
        return list(guest.agents()) if guest is not None else []

    def end(self) -> None:
        """End all that a test has left."""
        self.double.end()


class SlurmKind:
    """Jobs of a real Slurm."""

    address = "localhost"

    def __init__(self, slurm: Slurm) -> None:
        self._slurm = slurm
        self._port = free_port()
        self.backlog = 10

    def provider(self, cluster_id: str) -> Provider:
        """A boss's cloud, new at each of its starts."""
        options = JobOptions(sys.executable, str(ROOT), time_limit="10", boss_gone_exit_s=120)
        return SlurmCloud(
            Commands(), cluster_id, options, lambda name: access(cluster_id, name, self._port), self.backlog
        )

    def agents(self, cloud_id: str) -> list[int]:
        """Processes of workers in that job."""
        return self._slurm.agents(cloud_id)

    def end(self) -> None:
        """End all that a test has left."""
        for cluster_id in ("one", "two"):
            self.provider(cluster_id).end_all(20)


class HostsKind:
    """Three hosts, each an sshd of its own with a home of its own."""

    address = "127."

    def __init__(self, directory: Path) -> None:
        self._port = free_port()
        self._bundles = Bundles(directory.parent / "bundles")  # made once for all tests
        self.servers = [Sshd(directory / f"host{number}").start() for number in range(3)]
        for server in self.servers:
            server.authorized_keys.write_text(self.servers[0].boss_key.with_suffix(".pub").read_text())
        self.options = (
            "-F", "none", "-i", str(self.servers[0].boss_key), "-o", "IdentitiesOnly=yes",
            "-o", f"UserKnownHostsFile={directory}/known_hosts",
        )  # fmt: skip

    def host(self, number: int) -> str:
        """As a pool lists it."""
        return f"{getpass.getuser()}@{HOST}:{self.servers[number].port}"

    def provider(self, cluster_id: str) -> Provider:
        """A boss's cloud, new at each of its starts."""
        hosts = [self.host(number) for number in range(3)]
        return SshHosts(
            Shell(self.options), cluster_id, hosts, 2, lambda name: access(cluster_id, name, self._port), self._bundles,
            120,
        )  # fmt: skip

    def agents(self, cloud_id: str) -> list[int]:
        """Processes of workers in that VM."""
        host, _, vm_no = cloud_id.rpartition("#")
        [server] = [server for server in self.servers if host.endswith(f":{server.port}")]
        for process in server.directory.glob(f".ecloud-hosts/*/vm-{vm_no}/process"):
            pid = int(process.read_text().split()[0])
            if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
                return [pid]
        return []

    def end(self) -> None:
        """End all that a test has left."""
        try:
            for cluster_id in ("one", "two"):
                self.provider(cluster_id).end_all(40)
        finally:
            for server in self.servers:
                server.close()


Kind = LocalKind | OpenNebulaKind | SlurmKind | HostsKind


def access(cluster_id: str, key_name: str, port: int) -> AccessFile:
    """For a broker that is not there: the agent waits for it."""
    return AccessFile(cluster_id, HOST, port, key_name, "00" * 32)


@pytest.fixture(params=[LocalKind, OpenNebulaKind, SlurmKind, HostsKind], ids=["local", "opennebula", "slurm", "hosts"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    made = request.param(tmp_path if request.param is not SlurmKind else request.getfixturevalue("slurm"))
    yield made
    made.end()


@pytest.fixture
def cloud(kind: Kind) -> Provider:
    return kind.provider("one")


def order(vm_no: int, epoch: int = 1) -> VmOrder:
    return VmOrder(vm_no, "pool", SIZE, boot_nonce(epoch, vm_no), ("fast",))


def listed(cloud: Provider) -> dict[int, str]:
    return {vm.vm_no: vm.cloud_id for vm in cloud.list() if vm.state is not CloudState.GONE}


def end(cloud: Provider, cloud_id: str) -> None:
    """As the boss does: asked again until the list confirms it."""

    def gone() -> bool:
        try:
            cloud.end(cloud_id)
        except TryLater:
            return False
        return cloud_id not in listed(cloud).values()

    wait_until(gone, what="the VM ends")


# --- start and list -------------------------------------------------------------------------------


def test_an_empty_cloud_lists_nothing(cloud: Provider) -> None:
    assert list(cloud.list()) == []
    assert list(cloud.strangers()) == []


def test_what_was_started_is_listed_by_its_intent_from_then_on(cloud: Provider) -> None:
    ids = {vm_no: cloud.start(order(vm_no)) for vm_no in (3, 7)}
    assert listed(cloud) == ids
    assert len(set(ids.values())) == 2


def test_a_vm_becomes_a_worker(cloud: Provider, kind: Kind) -> None:
    cloud_id = cloud.start(order(1))
    (pid,) = wait_until(lambda: kind.agents(cloud_id), what="an agent in the VM")

    def command() -> str:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()

    wait_until(lambda: "-m worker" in command())
    words = command()
    for words_wanted in ("--vm_no 1 ", "--boot_nonce 1-1 ", "--cpus 1 ", "--memory_mb 100 ", "--label fast "):
        assert words_wanted in words + " "


def test_the_list_tells_state_address_and_since_when(cloud: Provider, kind: Kind) -> None:
    before = time.time()
    cloud_id = cloud.start(order(1))

    def running() -> VmFound | None:
        return next((vm for vm in cloud.list() if vm.state is CloudState.RUNNING), None)

    vm = wait_until(running, what="the VM runs")
    assert (vm.vm_no, vm.cloud_id) == (1, cloud_id)
    assert vm.address.startswith(kind.address)
    assert before - 5 <= vm.since <= time.time() + 5
    assert vm.cloud_state


def test_a_boss_that_starts_again_finds_them_all(cloud: Provider, kind: Kind) -> None:
    ids = {vm_no: cloud.start(order(vm_no)) for vm_no in (1, 2)}
    again = kind.provider("one")
    assert listed(again) == ids
    end(again, ids[1])
    assert listed(cloud) == {2: ids[2]}


def test_another_cluster_s_vms_are_its_own(cloud: Provider, kind: Kind) -> None:
    other = kind.provider("two")
    theirs = other.start(order(1))
    assert listed(cloud) == {}
    ours = cloud.start(order(1))
    end(cloud, ours)
    assert listed(other) == {1: theirs}


# --- end ------------------------------------------------------------------------------------------


def test_an_ended_vm_leaves_the_list_and_so_does_its_agent(cloud: Provider, kind: Kind) -> None:
    cloud_id = cloud.start(order(1))
    wait_until(lambda: kind.agents(cloud_id), what="an agent in the VM")
    end(cloud, cloud_id)
    assert kind.agents(cloud_id) == []


def test_a_known_vm_that_is_gone_is_reported_with_its_times_while_it_is_asked_about(cloud: Provider) -> None:
    asked_at = time.time() - 0.02  # a process's start is known to a hundredth of a second
    ids = {cloud.start(order(vm_no)): vm_no for vm_no in (1, 2)}
    gone, lives = ids
    wait_until(lambda: [vm.state for vm in cloud.list()] == [CloudState.RUNNING] * 2, what="both run")
    since = {vm.cloud_id: vm.since for vm in cloud.list(ids)}
    end(cloud, gone)
    for _ in range(3):
        told = {vm.cloud_id: vm for vm in cloud.list(ids)}
        assert told.keys() == ids.keys()
        assert (told[gone].vm_no, told[gone].state, told[gone].since) == (1, CloudState.GONE, since[gone])
        assert math.floor(asked_at) <= told[gone].since <= told[gone].ended <= time.time()
        assert (told[lives].since, told[lives].ended) == (since[lives], 0.0)
        assert told[lives].state is not CloudState.GONE


def test_a_vm_that_ended_while_no_boss_ran_is_reported_with_its_times(cloud: Provider, kind: Kind) -> None:
    cloud_id = cloud.start(order(1))
    wait_until(lambda: [vm for vm in cloud.list() if vm.state is CloudState.RUNNING], what="the VM runs")
    (since,) = [vm.since for vm in cloud.list({cloud_id: 1})]
    end(cloud, cloud_id)
    ended_before = time.time()
    (told,) = kind.provider("one").list({cloud_id: 1})
    assert (told.vm_no, told.state, told.since) == (1, CloudState.GONE, since)
    assert since <= told.ended <= ended_before


def test_a_vm_that_ended_before_it_was_seen_is_reported_on_request(cloud: Provider, kind: Kind) -> None:
    # VM 99 was never started: Slurm's accounting remembers the jobs of the other tests.
    cloud_id = cloud.start(order(3))
    cloud.end_all(30)
    told = [vm for vm in kind.provider("one").list(lost={3: "1-3", 99: "1-99"}) if vm.state is CloudState.GONE]
    assert [(vm.vm_no, vm.cloud_id) for vm in told] == [(3, cloud_id)]
    assert 0.0 < told[0].since <= told[0].ended


def test_two_vms_of_one_number_and_different_histories_are_told_apart(cloud: Provider, kind: Kind) -> None:
    """A restored database gives the numbers of the VMs that it lacks out again."""
    old = cloud.start(order(3, epoch=1))
    new = kind.provider("one").start(order(3, epoch=2))
    assert old != new
    both = [(vm.vm_no, vm.boot_nonce, vm.cloud_id) for vm in cloud.list() if vm.state is not CloudState.GONE]
    assert sorted(both) == [(3, "1-3", old), (3, "2-3", new)]
    end(cloud, old)
    assert listed(cloud) == {3: new}
    other = kind.provider("one")

    def state_of_old() -> CloudState | None:
        return next((vm.state for vm in other.list({old: 3, new: 3}) if vm.cloud_id == old), None)

    wait_until(lambda: state_of_old() is CloudState.GONE, what="the old one is gone, and known as the third")
    sought = [vm for vm in kind.provider("one").list(lost={3: "1-3"}) if vm.state is CloudState.GONE]
    assert [(vm.boot_nonce, vm.cloud_id) for vm in sought] == [("1-3", old)]


def test_a_process_that_cannot_be_recorded_does_not_continue(tmp_path: Path) -> None:
    """No list would ever show it."""
    processes = LocalKind(tmp_path)
    cloud = processes.provider("one")
    record = Home(tmp_path / "one").workers / "1" / "vm.json"
    record.mkdir(parents=True)
    with pytest.raises(TryLater, match=f"no worker process can be recorded: .*{record}"):
        cloud.start(order(1))
    wait_until(lambda: not started_in(record.parent), what="the end of the process")


def started_in(directory: Path) -> list[str]:
    """Processes whose command names that directory."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            commands.append(path.read_bytes().decode(errors="replace"))
    return [command for command in commands if str(directory) in command]


def test_a_vm_may_be_ended_before_it_is_up(cloud: Provider) -> None:
    end(cloud, cloud.start(order(1)))
    assert listed(cloud) == {}


def test_ending_what_is_gone_is_no_error(cloud: Provider) -> None:
    cloud_id = cloud.start(order(1))
    end(cloud, cloud_id)
    cloud.end(cloud_id)
    for unknown in ("99999", "1:2", ""):
        cloud.end(unknown)


def test_a_vm_whose_agent_dies_is_no_secret(cloud: Provider, kind: Kind) -> None:
    cloud_id = cloud.start(order(1))
    (pid,) = wait_until(lambda: kind.agents(cloud_id), what="an agent in the VM")
    os.kill(pid, signal.SIGKILL)
    end(cloud, cloud_id)
    assert listed(cloud) == {}


def test_all_are_ended_together(cloud: Provider) -> None:
    for vm_no in range(1, 5):
        cloud.start(order(vm_no))
    assert list(cloud.end_all(30)) == []
    assert listed(cloud) == {}


# --- room -----------------------------------------------------------------------------------------


def test_room_is_a_number_or_unknown(cloud: Provider) -> None:
    room = cloud.room()
    assert isinstance(room, Capacity)
    assert room.vms is None or room.vms > 0


def test_a_stranger_is_left_alone(cloud: Provider, kind: Kind) -> None:
    theirs = kind.provider("two").start(order(1))
    with contextlib.suppress(Gone):
        cloud.end(theirs)
    assert theirs in listed(kind.provider("two")).values()
