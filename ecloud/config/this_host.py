"""The properties of this machine and its offer to one process: CPUs, memory, GPUs, names. Changes nothing.

CPUs and memory are the part of the machine that the affinity mask, the control groups (v1 and v2, this one and all
above it) and a Slurm allocation permit.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

SMI_S = 10.0
CGROUPS = Path("/sys/fs/cgroup")
LEAST_CPUS = 1.0
"""Offered even if the limits permit less: tasks request one CPU by default."""
SYSTEMCTL_S = 2.0
NO_LIMIT_BYTES = 1 << 60
"""How control groups v1 say that memory is not limited: the largest number of pages."""


# --- CPUs and memory ------------------------------------------------------------------------------------


def cpus(environment: Mapping[str, str] = os.environ) -> float:
    """CPUs that this process may use."""
    limits = [float(len(os.sched_getaffinity(0))), *_cgroup_cpus()]
    limits += _slurm(environment, "SLURM_CPUS_ON_NODE")
    return max(LEAST_CPUS, min(limits))


def memory_mb(environment: Mapping[str, str] = os.environ) -> float:
    """Memory that this process may use, in MB (10^6 bytes)."""
    limits = [float(psutil.virtual_memory().total), *_cgroup_memory()]
    per_node = _slurm(environment, "SLURM_MEM_PER_NODE")
    per_cpu = _slurm(environment, "SLURM_MEM_PER_CPU")
    limits += [amount * 1024 * 1024 for amount in per_node]  # Slurm's megabytes are 2^20 bytes
    limits += [amount * 1024 * 1024 * cpus(environment) for amount in per_cpu]
    return float(int(min(limits) / 1e6))


def part(environment: Mapping[str, str] = os.environ) -> str:
    """Names what limits this process on its machine: an affinity mask, control groups, a Slurm job; empty for nothing.

    Processes with the same name share what `cpus` and `memory_mb` say; those with other names do not.
    """
    found = []
    mask = os.sched_getaffinity(0)
    if len(mask) < (os.cpu_count() or len(mask)):
        found.append(f"cpus {sorted(mask)}")
    if "SLURM_JOB_ID" in environment:
        found.append(f"job {environment['SLURM_JOB_ID']}")
    groups = [group for group in _own_groups("cpu") if any(_cpu_limits(group))]
    groups += [group for group in _own_groups("memory") if any(_memory_limits(group))]
    for group in groups:
        with contextlib.suppress(OSError):  # by inode: in a container each group is called `/`
            info = group.stat()
            found.append(f"group {info.st_dev}:{info.st_ino}")
    return hashlib.blake2b("; ".join(found).encode(), digest_size=8).hexdigest() if found else ""


def machine_id() -> str:
    """The number that an installed system has; empty where it has none."""
    return _read("/etc/machine-id")


def _slurm(environment: Mapping[str, str], name: str) -> list[float]:
    """Return a number of the job that this process belongs to; empty outside a job. Slurm sets 0 for all of a node."""
    if "SLURM_JOB_ID" not in environment:
        return []
    try:
        amount = float(environment.get(name, ""))
    except ValueError:
        return []
    return [amount] if amount > 0 else []


def _cgroup_cpus() -> Iterator[float]:
    for group in _own_groups("cpu"):
        yield from _cpu_limits(group)


def _cpu_limits(group: Path) -> Iterator[float]:
    limit, _, period = _read(group / "cpu.max").partition(" ")  # v2
    if limit.isdigit() and period.isdigit():
        yield int(limit) / int(period)
    quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")  # v1
    if quota.isdigit() and period.isdigit() and int(quota) > 0:
        yield int(quota) / int(period)


def _cgroup_memory() -> Iterator[float]:
    for group in _own_groups("memory"):
        yield from _memory_limits(group)


def _memory_limits(group: Path) -> Iterator[float]:
    for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
        if (limit := _read(group / name)).isdigit() and int(limit) < NO_LIMIT_BYTES:
            yield float(limit)


def memory_group() -> Path | None:
    """Return the directory of this process's control group that can limit memory; None without one."""
    for group, _ in _groups("memory"):
        if (group / "memory.limit_in_bytes").exists() or "memory" in _read(group / "cgroup.controllers").split():
            return group
    return None


def _own_groups(controller: str) -> Iterator[Path]:
    """Yield the directories of the control groups that may limit this process: its own, and all above it."""
    for group, mounted in _groups(controller):
        while group.is_relative_to(mounted):
            yield group
            group = group.parent


