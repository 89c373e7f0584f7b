"""Nothing that a task started survives a killed agent, nor `stop --vms`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from doors import Doors
from services import wait_until

from worker.launcher import descendants


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in b"ZX"
    except OSError:
        return False


@pytest.mark.parametrize("whom", ["the agent", "agent and launchers"])
def test_kill_9_leaves_nothing_running(doors: Doors, whom: str) -> None:
    shell, daemon = doors.place / "shell", doors.place / "daemon"
    hidden = doors.place / "hidden"
    hidden.write_text(f"echo $$ > {daemon}; exec sleep 7775")
    command = f"setsid sh {hidden} & echo $$ > {shell}; sleep 7775"
    try:
        doors.admin("start")
        doors.push(doors.write("orphan.json", {"name": "orphan", "tasks": [{"id": "o1", "commands": command}]}))
        wait_until(lambda: all(path.exists() and path.read_text().strip() for path in (shell, daemon)))
        left = [int(path.read_text()) for path in (shell, daemon)]
        (record,) = (doors.place / "home/workers").glob("*/vm.json")
        agent = json.loads(record.read_text())["pid"]
        killed = [agent]
        if whom != "the agent":
            killed += [pid for pid in descendants(agent) if b"launcher.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in killed:
                os.kill(pid, number)
        if whom == "the agent":
            wait_until(lambda: not any(map(is_alive, left)), what="at once, whether or not a boss looks")
    finally:
        doors.admin("stop", "--vms", code=None)
    assert not any(map(is_alive, left))


def test_a_boss_on_an_older_schema_is_stopped_with_its_vms(doors: Doors) -> None:
    doors.admin("start")
    doors.push(doors.write("t.json", {"name": "t", "tasks": [{"id": "t", "commands": "sleep 1000"}]}))
    records = (doors.place / "home/workers").glob
    wait_until(lambda: list(records("*/home/running/*")), what="the task runs")
    agents = [json.loads(record.read_text())["pid"] for record in records("*/vm.json")]
    with closing(sqlite3.connect(doors.place / "home/ecloud.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '0001'")
    assert "has schema 0001" in doors.admin("status", code=3).err
    assert "has left" in doors.admin("stop", "--vms").out
    assert agents
    assert not any(map(is_alive, agents))


def test_a_boss_whose_start_was_killed_is_stopped_before_it_has_written_its_pid(doors: Doors) -> None:
    def bosses() -> list[int]:
        """Processes of this home, named as `start` names them."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                home = process.environ().get("ECLOUD_HOME", "")
                if "boss" in process.cmdline() and Path(home) == doors.place / "home":
                    found.append(process.pid)
        return found

    start = doors.begin("admin.py", "start")
    wait_until(bosses, what="the boss begins")
    start.kill()
    start.communicate()
    doors.admin("stop")
    assert bosses() == []
