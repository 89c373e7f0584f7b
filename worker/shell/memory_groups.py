"""Finds the cgroup in which this worker may limit the memory of its tasks.

With cgroup v2 a group has either processes or limited groups in it: there the agent moves to a group of its own. That
needs a group for this worker alone, as systemd gives to a service with `Delegate=yes`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ecloud.config import this_host

AGENT = "ecloud-agent"


def parent_of_tasks(group: Path | None = None) -> str:
    """Return the cgroup below which launchers may make theirs; empty if this process may make none. Call it before the
    first launcher starts. `group`: this process's own one [the one it is in]."""
    group = group or this_host.memory_group()
    if group is None:
        return ""
    is_v1 = (group / "memory.limit_in_bytes").exists()
    if group.name == AGENT and not is_v1:  # this agent replaced itself
        group = group.parent
    if not os.access(group, os.W_OK) or not (is_v1 or _gives_memory(group)):
        return ""
    _remove_old(group)
    return str(group)


def _gives_memory(group: Path) -> bool:
    """Whether groups below this one of v2 can limit memory, now that the agent has left it."""
    try:
        switch = group / "cgroup.subtree_control"
        if "memory" in switch.read_text().split():
            return True
        if (group / "cgroup.procs").read_text().split() != [str(os.getpid())]:
            return False  # others live here
        own = group / AGENT
        own.mkdir(exist_ok=True)
        (own / "cgroup.procs").write_text(str(os.getpid()))
        switch.write_text("+memory")
    except OSError:
        return False
    return True


def _remove_old(group: Path) -> None:
    """Remove what launchers left that were killed together with their agent."""
    for old in group.glob("ecloud-[0-9]*"):
        if not Path(f"/proc/{old.name.removeprefix('ecloud-')}").exists():
            with contextlib.suppress(OSError):
                old.rmdir()
