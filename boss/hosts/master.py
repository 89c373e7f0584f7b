"""The boss of a deployment: on this machine, in its home; or on a host, in `boss-0` of the deployment's directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import msgspec

from boss.bootstrap.guest_scripts import unpack_command
from boss.hosts import scripts
from boss.hosts.fleet import Fleet
from boss.hosts.project import Project
from boss.providers import ssh_hosts_scripts
from boss.providers.ssh_hosts import Failed
from boss.providers.ssh_hosts_scripts import IS_ALIVE, HostProbe, Program
from datastore.problem import PART_AWAY, Problem
from ecloud.cli import app, daemon
from ecloud.config import hosts_file, invitations
from ecloud.config.home import Home
from ecloud.config.hosts_file import BOSS_OPTIONS, LOCAL, BossOptions
from ecloud.config.secrets import AccessFile, cluster_secret, derive_key, new_invite_name, read_access, write_private
from ecloud.config.settings import ROOT, Settings, child_environment, settings_path
from ecloud.model.foreign_text import Cleaner
from ecloud.model.roles import Role
from ecloud.queries.status import workers

ADMIN_S = 120.0


class Master(Protocol):
    """The boss of a deployment. All calls raise `Problem`."""

    host: str

    def start(self, options: BossOptions) -> None:
        """Start the boss unless it runs; return when it leads."""

    def stop(self) -> None:
        """Stop the boss; return when it has ended."""

    def access(self, invitation: str) -> AccessFile:
        """Return the access file that a worker needs, under the invitation of that name or, if it is empty, a new
        one."""

    def admin(self, *words: str) -> str:
        """Run `admin.py` on the boss's machine; return its output."""

    def workers(self) -> list[dict[str, Any]]:
        """Return the workers that the boss knows, as `show_workers --json` shows them."""


class LocalMaster:
    """The boss of this machine's home, as `admin.py start` starts it."""

    host = LOCAL

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._home: Home = settings.home_directory.make()

    def start(self, options: BossOptions) -> None:
        """See `Master.start`. Restarts a boss that runs with other options: its workers reconnect."""
        path = self._home.path / BOSS_OPTIONS
        data = hosts_file.encoded_boss_options(options)
        differs = not path.exists() or path.read_bytes() != data
        if differs:
            write_private(path, data)
            if app.running_boss(self._home) is not None:
                daemon.stop(False, False)
        daemon.start(False, False)

    def stop(self) -> None:
        """See `Master.stop`. Also ends the workers that this boss started itself."""
        (self._home.path / BOSS_OPTIONS).unlink(missing_ok=True)
        daemon.stop(True, False)

    def access(self, invitation: str) -> AccessFile:
        """See `Master.access`."""
        own = read_access(self._home.client_access)
        name = invitation or new_invite_name(Role.WORKER)
        if not invitation:
            invitations.record(self._home, name, Role.WORKER, str(hosts_file.path_of(self._home)))
        key = derive_key(cluster_secret(self._home), name).hex()
        return msgspec.structs.replace(own, key_name=name, key=key, role=str(Role.WORKER))

    def admin(self, *words: str) -> str:
        """See `Master.admin`."""
        command = [sys.executable, "-X", "utf8", "-c", "from ecloud.cli.main import admin; admin()", *words]
        environment = {**child_environment(), "ECLOUD_HOME": str(self._home.path)}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=ADMIN_S
            )
        except subprocess.TimeoutExpired:
            raise Problem(f"admin.py {words[0]} did not end within {ADMIN_S:.0f} s", exit_code=PART_AWAY) from None
        if done.returncode != 0:
            raise Problem(_last_line(done.stderr) or f"admin.py {words[0]}: exit code {done.returncode}")
        return done.stdout.decode("utf-8", "replace")

    def workers(self) -> list[dict[str, Any]]:
        """See `Master.workers`. Starts no process: `hosts up` asks often, while the hosts' workers start."""
        engine = app.database(self._settings)
        try:
            found: list[dict[str, Any]] = msgspec.to_builtins(workers(engine))
        finally:
            engine.dispose()
        return found


