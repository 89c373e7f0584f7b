"""The directory of a boss's own files; everything in it is named here. Makes directories, never reads them."""

from __future__ import annotations

import os
from pathlib import Path

from datastore.problem import Problem

PRIVATE = 0o700


class Home:
    """A boss's directory (`ECLOUD_HOME`, default `~/.ecloud`)."""

    def __init__(self, path: Path | str) -> None:
        try:
            self.path = Path(path).expanduser().absolute()
        except RuntimeError:  # no HOME, and no entry for this user
            text = f"the home {path} cannot be found: HOME is not set and user {os.getuid()} has no account entry here"
            raise Problem(text, "set HOME or ECLOUD_HOME") from None
        self.database = self.path / "ecloud.db"
        self.secrets = self.path / "secrets"
        self.cluster_key = self.secrets / "cluster.key"
        self.client_access = self.path / "client.access"
        self.invitations = self.path / "invitations.jsonl"
        self.boss_lock = self.path / "boss.lock"
        self.boss_pid = self.path / "boss.pid"
        self.log = self.path / "boss.log"
        self.boss_numbers = self.path / "boss.numbers.json"
        self.events = self.path / "events.json"
        self.monitor_address = self.path / "monitor.out"
        self.broker = self.path / "broker"
        self.workers = self.path / "workers"
        self.datastore = self.path / "datastore"
        self.backups = self.path / "backups"

    def make(self) -> Home:
        """Make the directories, readable by their owner only. Raises `OSError` with the path if that is impossible."""
        for directory in (self.path, self.secrets, self.broker, self.workers, self.backups):
            directory.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        os.chmod(self.secrets, PRIVATE)
        return self