def _groups(controller: str) -> Iterator[tuple[Path, Path]]:
    """Yield this process's control group in each hierarchy that may have the controller, and where that is mounted."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        top = _mounted_at(names)
        if top is None:
            continue
        mounted, root = top
        # In a container the mount may show only a part of the tree, whose top has another name outside.
        inside = os.path.relpath(path, root) if path == root or path.startswith(root.rstrip("/") + "/") else "."
        yield Path(os.path.normpath(mounted / inside)), mounted


def _mounted_at(names: str) -> tuple[Path, str] | None:
    """Return the mount point of the hierarchy of these controllers (none: v2), and the group that is its top there."""
    for line in _read("/proc/self/mountinfo").splitlines():
        fields, _, kind = line.partition(" - ")
        parts, (kind_name, *options) = fields.split(), kind.split()
        if names and kind_name == "cgroup" and set(names.split(",")) & set(options[-1].split(",")):
            return Path(parts[4]), parts[3]
        if not names and kind_name == "cgroup2":
            return Path(parts[4]), parts[3]
    return None


def _read(path: Path | str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


# --- GPUs -----------------------------------------------------------------------------------------------


def gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the GPUs that this process may use, in the form of `CUDA_VISIBLE_DEVICES`: by index, or by UUID if it uses
    these.

    These are the GPUs that `nvidia-smi` or `rocm-smi` shows and that the environment makes visible.
    """
    present = nvidia_gpus()
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if name in environment and (present or not name.startswith("CUDA")):
            return _visible(environment[name], present or dict.fromkeys(amd_gpus(), ""))
    return tuple(present) or amd_gpus()


def gpus_that_answer(offered: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return those of `offered` that `nvidia-smi` or `rocm-smi` shows now. None if neither is installed: nothing is
    known."""
    if shutil.which("nvidia-smi") is None and shutil.which("rocm-smi") is None:
        return None
    nvidia = nvidia_gpus()
    present = {*nvidia, *nvidia.values(), *amd_gpus()}
    return tuple(gpu for gpu in offered if any(_is_gpu(gpu, shown) for shown in present))


def _is_gpu(named: str, shown: str) -> bool:
    """Whether both names mean the same GPU: a UUID may be abbreviated to its beginning."""
    return shown == named or (named.startswith(("GPU-", "MIG-")) and shown.startswith(named))


def _visible(named: str, present: Mapping[str, str]) -> tuple[str, ...]:
    """Return the present GPUs of a list. `present`: UUIDs by index. As in CUDA, the first missing one ends the list."""
    found: list[str] = []
    for item in named.split(","):
        name = item.strip()
        is_uuid = name.startswith(("GPU-", "MIG-")) and any(
            uuid.startswith(name) or name.startswith("MIG-") for uuid in present.values()
        )
        if not (name in present or is_uuid) or name in found:
            break
        found.append(name)
    return tuple(found)


def nvidia_gpus() -> dict[str, str]:
    """Return UUIDs by index; MIG instances by UUID. Ignores lines about a GPU that does not answer, and the exit code
    that they cause."""
    lines = _output("nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader")
    found = {}
    for line in lines:
        index, _, uuid = (part.strip() for part in line.partition(","))
        if re.fullmatch(r"\d{1,4}", index):
            found[index] = uuid
    return _with_instances(found) if found else {}


def _with_instances(present: dict[str, str]) -> dict[str, str]:
    """Replace a GPU that is divided (MIG) by the UUIDs of its instances: only these can be used."""
    instances: dict[str, list[str]] = {}
    index = ""
    for line in _output("nvidia-smi", "-L"):
        if top := re.match(r"GPU (\d+):", line):
            index = top[1]
        elif instance := re.match(r"\s+MIG .*\(UUID: (MIG-[^)\s]+)\)", line):
            instances.setdefault(index, []).append(instance[1])
    found: dict[str, str] = {}
    for gpu, uuid in present.items():
        if gpu in instances:
            found.update((instance, instance) for instance in instances[gpu])
        else:
            found[gpu] = uuid
    return found


def amd_gpus() -> tuple[str, ...]:
    """Return the indices of AMD's GPUs."""
    found = (re.match(r"GPU\[(\d+)\]", line) for line in _output("rocm-smi", "--showid"))
    return tuple(dict.fromkeys(match[1] for match in found if match))


def _output(*command: str) -> list[str]:
    """Return the lines that a program prints; none if it is not installed or does not end in time."""
    if shutil.which(command[0]) is None:
        return []
    try:
        done = subprocess.run(command, capture_output=True, timeout=SMI_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.decode("utf-8", "replace").splitlines()


# --- names and state ------------------------------------------------------------------------------------


def boot_id() -> str:
    """Return an id that changes with each boot."""
    return _read("/proc/sys/kernel/random/boot_id")


def addresses() -> tuple[str, ...]:
    """Return addresses by which other machines may reach this one."""
    found = [
        address.address
        for items in psutil.net_if_addrs().values()
        for address in items
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    return tuple(found[:8]) or ("127.0.0.1",)


def load() -> float:
    """Return the load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def machine_is_stopping() -> bool:
    """Whether this machine shuts down, according to systemd; False without systemd."""
    if not os.path.isdir("/run/systemd/system"):
        return False
    try:
        done = subprocess.run(
            ["systemctl", "is-system-running"], capture_output=True, text=True, timeout=SYSTEMCTL_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.stdout.strip() == "stopping"
