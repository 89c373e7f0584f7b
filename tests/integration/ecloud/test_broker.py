"""The connection to the broker, over Mosquitto, Mosquitto behind TLS and the broker from pip."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from services import HOST, PASSWORD, ROOT, Authority, Mosquitto, free_port, listens, wait_until

from ecloud.client.broker import (
    BrokerAddress,
    BrokerConnection,
    check_will,
    external_broker,
    measure_round_trip,
    probe,
)
from ecloud.config.secrets import CLIENT_KEY_NAME, AccessFile
from ecloud.config.settings import Settings, SettingsWrong


class PipBroker:
    """The broker from pip, without user or password."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir()
        self.port = free_port()
        self.address = BrokerAddress(HOST, self.port)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> PipBroker:
        """Start it, or start it again on the same port; returns when it listens."""
        command = [sys.executable, "-m", "boss.shell.pip_broker", str(self.port), str(self.directory), HOST]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(lambda: listens(self.port), what="the broker from pip listens")
        return self

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it."""
        self.kill()


@pytest.fixture
def pip_broker(tmp_path: Path) -> Iterator[PipBroker]:
    """The broker that is used where no Mosquitto is installed."""
    broker = PipBroker(tmp_path / "pip").start()
    yield broker
    broker.stop()


@pytest.fixture(params=["mosquitto", "mosquitto_tls", "pip_broker"])
def broker(request: pytest.FixtureRequest) -> Mosquitto | PipBroker:
    """Each kind in turn."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


class Peer:
    """A connection that remembers what it was told."""

    def __init__(self, address: BrokerAddress, name: str, *topics: str, will: tuple[str, bytes] | None = None) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.found = 0
        self.lost: list[str] = []
        self.connection = BrokerConnection(
            address, name, list(topics), self._hear, self._find, self.lost.append, will=will
        )
        self.connection.start()

    def _hear(self, topic: str, payload: bytes) -> None:
        self.heard.append((topic, payload))

    def _find(self) -> None:
        self.found += 1

    def connected(self) -> Peer:
        """Waits until it is."""
        wait_until(lambda: self.connection.is_connected and self.found, what="a connection")
        return self


NewPeer = Callable[..., Peer]


@pytest.fixture
def new_peer() -> Iterator[NewPeer]:
    """Makes peers; all leave with the test."""
    peers: list[Peer] = []

    def make(address: BrokerAddress, name: str, *topics: str, will: tuple[str, bytes] | None = None) -> Peer:
        peers.append(Peer(address, name, *topics, will=will))
        return peers[-1]

    yield make
    for peer in peers:
        peer.connection.stop()


# --- two peers talk -------------------------------------------------------------------------------


def test_what_one_publishes_another_hears(broker: Mosquitto | PipBroker, new_peer: NewPeer) -> None:
    one = new_peer(broker.address, "one", "to/one/+").connected()
    two = new_peer(broker.address, "two", "to/two").connected()
    wait_for_subscriptions(one, two)
    assert one.connection.publish("to/two", b"how are you?")
    assert two.connection.publish("to/one/two", "fine, thank you \N{SNOWMAN}".encode())
    wait_until(lambda: one.heard and two.heard, what="both hear")
    assert two.heard == [("to/two", b"how are you?")]
    assert one.heard == [("to/one/two", "fine, thank you \N{SNOWMAN}".encode())]


def wait_for_subscriptions(*peers: Peer) -> None:
    """A subscription takes effect when the broker has handled it: each peer hears itself then."""
    for peer in peers:
        topic = min(peer.connection._subscriptions).replace("+", "probe")
        wait_until(lambda: peer.connection.publish(topic, b"") and peer.heard, what="it hears itself")  # noqa: B023
        # Whatever of its probes is still on the way comes before anything that is published from now on.
        peer.connection.publish(topic, b"last")
        wait_until(lambda: peer.heard[-1][1] == b"last", what="it heard itself")  # noqa: B023
        peer.heard.clear()


