"""Resolves the hosts of a call from their addresses and numbers. Reads a list of hosts; never contacts one."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from datastore.problem import Problem
from ecloud.config.hosts_file import LOCAL, HostsOptions
from ecloud.config.settings import HOST_PATTERN

HOSTS_TXT = "hosts.txt"
MAX_SLOTS = 1_000


class Plan(msgspec.Struct, frozen=True):
    """The hosts of a call. `master`: host of boss and broker; `workers`: hosts of workers, each once."""

    master: str
    workers: tuple[str, ...]

    @property
    def all_hosts(self) -> tuple[str, ...]:
        """All hosts that the command contacts, each once."""
        remote = (self.master,) if self.master != LOCAL else ()
        return tuple(dict.fromkeys((*remote, *self.workers)))


def read_hosts(path: Path) -> tuple[str, ...]:
    """Read one host a line; a # begins a comment. Raises `Problem`."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"{path}: {getattr(error, 'strerror', None) or 'not text'}", "name hosts with -a") from None
    return tuple(words for line in text.splitlines() if (words := line.partition("#")[0].strip()))


def plan(options: HostsOptions) -> Plan:
    """Assign the roles to hosts. Raises `Problem` that lists everything wrong."""
    wrong = [
        f"{host!r} is neither user@host[:port] nor a name of your ssh configuration"
        for host in options.hosts
        if not HOST_PATTERN.fullmatch(host)
    ]
    if len(set(options.hosts)) != len(options.hosts):
        twice = sorted({host for host in options.hosts if options.hosts.count(host) > 1})
        wrong.append(f"named twice: {', '.join(twice)}")
    if options.key and not Path(options.key).is_file():
        wrong.append(f"the key {options.key} is not a file")
    if options.project:
        place = Path(options.project)
        if not place.is_dir():
            wrong.append(f"the project {options.project} is not a directory")
        elif not re.fullmatch(r"[A-Za-z_]\w*", place.name):
            wrong.append(f"the project's directory {place.name!r} is not a valid name of a Python package: rename it")
    if not 1 <= options.slots <= MAX_SLOTS:
        wrong.append(f"slots = {options.slots}: 1 to {MAX_SLOTS}")
    master = _numbered(options, options.master, "-m", wrong)
    named = options.workers or tuple(str(number) for number in range(1, len(options.hosts) + 1))
    workers = tuple(dict.fromkeys(host for name in named if (host := _numbered(options, name, "-w", wrong))))
    if not workers and not wrong:
        wrong.append(f"no hosts: name them with -a user@host1,user@host2, or one per line in {HOSTS_TXT}")
    if wrong:
        raise Problem(wrong)
    return Plan(master, workers)


def _numbered(options: HostsOptions, name: str, option: str, wrong: list[str]) -> str:
    """Return the host with a number; if there is none, return "" and add a sentence to `wrong`."""
    if name == LOCAL or name in options.hosts:
        return name
    if name.isdecimal() and 1 <= int(name) <= len(options.hosts):
        return options.hosts[int(name) - 1]
    wrong.append(f"{option} {name}: local, or a number from 1 to {len(options.hosts)}")
    return ""
