"""Pictures as SVG text, made on the server: bars, lanes, curves. Pure; colours come from the style sheet by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from ecloud.queries.timeline import BUCKETS, Timeline

ORDER = ("succeeded", "running", "ready", "waiting", "failed", "aborted", "cancelled")
"""States in a bar, from the left."""
LANE_PX = 7
FEW_LANES, FEW_LANES_PX = 20, 14
MIN_SHARE = 0.004
"""A part smaller than this is drawn as large: one failure of a million is seen."""


def bar(states: Mapping[str, int]) -> Markup:
    """Tasks by state as one bar of 100 units; the words stand beside it, in the page."""
    total = sum(states.values())
    if not total:
        return Markup('<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true"></svg>')
    shares = {state: max(MIN_SHARE, states[state] / total) for state in ORDER if states.get(state)}
    scale, at, parts = 100 / sum(shares.values()), 0.0, []
    for state, share in shares.items():
        width = share * scale
        parts.append(f'<rect class="s-{state}" x="{at:.2f}" y="0" width="{width:.2f}" height="4"/>')
        at += width
    return Markup(
        f'<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">{"".join(parts)}</svg>'
    )


def lanes(timeline: Timeline) -> Markup:
    """A lane for each worker: darker where more of a bucket was spent running; marked where attempts failed."""
    if not timeline.lanes:
        return Markup("")
    height = LANE_PX * len(timeline.lanes)
    shown_px = FEW_LANES_PX * len(timeline.lanes) if len(timeline.lanes) <= FEW_LANES else min(700, height)
    parts = []
    for index, lane in enumerate(timeline.lanes):
        y = index * LANE_PX
        cells = _spread(lane.busy, timeline.bucket_s)
        parts.append(f"<g><title>{escape(lane.worker)}</title>")
        parts.append(f'<rect class="lane" x="0" y="{y}" width="{BUCKETS}" height="{LANE_PX - 1}"/>')
        for bucket, width, busy in _runs(cells):
            level = min(4, 1 + int(busy * 3.99))
            parts.append(f'<rect class="b{level}" x="{bucket}" y="{y}" width="{width}" height="{LANE_PX - 1}"/>')
        for bucket, (_, _, bad) in lane.busy.items():
            if bad:
                parts.append(f'<rect class="bad" x="{bucket}" y="{y}" width="1" height="{LANE_PX - 1}"/>')
        parts.append("</g>")
    return Markup(
        f'<svg class="lanes" viewBox="0 0 {BUCKETS} {height}" preserveAspectRatio="none" height="{shown_px}" '
        f'role="img" aria-label="Time spent running, by worker">{"".join(parts)}</svg>'
    )


def _spread(busy: Mapping[int, tuple[int, float, int]], bucket_s: float) -> list[float]:
    """The share of each bucket that was spent running: what began in one bucket may last into those after it."""
    cells = [0.0] * BUCKETS
    for bucket, (count, seconds, _) in busy.items():
        if count and seconds / count > bucket_s:
            for later in range(bucket, min(BUCKETS, bucket + max(1, round(seconds / count / bucket_s)))):
                cells[later] += 1.0
        else:
            cells[bucket] += seconds / bucket_s
    return cells


def _runs(cells: Sequence[float]) -> list[tuple[int, int, float]]:
    """Neighbouring buckets of one shade together: start, length, share."""
    found: list[tuple[int, int, float]] = []
    for bucket, share in enumerate(cells):
        if share <= 0:
            continue
        shade = min(1.0, max(0.05, round(share * 4) / 4))
        if found and found[-1][0] + found[-1][1] == bucket and found[-1][2] == shade:
            begin, length, _ = found[-1]
            found[-1] = (begin, length + 1, shade)
        else:
            found.append((bucket, 1, shade))
    return found


def curve(values: Mapping[int, int], height: int = 48) -> Markup:
    """Counts by bucket as an area."""
    if not values:
        return Markup("")
    most = max(values.values())
    tops = [f"{height - height * values.get(bucket, 0) / most:.1f}" for bucket in range(BUCKETS)]
    points = " ".join(f"{bucket},{top} {bucket + 1},{top}" for bucket, top in enumerate(tops))
    return Markup(
        f'<svg class="curve" viewBox="0 0 {BUCKETS} {height}" preserveAspectRatio="none" height="{height}" role="img" '
        f'aria-label="Attempts that ended, over time"><polygon points="0,{height} {points} {BUCKETS},{height}"/></svg>'
    )


def parts_bar(parts: Mapping[str, float]) -> Markup:
    """The parts of VM time as one bar, in the order of the ledger."""
    total = sum(parts.values())
    if total <= 0:
        return Markup("")
    at, drawn = 0.0, []
    for name, seconds in parts.items():
        width = 100 * seconds / total
        drawn.append(f'<rect class="p-{name}" x="{at:.2f}" y="0" width="{width:.2f}" height="4"/>')
        at += width
    return Markup(
        f'<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">{"".join(drawn)}</svg>'
    )
