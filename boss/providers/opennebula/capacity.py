"""How many more VMs an OpenNebula would give, computed from quotas, address ranges and hosts as pyone returns them.
Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

DEFAULT, UNLIMITED = -1.0, -2.0
"""Values of a limit: use the default for all users; no limit."""
_SEEN = (1, 2)
"""States of a host that takes VMs: being monitored, and monitored."""
_ALMOST = 1e-9

Bound = tuple[int, str]
"""How many more VMs, and what limits them."""


def quota_bounds(user: Any, cpu: float, memory_mb: float, disk_mb: float = 0.0) -> Iterator[Bound]:
    """Yield the rest of the user's quotas for VMs of that size. Quotas of single clusters are ignored."""
    defaults = getattr(user, "DEFAULT_USER_QUOTAS", None)
    return _bounds(f"user {user.NAME}", user.VM_QUOTA, defaults, (cpu, memory_mb, disk_mb))


def group_bounds(group: Any, cpu: float, memory_mb: float, disk_mb: float = 0.0) -> Iterator[Bound]:
    """Yield the rest of the quotas of the user's group, shared by all its users."""
    defaults = getattr(group, "DEFAULT_GROUP_QUOTAS", None)
    return _bounds(f"group {group.NAME}", group.VM_QUOTA, defaults, (cpu, memory_mb, disk_mb))


def lease_bounds(whose: str, quotas: Any, leases: Mapping[int, int]) -> Iterator[Bound]:
    """Yield the rest of the quotas of single networks. `leases`: how many leases a VM takes, by network id."""
    found = getattr(quotas, "NETWORK", None)
    for quota in found if isinstance(found, list) else [found] if found is not None else []:
        each = leases.get(int(number_of(getattr(quota, "ID", None), -1.0)), 0)
        limit = number_of(getattr(quota, "LEASES", None), UNLIMITED)
        if limit >= 0 and each:
            free = limit - number_of(getattr(quota, "LEASES_USED", None))
            yield (
                max(0, int(free / each + _ALMOST)),
                f"{whose} has a quota of {limit:g} for leases of network {quota.ID}",
            )


def _bounds(whose: str, quotas: Any, of_all: Any, size: tuple[float, float, float]) -> Iterator[Bound]:
    cpu, memory_mb, disk_mb = size
    defaults = _quotas(getattr(of_all, "VM_QUOTA", None))
    needs = {
        "VMS": 1.0, "RUNNING_VMS": 1.0, "CPU": cpu, "RUNNING_CPU": cpu, "MEMORY": memory_mb,
        "RUNNING_MEMORY": memory_mb, "SYSTEM_DISK_SIZE": disk_mb,
    }  # fmt: skip
    for quota in _quotas(quotas):
        if getattr(quota, "CLUSTER_IDS", ""):
            continue
        for kind, each in needs.items():
            limit = number_of(getattr(quota, kind, None), UNLIMITED)
            if limit == DEFAULT:
                limit = number_of(getattr(defaults[0], kind, None), UNLIMITED) if defaults else UNLIMITED
            if limit >= 0 and each > 0:
                free = limit - number_of(getattr(quota, f"{kind}_USED", None))
                yield max(0, int(free / each + _ALMOST)), f"{whose} has a quota of {limit:g} for {kind}"


def address_bound(network: Any) -> Bound:
    """Return the free leases of a network."""
    ranges = getattr(network.AR_POOL, "AR", None) or []
    ranges = ranges if isinstance(ranges, list) else [ranges]
    size = sum(int(number_of(part["SIZE"] if isinstance(part, Mapping) else part.SIZE)) for part in ranges)
    free = max(0, size - int(number_of(network.USED_LEASES)))
    return free, f"network {network.NAME} has {free} free addresses of {size}"


def host_bound(hosts: Sequence[Any], cpu: float, memory_mb: float) -> Bound:
    """Return how many VMs fit on the hosts that are up, host by host. Hosts count CPU in hundredths and memory in
    KB."""
    room = 0
    for host in hosts:
        if host.STATE in _SEEN:
            share = host.HOST_SHARE
            cpus = (number_of(share.MAX_CPU) - number_of(share.CPU_USAGE)) / 100
            memory = (number_of(share.MAX_MEM) - number_of(share.MEM_USAGE)) / 1024
            fits = [free / each for free, each in ((cpus, cpu), (memory, memory_mb)) if each > 0]
            room += max(0, int(min(fits, default=0.0) + _ALMOST))
    return room, f"the hosts have room for {room}"


def number_of(text: object, otherwise: float = 0.0) -> float:
    """Return a number that may be text, or missing."""
    try:
        return float(str(text))
    except ValueError:
        return otherwise


def _quotas(quota: Any) -> list[Any]:
    found = getattr(quota, "VM", None)
    return found if isinstance(found, list) else [found] if found is not None else []
