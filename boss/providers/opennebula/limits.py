"""Asks an OpenNebula, call by call, how many more VMs it would give: quotas of the user and its group, free leases,
free hosts. Also checks that images and networks may be used. `capacity` interprets the answers. Reads only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from boss.providers.opennebula import naming as words
from boss.providers.opennebula.capacity import (
    Bound,
    address_bound,
    group_bounds,
    host_bound,
    lease_bounds,
    number_of,
    quota_bounds,
)
from boss.providers.opennebula.errors import Asks, No, NoSuch, NotAllowed
from boss.providers.opennebula.template import Template
from boss.providers.provider import Capacity, CredentialsWrong, GivePoolUp, TryLater

VISIBLE = -2
OWN = -1
"""In place of an id: the user that asks, or its group."""


def read_room(cloud: Asks, template: Template) -> Capacity:
    """Return how many more VMs of that template the cloud would start, and the limit. Raises as
    `provider.Provider.room`."""
    try:
        disk_mb = _disk_mb(cloud, template)
        networks = list(_networks(cloud, template))
        leases = Counter(int(network.ID) for network in networks)
        user = cloud.call("user.info", OWN)
        bounds = [
            *quota_bounds(user, template.cpu, template.memory_mb, disk_mb),
            *lease_bounds(f"user {user.NAME}", getattr(user, "NETWORK_QUOTA", None), leases),
            *_group_bounds(cloud, template, disk_mb, leases),
            *map(address_bound, networks),
            *_host_bounds(cloud, template),
        ]
    except No as error:
        raise TryLater(f"{cloud.name} does not report its limits: {words.said(error)}") from error
    return Capacity(*min(bounds)) if bounds else Capacity()


def _group_bounds(cloud: Asks, template: Template, disk_mb: float, leases: Mapping[int, int]) -> Iterator[Bound]:
    """A user may not be allowed to see its own group; then the group's limits are unknown."""
    try:
        group = cloud.call("group.info", OWN)
    except (No, GivePoolUp):
        return
    yield from group_bounds(group, template.cpu, template.memory_mb, disk_mb)
    yield from lease_bounds(f"group {group.NAME}", getattr(group, "NETWORK_QUOTA", None), leases)


def _disk_mb(cloud: Asks, template: Template) -> float:
    """Return the disk space of a VM on the hosts, in MB: the template's SIZE, else the image's. Raises `GivePoolUp` for
    an image that does not exist or that the user may not use: no VM of the template could ever start."""
    total = 0.0
    for disk in template.disks:
        size = number_of(disk.get("SIZE"))
        image = _image(cloud, template, disk)
        total += size or number_of(getattr(image, "SIZE", None))
    return total


def _image(cloud: Asks, template: Template, disk: Mapping[str, str]) -> Any:
    number, name, what = disk.get("IMAGE_ID", ""), disk.get("IMAGE", ""), f"template {template.name}"
    try:
        if not number and name:
            owner = disk.get("IMAGE_UNAME", "")
            every = cloud.call("imagepool.info", VISIBLE, -1, -1).IMAGE
            number = next((str(one.ID) for one in every if name == one.NAME and owner in ("", one.UNAME)), "")
            if not number:
                raise GivePoolUp(f"{what} names image {name}, which user {cloud.user} cannot see; correct it")
        return cloud.call("image.info", int(number)) if number.isdecimal() else None
    except NoSuch as error:
        raise GivePoolUp(f"{what} names image {number}, which does not exist; correct it") from error
    except NotAllowed as error:
        raise GivePoolUp(
            f"user {cloud.user} may not use image {name or number} of {what}: {words.said(error)}; ask for the right "
            "to USE it"
        ) from error


def lacks_network(cloud: Asks, template: Template) -> str:
    """Return why no VM of the template will ever get an address; empty if all its networks exist, or cannot be read.
    OpenNebula refuses a VM on a missing network with the same text as on a full one."""
    try:
        for _ in _networks(cloud, template):
            pass
    except GivePoolUp as error:
        return str(error)
    except (No, TryLater, CredentialsWrong):
        pass
    return ""


def _networks(cloud: Asks, template: Template) -> Iterator[Any]:
    """The networks of its VMs, one for each NIC with a fixed network."""
    for nic in template.nics:
        if nic.get("NETWORK_MODE", "").lower() == "auto":
            continue
        network = _network(cloud, template, nic)
        if network is not None:
            yield network


def _network(cloud: Asks, template: Template, nic: Mapping[str, str]) -> Any:
    number, name, what = nic.get("NETWORK_ID", ""), nic.get("NETWORK", ""), f"template {template.name}"
    try:
        if not number and name:
            every = cloud.call("vnpool.info", VISIBLE, -1, -1, -1).VNET
            owner = nic.get("NETWORK_UNAME", "")
            number = next((str(net.ID) for net in every if name == net.NAME and owner in ("", net.UNAME)), "")
            if not number:
                raise GivePoolUp(f"{what} names network {name}, which does not exist; correct it")
        return cloud.call("vn.info", int(number)) if number.isdecimal() else None
    except NoSuch as error:
        raise GivePoolUp(f"{what} names network {number}, which does not exist; correct it") from error
    except NotAllowed as error:
        raise GivePoolUp(
            f"user {cloud.user} may not use network {number or name} of {what}: {words.said(error)}; ask for the rights"
        ) from error


def _host_bounds(cloud: Asks, template: Template) -> Iterator[Bound]:
    """Few users may see hosts; for others hosts set no known limit."""
    try:
        hosts = cloud.call("hostpool.info").HOST
    except (No, GivePoolUp, AttributeError):
        return
    if hosts:
        yield host_bound(hosts, template.cpu, template.memory_mb)
