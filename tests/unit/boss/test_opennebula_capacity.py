"""How many VMs more: the smallest of all that bounds them, read as pyone gives it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from boss.providers.opennebula.capacity import address_bound, host_bound, number_of, quota_bounds


def user(defaults: dict[str, str] | None = None, **quota: str) -> Any:
    """A user with a quota, as the bindings show it: limits and what is used are texts."""
    known = {f"{kind}{end}": "-1" for kind in ("VMS", "RUNNING_VMS", "CPU", "MEMORY") for end in ("", "_USED")}
    known.update({f"{kind}_USED": "0" for kind in ("VMS", "RUNNING_VMS", "CPU", "MEMORY")})
    own = [SimpleNamespace(**{**known, **quota})] if quota else []
    every = SimpleNamespace(VM=SimpleNamespace(**{**known, **defaults})) if defaults else SimpleNamespace(VM=None)
    return SimpleNamespace(
        NAME="alice", VM_QUOTA=SimpleNamespace(VM=own), DEFAULT_USER_QUOTAS=SimpleNamespace(VM_QUOTA=every)
    )


def quota(subject: Any) -> list[int]:
    return [vms for vms, _ in quota_bounds(subject, cpu=2.0, memory_mb=1000.0)]


@pytest.mark.parametrize(
    ("limits", "room"),
    [
        ({}, []),
        ({"VMS": "10", "VMS_USED": "4"}, [6]),
        ({"VMS": "-2"}, []),
        ({"VMS": "0"}, [0]),
        ({"CPU": "7.5", "CPU_USED": "2"}, [2]),
        ({"MEMORY": "4000", "MEMORY_USED": "500", "VMS": "9"}, [9, 3]),
        ({"VMS": "3", "VMS_USED": "5"}, [0]),
        ({"RUNNING_CPU": "9", "RUNNING_CPU_USED": "1"}, [4]),
        ({"RUNNING_MEMORY": "2500"}, [2]),
    ],
)
def test_a_quota_bounds_in_what_it_counts(limits: dict[str, str], room: list[int]) -> None:
    assert quota(user(**limits)) == room


def test_a_limit_that_is_left_to_the_default_is_the_default() -> None:
    assert quota(user(defaults={"VMS": "8"}, VMS="-1", VMS_USED="3")) == [5]
    assert quota(user(defaults={"VMS": "8"}, VMS="-2", VMS_USED="3")) == []


def test_a_quota_of_one_cluster_says_nothing_of_the_others() -> None:
    assert quota(user(VMS="1", CLUSTER_IDS="0,1")) == []


def test_addresses_of_all_ranges_count() -> None:
    net = SimpleNamespace(NAME="net", USED_LEASES=5)
    net.AR_POOL = SimpleNamespace(AR=[SimpleNamespace(SIZE="4"), SimpleNamespace(SIZE="250")])
    assert address_bound(net) == (249, "network net has 249 free addresses of 254")
    net.AR_POOL = SimpleNamespace(AR=None)
    assert address_bound(net)[0] == 0


def test_a_host_takes_whole_vms_only() -> None:
    def host(state: int, cpus: float, memory_mb: float) -> Any:
        share = SimpleNamespace(MAX_CPU=str(cpus * 100), CPU_USAGE="0", MAX_MEM=str(memory_mb * 1024), MEM_USAGE="0")
        return SimpleNamespace(STATE=state, HOST_SHARE=share)

    hosts = [host(2, 3.9, 1e6), host(2, 64, 2500), host(1, 2, 1000), host(4, 64, 1e6)]
    assert host_bound(hosts, cpu=2.0, memory_mb=1000.0) == (1 + 2 + 1, "the hosts have room for 4")


def test_a_number_may_be_missing() -> None:
    assert (number_of("2.5"), number_of(None), number_of("", -2.0)) == (2.5, 0.0, -2.0)
