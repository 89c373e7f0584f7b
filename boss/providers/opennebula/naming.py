"""OpenNebula's terms: how our VMs are named and tagged, what its states mean, how a template is written. Pure.

A VM carries its cluster and its intent twice, in NAME and in LABELS, because the list of VMs shows no other value
that we set; and a third time in attributes, which are read if the first two disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from boss.core.model.cloud_vms import read_nonce
from boss.providers.provider import CloudState
from datastore.problem import Problem

ACTIVE, DONE = 3, 6
"""VM states that decisions depend on."""
LCM_SHUTDOWN = 12
MAX_NAME_CHARS = 128
NAMES = (
    *("INIT", "PENDING", "HOLD", "ACTIVE", "STOPPED", "SUSPENDED", "DONE", "FAILED", "POWEROFF", "UNDEPLOYED"),
    *("CLONING", "CLONING_FAILURE"),
)
_STATES = {
    "INIT": CloudState.PENDING,
    "PENDING": CloudState.PENDING,
    "HOLD": CloudState.PENDING,
    "CLONING": CloudState.PENDING,
    "FAILED": CloudState.FAILED,
    "CLONING_FAILURE": CloudState.FAILED,
    "STOPPED": CloudState.OFF,
    "SUSPENDED": CloudState.OFF,
    "POWEROFF": CloudState.OFF,
    "UNDEPLOYED": CloudState.OFF,
}
_ENDING = ("SHUTDOWN", "EPILOG", "CANCEL", "CLEANUP_DELETE")
_BOOTING = ("LCM_INIT", "CLEANUP_RESUBMIT")
_GOING_OFF = ("SAVE_STOP", "SAVE_SUSPEND", "EPILOG_STOP", "SHUTDOWN_POWEROFF", "SHUTDOWN_UNDEPLOY", "EPILOG_UNDEPLOY")
_RUNNING = ("RUNNING", "MIGRATE", "SAVE_MIGRATE", "PROLOG_MIGRATE", "BOOT_MIGRATE")


class CantBeWritten(Problem):
    """A value that a template cannot hold: which attribute, and why."""


def state_of(state: int, lcm: str) -> CloudState:
    """The meaning of a VM's state numbers. `lcm`: name of its LCM_STATE, which counts only while the VM is ACTIVE.

    An unknown name is UNKNOWN: neither proof of life nor of an end.
    """
    if state != ACTIVE:
        return _STATES.get(NAMES[state] if 0 <= state < len(NAMES) else "", CloudState.UNKNOWN)
    if lcm.endswith("FAILURE"):
        return CloudState.FAILED
    if lcm in _ENDING:
        return CloudState.ENDING
    if lcm in _GOING_OFF or lcm.endswith(("_POWEROFF", "_SUSPENDED", "_UNDEPLOYED", "_STOPPED")):
        return CloudState.BOOTING if lcm.startswith(("BOOT", "PROLOG")) else CloudState.OFF
    if lcm in _RUNNING or lcm.startswith(("HOTPLUG", "DISK_")):
        return CloudState.RUNNING
    if lcm in _BOOTING or lcm.startswith(("BOOT", "PROLOG")):
        return CloudState.BOOTING
    return CloudState.UNKNOWN


def is_queued(sched_message: str) -> bool:
    """Whether the scheduler has a host for a waiting VM and boots others first: it dispatches a few per host at a
    time."""
    return "dispatch limit" in sched_message.lower()


def cloud_state(state: int, lcm: str) -> str:
    """The state's name as OpenNebula's pages show it."""
    if state == ACTIVE:
        return lcm
    return NAMES[state] if 0 <= state < len(NAMES) else f"state {state}"


# --- whose is it? ---------------------------------------------------------------------------------


def name_of(cluster_id: str, vm_no: int) -> str:
    """The NAME of a VM of this cluster."""
    name = f"ecloud-{cluster_id}-{vm_no}"
    assert len(name) <= MAX_NAME_CHARS, name
    assert not re.search(r"[$:/]", name), name
    return name


def labels_of(cluster_id: str, nonce: str, own: str = "") -> str:
    """The LABELS of a VM of this cluster, after those of its template."""
    return ",".join(filter(None, [own, f"ecloud-{cluster_id}", f"ecloud-vm-{nonce}"]))


def attributes_of(cluster_id: str, vm_no: int, nonce: str, pool: str) -> dict[str, str]:
    """The attributes that a VM of this cluster carries."""
    return {
        "ECLOUD_CLUSTER": cluster_id,
        "ECLOUD_VM_NO": str(vm_no),
        "ECLOUD_BOOT_NONCE": nonce,
        "ECLOUD_POOL": pool,
    }


def vm_no_in_name(cluster_id: str, name: str) -> int | None:
    """The intent in a VM's NAME, if the name is of our cluster."""
    prefix = f"ecloud-{cluster_id}-"
    number = name[len(prefix) :] if name.startswith(prefix) else ""
    return int(number) if number.isascii() and number.isdecimal() else None


