"""Which pushes need no look into the store."""

from __future__ import annotations

from boss.core.tasks.run_names import IDS_KEPT, RunNames

DAY = 86_400.0


def test_only_a_name_that_was_never_used_is_new() -> None:
    names = RunNames((), now=0.0)
    assert names.is_new("nightly", "p1")
    names.add("nightly", 1)
    assert not names.is_new("nightly", "p2")
    names.drop("nightly")
    assert not names.is_new("nightly", "p1"), "p1 may be a repetition of the push that made it"
    assert names.is_new("other", "p3")


def test_a_stored_push_of_a_run_that_an_earlier_boss_dropped_is_not_new() -> None:
    names = RunNames(["p1"], now=0.0)
    assert not names.is_new("nightly", "p1")
    assert names.is_new("nightly", "p2")


def test_a_dropped_run_is_forgotten_when_the_store_has_forgotten_its_pushes() -> None:
    names = RunNames(["p1"], now=0.0)
    names.add("nightly", 1)
    names.drop("nightly")
    names.forget_dropped(DAY, now=0.9 * DAY)
    names.forget_dropped(DAY, now=1.1 * DAY)
    assert not names.is_new("nightly", "p2")
    assert not names.is_new("weekly", "p1")
    names.forget_dropped(DAY, now=2.2 * DAY)
    assert names.is_new("nightly", "p2")
    assert names.is_new("weekly", "p1")


def test_a_run_made_again_after_it_was_dropped_is_there() -> None:
    names = RunNames((), now=0.0)
    for _ in range(2):
        names.add("nightly", 1)
        assert not names.is_new("nightly", "p")
        names.drop("nightly")
    names.add("nightly", 1)
    names.forget_dropped(DAY, now=2 * DAY)
    names.forget_dropped(DAY, now=4 * DAY)
    assert not names.is_new("nightly", "p")


def test_a_run_that_only_grew_is_known_by_the_ids_of_its_tasks() -> None:
    names = RunNames((), now=0.0)
    assert not names.lacks("calls", "p", ["c1"]), "an earlier boss may have made the run"
    names.extend("calls", ["c1", "c2"], is_first=True)
    assert names.lacks("calls", "p", ["c3"])
    assert not names.lacks("calls", "p", ["c3", "c2"])
    names.extend("calls", ["c3"], is_first=False)
    assert not names.lacks("calls", "p", ["c3"])


def test_a_list_that_changes_the_run_ends_that() -> None:
    names = RunNames((), now=0.0)
    names.extend("calls", ["c1"], is_first=True)
    names.change("calls")
    names.extend("calls", ["c2"], is_first=False)
    assert not names.lacks("calls", "p", ["c3"])


def test_a_run_made_again_under_its_name_has_no_known_tasks() -> None:
    names = RunNames((), now=0.0)
    names.add("calls", 1)
    names.extend("calls", ["c1"], is_first=True)
    names.drop("calls")
    assert not names.lacks("calls", "p", ["c2"])
    names.extend("calls", ["c2"], is_first=True)
    assert not names.lacks("calls", "p", ["c1"]), "p may be a push of the run that was dropped"


def test_a_push_of_a_dropped_run_is_not_taken_for_new_in_a_run_of_the_same_name() -> None:
    names = RunNames(["p1"], now=0.0)
    names.add("calls", 2)
    names.extend("calls", ["c9"], is_first=True)
    assert not names.lacks("calls", "p1", ["c1"])
    assert names.lacks("calls", "p2", ["c1"])


def test_a_bounded_number_of_ids_is_kept() -> None:
    names = RunNames((), now=0.0)
    names.extend("small", ["c1"], is_first=True)
    names.extend("large", (f"c{number}" for number in range(IDS_KEPT)), is_first=True)
    assert not names.lacks("large", "p", ["new"])
    assert not names.lacks("small", "p", ["new"])
    names.extend("later", ["c1"], is_first=True)
    assert names.lacks("later", "p", ["new"])
