"""Actions that show the cluster, its runs and its events."""

from __future__ import annotations

import click

from ecloud.cli.actions import action, main


@main.command("top")
@click.option("--interval", type=click.FloatRange(0.2), default=1.0, show_default=True, help="Seconds between looks.")
def top(interval: float) -> int:
    """Runs, tasks, workers and VMs on the whole screen, with keys for why, logs, cancel and retry."""
    from ecloud.cli import top

    return top.show(interval)


@action
@click.argument("run")
@click.option("--svg", metavar="FILE", default="", help="Draw into FILE; - is standard output.")
def timeline(run: str, svg: str, as_json: bool) -> int:
    """When a run's tasks waited and ran, and on which workers."""
    from ecloud.cli import run_pictures

    return run_pictures.timeline(run, svg, as_json)


@action
@click.argument("run")
@click.option("--svg", metavar="FILE", default="", help="Draw into FILE; - is standard output.")
@click.option("--dot", is_flag=True, help="As Graphviz's dot, on standard output.")
@click.option("--kind", default="", help="Only tasks of this label or kind.")
def graph(run: str, svg: str, dot: bool, kind: str, as_json: bool) -> int:
    """A run's graph, folded by label and level to at most 60 nodes."""
    from ecloud.cli import run_pictures

    return run_pictures.graph(run, svg, dot, kind, as_json)


@action
@click.option("-f", "--follow", is_flag=True, help="Then follow new events, until Ctrl-C.")
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="Show at most this many, of the last day."
)
def events(follow: bool, limit: int, as_json: bool) -> int:
    """What happened: runs that ended, first failures, pools that closed, budgets used up, VMs lost."""
    from ecloud.cli import events

    return events.show(follow, limit, as_json)
