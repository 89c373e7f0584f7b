"""The table of a sweep: one row for each task, its parameters, state, run time and metrics. Prints nothing."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from datastore.problem import Problem
from ecloud.queries.sweep import SweepTask, last_numbers

_SOURCES = ("task", "state", "run_s")

Cell = str | float | None


class SweepTable(msgspec.Struct, frozen=True):
    """One row for each task. Columns: `task`, the parameters, `state`, `run_s`, the numbers (`metrics`)."""

    columns: list[str]
    rows: list[list[Cell]]
    parameters: list[str] = []
    metrics: list[str] = []

    def column(self, name: str) -> int:
        """Return the column's position. Raises `Problem`."""
        if name not in self.columns:
            raise Problem(f"there is no column {name!r}; there are {', '.join(self.columns)}")
        return self.columns.index(name)


def table_of(tasks: Sequence[SweepTask], numbers: Sequence[dict[str, float]]) -> SweepTable:
    """Join parameters and numbers. A number with the name of a parameter gets the prefix `metrics.`."""
    parameters = list(dict.fromkeys(name for task in tasks for name in task.parameters))
    taken = {*_SOURCES, *parameters}
    names = list(dict.fromkeys(name for found in numbers for name in found))
    titles = [f"metrics.{name}" if name in taken else name for name in names]
    rows: list[list[Cell]] = []
    for task, found in zip(tasks, numbers):
        run_s = None if task.run_s is None else round(task.run_s, 3)
        row: list[Cell] = [task.id, *(task.parameters.get(name) for name in parameters), task.state, run_s]
        rows.append([*row, *(found.get(name) for name in names)])
    return SweepTable(["task", *parameters, "state", "run_s", *titles], rows, parameters, titles)


def last_sweep_table(tasks: Sequence[SweepTask]) -> SweepTable:
    """Return the table with only the numbers of each output's last JSON line."""
    return table_of(tasks, [last_numbers(task.stdout) for task in tasks])


def sorted_by(table: SweepTable, sort: str) -> SweepTable:
    """Sort by one column, `-NAME` from the largest down; numbers before texts, missing cells last. Raises `Problem`."""
    down = sort.startswith("-") and sort not in table.columns
    at = table.column(sort[1:] if down else sort)
    there = [row for row in table.rows if row[at] is not None]
    missing = [row for row in table.rows if row[at] is None]

    def key(row: list[Cell]) -> tuple[bool, float, str]:
        number = as_float(row[at])
        return (number is None, number or 0.0, str(row[at]))

    return msgspec.structs.replace(table, rows=[*sorted(there, key=key, reverse=down), *missing])


def as_float(cell: Cell) -> float | None:
    """Return the cell as a number, if it is one."""
    try:
        return None if cell is None else float(cell)
    except ValueError:
        return None
