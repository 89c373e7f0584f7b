"""Actions on tasks: queries and requests."""

from __future__ import annotations

import click

from datastore.problem import Problem
from ecloud.cli.actions import (
    about_tasks,
    action,
    limit_option,
    list_options,
    run_option,
    state_option,
    task_argument,
)


@action
@state_option
@list_options
def show_tasks(state: str, run: str, label: str, limit: int, newest: bool, as_json: bool) -> int:
    """Tasks, one a line."""
    from ecloud.cli import show

    return show.tasks((state,) if state else (), run, label, limit, newest, as_json)


@action
@list_options
def show_queued(run: str, label: str, limit: int, newest: bool, as_json: bool) -> int:
    """Tasks that wait: for others, or for a worker."""
    from ecloud.cli import show

    return show.tasks(("ready", "waiting"), run, label, limit, newest, as_json)


@action
@list_options
def show_in_progress(run: str, label: str, limit: int, newest: bool, as_json: bool) -> int:
    """Tasks that run now, and where."""
    from ecloud.cli import show

    return show.tasks(("running",), run, label, limit, newest, as_json)


@action
@run_option
@limit_option
def show_failed(run: str, limit: int, as_json: bool) -> int:
    """Failed tasks, each with its error and the end of its output."""
    from ecloud.cli import show

    return show.failed(run, limit, as_json)


@action
@list_options
def show_succeeded(run: str, label: str, limit: int, newest: bool, as_json: bool) -> int:
    """Tasks that succeeded."""
    from ecloud.cli import show

    return show.tasks(("succeeded",), run, label, limit, newest, as_json)


@action
@task_argument
@run_option
def show_task(task: str, run: str, as_json: bool) -> int:
    """All details of a task: its definition, its state, every attempt."""
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
    """Dependencies and dependents of a task."""
    from ecloud.cli import show

    return show.task_dependencies(task, run, as_json)


@action
@task_argument
@run_option
@click.option("-f", "--follow", is_flag=True, help="Follow the output until the task has ended.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Show the n-th attempt [the last].")
@click.option("--raw", "is_raw", is_flag=True, help="Print the output unchanged, with all control characters.")
def logs(task: str, run: str, follow: bool, attempt: int | None, is_raw: bool, as_json: bool) -> int:
    """A task's output: the whole if the task keeps it as files, else the last 64 KiB of stdout and of stderr.

    On a terminal, colours and progress lines appear as the task showed them. In a pipe, control characters are
    written out, as in \\r; --raw prints them unchanged.
    """
    from ecloud.cli import show

    if follow and attempt is not None:
        raise Problem("-f follows the attempt that runs now: leave out -f or --attempt")
    if as_json and is_raw:
        raise Problem("--json has every character already: leave out --raw")
    return show.follow(task, run, is_raw, as_json) if follow else show.logs(task, run, attempt, is_raw, as_json)


@action
@click.argument("subject", metavar="TASK|worker/ID|vm/ID")
@run_option
@click.option("--all", "all_layers", is_flag=True, help="Show all reasons, the nearest first.")
def why(subject: str, run: str, all_layers: bool, as_json: bool) -> int:
    """Why a task does not run, or why a worker or VM is absent."""
    from ecloud.cli import show

    return show.why(subject, run, all_layers, as_json)


# --- orders -------------------------------------------------------------------------------------------


@about_tasks
@click.option("--reason", default="", help="Reason to record with the tasks.")
def cancel(tasks: tuple[str, ...], run: str, state: str, label: str, reason: str, as_json: bool) -> int:
    """Cancel tasks that have not ended; running ones are stopped."""
    from ecloud.cli import request

    return request.about_tasks("cancel", tasks, run, state, label, as_json, reason=reason)


@about_tasks
def retry_failed(tasks: tuple[str, ...], run: str, state: str, label: str, as_json: bool) -> int:
    """Run failed tasks again [all], and the tasks that were aborted because of them."""
    from ecloud.cli import request

    state = state if tasks or run or label else "failed"
    return request.about_tasks("retry_failed", tasks, run, state, label, as_json)


@about_tasks
@click.option("--below", is_flag=True, help="Also all tasks that depend on them.")
def redo_task(tasks: tuple[str, ...], run: str, state: str, label: str, below: bool, as_json: bool) -> int:
    """Run ended tasks again."""
    from ecloud.cli import request

    return request.about_tasks("redo_task", tasks, run, state, label, as_json, below=below)


@about_tasks
@click.option("--yes", is_flag=True, help="Do not ask for confirmation. Required without a terminal.")
def drop_tasks(tasks: tuple[str, ...], run: str, state: str, label: str, yes: bool, as_json: bool) -> int:
    """Delete tasks, with their attempts and outputs; running ones are stopped. Result files stay."""
    from ecloud.cli import request

    return request.drop_tasks(tasks, run, state, label, yes, as_json)


@action
@click.argument("run")
@click.argument("file", required=False, type=click.Path())
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values.")
@click.option("--plot", nargs=2, metavar="X Y", help="Plot column Y against column X into FILE.")
@click.option("--by", metavar="Z", help="With --plot: a colour for each value of column Z.")
@click.option("--sort", metavar="COLUMN", help="Sort by this column; -COLUMN: descending.")
def sweep(
    run: str,
    file: str | None,
    as_csv: bool,
    plot: tuple[str, str] | None,
    by: str | None,
    sort: str | None,
    as_json: bool,
) -> int:
    """Parameters, states, run times and numbers of a sweep's or an array's tasks; also while it runs.

    \b
    python admin.py sweep RUN --sort -accuracy
    python admin.py sweep RUN --plot lr accuracy --by optimizer FILE.png
    """
    from ecloud.cli import sweep as sweeps

    return sweeps.sweep(run, as_csv, plot, by, file, sort, as_json)
