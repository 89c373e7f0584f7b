"""`hosts update` and `hosts restart`: drain workers before they are restarted; skip hosts where nothing changed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boss.bootstrap.bundle import Bundles
from boss.hosts import project as projects
from boss.hosts import scripts
from boss.hosts.fleet import Fleet, machine_of
from boss.hosts.journal import Journal
from boss.hosts.master import Master, open_master
from boss.hosts.plan import Plan
from boss.hosts.status import ask_host
from boss.hosts.up import Up
from boss.providers.ssh_hosts import LOCAL
from datastore.problem import DONE, PART_AWAY, Problem
from ecloud.config.settings import Settings
from ecloud.model.text import counted


class Update:
    """One such command. `drain_s`: how long running tasks may take to end; `only_changed`: skip hosts that have this
    code and project already."""

    def __init__(
        self, journal: Journal, fleet: Fleet, plan: Plan, settings: Settings, drain_s: float, only_changed: bool
    ) -> None:
        self._journal = journal
        self._fleet = fleet
        self._plan = plan
        self._settings = settings
        self._drain_s = drain_s
        self._only_changed = only_changed

    def run(self) -> int:
        """Drain, end and restart the stale hosts. Raises `Problem`."""
        started = self._journal.hosts_of("worker")
        stale = self._stale(started)
        if not stale:
            print(f"nothing changed on {counted(len(started), 'host')}", flush=True)
            return DONE
        masters = self._journal.hosts_of("boss")
        master = open_master(self._fleet, masters[0] if masters else LOCAL, self._settings)
        workers = [host for host in stale if host in started]
        self._drain(master, workers)
        place = self._fleet.place("worker")
        told = self._fleet.each(
            workers, lambda host: scripts.read_ended(self._fleet.run(host, scripts.end_all_script(place, 20.0, False)))
        )
        wrong = [said for said in told.values() if isinstance(said, str)]
        if wrong:
            raise Problem(wrong, exit_code=PART_AWAY)
        if master.host != LOCAL and master.host in stale:
            master.stop()
        elif master.host == LOCAL and not self._only_changed:
            from ecloud.cli import daemon

            daemon.stop(False, False)
        Up(self._journal, self._fleet, self._plan, self._settings, False).run()
        print(f"{'updated' if self._only_changed else 'restarted'}: {', '.join(stale)}", flush=True)
        return DONE

    def _stale(self, hosts: Sequence[str]) -> list[str]:
        """Return the hosts whose processes run with other code, or with another project. Raises `Problem`."""
        masters = [host for host in self._journal.hosts_of("boss") if host != LOCAL]
        every = list(dict.fromkeys((*masters, *hosts)))
        if not self._only_changed:
            return every
        bundles = Bundles(self._journal.home.path)
        options = self._journal.file.options
        project = projects.pack(Path(options.project)).name if options.project else ""
        told = self._fleet.each(every, self._fleet.probe)
        wrong = [said for said in told.values() if isinstance(said, str)]
        if wrong:
            raise Problem(wrong, exit_code=PART_AWAY)
        stale = []
        for host, probe in told.items():
            assert not isinstance(probe, str)
            wanted = set()
            if host in hosts:
                wanted.add(bundles.get(machine_of(probe)).name)
            if host in masters:
                wanted.add(bundles.get(machine_of(probe), for_boss=True).name)
            if not wanted <= set(probe.codes) or (project and project not in probe.projects):
                stale.append(host)
        return stale

    def _drain(self, master: Master, hosts: Sequence[str]) -> None:
        """Stop new starts on the workers of these hosts, and wait for their running tasks. Raises `Problem`."""
        told = self._fleet.each(hosts, lambda host: ask_host(self._fleet, host))
        mine = {
            (answer[0].name, pid)
            for answer in told.values()
            if not isinstance(answer, str)
            for (kind, _), (state, _, pid) in answer[1].items()
            if kind == "worker" and state == "lives"
        }

        def rows() -> list[dict[str, Any]]:
            return [row for row in master.workers() if (row["host"], row["pid"]) in mine]

        names = [row["worker"] for row in rows()]
        if not names:
            return
        master.admin("drain_worker", *names, "--reason", "hosts update")
        until = time.monotonic() + self._drain_s
        while busy := [row["worker"] for row in rows() if row["running"]]:
            if time.monotonic() > until:
                text = f"{counted(len(busy), 'worker')} still busy after {self._drain_s:.0f} s"
                print(f"{text}: their tasks are returned and run elsewhere", flush=True)
                return
            time.sleep(0.5)
