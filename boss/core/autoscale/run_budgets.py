"""VM-seconds that each run used, and runs whose budget is used up: no VM starts for those.

Owns an account for each VM: which runs hold attempts on it, and until when their shares are computed. The rule is the
ledger's (`ecloud.model.vm_life`): attempts that share a VM share its time; boot time counts for those that came first,
idle time for those that were there last.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

from boss.core.autoscale.vm import Vm
from boss.core.model.fleet import Fleet
from boss.core.model.outbox import Outbox
from boss.core.model.rows import VmRow
from boss.core.tasks.taskbook import TaskBook

HOUR_S = 3_600.0
LOOK_EVERY_S = 5.0
"""Accounts are updated at most this often: there may be thousands."""
SAVE_EVERY_S = 60.0
"""How often accounts are stored. A boss that dies loses the shares of VMs that ended since then."""
NOTE = "budget/"
"""Prefix of a name in the context, followed by the run's number. The value says why no VM starts for the run."""
OWN_BUDGET = "vm_hours/"
"""Prefix followed by the run's number: the budget that its push requested."""


SPENT = "spent/"
"""Prefix followed by the run's number: VM-seconds, and until when they are computed."""


class _Account(msgspec.Struct, eq=False):
    """One VM's account. `held`: attempts by run; `last`: those of the last moment that had any; `unclaimed_s`: time
    before the first attempt."""

    at: float
    held: dict[int, int] = {}
    last: dict[int, int] = {}
    unclaimed_s: float = 0.0


class RunBudgets:
    """VM-seconds by run. `hours_per_run` 0: only pushes set limits. Without any limit nothing is computed."""

    def __init__(
        self, outbox: Outbox, book: TaskBook, fleet: Fleet, hours_per_run: float, context: Mapping[str, str]
    ) -> None:
        self._outbox = outbox
        self._book = book
        self._fleet = fleet
        self._hours_per_run = hours_per_run
        self._alive: Mapping[int, Vm] = {}
        self._own = {run_no: float(value) for run_no, value in _notes(context, OWN_BUDGET)}
        self._told = dict(_notes(context, NOTE))
        self._spent_s: dict[int, float] = {}
        self._saved_at = 0.0
        for run_no, value in _notes(context, SPENT):
            spent, at = value.split()
            self._spent_s[run_no] = float(spent)
            self._saved_at = max(self._saved_at, float(at))
        self._accounts: dict[int, _Account] = {}
        self._looked_at = -math.inf
        self.exhausted: dict[int, str] = dict(self._told)
        """Why no VM starts for a run, by run_no."""

    # --- facts -----------------------------------------------------------------------------------

    def begin(self, alive: Mapping[int, Vm], now: float) -> None:
        """Take the VMs and their attempts after a start, and compute the time since the earlier boss's last update."""
        self._alive = alive
        if not (self._hours_per_run or self._own):
            for run_no in self._told.keys() | self._spent_s.keys():  # budgets of an earlier boss
                self._forget_run(run_no)
            self.exhausted = {}
            return
        if self._fleet.follow is not None:
            return
        self._fleet.follow = self._on_held
        for vm in alive.values():
            if vm.row.started_at is not None:
                self._accounts.setdefault(vm.vm_no, _Account(min(now, max(vm.row.intended_at, self._saved_at))))
        for worker in self._fleet.workers.values():
            account = self._accounts.get(worker.row.vm_no) if worker.row.vm_no is not None else None
            if account is not None:
                account.held = dict(Counter(attempt.run_no for attempt in worker.held.values()))

    def on_made(self, vm: VmRow, now: float) -> None:
        """The cloud made a VM."""
        if self._fleet.follow is not None:
            self._accounts.setdefault(vm.vm_no, _Account(now))

    def on_gone(self, vm_no: int, now: float) -> None:
        """A VM is gone."""
        account = self._accounts.pop(vm_no, None)
        if account is not None:
            self._reckon(account, now)

    def _on_held(self, vm_no: int, run_no: int, change: int, now: float) -> None:
        """The VM's worker got an attempt, or lost one."""
        account = self._accounts.get(vm_no)
        if account is None:
            return
        self._reckon(account, now)
        held = account.held = {**account.held, run_no: account.held.get(run_no, 0) + change}
        if held[run_no] <= 0:
            del held[run_no]
        if held and account.unclaimed_s:
            self._charge(held, account.unclaimed_s)
            account.unclaimed_s = 0.0

    def on_pushed(self, run_no: int, vm_hours: float, now: float) -> None:
        """A push requests a budget of its own, or none (0)."""
        self._own[run_no] = vm_hours
        self._outbox.writes.context[f"{OWN_BUDGET}{run_no}"] = f"{vm_hours:g}"
        self._looked_at = -math.inf
        self.begin(self._alive, now)

    def _forget_run(self, run_no: int) -> None:
        self._own.pop(run_no, None)
        self._told.pop(run_no, None)
        self._spent_s.pop(run_no, None)
        for note in (OWN_BUDGET, NOTE, SPENT):
            self._outbox.writes.context[f"{note}{run_no}"] = None

    # --- results ---------------------------------------------------------------------------------

    def settle(self, now: float) -> None:
        """Update the accounts from time to time and record which budgets are used up."""
        if self._fleet.follow is None or now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        for account in self._accounts.values():
            self._reckon(account, now)
        for run_no in self._spent_s.keys() | self._own.keys() | self._told.keys():
            if run_no not in self._book.runs:
                self._forget_run(run_no)
        context = self._outbox.writes.context
        found = {run_no: text for run_no in self._spent_s if (text := self._why(run_no))}
        for run_no in self._told.keys() | found.keys():
            if self._told.get(run_no) != found.get(run_no):
                context[f"{NOTE}{run_no}"] = found.get(run_no)
        self.exhausted = self._told = found
        if self._spent_s and now - self._saved_at >= SAVE_EVERY_S:
            self._saved_at = now
            context.update({f"{SPENT}{run_no}": f"{spent} {now}" for run_no, spent in self._spent_s.items()})

    def spent_s(self, run_no: int) -> float:
        """VM-seconds of a run, as of the last update."""
        return self._spent_s.get(run_no, 0.0)

    def _why(self, run_no: int) -> str:
        run = self._book.runs[run_no]
        own = self._own.get(run_no)
        hours = own if own is not None else self._hours_per_run
        if not hours or not run.left or self.spent_s(run_no) < hours * HOUR_S:
            return ""
        where = "set by its push" if own is not None else "VM_HOURS_PER_RUN in settings.py"
        return (
            f"the budget of {hours:g} VM-hours of run {run.row.name} is used up ({where}); its running tasks continue"
        )

    def _reckon(self, account: _Account, now: float) -> None:
        past = now - account.at
        if past <= 0:
            return
        account.at = now
        if account.held:
            account.last = account.held
        if account.last:
            self._charge(account.last, past)
        else:
            account.unclaimed_s += past

    def _charge(self, counts: dict[int, int], seconds: float) -> None:
        total = sum(counts.values())
        for run_no, count in counts.items():
            self._spent_s[run_no] = self._spent_s.get(run_no, 0.0) + seconds * count / total


def _notes(context: Mapping[str, str], note: str) -> Iterator[tuple[int, str]]:
    for name, value in context.items():
        if name.startswith(note):
            yield int(name.removeprefix(note)), value
