#!/usr/bin/env python3
"""Ask the cluster and tell it what to do. `python admin.py --help` lists the actions."""

from __future__ import annotations

import sys

from datastore.problem import Problem

try:
    import click

    from ecloud.cli import app
except ImportError as error:
    sys.exit(
        f"admin.py: the Python at {sys.executable} lacks {error.name}: "
        "run `make install`, then .venv/bin/python admin.py"
    )

from collections.abc import Callable
from typing import Any

# What an action needs is imported when it runs: --help is there at once.

GROUPS = {
    "cluster": ("start", "stop", "status", "doctor", "migrate", "invite", "plan", "ledger"),
    "tasks": (
        "show_tasks", "show_queued", "show_in_progress", "show_failed", "show_succeeded", "show_task",
        "show_task_commands", "show_task_status", "show_task_dependencies", "logs", "why", "cancel", "retry_failed",
        "redo_task", "drop_tasks",
    ),
    "workers": (
        "instantiate_worker", "show_workers", "drain_worker", "undrain_worker", "kill_worker", "drop_workers",
        "show_vms",
    ),
    "data": ("show_context", "drop_context", "set_datastore", "ls", "get", "put", "du"),
}  # fmt: skip
"""Actions as the help lists them."""


class Actions(click.Group):
    """A group whose help has sections and whose errors name the nearest action."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(80)) for name in names])

    def resolve_command(self, context: click.Context, arguments: list[str]) -> Any:
        try:
            return super().resolve_command(context, arguments)
        except click.UsageError as error:
            import difflib

            nearest = difflib.get_close_matches(arguments[0], self.commands, 1)
            hint = f"did you mean {nearest[0]}?" if nearest else "python admin.py --help lists them"
            raise click.UsageError(f"there is no action {arguments[0]!r}; {hint}", context) from error


@click.group(cls=Actions, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Ask the cluster and tell it what to do. Each action takes --help and --json.

    Exit codes: 0 done, 1 some task did not succeed, 2 the input is wrong, 3 a part can't be reached, 130 interrupted.
    """


def action(function: Callable[..., int | None]) -> click.Command:
    """An action of that name, which takes --json."""
    option = click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
    return main.command(function.__name__)(option(function))


run_option = click.option("--run", default="", metavar="RUN", help="Of this run only.")
state_option = click.option("--state", default="", metavar="S", help="In this state only.")
label_option = click.option("--label", default="", metavar="L", help="With this label only.")
limit_option = click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
newest_option = click.option("--newest", is_flag=True, help="The last ones of the lists first.")
task_argument = click.argument("task", metavar="TASK")


# --- cluster ------------------------------------------------------------------------------------------


@action
@click.option("--create", is_flag=True, help="Make the machines of BOSS_TEMPLATE, DATASTORE_TEMPLATE where none runs.")
def start(create: bool, as_json: bool) -> int:
    """Start the boss in the background."""
    from ecloud.cli import daemon

    return daemon.start(create, as_json)


@action
@click.option("--vms", is_flag=True, help="First end all VMs, with what they run.")
def stop(vms: bool, as_json: bool) -> int:
    """Stop the boss; says what still runs."""
    from ecloud.cli import daemon

    return daemon.stop(vms, as_json)


@action
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option("--all", "all_runs", is_flag=True, help="All runs, not only the first ten.")
def status(watch: bool, all_runs: bool, as_json: bool) -> int:
    """Tasks, runs, workers and boss on one screen."""
    from ecloud.cli import show

    return show.status(watch, all_runs, as_json)


@action
@click.option("--boot", is_flag=True, help="Start one VM of each pool, wait for its worker, end it again.")
def doctor(boot: bool, as_json: bool) -> int:
    """Look at every part: ok, or what to do."""
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
    "--role", type=click.Choice(["worker", "submit", "admin"]), default="worker", show_default=True,
    help="What its holder may do: run tasks; push, watch and cancel; everything.",
)  # fmt: skip
@click.option("--revoke", metavar="NAME", help="Revoke this invitation: what uses it is dropped at once.")
def invite(file: str, host: str | None, role: str, revoke: str | None, as_json: bool) -> int:
    """Write the access file that a worker or client on another machine needs."""
    from ecloud.cli import request

    return request.revoke(revoke, as_json) if revoke else request.invite(file, host, role, as_json)


@action
def plan(as_json: bool) -> int:
    """VMs that the autoscaler would start and end now, and why; changes nothing."""
    from ecloud.cli import request

    return request.plan(as_json)


@action
@run_option
def ledger(run: str, as_json: bool) -> int:
    """Where every VM-second went: booting, staging, running, idle, draining, lost."""
    from ecloud.cli import show

    return show.ledger(run, as_json)


# --- tasks: questions ---------------------------------------------------------------------------------


