"""Requests for the output of a task: which worker streams it, and the answer where none does."""

from __future__ import annotations

from boss_script import BossScript, Peer, task

from boss.core.model.effects import PromoteFiles
from boss.core.model.events import FilesPromoted
from ecloud.model import wire
from ecloud.model.tasks import ArrayOf, ManifestEntry


def logs(script: BossScript, id: str) -> tuple[int, str, tuple[str, ...]]:
    answer = script.ask("logs", ids=[id])
    assert isinstance(answer, wire.RequestDone)
    return answer.count, answer.text, answer.names


def streams(script: BossScript, worker: Peer) -> bool:
    """Whether the worker was ordered to stream since the last look."""
    orders = [send for send in script.said if isinstance(send.envelope.message, wire.StreamLogs)]
    script.said = [send for send in script.said if send not in orders]
    assert all(send.envelope.peer == worker.name for send in orders)
    return bool(orders)


def test_the_worker_that_holds_the_task_streams_until_its_results_are_published() -> None:
    script = BossScript()
    w1 = script.worker("w1")
    script.push("r", task("a", results=["out"]), task("b", after="a"))
    script.starts(w1, "a").started(w1, "a")
    named = (str(script.names["a"]), "1", "w1", "key-w1")
    assert logs(script, "a") == (1, "running", named)
    assert streams(script, w1)
    assert logs(script, "b") == (0, "waiting", (str(script.names["b"]),))
    script.ended(w1, "a", manifest=(ManifestEntry("out", 1, "00"),))
    assert logs(script, "a") == (1, "running", named)
    assert streams(script, w1)
    script.hear(w1, wire.Goodbye("its machine ends"))
    assert logs(script, "a") == (1, "running", named[:1]), "no worker streams it"
    script.call(PromoteFiles)
    script.handle(FilesPromoted(((*script.key("a"), None),)))
    assert logs(script, "a") == (0, "succeeded", named[:1])


def test_a_worker_that_the_next_boss_has_not_heard_is_named_and_ordered_nothing() -> None:
    script = BossScript()
    w1 = script.worker("w1")
    script.push("r", task("a"))
    script.starts(w1, "a").started(w1, "a").start()
    assert logs(script, "a")[2][2:] == ("w1", "key-w1")
    assert not streams(script, w1)


def test_an_element_that_was_not_made_yet_waits() -> None:
    script = BossScript(array_window=5)
    script.push("r", task("a", commands=("run {}",), array=ArrayOf("1-900")))
    count, state, _ = logs(script, "a[900]")
    assert (count, state) == (0, "waiting")
