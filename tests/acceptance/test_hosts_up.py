"""`admin.py hosts` on real hosts: up, work, trouble, down; no file or process stays."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doors import Doors, ended
from net_hosts import NetHost, NetHosts
from pages import Page, type_sessions
from services import ROOT, wait_until
from sshd import SSHD
from systemd_machine import Machine, booted

from datastore import keys

pytestmark = pytest.mark.timeout(900)
QUICK = "HEARTBEAT_S = 0.5\nLEASE_S = 5.0\nRETRY_BACKOFF_S = 0.1\n"


class Laptop(Doors):
    """The user of `hosts up`: a home and settings of their own."""

    patience_s = 300.0  # the first one packs all that is brought

    @property
    def environment(self) -> dict[str, str]:
        settings = self.place / "settings.py"
        if not settings.exists():
            settings.write_text(QUICK)
        home = self.place / "user"
        home.mkdir(exist_ok=True)
        return {**super().environment, "ECLOUD_SETTINGS": str(settings), "HOME": str(home)}

    def states(self) -> dict[str, int]:
        """How many processes are in each state, as `hosts status` shows them."""
        found: dict[str, int] = {}
        for line in self.admin("hosts", "status", "--json", code=None).json["hosts"]:
            found[line["state"]] = found.get(line["state"], 0) + 1
        return found

    @property
    def boss_pid(self) -> int:
        """Of the boss on this machine."""
        return int(json.loads((self.place / "home" / "boss.pid").read_text())["pid"])


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Laptop]:
    made = Laptop(tmp_path / "place")
    yield made
    if (made.place / "home" / "hosts.toml").exists():
        made.admin("hosts", "down", code=None)


def three(net_hosts: NetHosts) -> list[NetHost]:
    return [net_hosts.add(f"host{number}") for number in (1, 2, 3)]


def running(hosts: list[NetHost]) -> list[str]:
    return sorted(line for host in hosts for line in host.processes())


def test_up_work_trouble_down(laptop: Laptop, net_hosts: NetHosts, tmp_path: Path) -> None:
    """Boss here; workers here and on three hosts."""
    hosts = three(net_hosts)
    shared = tmp_path / "shared"
    shared.mkdir()
    options = net_hosts.options(hosts)
    up = laptop.admin("hosts", "up", *options, "-w", "local,1,2,3", "--datastore", shared)
    assert up.out.count(" up ") == 5, up.out
    laptop.push(laptop.write("t.json", [{"id": f"t{n}", "commands": "hostname; sleep 0.3"} for n in range(24)]))
    assert set(ended(laptop, "t").values()) == {"succeeded"}
    used = {worker["host"] for worker in laptop.admin("show_workers", "--json").json}
    assert {"host1", "host2", "host3"} < used

    # The boss is killed: its workers are found again by the next one, and none is started twice.
    os.kill(laptop.boss_pid, signal.SIGKILL)
    assert laptop.admin("hosts", "status", code=3).out.count("gone") >= 1
    before = running(hosts)
    laptop.admin("hosts", "up", "-f")
    assert running(hosts) == before

    # A host is rebooted: its worker is gone, and up -f starts it again.
    hosts[0].reboot()
    assert hosts[0].processes() == []
    laptop.admin("hosts", "up", "-f")
    assert laptop.states() == {"up": 5}

    # A host is away while everything goes down: it stays in the list until it is back.
    hosts[1].stop()
    told = laptop.admin("hosts", "down", "--purge", code=3)
    assert hosts[1].address in told.err
    assert [host.processes() for host in (hosts[0], hosts[2])] == [[], []]
    hosts[1].start()
    laptop.admin("hosts", "down", "--purge")
    assert [host.files() for host in hosts] == [[], [], []]
    assert not (laptop.place / "user" / ".ecloud-hosts").exists()
    assert "nothing was started" in laptop.admin("hosts", "status", code=None).out


HELLO = """import csv, subprocess, sys
from pathlib import Path

Path("tasks.json").write_text('[{"id": "t", "commands": "grep hello $ECLOUD_PROJECT/word > out", "results": ["out"]}]')
push = "from ecloud.cli.main import push_tasks; push_tasks()"
subprocess.run([sys.executable, "-c", push, "tasks.json", "--wait"], check=True, stdout=subprocess.DEVNULL)
print("host2 or host3 says", Path(__file__).with_name("word").read_text().strip())
with open("told.csv", "w") as file:
    csv.writer(file).writerow(["hello"])
