"""`admin.py timeline` and `graph`: a run as a picture in the terminal, as SVG, dot or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from datastore.problem import DONE, Problem
from ecloud.cli import app
from ecloud.cli.tables import STYLES, counts, print_json, print_table
from ecloud.config.settings import load_settings
from ecloud.model.text import counted, duration, visible, when
from ecloud.queries.critical_path import critical_path
from ecloud.queries.folded_graph import Folded, FoldNode, Zoom, fold
from ecloud.queries.graph_cells import graph_cells
from ecloud.queries.load import load
from ecloud.queries.timeline import BUCKETS, Lane
from ecloud.queries.timeline import timeline as read_timeline

BLOCKS = " ▁▂▃▄▅▆▇█"
SHADES = " ░▒▓█"
LANES_SHOWN = 30
NAME_CHARS = 14
PATH_SHOWN = 10


def timeline(run: str, svg: str, as_json: bool) -> int:
    """Draw a run's timeline. Raises `NoSuchRun`, `DatabaseAway`, `Problem`."""
    engine = app.database(load_settings())
    times, counts_of, path = read_timeline(engine, run), load(engine, run), critical_path(engine, run)
    span = times.span
    if as_json:
        print_json({"timeline": times, "load": counts_of, "critical_path": path})
        return DONE
    if span.is_empty:
        raise Problem(f"nothing of run {run} has started yet", "python admin.py why TASK gives the reason")
    if svg:
        from ecloud.web.documents import timeline_file

        _write(svg, timeline_file(run, times, counts_of, when(span.begin), when(span.end)))
        return DONE
    console = app.console()
    columns = max(20, min(BUCKETS, (console.width or 80) - NAME_CHARS - 12))
    for name, values, state in (
        ("waiting", counts_of.queued, "ready"), ("running", counts_of.running, "running"),
        ("VMs", counts_of.vms, "waiting"), ("ended", times.ended, "succeeded"),
    ):  # fmt: skip
        line = Text(f"{name:<{NAME_CHARS}}").append(_sparkline(values, columns), STYLES.get(state, ""))
        console.print(line.append(f"  ≤ {max(values, default=0):,}", "dim"))
    for lane in times.lanes[:LANES_SHOWN]:
        console.print(_lane(lane, span.bucket_s, columns))
    if len(times.lanes) > LANES_SHOWN:
        console.print(Text(f"{times.workers - LANES_SHOWN:,} more workers", "dim"))
    begin, end = when(span.begin), when(span.end)
    middle = duration(span.end - span.begin)
    console.print(Text(" " * NAME_CHARS + f"{begin}{middle:^{max(1, columns - len(begin) - len(end))}}{end}", "dim"))
    print()
    print("critical path, its last tasks:" if path.is_cut or len(path.steps) > PATH_SHOWN else "critical path:")
    for step in path.steps[-PATH_SHOWN:]:
        took = duration(step.ended_at - step.ready_at)
        print(f"  {visible(step.id)}: {took} after it was ready, most of it for {step.waited_for}")
    return DONE


def _sparkline(values: Sequence[float], columns: int) -> str:
    most = max(values, default=0) or 1
    heights = [max(values[part]) / most for part in _parts(len(values), columns)]
    return "".join(BLOCKS[min(8, -int(-height * 8 // 1))] for height in heights)


def _lane(lane: Lane, bucket_s: float, columns: int) -> Text:
    from ecloud.web.charts import busy_shares

    shares = busy_shares(lane, bucket_s)
    text = Text(f"{visible(lane.worker)[: NAME_CHARS - 1]:<{NAME_CHARS}}", "dim")
    for part in _parts(len(shares), columns):
        share = sum(shares[part]) / len(shares[part])
        bad = any(lane.busy[at][2] for at in range(part.start, part.stop) if at in lane.busy)
        shade = "×" if bad else SHADES[0 if share <= 0 else min(4, 1 + int(share * 3.99))]
        text.append(shade, STYLES["failed"] if bad else STYLES["succeeded"])
    return text


def _parts(count: int, columns: int) -> list[slice]:
    """Divide `count` values into columns, each of at least one value."""
    columns = min(columns, count)
    return [slice(at * count // columns, (at + 1) * count // columns) for at in range(columns)]


# --- graph --------------------------------------------------------------------------------------------


def graph(run: str, svg: str, dot: bool, kind: str, as_json: bool) -> int:
    """Draw a run's graph. Raises `NoSuchRun`, `DatabaseAway`, `Problem`."""
    cells = graph_cells(app.database(load_settings()), run)
    kinds = sorted({cell.kind for cell in cells.cells})
    if kind and kind not in kinds:
        raise Problem(f"run {run} has no tasks of kind {kind!r}; there are {', '.join(kinds[:20])}")
    folded = fold(cells, Zoom(kind))
    if as_json:
        print_json(folded)
    elif svg:
        from ecloud.web.documents import graph_file

        _write(svg, graph_file(run, folded))
    elif dot:
        print(_dot(run, folded), end="")
    else:
        _print_graph(folded)
    return DONE


def _print_graph(folded: Folded) -> None:
    after: dict[int, list[str]] = {}
    for source, target, count in sorted(folded.edges, key=lambda edge: -edge[2]):
        after.setdefault(source, []).append(f"{folded.nodes[target].title} ({count:,})")
    rows = []
    for at, node in enumerate(folded.nodes):
        leads = after.get(at, [])
        more = f", {len(leads) - 3} more" if len(leads) > 3 else ""
        rows.append(
            [_levels(node), visible(node.title), counts(node.states).plain, visible(", ".join(leads[:3])) + more]
        )
    print_table(app.console(), ["level", "tasks", "states", "needed by"], rows)
    if folded.left_out:
        print(f"{counted(folded.left_out, 'task')} more")


def _levels(node: FoldNode) -> str:
    zoom = node.zoom
    return str(zoom.first) if zoom.first == zoom.last else f"{zoom.first}-{zoom.last}"


def _dot(run: str, folded: Folded) -> str:
    """Format the graph for Graphviz; `dot -Tsvg` draws it."""
    lines = [f"digraph {_quoted(run)} {{", "  rankdir=LR; node [shape=box, style=rounded];"]
    for at, node in enumerate(folded.nodes):
        lines.append(f"  n{at} [label={_quoted(f'{node.title} ({node.count:,})')}];")
    lines += [f"  n{source} -> n{target} [label={count}];" for source, target, count in folded.edges]
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    shown = visible(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{shown}"'


def _write(file: str, text: str) -> None:
    if file == "-":
        print(text, end="")
        return
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise Problem(f"{file}: {error.strerror}") from None
    print(file)
