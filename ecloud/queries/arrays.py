"""Arrays in the database: counts by state, and pending elements, which have no row in `tasks` yet."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ecloud.db import schema
from ecloud.formats.arrays import ENTRIES_A_PART, decode_entries, element_id, elements, entry_at
from ecloud.model.ranges import Indices, Ranges
from ecloud.model.tasks import ArrayOf, TaskDefinition
from ecloud.queries.views import ArrayStatus

MOST_GROUPED = 20_000
"""Tasks whose ids are read to find small arrays: a status must stay quick."""
_FOREMOST = ("running", "ready", "waiting", "failed", "aborted", "cancelled", "succeeded")
"""The state of a small array is the first of these that an element is in."""


def pending_counts(connection: Connection) -> dict[int, dict[str, int]]:
    """Count elements without a row, by run and state."""
    arrays = schema.arrays.c
    found: dict[int, dict[str, int]] = {}
    query = sa.select(arrays.run_no, arrays.pending_state, arrays.pending_count).where(arrays.pending_count > 0)
    for run_no, state, count in connection.execute(query):
        states = found.setdefault(run_no, {})
        states[state] = states.get(state, 0) + count
    return found


def array_views(connection: Connection) -> dict[int, list[ArrayStatus]]:
    """The arrays of each run, in list order."""
    arrays, tasks = schema.arrays.c, schema.tasks.c
    query = (
        sa.select(arrays.run_no, tasks.id, tasks.state, arrays.states)
        .select_from(schema.arrays.join(schema.tasks, tasks.task_no == arrays.task_no))
        .order_by(arrays.task_no)
    )
    found: dict[int, list[ArrayStatus]] = {}
    for row in connection.execute(query):
        found.setdefault(row.run_no, []).append(ArrayStatus(row.id, row.state, msgspec.json.decode(row.states)))
    return found


def small_arrays(connection: Connection, totals: Mapping[int, int]) -> dict[int, list[ArrayStatus]]:
    """The arrays whose elements are plain tasks, recognised by their ids (`a[17]`), of the runs whose number of tasks
    is in `totals`: in its order, as long as `MOST_GROUPED` allows."""
    chosen, count = [], 0
    for run_no, total in totals.items():
        if 1 < total <= MOST_GROUPED - count:
            chosen.append(run_no)
            count += total
    if not chosen:
        return {}
    tasks = schema.tasks.c
    bracket = sa.func.instr(tasks.id, _text("["))
    name = sa.func.substr(tasks.id, 1, bracket - 1, type_=schema.Utf8()).label("name")
    inside = sa.func.substr(tasks.id, bracket + 1, type_=schema.Utf8())
    is_index = sa.or_(sa.cast(inside, sa.Integer) > 0, inside == _text("0]"))
    elements = (
        tasks.run_no.in_(chosen), tasks.init == schema.TASK, bracket > 1, is_index,
        sa.func.substr(tasks.id, -1) == _text("]"),
    )  # fmt: skip
    query = (
        sa.select(tasks.run_no, name, tasks.state, sa.func.count(), sa.func.min(tasks.task_no))
        .where(*elements)
        .group_by(tasks.run_no, name, tasks.state)
    )
    states: dict[tuple[int, str], dict[str, int]] = {}
    first: dict[tuple[int, str], int] = {}
    for run_no, array, state, count, task_no in connection.execute(query):
        key = (run_no, array)
        states.setdefault(key, {})[state] = count
        first[key] = min(task_no, first.get(key, task_no))
    found: dict[int, list[ArrayStatus]] = {}
    for key in sorted(states, key=lambda key: first[key]):
        of_array = states[key]
        if sum(of_array.values()) > 1:
            state = next(state for state in _FOREMOST if of_array.get(state))
            found.setdefault(key[0], []).append(ArrayStatus(key[1], state, of_array))
    return found


def _text(text: str) -> sa.BindParameter[str]:
    return sa.bindparam(None, text, type_=schema.Utf8())


def unmade_element(connection: Connection, run_no: int | None, name: str) -> Any:
    """Return the element called `a[17]` in the form of a row of `tasks`, with `array_no` and `position` added. If
    several runs have such an element, return that of the newest run. Return None if there is no such element or it has
    a row."""
    array, bracket, index = name.removesuffix("]").rpartition("[")
    if not (bracket and name.endswith("]") and index.isascii() and index.isdigit()):
        return None
    tasks, arrays = schema.tasks.c, schema.arrays.c
    query = (
        sa.select(schema.tasks, arrays.first_no, arrays.indices, arrays.pending, arrays.pending_state)
        .select_from(schema.tasks.join(schema.arrays, arrays.task_no == tasks.task_no))
        .where(tasks.id == array)
        .order_by(tasks.run_no.desc())
    )
    for row in connection.execute(query if run_no is None else query.where(tasks.run_no == run_no)):
        position = Indices.of(row.indices).position(int(index))
        if position is None or position not in Ranges.of(row.pending) or element_id(array, int(index)) != name:
            continue
        own = {"id": name, "task_no": row.first_no + position, "state": row.pending_state, "init": schema.TASK}
        values = {column.name: getattr(row, column.name) for column in schema.tasks.c}
        return SimpleNamespace(**{**values, **own}, array_no=row.task_no, position=position)
    return None


def unmade_definition(connection: Connection, element: Any) -> TaskDefinition:
    """Return what an element without a row will run."""
    definitions, parts = schema.definitions.c, schema.array_entries.c
    stored = connection.execute(
        sa.select(definitions.definition).where(definitions.task_no == element.array_no)
    ).scalar_one()
    template = msgspec.json.decode(stored, type=TaskDefinition)
    array = template.array or ArrayOf()
    number, at = divmod(element.position, ENTRIES_A_PART)
    part = connection.execute(
        sa.select(parts.entries).where(parts.task_no == element.array_no, parts.part == number)
    ).scalar()
    if part is not None:
        entry = decode_entries(part)[at]
    else:
        entry = entry_at(array, Indices.of(array.indices), element.position)
    return next(elements(template, [entry], array.words))


def array_of_element(connection: Connection, row: Any) -> Any:
    """Return the `tasks` row of the array that this element belongs to; None for any other task."""
    array_no = getattr(row, "array_no", None)
    if array_no is None:
        arrays = schema.arrays.c
        query = sa.select(arrays.task_no, arrays.first_no, arrays.indices).where(
            arrays.run_no == row.run_no, arrays.first_no <= row.task_no
        )
        found = connection.execute(query.order_by(arrays.first_no.desc()).limit(1)).first()
        if found is None or row.task_no >= found.first_no + Indices.of(found.indices).count:
            return None
        array_no = found.task_no
    return connection.execute(sa.select(schema.tasks).where(schema.tasks.c.task_no == array_no)).first()


def array_row(connection: Connection, array_no: int) -> Any:
    """Return the row of `arrays`."""
    return connection.execute(sa.select(schema.arrays).where(schema.arrays.c.task_no == array_no)).one()
