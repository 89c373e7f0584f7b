"""Answers of the monitor: asked once for all, kept for a moment, found elsewhere where they are heavy."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from services import wait_until
from sqlalchemy.engine import Engine

from ecloud.queries.status import NoSuchRun
from ecloud.web.answers import KEPT_S, SLOW_FACTOR, Answers, period_s
from ecloud.web.heavy import Heavy, _Known
from ecloud.web.live_logs import KEPT_BYTES, Follower


def where_asked(engine: Engine) -> int:
    """A heavy question: in which process it is asked."""
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar() == 1
    return os.getpid()


def refuse(engine: Engine, run: str) -> None:
    """A heavy question about what is not there."""
    raise NoSuchRun(f"there is no run {run!r}")


def test_a_question_is_asked_once_until_something_changed() -> None:
    answers, asked = Answers(), []

    def find() -> int:
        asked.append(1)
        return len(asked)

    assert [answers.ask("q", find) for _ in range(5)] == [1] * 5
    answers.forget()
    assert answers.ask("q", find) == 2
    assert answers.ask("another", find) == 3


def test_what_a_question_raises_reaches_the_caller_and_is_not_kept() -> None:
    answers = Answers()
    with pytest.raises(NoSuchRun):
        answers.ask("q", lambda: refuse(None, "x"))  # type: ignore[arg-type]
    assert answers.ask("q", lambda: "fine") == "fine"


@pytest.fixture
def heavy() -> Iterator[Heavy]:
    made = Heavy()
    yield made
    made.close()


def test_a_heavy_question_is_answered_in_another_process_that_is_replaced_when_it_dies(heavy: Heavy) -> None:
    engine = sa.create_engine("sqlite://")
    found: list[int] = []

    def ask() -> bool:
        answer = heavy.ask(engine, where_asked, wait_s=1.0)
        found.append(answer or 0)
        return bool(answer)

    wait_until(ask, 60, "it is answered")
    helper = found[-1]
    assert helper != os.getpid()
    assert heavy.ask(engine, where_asked) == helper, "it is kept"

    def refused() -> bool:
        try:
            heavy.ask(engine, refuse, "x", wait_s=1.0)
        except NoSuchRun as error:
            return "no run 'x'" in str(error)
        return False

    wait_until(refused, 60, "what it raises comes through")
    os.kill(helper, signal.SIGKILL)
    heavy._known.clear()
    wait_until(ask, 60, "another helper answers")
    assert found[-1] not in (0, helper)


def test_output_is_read_by_offset_and_a_new_attempt_is_read_from_its_start() -> None:
    follower = Follower(None, bytes, "r", "t")  # type: ignore[arg-type]
    follower.take(1, "stdout", 0, "one\n")
    first = follower.read("stdout", 0)
    assert (first.data, first.next) == (b"one\n", 4)
    follower.take(1, "stdout", 4, "zwei ü\n")
    assert follower.read("stdout", first.next).data == "zwei ü\n".encode()
    assert follower.read("stderr", 0).data == b""
    follower.take(1, "stdout", 99, "late\n")
    assert b"some output was missed" in follower.read("stdout", 4).data
    follower.take(2, "stdout", 0, "again\n")
    assert follower.read("stdout", 12_345).data == b"again\n"
    follower.take(1, "stdout", 120, "of the attempt before\n")
    assert follower.read("stdout", 0).data == b"again\n"
    follower.take(2, "stdout", 6, "x" * (2 * KEPT_BYTES))
    assert follower.read("stdout", 0).start > 0, "what is kept is bounded"


def test_all_questions_together_take_a_small_share_of_the_time_and_slow_ones_wait_longer() -> None:
    took = [0.4, 0.05, 0.05, 0.02, *[0.005] * 20]
    periods = [period_s(one, took) for one in took]
    assert sum(one / period for one, period in zip(took, periods)) <= 1 / SLOW_FACTOR + 1e-9
    assert periods == sorted(periods, reverse=True)
    assert period_s(0.005, [0.005]) == KEPT_S


def test_a_heavy_answer_about_what_does_not_change_is_not_sought_again(heavy: Heavy) -> None:
    heavy._known["asked", "about", ()] = known = _Known("the answer", found_at=0.0, asked_at=0.0, version="as it was")
    assert not heavy._is_due(known, "as it was", now=1e9)
    assert heavy._is_due(known, "another", now=0.0), "its data changed"
    assert heavy._is_due(known, None, now=0.0), "its run continues"
    live, older = _Known(1, 10.0, 100.0, None), _Known(2, 5.0, 95.0, None)
    heavy._known.update({"live": live, "older": older})
    heavy._rests_until = 90.0
    assert not heavy._is_due(older, None, now=89.0), "the helper rests"
    assert heavy._is_due(older, None, now=100.0)
    assert not heavy._is_due(live, None, now=100.0), "the other has waited longer"
    assert heavy._is_due(live, None, now=106.0), "no viewer has the other page open"
