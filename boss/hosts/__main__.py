"""`python -m boss.hosts`: the program behind `admin.py hosts`, with its call as JSON on the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from boss.hosts.down import Down
from boss.hosts.fleet import connected
from boss.hosts.journal import Journal
from boss.hosts.plan import HOSTS_TXT, plan, read_hosts
from boss.hosts.run_module import run
from boss.hosts.status import show
from boss.hosts.up import Up
from boss.hosts.update import Update
from datastore.problem import DONE, INTERRUPTED, Problem
from ecloud.cli import app
from ecloud.cli.host_call import HostsCall
from ecloud.config import hosts_file
from ecloud.config.hosts_file import HostsOptions
from ecloud.config.settings import load_settings


def options_of(call: HostsCall, kept: HostsOptions | None) -> HostsOptions:
    """Return the options of the call; with `call.again`, the kept options, updated by those of the call. Raises
    `Problem`."""
    given = {name: value for name, value in msgspec.structs.asdict(call.options).items() if value is not None}
    if call.again:
        if kept is None:
            raise Problem("-f uses the options of the last hosts up, and there was none", "name hosts with -a")
        return msgspec.structs.replace(kept, **given)
    if "hosts" not in given and given.get("workers") != ("local",):
        path = Path(call.hosts_file or HOSTS_TXT)
        if call.hosts_file or path.exists():
            given["hosts"] = read_hosts(path)
    return HostsOptions(**given)


def act(call: HostsCall) -> int:
    """Carry out the call; return the exit code. Raises `Problem`."""
    settings = load_settings()
    home = settings.home_directory
    kept = hosts_file.read(home)
    if call.action == "up":
        options = options_of(call, kept.options if kept is not None else None)
        meant = plan(options)
        journal = Journal(home, options)
        with connected(journal.file, meant.all_hosts) as fleet:
            Up(journal, fleet, meant, settings, call.skip_failed).run()
            return show(journal, fleet, settings, call.as_json)
    journal = Journal(home)
    if call.action == "update" and call.options.project is not None:
        journal.change(options=msgspec.structs.replace(journal.file.options, project=call.options.project))
    hosts = list(dict.fromkeys(item.host for item in journal.file.started))
    with connected(journal.file, hosts) as fleet:
        match call.action:
            case "down":
                return Down(journal, fleet, settings, call.purge).run()
            case "status":
                return show(journal, fleet, settings, call.as_json)
            case "update" | "restart":
                meant = plan(journal.file.options)
                return Update(journal, fleet, meant, settings, call.drain_s, call.action == "update").run()
            case _:
                return run(journal, fleet, settings, call.module, call.words, call.fetch, Path(call.to))


def main() -> int:
    """Run the call; report errors as `admin.py` prints them."""
    paths = os.environ.pop("ECLOUD_PYTHONPATH", None)
    if paths is not None:  # PYTHONPATH as it was before admin.py added our code
        os.environ["PYTHONPATH"] = paths
    try:
        return act(msgspec.json.decode(sys.argv[1].encode(), type=HostsCall))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Problem as problem:
        return app.report(problem, "admin.py")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.exit(code or DONE)
