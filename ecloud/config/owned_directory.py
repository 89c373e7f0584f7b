"""Temporary directories of a process: of a private cluster, its values, and a key. They do not outlive the process.

The process locks a file in each of its directories as long as it lives. It removes them at its end, also at SIGTERM.
If it was killed, the next process that makes such a directory removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import weakref
from pathlib import Path
from types import FrameType
from typing import Any

from ecloud.config.home import Home

LOCAL, VALUES, KEY = "ecloud-local-", "ecloud-values-", "ecloud-key-"
"""How the names of homes of private clusters, of their datastores, and of directories of a key begin."""
OWNER = "owner.lock"
KILL_S = 2.0

_removals: dict[str, Any] = {}
"""What removes the directories of this process, by path; the oldest first."""


class OwnedDirectory:
    """A new directory in `$TMPDIR`, removed with this object, by `remove`, or with the process."""

    def __init__(self, prefix: str) -> None:
        remove_left_overs()
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self._users: list[subprocess.Popen[bytes]] = []
        lock = _new_lock(self.path)
        self.remove = weakref.finalize(self, _remove, self.path, lock, self._users, os.getpid())
        _removals[str(self.path)] = self.remove
        _remove_at_term()

    def is_used_by(self, process: subprocess.Popen[bytes]) -> None:
        """Kill this process before the directory is removed, if it still runs."""
        self._users.append(process)


def _remove(path: Path, lock: int, users: list[subprocess.Popen[bytes]], owner: int) -> None:
    if os.getpid() != owner:  # a fork of the owner
        return
    _removals.pop(str(path), None)
    for process in users:
        if process.poll() is None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILL_S)
    _clear(path)
    os.close(lock)


def _clear(path: Path) -> None:
    """Remove a directory. Its lock file is last, so that a later process removes what could not be removed now."""
    with contextlib.suppress(OSError):
        for item in os.scandir(path):
            if item.is_dir(follow_symlinks=False):
                shutil.rmtree(item.path, ignore_errors=True)
            elif item.name != OWNER:
                os.unlink(item.path)
        if os.listdir(path) == [OWNER]:
            shutil.rmtree(path, ignore_errors=True)


def _new_lock(directory: Path) -> int:
    """Make the lock file, which is locked before it has its name."""
    unnamed = directory / f"{OWNER}.new"
    file = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unnamed.rename(directory / OWNER)
    return file


def remove_left_overs() -> None:
    """Remove directories whose owner was killed: no process holds their locks."""
    for directory in Path(tempfile.gettempdir()).glob("ecloud-*"):
        if directory.name.startswith((LOCAL, VALUES, KEY)):
            with contextlib.suppress(OSError):  # of another user, in use, being created, or just removed
                if directory.stat().st_uid == os.getuid() and not _is_locked(Home(directory).boss_lock):
                    with (directory / OWNER).open("rb+") as lock:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        _clear(directory)


def _is_locked(file: Path) -> bool:
    """Whether a boss still runs in a home: it ends shortly after the owner. Raises `OSError`."""
    try:
        with file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _remove_at_term() -> None:
    """Have SIGTERM remove the directories, unless the program handles this signal."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_term)


def _on_term(number: int, frame: FrameType | None) -> None:
    for remove in reversed(tuple(_removals.values())):  # the boss of a private cluster ends before its values go
        remove()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
