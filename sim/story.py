"""Describes a failure as a story: the seed, the last events, and a command that repeats it."""

from __future__ import annotations

from collections import Counter

from sim.simulation import Result
from sim.world import START


def tell(result: Result, options: str = "", lines: int = 60) -> str:
    """Return the last events before the failure."""
    told = [f"seed {result.seed} after {result.passed_s:.3f} s and {result.steps:,} steps:"]
    told += [f"  {at - START:9.4f}  {who:10} {text}" for at, who, text in result.lines[len(result.lines) - lines :]]
    told += ["", f"WRONG: {result.problem}" if result.problem else f"all is well, trace {result.trace_hash}"]
    told += ["", f"again: python -m sim --seed {result.seed}{options}"]
    return "\n".join(told)


def summary(results: list[Result], took_s: float) -> str:
    """Return one line with the number of seeds, and one with the number of each fault that happened."""
    fired: Counter[str] = Counter()
    for result in results:
        fired.update(result.fired)
    wrong = sum(1 for result in results if result.problem)
    tasks = sum(result.completions for result in results)
    passed_h = sum(result.passed_s for result in results) / 3600
    counts = " ".join(f"{name}={count:,}" for name, count in sorted(fired.items())) or "none"
    ended = f"{tasks:,} tasks ended in {passed_h:.1f} simulated hours, {took_s:.1f} s"
    return f"{len(results)} seeds, {wrong} wrong; {ended}\nfaults: {counts}"
