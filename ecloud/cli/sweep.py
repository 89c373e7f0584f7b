"""`admin.py sweep RUN`: parameters, states and numbers of a sweep as a table, CSV, JSON or a plot."""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from datastore.port import BadName, NotThere, Reader
from datastore.problem import DONE, Problem
from datastore.ssh.datastore import SshDatastore
from ecloud.cli import app
from ecloud.cli.sweep_plot import draw
from ecloud.cli.tables import print_json, print_table
from ecloud.config.settings import Settings, load_settings
from ecloud.queries.status import context
from ecloud.queries.sweep import SweepTask, last_numbers, numbers_of_text, sweep_tasks
from ecloud.queries.sweep_table import SweepTable, as_float, sorted_by, table_of

TOGETHER = 200
"""Files fetched in one request over SSH."""
MAX_METRICS_BYTES = 1_000_000


def sweep(run: str, as_csv: bool, plot: tuple[str, str] | None, by: str | None, file: str | None, sort: str | None,
          as_json: bool) -> int:  # fmt: skip
    """Print the table or draw the plot. Raises `Problem`, `NoSuchRun`, `DatabaseAway`, `DatastoreAway`."""
    if (file is None) != (plot is None):
        raise Problem("a plot needs two columns and a file: --plot X Y FILE.png")
    if by is not None and plot is None:
        raise Problem("--by goes with --plot X Y FILE.png")
    table = whole_table(run, load_settings())
    if not table.rows:
        raise Problem(f"run {run} is neither a sweep nor an array: its tasks have no parameters")
    if sort:
        table = sorted_by(table, sort)
    if plot is not None and file is not None:
        points = draw(table, plot[0], plot[1], by, file, run)
        print(f"{file}: {points:,} points of {len(table.rows):,} tasks")
    elif as_json:
        print_json([dict(zip(table.columns, row)) for row in table.rows])
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(table.columns)
        writer.writerows(["" if cell is None else cell for cell in row] for row in table.rows)
    else:
        _print(table)
    return DONE


def whole_table(run: str, settings: Settings) -> SweepTable:
    """Return a run's parameters and numbers; no rows if its tasks have no parameters. Raises as `sweep` does."""
    engine = app.database(settings)
    tasks = sweep_tasks(engine, run)
    return table_of(tasks, _numbers(tasks, settings, context(engine)))


def _numbers(tasks: Sequence[SweepTask], settings: Settings, notes: dict[str, str]) -> list[dict[str, float]]:
    """Return the numbers of each task: of its metrics.json, else of the last JSON line of its output."""
    paths = [task.metrics_path for task in tasks if task.metrics_path]
    texts = _contents(paths, settings, notes) if paths else {}
    return [
        numbers_of_text(texts[task.metrics_path]) if task.metrics_path in texts else last_numbers(task.stdout)
        for task in tasks
    ]


def _contents(paths: Sequence[str], settings: Settings, notes: dict[str, str]) -> dict[str, str]:
    """Return the contents of small text files of the datastore by path, without those that no longer exist."""
    from ecloud.cli.files import datastore_address, open_datastore

    datastore = open_datastore(settings, datastore_address(settings, notes))
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="ecloud-sweep-") as directory:
        for start in range(0, len(paths), TOGETHER):
            part = list(dict.fromkeys(paths[start : start + TOGETHER]))
            wanted = [(path, Path(directory) / str(start + number)) for number, path in enumerate(part)]
            whole = isinstance(datastore, SshDatastore) and datastore.fetch_small(wanted, MAX_METRICS_BYTES) is not None
            for path, local in wanted:
                if whole or _fetch(datastore, path, local):
                    found[path] = local.read_text(errors="replace")
    return found


def _fetch(datastore: Reader, path: str, to: Path) -> bool:
    try:
        (entry,) = datastore.stat([path])
        if entry is None or entry.kind != "file" or entry.size > MAX_METRICS_BYTES:
            return False
        datastore.fetch(path, to)
    except (BadName, NotThere):
        return False
    return True


def _print(table: SweepTable) -> None:
    """Print the table, without task ids if the parameters identify the tasks."""
    columns = table.columns[1:] if len(table.columns) > 4 else table.columns
    skip = len(table.columns) - len(columns)
    rows = [["" if cell is None else _shown(cell) for cell in row[skip:]] for row in table.rows]
    numeric = [
        name
        for at, name in enumerate(columns, skip)
        if any(row[at] is not None for row in table.rows)
        and all(row[at] is None or as_float(row[at]) is not None for row in table.rows)
    ]
    print_table(app.console(), columns, rows, right=numeric)


def _shown(cell: str | float) -> str:
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)
