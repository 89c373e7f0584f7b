"""Graphs as SVG text: boxes in columns, curves between them. They contain text and are not stretched; wide ones
scroll."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlencode

import msgspec
from markupsafe import Markup, escape

from ecloud.queries.folded_graph import Folded, FoldNode
from ecloud.queries.neighbourhood import Neighbourhood
from ecloud.web.charts import MIN_SHARE, ORDER

BOX_W, BOX_H = 164, 44
GAP_X, GAP_Y = 56, 14
MARGIN = 6
TITLE_CHARS = 22
MOST_EDGES = 400
"""Maximum number of edges to draw; those with the largest weight are kept."""
SIGNS = {
    "succeeded": "✓", "failed": "✗", "running": "▶", "ready": "○", "waiting": "…", "aborted": "⊘", "cancelled": "⊗",
}  # fmt: skip


class Box(msgspec.Struct, frozen=True):
    """A box. `under`: its second line; `href`: empty for the page's own task."""

    title: str
    under: str
    states: Mapping[str, int]
    column: int
    row: int
    href: str = ""


def boxes(found: Sequence[Box], edges: Sequence[tuple[int, int, int]], label: str) -> Markup:
    """Draw boxes in their columns, and edges as (from, to, weight) between them. Each column is centred."""
    if not found:
        return Markup("")
    rows = Counter[int]()
    for box in found:
        rows[box.column] = max(rows[box.column], box.row + 1)
    tallest, columns = max(rows.values()), max(rows) + 1
    width = 2 * MARGIN + columns * BOX_W + (columns - 1) * GAP_X
    height = 2 * MARGIN + tallest * BOX_H + (tallest - 1) * GAP_Y

    def place(box: Box) -> tuple[float, float]:
        x = MARGIN + box.column * (BOX_W + GAP_X)
        return x, MARGIN + (box.row + (tallest - rows[box.column]) / 2) * (BOX_H + GAP_Y)

    heaviest = sorted(edges, key=lambda edge: -edge[2])[:MOST_EDGES]
    most = max((weight for _, _, weight in heaviest), default=1)
    drawn = [_curve(place(found[source]), place(found[target]), weight, most) for source, target, weight in heaviest]
    drawn += [_box(box, *place(box)) for box in found]
    return Markup(
        f'<svg class="graph" width="{width}" height="{height:.0f}" viewBox="0 0 {width} {height:.0f}" role="group" '
        f'aria-label="{escape(label)}">{"".join(drawn)}</svg>'
    )


def _curve(start: tuple[float, float], end: tuple[float, float], weight: int, most: int) -> str:
    x0, y0, x1, y1 = start[0] + BOX_W, start[1] + BOX_H / 2, end[0], end[1] + BOX_H / 2
    if end[0] <= start[0]:  # within a column: curve outside the boxes
        x1 = end[0] + BOX_W
        bend = f"C{x0 + GAP_X * 0.7:.0f} {y0:.0f} {x1 + GAP_X * 0.7:.0f} {y1:.0f} {x1:.0f} {y1:.0f}"
    else:
        middle = (x0 + x1) / 2
        bend = f"C{middle:.0f} {y0:.0f} {middle:.0f} {y1:.0f} {x1:.0f} {y1:.0f}"
    css = "e3" if weight > most * 0.5 and most > 1 else "e2" if weight > most * 0.1 and most > 1 else "e1"
    return f'<path class="edge {css}" d="M{x0:.0f} {y0:.0f}{bend}"/>'


def _box(box: Box, x: float, y: float) -> str:
    title = box.title if len(box.title) <= TITLE_CHARS else f"{box.title[: TITLE_CHARS - 1]}…"
    css = "box here" if not box.href else "box"
    inside = (
        f"<title>{escape(box.title)}: {escape(box.under)}</title>"
        f'<rect class="{css}" x="{x:.0f}" y="{y:.0f}" width="{BOX_W}" height="{BOX_H}" rx="5"/>'
        f'<text class="name" x="{x + 8:.0f}" y="{y + 16:.0f}">{escape(title)}</text>'
        f'<text class="under" x="{x + 8:.0f}" y="{y + 30:.0f}">{escape(box.under[:30])}</text>'
        f"{_state_bar(box.states, x + 8, y + BOX_H - 9, BOX_W - 16)}"
    )
    return f'<a href="{escape(box.href)}">{inside}</a>' if box.href else f"<g>{inside}</g>"


def _state_bar(states: Mapping[str, int], x: float, y: float, width: float) -> str:
    total = sum(states.values())
    if not total:
        return ""
    shares = {state: max(MIN_SHARE * 5, states[state] / total) for state in ORDER if states.get(state)}
    scale, parts = width / sum(shares.values()), []
    for state, share in shares.items():
        parts.append(f'<rect class="s-{state}" x="{x:.1f}" y="{y:.0f}" width="{share * scale:.1f}" height="4"/>')
        x += share * scale
    return "".join(parts)


# --- drawing ------------------------------------------------------------------------------------------


def folded_graph(folded: Folded, run: str, link: Callable[[FoldNode], str]) -> Markup:
    """Draw a run's graph. `link`: returns the URL of a node."""
    found = [
        Box(node.title, _under(node), node.states, node.column, node.row, link(node) if link(node) else "")
        for node in folded.nodes
    ]
    return boxes(found, folded.edges, f"Tasks of run {run} by level and label")


def _under(node: FoldNode) -> str:
    if node.task:
        state = next(iter(node.states))
        return f"{SIGNS.get(state, '·')} {state}"
    failed = node.states.get("failed", 0)
    levels = f"level {node.zoom.first}" if node.zoom.first == node.zoom.last else (
        f"levels {node.zoom.first}–{node.zoom.last}"
    )  # fmt: skip
    return f"{node.count:,} tasks, " + (f"✗ {failed:,} failed" if failed else levels)


def neighbours(near: Neighbourhood) -> Markup:
    """Draw a task in the middle, its dependencies on the left, its dependents on the right."""
    first = min(one.step for one in near.tasks)
    rows: Counter[int] = Counter()
    places: dict[int, int] = {}
    found: list[Box] = []
    for one in near.tasks:
        places[one.task_no] = len(found)
        href = "/task?" + urlencode({"run": near.run, "id": one.id}) if one.step else ""
        under = f"{SIGNS.get(one.state, '·')} {one.state}"
        found.append(Box(one.id, under, {one.state: 1}, one.step - first, rows[one.step], href))
        rows[one.step] += 1
    for step, count in near.more.items():
        found.append(Box(f"{count:,} more", "not shown", {}, step - first, rows[step], ""))
    edges = [(places[source], places[target], 1) for source, target in near.edges]
    return boxes(found, edges, "What this task depends on and what depends on it")
