"""An empty cloud, and a graph that a person pushes: VMs come, work, and go; what they cost adds up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doors import Doors
from opennebula_double import OpenNebula
from services import Daemon, wait_until, watch_to_the_end

FANS, WORKS = 10, 48
PATIENCE_S = 400.0


@pytest.fixture
def double(tmp_path: Path) -> Iterator[OpenNebula]:
    made = OpenNebula(tmp_path / "cloud").start()
    made.add_worker_template()
    yield made
    made.end()


def graph() -> list[dict[str, Any]]:
    """500 tasks: each fan makes a file, 48 tasks read it and write their own, one adds these up."""
    tasks: list[dict[str, Any]] = []
    for fan in range(FANS):
        split, parts = f"in/{fan}", [f"part/{fan}-{work}" for work in range(WORKS)]
        tasks.append({"id": f"split{fan}", "commands": f"mkdir -p in; echo {fan} > {split}", "results": [split]})
        for part in parts:
            work = f"mkdir -p part; sleep 0.1; cat {split} > {part}"
            tasks.append(
                {
                    "id": part,
                    "commands": work,
                    "requirements": [split],
                    "results": [part],
                    "dependencies": [f"split{fan}"],
                }
            )
        merge = f"mkdir -p sum; cat part/{fan}-* | paste -sd+ | bc > sum/{fan}"
        tasks.append(
            {
                "id": f"merge{fan}",
                "commands": merge,
                "requirements": parts,
                "results": [f"sum/{fan}"],
                "dependencies": parts,
            }
        )
    return tasks


@pytest.mark.parametrize("maximum", [6, pytest.param(50, marks=pytest.mark.long)])
def test_vms_come_work_and_go_and_the_ledger_balances(
    daemons: Callable[..., Daemon], double: OpenNebula, tmp_path: Path, maximum: int
) -> None:
    pool = {"name": "big", "cloud": "opennebula", "template": "worker", "maximum": maximum, "memory_mb": 500}
    daemon = daemons(
        OPENNEBULA_URL=double.url,
        OPENNEBULA_USER="alice",
        OPENNEBULA_PASSWORD="PASSWORD",
        POOLS=(pool,),
        IDLE_VM_S=1.0,
    ).start()
    doors = Doors(tmp_path / "place", daemon)
    assert double.alive == []

    doors.push(doors.write("graph.json", graph()), "--run", "film")
    with daemon.client() as client:
        states = watch_to_the_end(client, "film", PATIENCE_S).states
    assert states == {"succeeded": FANS * (WORKS + 2)}, doors.admin("show_tasks", "--state", "failed").text
    for fan in range(FANS):
        doors.admin("get", f"sum/{fan}", f"sum{fan}")
        assert (doors.place / f"sum{fan}").read_text() == f"{fan * WORKS}\n"

    # Nothing is left running, without any command.
    wait_until(lambda: not double.alive, PATIENCE_S, "the cloud's own list is empty")
    assert all(vm.guest is None or not vm.guest.processes() for vm in double.vms.values())
    wait_until(lambda: not doors.admin("show_vms", "--json").json, PATIENCE_S, "the boss knows that they are gone")

    lives = [(vm.made_at, vm.ended_at) for vm in double.vms.values()]
    most = max(sum(1 for begun, over in lives if begun <= at < over) for at, _ in lives)
    assert 1 < most <= maximum
    assert most == maximum or maximum < 50, f"only {most} VMs lived at once"

    # Each second is accounted for, and they are the cloud's.
    ledger = doors.admin("ledger", "--json").json
    assert ledger["total"]["vms"] == len(double.vms)
    assert sum(ledger["total"]["parts"].values()) == pytest.approx(ledger["total"]["life_s"], abs=1e-3)
    of_the_cloud = {int(vm.user_template["ECLOUD_VM_NO"]): vm.ended_at - vm.made_at for vm in double.vms.values()}
    assert {vm["vm_no"]: vm["life_s"] for vm in ledger["vms"]} == of_the_cloud
    assert ledger["total"]["life_s"] == sum(of_the_cloud.values())
    assert "running" in doors.admin("ledger", "--run", "film").out
