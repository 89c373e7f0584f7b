"""A cloud as seen by the user who pays for it: its VMs, their owners, their cost; and the messages if the
cloud, or what was typed, is wrong. The cloud is the double, the boss and the guests' agents are real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doors import Doors
from opennebula_double import OpenNebula
from services import Daemon, wait_until

PATIENCE_S = 90.0


@pytest.fixture
def double(tmp_path: Path) -> Iterator[OpenNebula]:
    made = OpenNebula(tmp_path / "cloud").start()
    made.add_worker_template()
    yield made
    made.end()


def settings(double: OpenNebula, **others: Any) -> dict[str, Any]:
    pool = {"name": "big", "cloud": "opennebula", "template": "worker", "maximum": 2, "memory_mb": 500}
    cloud = {"OPENNEBULA_URL": double.url, "OPENNEBULA_USER": "alice", "OPENNEBULA_PASSWORD": "PASSWORD"}
    return {**cloud, "POOLS": (pool,), **others}


def words(done: Any) -> str:
    """What was printed, whatever the width of the table."""
    return " ".join(done.text.split())


@pytest.mark.long
def test_workers_of_a_cloud_from_the_first_to_the_bill(
    daemons: Callable[..., Daemon], double: OpenNebula, tmp_path: Path
) -> None:
    daemon = daemons(**settings(double, IDLE_VM_S=300.0)).start()
    doors = Doors(tmp_path / "place", daemon)
    for wrong in ("-1", "0", "many", "1.5"):
        done = doors.admin("instantiate_worker", wrong, code=2)
        assert f"'{wrong}' is not a number of workers: give 1 or more" in words(done)
    assert "100000 workers are many" in doors.admin("instantiate_worker", 100000, code=2).err
    assert (
        "there is no pool 'nosuch'; there are big" in doors.admin("instantiate_worker", "--pool", "nosuch", code=2).err
    )
    assert double.alive == []
    asked = doors.admin("instantiate_worker", 100000, "--yes").out
    assert "2 requested in pool big; its maximum of 2 VMs allows no more" in asked

    def up() -> list[dict[str, Any]]:
        found = [worker for worker in doors.admin("show_workers", "--json").json if worker["state"] == "up"]
        return found if len(found) == 2 else []

    workers = wait_until(up, PATIENCE_S, "two workers are up")
    assert {worker["vm_no"] for worker in workers} == {1, 2}

    # A VM that only has our name is shown, marked, and left alone.
    cluster_id = doors.admin("show_context", "--json").json["cluster_id"]
    stranger = double.add_vm(500, f"ecloud-{cluster_id}-7", owner=double.alice)
    (marked,) = [vm for vm in doors.admin("show_vms", "--json").json if vm.get("stranger")]
    assert (marked["cloud_id"], marked["owner"]) == ("500", "alice")
    assert "stranger" in words(doors.admin("show_vms"))
    assert "ECLOUD never touches it" in words(doors.admin("show_vms"))

    doors.push(doors.write("film.json", [{"id": "long", "commands": "sleep 300", "runtime_s": 300}]))

    def busy() -> list[str]:
        return [worker["worker"] for worker in doors.admin("show_workers", "--json").json if worker["running"]]

    (name,) = wait_until(busy, PATIENCE_S, "it runs")
    assert "film:long" in words(doors.admin("show_workers"))
    assert "1 draining" in doors.admin("drain_worker", name[:8], "--reason", "maintenance").out
    assert "film:long (maintenance)" in words(doors.admin("show_workers"))
    assert "1 take tasks again" in doors.admin("undrain_worker", name[:8]).out
    assert "no worker nosuch is on duty" in doors.admin("kill_worker", "nosuch", code=2).err
    assert f"no worker {name[:8]} is gone or lost" in doors.admin("drop_workers", name[:8], code=2).err
    doors.admin("kill_worker", name)
    wait_until(lambda: busy() not in ([name], []), PATIENCE_S, "the other has it")
    assert "killed: an operator requested it" in words(doors.admin("show_workers", "--all"))
    wait_until(lambda: "1 forgotten" in doors.admin("drop_workers", name).out, PATIENCE_S, "it is forgotten")

    doors.admin("cancel", "long")
    wait_until(lambda: not busy(), PATIENCE_S, "it is stopped")
    doors.admin("stop", "--vms")
    assert double.alive == [stranger], "no boss may end it"
    bill_is_the_clouds(doors, double)


def bill_is_the_clouds(doors: Doors, double: OpenNebula) -> None:
    """Each VM's parts add up to what its cloud says that it lived, from STIME to ETIME: the boss learns of an end from
    the next list, and a cloud reports whole seconds."""
    books = doors.admin("ledger", "--json").json
    lives = {vm["vm_no"]: vm["cloud_id"] for vm in doors.admin("show_vms", "--all", "--json").json if "vm_no" in vm}
    assert len(books["vms"]) == 2
    for account in books["vms"]:
        vm = double.vms[int(lives[account["vm_no"]])]
        assert sum(account["parts"].values()) == pytest.approx(account["life_s"], abs=1e-5)
        assert account["life_s"] == pytest.approx(vm.ended_at - vm.made_at, abs=8.0)
    taken = doors.admin("ledger", "--run", "film", "--json").json["run"]
    assert taken["parts"]["running"] > 0
    assert taken["parts"]["lost"] > 0, "it was killed on the first"
    assert "run film took" in doors.admin("ledger", "--run", "film").out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"OPENNEBULA_URL": "http://127.0.0.1:9/RPC2"}, "http://127.0.0.1:9/RPC2 cannot be reached"),
        ({"OPENNEBULA_URL": "https://127.0.0.1:{port}/RPC2"}, "TLS"),
        ({"OPENNEBULA_PASSWORD": "wrong"}, "refuses user alice: the password is wrong"),
        pytest.param(
            {"OPENNEBULA_CA": "/no/such/ca.pem"},
            "OPENNEBULA_CA names /no/such/ca.pem, which does not exist",
            marks=pytest.mark.long,
        ),
        ({"template": "warker"}, "has no template warker that user alice sees; there: bad network, no context, no "),
        pytest.param({"template": "no context"}, "no CONTEXT", marks=pytest.mark.long),
        ({"template": "no network"}, "has no network: give it a NIC"),
        pytest.param({"template": "bad network"}, "network", marks=pytest.mark.long),
    ],
)
def test_what_is_wrong_with_a_cloud_is_one_sentence(
    doors: Doors, double: OpenNebula, change: dict[str, str], sentence: str
) -> None:
    double.add_template('NAME="no context"\nCPU="1"\nMEMORY="512"\nNIC=[NETWORK_ID="0"]')
    double.add_template('NAME="no network"\nCPU="1"\nMEMORY="512"\nCONTEXT=[NETWORK="YES"]')
    double.add_template('NAME="bad network"\nCPU="1"\nMEMORY="512"\nNIC=[NETWORK_ID="77"]\nCONTEXT=[NETWORK="YES"]')
    values = settings(double)
    pool = dict(values["POOLS"][0])
    port = double.url.partition("127.0.0.1:")[2].partition("/")[0]
    for name, value in change.items():
        (pool if name in pool else values)[name] = value.replace("{port}", port)
    values["POOLS"] = (pool,)
    place = doors.place / "settings.py"
    place.write_text("".join(f"{name} = {value!r}\n" for name, value in values.items()))
    environment = {**doors.environment, "ECLOUD_SETTINGS": str(place)}
    told = Told(doors.place, environment).admin("doctor", "--json", code=3).json
    (finding,) = [finding for finding in told["findings"] if finding["part"] == "cloud"]
    assert sentence in finding["text"], finding
    assert finding["remedy"]
    assert "\n" not in finding["text"]
    assert len(finding["text"]) < 400


def test_what_a_cloud_refuses_is_said_where_it_is_asked_for(
    daemons: Callable[..., Daemon], double: OpenNebula, tmp_path: Path
) -> None:
    double.add_template('NAME="bad network"\nCPU="1"\nMEMORY="512"\nNIC=[NETWORK_ID="77"]\nCONTEXT=[NETWORK="YES"]')
    double.alice.quota["VMS"] = "1"
    values = settings(double)
    lost = {**values["POOLS"][0], "name": "lost", "template": "bad network"}
    doors = Doors(tmp_path / "place", daemons(**{**values, "POOLS": (*values["POOLS"], lost)}).start())
    wrong = doors.admin("instantiate_worker", "--pool", "lost", code=3)
    assert "1 VM was refused: template bad network (1) names network 77, which does not exist; correct it" in words(
        wrong
    )
    again = doors.admin("instantiate_worker", "--pool", "lost", code=None)
    assert "1 requested in pool lost; template bad network (1) names network 77" in words(again)
    some = doors.admin("instantiate_worker", 2)
    assert "2 requested in pool big" in some.out
    assert "1 VM was refused: the cloud at" in words(some)
    assert "limit of 1 reached" in words(some)
    doors.admin("stop", "--vms")
    assert double.alive == []


class Told(Doors):
    """Doors with an environment that is given."""

    def __init__(self, place: Path, environment: dict[str, str]) -> None:
        super().__init__(place)
        self._environment = environment

    @property
    def environment(self) -> dict[str, str]:
        return self._environment
