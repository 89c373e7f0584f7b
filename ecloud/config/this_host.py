"""What this machine is and offers: CPUs, memory, GPUs, names. Reads /proc, cgroups and nvidia-smi; changes nothing."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import psutil

NVIDIA_SMI_S = 10.0


def cpus() -> float:
    """CPUs this process may use: affinity, and the cgroup's quota where there is one."""
    allowed = float(len(os.sched_getaffinity(0)))
    quota = _cgroup_quota()
    return min(allowed, quota) if quota else allowed


def _cgroup_quota() -> float | None:
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
        return None if limit == "max" else max(1.0, int(limit) / int(period))
    except (OSError, ValueError):
        pass
    try:
        quota = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        return None if quota <= 0 else max(1.0, quota / period_us)
    except (OSError, ValueError):
        return None


def memory_mb() -> float:
    """Memory, or the cgroup's limit, in MB."""
    total = psutil.virtual_memory().total
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return float(int(total / 1e6))


def gpus() -> tuple[int, ...]:
    """Indices of NVIDIA GPUs; none where nvidia-smi is missing or fails."""
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True)
        return tuple(int(line) for line in found.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()


def boot_id() -> str:
    """Changes with each boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def addresses() -> tuple[str, ...]:
    """Addresses other machines might know it by."""
    found = [
        address.address
        for items in psutil.net_if_addrs().values()
        for address in items
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    return tuple(found[:8]) or ("127.0.0.1",)


def load() -> float:
    """The load average of the last minute."""
    return round(os.getloadavg()[0], 2)
