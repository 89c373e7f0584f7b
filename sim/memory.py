"""Checks that a boss keeps no data after everything has ended, except of waiting work. Inspects the idle core."""

from __future__ import annotations

from boss.core.boss import Boss

ALARMS_EACH = 20
"""Number of alarms allowed for each worker, VM and run that a core knows."""
ALARMS_ALWAYS = 100


def sizes(core: Boss) -> dict[str, int]:
    """Count the objects of each kind in a core."""
    return {
        "nodes": len(core.book.graph.nodes),
        "runs": len(core.book.runs),
        "arrays": len(core.book.arrays) + len(core.book._each_of) + len(core.book._changed_arrays),
        "attempts": len(core.attempts.active),
        "promotions": len(core.attempts.promoting),
        "outcomes that wait": len(core.attempts._early),
        "workers": len(core.fleet.workers),
        "VMs": len(core.vms.alive),
        "clients": len(core.clients),
        "sessions": len(core.sessions.open),
        "hellos": len(core.sessions._pending),
        "pushes": len(core.pushes._open),
        "push tokens": len(core.pushes._by_token),
        "push answers": len(core.pushes._answers),
        "unanswered outcomes": core.outcome_acks.count,
        "requests": len(core.requests._waiting),
        "request answers": len(core.requests._answers),
        "kinds of task": len(core.runtimes.kinds),
        "watched runs": len(core.watchers._watching),
        "told runs": len(core.watchers._told_at),
        "alarms": len(core._timers._heap),
    }


_PASSING = ("promotions", "outcomes that wait", "push tokens", "requests", "unanswered outcomes")
"""Kinds of which a core without unfinished work holds none."""


def not_forgotten(core: Boss, living: set[str]) -> list[str]:
    """Return the data that the core should have dropped. `living`: the living worker processes."""
    held = sizes(core)
    left = [f"{held[kind]} {kind}" for kind in _PASSING if held[kind]]
    left += [f"worker {name}, which is gone" for name in core.fleet.workers if name not in living]
    left += [f"what {worker.name} held" for worker in core.fleet.workers.values() if worker.held]
    most = ALARMS_ALWAYS + ALARMS_EACH * (held["workers"] + held["VMs"] + held["runs"])
    if held["alarms"] > most:
        left.append(f"{held['alarms']} alarms, more than {most}")
    return left


def miscounted(core: Boss, counts: dict[int, dict[str, int]]) -> list[str]:
    """Return the runs whose tasks the core counts otherwise. `counts`: tasks by state, by run."""
    held = {no: {state.value: n for state, n in run.states.items() if n} for no, run in core.book.runs.items()}
    return [
        f"run {run_no} has {counts.get(run_no, {})}, and the boss counts {states}"
        for run_no, states in held.items()
        if states != counts.get(run_no, {})
    ]
