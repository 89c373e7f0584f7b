"""Whether a VM may start by the budgets: by what is committed, never by what a core thinks. A part of the checker."""

from __future__ import annotations

from boss.core.autoscale.daily_budget import DAY_S, HOUR_S, LOOK_EVERY_S
from boss.core.autoscale.run_budgets import NOTE
from boss.core.model.rows import VmRow
from ecloud.model.tasks import ENDED
from sim.store import Tables


def over_day(tables: Tables, hours: float, new: VmRow) -> str:
    """Why the new VM is one too many for the budget of 24 hours; empty where it is not, or where there is none."""
    if not hours:
        return ""
    now = new.intended_at
    lives = [lived for row in tables.vms.values() if row.vm_no != new.vm_no and (lived := row.lived(now))]
    spent_s = sum(max(0.0, end - max(start, now - DAY_S)) for start, end in lives)
    # The core makes the sum now and then; what ended since is known to it, what lives has gone on for so long.
    if spent_s - LOOK_EVERY_S * len(lives) < hours * HOUR_S:
        return ""
    return f"{spent_s:.0f} s of the {hours * HOUR_S:.0f} s of a day are used up"


def runs_over(tables: Tables) -> str:
    """Why nothing starts for any run that continues; empty where something may."""
    going_on = {task.run_no for task in tables.tasks.values() if task.state not in ENDED}
    if not going_on or any(f"{NOTE}{run_no}" not in tables.context for run_no in going_on):
        return ""
    return f"the budget of run {min(going_on)} is used up, and of all others"
