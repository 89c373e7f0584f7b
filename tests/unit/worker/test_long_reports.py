"""Reports that are too long: for a message of 1 MB they are sent in several, for the boss or the broker given up."""

from __future__ import annotations

from worker_script import PEER, WorkerScript

from ecloud.model import wire
from ecloud.model.tasks import Cause, ManifestEntry, Outcome
from ecloud.model.wire import Envelope
from worker.core.report_size import CUT_OFF_TIMES, LARGE_BYTES

MB = 1_000_000


def files(count: int) -> tuple[ManifestEntry, ...]:
    return tuple(ManifestEntry(f"results/{number:06}.txt", 3, "a" * 64) for number in range(count))


def bytes_of(envelope: Envelope) -> int:
    return len(wire.encode(envelope, "topic", "key", b"k" * 32))


def test_no_message_of_many_outcomes_is_above_1_mb_whatever_the_tasks_printed() -> None:
    script = WorkerScript(cpus=40).on_duty().orders(*range(1, 41)).forget_all()
    script.ends(*range(1, 41), cause=Cause.EXIT, stdout="\x01" * 30_000, stderr="🦀" * 10_000, error="\x02" * 900)
    script.wait(1.0)
    said = [envelope for envelope in script.done.says if isinstance(envelope.message, wire.TasksEnded)]
    assert [bytes_of(envelope) < MB for envelope in said] == [True] * len(said)
    assert sorted(outcome.task_no for envelope in said for outcome in envelope.message.outcomes) == [*range(1, 41)]


def test_the_longest_output_fits_into_a_message() -> None:
    tail = "\x01" * 65_536
    outcome = Outcome(1, 1, Cause.EXIT, error="e" * 4_000, command="\x01" * 16_384, stdout=tail, stderr=tail)
    envelope = Envelope(1, PEER, "s", 1, wire.TasksEnded((outcome,)))
    assert bytes_of(envelope) < MB


def cut_off(script: WorkerScript) -> WorkerScript:
    """It reports, the broker ends the connection, and it is welcomed again."""
    script.wait(1.0).take(wire.TasksEnded)
    return script.lose().connect().welcome()


def test_a_report_that_the_broker_refuses_is_given_up() -> None:
    script = WorkerScript().on_duty().orders(1).begins(1).ends(1, manifest=files(12_000)).spools(1)
    for _ in range(CUT_OFF_TIMES - 1):
        cut_off(script)
        assert script.done.spool == []
    cut_off(script)
    (kept,) = script.done.spool
    (sent,) = script.wait(1.0).take(wire.TasksEnded).outcomes
    assert kept == sent
    assert (sent.cause, sent.manifest) == (Cause.RESULT, ())
    assert "the list of its 12,000 result files" in sent.error
    assert f"ended the connection to the broker {CUT_OFF_TIMES} times" in sent.error
    assert "pack many result files into an archive" in sent.error
    script.stores(1).forgets(1)


def test_a_failure_keeps_its_cause_and_its_sentence() -> None:
    script = WorkerScript().on_duty().orders(1).begins(1)
    script.ends(1, cause=Cause.TIMEOUT, error="ran too long", manifest=files(12_000))
    for _ in range(CUT_OFF_TIMES):
        cut_off(script)
    (sent,) = script.wait(1.0).take(wire.TasksEnded).outcomes
    assert sent.cause is Cause.TIMEOUT
    assert sent.error.startswith("ran too long (its report of ")


def test_lost_connections_cost_short_reports_nothing() -> None:
    script = WorkerScript().on_duty().orders(1).begins(1).ends(1, manifest=files(100))
    for _ in range(3 * CUT_OFF_TIMES):
        cut_off(script)
    (sent,) = script.wait(1.0).take(wire.TasksEnded).outcomes
    assert sent.manifest == files(100)


def test_connections_that_end_before_it_is_sent_do_not_count() -> None:
    script = WorkerScript().on_duty().orders(1).begins(1).lose().ends(1, manifest=files(12_000))
    for _ in range(3 * CUT_OFF_TIMES):
        script.lose()
    (sent,) = script.connect().welcome().wait(1.0).take(wire.TasksEnded).outcomes
    assert sent.manifest == files(12_000)


def test_a_report_that_the_boss_would_ignore_is_not_sent() -> None:
    script = WorkerScript().on_duty().orders(1).begins(1).ends(1, manifest=files(150_000))
    (sent,) = script.wait(1.0).take(wire.TasksEnded).outcomes
    assert sent.cause is Cause.RESULT
    assert "is longer than the 16,711,680 that the boss reads" in sent.error
    assert len(sent.error) < 1_000 < LARGE_BYTES


def test_nor_by_the_next_process_of_the_home() -> None:
    left = Outcome(1, 1, Cause.SUCCESS, manifest=files(150_000))
    script = WorkerScript(spooled=(left,)).connect().welcome()
    (sent,) = script.wait(1.0).take(wire.TasksEnded).outcomes
    assert sent.cause is Cause.RESULT
