"""The task graph against networkx as oracle, and its own invariants after every step."""

from __future__ import annotations

import networkx
from hypothesis import given, settings
from hypothesis import strategies as st

from boss.core.model.graph import TaskGraph
from boss.core.model.rows import TaskRow
from ecloud.model.tasks import ENDED, Condition, TaskState


@st.composite
def dags(draw: st.DrawFn) -> list[TaskRow]:
    """Rows whose dependencies point backwards, each with a condition."""
    count = draw(st.integers(1, 20))
    rows = []
    for number in range(count):
        earlier = draw(st.sets(st.integers(0, number - 1), max_size=4)) if number else set()
        edges = tuple((other, draw(st.sampled_from(Condition))) for other in sorted(earlier))
        state = TaskState.WAITING if edges else TaskState.READY
        rows.append(TaskRow(number, 1, f"t{number}", state=state, dependencies=edges))
    return rows


def expected_end(row: TaskRow, ends: dict[int, TaskState], wish: TaskState) -> TaskState:
    """The state of a task once all its dependencies have ended."""
    if all(condition.met_by(ends[other]) for other, condition in row.dependencies):
        return wish
    return TaskState.ABORTED


@given(dags(), st.data())
@settings(max_examples=200, deadline=None)
def test_every_task_ends_as_the_oracle_says(rows: list[TaskRow], data: st.DataObject) -> None:
    """Ending ready tasks in any order ends all tasks, each as its dependencies' ends demand."""
    wishes = {row.task_no: data.draw(st.sampled_from([TaskState.SUCCEEDED, TaskState.FAILED])) for row in rows}
    oracle = networkx.DiGraph()
    oracle.add_nodes_from(wishes)
    oracle.add_edges_from((other, row.task_no) for row in rows for other, _ in row.dependencies)
    by_no = {row.task_no: row for row in rows}
    expected: dict[int, TaskState] = {}
    for number in networkx.topological_sort(oracle):
        expected[number] = expected_end(by_no[number], expected, wishes[number])

    graph = TaskGraph()
    graph.add(rows)
    graph.check()
    ended: dict[int, TaskState] = {}
    ready = {row.task_no for row in rows if not row.dependencies}
    while ready:
        number = data.draw(st.sampled_from(sorted(ready)))
        ready.discard(number)
        ended[number] = graph.nodes[number].state = wishes[number]
        for freed in graph.end(number, wishes[number], f"task t{number}"):
            freed.node.state = freed.state
            if freed.state in ENDED:
                ended[freed.node.task_no] = freed.state
            else:
                ready.add(freed.node.task_no)
        graph.check()
    assert ended == expected
    assert graph.nodes == {}


@given(dags())
@settings(max_examples=50, deadline=None)
def test_levels_agree_with_the_oracle(rows: list[TaskRow]) -> None:
    """With successes only, tasks come free generation by generation."""
    rows = [
        TaskRow(
            row.task_no, 1, row.id, state=row.state, dependencies=tuple((n, Condition.ANY) for n, _ in row.dependencies)
        )
        for row in rows
    ]
    oracle = networkx.DiGraph((other, row.task_no) for row in rows for other, _ in row.dependencies)
    oracle.add_nodes_from(row.task_no for row in rows)
    graph = TaskGraph()
    graph.add(rows)
    ready = sorted(row.task_no for row in rows if not row.dependencies)
    generations = []
    while ready:
        generations.append(ready)
        following = []
        for number in ready:
            graph.nodes[number].state = TaskState.SUCCEEDED
            freed = graph.end(number, TaskState.SUCCEEDED, "")
            for item in freed:
                item.node.state = TaskState.READY
            following += [item.node.task_no for item in freed]
        ready = sorted(following)
    assert generations == [sorted(generation) for generation in networkx.topological_generations(oracle)]
