"""Actions on the datastore and the cluster's context."""

from __future__ import annotations

import click

from ecloud.cli.actions import action, run_option


@action
def show_context(as_json: bool) -> int:
    """The cluster's own notes: its id, the datastore's address."""
    from ecloud.cli import show

    return show.context(as_json)


@action
@click.argument("keys", nargs=-1, metavar="[KEY]...")
def drop_context(keys: tuple[str, ...], as_json: bool) -> int:
    """Delete entries of the context [boss_address and the datastore: files are in the default place from now on]."""
    from ecloud.cli import request

    return request.drop_context(keys, as_json)


@action
@click.argument("address", metavar="DIR|USER@HOST[:PORT]:/ROOT")
@click.option("--new_host_key", is_flag=True, help="Over SSH: trust a new host key instead of the pinned one.")
@click.option("--own_account", is_flag=True, help="Over SSH: the address is this account; write its files here.")
def set_datastore(address: str, new_host_key: bool, own_account: bool, as_json: bool) -> int:
    """Set the datastore: a directory that boss and workers share, or a machine over SSH."""
    from ecloud.cli import set_datastore as setting

    return setting.set_datastore(address, new_host_key, own_account, as_json)


@action
@click.argument("path", default="")
@click.option("--task", default="", metavar="TASK", help="The results of this task.")
@run_option
@click.option("-r", "--recursive", is_flag=True, help="With everything below.")
def ls(path: str, task: str, run: str, recursive: bool, as_json: bool) -> int:
    """List the datastore below PATH."""
    from ecloud.cli import files

    return files.ls(path, task, run, recursive, as_json)


@action
@click.argument("path", default="")
@click.argument("to", default=".")
@click.option("--task", default="", metavar="TASK", help="The results of this task.")
@run_option
@click.option("--force", is_flag=True, help="Replace an existing TO.")
def get(path: str, to: str, task: str, run: str, force: bool, as_json: bool) -> int:
    """Copy a file or directory of the datastore to TO."""
    from ecloud.cli import files

    return files.get(path, to, task, run, force, as_json)


@action
@click.argument("local")
@click.argument("path", default="")
def put(local: str, path: str, as_json: bool) -> int:
    """Copy the file or directory LOCAL into the datastore as PATH."""
    from ecloud.cli import files

    return files.put(local, path, as_json)


@action
@click.argument("path", default="")
def du(path: str, as_json: bool) -> int:
    """How many bytes are below PATH, and how many are free."""
    from ecloud.cli import files

    return files.du(path, as_json)