@action
@state_option
@run_option
@label_option
@limit_option
@newest_option
def show_tasks(state: str, run: str, label: str, limit: int, newest: bool, as_json: bool) -> int:
    """Tasks, one a line."""
    from ecloud.cli import show

    return show.tasks((state,) if state else (), run, label, limit, newest, as_json)


@action
@run_option
@label_option
@limit_option
@newest_option
def show_queued(run: str, label: str, limit: int, newest: bool, as_json: bool) -> int:
    """Tasks that wait: for others, or for a worker."""
    from ecloud.cli import show

    return show.tasks(("ready", "waiting"), run, label, limit, newest, as_json)


@action
@run_option
@label_option
@limit_option
@newest_option
def show_in_progress(run: str, label: str, limit: int, newest: bool, as_json: bool) -> int:
    """Tasks that run now, and where."""
    from ecloud.cli import show

    return show.tasks(("running",), run, label, limit, newest, as_json)


@action
@run_option
@limit_option
def show_failed(run: str, limit: int, as_json: bool) -> int:
    """Failed tasks, each with its error and last words."""
    from ecloud.cli import show

    return show.failed(run, limit, as_json)


@action
@run_option
@label_option
@limit_option
@newest_option
def show_succeeded(run: str, label: str, limit: int, newest: bool, as_json: bool) -> int:
    """Tasks that succeeded."""
    from ecloud.cli import show

    return show.tasks(("succeeded",), run, label, limit, newest, as_json)


@action
@task_argument
@run_option
def show_task(task: str, run: str, as_json: bool) -> int:
    """A task whole: what was asked, where it stands, every attempt."""
    from ecloud.cli import show

    return show.task(task, run, as_json)


@action
@task_argument
@run_option
def show_task_commands(task: str, run: str, as_json: bool) -> int:
    """A task's commands."""
    from ecloud.cli import show

    return show.task_commands(task, run, as_json)


@action
@task_argument
@run_option
def show_task_status(task: str, run: str, as_json: bool) -> int:
    """A task's state, in one line."""
    from ecloud.cli import show

    return show.task_status(task, run, as_json)


@action
@task_argument
@run_option
def show_task_dependencies(task: str, run: str, as_json: bool) -> int:
    """What a task waits for, and what waits for it."""
    from ecloud.cli import show

    return show.task_dependencies(task, run, as_json)


@action
@task_argument
@run_option
@click.option("-f", "--follow", is_flag=True, help="As it is written, until the task has ended.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Of the n-th attempt [the last].")
def logs(task: str, run: str, follow: bool, attempt: int | None, as_json: bool) -> int:
    """A task's output."""
    from ecloud.cli import show

    return show.follow(task, run, as_json) if follow else show.logs(task, run, attempt, as_json)


@action
@click.argument("subject", metavar="TASK|worker/ID|vm/ID")
@run_option
@click.option("--all", "all_layers", is_flag=True, help="All reasons, from the nearest to the farthest.")
def why(subject: str, run: str, all_layers: bool, as_json: bool) -> int:
    """Why a task does not run, or a worker or VM is not there."""
    from ecloud.cli import show

    return show.why(subject, run, all_layers, as_json)


# --- tasks: orders ------------------------------------------------------------------------------------


def about_tasks(function: Callable[..., int | None]) -> click.Command:
    """An action on tasks that are named, or on all of a run, a state or a label."""
    for option in (label_option, state_option, run_option, click.argument("tasks", nargs=-1, metavar="[TASK]...")):
        function = option(function)
    return action(function)


@about_tasks
@click.option("--reason", default="", help="Kept with the tasks.")
def cancel(tasks: tuple[str, ...], run: str, state: str, label: str, reason: str, as_json: bool) -> int:
    """Cancel tasks that have not ended; what runs is stopped."""
    from ecloud.cli import request

    return request.about_tasks("cancel", tasks, run, state, label, as_json, reason=reason)


@about_tasks
def retry_failed(tasks: tuple[str, ...], run: str, state: str, label: str, as_json: bool) -> int:
    """Do failed tasks again [all], and what was aborted because of them."""
    from ecloud.cli import request

    state = state if tasks or run or label else "failed"
    return request.about_tasks("retry_failed", tasks, run, state, label, as_json)


@about_tasks
@click.option("--below", is_flag=True, help="And all tasks that depend on them.")
def redo_task(tasks: tuple[str, ...], run: str, state: str, label: str, below: bool, as_json: bool) -> int:
    """Do tasks again that have ended."""
    from ecloud.cli import request

    return request.about_tasks("redo_task", tasks, run, state, label, as_json, below=below)


@about_tasks
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop_tasks(tasks: tuple[str, ...], run: str, state: str, label: str, yes: bool, as_json: bool) -> int:
    """Forget tasks, with their attempts and outputs; what runs is stopped. Result files stay."""
    from ecloud.cli import request

    if not yes and not tasks and sys.stdin.isatty():
        click.confirm("Forget these tasks for good?", abort=True)
    return request.about_tasks("drop_tasks", tasks, run, state, label, as_json)