def test_messages_of_a_mebibyte_and_more_arrive_whole_and_in_order(
    broker: Mosquitto | PipBroker, new_peer: NewPeer
) -> None:
    one = new_peer(broker.address, "one").connected()
    two = new_peer(broker.address, "two", "to/two").connected()
    wait_for_subscriptions(two)
    sizes = [1024 * 1024, 10, 8 * 1024 * 1024, 0, 1024 * 1024]
    for number, size in enumerate(sizes):
        assert one.connection.publish("to/two", bytes([number]) + b"x" * size)
    wait_until(lambda: len(two.heard) == len(sizes), what="all arrive")
    assert [(payload[0], len(payload) - 1) for _, payload in two.heard] == list(enumerate(sizes))


def test_many_small_messages_arrive_in_order(broker: Mosquitto | PipBroker, new_peer: NewPeer) -> None:
    one = new_peer(broker.address, "one").connected()
    two = new_peer(broker.address, "two", "to/two").connected()
    wait_for_subscriptions(two)
    for number in range(3_000):
        assert one.connection.publish("to/two", b"%d" % number)
    wait_until(lambda: len(two.heard) >= 3_000, what="all arrive")
    assert [int(payload) for _, payload in two.heard] == list(range(3_000))


def test_topics_are_added_and_left_while_connected(mosquitto: Mosquitto, new_peer: NewPeer) -> None:
    # The broker from pip still sends on unsubscribed topics: the client ignores these messages.
    one = new_peer(mosquitto.address, "one", "always").connected()
    wait_for_subscriptions(one)
    one.connection.subscribe("sometimes")
    wait_until(lambda: one.connection.publish("sometimes", b"now") and one.heard, what="it hears the new topic")
    one.connection.unsubscribe("sometimes")
    one.connection.publish("always", b"after")
    wait_until(lambda: one.heard[-1] == ("always", b"after"), what="what was on the way arrived")
    one.heard.clear()
    one.connection.publish("sometimes", b"too late")
    one.connection.publish("always", b"last")
    wait_until(lambda: one.heard, what="the last arrives")
    assert one.heard == [("always", b"last")]


def test_a_callback_that_fails_does_not_end_the_connection(mosquitto: Mosquitto, new_peer: NewPeer) -> None:
    one = new_peer(mosquitto.address, "one", "to/one").connected()
    wait_for_subscriptions(one)
    hear, heard = one.connection._on_message, threading.Event()

    def fail(topic: str, payload: bytes) -> None:
        one.connection._on_message = hear
        heard.set()
        raise ValueError("a fault in the owner's code")

    one.connection._on_message = fail
    one.connection.publish("to/one", b"bad")
    wait_until(heard.is_set, what="the callback was called")
    one.connection.publish("to/one", b"good")
    wait_until(lambda: one.heard, what="the next message arrives")
    assert one.heard == [("to/one", b"good")]
    assert one.lost == []


def test_a_peer_that_vanishes_leaves_its_will(broker: Mosquitto | PipBroker, new_peer: NewPeer) -> None:
    two = new_peer(broker.address, "two", "presence/+").connected()
    wait_for_subscriptions(two)
    one = new_peer(broker.address, "one", will=("presence/one", b"gone")).connected()
    one.connection.cut()
    wait_until(lambda: two.heard, what="the will")
    assert two.heard[0] == ("presence/one", b"gone")


# --- away and back --------------------------------------------------------------------------------


def test_a_broker_that_was_killed_is_found_again(broker: Mosquitto | PipBroker, new_peer: NewPeer) -> None:
    one = new_peer(broker.address, "one", "to/one").connected()
    broker.kill()
    wait_until(lambda: not one.connection.is_connected and one.lost, what="the loss is noticed")
    assert one.lost[0] == f"the connection to the broker at {HOST}:{broker.port} was lost"
    assert not one.connection.publish("to/one", b"nobody can hear this")
    wait_until(lambda: len(one.lost) > 1, what="it tries again")
    assert one.lost[1] == (f"no broker listens at {HOST}:{broker.port}: start it, or check BROKER_HOST and BROKER_PORT")
    one.connection.subscribe("to/one/too")
    broker.start()
    wait_until(lambda: one.found == 2, what="it is back")
    wait_until(lambda: one.connection.publish("to/one", b"x") and ("to/one", b"x") in one.heard)
    wait_until(lambda: one.connection.publish("to/one/too", b"y") and ("to/one/too", b"y") in one.heard)
    assert not any(payload == b"nobody can hear this" for _, payload in one.heard)


