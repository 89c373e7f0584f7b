"""The boss's own broker where it listens for other machines: TLS and a password; with Mosquitto or without."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from services import free_port

from boss.shell import embedded_broker
from boss.shell.embedded_broker import BrokerWontStart, EmbeddedBroker, split_address
from ecloud.client.broker import BrokerAddress, probe
from ecloud.config.home import Home

ADDRESS = "127.0.0.2"


@pytest.fixture(params=["mosquitto", "pip"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    if request.param == "pip":
        monkeypatch.setattr(embedded_broker.shutil, "which", lambda *_, **__: None)
    return Home(tmp_path / "home").make()


@pytest.fixture
def broker(home: Home) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(home, ADDRESS, tls=True)
    yield broker
    broker.stop()


def test_only_a_client_with_the_certificate_and_the_password_is_accepted(broker: EmbeddedBroker) -> None:
    address = broker.start()
    assert (address.host, address.tls) == (ADDRESS, True)
    assert probe(address, 20.0) is None
    wrong: list[BrokerAddress] = [
        msgspec.structs.replace(address, password="guessed"),
        msgspec.structs.replace(address, user="somebody"),
        msgspec.structs.replace(address, user="", password=""),
        msgspec.structs.replace(address, ca=""),
        msgspec.structs.replace(address, ca="", tls=False),
    ]
    assert all(probe(other, 2.0) is not None for other in wrong)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", address.port), 1.0)


def test_certificate_and_port_outlive_the_boss(broker: EmbeddedBroker, home: Home) -> None:
    address = broker.start()
    broker.stop()
    again = EmbeddedBroker(home, ADDRESS, tls=True)
    try:
        assert again.start() == address, "access files that were given out still open it"
    finally:
        again.stop()


def test_both_processes_are_started_again(broker: EmbeddedBroker) -> None:
    address = broker.start()
    for name in ("_process", "_door"):
        process = getattr(broker, name)
        if process is not None:
            process.kill()
            process.wait()
            assert not broker.is_alive
            assert broker.ensure_alive()
            assert probe(address, 20.0) is None


def test_strangers_that_send_nonsense_do_no_harm(broker: EmbeddedBroker) -> None:
    address = broker.start()
    context = ssl.create_default_context(cadata=address.ca)
    for data in (
        b"",
        b"\x10",
        b"\x10\xff\xff\xff\xff\xff",
        b"\x10\x04\x00\x04MQ",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x30\x02\x00\x00",
    ):
        plain = socket.create_connection((address.host, address.port))
        with plain, context.wrap_socket(plain, server_hostname=address.host) as link:
            link.sendall(data)
    assert probe(address, 20.0) is None


def test_a_port_may_be_named_and_must_be_free(home: Home) -> None:
    port = free_port()
    broker = EmbeddedBroker(home, f"{ADDRESS}:{port}", tls=True)
    assert broker.start().port == port
    broker.stop()
    with (
        socket.create_server((ADDRESS, port)),
        pytest.raises(BrokerWontStart, match=f"port {port} of {ADDRESS} is taken"),
    ):
        EmbeddedBroker(home, f"{ADDRESS}:{port}", tls=True).start()


def test_addresses() -> None:
    assert split_address("10.0.0.1") == ("10.0.0.1", 0)
    assert split_address("boss.lan:8883") == ("boss.lan", 8883)
    assert split_address("[fd00::1]:8883") == ("fd00::1", 8883)
    assert split_address("fd00::1") == ("fd00::1", 0)
    for wrong in ("0.0.0.0", "::", "a b", "host:x", "host:70000", "", ":1"):
        with pytest.raises(BrokerWontStart) as problem:
            split_address(wrong)
        assert problem.value.exit_code == 2


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokerWontStart, match="is not an address of this machine: it has") as problem:
        EmbeddedBroker(Home(tmp_path / "home").make(), "192.0.2.1", tls=True).start()
    assert problem.value.exit_code == 2
