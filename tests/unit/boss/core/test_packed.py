"""Long lists are held encoded, and read part by part as often as necessary."""

from __future__ import annotations

import pytest

from boss.core.model.packed import ITEMS_A_PART, Packed, drained
from boss.core.model.rows import ArrayRow, Body, StoredTasks, TaskRow, TaskStored
from ecloud.model.tasks import Cause, Condition, Retries, TaskState

MANY = 2 * ITEMS_A_PART + 10


def full_row(number: int) -> TaskRow:
    """A row in which no field has its default."""
    return TaskRow(
        task_no=number, run_no=2, id=f"täsk {number}", state=TaskState.FAILED, reason="it \N{SKULL}", attempts=3,
        retries_used=1, not_before=1e9 + 0.1, init=True, priority=-5, asks={"cpus": 0.5, "licence": 2.0},
        runtime_s=0.1, label="train", retries=Retries(2, (Cause.MEMORY,), 1.5), keep_dir=True, body_bytes=77,
        definition_hash="0f" * 16, dependencies=((1, Condition.ANY), (2, Condition.SUCCESS)), inputs=("a", "b"),
        makes=2, array=9,
        elements=ArrayRow(
            number, 2, 100, "1-3", "0-2", {"ready": 3}, 3, "ready", ((4, Condition.FAILURE),), b"{}", (b"\x00\xff",)
        ),
    )  # fmt: skip


def test_the_full_row_of_this_test_has_no_default() -> None:
    assert not [
        name for name in TaskRow.__struct_fields__ if getattr(full_row(1), name) == getattr(TaskRow(0, 0, ""), name)
    ]


@pytest.mark.parametrize("count", [0, 1, ITEMS_A_PART - 1, ITEMS_A_PART, MANY])
def test_a_list_returns_its_items_as_often_as_it_is_read(count: int) -> None:
    rows = [full_row(number) for number in range(count)]
    packed = Packed(TaskRow, rows)
    assert len(packed) == count
    assert list(packed) == rows
    assert list(packed) == rows


def test_lists_are_joined_in_order() -> None:
    packed = Packed(int, range(5))
    packed.add_packed(Packed(int, range(5, MANY)))
    packed.add_packed(Packed(int, range(MANY, MANY + 3)))
    assert list(packed) == list(range(MANY + 3))
    assert len(packed) == MANY + 3


@pytest.mark.parametrize("count", [7, MANY])
def test_a_list_is_put_into_another_order(count: int) -> None:
    packed = Packed(str, map(str, range(count)))
    backwards = range(count - 1, -1, -1)
    assert list(packed.in_order(backwards)) == [str(number) for number in backwards]
    assert packed.in_order(range(count)) is packed


def test_stored_tasks_keep_rows_and_bodies_together() -> None:
    single = [TaskStored(full_row(number), ("a", "b"), b"\x00{}") for number in range(3)]
    many = [full_row(number) for number in range(MANY)]
    stored = StoredTasks(single)
    stored.extend(many, Packed(Body, [Body((str(row.task_no),), b"x" * (row.task_no % 7)) for row in many]))
    stored.append(single[0])
    assert len(stored) == MANY + 4
    expected = [TaskStored(row, (str(row.task_no),), b"x" * (row.task_no % 7)) for row in many]
    assert list(stored) == [*single, *expected, single[0]]


def test_a_drained_list_is_empty_behind_the_reader() -> None:
    items = ["a", "b", "c"]
    reader = drained(items)
    assert next(reader) == "a"
    assert len(items) == 2
    assert list(reader) == ["b", "c"]
    assert items == []
