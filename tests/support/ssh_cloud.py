"""A cloud whose guests have an sshd, of either kind of image, and bosses with one pool there."""

from __future__ import annotations

import getpass
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opennebula_double import OpenNebula
from services import ROOT, Daemon, free_port

PoolDaemon = Callable[..., Daemon]
START_S = 60.0
"""Until agents of new VMs work: each is a Python that starts, on a machine that has other things to do."""
TASKS = """[{"id": "a", "commands": "echo one > out", "results": ["out"]},
 {"id": "b", "commands": "cat in > out2; echo two >> out2", "requirements": [["out", "in"]],
  "results": ["out2"], "dependencies": ["a"]}]"""


@pytest.fixture
def ssh_cloud(tmp_path: Path) -> Iterator[OpenNebula]:
    """Its templates: `inside`, which has ECLOUD, `bare`, and `old`, whose Python is too old."""
    made = OpenNebula(tmp_path / "cloud").start()
    made.ssh_port = free_port()
    made.add_worker_template("inside", "ecloud")
    made.add_worker_template("bare", "bare")
    made.add_worker_template("old", "bare old python")
    yield made
    made.end()


@pytest.fixture
def pool_daemon(daemons: PoolDaemon, ssh_cloud: OpenNebula) -> PoolDaemon:
    """Makes bosses whose only pool is `big` of that cloud."""

    def make(template: str, code: str, **settings: Any) -> Daemon:
        pool = {"name": "big", "cloud": "opennebula", "template": template, "maximum": 1, "memory_mb": 500}
        pool |= {"code": code, "ssh_user": getpass.getuser(), "ssh_port": ssh_cloud.ssh_port}
        cloud = {"OPENNEBULA_URL": ssh_cloud.url, "OPENNEBULA_USER": "alice", "OPENNEBULA_PASSWORD": "PASSWORD"}
        return daemons(**{**cloud, "POOLS": (pool,), "IDLE_VM_S": 0.5, **settings})

    return make


def push(daemon: Daemon, tmp_path: Path, *options: str) -> None:
    """As a user types it."""
    (tmp_path / "tasks.json").write_text(TASKS)
    command = [sys.executable, "push_tasks.py", str(tmp_path / "tasks.json"), *options]
    subprocess.run(command, cwd=ROOT, env=daemon.environment, check=True, timeout=2 * START_S, capture_output=True)
