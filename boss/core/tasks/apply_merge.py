"""Applies a decision about a whole run: rows, graph, counts, attempts. Used by pushes and by user requests."""

from __future__ import annotations

from boss.core.model.outbox import Outbox
from boss.core.model.packed import drained
from boss.core.model.rows import RunImage
from boss.core.tasks.arrays import ends_in, load_arrays, made_in
from boss.core.tasks.attempts import Attempts
from boss.core.tasks.merging import Merge
from boss.core.tasks.taskbook import TaskBook
from ecloud.model.tasks import ENDED, TaskState


def overlay(image: RunImage, book: TaskBook) -> None:
    """Add to the image what only memory has: a task's row lacks the number of its assigned attempt."""
    for row in image.tasks:
        node = book.graph.nodes.get(row.task_no)
        if node is not None:
            row.state, row.reason = node.state, node.reason
            row.attempts, row.retries_used, row.not_before = node.attempts, node.retries_used, node.not_before


def apply(merged: Merge, image: RunImage, outbox: Outbox, book: TaskBook, attempts: Attempts, now: float) -> None:
    """Write the decision, stop attempts of redone and dropped tasks, and plant the tasks to be done.

    Uses the decision up: a push may have a million rows, which are freed while they become nodes of the graph.
    """
    writes, nodes = outbox.writes, book.graph.nodes
    run = book.run_of(image.run)
    writes.runs[run.row.run_no] = run.row
    book.release(run)
    writes.stored.extend(merged.stored, merged.bodies)
    writes.tasks.update(merged.moved)
    writes.dropped_tasks.extend(merged.dropped)
    known = {task_no for task_no in merged.disturbed if task_no in nodes}
    unwanted = []
    for task_no in known:
        node = nodes[task_no]
        if node.assigned:
            unwanted.append(attempts.active[(task_no, node.assigned)])
            node.assigned = 0
    attempts.stop(unwanted, "its task runs again or is dropped")
    attempts.shared_names.forget(run.row.run_no)
    again = known & set(run.inits)
    for task_no in again:
        del run.inits[task_no]
        run.init_done.discard(task_no)
    attempts.inits.forget(again)
    attempts.inits.try_again([row.task_no for row in image.tasks if row.init])
    # A task that ended early (cancelled) is not in the graph, but its dependencies may still have edges to it.
    rewired = {row.task_no for row in merged.rewired}
    book.graph.cut_edges_into([row for row in image.tasks if row.task_no in merged.disturbed or row.task_no in rewired])
    book.graph.remove(known)
    ended = [row for row in merged.stored if row.state in ENDED]
    arrays = [row for row in merged.rows.values() if row.elements is not None]
    if not arrays:
        merged.rows.clear()
    merged.stored.clear()
    merged.disturbed.clear()
    book.plant(drained(merged.planted), now)
    for attempt in unwanted:
        if attempt.task_no in nodes:  # with its attempt count, which the row of a waiting task may lack
            book.write(nodes[attempt.task_no])
    book.graph.rewire(merged.rewired)
    states = merged.states
    if image.is_part:
        states = {state: run.states.get(state, 0) + states.get(state, 0) for state in TaskState}
    if any(count for state, count in states.items() if state not in ENDED):
        book.plant([row for row in merged.inits if row.task_no not in nodes], now)
    for array_no in merged.dropped:
        book.forget_array(array_no)
    if arrays:
        made = made_in(merged.rows.values())
        closed = {row.task_no for row in arrays if row.state in ENDED and made.get(row.task_no, {}).keys() - ENDED}
        load_arrays(book, arrays, ends_in(merged.rows.values()), made, closed)
    book.recount(run, states)
    if run.row.run_no in book.ends:
        for row in ended:
            book.note_end(row)
