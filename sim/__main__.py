"""python -m sim: run new seeds on all cores, or one seed with its story, or hunt the mutants."""

from __future__ import annotations

import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import click

from sim import faults, mutants, simulation, story
from sim.invariants import INVARIANTS

FRESH_FROM, FRESH_TO = 1_000_000, 2_000_000_000
"""Range of new seeds; the tests use fixed seeds below it."""
ENOUGH_SEEDS = 500
"""Within this many seeds every possible fault must happen; a fault that did not is an error."""
ENOUGH_FOR_ALL = 1_000
"""Within this many seeds every invariant must have been tested; one that was not is an error."""


def _allowed(names: str) -> tuple[str, ...]:
    wanted = tuple(name for name in names.split(",") if name) if names != "all" else faults.NAMES
    unknown = [name for name in wanted if name not in faults.NAMES and name != "none"]
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: known are {', '.join(faults.NAMES)}")
    return wanted


@click.command()
@click.option("--seeds", default=200, show_default=True, help="How many seeds.")
@click.option("--first", type=int, help="The first of them [new ones, drawn at random].")
@click.option("--seed", type=int, help="Only this one, with its story.")
@click.option("--options", default="all", show_default=True, help="Faults that may happen, by name, or none.")
@click.option("--lines", default=60, show_default=True, help="Lines of a story.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default="cores", help="Processes.")
@click.option("--mutants", "hunting", is_flag=True, help="Switch protections off, one at a time: each must be found.")
@click.option("--mutant", default="", help="Only this one.")
def main(
    seeds: int, first: int | None, seed: int | None, options: str, lines: int, jobs: int, hunting: bool, mutant: str
) -> None:
    """Run the real cores in a simulated world with the faults that each seed draws."""
    allowed = _allowed(options)
    suffix = "" if options == "all" else f" --options {options}"
    if hunting or mutant:
        sys.exit(_hunt(_chosen(mutant), seeds, jobs, lines if mutant else 0))
    if seed is not None:
        began = time.monotonic()
        one = simulation.run(seed, allowed)
        click.echo(story.tell(one, suffix, lines))
        click.echo(story.summary([one], time.monotonic() - began))
        sys.exit(1 if one.problem else 0)
    if first is None:
        first = random.SystemRandom().randrange(FRESH_FROM, FRESH_TO)
    click.echo(
        f"seeds {first} to {first + seeds - 1}: again with python -m sim --seeds {seeds} --first {first}{suffix}"
    )
    sys.exit(_run(seeds, first, allowed, suffix, lines, jobs))


def _run(seeds: int, first: int, allowed: tuple[str, ...], suffix: str, lines: int, jobs: int) -> int:
    """Run many seeds; return the exit code."""
    began = time.monotonic()
    results = []
    with ProcessPoolExecutor(jobs) as pool:
        for result in pool.map(partial(simulation.run, allowed=allowed), range(first, first + seeds), chunksize=5):
            results.append(result)
            if result.problem:
                click.echo(f"seed {result.seed}: {result.problem[:300]}")
    wrong = [result for result in results if result.problem]
    if wrong:
        click.echo(story.tell(min(wrong, key=lambda result: result.steps), suffix, lines))
    click.echo(story.summary(results, time.monotonic() - began))
    never = [name for name in faults.NAMES if name in allowed and not any(result.fired.get(name) for result in results)]
    if never and seeds >= ENOUGH_SEEDS and len(allowed) == len(faults.NAMES):
        click.echo(f"never happened, though it may: {', '.join(never)}", err=True)
        return 1
    idle = [name for name in INVARIANTS if not any(result.looked.get(name) for result in results)]
    if idle and seeds >= ENOUGH_FOR_ALL and len(allowed) == len(faults.NAMES):
        click.echo(f"nothing happened that could break it: {', '.join(idle)}", err=True)
        return 1
    return 1 if wrong else 0


def _chosen(name: str) -> list[str]:
    if name and name not in mutants.MUTANTS:
        raise click.BadParameter(f"{name}: there are {', '.join(mutants.MUTANTS)}")
    return [name] if name else list(mutants.MUTANTS)


def _hunt(names: list[str], seeds: int, jobs: int, lines: int) -> int:
    """Run seeds for each mutant until it is found; return the exit code."""
    survivors = []
    with ProcessPoolExecutor(jobs) as pool:
        for one in pool.map(partial(mutants.hunt, seeds=seeds), names):
            if one.found is None:
                survivors.append(one.name)
                click.echo(f"{one.name:22} SURVIVED {one.seeds} seeds: {mutants.MUTANTS[one.name].without}")
                continue
            seen = one.found.problem[:110]
            click.echo(f"{one.name:22} found after {one.seeds:3} seeds by {one.invariant}: {seen}")
            if lines:
                click.echo(story.tell(one.found, "", lines))
    click.echo(f"{len(names)} mutants, {len(survivors)} survived{': ' if survivors else ''}{', '.join(survivors)}")
    return 1 if survivors else 0


if __name__ == "__main__":
    main()
