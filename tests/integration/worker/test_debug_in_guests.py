"""`worker/debug.sh` in guests of either kind of image: the verdict of a machine that works, and of one that cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from guests import Guest
from opennebula_double import OpenNebula
from services import ROOT, free_port
from ssh_cloud import PoolDaemon, push


@pytest.mark.parametrize(("template", "code"), [("inside", "image"), ("bare", "ssh")])
def test_debug_in_a_guest_says_that_all_is_well_or_what_is_not(
    pool_daemon: PoolDaemon, ssh_cloud: OpenNebula, tmp_path: Path, template: str, code: str
) -> None:
    daemon = pool_daemon(template, code, IDLE_VM_S=120.0).start()
    push(daemon, tmp_path, "--wait")
    guest = ssh_cloud.vms[0].guest
    assert guest is not None
    (debug,) = (
        *guest.root.glob("opt/ecloud/worker/debug.sh"),
        *guest.root.glob("var/lib/ecloud/code-*/worker/debug.sh"),
    )
    exit_code, text = guest.ask("sh", str(debug))
    told = dict(line.split(":", 1) for line in text.splitlines() if line[0] not in "$ +")
    for check in ("address", "DNS", "clock", "broker", "boss", "key", "Python", "datastore", "disk"):
        assert told[check].split()[0] == "ok:", text
    assert (exit_code, told["verdict"]) == (0, " ok, a worker can work here")
    access = guest.root / "var/lib/ecloud/access"
    given = json.loads(access.read_text())
    assert given["key"] not in text
    access.write_text(json.dumps({**given, "port": free_port()}))
    exit_code, text = guest.ask("sh", str(debug))
    assert exit_code == 1
    assert text.splitlines()[-1] == "verdict: a worker cannot work here; wrong: broker"


def test_debug_without_a_python_ends_with_a_verdict(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "vm", "127.77.0.9", "bare no python")
    # A checkout of which nothing is installed.
    shutil.copytree(ROOT / "worker", guest.root / "opt/ecloud/worker")
    exit_code, text = guest.ask("sh", str(guest.root / "opt/ecloud/worker/debug.sh"))
    assert exit_code == 1
    assert "worker: no Python 3.10 or later is here: install one" in text
    assert text.splitlines()[-2].endswith("verdict: a worker cannot work here; wrong: Python")
