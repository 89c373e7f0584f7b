"""`hosts status`: one line for each process of a deployment, from what the hosts and the boss report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from boss.hosts.fleet import Fleet
from boss.hosts.journal import Journal
from boss.hosts.master import open_master
from boss.hosts.tunnels import keeper
from boss.providers import ssh_hosts_scripts as scripts
from boss.providers.ssh_hosts import LOCAL
from boss.providers.ssh_hosts_scripts import HostProbe
from datastore.problem import DONE, PART_AWAY, Problem
from ecloud.cli import app
from ecloud.cli.tables import print_json, print_table, some
from ecloud.config.hosts_file import Started
from ecloud.config.settings import Settings
from ecloud.model.text import duration


class HostLine(msgspec.Struct, frozen=True):
    """One process on a host. `state`: `up` (runs, and the boss receives its messages), `unheard` (runs), `gone`, `away`
    (its host cannot be reached: `problem` gives the reason); `since`: epoch seconds; `containers`: runtimes that are
    installed there."""

    host: str
    kind: str
    number: int
    state: str
    since: float = 0.0
    cpus: int = 0
    gpus: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    load: float = 0.0
    containers: tuple[str, ...] = ()
    units: str = ""
    problem: str = ""


_Told = tuple[HostProbe, dict[tuple[str, int], tuple[str, float, int]]]


def show(journal: Journal, fleet: Fleet, settings: Settings, as_json: bool) -> int:
    """Print the table; return 3 if a process does not run."""
    hosts = list(dict.fromkeys(item.host for item in journal.file.started if item.kind != "tunnels"))
    told = fleet.each(hosts, lambda host: ask_host(fleet, host))
    heard, problem = _heard(journal, fleet, settings)
    lines = [_line(journal, item, told, heard, settings) for item in journal.file.started]
    if as_json:
        print_json({"deployment": journal.file.deployment, "problem": problem, "hosts": lines})
    else:
        _print(lines)
        if problem:
            print(f"the boss does not answer: {problem}")
    return DONE if not problem and all(line.state == "up" for line in lines) else PART_AWAY


def ask_host(fleet: Fleet, host: str) -> _Told:
    """Return the facts of a host, and its processes by kind and number: (state, since, pid)."""
    probe = fleet.probe(host)
    found = {}
    script = b"".join(b"(\n" + scripts.list_script(fleet.place(kind)) + b")\n" for kind in ("worker", "boss"))
    printed = fleet.run(host, script)
    for kind, part in zip(("worker", "boss"), printed.split("listed\n")):
        for line in part.splitlines():
            words = line.split()
            if len(words) == 6 and words[0] == "vm":
                found[kind, int(words[1])] = (words[2], float(words[3]), int(words[5]))
    return probe, found


def _heard(journal: Journal, fleet: Fleet, settings: Settings) -> tuple[list[dict[str, Any]], str]:
    masters = journal.hosts_of("boss")
    if not masters:
        return [], "none was started"
    try:
        return open_master(fleet, masters[0], settings).workers(), ""
    except Problem as problem:
        return [], str(problem)


def _line(
    journal: Journal, item: Started, told: dict[str, _Told | str], heard: Sequence[dict[str, Any]], settings: Settings
) -> HostLine:
    line = HostLine(item.host, item.kind, item.number, "gone")
    replace = msgspec.structs.replace
    if item.kind == "tunnels":
        return replace(line, state="up" if keeper(journal.home) is not None else "gone", since=item.at)
    answer = told[item.host]
    if isinstance(answer, str):
        return replace(line, state="away", problem=answer)
    probe, processes = answer
    line = replace(
        line, cpus=probe.cpus, gpus=probe.gpus, load=probe.load, containers=probe.containers, units=probe.units
    )
    if item.kind == "boss" and item.host == LOCAL:
        about = app.running_boss(settings.home_directory)
        return line if about is None else replace(line, state="up", since=float(about.get("started", 0.0)))
    state, since, pid = processes.get((item.kind, item.number), ("gone", 0.0, 0))
    if state != "lives":
        return replace(line, since=since)
    if item.kind == "boss":
        return replace(line, state="up", since=since)
    row = next((row for row in heard if (row["host"], row["pid"]) == (probe.name, pid)), None)
    if row is None or row["state"] == "lost":
        return replace(line, state="unheard", since=since)
    return replace(line, state=row["state"], since=since, running=tuple(row["running"]), problem=row["trouble"])


def _print(lines: Sequence[HostLine]) -> None:
    now = time.time()
    rows = []
    for line in lines:
        what = f"{line.kind} {line.number}" if line.kind == "worker" else line.kind
        doing = line.problem or (some(line.running, 3) if line.running else "")
        gpus = str(len(line.gpus)) if line.gpus else ""
        since = duration(now - line.since) if line.since else ""
        cpus = str(line.cpus) if line.cpus else ""
        load = f"{line.load:.2f}" if line.cpus else ""
        rows.append((line.host, what, line.state, since, cpus, gpus, load, doing))
    columns = ("host", "what", "state", "since", "CPUs", "GPUs", "load", "running")
    if rows:
        print_table(app.console(), columns, rows, ("CPUs", "GPUs", "load"))
    else:
        print("nothing was started")
