"""Summary of an ended run for its user: failures and their reasons, and the location of the results."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from typing import TYPE_CHECKING

import msgspec

from datastore.problem import DONE, NOT_ALL_SUCCEEDED
from ecloud.cli import app

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.engine import Engine

    from ecloud.cli.progress import Progress
    from ecloud.client.client import Client
    from ecloud.config.settings import Settings
    from ecloud.formats import TaskList
    from ecloud.model.tasks import TaskDefinition
    from ecloud.model.wire import RunAccepted, RunChanged
    from ecloud.queries.views import Failure

FAILURES_SHOWN = 20
FAILURES_SHOWN_AT_THE_END = 1_000
"""The same of a cluster that ends with its run."""
RESULTS_SHOWN = 8
RESULTS_LOOKED_AT = 1_000
"""Maximum number of results that the datastore is queried for."""


class Shares(msgspec.Struct, frozen=True):
    """How many tasks of a run succeeded before this push, were skipped since their results exist, and ran."""

    earlier: int
    skipped: int
    ran: int

    @classmethod
    def of(cls, accepted: RunAccepted, last: RunChanged) -> Shares:
        """Compute the numbers from the boss's answer and the run's end."""
        skipped = accepted.decisions.get("skipped", 0)
        earlier = max(0, accepted.states.get("succeeded", 0) - skipped)
        not_run = sum(last.states.get(state, 0) for state in ("aborted", "cancelled"))
        return cls(earlier, skipped, max(0, sum(last.states.values()) - earlier - skipped - not_run))

    def __str__(self) -> str:
        skipped = f", {self.skipped:,} skipped since their results exist" if self.skipped else ""
        return f"{self.earlier:,} had succeeded earlier{skipped}, {self.ran:,} ran"


def tell_end(
    tasks: TaskList,
    accepted: RunAccepted,
    last: RunChanged,
    progress: Progress,
    as_json: bool,
    settings: Settings,
    client: Client,
    output: Path | None = None,
    is_removed: bool = False,
) -> int:
    """Print the final table or one JSON document; returns the exit code.

    `client`: the conversation with the boss. `is_removed`: the cluster ends with this command, so that no other one can
    show more; `output`: the file with its tasks' output, if there was any.
    """
    from ecloud.db.database import DatabaseAway, SchemaWrong
    from ecloud.queries.status import NoSuchRun, failures, open_database

    failed: list[Failure] = []
    aborted: list[tuple[str, str, str]] = []
    # a client elsewhere has no access to the database; it has printed the failures already
    if not os.environ.get("ECLOUD_ACCESS"):
        with contextlib.suppress(DatabaseAway, SchemaWrong, NoSuchRun):
            engine = open_database(settings)
            shown = FAILURES_SHOWN_AT_THE_END if is_removed else FAILURES_SHOWN
            failed = failures(engine, last.run, shown)
            aborted = _aborted(engine, last.run, shown)
    shares = Shares.of(accepted, last)
    code = DONE if set(last.states) <= {"succeeded"} else NOT_ALL_SUCCEEDED
    if as_json:
        from ecloud.cli.tables import print_json
        from ecloud.model.text import visible

        report = {
            "run": last.run,
            "states": last.states,
            "failed": failed,
            "held": last.held,
            "datastore": client.datastore_address,
        }
        print_json({**report, **msgspec.structs.asdict(shares)})
        if last.held:
            print(f"held: {visible(last.held)}", file=sys.stderr)
        return code
    _print_end(last, progress, failed, aborted, shares, output, is_removed)
    _print_results(tasks, last.run, shares, settings, client)
    return code


def _aborted(engine: Engine, run: str, shown: int) -> list[tuple[str, str, str]]:
    from ecloud.queries.status import tasks

    page = tasks(engine, ("aborted", "cancelled"), run, limit=shown)
    return [(line.id, line.state, line.reason) for line in page.tasks]


def _print_end(
    last: RunChanged,
    progress: Progress,
    failed: list[Failure],
    aborted: list[tuple[str, str, str]],
    shares: Shares,
    output: Path | None,
    is_removed: bool,
) -> None:
    from ecloud.cli.tables import ended_line, print_table

    console = app.console()
    if failed or aborted:
        rows = [(failure.id, "failed", failure.error) for failure in failed]
        rows += [(id, state, reason) for id, state, reason in aborted]
        console.print()
        print_table(console, ("task", "state", "why"), rows)
        more = sum(last.states.get(name, 0) for name in ("failed", "aborted", "cancelled")) - len(rows)
        if more > 0:
            shown_by = f": python admin.py show_failed --run {shlex.quote(last.run)}" if not is_removed else ""
            console.print(f"and {more:,} more{shown_by}")
        console.print()
    if last.held:
        console.print(f"held: {last.held}")
    line = ended_line(last.run, last.states, progress.elapsed_s)
    console.print(line.append(f" ({shares})") if shares.earlier or shares.skipped else line)
    if output:
        print(f"what the tasks printed: {output}")


def _print_results(tasks: TaskList, run: str, shares: Shares, settings: Settings, client: Client) -> None:
    """Print the paths of the results, those of the last tasks first, since users usually want these."""
    from ecloud.cli.files import open_datastore
    from ecloud.model.text import byte_size, visible

    paths = list(dict.fromkeys(result.path for task in _some_last(tasks) for result in task.results))
    if not paths:
        return
    with contextlib.suppress(Exception):
        address = client.datastore_address
        found = open_datastore(settings, address, client.request).stat(paths[:RESULTS_LOOKED_AT])
        there = [(path, entry) for path, entry in zip(paths, found) if entry is not None]
        if shares.earlier:
            _warn_of_missing([path for path, entry in zip(paths, found) if entry is None], run)
        if not there:
            return
        print(f"results in {address.removeprefix('dir:')}:")
        for path, entry in there[:RESULTS_SHOWN]:
            size = "directory" if entry.kind == "directory" else byte_size(entry.size)
            print(f"  {visible(path)}  ({size})")
        if len(there) > RESULTS_SHOWN:
            print(f"  and {len(there) - RESULTS_SHOWN:,} more")


def _some_last(tasks: TaskList) -> Iterator[TaskDefinition]:
    """Yield the tasks of the list from the last on, with arrays replaced by some of their elements."""
    from ecloud.formats.arrays import elements, entry_at, indices_of

    for task in reversed(tasks.tasks):
        if task.array is None:
            yield task
        elif task.results:
            indices = indices_of(task.array)
            positions = range(max(0, indices.count - RESULTS_LOOKED_AT), indices.count)
            entries = [entry_at(task.array, indices, position) for position in reversed(positions)]
            yield from elements(task, entries, task.array.words)


def _warn_of_missing(paths: list[str], run: str) -> None:
    """Warn of results of earlier successes that were removed, or are in another datastore."""
    from ecloud.cli.tables import some

    # a pattern is not the name of a file
    missing = [path for path in paths if not any(letter in path for letter in "*?[")]
    if missing:
        print(
            f"not in the datastore, though their tasks succeeded: {some(missing, 5)}; "
            f"python admin.py redo_task TASK --run {shlex.quote(run)} runs a task again",
            file=sys.stderr,
        )
