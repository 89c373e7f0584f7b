"""Waits that double."""

from __future__ import annotations

import random

from datastore.backoff import Backoff


def test_waits_double_up_to_the_longest() -> None:
    assert [Backoff(0.5, 3.0).wait_s(failures) for failures in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_million_failures_in_a_row_wait_as_long_as_ten() -> None:
    # 2.0 ** 1024 is no float: a datastore that is away for nine hours fails as often.
    assert Backoff(0.5, 30.0).wait_s(1_000_000) == 30.0


def test_jitter_shortens_a_wait_by_up_to_half_and_leaves_a_seeded_generator_alone() -> None:
    before = random.getstate()
    waits = [Backoff(0.5, 3.0).jittered_s(2) for _ in range(100)]
    assert all(1.0 <= wait <= 2.0 for wait in waits)
    assert len(set(waits)) > 1
    assert random.getstate() == before
