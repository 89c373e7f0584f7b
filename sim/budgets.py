"""Checks whether the budgets allow a new VM, from committed rows only, never from a core's state. Part of the
checker."""

from __future__ import annotations

from boss.core.autoscale.daily_budget import DAY_S, HOUR_S, LOOK_EVERY_S
from boss.core.autoscale.run_budgets import NOTE
from boss.core.model.rows import VmRow
from ecloud.model.tasks import ENDED
from sim.store import Tables


def over_day(tables: Tables, hours: float, new: VmRow) -> str:
    """Return why the new VM exceeds the budget of 24 hours; empty if it does not, or if there is no budget."""
    if not hours:
        return ""
    now = new.intended_at
    lives = [lived for row in tables.vms.values() if row.vm_no != new.vm_no and (lived := row.lived(now))]
    spent_s = sum(max(0.0, end - max(start, now - DAY_S)) for start, end in lives)
    # The core sums up now and then: it knows VMs that ended since, and living ones may have been counted this much
    # short.
    if spent_s - LOOK_EVERY_S * len(lives) < hours * HOUR_S:
        return ""
    return f"{spent_s:.0f} s of the {hours * HOUR_S:.0f} s of a day are used up"


def runs_over(tables: Tables) -> str:
    """Return why no VM may start for any unfinished run; empty if one may."""
    going_on = {task.run_no for task in tables.tasks.values() if task.state not in ENDED}
    if not going_on or any(f"{NOTE}{run_no}" not in tables.context for run_no in going_on):
        return ""
    return f"the budget of run {min(going_on)} is used up, and of all others"
