"""A client listens to one boss: the one with the highest epoch that it heard, until that one is silent for long."""

from __future__ import annotations

import pytest

from ecloud.client.conversation import Conversation, _Found
from ecloud.config.secrets import AccessFile
from ecloud.model import wire
from ecloud.model.topics import boss_topic, peer_topic
from ecloud.model.wire import DatastoreAccess, Envelope, HeartbeatAnswered, Message, Refused, RequestDone, Welcome

KEY = "ab" * 32


class Talk:
    """A conversation without a broker: what it published, and what a boss says to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.access = AccessFile("c", "127.0.0.1", 1, "submit-1", KEY)
        self.talk = Conversation(self.access)
        self.said: list[Envelope] = []
        monkeypatch.setattr(self.talk._broker, "publish", self._publish)
        self.talk._inbox.put(_Found())

    def _publish(self, topic: str, payload: bytes) -> bool:
        envelope, _ = wire.decode(payload, topic, lambda name: self.access.key_bytes)
        self.said.append(envelope)
        return True

    def hears(self, message: Message, epoch: int, number: int = 0, session: str = "") -> Message | None:
        """A boss of that epoch says this; what comes out of it."""
        topic = peer_topic("c", self.talk.peer)
        envelope = Envelope(wire.PROTOCOL_VERSION, self.talk.peer, session, number, message, epoch)
        self.talk._inbox.put((topic, wire.encode(envelope, topic, "submit-1", self.access.key_bytes)))
        return self.talk.wait(0.0)

    def welcomed(self, epoch: int, session: str) -> None:
        """A boss answers its last Hello."""
        hello = self.said[-1].message
        assert isinstance(hello, wire.Hello)
        self.hears(Welcome(hello.nonce, session, 60.0, 60.0, DatastoreAccess("dir:/d")), epoch)


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Talk:
    made = Talk(monkeypatch)
    made.talk.wait(0.0)
    made.talk.wait(0.0)
    return made


def test_what_the_boss_of_its_session_says_is_heard_once_and_in_order(talk: Talk) -> None:
    talk.welcomed(5, "s5")
    assert talk.hears(RequestDone("r1", 1, ""), 5, 1, "s5") == RequestDone("r1", 1, "")
    assert talk.hears(RequestDone("r1", 1, ""), 5, 1, "s5") is None
    assert talk.hears(HeartbeatAnswered(1), 5, 2, "s5") is None
    assert talk.hears(RequestDone("r2", 1, ""), 5, 3, "other") is None


def test_a_client_learns_in_its_session_that_its_access_file_was_revoked(talk: Talk) -> None:
    talk.welcomed(5, "s5")
    revoked = Refused("revoked", "its access file was revoked")
    talk.hears(revoked, 5, 1, "other")
    assert talk.talk.refusal == ""
    talk.hears(revoked, 5, 1, "s5")
    assert talk.talk.refusal == "the boss refuses this client: its access file was revoked"


def test_a_boss_of_an_older_epoch_is_not_heard(talk: Talk) -> None:
    """It may still speak, for it does not know yet that another one leads."""
    talk.welcomed(5, "s5")
    assert talk.hears(RequestDone("r1", 1, ""), 4, 1, "s5") is None
    assert talk.talk.ignored["epoch"] == 1
    assert talk.hears(Refused("session", "say Hello again", "s5"), 4, 2, "s5") is None
    assert talk.talk.session == "s5"


def test_a_welcome_of_an_older_epoch_opens_no_session(talk: Talk) -> None:
    talk.welcomed(5, "s5")
    talk.hears(Refused("session", "say Hello again", "s5"), 5, 1, "s5")
    talk.talk.wait(0.0)
    talk.welcomed(4, "s4")
    assert talk.talk.session == ""
    talk.welcomed(6, "s6")
    assert talk.talk.session == "s6"
    assert boss_topic("c", talk.talk.peer) == talk.talk._hello_topic


def test_an_older_epoch_that_speaks_alone_learns_the_higher_one(talk: Talk) -> None:
    talk.welcomed(5, "s5")
    talk.talk.heard_at -= 100.0
    talk.hears(Refused("session", "say Hello again", "s5"), 4, 1, "s5")
    talk.talk.wait(0.0)
    hello = talk.said[-1].message
    assert isinstance(hello, wire.Hello)
    assert hello.epoch == 5
