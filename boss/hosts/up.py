"""`hosts up`: checks all hosts, starts boss and broker, then the workers, and waits until each has reported.

Records every intent in `hosts.toml` before its start. A second call starts what does not run.
"""

from __future__ import annotations

import getpass
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from boss.bootstrap.bundle import Bundle, Bundles, NoBundle
from boss.bootstrap.guest_scripts import unpack_command
from boss.hosts import project as projects
from boss.hosts import scripts, tunnels
from boss.hosts.fleet import Fleet, machine_of
from boss.hosts.journal import Journal
from boss.hosts.master import Master, RemoteMaster, bring_project, open_master
from boss.hosts.plan import Plan
from boss.hosts.project import Project
from boss.hosts.tunnels import Tunnel
from boss.providers import ssh_hosts_scripts
from boss.providers.ssh_hosts import LOCAL, Shell
from boss.providers.ssh_hosts_scripts import IS_ALIVE, HostProbe, Program
from datastore.problem import PART_AWAY, Problem
from datastore.ssh.access import SshAddress
from ecloud.config.datastore_address import is_ssh
from ecloud.config.hosts_file import BossOptions
from ecloud.config.secrets import AccessFile
from ecloud.config.settings import Settings
from ecloud.model.foreign_text import Cleaner
from ecloud.model.text import counted

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
SSH_PORT = 22
REPORT_S = 120.0
"""Time limit for a worker, from its start to its first message to the boss."""
LOOK_S = 0.3
"""Shortest interval between two looks which workers have reported."""
MASTER = "@master"
"""Key in `tunnel_ports`: this machine's ports for broker and datastore of a remote master."""
_SHARE = """share=$("$python" -c 'import sys
from ecloud.config import this_host
slots, slot = map(int, sys.argv[1:])
gpus = ",".join(this_host.gpus()[slot - 1 :: slots]) or ","
print("--cpus", max(0.01, this_host.cpus() / slots), "--memory_mb", int(this_host.memory_mb() / slots), "--gpus", gpus)
' @SLOTS@ @SLOT@) || exit 1"""
"""Each of several workers of a host offers an equal part of it."""


