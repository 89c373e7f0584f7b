"""Worker processes of this machine as VMs: each is distinguished from a process that got its pid later."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from boss.core.model.cloud_vms import CloudState
from boss.providers.local import LocalCloud
from ecloud.config.home import Home
from ecloud.config.processes import start_time
from ecloud.config.secrets import AccessFile

Started = subprocess.Popen[bytes]


@pytest.fixture
def sleeper() -> Iterator[Started]:
    """Any process."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def cloud_with(place: Path, pid: int, started: str) -> tuple[LocalCloud, str]:
    """A cloud whose VM 1 is on record with this process; its cloud id."""
    home = Home(place)
    (home.workers / "1").mkdir(parents=True)
    process = {"pid": pid, "start_time": started, "vm_no": 1, "since": 1.0}
    (home.workers / "1/vm.json").write_text(json.dumps(process))

    def no_access(name: str) -> AccessFile:
        raise AssertionError(name)

    return LocalCloud(home, no_access, tied=False, boss_gone_exit_s=60.0), f"{pid}:{started}"


def test_the_process_on_record_is_its_vm(tmp_path: Path, sleeper: Started) -> None:
    cloud, cloud_id = cloud_with(tmp_path, sleeper.pid, start_time(sleeper.pid) or "")
    (found,) = cloud.list({cloud_id: 1})
    assert (found.vm_no, found.cloud_id, found.state) == (1, cloud_id, CloudState.RUNNING)
    cloud.end(cloud_id)
    assert sleeper.wait(10) == -15


def test_a_process_that_got_the_pid_later_is_no_vm_and_is_not_ended(tmp_path: Path, sleeper: Started) -> None:
    cloud, cloud_id = cloud_with(tmp_path, sleeper.pid, "1")
    (found,) = cloud.list({cloud_id: 1})
    assert (found.vm_no, found.state) == (1, CloudState.GONE)
    cloud.end(cloud_id)
    assert cloud.end_all(1.0) == []
    assert sleeper.poll() is None