def test_two_peers_of_one_name_the_newer_wins_and_the_older_comes_back(mosquitto: Mosquitto, new_peer: NewPeer) -> None:
    one = new_peer(mosquitto.address, "same").connected()
    other = new_peer(mosquitto.address, "same").connected()
    wait_until(lambda: one.lost, what="the older is put out")
    other.connection.stop()
    wait_until(lambda: one.connection.is_connected, what="the older is back")


def test_stopping_delivers_what_was_handed_over(mosquitto: Mosquitto, new_peer: NewPeer) -> None:
    two = new_peer(mosquitto.address, "two", "to/two").connected()
    wait_for_subscriptions(two)
    one = new_peer(mosquitto.address, "one").connected()
    for number in range(100):
        assert one.connection.publish("to/two", b"%d" % number)
    one.connection.stop(wait_s=30.0)  # on a busy machine the usual two seconds may be too few
    wait_until(lambda: two.heard and two.heard[-1][1] == b"99", what="the last one arrives")
    assert [int(payload) for _, payload in two.heard] == list(range(100))
    assert not one.connection.publish("to/two", b"after the end")


def test_stopping_while_nothing_answers_ends_the_thread(new_peer: NewPeer) -> None:
    with socket.create_server((HOST, 0)) as deaf:
        one = new_peer(BrokerAddress(HOST, deaf.getsockname()[1]), "one")
        wait_until(lambda: one.connection._client, what="it tries")
        one.connection.stop()
        assert not one.connection._thread.is_alive()
        assert one.found == 0


# --- one sentence each ----------------------------------------------------------------------------


def test_a_wrong_password_is_said(mosquitto: Mosquitto) -> None:
    place = f"{HOST}:{mosquitto.port}"
    assert probe(mosquitto.address) is None
    wrong = msgspec.structs.replace(mosquitto.address, password="wrong")
    assert str(probe(wrong)) == (
        f"the broker at {place} refused the password of user 'ecloud': check BROKER_USER and BROKER_PASSWORD"
    )
    nobody = msgspec.structs.replace(mosquitto.address, user="", password="")
    assert str(probe(nobody)) == (
        f"the broker at {place} refused a connection without a user: check BROKER_USER and BROKER_PASSWORD"
    )


def test_the_remedy_for_an_access_file_is_a_new_one(mosquitto: Mosquitto) -> None:
    place = mosquitto.address
    access = AccessFile("cluster", place.host, place.port, "submit-1", "00" * 32, place.user, "wrong")
    assert str(probe(BrokerAddress.of(access))) == (
        f"the broker at {place} refused the password of user 'ecloud': the access file is outdated or wrong: ask for a "
        "new one (on the boss's machine: python admin.py invite)"
    )
    nobody = msgspec.structs.replace(access, port=free_port())
    assert "it may be down, or the access file is outdated" in str(probe(BrokerAddress.of(nobody)))
    own = msgspec.structs.replace(access, key_name=CLIENT_KEY_NAME)
    assert "check BROKER_USER" in str(probe(BrokerAddress.of(own)))


def test_a_wrong_authority_is_said(mosquitto_tls: Mosquitto, tmp_path: Path) -> None:
    assert probe(mosquitto_tls.address) is None
    stranger = Authority(tmp_path / "stranger")
    for address in (
        msgspec.structs.replace(mosquitto_tls.address, ca=stranger.pem),
        msgspec.structs.replace(mosquitto_tls.address, ca=""),  # the system's authorities
    ):
        sentence = str(probe(address))
        assert sentence.startswith(f"the certificate of the broker at {HOST}:{mosquitto_tls.port} is not accepted: ")
        assert sentence.endswith("; check BROKER_CA and BROKER_HOST")


def test_a_certificate_for_another_name_is_said(mosquitto_tls: Mosquitto) -> None:
    assert probe(msgspec.structs.replace(mosquitto_tls.address, host="localhost")) is None
    sentence = str(probe(msgspec.structs.replace(mosquitto_tls.address, host="127.1")))  # the same address
    assert "Hostname mismatch" in sentence
    assert sentence.endswith("; check BROKER_CA and BROKER_HOST")


