"""The action that pushes a task list: `push_tasks.py FILE`, `ecloud push FILE`."""

from __future__ import annotations

import click

from ecloud.cli.actions import main
from ecloud.cli.app import Command
from ecloud.cli.version import version_option

KINDS = ("auto", "tasks", "wfformat", "sweep")
"""Copy of `ecloud.formats.reading.FORMATS`, which `--help` does not import."""


class Push(Command):
    """A command whose `--local` may be given without a value."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        return super().parse_args(context, with_local_number(arguments))


def with_local_number(arguments: list[str]) -> list[str]:
    """Replace `--local` without a number by `--local=0`: one worker per core."""
    found = list(arguments)
    for index, argument in enumerate(found):
        if argument == "--":
            break
        if argument == "--local" and not (index + 1 < len(found) and found[index + 1].lstrip("-").isdigit()):
            found[index] = "--local=0"
    return found


@main.command("push", cls=Push, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, metavar="FILE | -- COMMAND", type=click.Path(allow_dash=True))
@click.option("--wait", is_flag=True, help="Show progress until the run ends; exit code 1 if a task did not succeed.")
@click.option("--local", type=click.IntRange(0), metavar="[N]", help="On this machine, with N workers [one per core].")
@click.option(
    "--datastore", metavar="DIR", type=click.Path(), help="With --local: directory for results [./ecloud-data]."
)
@click.option("--run", metavar="NAME", help="Name of the run [the name in the file, else the file's stem].")
@click.option(
    "--merge_strategy",
    type=click.Choice(["keep_succeeded", "replace"]),
    default="keep_succeeded",
    show_default=True,
    help="How to treat tasks that the run already has.",
)
@click.option("--skip_existing", is_flag=True, help="Tasks whose results all exist succeed immediately.")
@click.option("--rerun_changed", is_flag=True, help="Rerun tasks whose requirements changed or whose results are gone.")
@click.option("--create_ids", is_flag=True, help="Tasks without an id get one from their position.")
@click.option("--infer_dependencies", is_flag=True, help="A task waits for the tasks that produce what it requires.")
@click.option("--create_workers", type=click.IntRange(1), metavar="N", help="Also start N workers.")
@click.option(
    "--vm_hours", type=click.FloatRange(0), metavar="H", help="Start no VM for it after H VM-hours; 0: no limit."
)
@click.option("--upload", metavar="DIR", type=click.Path(), help="First upload all files below DIR to the datastore.")
@click.option(
    "--scale",
    type=float,
    metavar="X",
    help="WfFormat: instead of the programs, sleep and write files: X times the recorded times and sizes.",
)
@click.option(
    "--format", "kind", type=click.Choice(KINDS), default="auto", help="Format of FILE, if its content is ambiguous."
)
@click.option("--program", metavar="LINE", help="For a sweep: the command to run with each combination of parameters.")
@click.option(
    "--samples", type=click.IntRange(1), metavar="N", help="For a sweep with method: random: number of combinations."
)
@click.option("--array", metavar="RANGE", help="Run COMMAND for each number: 1-1000, 1-99:2, 3,7,10-20.")
@click.option("--each-line", "--each_line", metavar="FILE", type=click.Path(), help="Run COMMAND for each line.")
@click.option("--each-file", "--each_file", metavar="GLOB", help="Upload each file and run COMMAND for it.")
@click.option("--from-json", "--from_json", metavar="FILE", help="Run COMMAND for each value of a JSON list.")
@click.option(
    "--result", "results", multiple=True, metavar="PATH", help="For an array: a result of each task. Repeatable."
)
@click.option("--output", metavar="DIR", help="Keep the whole output of each task below DIR in the datastore.")
@click.option("--yes", is_flag=True, help="Confirm more than a million combinations.")
@click.option("--after", metavar="RUN", help="Push when that run has ended.")
@click.option("--keep_dirs", is_flag=True, help="Keep the tasks' working directories.")
@click.option("--monitor", is_flag=True, help="With --local: web pages while it runs [on a terminal after 8 s].")
@click.option("--dry_run", is_flag=True, help="Only show what would run.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document at the end.")
@version_option
def push(
    words: tuple[str, ...],
    wait: bool,
    local: int | None,
    datastore: str | None,
    run: str | None,
    merge_strategy: str,
    skip_existing: bool,
    rerun_changed: bool,
    create_ids: bool,
    infer_dependencies: bool,
    create_workers: int | None,
    vm_hours: float | None,
    upload: str | None,
    scale: float | None,
    kind: str,
    program: str | None,
    samples: int | None,
    array: str | None,
    each_line: str | None,
    each_file: str | None,
    from_json: str | None,
    results: tuple[str, ...],
    output: str | None,
    yes: bool,
    after: str | None,
    keep_dirs: bool,
    monitor: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Push the tasks of FILE into the cluster, or with --local run them here: a task list, a sweep or WfFormat; - is
    standard input. Or push COMMAND once for each element of an array.

    \b
    python push_tasks.py tasks.json                   hand it to the boss
    python push_tasks.py tasks.json --wait            and watch it to its end
    python push_tasks.py tasks.json --local --wait    run it here, on a cluster of its own

    python push_tasks.py parameters.yml --program 'python train.py'    a sweep
    python push_tasks.py --array 1-100 -- ./simulate %04d              an array

    Exit codes: 0 done, 1 some task did not succeed, 2 the input is wrong, 3 a part cannot be reached, 130 interrupted.
    """
    from ecloud.cli import push as pushing
    from ecloud.cli.task_source import Source

    return pushing.push(
        pushing.Wish(
            source=Source(
                words=words,
                run=run,
                format=kind,
                scale=scale,
                create_ids=create_ids,
                infer_dependencies=infer_dependencies,
                program=program,
                samples=samples,
                array=array,
                each_line=each_line,
                each_file=each_file,
                from_json=from_json,
                results=results,
                output=output,
                yes=yes,
            ),
            wait=wait,
            local=local,
            datastore=datastore,
            merge_strategy=merge_strategy,
            skip_existing=skip_existing,
            rerun_changed=rerun_changed,
            create_workers=create_workers,
            vm_hours=vm_hours,
            upload=upload,
            after=after,
            keep_dirs=keep_dirs,
            monitor=monitor,
            dry_run=dry_run,
            as_json=as_json,
        )
    )
