"""Machines as their users know them: jobs with Slurm's reason, hosts with their workers, VMs with what they cost."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from sqlalchemy.engine import Engine

from ecloud.db import schema
from ecloud.model.wire import Hello
from ecloud.queries.machines import PENDING, machine_counts, machines_page
from ecloud.queries.why_task import Pool

NOW = time.time()
POOLS = (
    Pool("hpc", {}, 9, "slurm"),
    Pool("lab", {}, 9, "ssh_hosts"),
    Pool("cloud", {}, 9, "opennebula"),
)
DRAINED = "ReqNodeNotAvail, UnavailableNodes:node7"


def vm(vm_no: int, pool: str, state: str, **values: Any) -> dict[str, Any]:
    row = {
        "vm_no": vm_no, "pool": pool, "state": state, "since": NOW, "size": '{"cpus": 4.0}', "boot_nonce": f"1-{vm_no}",
        "cloud_id": str(1000 + vm_no), "worker": "", "keep_alive": 0, "reason": "2 tasks are ready",
        "intended_at": NOW - 900, "started_at": NOW - 890, "cause": "",
    }  # fmt: skip
    return {**row, **values}


def worker(name: str, host: str, state: str = "up", vm_no: int | None = None, trouble: str = "") -> dict[str, Any]:
    hello = Hello("n", "worker", host=host, addresses=(f"10.0.0.{len(host)}",), resources={"cpus": 2.0})
    return {
        "worker": name, "key_name": "local", "state": state, "since": NOW, "heard_at": NOW,
        "hello": msgspec.json.encode(hello), "vm_no": vm_no, "reason": "", "trouble": trouble,
    }  # fmt: skip


@pytest.fixture
def machines(engine: Engine) -> Engine:
    """A job that waits in Slurm's queue and one that left it, a worker on a host, VMs."""
    vms = [
        vm(1, "hpc", "booting", said=DRAINED),
        vm(2, "hpc", "booting", said=DRAINED),
        vm(3, "lab", "running", hello_at=NOW - 880),
        vm(4, "cloud", "gone", hello_at=NOW - 800, gone_at=NOW - 790, reason="idle for 60 s"),
        vm(5, "cloud", "running", hello_at=NOW - 800),
        vm(6, "no longer set", "ending", end_asked=1),
    ]
    boots = [{"vm_no": 2, "address": "node3", "host_key": "", "steps": "{}"}]
    workers = [
        worker("w1", "node12"),
        worker("w2", "node12", "lost"),
        worker("w3", "host3", vm_no=3, trouble="its disk is full"),
        worker("w5", "vm5", vm_no=5),
    ]
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        for row in vms:
            connection.execute(schema.vms.insert(), row)
        connection.execute(schema.boots.insert(), boots)
        connection.execute(schema.workers.insert(), workers)
    return engine


def test_each_machine_is_listed_as_what_it_is(machines: Engine) -> None:
    page = machines_page(machines, POOLS, 0, 100, 10)
    told = {title: [(one.vm.vm_no, one.state, one.place) for one in some] for title, some in page.lists}
    assert told == {
        "VMs": [(6, "ending", ""), (5, "running", "")],
        "Slurm jobs": [(2, "booting", "node3"), (1, PENDING, "")],
        "Workers on hosts": [(3, "running", "")],
        "Gone": [(4, "gone", "")],
    }
    by_number = {one.vm.vm_no: one for one in [*page.machines, *page.gone]}
    assert by_number[1].why == DRAINED
    assert by_number[3].why == "2 tasks are ready"
    assert any("its worker reported after" in line for line in by_number[3].record)
    with machines.connect() as connection:
        counts = machine_counts(connection, POOLS)
    assert counts == {
        "VMs": {"running": 1, "ending": 1},
        "Slurm jobs": {"booting": 2},
        "Workers on hosts": {"running": 1},
    }


def test_a_machine_costs_its_time_and_its_cores_and_a_waiting_job_nothing(machines: Engine) -> None:
    page = machines_page(machines, POOLS, 0, 100, 10)
    by_number = {one.vm.vm_no: one for one in [*page.machines, *page.gone]}
    assert by_number[1].life_s is by_number[1].core_s is None
    assert by_number[4].life_s == pytest.approx(100)
    assert by_number[4].core_s == pytest.approx(400)
    assert by_number[5].life_s is not None
    assert 889 <= by_number[5].life_s <= time.time() - NOW + 891, "until now"


def test_hosts_are_known_by_their_workers_and_vms_are_none(machines: Engine) -> None:
    page = machines_page(machines, POOLS, 0, 100, 10)
    assert [(host.host, host.workers, host.offers) for host in page.hosts] == [
        ("host3", {"up": 1}, {"cpus": 2.0}),
        ("node12", {"up": 1, "lost": 1}, {"cpus": 2.0}),
    ]
    assert {one.worker for one in page.workers[:2]} == {"w2", "w3"}, "first those that something is wrong with"


def test_more_machines_than_a_page_holds_are_on_the_next_page(machines: Engine) -> None:
    pages = [machines_page(machines, POOLS, number, 2, 1) for number in range(3)]
    assert [[one.worker for one in page.workers] for page in pages] == [["w2", "w3"], ["w1", "w5"], []]
    assert [len(page.machines) for page in pages] == [2, 2, 1]
    assert [page.is_last for page in pages] == [False, False, True]
    assert pages[0].totals == {"workers": 4, "hosts": 2, "machines": 5}
