"""`hosts down`: ends workers, boss and tunnels, in this order; with `purge` removes every file of the deployment.

Ends what the recorded intents name and what is found on the hosts. Processes on unreachable hosts stay in `hosts.toml`,
so that the next `hosts down` ends them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from boss.hosts import scripts, tunnels
from boss.hosts.fleet import Fleet
from boss.hosts.journal import Journal
from boss.hosts.master import Master, open_master
from boss.hosts.scripts import Ended
from boss.providers.ssh_hosts import LOCAL
from datastore.problem import DONE, PART_AWAY, Problem
from ecloud.config.datastore_address import is_ssh
from ecloud.config.settings import Settings
from ecloud.model.text import counted

GRACE_S = 20.0
"""Time between TERM, on which a worker ends its tasks and reports, and KILL."""


class Down:
    """One `hosts down`."""

    def __init__(self, journal: Journal, fleet: Fleet, settings: Settings, purge: bool) -> None:
        self._journal = journal
        self._fleet = fleet
        self._settings = settings
        self._purge = purge
        self._wrong: list[str] = []

    def run(self) -> int:
        """End everything; return 0 when nothing is left. Raises `Problem` that lists everything left."""
        masters = self._journal.hosts_of("boss")
        workers = self._journal.hosts_of("worker")
        count = self._end("worker", workers, [host for host in workers if host not in masters])
        self._end_boss(masters)
        if tunnels.end(self._journal.home):
            print("the tunnels are closed", flush=True)
        self._journal.ended(lambda item: item.kind == "tunnels")
        if not self._wrong:
            self._journal.change(invitation="", tunnel_ports={})
        if self._wrong:
            raise Problem([*self._wrong, "hosts.toml keeps the rest: correct this, then run hosts down again"],
                          exit_code=PART_AWAY)  # fmt: skip
        text = f"{counted(count, 'worker')} ended on {counted(len(workers), 'host')}"
        print(text + ("; their files are removed" if self._purge else ""), flush=True)
        return DONE

    def _end(self, kind: str, hosts: Sequence[str], purged: Sequence[str]) -> int:
        """End all processes of a kind; return how many there were."""
        place = self._fleet.place(kind)

        def end(host: str) -> Ended:
            script = scripts.end_all_script(place, GRACE_S, self._purge and host in purged)
            return scripts.read_ended(self._fleet.shell.run(host, script, 3 * GRACE_S + 60))

        count, done = 0, set()
        for host, told in self._fleet.each(hosts, end).items():
            if isinstance(told, str):
                self._wrong.append(f"{told}; its {kind} may still run")
                continue
            count += told.count
            self._wrong += [f"{host}: {left} does not end" for left in told.left]
            if self._purge and host in purged and not told.purged:
                self._wrong.append(f"{host}: files remain in {place.root}/{place.owner}")
            elif told.is_whole and not told.left:
                done.add(host)
            if told.kept and not self._purge:
                names = ", ".join(told.kept)
                print(f"{host}: {names} keep outcomes that the boss has not acknowledged; hosts up delivers them")
        self._journal.ended(lambda item: item.kind == kind and item.host in done)
        return count

    def _end_boss(self, masters: Sequence[str]) -> None:
        for host in masters:
            if host == LOCAL:
                master = open_master(self._fleet, LOCAL, self._settings)
                self._revoke(master)
                if self._purge and not self._wrong:
                    self._forget_own_datastore(master)
                master.stop()
                self._journal.ended(lambda item: item.kind == "boss" and item.host == LOCAL)
                if self._purge:
                    self._end("worker", [LOCAL], [LOCAL])
            else:
                if self._purge and not self._wrong:
                    self._forget_keys(host, f"{self._fleet.probe(host).home}/boss-0/home/secrets")
                # If a worker could not be reached, keep the boss's files: the worker delivers its outcomes to the next
                # boss.
                self._end("boss", [host], [] if self._wrong else [host])

    def _forget_own_datastore(self, master: Master) -> None:
        """Undo the datastore setting of `hosts up`: the boss's directory over the sshd of its own machine."""
        if not (self._settings.database_url or self._settings.home_directory.database.exists()):
            return  # `hosts up` was interrupted before its boss made the tables
        noted = msgspec.json.decode(master.admin("show_context", "--json").encode())["datastore_address"]
        own = self._settings.home_directory.datastore
        if is_ssh(noted) and noted.endswith(f":{own}"):
            master.admin("drop_context")
            self._forget_keys(LOCAL, str(self._settings.home_directory.secrets))

    def _forget_keys(self, host: str, secrets: str) -> None:
        try:
            self._fleet.run(host, scripts.forget_keys_script(self._fleet.place("boss"), secrets))
        except Problem as problem:
            self._wrong.append(f"the boss's lines in ~/.ssh/authorized_keys of {host} could not be removed: {problem}")

    def _revoke(self, master: Master) -> None:
        """Revoke the key of the workers. The next `hosts up` makes a new one."""
        name = self._journal.file.invitation
        if name and not self._wrong:
            try:
                master.admin("invite", "--revoke", name)
            except Problem as problem:
                print(f"the workers' key {name} is not revoked: {problem}", flush=True)
