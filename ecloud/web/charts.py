"""Charts as SVG text, made on the server: bars, lanes, curves. Pure; the style sheet sets colours by class.

Charts are stretched to the page's width, so they contain no text: the page shows labels and numbers beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from ecloud.queries.timeline import BUCKETS, Lane, Timeline

ORDER = ("succeeded", "running", "ready", "waiting", "failed", "aborted", "cancelled")
"""States in a bar, from left to right."""
LANE_PX = 7
FEW_LANES, FEW_LANES_PX = 20, 14
MOST_LANES_PX = 700
MOST_PARTS = 4_500
"""Maximum number of parts in all lanes together, for pages below 100 KB. Above it, neighbouring columns are merged."""
MIN_SHARE = 0.004
"""Minimum share of a part in the bar, so that one failure of a million is visible."""
SHADES = 4


def bar(states: Mapping[str, int]) -> Markup:
    """Draw tasks by state as one bar of 100 units; the page shows the numbers beside it."""
    total = sum(states.values())
    if not total:
        return _svg("bar", 100, 4, "")
    shares = {state: max(MIN_SHARE, states[state] / total) for state in ORDER if states.get(state)}
    return _bar({f"s-{state}": share for state, share in shares.items()})


def parts_bar(parts: Mapping[str, float]) -> Markup:
    """Draw the parts of VM time as one bar, in the order of the ledger."""
    return _bar({f"p-{name}": seconds for name, seconds in parts.items()}) if sum(parts.values()) > 0 else Markup("")


def _bar(amounts: Mapping[str, float]) -> Markup:
    scale, at, parts = 100 / sum(amounts.values()), 0.0, []
    for css, amount in amounts.items():
        width = amount * scale
        if width > 0:
            parts.append(f'<rect class="{css}" x="{at:.2f}" y="0" width="{width:.2f}" height="4"/>')
        at += width
    return _svg("bar", 100, 4, "".join(parts))


def _svg(css: str, width: float, height: float, inside: str, shown_px: int | None = None, label: str = "") -> Markup:
    """Make a stretched picture. Without a label it is hidden from screen readers, since the page has the same as
    text."""
    said = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    size = "" if shown_px is None else f' height="{shown_px}"'
    return Markup(
        f'<svg class="{css}" viewBox="0 0 {width:g} {height:g}" preserveAspectRatio="none"{size} {said}>{inside}</svg>'
    )


# --- lanes --------------------------------------------------------------------------------------------


def lanes(timeline: Timeline) -> Markup:
    """Draw a lane for each worker: darker if more of a bucket was spent running; marked if attempts failed."""
    if not timeline.lanes:
        return Markup("")
    height = LANE_PX * len(timeline.lanes)
    few = len(timeline.lanes) <= FEW_LANES
    shown_px = FEW_LANES_PX * len(timeline.lanes) if few else min(MOST_LANES_PX, height)
    together = 1
    drawn = [_parts(lane, timeline.span.bucket_s, together) for lane in timeline.lanes]
    while sum(map(len, drawn)) > MOST_PARTS and together < BUCKETS:
        together *= 2
        drawn = [_parts(lane, timeline.span.bucket_s, together) for lane in timeline.lanes]
    inside = "".join(
        _lane(lane.worker, parts, index * LANE_PX) for index, (lane, parts) in enumerate(zip(timeline.lanes, drawn))
    )
    return _svg("lanes", BUCKETS, height, inside, shown_px, "Time spent running, by worker")


Part = tuple[str, int, int]
"""Class, first bucket, number of buckets."""


def _lane(worker: str, parts: Sequence[Part], y: int) -> str:
    """Draw one path for each shade: lines as thick as the lane (`stroke-width` of the style sheet), which are half as
    long to write as rectangles."""
    paths: dict[str, list[str]] = {}
    for css, first, length in parts:
        paths.setdefault(css, []).append(f"M{first} {y + (LANE_PX - 1) // 2}h{length}")
    drawn = "".join(f'<path class="{css}" d="{"".join(moves)}"/>' for css, moves in paths.items())
    back = f'<path class="lane" d="M0 {y}h{BUCKETS}v{LANE_PX - 1}H0z"/>'
    return f"<g><title>{escape(worker)}</title>{back}{drawn}</g>"


def _parts(lane: Lane, bucket_s: float, together: int) -> list[Part]:
    """Merge neighbouring columns of one shade into one part; add failures, which are drawn on top."""
    cells = busy_shares(lane, bucket_s)
    found: list[tuple[int, int, int]] = []
    for first in range(0, BUCKETS, together):
        some = cells[first : first + together]
        share = sum(some) / len(some)
        shade = 0 if share <= 0 else min(SHADES, 1 + int(share * (SHADES - 0.01)))
        if found and found[-1][0] == shade:
            found[-1] = (shade, found[-1][1], found[-1][2] + len(some))
        else:
            found.append((shade, first, len(some)))
    parts = [(f"b{shade}", first, length) for shade, first, length in found if shade]
    bad = sorted({bucket // together * together for bucket, (_, _, wrong) in lane.busy.items() if wrong})
    return parts + [("bad", first, min(together, BUCKETS - first)) for first in bad]


def busy_shares(lane: Lane, bucket_s: float) -> list[float]:
    """Return the share of each bucket that was spent running; attempts that began in one bucket may extend into later
    ones."""
    cells = [0.0] * BUCKETS
    for bucket, (count, seconds, _) in lane.busy.items():
        if count and seconds / count > bucket_s:
            for later in range(bucket, min(BUCKETS, bucket + max(1, round(seconds / count / bucket_s)))):
                cells[later] += 1.0
        else:
            cells[bucket] += seconds / bucket_s
    return cells


# --- over time ----------------------------------------------------------------------------------------


def steps(values: Sequence[float], css: str, label: str, height: int = 44) -> Markup:
    """Draw numbers over time as an area of steps, scaled to the largest of them."""
    most = max(values, default=0) or 1
    points = _outline([height * value / most for value in values], height)
    inside = f'<polygon class="{css}" points="0,{height} {points} {len(values)},{height}"/>'
    return _svg("steps", len(values), height, inside, height, label)


def _outline(heights: Sequence[float], base: float) -> str:
    """Return the upper edge of the steps; equal neighbours become one step."""
    points: list[str] = []
    for at, height in enumerate(heights):
        if not at or height != heights[at - 1]:
            points.append(f"{at},{base - height:.1f}")
        if at + 1 == len(heights) or heights[at + 1] != height:
            points.append(f"{at + 1},{base - height:.1f}")
    return " ".join(points)


def stacked(parts: Mapping[str, Sequence[float]], label: str, height: int = 160) -> Markup:
    """Draw several stacked series, the first at the bottom. Classes are `p-` and the name."""
    width = max(map(len, parts.values()), default=0)
    tops = [0.0] * width
    most = max((sum(column) for column in zip(*parts.values())), default=0.0) or 1.0
    layers = []
    for name, values in parts.items():
        tops = [top + value for top, value in zip(tops, values)]
        if any(values):
            points = _outline([height * top / most for top in tops], height)
            layers.append(f'<polygon class="p-{escape(name)}" points="0,{height} {points} {width},{height}"/>')
    return _svg("stacked", width, height, "".join(reversed(layers)), height, label)
