"""More VMs than a network has addresses: as many as it has come up, work and go, and one sentence tells of the others.
Every guest is real: an address, a root directory and an agent of its own, started by its START_SCRIPT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doors import Doors
from guests import is_copy
from opennebula_double import OpenNebula
from services import Daemon, wait_until, watch_to_the_end

from ecloud.db.database import make_engine
from ecloud.queries import status

PATIENCE_S = 1200.0
"""255 agents are 255 Pythons that start, on a machine of two cores that does other things too."""


@pytest.fixture
def double(tmp_path: Path) -> Iterator[OpenNebula]:
    made = OpenNebula(tmp_path / "cloud").start()
    yield made
    made.end()


def agents(double: OpenNebula) -> list[str]:
    """Command lines of all agents of this cloud's guests, found by one list of this machine's processes."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(double.directory) in command and " -m worker " in command:
                found[int(entry.name)] = command
    return [command for pid, command in found.items() if not is_copy(pid, found)]


@pytest.mark.parametrize(
    ("addresses", "asked", "tasks"), [(6, 10, 30), pytest.param(255, 300, 1000, marks=pytest.mark.long)]
)
def test_all_addresses_of_a_network_work_and_one_sentence_tells_of_the_others(
    daemons: Callable[..., Daemon], double: OpenNebula, tmp_path: Path, addresses: int, asked: int, tasks: int
) -> None:
    double.add_network("lab", "127.77.0.1", addresses)
    double.add_worker_template()
    pool = {"name": "big", "cloud": "opennebula", "template": "worker", "maximum": asked, "cpus": 1, "memory_mb": 500}
    cloud = {"OPENNEBULA_URL": double.url, "OPENNEBULA_USER": "alice", "OPENNEBULA_PASSWORD": "PASSWORD"}
    patience = {"IDLE_VM_S": PATIENCE_S, "VM_BOOT_S": PATIENCE_S, "HEARTBEAT_S": 5.0, "LEASE_S": 120.0}
    daemon = daemons(POOLS=(pool,), **cloud, **patience).start()
    doors = Doors(tmp_path / "place", daemon)
    assert f"{asked} requested in pool big" in doors.admin("instantiate_worker", asked, "--yes").out

    engine = make_engine(f"sqlite:///{daemon.home.database}")
    wait_until(
        lambda: len(status.workers(engine, ("up",))) == addresses, PATIENCE_S, f"{addresses} workers are on duty"
    )
    engine.dispose()
    assert sum(worker["state"] == "up" for worker in doors.admin("show_workers", "--json").json) == addresses
    assert len(double.alive) == len(agents(double)) == addresses
    sentence = (
        f"pool big has room for no more VMs (network lab has 0 free addresses of {addresses}); "
        f"{asked - addresses} asked for were refused"
    )
    wait_until(lambda: sentence in words(doors, "status"), PATIENCE_S, "one sentence of the others")
    assert sentence in words(doors, "plan")
    vms = doors.admin("show_vms", "--all", "--json").json
    refused = [vm for vm in vms if vm["state"] == "gone"]
    assert len(refused) == asked - addresses
    assert "no free address for VMs of template worker" in words(doors, "why", f"vm/{refused[-1]['vm_no']}")

    # All guests are on this machine, which is promised only once: together they run no more than it has CPUs.
    share = {"cpus": round(1 / addresses, 3)}
    graph: list[dict[str, Any]] = [
        {
            "id": f"t{i}",
            "commands": f"sleep 0.2; echo $ECLOUD_WORKER > {i}",
            "results": [[f"{i}", f"out/{i}"]],
            "resources": share,
        }
        for i in range(tasks)
    ]
    doors.push(doors.write("many.json", graph))
    with daemon.client() as client:
        assert watch_to_the_end(client, "many", PATIENCE_S).states == {"succeeded": tasks}
    did = {path.read_text().strip() for path in (daemon.home.path / "datastore/out").iterdir()}
    assert len(did) == addresses, "each did at least one"

    # The double ends one guest after the other, and checks each process of this machine for each.
    stopping = doors.begin("admin.py", "stop", "--vms")
    said = stopping.communicate(timeout=PATIENCE_S)[0].decode()
    assert (stopping.returncode, f"{addresses} VMs are being ended" in said) == (0, True), said
    assert double.alive == []
    assert agents(double) == []


def words(doors: Doors, *command: str) -> str:
    """What it printed, whatever the width of the table."""
    return " ".join(doors.admin(*command).text.split())
