"""Actions about the cluster as a whole."""

from __future__ import annotations

import click

from ecloud.cli.actions import action, main, run_option


@action
@click.option(
    "--create", is_flag=True, help="Create the machines of BOSS_TEMPLATE and DATASTORE_TEMPLATE if none runs."
)
@click.option(
    "--listen", metavar="ADDRESS[:PORT]",
    help="Let other machines reach the embedded broker at this address, with TLS [BROKER_LISTEN in settings.py].",
)  # fmt: skip
def start(create: bool, listen: str | None, as_json: bool) -> int:
    """Start the boss in the background."""
    from ecloud.cli import daemon

    return daemon.start(create, as_json, listen)


@action
@click.option("--vms", is_flag=True, help="First end all VMs and their tasks.")
def stop(vms: bool, as_json: bool) -> int:
    """Stop the boss; reports what still runs."""
    from ecloud.cli import daemon

    return daemon.stop(vms, as_json)


@main.group("slurm")
def slurm() -> None:
    """Workers as Slurm jobs: start -n N, stop."""


@slurm.command("start")
@click.option("-n", "number", default=1, metavar="N", type=click.IntRange(1, 10_000), help="Number of workers [1].")
@click.option("--pool", default="", metavar="P", help="From this pool [the first of cloud slurm].")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def slurm_start(number: int, pool: str, as_json: bool) -> int:
    """Start the boss if none runs, and N workers that stay when idle."""
    from ecloud.cli import slurm as jobs

    return jobs.start(number, pool, as_json)


@slurm.command("stop")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def slurm_stop(as_json: bool) -> int:
    """End all workers, the tasks that they run, and the boss."""
    from ecloud.cli import daemon

    return daemon.stop(True, as_json)


@action
@click.option("--watch", is_flag=True, help="Repeat until Ctrl-C; with --json one line each time.")
@click.option("--all", "all_runs", is_flag=True, help="All runs, not only the first ten.")
def status(watch: bool, all_runs: bool, as_json: bool) -> int:
    """Tasks, runs, workers and boss on one screen."""
    from ecloud.cli import show

    return show.status(watch, all_runs, as_json)


@action
@click.option("--boot", is_flag=True, help="Start one VM of each pool, wait for its worker, end the VM.")
def doctor(boot: bool, as_json: bool) -> int:
    """Check every part; print ok, or what to do."""
    from ecloud.cli import doctor

    return doctor.examine(as_json, boot)


@action
def migrate(as_json: bool) -> int:
    """Bring the database's tables to the version of this ECLOUD."""
    from ecloud.cli import show

    return show.migrate(as_json)


@action
@click.argument("file", default="worker.access")
@click.option("--host", metavar="HOST", help="The broker's address as the other machine sees it.")
@click.option(
    "--role",
    type=click.Choice(["worker", "submit", "admin"]),
    default="worker",
    show_default=True,
    help="Role: run tasks; push, watch and cancel; everything.",
)
@click.option("--revoke", metavar="NAME", help="Revoke this invitation and disconnect its users immediately.")
@click.option("--list", "listing", is_flag=True, help="Show the invitations, their roles, and which are revoked.")
def invite(file: str, host: str | None, role: str, revoke: str | None, listing: bool, as_json: bool) -> int:
    """Write an access file for a worker or client on another machine."""
    from ecloud.cli import request

    if listing:
        return request.list_invitations(as_json)
    return request.revoke(revoke, as_json) if revoke else request.invite(file, host, role, as_json)


@action
def plan(as_json: bool) -> int:
    """VMs that the autoscaler would start and end now, and why; changes nothing."""
    from ecloud.cli import request

    return request.plan(as_json)


@action
@run_option
def ledger(run: str, as_json: bool) -> int:
    """Use of every VM-second: booting, staging, running, idle, draining, lost."""
    from ecloud.cli import show

    return show.ledger(run, as_json)


@action
@click.option("--port", default=8787, show_default=True, help="0: any that is free.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; all but loopback need TLS and a password.",
)
@click.option("--read_only", is_flag=True, help="Only show; change nothing.")
@click.option("--tls_cert", metavar="FILE", default="", help="Certificate for --host (PEM).")
@click.option("--tls_key", metavar="FILE", default="", help="Its key (PEM).")
@click.option("--password_file", metavar="FILE", default="", help="Password file: browsers must log in.")
@click.option("--open", "open_browser", is_flag=True, help="Open a browser.")
@click.option("--tied", is_flag=True, hidden=True, help="End with the parent process.")
def monitor(
    port: int, host: str, read_only: bool, tls_cert: str, tls_key: str, password_file: str, open_browser: bool,
    tied: bool, as_json: bool,
) -> int:  # fmt: skip
    """Web pages and /metrics about the cluster, until Ctrl-C."""
    from ecloud.cli import monitor

    return monitor.monitor(
        monitor.Served(host, port, read_only, tls_cert, tls_key, password_file, open_browser, tied, as_json)
    )
