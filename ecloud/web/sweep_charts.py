"""Charts of a sweep's numbers as SVG text: a scatter plot and parallel coordinates. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from markupsafe import Markup, escape

from ecloud.queries.sweep_table import Cell, SweepTable, as_float

WIDTH, HEIGHT = 640, 300
LEFT, BOTTOM, TOP, RIGHT = 70, 34, 12, 14
MOST_POINTS = 1_500
MOST_LINES = 300
MOST_SAID = 300
"""Maximum number of points with the task's name."""
MOST_AXES = 9
LOG_FACTOR = 50.0
"""An axis is logarithmic if its largest value is at least this many times the smallest."""
MOST_NAMES = 30
"""Maximum number of different texts on an axis."""


class Axis(msgspec.Struct, frozen=True):
    """Positions of values between 0 and 1. `names`: texts, in order; else numbers from `low` to `high`."""

    title: str
    low: float
    high: float
    is_log: bool
    names: tuple[str, ...] = ()

    def place(self, cell: Cell) -> float | None:
        """Return the position of a value; None if it has none."""
        if self.names:
            name = str(cell)
            return (self.names.index(name) + 0.5) / len(self.names) if name in self.names else None
        number = as_float(cell)
        if number is None or not math.isfinite(number) or (self.is_log and number <= 0):
            return None
        low, high, at = (math.log(x) if self.is_log else x for x in (self.low, self.high, number))
        return 0.5 if high == low else (at - low) / (high - low)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Return some positions and their labels."""
        if self.names:
            return [((at + 0.5) / len(self.names), name) for at, name in enumerate(self.names)][:MOST_NAMES]
        if self.high == self.low:
            return [(0.5, f"{self.low:.4g}")]
        shares = (0.0, 0.25, 0.5, 0.75, 1.0)
        if self.is_log:
            return [(share, f"{self.low * (self.high / self.low) ** share:.3g}") for share in shares]
        return [(share, f"{self.low + (self.high - self.low) * share:.4g}") for share in shares]


def axis_of(table: SweepTable, name: str) -> Axis | None:
    """Return the axis of a column; None if it has no values or too many texts. Raises `Problem` for an unknown
    name."""
    at = table.column(name)
    cells = [row[at] for row in table.rows if row[at] is not None]
    numbers = [number for cell in cells if (number := as_float(cell)) is not None]
    finite = [number for number in numbers if math.isfinite(number)]
    if finite and len(numbers) == len(cells):
        low, high = min(finite), max(finite)
        return Axis(name, low, high, low > 0 and high / low >= LOG_FACTOR)
    names = tuple(dict.fromkeys(str(cell) for cell in cells))
    return Axis(name, 0, 0, False, names) if 0 < len(names) <= MOST_NAMES else None


def scatter(table: SweepTable, x: Axis, y: Axis) -> Markup:
    """Draw one point for each task that has both values."""
    inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    at_x, at_y = table.column(x.title), table.column(y.title)
    parts = []
    for share, text in _thinned(x.ticks, 6):
        px = LEFT + share * inner_w
        parts.append(f'<path class="grid" d="M{px:.0f} {TOP}v{inner_h}"/>')
        parts.append(_text("tick", px, HEIGHT - 18, text[:12], "middle"))
    for share, text in _thinned(y.ticks, 8):
        py = TOP + (1 - share) * inner_h
        parts.append(f'<path class="grid" d="M{LEFT} {py:.0f}h{inner_w}"/>')
        parts.append(_text("tick", LEFT - 6, py + 4, text[:10], "end"))
    parts.append(_text("axis", LEFT + inner_w / 2, HEIGHT - 3, x.title, "middle"))
    shown = 0
    for row in table.rows:
        place_x, place_y = x.place(row[at_x]), y.place(row[at_y])
        if place_x is None or place_y is None or shown >= MOST_POINTS:
            continue
        shown += 1
        px, py = LEFT + place_x * inner_w, TOP + (1 - place_y) * inner_h
        said = f"<title>{escape(str(row[0]))}: {escape(str(row[at_y]))}</title>" if len(table.rows) <= MOST_SAID else ""
        parts.append(f'<circle class="point" cx="{px:.1f}" cy="{py:.1f}" r="3.5">{said}</circle>')
    return _plot(parts, f"{y.title} against {x.title}, {shown} tasks")


def parallel(axes: Sequence[Axis], table: SweepTable) -> Markup:
    """Draw one line for each task through its values; darker for a larger value of the last axis."""
    axes = axes[:MOST_AXES]
    if len(axes) < 2:
        return Markup("")
    columns = [table.column(axis.title) for axis in axes]
    inner_h = HEIGHT - TOP - BOTTOM - 8
    gap = (WIDTH - 90) / (len(axes) - 1)
    xs = [45 + gap * at for at in range(len(axes))]
    rows = table.rows[:: max(1, -(-len(table.rows) // MOST_LINES))]
    parts = []
    for row in rows:
        places = [axis.place(row[column]) for axis, column in zip(axes, columns)]
        known = [(x, place) for x, place in zip(xs, places) if place is not None]
        if len(known) > 1:
            points = " ".join(f"{x:.0f},{TOP + 16 + (1 - place) * inner_h:.0f}" for x, place in known)
            shade = 1 + int((places[-1] or 0.0) * 3.99)
            parts.append(f'<polyline class="line q{shade}" points="{points}"/>')
    for axis, x in zip(axes, xs):
        parts.append(f'<path class="ruler" d="M{x:.0f} {TOP + 16}v{inner_h}"/>')
        parts.append(_text("axis", x, TOP + 4, axis.title[:16], "middle"))
        for share, text in _thinned(axis.ticks, 5):
            parts.append(_text("tick halo", x + 4, TOP + 16 + (1 - share) * inner_h + 3, text[:10]))
    return _plot(parts, f"{len(rows)} tasks as lines through {', '.join(axis.title for axis in axes)}")


def _text(css: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="{css}" x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'


def _plot(parts: Sequence[str], label: str) -> Markup:
    start = f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    return Markup(f"{start}{''.join(parts)}</svg>")


def _thinned(ticks: Sequence[tuple[float, str]], most: int) -> Sequence[tuple[float, str]]:
    return ticks[:: max(1, -(-len(ticks) // most))]