# --- workers ------------------------------------------------------------------------------------------


def number_of_workers(context: click.Context, param: click.Parameter, value: str) -> int:
    """What is no number is named, also -1, which click would take for an option."""
    if value.isdecimal() and int(value) >= 1:
        return int(value)
    raise click.BadParameter(f"{value!r} is no number of workers: 1 or more", context, param)


@main.command("instantiate_worker", context_settings={"ignore_unknown_options": True})
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
@click.argument("n", default="1", callback=number_of_workers)
@click.option("--pool", default="", metavar="P", help="From this pool [the first].")
@click.option("--keep_alive", is_flag=True, help="They stay when idle.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def instantiate_worker(n: int, pool: str, keep_alive: bool, yes: bool, as_json: bool) -> int:
    """Start N workers."""
    from ecloud.cli import request

    if n > 20 and not yes:
        if not sys.stdin.isatty():
            raise Problem(f"{n} are many: say --yes where nobody can be asked")
        click.confirm(f"Start {n} VMs?", abort=True)
    return request.instantiate(n, pool, keep_alive, as_json)


@action
@click.option("--all", "everyone", is_flag=True, help="Also those that are gone.")
def show_workers(everyone: bool, as_json: bool) -> int:
    """Workers: address, state, since when, doing what."""
    from ecloud.cli import show

    return show.workers(everyone, as_json)


def about_workers(function: Callable[..., int | None]) -> click.Command:
    """An action on workers that are named (the first letters do), or on all."""
    function = click.option("--all", "everyone", is_flag=True, help="All workers.")(function)
    return action(click.argument("workers", nargs=-1, metavar="[WORKER]...")(function))


@about_workers
@click.option("--reason", default="", help="Kept with the workers.")
def drain_worker(workers: tuple[str, ...], everyone: bool, reason: str, as_json: bool) -> int:
    """Give workers no more tasks; what they run goes on."""
    from ecloud.cli import request

    return request.about_workers("drain_worker", workers, everyone, as_json, reason=reason)


@about_workers
def undrain_worker(workers: tuple[str, ...], everyone: bool, as_json: bool) -> int:
    """Let draining workers take tasks again."""
    from ecloud.cli import request

    return request.about_workers("undrain_worker", workers, everyone, as_json)


@about_workers
def kill_worker(workers: tuple[str, ...], everyone: bool, as_json: bool) -> int:
    """End workers at once; their tasks are given to others."""
    from ecloud.cli import request

    return request.about_workers("kill_worker", workers, everyone, as_json)


@about_workers
def drop_workers(workers: tuple[str, ...], everyone: bool, as_json: bool) -> int:
    """Forget workers that are gone or lost."""
    from ecloud.cli import request

    return request.drop_workers(workers, everyone, as_json)


@action
@click.option("--all", "everyone", is_flag=True, help="Also those that are gone.")
def show_vms(everyone: bool, as_json: bool) -> int:
    """VMs that a cloud started for us, or was asked for."""
    from ecloud.cli import show

    return show.vms(everyone, as_json)


# --- data ---------------------------------------------------------------------------------------------


@action
def show_context(as_json: bool) -> int:
    """The cluster's own notes: its id, the datastore's address."""
    from ecloud.cli import show

    return show.context(as_json)


@action
@click.argument("keys", nargs=-1, metavar="[KEY]...")
def drop_context(keys: tuple[str, ...], as_json: bool) -> int:
    """Forget notes of the context [boss_address and the datastore: files are in the usual place from now on]."""
    from ecloud.cli import request

    return request.drop_context(keys, as_json)


@action
@click.argument("address", metavar="DIR|USER@HOST[:PORT]:/ROOT")
@click.option("--new_host_key", is_flag=True, help="Over SSH: believe a key other than the one that was pinned.")
def set_datastore(address: str, new_host_key: bool, as_json: bool) -> int:
    """Where files are kept: a directory that boss and workers see, or a machine over SSH."""
    from ecloud.cli import set_datastore as setting

    return setting.set_datastore(address, new_host_key, as_json)


@action
@click.argument("path", default="")
@click.option("--task", default="", metavar="TASK", help="The results of this task.")
@run_option
@click.option("-r", "--recursive", is_flag=True, help="With all that lies below.")
def ls(path: str, task: str, run: str, recursive: bool, as_json: bool) -> int:
    """List the datastore below PATH."""
    from ecloud.cli import files

    return files.ls(path, task, run, recursive, as_json)


@action
@click.argument("path", default="")
@click.argument("to", default=".")
@click.option("--task", default="", metavar="TASK", help="The results of this task.")
@run_option
@click.option("--force", is_flag=True, help="Replace what is at TO.")
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
    """How many bytes lie below PATH, and how many are free."""
    from ecloud.cli import files

    return files.du(path, as_json)


if __name__ == "__main__":
    app.enter(main, "admin.py")
