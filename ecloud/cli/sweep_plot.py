"""Plot of a sweep's number against a parameter. Only this module uses matplotlib."""

from __future__ import annotations

import math
from typing import Any

from datastore.problem import Problem
from ecloud.queries.sweep_table import SweepTable, as_float

MAX_GROUPS = 12
"""Number of distinguishable colours and markers."""
LOG_FACTOR = 50
"""An axis is logarithmic if its largest value is this many times the smallest."""
MARKERS = "osD^vP*Xhd<>"

Points = list[tuple[Any, float]]
"""(cell of x, number of y)."""


def draw(table: SweepTable, x: str, y: str, by: str | None, file: str, title: str) -> int:
    """Draw points, and for each group of `by` a line through the means; returns the number of points. Raises
    `Problem`."""
    try:
        import matplotlib
    except ImportError:
        raise Problem("plots need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = _groups(table, x, y, by)
    places, is_numeric = _places([cell for points in groups.values() for cell, _ in points])
    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=120, layout="constrained")
    colours = pyplot.get_cmap("tab20" if len(groups) > 10 else "tab10")
    for index, (group, points) in enumerate(groups.items()):
        label = f"{by} = {group}" if by else ""
        placed = [(places[cell], value) for cell, value in points]
        _draw_group(axes, placed, label, colours(index), MARKERS[index % len(MARKERS)], "-" if is_numeric else "")
    if not is_numeric:
        axes.margins(x=0.5 / len(places))
        axes.set_xticks(list(places.values()), [str(cell) for cell in places], rotation=30 if len(places) > 6 else 0)
    elif _spans(list(places.values())):
        axes.set_xscale("log")
    if _spans([value for points in groups.values() for _, value in points]):
        axes.set_yscale("log")
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(True, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9)
    try:
        figure.savefig(file)
    except (ValueError, OSError) as error:
        raise Problem(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        pyplot.close(figure)
    return sum(map(len, groups.values()))


def _groups(table: SweepTable, x: str, y: str, by: str | None) -> dict[str, Points]:
    """Return points by the value of `by`, without those that lack one of the numbers. Raises `Problem`."""
    at_x, at_y = table.column(x), table.column(y)
    at_by = None if by is None else table.column(by)
    groups: dict[str, Points] = {}
    for row in table.rows:
        value = as_float(row[at_y])
        if row[at_x] is not None and value is not None and math.isfinite(value):
            cell = "" if at_by is None else row[at_by]
            groups.setdefault("none" if cell is None else str(cell), []).append((row[at_x], value))
    if not groups:
        raise Problem(f"no task has numbers for both {x} and {y} yet")
    if len(groups) > MAX_GROUPS:
        raise Problem(f"{by} has {len(groups):,} values; at most {MAX_GROUPS} can be distinguished")
    return groups


def _places(cells: list[Any]) -> tuple[dict[Any, float], bool]:
    """Return the position of each value on the x axis, and whether positions are the values themselves."""
    distinct = list(dict.fromkeys(cells))
    numbers = [as_float(cell) for cell in distinct]
    if all(number is not None and math.isfinite(number) for number in numbers):
        return {cell: number for cell, number in zip(distinct, numbers) if number is not None}, True
    return {cell: float(place) for place, cell in enumerate(distinct)}, False


def _draw_group(
    axes: Any, points: list[tuple[float, float]], label: str, colour: Any, marker: str, line_style: str
) -> None:
    """Draw every point and a line; if several points share an x, draw them small, and the line joins their means."""
    means: dict[float, list[float]] = {}
    for place, value in points:
        means.setdefault(place, []).append(value)
    line = sorted((place, sum(values) / len(values)) for place, values in means.items())
    xs, ys = [place for place, _ in line], [value for _, value in line]
    if len(points) > len(means):
        axes.scatter(*zip(*points), s=12, alpha=0.35, linewidths=0, color=colour, marker=marker)
        label = f"{label} (mean)" if label else "mean"
        axes.plot(xs, ys, line_style, linewidth=1.4, markersize=7, color=colour, marker=marker, label=label)
    else:
        axes.plot(xs, ys, line_style, linewidth=1.4, markersize=5, color=colour, marker=marker, label=label or None)


def _spans(numbers: list[float]) -> bool:
    return min(numbers) > 0 and max(numbers) / min(numbers) >= LOG_FACTOR
