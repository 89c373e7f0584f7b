"""Actions on workers and VMs."""

from __future__ import annotations

import click

from ecloud.cli.actions import about_workers, action, main


def number_of_workers(context: click.Context, param: click.Parameter, value: str) -> int:
    """Parse a number of workers. Reports invalid ones, also -1, which click would take for an option."""
    if value.isdecimal() and int(value) >= 1:
        return int(value)
    raise click.BadParameter(f"{value!r} is not a number of workers: give 1 or more", context, param)


@main.command("instantiate_worker", context_settings={"ignore_unknown_options": True})
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
@click.argument("n", default="1", callback=number_of_workers)
@click.option("--pool", default="", metavar="P", help="From this pool [the first].")
@click.option("--keep_alive", is_flag=True, help="Keep these workers when idle.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation. Required for more than 20 without a terminal.")
def instantiate_worker(n: int, pool: str, keep_alive: bool, yes: bool, as_json: bool) -> int:
    """Start N workers."""
    from ecloud.cli import request

    return request.instantiate(n, pool, keep_alive, yes, as_json)


@action
@click.option("--all", "everyone", is_flag=True, help="Include workers that are gone.")
def show_workers(everyone: bool, as_json: bool) -> int:
    """Workers: address, state, since when, and their tasks."""
    from ecloud.cli import show

    return show.workers(everyone, as_json)


@about_workers
@click.option("--reason", default="", help="Reason to record with the workers.")
def drain_worker(workers: tuple[str, ...], everyone: bool, reason: str, as_json: bool) -> int:
    """Give workers no more tasks; running tasks continue."""
    from ecloud.cli import request

    return request.about_workers("drain_worker", workers, everyone, as_json, reason=reason)


@about_workers
def undrain_worker(workers: tuple[str, ...], everyone: bool, as_json: bool) -> int:
    """Allow draining workers to take tasks again."""
    from ecloud.cli import request

    return request.about_workers("undrain_worker", workers, everyone, as_json)


@about_workers
def kill_worker(workers: tuple[str, ...], everyone: bool, as_json: bool) -> int:
    """End workers immediately; the boss gives their tasks to other workers."""
    from ecloud.cli import request

    return request.about_workers("kill_worker", workers, everyone, as_json)


@action
@click.argument("vm", metavar="vm/N")
def forget_vm(vm: str, as_json: bool) -> int:
    """Write off a VM that does not end: it no longer counts, but may still run."""
    from ecloud.cli import request

    return request.ask("forget_vm", as_json, vm=vm)


@action
@click.argument("pool", metavar="POOL")
@click.option("--reason", default="", help="Kept with the pool; status, why, plan and the monitor show it.")
def hold_pool(pool: str, reason: str, as_json: bool) -> int:
    """Start no VM of this pool until it is released; its VMs continue."""
    from ecloud.cli import request

    return request.ask("hold_pool", as_json, pool=pool, reason=reason)


@action
@click.argument("pool", metavar="POOL")
def release_pool(pool: str, as_json: bool) -> int:
    """Allow a held pool to start VMs again."""
    from ecloud.cli import request

    return request.ask("release_pool", as_json, pool=pool)


@about_workers
def drop_workers(workers: tuple[str, ...], everyone: bool, as_json: bool) -> int:
    """Delete the records of workers that are gone or lost."""
    from ecloud.cli import request

    return request.drop_workers(workers, everyone, as_json)


@action
@click.option("--all", "everyone", is_flag=True, help="Include VMs that are gone.")
def show_vms(everyone: bool, as_json: bool) -> int:
    """VMs that a cloud started for this cluster, or was asked for."""
    from ecloud.cli import show

    return show.vms(everyone, as_json)
