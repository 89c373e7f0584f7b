"""Operator alerts, at most one per cause and hour, by the log and HOOK_COMMAND.

Inspects the other parts from time to time. Owns when each cause was first seen and last reported. The latter is kept in
the context, so that a boss that restarts often does not repeat alerts. Repairs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from boss.core.autoscale.run_budgets import RunBudgets
from boss.core.autoscale.vms import Vms
from boss.core.model.effects import TellPerson
from boss.core.model.outbox import Outbox
from boss.core.model.rows import VmRow
from boss.core.model.timers import Timers
from boss.core.tasks.attempts import Attempts
from ecloud.model.vm_states import VmState

LOOK_EVERY_S = 10.0
LONG_S = 600.0
"""A condition that should end without help causes an alert after this time."""
STUCK_ASKS = 40
"""An end that was requested this often, every 15 s, has failed for long, even if a restarted boss counts time from its
start."""
AGAIN_S = 3600.0
NOTE = "shouted/"
"""Prefix of a name in the context, followed by the cause; the value is the time of the last alert."""
NAMED = 5


class Alerts:
    """Persistent conditions, by cause."""

    def __init__(
        self,
        outbox: Outbox,
        vms: Vms,
        attempts: Attempts,
        run_spending: RunBudgets,
        timers: Timers,
        context: Mapping[str, str],
        now: float,
    ) -> None:
        self._outbox = outbox
        self._vms = vms
        self._attempts = attempts
        self._run_spending = run_spending
        self._timers = timers
        self._since: dict[str, float] = {}
        self._told = {
            name.removeprefix(NOTE): min(now, float(at)) for name, at in context.items() if name.startswith(NOTE)
        }
        timers.set(now + LOOK_EVERY_S, self.look)

    def look(self, now: float) -> None:
        """Report conditions that have lasted too long and were not reported lately."""
        self._timers.set(now + LOOK_EVERY_S, self.look)
        found = dict(self._lasting(now))
        for cause, text in found.items():
            if now - self._told.get(cause, -AGAIN_S) >= AGAIN_S:
                self._told[cause] = now
                self._outbox.writes.context[NOTE + cause] = str(now)
                self._outbox.call(TellPerson(cause, text))
        for cause in [cause for cause, at in self._told.items() if cause not in found and now - at >= AGAIN_S]:
            del self._told[cause]
            self._outbox.writes.context[NOTE + cause] = None

    # --- persistent conditions -------------------------------------------------------------------

    def _lasting(self, now: float) -> Iterator[tuple[str, str]]:
        """Each cause to report, with its text."""
        before, self._since = self._since, {}

        def lasts(trouble: str) -> bool:
            self._since[trouble] = before.get(trouble, now)
            return now - self._since[trouble] >= LONG_S

        yield from self._ends(lasts)
        yield from self._pools(lasts, now)
        budget = self._vms.spending.exhausted(self._vms.rows, now)
        if budget:
            yield "budget", f"no VM starts automatically: {budget}"
        for run_no, text in self._run_spending.exhausted.items():
            yield f"budget/{run_no}", f"no VM starts for a run: {text}"
        datastore = self._attempts.datastore_trouble
        if datastore and lasts("datastore"):
            yield "datastore", f"for {LONG_S / 60:.0f} minutes results could not be published: {datastore}"

    def _ends(self, lasts: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
        stuck: dict[str, list[VmRow]] = {}
        for vm in self._vms.rows:
            if vm.state is VmState.ENDING and vm.end_asked and (lasts(f"vm/{vm.vm_no}") or vm.end_asked >= STUCK_ASKS):
                stuck.setdefault(vm.pool, []).append(vm)
        for pool, vms in stuck.items():
            names = ", ".join(
                f"{vm.vm_no} (the cloud's {vm.cloud_id}, asked {vm.end_asked} times)" for vm in vms[:NAMED]
            )
            more = f" and {len(vms) - NAMED} more" if len(vms) > NAMED else ""
            one = len(vms) == 1
            yield (
                f"end/{pool}",
                f"VM{'' if one else 's'} {names}{more} of pool {pool} {'does' if one else 'do'} not end although asked "
                f"for {LONG_S / 60:.0f} minutes: end {'it' if one else 'them'} by hand in the cloud",
            )

    def _pools(self, lasts: Callable[[str], bool], now: float) -> Iterator[tuple[str, str]]:
        for name, health in self._vms.pools.health.items():
            row = health.row(now)
            # A pool that tests one VM after a rest is still failing.
            if health.failing or (row.closed and lasts(f"pool/{name}")):
                yield f"pool/{name}", f"pool {name} starts no VM: {row.closed or health.why}"
