"""When workers hear that their outcomes are stored."""

from __future__ import annotations

from boss_script import BossScript, task

from boss.core.tasks.outcome_acks import ANSWER_COUNT, ANSWER_S
from ecloud.model import wire


def answers(script: BossScript) -> list[tuple[str, list[int]]]:
    """Who was answered since this was asked last, and of which tasks."""
    said, script.said = script.said, []
    return [
        (envelope.peer, [name.task_no for name in envelope.message.attempts])
        for envelope in (send.envelope for send in said)
        if isinstance(envelope.message, wire.OutcomesStored)
    ]


def names(first: int, last: int) -> list[str]:
    return [f"t{number}" for number in range(first, last + 1)]


def test_who_holds_nothing_more_is_answered_at_once() -> None:
    script = BossScript()
    worker = script.worker("w", cpus=2)
    script.push("r", task("t1"), task("t2"))
    script.ended(worker, "t1", "t2")
    assert answers(script) == [("w", [1, 2])]


def test_outcomes_of_one_that_works_on_are_answered_together_a_moment_later() -> None:
    script = BossScript()
    worker = script.worker("w", cpus=4)
    script.push("r", *map(task, names(1, 4)))
    script.ended(worker, "t1").wait(ANSWER_S / 2)
    script.ended(worker, "t2")
    assert answers(script) == []
    assert script.state("t1") == script.state("t2") == "succeeded"
    script.wait(ANSWER_S / 2)
    assert answers(script) == [("w", [1, 2])]
    script.ended(worker, "t3").wait(ANSWER_S)
    assert answers(script) == [("w", [3])]


def test_who_has_waited_half_as_long_as_the_first_is_answered_with_it() -> None:
    """Else each would cost the boss a batch of its own."""
    script = BossScript()
    workers = {name: script.worker(name, cpus=2) for name in ("one", "two", "three")}
    script.push("r", *map(task, names(1, 6)))
    of = {script.store.attempts[script.key(id)].worker: id for id in names(1, 6)}
    script.ended(workers["one"], of["one"]).wait(0.4 * ANSWER_S)
    script.ended(workers["two"], of["two"]).wait(0.2 * ANSWER_S)
    script.ended(workers["three"], of["three"]).wait(0.41 * ANSWER_S)
    assert [name for name, _ in answers(script)] == ["one", "two"]
    script.wait(0.6 * ANSWER_S)
    assert [name for name, _ in answers(script)] == ["three"]


def test_it_is_answered_before_it_is_said_again() -> None:
    script = BossScript(heartbeat_s=0.1)
    worker = script.worker("w", cpus=2)
    script.push("r", task("t1"), task("t2"))
    script.ended(worker, "t1").wait(0.1)
    assert answers(script) == [("w", [1])]


def test_many_wait_for_no_others() -> None:
    script = BossScript()
    worker = script.worker("w", cpus=ANSWER_COUNT + 1)
    script.push("r", *map(task, names(1, ANSWER_COUNT + 1)))
    script.ended(worker, *names(1, ANSWER_COUNT - 1))
    assert answers(script) == []
    script.ended(worker, *names(ANSWER_COUNT, ANSWER_COUNT))
    assert [len(task_nos) for _, task_nos in answers(script)] == [ANSWER_COUNT]


def test_who_is_gone_is_not_answered_and_who_came_back_is_answered_when_it_says_them_again() -> None:
    script = BossScript()
    worker = script.worker("w", cpus=2)
    script.push("r", task("t1"), task("t2"))
    script.ended(worker, "t1").hear(worker, wire.Goodbye("told to")).wait(ANSWER_S)
    assert answers(script) == []
    heir = script.worker("w2", cpus=2, home="home-w")
    script.ended(heir, "t1").wait(ANSWER_S)
    assert answers(script) == [("w2", [1])]
