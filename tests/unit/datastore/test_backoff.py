"""Waits that double."""

from __future__ import annotations

from datastore.backoff import Backoff


def test_waits_double_up_to_the_longest() -> None:
    assert [Backoff(0.5, 3.0).wait_s(failures) for failures in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_million_failures_in_a_row_wait_as_long_as_ten() -> None:
    # 2.0 ** 1024 is no float: a datastore that is away for nine hours fails as often.
    assert Backoff(0.5, 30.0).wait_s(1_000_000) == 30.0
