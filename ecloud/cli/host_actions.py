"""`admin.py hosts`: boss and workers on a list of hosts."""

from __future__ import annotations

import os
from typing import Any

import click

from ecloud.cli.actions import main

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
drain_option = click.option(
    "--drain_s",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds that running tasks get to end.",
)


def _list(context: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Split names at commas."""
    return None if value is None else tuple(item.strip() for item in value.split(",") if item.strip())


def _path(context: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return None if value is None else os.path.abspath(os.path.expanduser(value))


@main.group("hosts")
def hosts() -> None:
    """Boss and workers on a list of hosts: up, down, status, update, restart, run."""


@hosts.command("up")
@click.option(
    "-a", "--hosts", callback=_list, metavar="H1,H2", help="user@host[:port], or names of your ssh configuration."
)
@click.option("--hosts_file", default="", metavar="FILE", help="One host per line [hosts.txt without -a].")
@click.option("-i", "--key", callback=_path, metavar="KEY", help="The SSH key that the hosts accept [as ssh finds it].")
@click.option(
    "-o", "--ssh_option", "ssh_options", multiple=True, metavar="NAME=VALUE", help="Option for ssh -o. Repeatable."
)
@click.option("-r", "--remote_path", metavar="PATH", help="Directory on the hosts, below the home [.ecloud-hosts].")
@click.option("-d", "--project", callback=_path, metavar="DIR", help="A project's directory, copied to all hosts.")
@click.option("-m", "--master", metavar="local|N", help="Where boss and broker run: here, or on host N [local].")
@click.option("-w", "--workers", callback=_list, metavar="local,1,2", help="Where workers run [every host of -a].")
@click.option("-b", "--address", metavar="ADDRESS", help="The broker's address for the workers [as each host sees it].")
@click.option("--datastore", metavar="ADDRESS", help="Datastore: a directory that all hosts share, or user@host:/dir.")
@click.option(
    "--slots", type=click.IntRange(1), metavar="N", help="Number of workers on each host, which share it [1]."
)
@click.option(
    "--tunnel/--no_tunnel", default=None, help="Connect workers to broker and datastore by SSH tunnels from here."
)
@click.option("-f", "--again", is_flag=True, help="Use the last options (hosts.toml), except those given now.")
@click.option("--skip_failed", is_flag=True, help="Skip hosts that cannot work, instead of starting nothing.")
@json_option
def up(
    ssh_options: tuple[str, ...], again: bool, skip_failed: bool, hosts_file: str, as_json: bool, **given: Any
) -> None:
    """Start boss, broker and workers; running ones are not changed."""
    from ecloud.cli.host_call import GivenOptions, HostsCall, carry_out

    options = GivenOptions(ssh_options=ssh_options or None, **given)
    carry_out(HostsCall("up", options, hosts_file, again, skip_failed, as_json=as_json))


@hosts.command("down")
@click.option("--purge", is_flag=True, help="Also remove all files of ECLOUD on the hosts.")
def down(purge: bool) -> None:
    """End workers, boss and tunnels."""
    from ecloud.cli.host_call import HostsCall, carry_out

    carry_out(HostsCall("down", purge=purge))


@hosts.command("status")
@json_option
def status(as_json: bool) -> None:
    """What runs on which host, since when, and its tasks."""
    from ecloud.cli.host_call import HostsCall, carry_out

    carry_out(HostsCall("status", as_json=as_json))


@hosts.command("update")
@click.option("-d", "--project", callback=_path, metavar="DIR", help="Another project's directory.")
@drain_option
def update(project: str | None, drain_s: float) -> None:
    """Copy changed code and project; workers drain and restart if something changed."""
    from ecloud.cli.host_call import GivenOptions, HostsCall, carry_out

    carry_out(HostsCall("update", GivenOptions(project=project), drain_s=drain_s))


@hosts.command("restart")
@drain_option
def restart(drain_s: float) -> None:
    """Drain, end and start everything again."""
    from ecloud.cli.host_call import HostsCall, carry_out

    carry_out(HostsCall("restart", drain_s=drain_s))


@hosts.command("run", context_settings={"ignore_unknown_options": True})
@click.option("--fetch", multiple=True, metavar="GLOB", help="Copy matching project files back. Repeatable.")
@click.option("--to", default=".", callback=_path, metavar="DIR", help="Destination [the working directory].")
@click.argument("name")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENT]...")
def run(fetch: tuple[str, ...], to: str, name: str, words: tuple[str, ...]) -> None:
    """Run the project's module NAME beside the boss; its output appears here."""
    from ecloud.cli.host_call import HostsCall, carry_out

    carry_out(HostsCall("run", module=name, words=words, fetch=fetch, to=to))