"""


@pytest.mark.long
def test_the_hosts_page_does_what_it_shows(laptop: Laptop, net_hosts: NetHosts) -> None:
    """The master is a host, whose boss keeps files over its own sshd."""
    hosts = three(net_hosts)
    project = laptop.place / "project"
    project.mkdir()
    (project / "hello.py").write_text(HELLO)
    (project / "word").write_text("hello\n")
    (laptop.place / "admin.py").symlink_to(ROOT / "admin.py")
    names = {f"anna@host{number}": f"root@{host.address}" for number, host in enumerate(hosts, 1)}
    known = f"-o UserKnownHostsFile={net_hosts.directory}/known_hosts -o LogLevel=ERROR"
    names |= {"-i ~/.ssh/lab": f"-i {net_hosts.key} {known}"}
    environment = {**laptop.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    type_sessions(Page("docs/hosts.md", "Up and down with one command"), laptop.place, environment, names)
    assert (laptop.place / "told.csv").read_text() == "hello\n"
    assert [host.files() for host in hosts] == [[], [], []]
    assert [host.processes() for host in hosts] == [[], [], []]
    assert [host.authorized() for host in hosts] == [[net_hosts.public]] * 3


def test_all_problems_are_named_at_once(laptop: Laptop, net_hosts: NetHosts, tmp_path: Path) -> None:
    """Nothing is started; with --skip_failed the host that can work does."""
    good = net_hosts.add("good")
    kinds = ("no python", "disk full", "clock", "closed")
    faults = {fault: net_hosts.add(fault.replace(" ", "-"), fault) for fault in kinds}
    shared = tmp_path / "shared"
    shared.mkdir()
    options = [*net_hosts.options([good, *faults.values()]), "--datastore", shared]
    slots = len(os.sched_getaffinity(0)) + 1
    told = laptop.admin("hosts", "up", *options, "--slots", slots, code=2)
    assert f"with {slots} slots each worker offers 0." in told.out
    assert f"use --slots {slots - 1} or fewer" in told.out
    refused = told.err
    for fault, words in {
        "no python": "it has no Python; ECLOUD needs 3.10 or later: install one",
        "disk full": "free some disk space below /root/.ecloud-hosts",
        "clock": " s (ahead)",
        "closed": "Permission denied",
    }.items():
        (line,) = (line for line in refused.splitlines() if words in line)
        assert faults[fault].address in line
    assert good.processes() == []
    assert "0 workers ended" in laptop.admin("hosts", "down").out
    up = laptop.admin("hosts", "up", *options, "--skip_failed")
    assert up.out.count("left out: ") == 4
    assert laptop.states() == {"up": 2}
    laptop.admin("hosts", "down", "--purge")
    assert [host.files() for host in (good, *faults.values())] == [[]] * 5


def test_a_tunnel_is_made_again_and_listens_on_loopback_alone(
    laptop: Laptop, net_hosts: NetHosts, tmp_path: Path
) -> None:
    host = net_hosts.add("far")
    shared = tmp_path / "shared"
    shared.mkdir()
    laptop.admin("hosts", "up", *net_hosts.options([host]), "--datastore", shared, "--tunnel")
    assert (laptop.place / "home" / "broker" / "mosquitto.conf").read_text().startswith("listener ")
    assert "0.0.0.0" not in (laptop.place / "home" / "broker" / "mosquitto.conf").read_text()
    listening = host.ask("ss", "-Hltn").split()
    assert [item for item in listening if item.startswith("127.0.0.1:")]
    laptop.push(laptop.write("t.json", [{"id": "t", "commands": "hostname"}]), "--wait")

    host.cut()  # all connections end
    wait_until(lambda: laptop.states().get("up") == 3, 60, "the tunnel is there again")
    assert "ended with exit code" in (laptop.place / "home" / "tunnels.log").read_text()
    laptop.push(laptop.write("u.json", [{"id": "u", "commands": "hostname"}]), "--wait")
    laptop.admin("hosts", "down", "--purge")
    assert (host.processes(), host.files()) == ([], [])
    assert not list((laptop.place / "home").glob("tunnels.json"))


@pytest.mark.parametrize("step", ["boss", "code", "worker"])
def test_up_that_is_killed_leaves_nothing_that_down_does_not_find(
    laptop: Laptop, net_hosts: NetHosts, tmp_path: Path, step: str
) -> None:
    host = net_hosts.add("host1")
    shared = tmp_path / "shared"
    shared.mkdir()
    place = host.home / ".ecloud-hosts"
    seen = {
        "boss": lambda: (laptop.place / "home" / "hosts.boss").exists(),
        "code": lambda: list(place.glob("*/code-*")),
        "worker": lambda: list(place.glob("*/worker-1/run")),
    }
    up = laptop.begin("admin.py", "hosts", "up", *net_hosts.options([host]), "--datastore", shared)
    wait_until(seen[step], 90, f"it got as far as {step}")
    up.kill()
    up.communicate()
    laptop.admin("hosts", "down", "--purge")
    assert (host.processes(), host.files()) == ([], [])
    assert not (laptop.place / "home" / "boss.pid").exists()


SSHD_CONFIG = """HostKey /root/host_key
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
AllowTcpForwarding yes
Subsystem sftp internal-sftp
SetEnv "PATH={path}"
"""


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory that all hosts see."""
    made = tmp_path / "shared"
    made.mkdir()
    return made


