"""Processes the clouds' lists of VMs. Only a list proves that a VM is gone, and only a list shows a VM whose answer was
lost.

Decides from a list which VMs to adopt, end or give up; `Vms` carries that out. `ListRequests` decides when a cloud is
asked for its list.
"""

from __future__ import annotations

from collections import Counter

from boss.core.autoscale.vm import Vm
from boss.core.autoscale.vms import Vms
from boss.core.model.cloud_vms import WAITING, CloudState, VmFound
from boss.core.model.config import BossConfig
from boss.core.model.events import VmsListed
from boss.core.model.fleet import Fleet
from ecloud.model.text import duration
from ecloud.model.vm_states import VmState

ASK_AGAIN_S = 15.0
"""After this the end of an orphan is requested again."""
HIDDEN_S = 600.0
"""After this a VM that should end, and that its cloud no longer lists without reporting its end, is written off."""
_PLACED = frozenset({CloudState.BOOTING, CloudState.RUNNING})


class VmLists:
    """What follows from the clouds' lists."""

    def __init__(self, vms: Vms, fleet: Fleet, config: BossConfig) -> None:
        self._vms = vms
        self._requests = vms.list_requests
        self._fleet = fleet
        self._config = config

    def on_listed(self, listed: VmsListed, now: float) -> None:
        """Process a list: adopt VMs of this cluster whose answers were lost; a VM that the list lacks is gone."""
        cloud = self._requests.cloud_of(listed.pool)
        self._requests.tell_away(cloud, "")
        self._vms.orphans.on_listed(cloud, listed, self._vms.owner, ASK_AGAIN_S, now)
        if self._vms.orphans.any:
            self._requests.no_later(now + self._config.list_vms_every_s)
        shown = self._shown(listed)
        gone = {found.cloud_id: found for found in listed.vms if found.is_gone}
        self._note_placing(cloud, shown, now)
        for vm in tuple(self._vms.alive.values()):
            if vm.vm_no in listed.starting and vm.called_at is not None:
                vm.called_at = now
            if vm.row.pool not in self._vms.pools.configs and vm.vm_no in shown:
                vm.shown_by = listed.pool
            if self._requests.cloud_of(vm.listed_by) == cloud:
                self._compare(vm, listed, shown.get(vm.vm_no), gone, now)

    def _shown(self, listed: VmsListed) -> dict[int, VmFound]:
        """The entry of each VM that exists. Of several, as where a person copied a VM, the one that the boss knows."""
        shown: dict[int, VmFound] = {}
        for found in listed.vms:
            vm = self._vms.owner(found) if not found.is_gone else None
            if vm is not None and (vm.vm_no not in shown or found.cloud_id == vm.row.cloud_id):
                shown[vm.vm_no] = found
        return shown

    def _compare(self, vm: Vm, listed: VmsListed, found: VmFound | None, gone: dict[str, VmFound], now: float) -> None:
        vms, cloud_id = self._vms, vm.row.cloud_id
        if not cloud_id and found is not None:  # it was made, and the answer was lost
            vms.on_started(vm.vm_no, found.cloud_id, now)
            self._live_since(vm, found)
            return
        if cloud_id:
            there = found is not None and found.cloud_id == cloud_id
            if not there and (listed.asked is None or cloud_id in listed.asked):
                end = gone.get(cloud_id)
                self._live_since(vm, end)
                vms.on_vanished(vm, end.ended or None if end is not None else None, now)
            elif there:
                self._live_since(vm, found)
                self._on_seen(vm, found, now)
            else:  # the list is older than the VM
                self._on_seen(vm, None, now)
            return
        end = next((one for one in gone.values() if self._vms.owner(one) is vm), None)
        if end is not None and vm.vm_no not in listed.starting:  # else its answer is still pending
            vms.on_started(vm.vm_no, end.cloud_id, now)  # it was gone before any list showed it
            self._live_since(vm, end)
            vms.on_vanished(vm, end.ended or None, now)
        elif self._requests.is_lost(vm, now) and (listed.sought is None or vm.vm_no in listed.sought):
            vms.gone(vm, "the cloud has no VM of this intent", now, cause="unanswered")
        else:
            self._on_seen(vm, None, now)

    def _live_since(self, vm: Vm, found: VmFound | None) -> None:
        """Set the begin of its life: the cloud's time, or, until that is known, the time of its first report."""
        if found is not None and found.since and vm.row.started_at != found.since:
            vm.row.started_at = found.since
            self._vms.write(vm)

    def _on_seen(self, vm: Vm, found: VmFound | None, now: float) -> None:
        """The VM exists, or is being made. `found`: its entry in the list, if any."""
        state = found.state if found is not None else None
        if found is not None and found.text and vm.row.said != found.text:
            vm.row.said = found.text
            self._vms.write(vm)
        self._note_hidden(vm, state, now)
        if vm.state is VmState.ENDING:
            self._on_ending(vm, now)
        elif vm.row.pool not in self._vms.pools.configs and vm.row.cloud_id:
            self._vms.end(vm, f"its pool {vm.row.pool} is no longer in the settings", now)
        elif vm.state is VmState.RUNNING and vm.row.worker not in self._fleet.workers:
            # Its lease ended and no other process came: nothing else would end it.
            self._vms.end(vm, "its worker was lost", now)
        elif state is CloudState.ENDING and vm.state is VmState.RUNNING:
            # Ended from outside the boss: its processes end with it, and nothing more may start there.
            self._vms.end(vm, "its cloud shuts it down", now)
        elif found is not None and vm.state is VmState.BOOTING:
            self._on_booting(vm, found, now)
        self._note_address(vm, found, now)

    def _on_ending(self, vm: Vm, now: float) -> None:
        worker = self._fleet.workers.get(vm.row.worker)
        if vm.hidden_since is not None and now - vm.hidden_since >= HIDDEN_S:
            why = f"written off: its cloud has neither listed it nor reported its end for {duration(HIDDEN_S)}"
            self._vms.write_off(vm, why, now)
        elif worker is None or not worker.held or vm.ends_at_once:
            self._vms.ask_end(vm, now)

    def _note_hidden(self, vm: Vm, state: CloudState | None, now: float) -> None:
        if state is not CloudState.HIDDEN:
            vm.hidden_since = None
        elif vm.hidden_since is None:
            vm.hidden_since = now

    def _note_address(self, vm: Vm, found: VmFound | None, now: float) -> None:
        pool = self._vms.pools.configs.get(vm.row.pool)
        runs = found is not None and found.state is CloudState.RUNNING and bool(found.address)
        if pool is not None and found is not None and runs and vm.vm_no in self._vms.alive:
            usual_s = self._vms.pools.health[vm.row.pool].boot_s(0.95)
            self._vms.boots.on_listed(vm.row, found.address, pool, usual_s, now)

    # --- VMs that wait for a host ----------------------------------------------------------------

    def _note_placing(self, cloud: str, shown: dict[int, VmFound], now: float) -> None:
        """Note for each pool which VMs wait for a host, and which the cloud has begun to boot."""
        busy_cloud = any(found.state is CloudState.BOOTING for found in shown.values())
        waiting: dict[str, list[CloudState]] = {}
        busy: set[str] = set()
        for vm_no, found in shown.items():
            vm = self._vms.alive.get(vm_no)
            if vm is None or not vm.is_coming:
                continue
            if found.state in WAITING:
                vm.waits = True
                waiting.setdefault(vm.row.pool, []).append(found.state)
                continue
            vm.waits = False
            if found.state in _PLACED:
                if found.state is CloudState.BOOTING:
                    busy.add(vm.row.pool)
                if vm.placed_at is None:
                    self._vms.pools.on_placed(vm.row.pool, now)
                    self._vms.on_placed(vm, now)
        unplaced = Counter(vm.row.pool for vm in self._vms.alive.values() if vm.is_coming and vm.placed_at is None)
        for name, queue in self._vms.pools.queues.items():
            if self._requests.cloud_of(name) == cloud:
                states = waiting.get(name, [])
                turns = busy_cloud and CloudState.QUEUED in states
                queue.on_listed(unplaced[name] if states else 0, name in busy or turns, now)

    def _on_booting(self, vm: Vm, found: VmFound, now: float) -> None:
        text = f": {found.text}" if found.text else ""
        if found.state is CloudState.FAILED:
            reason = f"its cloud reports that it failed{text}"
            self._vms.boot_failed(vm, reason, "failed", now)
            self._vms.end(vm, reason, now)
        elif found.state in WAITING:
            queue = self._vms.pools.queues.get(vm.row.pool)
            since = max(vm.waits_since, queue.progress_at if queue is not None else vm.waits_since)
            pool = self._vms.pools.configs.get(vm.row.pool)
            if now - since > self._config.pending_s and not (pool is not None and pool.queues):
                reason = f"its cloud found no host for it in {self._config.pending_s:.0f} s{text}"
                self._vms.withdraw(vm, reason, now)
