"""VMs that show our cluster in the cloud's list and that no living intent owns: what a lost answer left behind.

Owns since when each of them is seen. Ends one after a grace, and asks again until the list lacks it; never while an
agent with the key of that VM is on duty, which is told to finish and to leave, and never while nobody can be heard.
"""

from __future__ import annotations

import math
from collections.abc import Container

from boss.core.config import BossConfig
from boss.core.duty import Duty
from boss.core.effects import EndVm
from boss.core.events import VmsListed
from boss.core.fleet import Fleet
from boss.core.outbox import Outbox

NO_INTENT = "no intent owns its VM: it was given up while the cloud still made it, or comes from a lost database"


class Orphans:
    """What the lists showed and nobody owns."""

    def __init__(self, outbox: Outbox, fleet: Fleet, duty: Duty, config: BossConfig) -> None:
        self._outbox = outbox
        self._fleet = fleet
        self._duty = duty
        self._config = config
        self._since: dict[tuple[str, str], float] = {}
        self._asked_at: dict[tuple[str, str], float] = {}
        self.at_once = False
        """All VMs are being ended: these too, whoever answers there."""

    @property
    def any(self) -> bool:
        """Whether the last lists showed one."""
        return bool(self._since)

    def on_listed(self, cloud: str, listed: VmsListed, owned: Container[int], ask_again_s: float, now: float) -> None:
        """Look at what a list of that cloud shows besides what is `owned`."""
        shown = {
            (cloud, cloud_id): vm_no
            for vm_no, cloud_id in listed.by_vm_no.items()
            if vm_no not in owned and vm_no not in listed.starting
        }
        for key in [key for key in self._since if key[0] == cloud and key not in shown]:
            del self._since[key]
            self._asked_at.pop(key, None)
        for key, vm_no in shown.items():
            since = self._since.setdefault(key, now)
            grace_s = 0.0 if self.at_once else self._config.orphan_grace_s
            if self._duty.deaf and not self.at_once:  # its agent may well be alive
                self._since[key] = now
            elif self._agent_leaves(vm_no) and not self.at_once:
                continue
            elif now >= max(since + grace_s, self._asked_at.get(key, -math.inf) + ask_again_s):
                self._asked_at[key] = now
                self._outbox.call(EndVm(vm_no, listed.pool, key[1], NO_INTENT))

    def _agent_leaves(self, vm_no: int) -> bool:
        """Whether an agent of that VM is on duty: it may finish what it runs, and leaves."""
        agents = [worker for worker in self._fleet.workers.values() if worker.row.key_name == f"vm-{vm_no}"]
        for worker in agents:
            self._duty.drain(worker, NO_INTENT, then_exit=True)
        return bool(agents)
