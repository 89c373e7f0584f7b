"""What the monitor asks, of SQLite and MariaDB, about a history whose answers are known."""

from __future__ import annotations

import random

import monitored
import pytest
import sqlalchemy as sa
from monitored import LABELS, RUN, SWEEP, fill
from sqlalchemy.engine import Engine

from ecloud.db import schema
from ecloud.queries import browse as browsing
from ecloud.queries.browse import browse
from ecloud.queries.critical_path import critical_path
from ecloud.queries.failures import failed_in_group, failure_groups
from ecloud.queries.folded_graph import fold
from ecloud.queries.graph_cells import graph_cells
from ecloud.queries.ledger import ledger_now
from ecloud.queries.ledger_history import SLICES, ledger_history
from ecloud.queries.load import load
from ecloud.queries.neighbourhood import COLUMN_SHOWN, neighbourhood
from ecloud.queries.sweep import sweep_tasks
from ecloud.queries.sweep_table import last_sweep_table
from ecloud.queries.timeline import BUCKETS, timeline
from ecloud.web.metrics import exposition

TASKS = 400


@pytest.fixture
def filled(engine: Engine) -> Engine:
    fill(engine, TASKS)
    return engine


def test_all_pictures_of_a_history_agree(filled: Engine) -> None:
    times, counts = timeline(filled, RUN), load(filled, RUN)
    assert len(times.lanes) == times.workers == 40
    assert sum(times.ended) == TASKS
    assert sum(count for lane in times.lanes for count, _, _ in lane.busy.values()) == TASKS
    assert sum(bad for lane in times.lanes for _, _, bad in lane.busy.values()) == TASKS // 97 + 1
    assert counts.span == times.span
    assert max(counts.running) >= 5
    assert counts.queued[-1] == counts.running[-1] == 0, "all has ended"
    assert counts.queued[0] > TASKS // 8, "a whole level waits at the beginning"
    assert max(counts.vms) == 40
    assert len(counts.vms) == BUCKETS

    graph = graph_cells(filled, RUN)
    picture = fold(graph)
    assert [(node.title, node.count, node.column) for node in picture.nodes] == [
        (label, TASKS // 4, column) for column, label in enumerate(LABELS)
    ]
    assert sum(node.states.get("failed", 0) for node in picture.nodes) == TASKS // 97 + 1

    path = critical_path(filled, RUN)
    assert [step.id.partition("-")[0] for step in path.steps] == list(LABELS)
    assert not path.is_cut
    for step in path.steps:
        parts = step.tries_s + step.queue_s + step.fetch_s + step.run_s + step.store_s
        assert parts == pytest.approx(step.ended_at - step.ready_at)
    for before, after in zip(path.steps, path.steps[1:]):
        assert after.ready_at == before.ended_at
    assert critical_path(filled, RUN, limit=2).is_cut

    near = neighbourhood(filled, "align-0000150", RUN)
    assert {one.step for one in near.tasks} == {-1, 0, 1, 2}
    assert all(before < after for before, after in near.edges)

    history, books = ledger_history(filled), ledger_now(filled)
    for part, seconds in books.total.parts.items():
        assert sum(history.parts[part]) == pytest.approx(seconds, abs=0.01), part
    most = max(sum(column) for column in zip(*history.parts.values()))
    assert most <= 40 * history.slice_s * 1.001, "forty VMs have forty seconds in a second"

    table = last_sweep_table(sweep_tasks(filled, SWEEP))
    assert table.parameters == ["lr", "batch", "optimizer"]
    assert table.metrics == ["accuracy", "loss", "epochs"]

    values = dict(
        line.rsplit(" ", 1) for line in exposition(filled, books).decode().splitlines() if not line.startswith("#")
    )
    assert float(values['ecloud_vm_boot_seconds_count{pool="small"}']) == 14
    assert float(values['ecloud_pool_closed{pool="spot"}']) == 1
    assert len(values) < 300


def test_a_group_of_failures_is_named_and_its_tasks_are_found(filled: Engine) -> None:
    groups = failure_groups(filled, RUN).groups
    assert sum(group.count for group in groups) == TASKS // 97 + 1
    assert len({group.key for group in groups}) == len(groups)
    for group in groups:
        again, ids = failed_in_group(filled, RUN, group.key)
        assert again is not None
        assert (again.line, len(ids)) == (group.line, group.count)
    assert failed_in_group(filled, RUN, "nothing") == (None, [])


def test_a_text_is_searched_for_in_bounded_steps(filled: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browsing, "SEARCHED", 150)
    found: list[str] = []
    after: int | None = 0
    pages = 0
    while after is not None:
        page = browse(filled, RUN, text="merge-00003", after=after)
        found += [row.id for row in page.rows]
        assert page.more_after is None or page.searched == 150
        after, pages = page.more_after, pages + 1
    assert len(found) == 100
    assert pages == 4


def test_a_task_with_very_many_dependents_shows_some_and_counts_all(filled: Engine) -> None:
    with filled.connect().execution_options(writes=True) as connection, connection.begin():
        known = set(connection.execute(sa.select(schema.dependencies.c.task_no)).scalars())
        edges = [{"task_no": no, "on_task_no": 1, "met_by": "success"} for no in range(2, 101) if no not in known]
        connection.execute(schema.dependencies.insert(), edges)
        late = schema.tasks.c.task_no.in_((70, 90))
        connection.execute(schema.tasks.update().where(late).values(state="failed"))
    near = neighbourhood(filled, "prepare-0000000", RUN)
    assert {70, 90} <= {one.task_no for one in near.tasks}, "those that failed are among the shown"
    assert sum(one.step == 1 for one in near.tasks) == COLUMN_SHOWN
    assert near.more[1] >= 90


@pytest.mark.parametrize("seed", range(5))
def test_a_vm_that_did_one_thing_has_the_same_in_each_slice(engine: Engine, seed: int) -> None:
    fill(engine, 20)
    chance = random.Random(seed)
    begin = 1_796_032_135 + chance.random()
    end = begin + chance.uniform(20, 90)
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(schema.attempts.delete())
        connection.execute(schema.vms.delete().where(schema.vms.c.vm_no > 1))
        connection.execute(schema.vms.update().values(started_at=begin, intended_at=begin, hello_at=begin, gone_at=end))
        connection.execute(schema.vms.update().values(ending_at=None))
    history = ledger_history(engine)
    assert history.parts["idle"] == pytest.approx([history.slice_s] * SLICES, abs=1e-5)


def test_a_run_without_tasks_that_started_is_empty_everywhere(engine: Engine) -> None:
    fill(engine, 20)
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        row = {"run_no": 3, "name": "empty", "created_at": 1.0, "held": "", "ended_at": None}
        connection.execute(schema.runs.insert(), row)
    assert load(engine, "empty").span.is_empty
    assert timeline(engine, "empty").lanes == []
    assert critical_path(engine, "empty").steps == []
    assert fold(graph_cells(engine, "empty")).nodes == []


def test_the_rows_that_the_database_makes_are_those_of_a_short_history(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`large_history`, with which the long test fills a million rows, against the rows made one by one."""
    monkeypatch.setattr(monitored, "ROWS_ONE_BY_ONE", 10)
    history = monitored.History(997, False, random.Random(1))
    history.write(engine)
    names = ("task_no", "id", "state", "reason", "attempts", "labels")
    asked = ("task_no", "worker", "cause", "exit_code", "stderr", "error")
    with engine.connect() as connection:
        for table, columns, made in (
            (schema.tasks, names, history._task_rows(1)),
            (schema.definitions, ("task_no", "definition"), history._definition_rows(1)),
            (schema.dependencies, ("task_no", "on_task_no"), history._edge_rows(1)),
            (schema.attempts, asked, history._attempt_rows(1)),
        ):
            found = connection.execute(sa.select(*(table.c[name] for name in columns)).where(table.c.task_no <= 997))
            assert sorted(map(tuple, found)) == sorted(tuple(row[name] for name in columns) for row in made)
