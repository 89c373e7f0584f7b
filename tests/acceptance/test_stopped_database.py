"""A database server that is stopped, not dead: it accepts connections, answers nothing. Every command ends with 3."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from databases import MariaDb
from doors import Doors
from services import ROOT, Daemon

from ecloud.cli.app import ANSWER_S

LOADED = 4
"""A loaded machine may take this many times as long; without a limit a command would wait for 120 s and more."""


@pytest.mark.long
def test_each_command_ends_while_the_database_is_stopped(
    mariadb: MariaDb, daemons: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = daemons(DATABASE_URL=mariadb.new_url())
    doors = Doors(tmp_path / "place", daemon)
    doors.admin("migrate")
    assert mariadb.process is not None
    os.kill(mariadb.process.pid, signal.SIGSTOP)
    try:
        for words in (["status"], ["show_tasks"], ["why", "x"], ["doctor"]):
            command = [sys.executable, str(ROOT / "admin.py"), *words]
            done = subprocess.run(command, env=doors.environment, capture_output=True, timeout=LOADED * ANSWER_S)
            text = (done.stdout + done.stderr).decode()
            assert done.returncode == 3, text
            assert str(mariadb.port) in text, "the message names the server"
            assert "Traceback" not in text
    finally:
        os.kill(mariadb.process.pid, signal.SIGCONT)
