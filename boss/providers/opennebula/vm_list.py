"""Reads the few parts of OpenNebula's XML that describe a VM.

pyone builds every part of every VM and takes five times as long; a boss reads all its VMs every few seconds.
"""

from __future__ import annotations

import msgspec
from lxml import etree

_POOL, _VM = "VM_POOL", "VM"


class SeenVm(msgspec.Struct, frozen=True):
    """A VM. `attributes`: those of its USER_TEMPLATE that were shown (a list shows only LABELS). `since`, `ended`:
    epoch seconds by the cloud's clock; `ended` 0 for a VM that is not gone."""

    id: int
    uid: int
    owner: str
    name: str
    state: int
    lcm: int
    since: float
    address: str
    attributes: dict[str, str]
    ended: float = 0.0
    template: int = -1
    """The id of its template, if shown."""

    @property
    def labels(self) -> str:
        """Its labels, separated by commas."""
        return self.attributes.get("LABELS", "")


def read_vms(text: str) -> list[SeenVm]:
    """All VMs of an answer that shows one or a pool of them. Raises `ValueError` for anything else: an answer without
    VMs must not look like an empty cloud."""
    # An answer may be large. It needs no entities of its own.
    parser = etree.XMLParser(huge_tree=True, resolve_entities=False, no_network=True)
    try:
        root = etree.fromstring(text.encode(), parser)
    except etree.XMLSyntaxError as error:
        raise ValueError(f"no XML: {error}") from None
    if root.tag == _VM:
        return [_read(root)]
    if root.tag != _POOL or any(child.tag != _VM for child in root):
        raise ValueError(f"{root.tag} in the place of VMs")
    return [_read(vm) for vm in root]


def _read(vm: etree._Element) -> SeenVm:
    own = vm.find("USER_TEMPLATE")
    attributes = {} if own is None else {str(child.tag): child.text or "" for child in own}
    return SeenVm(
        id=int(vm.findtext("ID", "")),
        uid=int(vm.findtext("UID", "")),
        owner=vm.findtext("UNAME", ""),
        name=vm.findtext("NAME", ""),
        state=int(vm.findtext("STATE", "")),
        lcm=int(vm.findtext("LCM_STATE", "")),
        since=float(vm.findtext("STIME", "0")),
        address=next((ip.text for ip in vm.iterfind("TEMPLATE/NIC/IP") if ip.text), ""),
        attributes=attributes,
        ended=float(vm.findtext("ETIME", "0")),
        template=int(vm.findtext("TEMPLATE/TEMPLATE_ID", "-1")),
    )
