"""Speed of the simulation itself: task completions per CPU second, with 1,000 workers and without faults.

Everything as in `make sim`: the real cores, every message through the real wire format, the checker after each event.
Each turn runs in its own process; its CPU time counts, until everything has settled.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

from bench.report import Figure, seconds

WORKERS = 1_000
WORLDS = ((30_000, 1), (20_000, 3))
"""Tasks of a run, and runs. The aim applies to both."""
SEED = 11
"""Seed of a world without pools and without SSH: the workers exist from the start, and nothing else takes time. Tasks
that wait for others to fail may end without an attempt, which costs less; so the number of attempts is printed, too."""
LEAST_RATE = 5_000
REPEATS = 3
YARD_STEPS = 1_000_000
"""Steps of the yardstick. A machine that shares its cores may need 1.7 times the CPU seconds for the same work. The
yardstick, a loop of plain Python before and after each turn, shows how fast the machine was; it has no aim."""


def measure() -> list[Figure]:
    """Return the best of some turns of each: other processes on the machine can only slow them down."""
    figures = []
    yards: list[float] = []
    for tasks, runs in WORLDS:
        turns = [_in_a_process(tasks, runs) for _ in range(REPEATS)]
        yards += [turn[when] for turn in turns for when in ("yard_before", "yard_after")]
        best = max(turns, key=lambda one: one["rate"])
        figures.append(
            Figure(
                f"simulation: {runs} x {tasks:,} tasks, {best['attempts']:,} attempts, {WORKERS:,} workers, faults off",
                seconds(best["wall_s"]),
                seconds(best["cpu_s"]),
                f"{best['rate']:,.0f}/CPU s",
                f"at least {LEAST_RATE:,}",
                best["rate"] >= LEAST_RATE,
            )
        )
    found = f"{min(yards) * 1e9:.0f} to {max(yards) * 1e9:.0f} ns"
    figures.append(Figure("simulation: yardstick, a step of plain Python around those turns", "", "", found))
    return figures


def _yard() -> float:
    """Return the CPU seconds per step of a loop that fits into any cache."""
    counts: dict[int, int] = {}
    began = time.process_time()
    for step in range(YARD_STEPS):
        counts[step & 63] = counts.get(step & 63, 0) + 1
    return (time.process_time() - began) / YARD_STEPS


def _in_a_process(tasks: int, runs: int) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.simulation", str(tasks), str(runs)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(answer.stdout)
    return result


def _one_turn(tasks: int, runs: int) -> dict[str, float]:
    from boss.core.model.config import BossConfig
    from sim import faults, simulation
    from sim.scenario import Size

    size = Size(
        tasks=(tasks, tasks), runs=(runs, runs), wishes=(0, 0), workers=(WORKERS, WORKERS), troubled_s=20.0, task_s=0.5,
        most_steps=10_000_000, programs=0.0,
        heartbeat_s=BossConfig().heartbeat_s,
    )  # fmt: skip
    config = simulation.Simulation(SEED, faults.draw(random.Random(SEED + 1), ("none",)), size, fails=False).config
    assert (config.pools, config.datastore.host_key) == ((), ""), "this seed is of another world now"
    yard = _yard()
    wall, cpu = time.perf_counter(), time.process_time()
    result = simulation.run(SEED, ("none",), size, fails=False)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert not result.problem, result.problem
    assert result.completions >= tasks * runs, "not every task came to its end"
    return {
        "rate": result.completions / cpu, "cpu_s": cpu, "wall_s": wall, "passed_s": result.passed_s,
        "attempts": result.looked["ordered"], "yard_before": yard, "yard_after": _yard(),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(_one_turn(*map(int, sys.argv[1:]))))
