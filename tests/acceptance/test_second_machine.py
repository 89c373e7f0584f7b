"""A second machine in one step: a boss that listens, an invitation, and a worker in a network of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doors import Doors
from services import ROOT, wait_until

HERE, THERE = "10.231.77.1", "10.231.77.2"


@pytest.fixture
def second_machine() -> Iterator[str]:
    """The name of a network namespace that reaches this machine at `HERE`, and nothing else."""
    name, link = f"ecloud{os.getpid()}", f"ec{os.getpid() % 100_000}"
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("a network namespace needs root and ip")
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here")
    try:
        for words in (
            f"link add {link} type veth peer name {link}p netns {name}",
            f"addr add {HERE}/30 dev {link}",
            f"link set {link} up",
            f"-n {name} addr add {THERE}/30 dev {link}p",
            f"-n {name} link set {link}p up",
            f"-n {name} link set lo up",
        ):
            subprocess.run(["ip", *words.split()], check=True, capture_output=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", link], check=False, capture_output=True)


def test_a_worker_in_another_network_works_with_an_invitation_alone(
    doors: Doors, second_machine: str, tmp_path: Path
) -> None:
    doors.admin("start", "--listen", HERE)
    worker = None
    try:
        said = doors.admin("invite", "--role", "worker", "worker.access").out
        assert "but " not in said
        command = ["ip", "netns", "exec", second_machine, sys.executable, "-m", "worker", doors.place / "worker.access"]
        command += ["--home", tmp_path / "there", "--resource", "far=1"]
        environment = {**doors.environment, "PYTHONPATH": str(ROOT)}
        with (tmp_path / "worker.log").open("wb") as log:
            worker = subprocess.Popen(command, cwd="/", env=environment, stdout=log, stderr=log)
        wait_until(lambda: "far" in doors.admin("show_workers").out, 60.0, "the worker is on duty")
        task = {"id": "t", "commands": "cat /proc/net/fib_trie > net", "results": ["net"], "resources": {"far": 1}}
        doors.push(doors.write("t.json", [task]), "--wait")
        assert THERE in (doors.place / "home/datastore/net").read_text(), "it ran in the other network"
    finally:
        if worker is not None:
            worker.send_signal(signal.SIGTERM)
            worker.wait(60)
        doors.admin("stop", "--vms")


def test_a_worker_without_a_boss_says_what_it_tried(doors: Doors) -> None:
    environment = {**doors.environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "worker"], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        f"worker: no ACCESS_FILE is named, ECLOUD_ACCESS is not set, and no boss has run in {doors.place}/home: "
        "make an access file on the boss's machine (python admin.py invite) and name it: python -m worker FILE\n"
    )
    named = subprocess.run(
        [sys.executable, "-m", "worker", "/no/such.access"], cwd="/", env=environment, capture_output=True, text=True
    )
    assert named.returncode == 2
    assert "access file /no/such.access: No such file or directory" in named.stderr
