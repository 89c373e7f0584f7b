"""One VM template: the parts of it that are read, and the text that starts a VM from it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from boss.bootstrap.start_script import TooLarge, merged_context, variables
from boss.providers.opennebula import naming as words
from boss.providers.opennebula.capacity import number_of
from boss.providers.provider import GivePoolUp, VmOrder
from ecloud.config.secrets import AccessFile
from ecloud.model.tasks import Resources

POWEROFF_AFTER_S = 60.0
"""Delay between the worker's exit and power-off: time for the boss, if there is one, to end the VM."""
_VARIABLE_AT_LINE_END = re.compile(r"(\$\{?\w+\}?(?:\[[^\]]*\])?)(?=\r?\n)")
"""Text that oned's parser takes for a variable at the end of a line: a syntax error there."""


class Template(msgspec.Struct, frozen=True):
    """A template. `name`: with its id, for people; `nics`: the networks of its VMs; `vcpus`: the CPUs that they see,
    while `cpu` is what the host reserves."""

    id: int
    name: str
    context: dict[str, str]
    labels: str
    nics: tuple[dict[str, str], ...]
    cpu: float
    memory_mb: float
    vcpus: float = 0.0
    disks: tuple[dict[str, str], ...] = ()

    def too_small_for(self, size: Resources) -> str:
        """Return the part of a pool's promise that the template does not give; empty if it gives all."""
        cpus = self.vcpus or self.cpu
        lacks = [
            f"the pool has {promised:g} {what}, but its template gives {given:g} ({where})"
            for what, promised, given, where in (
                ("cpus", size.get("cpus", 0.0), cpus, "VCPU" if self.vcpus else "CPU"),
                ("MB of memory", size.get("memory_mb", 0.0), self.memory_mb, "MEMORY"),
            )
            if 0 < given < promised
        ]
        return "; ".join(lacks)


class Worker(msgspec.Struct, frozen=True):
    """The common part of all workers of a pool. `code`: directory of ECLOUD in the image; `public_key`: a key that its
    sshd accepts in addition to those of its template."""

    boss_gone_exit_s: float
    keep_dirs: bool
    code: str
    public_key: str = ""


def read_template(found: Any) -> Template:
    """Read a template that pyone returned. Raises `GivePoolUp` if no worker can come from it."""
    inner = found.TEMPLATE
    name = f"{found.NAME} ({found.ID})"
    context = inner.get("CONTEXT")
    if not isinstance(context, Mapping):
        what = "more than one CONTEXT" if context else "no CONTEXT"
        raise GivePoolUp(
            f'template {name} has {what}: give it one, with NETWORK="YES", or its VMs have no network settings'
        )
    nics = tuple(dict(nic) for nic in words.as_list(inner.get("NIC")))
    if not nics:
        raise GivePoolUp(f"template {name} has no network: give it a NIC, or its VMs cannot reach the boss")
    return Template(
        id=int(found.ID),
        name=name,
        context={key: value if isinstance(value, str) else "" for key, value in context.items()},
        labels=str(inner.get("LABELS") or ""),
        nics=nics,
        cpu=number_of(inner.get("CPU")),
        memory_mb=number_of(inner.get("MEMORY")),
        vcpus=number_of(inner.get("VCPU")),
        disks=tuple(dict(disk) for disk in words.as_list(inner.get("DISK"))),
    )


def choose(every: Sequence[Any], name: str, uid: int) -> int | None:
    """The id of the template of that name; of several, the user's own. None if there is none. Raises `GivePoolUp` if it
    is ambiguous."""
    named = [template for template in every if name == template.NAME]
    if len(named) > 1:
        named = [template for template in named if uid == template.UID] or named
    if len(named) > 1:
        ids = ", ".join(str(template.ID) for template in named)
        raise GivePoolUp(f"several templates are named {name}: set the pool's template to one of {ids}")
    return int(named[0].ID) if named else None


def order_text(template: Template, order: VmOrder, cluster_id: str, access: AccessFile, worker: Worker) -> str:
    """Return the text that is sent in addition to the template's id. Raises `GivePoolUp`."""
    ours = variables(
        cluster_id=cluster_id,
        vm_no=order.vm_no,
        boot_nonce=order.boot_nonce,
        access=msgspec.json.encode(access),
        boss=f"{access.host}:{access.port}",
        options=_options(order, worker),
        code=worker.code,
        poweroff_after_s=min(POWEROFF_AFTER_S, worker.boss_gone_exit_s),
    )
    attributes: dict[str, str | Mapping[str, str]] = {
        **words.attributes_of(cluster_id, order.vm_no, order.boot_nonce, order.pool),
        "LABELS": words.labels_of(cluster_id, order.boot_nonce, template.labels),
    }
    try:
        # A top-level attribute that is sent replaces the template's own: CONTEXT is sent completely, NICs are not sent.
        attributes["CONTEXT"] = merged_context({**template.context, **_let_in(template, worker.public_key)}, ours)
        return words.template_text(attributes)
    except (TooLarge, words.CantBeWritten) as error:
        raise GivePoolUp(f"template {template.name} cannot be used: {error}; change it") from None


def _let_in(template: Template, public_key: str) -> dict[str, str]:
    """Our key before the template's own: oned refuses a newline after a variable, and the usual value is
    `$USER[SSH_PUBLIC_KEY]`. Within the template's own lines a space between the two is enough."""
    if not public_key:
        return {}
    own = _VARIABLE_AT_LINE_END.sub(r"\1 ", template.context.get("SSH_PUBLIC_KEY", "").strip())
    return {"SSH_PUBLIC_KEY": f"{public_key.strip()}\n{own}".strip()}


def _options(order: VmOrder, worker: Worker) -> list[str]:
    options = ["--boss_gone_exit_s", f"{worker.boss_gone_exit_s:g}"]
    for name, amount in order.size.items():
        if name == "gpus":
            options += ["--gpus", ",".join(str(index) for index in range(int(amount)))]
        elif name in ("cpus", "memory_mb"):
            options += [f"--{name}", f"{amount:g}"]
        else:
            options += ["--resource", f"{name}={amount:g}"]
    for label in order.labels:
        options += ["--label", label]
    return [*options, "--keep_dirs"] if worker.keep_dirs else options