class Up:
    """One `hosts up`. `skip_failed`: leave hosts with problems out, instead of refusing the call."""

    def __init__(self, journal: Journal, fleet: Fleet, plan: Plan, settings: Settings, skip_failed: bool) -> None:
        self._journal = journal
        self._fleet = fleet
        self._plan = plan
        self._settings = settings
        self._skip_failed = skip_failed
        self._options = journal.file.options
        self._bundles = Bundles(journal.home.path)
        self._probes: dict[str, HostProbe] = {}
        self._workers: list[str] = list(plan.workers)
        self._project: Project | None = None

    def run(self) -> Master:
        """Start everything that does not run. Raises `Problem`."""
        bundles = self._look()
        options = self._options
        self._project = projects.pack(Path(options.project)) if options.project else None
        self._journal.starting([(self._plan.master, "boss", 0)])
        master = open_master(self._fleet, self._plan.master, self._settings, self._probes.get(self._plan.master))
        if isinstance(master, RemoteMaster):
            bundle = self._bundles.get(machine_of(self._probes[master.host]), for_boss=True)
            master.bring(bundle.name, bundle.archive, self._project)
        needs_network = not options.tunnel and any(host != self._plan.master for host in self._workers)
        master.start(BossOptions(EVERYWHERE if needs_network else LOOPBACK, own_workers=False))
        access = master.access(self._journal.file.invitation)
        if access.key_name != self._journal.file.invitation:
            self._journal.change(invitation=access.key_name)
        datastore = self._set_datastore(master)
        if options.tunnel:
            self._dig(access, datastore)
        places = {host: self._broker_of(host, access) for host in self._workers}
        self._check_reach(places)
        self._start_workers(bundles, access, places, datastore)
        self._await_reports(master)
        return master

    # --- checks ---------------------------------------------------------------------------------------

    def _look(self) -> dict[str, Bundle]:
        """Probe all hosts; return what each worker's host needs. Raises `Problem` that lists everything wrong."""
        hosts = self._plan.all_hosts
        told = self._fleet.each(hosts, self._fleet.probe)
        wrong: dict[str, list[str]] = {}
        bundles: dict[str, Bundle] = {}
        for host, probe in told.items():
            wrong[host] = [probe] if isinstance(probe, str) else self._fleet.problems(host, probe)
            if isinstance(probe, str) or not probe.python:
                continue
            self._probes[host] = probe
            self._note_small_slots(host, probe)
            try:
                if host in self._workers:
                    bundles[host] = self._bundles.get(machine_of(probe))
            except NoBundle as error:
                wrong[host].append(f"{host}: {error}")
        self._refuse(wrong)
        return bundles

    def _note_small_slots(self, host: str, probe: HostProbe) -> None:
        """Say that workers of this host will be too small for a task that names no CPUs."""
        slots = self._options.slots
        if host in self._workers and 0 < probe.cpus < slots:
            print(
                f"note: {host} has {counted(probe.cpus, 'CPU')}: with {slots} slots each worker offers "
                f'{probe.cpus / slots:.2f}, and tasks need 1 unless they request less ("cpus"): '
                f"use --slots {probe.cpus} or fewer",
                flush=True,
            )

    def _refuse(self, wrong: Mapping[str, Sequence[str]]) -> None:
        texts = [text for texts in wrong.values() for text in texts]
        if not texts:
            return
        bad = {host for host, texts in wrong.items() if texts}
        left = [host for host in self._workers if host not in bad]
        if not self._skip_failed or not left or self._plan.master in bad:
            remedy = "correct this, or skip these hosts with --skip_failed" if len(left) else "correct this"
            raise Problem([*texts, f"no worker was started: {remedy}"])
        for text in texts:
            print(f"left out: {text}", flush=True)
        self._workers = left

    # --- connections to boss and datastore ------------------------------------------------------------

    def _broker_of(self, host: str, access: AccessFile) -> tuple[str, int]:
        """Return the broker's address for workers of a host."""
        if self._options.tunnel and host in self._journal.file.tunnel_ports:
            return LOOPBACK, self._journal.file.tunnel_ports[host][0]
        if access.host not in (LOOPBACK, "localhost"):
            return self._options.address or access.host, access.port  # the user has a broker of his own
        if host == self._plan.master:
            return LOOPBACK, access.port
        return self._options.address or self._master_as_seen_by(host), access.port

    def _master_as_seen_by(self, host: str) -> str:
        """Return the master's address: from the host's connection to this machine, or from this machine's to the
        master."""
        if self._plan.master == LOCAL:
            seen = self._probes[host].seen
            return seen[0] if len(seen) == 4 else LOOPBACK
        seen = self._probes[self._plan.master].seen
        return seen[2] if len(seen) == 4 else self._plan.master.rpartition("@")[2].partition(":")[0]

    def _set_datastore(self, master: Master) -> str:
        """Return the datastore that all workers can reach; set it if necessary. Raises `Problem`."""
        noted = str(msgspec.json.decode(master.admin("show_context", "--json").encode())["datastore_address"])
        wanted = self._options.datastore
        if not wanted and (is_ssh(noted) or self._settings.datastore or self._plan.workers == (self._plan.master,)):
            return noted
        if not wanted:
            wanted = self._usual_datastore(noted)
        if wanted not in (noted, noted.removeprefix("dir:")):
            own = ["--own_account"] if is_ssh(wanted) and not self._options.datastore else []
            master.admin("set_datastore", wanted, *own)
        return wanted if is_ssh(wanted) else f"dir:{wanted.removeprefix('dir:')}"

    def _usual_datastore(self, noted: str) -> str:
        """Return the default: the directory of the boss, over the sshd of its machine."""
        directory = noted.removeprefix("dir:")
        others = [host for host in self._workers if host != self._plan.master]
        if self._plan.master != LOCAL:
            probe = self._probes[self._plan.master]
            port = probe.seen[3] if len(probe.seen) == 4 else str(SSH_PORT)
            return str(SshAddress(probe.user, self._master_as_seen_by(others[0]), int(port), directory))
        address = self._options.address or self._master_as_seen_by(others[0])
        return str(SshAddress(getpass.getuser(), address, SSH_PORT, directory))

    def _dig(self, access: AccessFile, datastore: str) -> None:
        """Make one tunnel a host, from this machine. Raises `Problem`."""
        remote = [host for host in self._workers if host not in (LOCAL, self._plan.master)]
        ports = dict(self._journal.file.tunnel_ports)
        wanted = [host for host in remote if host not in ports]
        for host, told in self._fleet.each(wanted, self._free_ports).items():
            if isinstance(told, str):
                raise Problem(f"{host} has no free port for a tunnel: {told}", exit_code=PART_AWAY)
            ports[host] = told
        if self._plan.master != LOCAL and MASTER not in ports:
            ports[MASTER] = self._free_ports(LOCAL)
        address = SshAddress.parse(datastore) if is_ssh(datastore) else None
        broker = (access.host, access.port)
        files = (address.host, address.port) if address is not None else None
        shell = Shell(self._options.words)
        kept = []
        if self._plan.master != LOCAL and access.host == LOOPBACK:
            near = ports[MASTER]
            words = ["-N", "-T", *tunnels.ALIVE, "-L", f"{LOOPBACK}:{near[0]}:{LOOPBACK}:{access.port}"]
            broker = (LOOPBACK, near[0])
            if address is not None and not self._options.datastore:
                words += ["-L", f"{LOOPBACK}:{near[1]}:{LOOPBACK}:{address.port}"]
                files = (LOOPBACK, near[1])
            kept.append(Tunnel(self._plan.master, tuple(shell.words(self._plan.master, "", *words))))
        for host in remote:
            words = tunnels.forwards(ports[host], (broker, files))
            kept.append(Tunnel(host, tuple(shell.words(host, "", *words))))
        self._journal.change(tunnel_ports=ports)
        self._journal.starting([(LOCAL, "tunnels", 0)])
        tunnels.keep(self._journal.home, kept)

    def _free_ports(self, host: str) -> tuple[int, int]:
        python = self._probes[host].python[4] if host in self._probes else "python3"
        found = scripts.read_ports(self._fleet.run(host, f"{scripts.ports_command(python)}\n".encode()))
        if found is None:
            raise Problem(f"{host} did not report a free port")
        return found

    def _check_reach(self, places: Mapping[str, tuple[str, int]]) -> None:
        """Check that each host can connect to the broker. Raises `Problem`."""
        until = time.monotonic() + (20.0 if self._options.tunnel else 0.0)

        def check(host: str) -> str:
            address, port = places[host]
            command = scripts.reach_command(self._probes[host].python[4], address, port)
            while True:
                try:
                    self._fleet.run(host, f"{command}\n".encode())
                    return ""
                except Problem as problem:
                    if time.monotonic() < until:  # the tunnel may still be connecting
                        time.sleep(0.5)
                        continue
                    remedy = (
                        f"see {self._journal.home.path}/tunnels.log"
                        if self._options.tunnel
                        else "open that port, name another address with -b, or use --tunnel"
                    )
                    return f"{host} does not reach the broker at {address}:{port} ({problem}): {remedy}"

        told = self._fleet.each(list(places), check)
        self._refuse({host: [text] if text else [] for host, text in told.items()})

    # --- workers --------------------------------------------------------------------------------------

    def _start_workers(
        self, bundles: Mapping[str, Bundle], access: AccessFile, places: Mapping[str, tuple[str, int]], datastore: str
    ) -> None:
        slots = range(1, self._options.slots + 1)
        self._journal.starting([(host, "worker", slot) for host in self._workers for slot in slots])

        def start(host: str) -> list[int]:
            probe, bundle = self._probes[host], bundles[host]
            if bundle.name not in probe.codes:
                command = unpack_command(probe.python[4], probe.home, bundle.name)
                self._fleet.shell.send(host, command, bundle.archive)
            bring_project(self._fleet, host, probe, self._project)
            mine = msgspec.structs.replace(access, host=places[host][0], port=places[host][1])
            script = b""
            for slot in slots:
                program = self._worker(host, slot, bundle, mine, datastore)
                script += b"(\n" + ssh_hosts_scripts.start_script(self._fleet.place("worker"), slot, program) + b")\n"
            try:
                told = self._fleet.run(host, script)
            except Problem as problem:  # a shell may repeat the line that it cannot parse
                clean = Cleaner([mine.password, mine.key], [script.decode()])
                raise Problem(clean(str(problem))) from None
            return [int(words[1]) for line in told.splitlines()
                    if len(words := line.split()) == 2 and words[0] in ("started", "there")]  # fmt: skip

        self._pids: dict[str, list[int]] = {}
        wrong = []
        for host, told in self._fleet.each(self._workers, start).items():
            if isinstance(told, str):
                wrong.append(told)
            else:
                self._pids[host] = told
        if wrong:
            raise Problem(
                [*wrong, f"{counted(len(self._pids), 'host')} work: to try again, python admin.py hosts up -f"]
            )

    def _worker(self, host: str, slot: int, bundle: Bundle, access: AccessFile, datastore: str) -> Program:
        probe, slots = self._probes[host], self._options.slots
        words: list[str] = []
        lines: list[str] = []
        paths: tuple[str, ...] = ()
        if slots > 1:
            words.append("$share")
            lines.append(_SHARE.replace("@SLOTS@", str(slots)).replace("@SLOT@", str(slot)))
        if self._project is not None:
            paths = (f"$place/project-{self._project.name}",)
            lines.append(f'ECLOUD_PROJECT="$place/project-{self._project.name}/"{shlex.quote(self._project.package)}')
            lines.append("export ECLOUD_PROJECT")
        ports = self._journal.file.tunnel_ports.get(host) if self._options.tunnel else None
        if ports is not None and is_ssh(datastore):
            lines.append(f"ECLOUD_DATASTORE_VIA={LOOPBACK}:{ports[1]} && export ECLOUD_DATASTORE_VIA")
        command = f'worker "$vm/access" --home "$vm/home" {" ".join(words)}'
        files = {"access": msgspec.json.encode(access)}
        return Program(
            bundle.name, probe.python[4], command, files, "\n".join(lines), paths, probe.units, is_there=IS_ALIVE
        )

    def _await_reports(self, master: Master) -> None:
        """Wait until each worker has reported to the boss. Raises `Problem`."""
        wanted = {(self._probes[host].name, pid): host for host, pids in self._pids.items() for pid in pids}
        deadline = time.monotonic() + REPORT_S
        while True:
            began = time.monotonic()
            here = {(row["host"], row["pid"]) for row in master.workers()}
            missing = {key: host for key, host in wanted.items() if key not in here}
            if not missing:
                return
            if time.monotonic() > deadline:
                break
            time.sleep(max(LOOK_S, 2 * (time.monotonic() - began)))  # the machine has workers to start, too
        logs = self._fleet.each(sorted(set(missing.values())), self._last_words)
        raise Problem(
            [f"the worker on {host} has not reported within {REPORT_S:.0f} s: {words or 'its log is empty'}"
             for host, words in logs.items()], "python admin.py hosts status", PART_AWAY,
        )  # fmt: skip

    def _last_words(self, host: str) -> str:
        home = shlex.quote(self._probes[host].home)
        return self._fleet.run(host, f"tail -qn 1 {home}/worker-*/log\n".encode()).strip()[-500:]