@pytest.fixture
def machine(tmp_path: Path, shared: Path) -> Iterator[Machine]:
    """A host with systemd."""
    yield from booted(Machine(tmp_path / "machine", "1g", shared))


def reach(machine: Machine, directory: Path) -> list[str]:
    """The options of `hosts up` for this machine. ssh has no network there: it starts an sshd for each connection."""
    for name in ("host_key", "key"):
        keys.make_key(directory / name, name)
    machine.write("/root/host_key", (directory / "host_key").read_text())
    machine.write("/root/.ssh/authorized_keys", (directory / "key.pub").read_text())
    path = f"{sys.base_prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    machine.write("/root/sshd_config", SSHD_CONFIG.format(path=path))
    machine.write("/etc/shadow", "root:*:20000:0:99999:7:::\n")  # else its account counts as locked
    machine.ask("mkdir", "-p", "/run/sshd")
    through = " ".join([*machine.enter, SSHD, "-i", "-f", "/root/sshd_config"])
    options = [f"ProxyCommand={through}", f"UserKnownHostsFile={directory}/known_hosts", "LogLevel=ERROR"]
    return ["-a", "root@unitary", "-i", str(directory / "key"), *(word for one in options for word in ("-o", one))]


@pytest.mark.long
def test_a_worker_under_systemd_is_started_again_and_leaves_no_unit(
    laptop: Laptop, machine: Machine, shared: Path, tmp_path: Path
) -> None:
    options = reach(machine, tmp_path)
    laptop.admin("hosts", "up", *options, "--datastore", shared, "--tunnel", "-w", "1", "--slots", "2")
    unit, other = units(machine)
    assert (machine.unit(unit, "ActiveState"), machine.unit(unit, "Delegate")) == ("active", "yes")
    laptop.push(laptop.write("t.json", [{"id": "t", "commands": "hostname"}]), "--wait")
    assert {worker["host"] for worker in laptop.admin("show_workers", "--json").json} == {"ecloud-test"}

    first = machine.unit(unit, "MainPID")
    machine.ask("kill", "-KILL", first)
    wait_until(lambda: machine.unit(unit, "MainPID") not in ("0", first), 60, "systemd starts the worker again")
    wait_until(lambda: laptop.states() == {"up": 4}, 60, "the boss has received a message from it")
    before = [machine.unit(name, "MainPID") for name in (unit, other)]
    assert "restarted: root@unitary" in laptop.admin("hosts", "restart").out
    after = [machine.unit(name, "MainPID") for name in (unit, other)]
    assert not set(after).intersection(["0", *before])
    laptop.push(laptop.write("u.json", [{"id": "u", "commands": "hostname"}]), "--wait")

    laptop.admin("hosts", "down", "--purge")
    assert units(machine) == []
    assert machine.unit(unit, "LoadState") == "not-found"
    assert machine.ask("pgrep", "-f", " -m worker ")[1] == ""
    assert machine.ask("find", "/root", "-name", ".ecloud-hosts")[1] == ""


def units(machine: Machine) -> list[str]:
    """The units of ECLOUD there, loaded or on its disk."""
    loaded = machine.ask("systemctl", "list-units", "--all", "--plain", "--no-legend", "ecloud-*.service")[1]
    files = machine.ask("sh", "-c", "cd /etc/systemd/system && ls -d ecloud-*.service 2>/dev/null")[1]
    return sorted({line.split()[0] for line in (*loaded.splitlines(), *files.splitlines())})
