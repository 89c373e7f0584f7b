"""The action that pushes a task list: `push_tasks.py FILE`, `ecloud push FILE`."""

from __future__ import annotations

import click

from ecloud.cli.actions import main
from ecloud.cli.app import Command
from ecloud.cli.version import version_option


class Push(Command):
    """A command whose `--local` may stand alone."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        return super().parse_args(context, with_local_number(arguments))


def with_local_number(arguments: list[str]) -> list[str]:
    """`--local` without a number is `--local=0`: one worker per core."""
    found = list(arguments)
    for index, argument in enumerate(found):
        if argument == "--":
            break
        if argument == "--local" and not (index + 1 < len(found) and found[index + 1].lstrip("-").isdigit()):
            found[index] = "--local=0"
    return found


@main.command("push", cls=Push, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option("--wait", is_flag=True, help="Show progress until all is done; exit code 1 where a task did not succeed.")
@click.option("--local", type=click.IntRange(0), metavar="[N]", help="On this machine, with N workers [one per core].")
@click.option("--datastore", metavar="DIR", type=click.Path(), help="With --local: where results go [./ecloud-data].")
@click.option("--run", metavar="NAME", help="The run it goes into [the name in the file, else the file's stem].")
@click.option(
    "--merge_strategy",
    type=click.Choice(["keep_succeeded", "replace"]),
    default="keep_succeeded",
    show_default=True,
    help="What becomes of tasks that the run has already.",
)
@click.option("--skip_existing", is_flag=True, help="Tasks whose results all exist succeed at once.")
@click.option("--create_ids", is_flag=True, help="Tasks without an id get one from their position.")
@click.option("--infer_dependencies", is_flag=True, help="A task waits for the tasks that produce what it requires.")
@click.option("--create_workers", type=click.IntRange(1), metavar="N", help="Also start N workers.")
@click.option(
    "--vm_hours", type=click.FloatRange(0), metavar="H", help="Start no VM for it after H VM-hours; 0: no limit."
)
@click.option("--upload", metavar="DIR", type=click.Path(), help="First send all files below DIR to the datastore.")
@click.option("--scale", type=float, metavar="X", help="WfFormat: sleep and write files of recorded time and size x X.")
@click.option("--keep_dirs", is_flag=True, help="Keep the tasks' working directories.")
@click.option("--dry_run", is_flag=True, help="Only say what would run.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document at the end.")
@version_option
def push(
    file: str,
    wait: bool,
    local: int | None,
    datastore: str | None,
    run: str | None,
    merge_strategy: str,
    skip_existing: bool,
    create_ids: bool,
    infer_dependencies: bool,
    create_workers: int | None,
    vm_hours: float | None,
    upload: str | None,
    scale: float | None,
    keep_dirs: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Push the task list FILE (JSON; - is standard input) into the cluster, or with --local run it here.

    \b
    python push_tasks.py tasks.json                   hand it to the boss
    python push_tasks.py tasks.json --wait            and watch it to its end
    python push_tasks.py tasks.json --local --wait    run it here, on a cluster of its own

    Exit codes: 0 done, 1 some task did not succeed, 2 the input is wrong, 3 a part can't be reached, 130 interrupted.
    """
    from ecloud.cli import push as pushing

    return pushing.push(
        pushing.Wish(
            file=file,
            wait=wait,
            local=local,
            datastore=datastore,
            run=run,
            merge_strategy=merge_strategy,
            skip_existing=skip_existing,
            create_ids=create_ids,
            infer_dependencies=infer_dependencies,
            create_workers=create_workers,
            vm_hours=vm_hours,
            upload=upload,
            scale=scale,
            keep_dirs=keep_dirs,
            dry_run=dry_run,
            as_json=as_json,
        )
    )
