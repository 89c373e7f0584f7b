"""Processes of this machine: which one a pid means, and how one ends with its parent. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

PR_SET_PDEATHSIG = 1


def start_time(pid: int) -> str | None:
    """When a process started, in clock ticks after boot: with its pid it names it for ever. None where it is gone or a
    zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Get a signal when the process that started this one ends; at once where it has ended already."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
