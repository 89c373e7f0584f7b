"""python -m sim: run seeds on all cores, or one seed with its story."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import click

from sim import faults, simulation, story


def _allowed(names: str) -> tuple[str, ...]:
    wanted = tuple(name for name in names.split(",") if name) if names != "all" else faults.NAMES
    unknown = [name for name in wanted if name not in faults.NAMES and name != "none"]
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: there are {', '.join(faults.NAMES)}")
    return wanted


@click.command()
@click.option("--seeds", default=200, show_default=True, help="How many seeds.")
@click.option("--first", default=1, show_default=True, help="The first of them.")
@click.option("--seed", type=int, help="Only this one, with its story.")
@click.option("--options", default="all", show_default=True, help="Faults that may happen, by name, or none.")
@click.option("--lines", default=60, show_default=True, help="Lines of a story.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default="cores", help="Processes.")
def main(seeds: int, first: int, seed: int | None, options: str, lines: int, jobs: int) -> None:
    """Run the real cores in a simulated world, where everything goes wrong that a seed draws."""
    allowed = _allowed(options)
    began = time.monotonic()
    suffix = "" if options == "all" else f" --options {options}"
    if seed is not None:
        one = simulation.run(seed, allowed)
        click.echo(story.tell(one, suffix, lines))
        click.echo(story.summary([one], time.monotonic() - began))
        sys.exit(1 if one.problem else 0)
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
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
