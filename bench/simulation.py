"""How fast the simulation itself is: task completions per CPU second, 1,000 workers, nothing going wrong.

Everything as in `make sim`: the real cores, every message through the real wire, the checker after each event. Each
turn runs in a process of its own; what counts is its CPU time, until all is settled.
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
"""Tasks of a run, and runs. The aim is for both."""
SEED = 11
"""Of a world without pools and without SSH: the workers are there, and nothing else takes time. Some tasks may end
without an attempt, where they wait for others to fail, which costs less: so the attempts are told, too."""
LEAST_RATE = 5_000
REPEATS = 3
YARD_STEPS = 1_000_000
"""A machine that shares its cores does the same in 1.7 times the CPU seconds: how fast it was tells a yardstick, a step
of plain Python, before and after each turn. It judges nothing."""


def measure() -> list[Figure]:
    """The best of some turns of each: others on the machine only take from it."""
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
    """CPU seconds of a step of a loop that fits into any cache."""
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
        most_steps=10_000_000,
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
