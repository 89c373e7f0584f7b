"""Finds and ends what a worker process left running on this machine, from its home alone.

Normally nothing is left: a worker's launchers end its tasks immediately when it dies. This is for agents and launchers
that were killed at the same moment. Uses four traces, since none of them alone is always sufficient:

- the launchers themselves, and all their descendants;
- the process groups and sessions that the home's record names (by pid and start time);
- processes whose environment names the home;
- descendants and companions (same session) of all of these.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from ecloud.config import this_host
from ecloud.config.processes import start_time

RUNNING = "running"
"""Below a worker's home: a link per long-running shell, named by its pid; its target is the text from `trace`."""
SHARED = "shared"
"""Below a worker's home: the directory that tasks know as `$ECLOUD_WORKER_DIR`."""
END_S = 5.0


class _Process(NamedTuple):
    pid: int
    parent: int
    group: int
    session: int
    started: str
    is_zombie: bool
    uid: int


def end(home: Path, wait_s: float = END_S, uid: int | None = None) -> int:
    """KILL everything that tasks of this worker home left, or of all homes below it; return the number of processes.

    The caller makes sure that no agent uses them. Never ends this process or one of its ancestors. `uid`: the account
    of the home, which may have written anything into it: only processes of this account are ended.
    """
    seen: set[int] = set()
    deadline = time.monotonic() + wait_s
    while (left := find(home, uid)) and time.monotonic() < deadline:
        seen |= left
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    for record in _records(home):
        with contextlib.suppress(OSError):
            for item in record.iterdir():
                item.unlink(missing_ok=True)
    return len(seen)


def _records(home: Path) -> list[Path]:
    return [home / RUNNING, *home.glob(f"*/home/{RUNNING}")]


def trace(pid: int) -> str:
    """Return what the record keeps of a shell besides its pid: the machine's boot and the shell's start."""
    return f"{this_host.boot_id()}:{start_time(pid) or 'gone'}"


def find(home: Path, uid: int | None = None) -> set[int]:
    """Return the pids of leftover processes, without zombies. `uid`: of this account only."""
    table = _table()
    if uid is not None:
        table = {pid: process for pid, process in table.items() if process.uid == uid}
    recorded = _recorded(home, table)
    wanted = b"ECLOUD_WORKER_DIR=" + os.fsencode(home.absolute()) + b"/"
    found = {pid for pid in table if pid in recorded or _carries(pid, wanted)}
    spared = _ancestors(os.getpid(), table)
    while True:
        sessions = {table[pid].session for pid in found} | recorded
        more = {
            process.pid
            for process in table.values()
            if process.pid not in found and (process.parent in found or process.session in sessions)
        } - spared
        if not more:
            return {pid for pid in found - spared if not table[pid].is_zombie}
        found |= more


def _recorded(home: Path, table: dict[int, _Process]) -> set[int]:
    """Return the sessions that the record names. If the leader has ended, its number still names the session of its
    descendants: the kernel does not reuse a pid that is in use as a session."""
    found = set()
    boot = this_host.boot_id()
    for record in _records(home):
        with contextlib.suppress(OSError):
            for item in record.iterdir():
                with contextlib.suppress(OSError, ValueError):
                    pid = int(item.name)
                    its_boot, _, started = os.readlink(item).partition(":")
                    if its_boot == boot and (pid not in table or table[pid].started == started):
                        found.add(pid)
    return found


def _carries(pid: int, wanted: bytes) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(variable.startswith(wanted) for variable in variables)


def _ancestors(pid: int, table: dict[int, _Process]) -> set[int]:
    found = set()
    while pid in table and pid not in found:
        found.add(pid)
        pid = table[pid].parent
    return found


def _table() -> dict[int, _Process]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError, IndexError):
                fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
                uid = os.stat(f"/proc/{name}").st_uid
                parent, group, session = map(int, fields[1:4])
                found[int(name)] = _Process(
                    int(name), parent, group, session, fields[19].decode(), fields[0] in (b"Z", b"X"), uid
                )
    return found
