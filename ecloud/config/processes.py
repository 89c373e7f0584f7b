"""Processes of this machine: identifies them beyond their pid, and ends one with its parent. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

PR_SET_PDEATHSIG = 1


def start_time(pid: int) -> str | None:
    """Return when a process started, in clock ticks after boot: together with its pid this identifies it uniquely. None
    if it has ended or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Have this process receive a signal when its parent ends; immediately if it has ended already."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
