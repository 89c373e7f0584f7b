"""The monitor's pictures: a graph folds to what a screen holds, and a page stays small however large the run is."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ElementTree

import pytest
from monitored import EVIL

from ecloud.queries.folded_graph import MOST_BANDS, MOST_NODES, Folded, Zoom, fold
from ecloud.queries.graph_cells import Cell, CellTask, GraphCells
from ecloud.queries.neighbourhood import Near, Neighbourhood
from ecloud.queries.sweep_table import SweepTable
from ecloud.queries.timeline import BUCKETS, Lane, Span, Timeline
from ecloud.web import charts, graph_charts, sweep_charts
from ecloud.web.rendering import aligned

PAGE_BYTES = 60_000


def cells(levels: int, kinds: int, tasks: int) -> GraphCells:
    """A graph of this many levels and kinds, each cell of `tasks`, each leading to the next level."""
    made = []
    for level in range(levels):
        for kind in range(kinds):
            first = 1 + (level * kinds + kind) * tasks
            sample = [CellTask(no, f"t{no}", "succeeded") for no in range(first, first + min(tasks, 48))]
            made.append(Cell(level, f"kind {kind}", {"succeeded": tasks}, sample))
    edges = {(at, at + kinds): tasks for at in range(len(made) - kinds)}
    return GraphCells(made, edges, levels * kinds * tasks, 0.0)


def opened(graph: GraphCells, folded: Folded) -> list[Folded]:
    return [fold(graph, node.zoom) for node in folded.nodes if not node.task]


@pytest.mark.parametrize(
    ("levels", "kinds", "tasks"), [(1, 1, 1), (3, 4, 10), (1_000, 1, 1), (5, 24, 9), (400, 20, 50)]
)
def test_a_graph_folds_to_sixty_nodes_and_opens_down_to_its_tasks(levels: int, kinds: int, tasks: int) -> None:
    graph = cells(levels, kinds, tasks)
    picture = fold(graph)
    assert picture.tasks == graph.tasks
    for _ in range(6):
        assert len(picture.nodes) <= MOST_NODES
        assert picture.left_out + sum(node.count for node in picture.nodes) == picture.tasks, "no task is lost"
        if all(node.task for node in picture.nodes):
            break
        assert max(node.column for node in picture.nodes) < MOST_BANDS
        picture = max(opened(graph, picture), key=lambda one: one.tasks)
    assert all(node.task for node in picture.nodes), "six steps lead to single tasks"
    drawn = graph_charts.folded_graph(picture, "r", lambda node: f"/task?id={node.task}")
    assert len(ElementTree.fromstring(str(drawn)).findall("a")) == len(picture.nodes)


def test_an_unknown_part_of_a_graph_is_empty() -> None:
    assert fold(cells(2, 2, 30), Zoom("no such kind")).nodes == []


def busy_timeline(workers: int) -> Timeline:
    chance = random.Random(3)
    lanes = [
        Lane(f"w{EVIL}{at}", {b: (9, chance.uniform(0, 30), chance.randrange(2)) for b in range(BUCKETS)})
        for at in range(workers)
    ]
    return Timeline(Span(0.0, 30.0 * BUCKETS), lanes, [chance.randrange(99) for _ in range(BUCKETS)], workers)


@pytest.mark.parametrize("workers", [1, 21, 200])
def test_lanes_are_well_formed_small_and_escaped(workers: int) -> None:
    drawn = str(charts.lanes(busy_timeline(workers)))
    assert len(ElementTree.fromstring(drawn).findall("g")) == workers
    assert len(drawn) < 3 * PAGE_BYTES // 2
    assert "<script" not in drawn


def test_a_single_failure_of_a_million_is_seen() -> None:
    drawn = ElementTree.fromstring(str(charts.bar({"succeeded": 999_999, "failed": 1})))
    widths = {part.get("class"): float(part.get("width", 0)) for part in drawn}
    assert widths["s-failed"] > 0.3
    assert sum(widths.values()) == pytest.approx(100, abs=0.1)


def test_what_lasts_is_one_step_of_a_curve_and_parts_stand_on_each_other() -> None:
    flat = str(charts.steps([5.0] * BUCKETS, "s-running", "flat"))
    assert flat.count(",") < 10
    drawn = ElementTree.fromstring(
        str(charts.stacked({"running": [1.0, 2.0], "idle": [1.0, 0.0], "lost": [0, 0]}, "x"))
    )
    assert [part.get("class") for part in drawn] == ["p-idle", "p-running"], "the lower parts are drawn over the upper"
    assert charts.steps([0.0] * BUCKETS, "s-running", "nothing")


def test_neighbours_link_to_their_pages_but_the_middle_does_not() -> None:
    near = Neighbourhood(
        f"r {EVIL}", [Near(1, EVIL, "succeeded", -1), Near(2, "b", "failed", 0), Near(3, "c", "waiting", 2)],
        [(1, 2), (2, 3)], {2: 1_234},
    )  # fmt: skip
    drawn = ElementTree.fromstring(str(graph_charts.neighbours(near)))
    assert "1,234 more" in [text.text for text in drawn.iter("text")]
    assert len(drawn.findall("a")) == 2
    assert len(drawn.findall("path")) == 2


def test_axes_of_a_sweep_hold_numbers_texts_and_powers_of_ten() -> None:
    rows = [[f"t{at}", str(10.0**-at), opt, "succeeded", 1.0, at * 0.1] for at, opt in enumerate(["adam", "sgd", EVIL])]
    rows.append(["t9", None, "adam", "failed", None, float("nan")])
    table = SweepTable(["task", "lr", "opt", "state", "run_s", "loss"], rows, ["lr", "opt"], ["loss"])
    lr, opt, loss = (sweep_charts.axis_of(table, name) for name in ("lr", "opt", "loss"))
    assert lr is not None
    assert opt is not None
    assert loss is not None
    assert lr.is_log
    assert lr.place("0.1") == pytest.approx(0.5)
    assert lr.place(None) is None
    assert opt.names == ("adam", "sgd", EVIL)
    assert loss.place(float("nan")) is None
    drawn = ElementTree.fromstring(str(sweep_charts.scatter(table, lr, loss)))
    assert len(drawn.findall("circle")) == 3
    lines = ElementTree.fromstring(str(sweep_charts.parallel([lr, opt, loss], table)))
    assert len(lines.findall("polyline")) == 3


def test_numbers_of_a_column_have_their_points_below_each_other() -> None:
    assert aligned([1e-9, 2.5]) == ["1e-09", "2.5"]
    assert aligned([3.0, 4.0]) == ["3", "4"]
    assert aligned([]) == []
    told = aligned([0.267, 10.0, None, 12.5])
    assert [text.replace("\u2007", "_").replace("\u2008", ",") for text in told] == [
        "0.267",
        "10,___",
        "–,___",
        "12.5__",
    ]
