"""VMs in the cloud's list with this cluster's id but no living intent: leftovers of a lost answer, or of a history
that a restored database lacks.

Owns the time since when each is seen, and reports it for the ledger, because the VM cost money. Ends an orphan after a
grace period and repeats the request until the list lacks the VM. If an agent with the VM's key is on duty, the boss
orders it to finish and leave instead. Ends nothing while the broker connection is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from boss.core.autoscale.vm import Vm
from boss.core.model.cloud_vms import VmFound
from boss.core.model.config import BossConfig
from boss.core.model.effects import EndVm
from boss.core.model.events import VmsListed
from boss.core.model.fleet import Fleet
from boss.core.model.outbox import Outbox
from boss.core.model.rows import VmSpan
from boss.core.workers.leases import Leases

NO_INTENT = "no intent owns its VM: the boss gave it up before the cloud created it, or its database was lost"


class Orphans:
    """VMs that the clouds' lists showed and that no intent owns."""

    def __init__(self, outbox: Outbox, fleet: Fleet, leases: Leases, config: BossConfig) -> None:
        self._outbox = outbox
        self._fleet = fleet
        self._leases = leases
        self._config = config
        self._since: dict[tuple[str, str], float] = {}
        self._asked_at: dict[tuple[str, str], float] = {}
        self._spans: dict[tuple[str, str], VmSpan] = {}
        self.at_once = False
        """Whether orphans end without grace, because all VMs are being ended."""

    @property
    def any(self) -> bool:
        """Whether the last lists showed an orphan."""
        return bool(self._since)

    def remember(self, cloud: str, span: VmSpan, is_set: bool, now: float) -> None:
        """Take over an orphan from an earlier boss that did not see its end. A removed cloud never sends a list."""
        if is_set:
            self._since[cloud, span.cloud_id] = now
            self._spans[cloud, span.cloud_id] = span
        else:
            self._write(msgspec.structs.replace(span, ended_at=now))

    def known(self, cloud: str) -> dict[str, int]:
        """Orphans in the last lists of that cloud: intent numbers by cloud id."""
        return {cloud_id: span.vm_no for (name, cloud_id), span in self._spans.items() if name == cloud}

    def _write(self, span: VmSpan) -> None:
        self._outbox.writes.spans[span.vm_no, span.boot_nonce] = span

    def on_listed(
        self, cloud: str, listed: VmsListed, owner: Callable[[VmFound], Vm | None], ask_again_s: float, now: float
    ) -> None:
        """Process a cloud's list: every VM without an `owner` is an orphan."""
        told = {found.cloud_id: found for found in listed.vms}
        shown = {
            (cloud, found.cloud_id): found
            for found in listed.vms
            if not found.is_gone and owner(found) is None and found.vm_no not in listed.starting
        }
        for key in [key for key in self._since if key[0] == cloud and key not in shown]:
            if listed.asked is None or key[1] in listed.asked:
                self._on_gone(key, told.get(key[1]), now)
        for key, found in shown.items():
            vm_no = found.vm_no
            self._on_seen(key, found, now)
            since = self._since.setdefault(key, now)
            grace_s = 0.0 if self.at_once else self._config.orphan_grace_s
            if self._leases.deaf and not self.at_once:  # its agent may be alive
                self._since[key] = now
            elif self._agent_leaves(found) and not self.at_once:
                continue
            elif now >= max(since + grace_s, self._asked_at.get(key, -math.inf) + ask_again_s):
                self._asked_at[key] = now
                self._outbox.call(EndVm(vm_no, listed.pool, key[1], NO_INTENT))

    def _on_seen(self, key: tuple[str, str], found: VmFound, now: float) -> None:
        known = self._spans.get(key)
        started = found.since or (known.started_at if known is not None else now)
        if known is None or known.started_at != started:
            self._spans[key] = VmSpan(found.vm_no, key[1], started, boot_nonce=found.boot_nonce)
            self._write(self._spans[key])

    def _on_gone(self, key: tuple[str, str], told: VmFound | None, now: float) -> None:
        del self._since[key]
        self._asked_at.pop(key, None)
        span = self._spans.pop(key)
        started = (told.since if told is not None else 0.0) or span.started_at
        ended = (told.ended if told is not None else 0.0) or now
        self._write(msgspec.structs.replace(span, started_at=started, ended_at=ended))

    def _agent_leaves(self, found: VmFound) -> bool:
        """Whether an agent of that VM is on duty: it finishes its tasks and leaves."""
        agents = [
            worker
            for worker in self._fleet.workers.values()
            if worker.row.key_name == f"vm-{found.vm_no}" and found.boot_nonce in ("", worker.row.hello.boot_nonce)
        ]
        for worker in agents:
            self._leases.drain(worker, NO_INTENT, then_exit=True)
        return bool(agents)
