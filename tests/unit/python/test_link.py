"""What a link sends to the boss, without a connection: its thread is this one."""

from __future__ import annotations

import logging
import time

import pytest

from ecloud.config.secrets import AccessFile
from ecloud.model.tasks import TaskDefinition
from ecloud.model.wire import RunAccepted, RunChanged, RunRejected
from ecloud.python.future import CallFuture
from ecloud.python.link import Link


@pytest.fixture
def link() -> Link:
    """Welcomed by a boss that answers nothing."""
    link = Link(AccessFile("c1", "localhost", 1, "client-1", "00" * 32), "run")
    link._talk.session, link._talk.sessions = "s1", 1
    return link


def submit(link: Link, id: str) -> CallFuture:
    future = CallFuture(link, id)
    link.submit(future, TaskDefinition(id))
    return future


def accept(link: Link) -> None:
    """The boss accepts all pushes under way."""
    for push_id in tuple(link._pushes):
        link._hear(RunAccepted(push_id, "run", 1))


def cancels(link: Link) -> list[str]:
    """The ids in the requests to cancel."""
    requests = [asked.request for asked in link._asked.values() if asked.request.verb == "cancel"]
    return [id for request in requests for id in request.arguments["ids"]]


def test_a_call_that_is_cancelled_while_others_are_sorted_is_cancelled_on_the_cluster(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = submit(link, "first"), submit(link, "second")
    link._work(0.0)
    first.cancel()

    def another_thread(link: Link) -> set[str]:
        second.cancel()
        return {"first", "second"}

    monkeypatch.setattr(Link, "_on_the_way", property(another_thread))
    link._work(0.0)
    accept(link)
    link._work(0.0)
    assert sorted(cancels(link)) == ["first", "second"]


def test_a_call_that_was_left_out_or_rejected_is_not_cancelled_on_the_cluster(link: Link) -> None:
    pushed, rejected = submit(link, "pushed"), submit(link, "rejected")
    for _ in range(2):  # a rejected push is repeated with each call alone
        link._work(0.0)
        for push_id, push in tuple(link._pushes.items()):
            ids = [task.id for task in push.message.tasks]
            if ids != ["pushed"]:
                link._hear(RunRejected(push_id, ("wrong",)))
    accept(link)
    left_out = submit(link, "left-out")
    link.pending.pop("left-out")  # what `cancel` does first, on another thread
    link._work(0.0)
    link.cancel(left_out)
    link.cancel(rejected)
    link.cancel(pushed)
    link._work(0.0)
    assert cancels(link) == ["pushed"]


def test_a_silent_boss_and_its_return_are_logged_once(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "ecloud")
    link._note_silence()
    assert caplog.messages == []
    link._talk.heard_at = time.monotonic() - 40.0
    link._note_silence()
    link._note_silence()
    link._talk.heard_at = time.monotonic()
    link._note_silence()
    link._note_silence()
    silent, back = caplog.messages
    assert silent.startswith("the boss has not answered for 40 s: waiting for it; the calls continue. It may be down")
    assert silent.endswith("or have revoked this access file")
    assert back == "the boss answers again"
    link._talk.heard_at, link._talk.broker_trouble = time.monotonic() - 40.0, "no broker listens at localhost:1"
    link._note_silence()
    assert caplog.messages[2].startswith("no broker listens at localhost:1: waiting for it; the calls continue")


def test_a_reason_to_wait_is_logged_again_only_if_it_is_another_one(
    link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    for reason in ("needs 8 gpus", "", "needs 8 gpus", "needs 9 gpus", "needs 9 gpus"):
        link._hear(RunChanged("run", 1, {"ready": 1}, waits=reason))
        assert link.waits == reason
    assert caplog.messages == ["calls of run run wait: needs 8 gpus", "calls of run run wait: needs 9 gpus"]
