"""What the OpenNebula double holds, and how it shows each of it: recorded objects, filled with other values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any
from xml.etree import ElementTree

from guests import Guest
from opennebula_xml import Attributes, attributes_of, fill, pool, recorded, set_attributes

IMAGE_MB = 1024
"""The size of the image that was recorded."""
PENDING, HOLD, ACTIVE, DONE, POWEROFF = 1, 2, 3, 6, 8


@dataclass
class User:
    id: int
    name: str
    password: str
    group: str = "users"
    enabled: bool = True
    tokens: dict[str, float] = field(default_factory=dict)
    """Each with the time of the monotonic clock at which it ends."""
    quota: Attributes = field(default_factory=dict)
    network_quota: dict[int, int] = field(default_factory=dict)
    """Leases that it may have, by network."""
    public_key: str = ""
    """What `$USER[SSH_PUBLIC_KEY]` stands for in a template."""


@dataclass
class Network:
    id: int
    name: str
    owner: User
    first: str
    size: int
    leases: dict[str, int] = field(default_factory=dict)
    """Address to VM."""


@dataclass
class Template:
    id: int
    name: str
    owner: User
    attributes: Attributes


@dataclass
class Vm:
    id: int
    name: str
    owner: User
    template_id: int
    template: Attributes
    user_template: Attributes
    state: int = PENDING
    lcm: int = 0
    since: float = 0.0
    """When it came into its state."""
    made_at: int = 0
    ended_at: int = 0
    deployed: bool = False
    hard: bool = False
    """Asked to end hard."""
    guest: Guest | None = None

    @property
    def where(self) -> tuple[int, int]:
        return self.state, self.lcm


def user_xml(subject: User, mine: Sequence[Vm]) -> Any:
    """A user, with the quotas of one that has any; `mine`: the VMs that count."""
    found = recorded("31-user.info-self")
    fill(found, ID=subject.id, NAME=subject.name, GNAME=subject.group, ENABLED=int(subject.enabled))
    if subject.quota:
        _set_quota(found, subject.quota, mine)
    if subject.network_quota:
        quotas = found.find("NETWORK_QUOTA")
        assert quotas is not None
        rows = [
            {"ID": str(number), "LEASES": str(limit), "LEASES_USED": str(leases_used(mine, number))}
            for number, limit in subject.network_quota.items()
        ]
        set_attributes(quotas, {"NETWORK": rows})
    return found


def leases_used(vms: Sequence[Vm], network: int) -> int:
    """Addresses of a network that these VMs have."""
    nics = [nic for vm in vms for nic in many(vm.template.get("NIC"))]
    return sum(1 for nic in nics if "IP" in nic and nic.get("NETWORK_ID") == str(network))


def quota_used(vms: Sequence[Vm]) -> dict[str, float]:
    """What VMs count for in the quotas of a user or a group. Those that wait do not run."""
    running = [vm for vm in vms if vm.state == ACTIVE]

    def total(some: Sequence[Vm], name: str, otherwise: float) -> float:
        return sum(float(vm.template.get(name, otherwise)) for vm in some)

    return {
        "VMS": len(vms),
        "RUNNING_VMS": len(running),
        "CPU": total(vms, "CPU", 1),
        "RUNNING_CPU": total(running, "CPU", 1),
        "MEMORY": total(vms, "MEMORY", 0),
        "RUNNING_MEMORY": total(running, "MEMORY", 0),
        "SYSTEM_DISK_SIZE": sum(disk_mb(vm.template) for vm in vms),
    }


def disk_mb(template: Attributes) -> float:
    """What the disks of a VM take on its host."""
    return sum(float(disk.get("SIZE", IMAGE_MB)) for disk in many(template.get("DISK")))


def group_xml(name: str, quota: Attributes, of_all: Sequence[Vm]) -> Any:
    """A group, as the schema says: no recorded exchange shows one. `of_all`: the VMs of all its users."""
    user = recorded("31-user.info-self")
    found = set_attributes(recorded("31-user.info-self"), {"ID": "1", "NAME": name})
    found.tag = "GROUP"
    for part in ("TEMPLATE", "USERS", "ADMINS"):
        ElementTree.SubElement(found, part)
    for part in ("DATASTORE_QUOTA", "NETWORK_QUOTA", "VM_QUOTA", "IMAGE_QUOTA"):
        ElementTree.SubElement(found, part)
    defaults = user.find("DEFAULT_USER_QUOTAS")
    assert defaults is not None
    defaults.tag = "DEFAULT_GROUP_QUOTAS"
    found.append(defaults)
    if quota:
        _set_quota(found, quota, of_all)
    return found


def _set_quota(found: Any, own: Attributes, counted: Sequence[Vm]) -> None:
    used = {f"{kind}_USED": amount for kind, amount in quota_used(counted).items()}
    kinds = ("CPU", "MEMORY", "RUNNING_CPU", "RUNNING_MEMORY", "RUNNING_VMS", "SYSTEM_DISK_SIZE", "VMS")
    values: Attributes = {f"{kind}{end}": "-1" if not end else "0" for kind in kinds for end in ("", "_USED")}
    quota = found.find("VM_QUOTA")
    assert quota is not None
    set_attributes(quota, {"VM": {**values, **used, **own}})


def network_xml(net: Network, whole: bool) -> Any:
    found = recorded("11-vn.info-0") if whole else recorded("33-vnpool.info", "VNET[2]")
    fill(found, ID=net.id, UID=net.owner.id, UNAME=net.owner.name, NAME=net.name, USED_LEASES=len(net.leases))
    updated = found.find("UPDATED_VMS")
    assert updated is not None
    set_attributes(updated, {"ID": sorted(set(net.leases.values()))})
    part = found.find("AR_POOL/AR")
    assert part is not None
    fill(part, IP=net.first, SIZE=net.size)
    if whole:
        fill(part, IP_END=IPv4Address(net.first) + net.size - 1, USED_LEASES=len(net.leases))
        leases = part.find("LEASES")
        assert leases is not None
        rows = [{"IP": ip, "MAC": mac(ip), "VM": str(vm)} for ip, vm in net.leases.items()]
        set_attributes(leases, {"LEASE": rows})
    return found


def template_xml(template: Template, decrypt: bool = False) -> Any:
    found = recorded("08-template.info")
    owner = template.owner
    fill(found, ID=template.id, UID=owner.id, UNAME=owner.name, GNAME=owner.group, NAME=template.name)
    inner = found.find("TEMPLATE")
    assert inner is not None
    attributes = dict(template.attributes)
    if "PASSWORD" in attributes.get("CONTEXT", {}) and not decrypt:
        attributes["CONTEXT"] = {**attributes["CONTEXT"], "PASSWORD": "c2VjcmV0IQ=="}
    set_attributes(inner, attributes)
    return found


def vm_xml(vm: Vm) -> Any:
    found = recorded("12-vm.info-running" if vm.deployed else "19-vm.info-pending-sched-message")
    _fill_vm(found, vm)
    fill(found, PREV_STATE=vm.state, PREV_LCM_STATE=vm.lcm)
    inner, outer = found.find("TEMPLATE"), found.find("USER_TEMPLATE")
    assert inner is not None
    assert outer is not None
    attributes = attributes_of(inner)
    models = {name: attributes.pop(name) for name in ("CONTEXT", "CPU", "DISK", "GRAPHICS", "MEMORY", "NIC")}
    attributes.update(vm.template)
    attributes.update(VMID=str(vm.id), TEMPLATE_ID=str(vm.template_id))
    attributes["NIC"] = [{**models["NIC"], **nic, "NAME": f"NIC{nic['NIC_ID']}"} for nic in attributes["NIC"]]
    for nic, own in zip(attributes["NIC"], vm.template["NIC"]):
        if "IP" not in own:
            del nic["IP"]
    attributes["DISK"] = [{**models["DISK"], **disk} for disk in many(vm.template.get("DISK"))]
    if "GRAPHICS" in vm.template:
        attributes["GRAPHICS"] = {**models["GRAPHICS"], **vm.template["GRAPHICS"]}
    set_attributes(inner, attributes)
    set_attributes(outer, vm.user_template)
    return found


def vm_short_xml(vm: Vm) -> Any:
    found = recorded("24-vmpool.info-3vms", "VM[2]" if vm.deployed else "VM[1]")
    _fill_vm(found, vm)
    inner, outer = found.find("TEMPLATE"), found.find("USER_TEMPLATE")
    assert inner is not None
    assert outer is not None
    model = attributes_of(inner.find("NIC"))
    for nic in inner.findall("NIC"):
        inner.remove(nic)
    for nic in vm.template["NIC"]:
        shown = {**model, **{key: value for key, value in nic.items() if key in model}}
        if "IP" not in nic:
            del shown["IP"]
        inner.append(set_attributes(pool("NIC", []), shown))
    # Of all that a user gave it the labels alone, and what the cloud says of it.
    shown_of_it = ("ERROR", "LABELS", "SCHED_MESSAGE")
    set_attributes(outer, {key: vm.user_template[key] for key in shown_of_it if key in vm.user_template})
    return found


def _fill_vm(found: Any, vm: Vm) -> None:
    owner = vm.owner
    fill(found, ID=vm.id, UID=owner.id, UNAME=owner.name, GNAME=owner.group, NAME=vm.name)
    fill(found, STATE=vm.state, LCM_STATE=vm.lcm, STIME=vm.made_at, ETIME=vm.ended_at)
    fill(found, DEPLOY_ID=f"dh0:{vm.name}:dummy" if vm.deployed else "")


def many(value: Any) -> list[Attributes]:
    return value if isinstance(value, list) else [value] if isinstance(value, dict) else []


def mac(address: str) -> str:
    return "02:00:" + ":".join(f"{int(part):02x}" for part in address.split("."))
