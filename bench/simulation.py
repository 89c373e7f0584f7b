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


def measure() -> list[Figure]:
    """The best of some turns of each: others on the machine only take from it."""
    figures = []
    for tasks, runs in WORLDS:
        best = max((_in_a_process(tasks, runs) for _ in range(REPEATS)), key=lambda one: one["rate"])
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
    return figures


def _in_a_process(tasks: int, runs: int) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.simulation", str(tasks), str(runs)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(answer.stdout)
    return result


def _one_turn(tasks: int, runs: int) -> dict[str, float]:
    from boss.core.config import BossConfig
    from sim import faults, simulation
    from sim.scenario import Size

    size = Size(
        tasks=(tasks, tasks), runs=(runs, runs), wishes=(0, 0), workers=(WORKERS, WORKERS), troubled_s=20.0, task_s=0.5,
        most_steps=10_000_000,
        heartbeat_s=BossConfig().heartbeat_s,
    )  # fmt: skip
    config = simulation.Simulation(SEED, faults.draw(random.Random(SEED + 1), ("none",)), size, fails=False).config
    assert (config.pools, config.datastore.host_key) == ((), ""), "this seed is of another world now"
    wall, cpu = time.perf_counter(), time.process_time()
    result = simulation.run(SEED, ("none",), size, fails=False)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert not result.problem, result.problem
    assert result.completions >= tasks * runs, "not every task came to its end"
    return {
        "rate": result.completions / cpu, "cpu_s": cpu, "wall_s": wall, "passed_s": result.passed_s,
        "attempts": result.looked["ordered"],
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(_one_turn(*map(int, sys.argv[1:]))))