class RemoteMaster:
    """A boss on a host."""

    def __init__(self, fleet: Fleet, host: str, probe: HostProbe) -> None:
        self.host = host
        self._fleet = fleet
        self._probe = probe
        self._place = fleet.place("boss")

    def bring(self, bundle: str, archive: Path, project: Project | None) -> None:
        """Install the code of a boss, and the project."""
        python, home = self._probe.python[4], self._probe.home
        if bundle not in self._probe.codes:
            self._fleet.shell.send(self.host, unpack_command(python, home, bundle), archive)
        bring_project(self._fleet, self.host, self._probe, project)
        self._bundle = bundle

    def start(self, options: BossOptions) -> None:
        """See `Master.start`. Call `bring` first."""
        path = settings_path()
        files = {
            "settings.py": path.read_bytes() if path.is_file() else b"",
            f"home/{BOSS_OPTIONS}": hosts_file.encoded_boss_options(options),
            "code": self._bundle.encode() + b"\n",
            "python": self._probe.python[4].encode() + b"\n",
        }
        lines = 'ECLOUD_SETTINGS="$vm/settings.py" && export ECLOUD_SETTINGS && rm -f "$vm/home/boss.pid"'
        program = Program(
            self._bundle, self._probe.python[4], 'boss --home "$vm/home" --standby', files, lines,
            units=self._probe.units, is_there=IS_ALIVE,
        )  # fmt: skip
        script = ssh_hosts_scripts.start_script(self._place, 0, program)
        try:
            self._fleet.run(self.host, script)
            self._fleet.run(self.host, scripts.ready_script(self._place))
        except Failed as failed:
            clean = Cleaner([], [script.decode()])  # a shell may repeat the line that it cannot parse
            raise Problem(f"the boss does not start: {clean(str(failed))}", exit_code=PART_AWAY) from None
        print(f"the boss runs on {self.host}", flush=True)

    def stop(self) -> None:
        """See `Master.stop`."""
        ended = scripts.read_ended(self._fleet.run(self.host, scripts.end_all_script(self._place, 30.0, False)))
        if ended.left or not ended.is_whole:
            raise Problem(f"the boss on {self.host} does not end: {', '.join(ended.left)}", exit_code=PART_AWAY)

    def access(self, invitation: str) -> AccessFile:
        """See `Master.access`."""
        path = f"{self._probe.home}/boss-0/home/hosts.access"
        if invitation:
            told = self._fleet.run(self.host, f"cat '{path}'\n".encode())
        else:
            self._fleet.run(self.host, f"rm -f '{path}'\n".encode())
            self.admin("invite", path)
            told = self._fleet.run(self.host, f"cat '{path}'\n".encode())
        try:
            return msgspec.json.decode(told.encode(), type=AccessFile)
        except msgspec.MsgspecError:
            raise Problem(f"{self.host}: {path} is not an access file: {told[-200:]!r}") from None

    def admin(self, *words: str) -> str:
        """See `Master.admin`."""
        return self._fleet.run(self.host, scripts.admin_script(self._place, words))

    def workers(self) -> list[dict[str, Any]]:
        """See `Master.workers`."""
        found: list[dict[str, Any]] = msgspec.json.decode(self.admin("show_workers", "--json").encode())
        return found


def open_master(fleet: Fleet, host: str, settings: Settings, probe: HostProbe | None = None) -> Master:
    """Return the boss of a deployment, whether it runs or not. Raises `Problem`."""
    if host == LOCAL:
        return LocalMaster(settings)
    return RemoteMaster(fleet, host, probe or fleet.probe(host))


def bring_project(fleet: Fleet, host: str, probe: HostProbe, project: Project | None) -> None:
    """Send the project, unless the host has this version of it. Raises `Failed`."""
    if project is not None and project.name not in probe.projects:
        command = unpack_command(probe.python[4], probe.home, project.name, "project")
        fleet.shell.feed(host, command, project.archive)


def _last_line(data: bytes) -> str:
    lines = data.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else ""
