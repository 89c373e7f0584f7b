"""Diagnoses why a VM did not become a worker: from the findings of a visit by SSH and its start log to a cause, with
its remedy. Pure: no clock, no I/O.

Knows the usual causes in guests of an OpenNebula. Each has a short name, which the database keeps.
"""

from __future__ import annotations

import msgspec

from ecloud.model.machine_needs import CLOCK, DISK, HOME, PYTHON, MachineFacts, lacks

LOG_CHARS = 6000


class Visit(msgspec.Struct, frozen=True, omit_defaults=True):
    """The findings of a visit to a VM by SSH.

    `contact`: ok, silent (nothing answers), shut (the port is closed), closed (before or during the key exchange),
    denied (the guest does not accept our key), changed (another host key than at the first visit) or broken (the
    connection broke). `said`: the text of that error. All other fields are known for `ok` only (after `broken`, `vm`
    and `boot_nonce` may be known, too), and are None or empty if they could not be found out. `clock_s`: how far its
    clock is ahead of the boss's; `python`: the version of its newest usable Python, else of any; `context`: whether it
    has a context; `vm`, `boot_nonce`: the VM of that context; `starting`: the part of its own start that still runs;
    `disk_mb`: free space in a worker's home; `home`: "" or why a worker cannot have its home there; `dns`, `broker`:
    whether the broker's name can be resolved there and the broker answers; `agent`: whether a worker process runs;
    `by_ssh`: whether the boss brings the code; `code`: the code that was brought there, "" for none; `problem`: why the
    VM could not be prepared; `log`: the last lines of its start log and its agent's log.
    """

    contact: str
    said: str = ""
    clock_s: float | None = None
    python: str = ""
    context: bool = True
    vm: str = ""
    boot_nonce: str = ""
    starting: str = ""
    disk_mb: float | None = None
    home: str = ""
    dns: bool | None = None
    broker: bool | None = None
    agent: bool = False
    by_ssh: bool = False
    code: str = ""
    problem: str = ""
    log: str = ""


def facts(visit: Visit) -> MachineFacts:
    """Return what the visit found out about the machine itself."""
    return MachineFacts(visit.python, visit.disk_mb, visit.home, visit.clock_s)


class Cause(msgspec.Struct, frozen=True):
    """`name`: at most 16 characters; `text`: the fault, with the remedy."""

    name: str
    text: str


def recognise(visit: Visit, vm_no: int, boot_nonce: str) -> Cause | None:
    """Return why this VM is no worker yet, according to the visit; None if the visit does not show it. `boot_nonce`:
    the nonce that its context should hold."""
    if visit.contact != "ok":
        return _without_contact(visit)
    return (
        _another_machine(visit, vm_no, boot_nonce)
        or _unfinished_start(visit)
        or _unfit(visit)
        or _unconnected(visit)
        or _failed(visit)
    )


def _without_contact(visit: Visit) -> Cause:
    said = f" ({visit.said})" if visit.said else ""
    if visit.contact == "changed":
        return Cause(
            "another machine",
            f"its address now belongs to another machine, or the connection is intercepted: it shows another host key "
            f"than at the first visit{said}; nothing was sent. Check the cloud's leases; end the VM if it is another",
        )
    if visit.contact == "denied":
        return Cause(
            "key refused",
            f"its sshd refuses the boss's login{said}: the boss's public key is not installed (yet). Its image must "
            "have contextualization packages, and its template must not set USERNAME to another user",
        )
    if visit.contact == "closed":
        return Cause(
            "no host keys",
            f"its SSH port is open, but the connection closes before a host key is shown{said}: its host keys "
            "are missing or sshd is overloaded. The image must make host keys at its first boot (ssh-keygen -A)",
        )
    if visit.contact in ("silent", "shut"):
        what = "nothing answers at its address" if visit.contact == "silent" else "no sshd listens there"
        return Cause(
            "no context",
            f"its cloud reports that it runs, but {what}{said}: a guest without contextualization packages, or whose "
            "CONTEXT disk is missing, has no network and no start script. Check its console, its NIC and its image",
        )
    return Cause("broken visit", f"an SSH connection of the boss broke off{said}; the boss retries")


def _another_machine(visit: Visit, vm_no: int, boot_nonce: str) -> Cause | None:
    if not visit.context:
        return Cause(
            "no context",
            "it runs without a context: its image lacks contextualization packages, or the CONTEXT disk was not "
            "attached. Install one-context in the image; the template needs a CONTEXT",
        )
    if visit.boot_nonce and (visit.vm, visit.boot_nonce) != (str(vm_no), boot_nonce):
        return Cause(
            "another machine",
            f"its address belongs to VM {visit.vm} (boot {visit.boot_nonce}): the address was changed or given to "
            "another one. Check the cloud's leases; end the VM that is left there",
        )
    return None


def _unfinished_start(visit: Visit) -> Cause | None:
    low = visit.log.lower()
    if "lock-frontend" in low or "could not get lock" in low or "/var/lib/dpkg/lock" in low:
        return Cause(
            "package lock",
            "its start script waits for the package lock, which updates of the first boot hold: install packages when "
            "the image is made, or switch unattended upgrades off in it, or let apt wait (-o DPkg::Lock::Timeout=300)",
        )
    if visit.starting and not visit.agent:
        return Cause(
            "still starting",
            f"its boot has not finished ({visit.starting}): the template's start script takes that long; do its work "
            "when the image is made, or give it more time",
        )
    return None


_REMEDIES = {
    PYTHON: "take an image that has it, or install it in the template's start script (Alma and Rocky 9: dnf install "
    "python3.11; Alpine: apk add python3)",
    DISK: "let the image grow its file system at boot (growpart), or enlarge the template's disk (SIZE)",
    HOME: "",
    CLOCK: "let the image keep time (chrony or systemd-timesyncd), or correct the clock of the cloud's host",
}


def _unfit(visit: Visit) -> Cause | None:
    for lack in lacks(facts(visit)):
        remedy = _REMEDIES[lack.need]
        return Cause(lack.need, f"{lack.text}: {remedy}" if remedy else lack.text)
    if "not yet valid" in visit.log:
        return Cause(CLOCK, f"a certificate is not yet valid by its clock: {_REMEDIES[CLOCK]}")
    if visit.problem:
        return Cause("preparing", f"the boss could not prepare it: {visit.problem}")
    return None


def _unconnected(visit: Visit) -> Cause | None:
    if visit.dns is False:
        return Cause(
            "dns",
            "it cannot resolve the broker's name: its name server is wrong or not up yet. Set DNS in the template's "
            "network, or BROKER_HOST to an address",
        )
    if visit.broker is False:
        return Cause(
            "broker",
            "the boss reaches it by SSH, but it cannot reach the broker: a firewall, a security group, or a broker "
            "that listens elsewhere. Open the broker's port to it, or set BROKER_HOST to an address that VMs reach",
        )
    return None


def _failed(visit: Visit) -> Cause | None:
    last = next((line for line in reversed(visit.log.splitlines()) if line.strip()), "")
    if visit.agent:
        return Cause("broker", f"a worker runs there but does not reach the boss; its last output: {last or 'none'}")
    if visit.by_ssh and not visit.code:
        return None
    return Cause(
        "start script",
        f"its start script failed; its last output: {last or 'none'}. Run worker/debug.sh there",
    )