def test_tls_on_one_side_only_is_said(mosquitto: Mosquitto, mosquitto_tls: Mosquitto) -> None:
    plain_here = msgspec.structs.replace(mosquitto_tls.address, tls=False, ca="")
    assert "BROKER_TLS" in str(probe(plain_here))
    plain_there = msgspec.structs.replace(mosquitto.address, tls=True)
    assert "BROKER_TLS" in str(probe(plain_there, 10.0))


def test_nothing_that_listens_is_said() -> None:
    port = free_port()
    assert str(probe(BrokerAddress(HOST, port))) == (
        f"no broker listens at {HOST}:{port}: start it, or check BROKER_HOST and BROKER_PORT"
    )


def test_an_unknown_name_is_said() -> None:
    sentence = "the broker's name no.such.host.invalid cannot be resolved: check BROKER_HOST and DNS"
    assert str(probe(BrokerAddress("no.such.host.invalid", 1883), 20.0)) == sentence


def test_silence_is_said(mosquitto: Mosquitto) -> None:
    mosquitto.freeze()
    try:
        sentence = str(probe(mosquitto.address, 20.0))
    finally:
        mosquitto.thaw()
    place = f"{HOST}:{mosquitto.port}"
    assert sentence == f"the broker at {place} does not answer: check the address and the firewall"


def test_a_stranger_that_is_no_broker_is_said() -> None:
    with socket.create_server((HOST, 0)) as stranger:

        def talk() -> None:
            peer, _ = stranger.accept()
            with peer:
                peer.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        port = stranger.getsockname()[1]
        sentence = str(probe(BrokerAddress(HOST, port), 20.0))
        thread.join()
    assert sentence != "None"
    assert f"{HOST}:{port}" in sentence


def test_rights_that_are_lacking_are_said(tmp_path: Path, new_peer: NewPeer) -> None:
    rules = tmp_path / "rules"
    rules.write_text("user ecloud\ntopic readwrite other/#\n")
    rules.chmod(0o600)
    broker = Mosquitto(tmp_path / "strict", f"acl_file {rules}").start()
    try:
        assert measure_round_trip(broker.address, "ecloud/probe", timeout_s=1.0) is None
        assert measure_round_trip(broker.address, "other/probe") is not None
    finally:
        broker.stop()


# --- questions of doctor --------------------------------------------------------------------------


def test_the_round_trip_is_measured(broker: Mosquitto | PipBroker) -> None:
    assert measure_round_trip(broker.address, "ecloud/probe") is not None
    assert measure_round_trip(broker.address, "ecloud/probe", payload_bytes=4 * 1024 * 1024) is not None


def test_wills_are_checked(broker: Mosquitto | PipBroker) -> None:
    assert check_will(broker.address, "ecloud/probe/will", 20.0)


def test_questions_to_a_broker_that_is_away_have_an_answer() -> None:
    nobody = BrokerAddress(HOST, free_port())
    assert measure_round_trip(nobody, "ecloud/probe", timeout_s=0.5) is None
    assert not check_will(nobody, "ecloud/probe/will", 0.5)


# --- from settings --------------------------------------------------------------------------------


def test_the_settings_name_a_broker(mosquitto_tls: Mosquitto, tmp_path: Path) -> None:
    assert external_broker(Settings()) is None
    settings = Settings(
        broker_host=HOST,
        broker_port=mosquitto_tls.port,
        broker_user="ecloud",
        broker_password=PASSWORD,
        broker_ca=str(tmp_path / "authority" / "ca.pem"),
    )
    address = external_broker(settings)
    assert address == mosquitto_tls.address
    assert address.tls, "an authority to check against says that TLS is meant"
    with pytest.raises(SettingsWrong, match="BROKER_CA = '/no/such/file': No such file or directory"):
        external_broker(msgspec.structs.replace(settings, broker_ca="/no/such/file"))
    not_pem = tmp_path / "not.pem"
    not_pem.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsWrong, match="it holds no certificate in PEM form"):
        external_broker(msgspec.structs.replace(settings, broker_ca=str(not_pem)))
