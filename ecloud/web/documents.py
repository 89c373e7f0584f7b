"""Charts as SVG files: the same SVG as on the pages, with embedded colours. Light theme, for use in documents."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import escape

from ecloud.queries.folded_graph import Folded
from ecloud.queries.load import Load
from ecloud.queries.timeline import Timeline
from ecloud.web import charts, graph_charts

WIDTH = 1_200
LEFT = 150
STEPS_PX = 44
MARGIN = 16
STYLE = """
svg { background: #fff; font: 13px system-ui, sans-serif; } text { fill: #1f2328; } .dim, .under { fill: #57606a; }
.s-succeeded { fill: #1f6feb; } .s-running { fill: #79aee8; } .s-ready { fill: #b6bec8; } .s-waiting { fill: #e3e7ec; }
.s-failed { fill: #c2410c; } .s-aborted { fill: #e0a458; } .s-cancelled { fill: #8b949e; } .p-booting { fill: #e0a458; }
.lane { fill: #f6f8fa; } .b1, .b2, .b3, .b4, .bad { fill: none; stroke: #1f6feb; stroke-width: 6; }
.b1 { opacity: .3; } .b2 { opacity: .5; } .b3 { opacity: .75; } .bad { stroke: #c2410c; }
.box { fill: #f6f8fa; stroke: #d8dee4; } .name { font-size: 12px; } .under { font-size: 11px; }
.edge { fill: none; stroke: #8b949e; opacity: .55; } .e2 { stroke-width: 2; } .e3 { stroke-width: 3; }
""".strip()


def timeline_file(run: str, times: Timeline, load: Load, begin: str, end: str) -> str:
    """Draw a run's timeline and load as one picture. `begin`, `end`: formatted times."""
    rows: list[tuple[str, Sequence[float], str]] = [
        ("waiting", load.queued, "s-ready"),
        ("running", load.running, "s-running"),
        ("VMs", load.vms, "p-booting"),
        ("ended", times.ended, "s-succeeded"),
    ]
    parts = [f'<text x="{MARGIN}" y="28">Run {escape(run)}</text>']
    y, inner = 44, WIDTH - LEFT - MARGIN
    for name, values, css in rows:
        parts.append(f'<text x="{MARGIN}" y="{y + 20}">{name}</text>')
        parts.append(f'<text class="dim" x="{MARGIN}" y="{y + 37}">at most {max(values, default=0):,}</text>')
        parts.append(_inside(str(charts.steps(values, css, name)), LEFT, y, inner, STEPS_PX))
        y += STEPS_PX + 10
    if times.lanes:
        height = min(600, max(60, len(times.lanes) * 10))
        parts.append(f'<text x="{MARGIN}" y="{y + 18}">{times.workers:,} workers</text>')
        parts.append(_inside(str(charts.lanes(times)), LEFT, y, inner, height))
        y += height + 6
    parts.append(f'<text class="dim" x="{LEFT}" y="{y + 14}">{escape(begin)}</text>')
    parts.append(f'<text class="dim" x="{WIDTH - MARGIN}" y="{y + 14}" text-anchor="end">{escape(end)}</text>')
    return _document(WIDTH, y + 30, "".join(parts))


def graph_file(run: str, folded: Folded) -> str:
    """Draw a folded graph as one picture."""
    drawn = str(graph_charts.folded_graph(folded, run, lambda node: ""))
    size = re.search(r'width="(\d+)" height="(\d+)"', drawn)
    width, height = (int(size[1]), int(size[2])) if size else (400, 60)
    return _document(width, height, drawn)


def _inside(svg: str, x: int, y: int, width: int, height: int) -> str:
    """Embed a picture in another one."""
    head, _, rest = svg.partition(">")
    head = re.sub(r' height="\d+"', "", head).replace(
        "<svg", f'<svg x="{x}" y="{y}" width="{width}" height="{height}"', 1
    )
    return f"{head}>{rest}"


def _document(width: int, height: int, inside: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<style>{STYLE}</style><rect width="{width}" height="{height}" fill="#fff"/>{inside}</svg>\n'
    )
