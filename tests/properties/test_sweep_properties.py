"""Sweeps against an oracle: the count is the product, and a printed condition is read again as the same."""

from __future__ import annotations

import itertools
from decimal import Decimal
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ecloud.formats import ReadOptions, TaskListWrong, read_task_list
from ecloud.formats.sweep.conditions import ConditionWrong, parse_condition
from ecloud.formats.sweep.values import interval, steps

EFFORT = settings(max_examples=150, deadline=None)

names = st.sampled_from(["lr", "batch", "opt", "x1", "deep.net"])
values = st.one_of(
    st.integers(-99, 99).map(str),
    st.decimals(-9, 9, places=2).map(str),
    st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=6),
    st.sampled_from(["no", "yes", "1e-3", "0x1F", "null", "~", "true", "1_000", "12:30", "é", "2001-01-01"]),
)
grids = st.dictionaries(names, st.lists(values, min_size=1, max_size=4, unique=True), min_size=1, max_size=4)


def quoted(value: str) -> str:
    """Quoted, so that every text can stand in the document."""
    return "'" + value.replace("'", "''") + "'"


def printed(grid: dict[str, list[str]], **more: Any) -> str:
    lines = [f"  {name}: [{', '.join(map(quoted, given))}]" for name, given in grid.items()]
    return "\n".join(["program: p", *(f"{key}: {value}" for key, value in more.items()), "parameters:", *lines])


def combinations(text: str) -> list[dict[str, str]]:
    """The parameters of each task, as its program gets them."""
    import json

    found = read_task_list(text.encode(), "run", ReadOptions(format="sweep")).tasks
    return [json.loads(task.env["ECLOUD_PARAMETERS"]) for task in found]


@EFFORT
@given(grids)
def test_a_grid_is_the_product_in_order_the_last_fastest(grid: dict[str, list[str]]) -> None:
    assert combinations(printed(grid)) == [dict(zip(grid, chosen)) for chosen in itertools.product(*grid.values())]


@EFFORT
@given(grids, st.data())
def test_zip_exclude_and_when_are_those_of_the_oracle(grid: dict[str, list[str]], data: st.DataObject) -> None:
    def equal(label: str) -> tuple[str, str]:
        name = data.draw(st.sampled_from(list(grid)), label=label)
        return name, data.draw(st.sampled_from(grid[name]))

    more: dict[str, Any] = {}
    together: list[str] = []
    if len(grid) >= 2 and data.draw(st.booleans()):
        together = list(grid)[:2]
        length = min(len(grid[name]) for name in together)
        for name in together:
            grid[name] = grid[name][:length]
        more["zip"] = f"[{', '.join(together)}]"
    out, kept = equal("exclude"), equal("when")
    more["exclude"] = f"{{{out[0]}: {quoted(out[1])}}}"
    more["when"] = (
        yaml.safe_dump(f'{kept[0]} == "{kept[1]}"', default_style="'").strip() if '"' not in kept[1] else "true"
    )
    number = dict.fromkeys(grid, _as_number)
    expected = []
    for chosen in itertools.product(*grid.values()):
        point = dict(zip(grid, chosen))
        if together and grid[together[0]].index(point[together[0]]) != grid[together[1]].index(point[together[1]]):
            continue
        if number[out[0]](point[out[0]]) == _as_number(out[1]):
            continue
        if more["when"] != "true" and _as_number(point[kept[0]]) != _as_number(kept[1]):
            continue
        expected.append(point)
    try:
        found = combinations(printed(grid, **more))
    except TaskListWrong:
        found = []
    assert found == expected


def _as_number(text: str) -> Any:
    try:
        number = Decimal(text)
    except ArithmeticError:
        return text
    return number if number.is_finite() else text


conditions = st.recursive(
    st.one_of(
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 99).map(str),
        st.decimals(0, 9, places=1).map(str),
        st.sampled_from(["'x'", '"it\'s"', "true", "false", "[1, 'x']"]),
    ),
    lambda below: st.one_of(
        st.tuples(
            below, st.sampled_from(["and", "or", "==", "!=", "<", ">=", "in", "not in", "+", "-", "*", "/", "%"]), below
        ).map(lambda parts: f"({' '.join(parts)})"),
        below.map(lambda text: f"(not {text})"),
        below.map(lambda text: f"(-{text})"),
    ),
    max_leaves=8,
)


def answer(text: str) -> bool | None:
    try:
        return parse_condition(text).holds({"a": "1", "b": "0.50", "c": "x"})
    except ConditionWrong:
        return None


@EFFORT
@given(conditions)
def test_a_condition_is_printed_and_read_as_the_same(text: str) -> None:
    again = str(parse_condition(text))
    assert str(parse_condition(again)) == again
    assert answer(again) == answer(text)


@EFFORT
@given(st.text(max_size=30))
def test_any_text_is_a_condition_or_a_problem(text: str) -> None:
    answer(text)


@EFFORT
@given(
    st.decimals(-50, 50, places=2),
    st.decimals(-50, 50, places=2),
    st.decimals(-5, 5, places=2).filter(lambda step: abs(step) >= Decimal("0.05")),
)
def test_an_interval_is_exact_and_its_end_excluded(start: Decimal, end: Decimal, step: Decimal) -> None:
    expected = []
    number = start
    while (number < end) if step > 0 else (number > end):
        expected.append(number)
        number += step
    assert [Decimal(text) for text in interval(start, end, step)] == expected
    assert steps(start, end, step) == len(expected)


@EFFORT
@given(st.text(max_size=80))
def test_any_yaml_is_a_sweep_or_problems_that_can_be_printed(text: str) -> None:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return
    lines: list[str] = []
    try:
        read_task_list(data, "run", ReadOptions(format="sweep", program="p"))
    except TaskListWrong as wrong:
        lines = wrong.lines
    assert all(line.isprintable() for line in lines), lines