def vm_no_in_labels(cluster_id: str, labels: str) -> int | None:
    """The intent in a VM's LABELS, if they name our cluster."""
    found = _in_labels(cluster_id, labels)
    return None if found is None else found[0]


def nonce_of(cluster_id: str, labels: str, attributes: Mapping[str, object]) -> str:
    """The boot nonce in a VM's LABELS, or else in its attributes; empty for a VM that carries none."""
    found = _in_labels(cluster_id, labels)
    if found is not None and found[1]:
        return found[1]
    own = read_nonce(str(attributes.get("ECLOUD_BOOT_NONCE") or ""))
    return own[1] if own is not None and own[0] == vm_no_in_attributes(cluster_id, attributes) else ""


def _in_labels(cluster_id: str, labels: str) -> tuple[int, str] | None:
    parts = [part.strip() for part in labels.split(",")]
    if f"ecloud-{cluster_id}" not in parts:
        return None
    nonces = [part.removeprefix("ecloud-vm-") for part in parts if part.startswith("ecloud-vm-")]
    return read_nonce(nonces[0]) if len(nonces) == 1 else None


def vm_no_in_attributes(cluster_id: str, attributes: Mapping[str, object]) -> int | None:
    """The intent in a VM's attributes, if they name our cluster."""
    number = str(attributes.get("ECLOUD_VM_NO") or "")
    ours = attributes.get("ECLOUD_CLUSTER") == cluster_id
    return int(number) if ours and number.isascii() and number.isdecimal() else None


# --- templates ------------------------------------------------------------------------------------


def template_text(attributes: Mapping[str, str | Mapping[str, str]]) -> str:
    """Attributes, and attributes of attributes, as lines of K="v" and K=[A="v",…]. Raises `CantBeWritten`.

    Only the quote is escaped, because OpenNebula reads a backslash literally.
    """
    lines = []
    for name, value in attributes.items():
        if isinstance(value, str):
            lines.append(f"{name}={_quoted(name, value)}")
        else:
            inner = ",".join(f"{key}={_quoted(f'{name}/{key}', text)}" for key, text in value.items())
            lines.append(f"{name}=[{inner}]")
    return "".join(f"{line}\n" for line in lines)


def _quoted(name: str, value: str) -> str:
    if value.endswith("\\"):
        raise CantBeWritten(f"{name} ends with a backslash, which OpenNebula reads as one with the quote after it")
    if "]]>" in value:
        raise CantBeWritten(f"{name} holds ]]>, which OpenNebula does not accept")
    if "\0" in value:
        raise CantBeWritten(f"{name} holds a zero byte")
    return '"' + value.replace('"', '\\"') + '"'


def as_list(value: object) -> Sequence[Mapping[str, str]]:
    """A part that a template may have once, several times or not at all, as a list: NICs, a network's address
    ranges."""
    found = value if isinstance(value, list) else [value]
    return [item for item in found if isinstance(item, Mapping)]


def said(error: Exception) -> str:
    """The text of a refusal, without the name of the call."""
    text = str(error).strip()
    return (text.partition("] ")[2] if text.startswith("[one.") else text).rstrip(".") or "no reason given"
