"""Entry points: `ecloud` (installed), `admin.py` and `push_tasks.py` (in a checkout)."""

from __future__ import annotations

from typing import NoReturn

import click
from click.shell_completion import get_completion_class

from datastore.problem import DONE
from ecloud.cli import (
    app,
    cluster_actions,
    data_actions,
    host_actions,
    push_action,
    task_actions,
    watch_actions,
    worker_actions,
)
from ecloud.cli.actions import main

__all__ = [
    "admin",
    "cluster_actions",
    "data_actions",
    "ecloud",
    "host_actions",
    "main",
    "push_tasks",
    "task_actions",
    "watch_actions",
    "worker_actions",
]

PROGRAM = "ecloud"
COMPLETE_VARIABLE = "_ECLOUD_COMPLETE"
"""The shell's completion script sets this variable; click then prints completions."""


@main.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print a script that completes actions and options of `ecloud` in your shell.

    \b
    bash: eval "$(ecloud completion bash)"              in ~/.bashrc
    zsh:  eval "$(ecloud completion zsh)"               in ~/.zshrc
    fish: ecloud completion fish | source               in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    print(kind(main, {}, PROGRAM, COMPLETE_VARIABLE).source())
    return DONE


def ecloud() -> NoReturn:
    """The installed program: every action, including `push`."""
    app.enter(main, PROGRAM)


def admin() -> NoReturn:
    """`python admin.py`."""
    app.enter(main, "admin.py")


def push_tasks() -> NoReturn:
    """`python push_tasks.py`."""
    app.enter(push_action.push, "push_tasks.py")
