"""The group of all actions, their arguments, and options that several actions share.

An action parses and calls; it imports its modules when it runs, so that `--help` is fast.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import click

from ecloud.cli.app import Command
from ecloud.cli.version import version_option

GROUPS = {
    "cluster": ("start", "stop", "hosts", "slurm", "status", "doctor", "migrate", "invite", "plan", "ledger"),
    "watching": ("top", "monitor", "timeline", "graph", "events"),
    "tasks": (
        "push", "show_tasks", "show_queued", "show_in_progress", "show_failed", "show_succeeded", "show_task",
        "show_task_commands", "show_task_status", "show_task_dependencies", "logs", "why", "cancel", "retry_failed",
        "redo_task", "drop_tasks", "sweep",
    ),
    "workers": (
        "instantiate_worker", "show_workers", "drain_worker", "undrain_worker", "kill_worker", "drop_workers",
        "show_vms", "forget_vm", "hold_pool", "release_pool",
    ),
    "data": ("show_context", "drop_context", "set_datastore", "ls", "get", "put", "du"),
    "shell": ("completion",),
}  # fmt: skip
"""Actions in the order of the help; others appear under "more"."""


class Actions(click.Group):
    """A group whose help has sections and whose errors name the nearest action."""

    command_class = Command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        listed = {name for names in GROUPS.values() for name in names}
        more = tuple(sorted(set(self.commands) - listed))
        for title, names in {**GROUPS, "more": more}.items():
            if names:
                with formatter.section(title):
                    formatter.write_dl([(name, self.commands[name].get_short_help_str(80)) for name in names])

    def resolve_command(self, context: click.Context, arguments: list[str]) -> Any:
        try:
            return super().resolve_command(context, arguments)
        except click.UsageError as error:
            nearest = difflib.get_close_matches(arguments[0], self.commands, 1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"{context.command_path} --help lists them"
            raise click.UsageError(f"there is no action {arguments[0]!r}; {hint}", context) from error


@click.group(cls=Actions, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@version_option
def main() -> None:
    """Query and control the cluster. Each action takes --help and --json.

    Exit codes: 0 done, 1 some task did not succeed, 2 the input is wrong, 3 a part cannot be reached, 70 a fault of
    ECLOUD itself, 130 interrupted.
    """


Function = Callable[..., int | None]


def action(function: Function) -> click.Command:
    """Register an action under the function's name, with --json."""
    option = click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
    return main.command(function.__name__)(option(function))


run_option = click.option("--run", default="", metavar="RUN", help="Only of this run.")
state_option = click.option("--state", default="", metavar="S", help="Only in this state.")
label_option = click.option("--label", default="", metavar="L", help="Only with this label.")
limit_option = click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="Show at most this many."
)
newest_option = click.option("--newest", is_flag=True, help="Show the last entries of each list first.")
task_argument = click.argument("task", metavar="TASK")


def list_options(function: Function) -> Function:
    """Add the options of task lists."""
    for option in (newest_option, limit_option, label_option, run_option):
        function = option(function)
    return function


def about_tasks(function: Function) -> click.Command:
    """Make an action on named tasks, or on all of a run, a state or a label."""
    for option in (label_option, state_option, run_option, click.argument("tasks", nargs=-1, metavar="[TASK]...")):
        function = option(function)
    return action(function)


def about_workers(function: Function) -> click.Command:
    """Make an action on named workers (the first letters suffice), or on all."""
    function = click.option("--all", "everyone", is_flag=True, help="All workers.")(function)
    return action(click.argument("workers", nargs=-1, metavar="[WORKER]...")(function))
