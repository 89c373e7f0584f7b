"""The file of a deployment while a command works: each change is on disk before the action that it describes."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from datastore.problem import PART_AWAY, Problem
from ecloud.config import hosts_file
from ecloud.config.home import Home
from ecloud.config.hosts_file import HostsFile, HostsOptions, Started


class Journal:
    """`hosts.toml` of a home, locked by one command at a time. `file`: its present content."""

    def __init__(self, home: Home, options: HostsOptions | None = None) -> None:
        """`options`: those of `up`; None for commands that need an existing deployment. Raises `Problem`."""
        home.make()
        self.home = home
        self._lock = os.open(home.path / "hosts.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Problem(f"another `hosts` command works in {home.path}", "wait for it", PART_AWAY) from None
        found = hosts_file.read(home)
        if found is None and options is None:
            raise Problem(f"no hosts are up: {hosts_file.path_of(home)} does not exist", "python admin.py hosts up")
        self.file: HostsFile = found or hosts_file.new_file(options or HostsOptions())
        if options is not None:
            self.change(options=options)

    def change(self, **fields: Any) -> None:
        """Change fields; they are on disk on return. Raises `Problem`."""
        self.file = msgspec.structs.replace(self.file, **fields)
        hosts_file.write(self.home, self.file)

    def starting(self, items: Iterable[tuple[str, str, int]]) -> None:
        """Record the intents of (host, kind, number) before anything is started."""
        there = {(item.host, item.kind, item.number) for item in self.file.started}
        now = time.time()
        new = tuple(Started(*item, now) for item in items if item not in there)
        if new:
            self.change(started=(*self.file.started, *new))

    def ended(self, has_ended: Callable[[Started], bool]) -> None:
        """Remove the intents of processes that have ended."""
        self.change(started=tuple(item for item in self.file.started if not has_ended(item)))

    def hosts_of(self, kind: str) -> list[str]:
        """Return the hosts on which a process of a kind was started, each once."""
        return list(dict.fromkeys(item.host for item in self.file.started if item.kind == kind))
