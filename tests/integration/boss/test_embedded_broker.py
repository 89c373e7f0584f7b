"""The boss's own broker: the same port after every accident, nothing of it left behind; Mosquitto or the one from
pip."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from services import HOST, Daemon, free_port, listens, wait_until, watch_to_the_end

from boss.shell import embedded_broker
from boss.shell.embedded_broker import BrokerWontStart, EmbeddedBroker
from ecloud.client.broker import probe
from ecloud.config.home import Home
from ecloud.model.tasks import Dependency, TaskDefinition
from ecloud.model.wire import PushOptions

WITHOUT_MOSQUITTO = """
from boss.shell import embedded_broker
from boss.__main__ import main
embedded_broker.shutil.which = lambda *_, **__: None
main()
"""


@pytest.fixture(params=["mosquitto", "pip"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A boss's home, with and without a Mosquitto on the machine."""
    if request.param == "pip":
        monkeypatch.setattr(embedded_broker.shutil, "which", lambda *_, **__: None)
    return Home(tmp_path / "home").make()


@pytest.fixture
def broker(home: Home) -> Iterator[EmbeddedBroker]:
    """A broker that is not started yet."""
    broker = EmbeddedBroker(home)
    yield broker
    broker.stop()


def kill(broker: EmbeddedBroker) -> None:
    assert broker._process is not None
    broker._process.kill()
    broker._process.wait()


def test_it_accepts_its_own_access(broker: EmbeddedBroker, home: Home) -> None:
    address = broker.start()
    assert address.host == HOST
    assert probe(address, 20.0) is None
    assert (home.secrets / "broker.password").read_text().strip() == address.password


def test_it_is_started_again_on_the_same_port(broker: EmbeddedBroker) -> None:
    address = broker.start()
    assert not broker.ensure_alive(), "it lives: nothing is to do"
    kill(broker)
    assert not broker.is_alive
    assert broker.ensure_alive()
    assert probe(address, 20.0) is None


def test_the_next_boss_has_the_same_port_and_password(broker: EmbeddedBroker, home: Home) -> None:
    address = broker.start()
    broker.stop()
    assert not listens(address.port)
    again = EmbeddedBroker(home)
    assert again.start() == address
    again.stop()


def test_what_a_killed_boss_left_over_is_ended(broker: EmbeddedBroker, home: Home) -> None:
    address = broker.start()
    left_over = broker._process
    assert left_over is not None
    again = EmbeddedBroker(home)
    assert again.start() == address
    assert left_over.wait(30) == -signal.SIGKILL
    assert probe(address, 20.0) is None
    again.stop()


def test_a_process_that_has_the_number_by_now_is_left_alone(broker: EmbeddedBroker, home: Home) -> None:
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        (home.broker / "pid").write_text(str(stranger.pid))
        broker.start()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("damage", ["", "no number", "-1", "0", "99999999"])
def test_damaged_notes_do_no_harm(damage: str, broker: EmbeddedBroker, home: Home) -> None:
    (home.broker / "pid").write_text(damage)
    (home.broker / "port").write_text(damage)
    assert probe(broker.start(), 20.0) is None


def test_a_port_that_a_stranger_has_now_is_given_up(
    broker: EmbeddedBroker, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server((HOST, free_port())) as stranger:
        taken = stranger.getsockname()[1]
        (home.broker / "port").write_text(str(taken))
        address = broker.start()
    assert address.port != taken
    assert f"port {taken} of the embedded broker is taken" in caplog.text
    assert (home.broker / "port").read_text() == str(address.port)


def test_one_that_does_not_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho the moon is in the wrong house >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(embedded_broker.shutil, "which", lambda *_, **__: str(program))
    home = Home(tmp_path / "home").make()
    with pytest.raises(BrokerWontStart) as problem:
        EmbeddedBroker(home).start()
    assert str(problem.value) == (
        f"the embedded broker does not start: the moon is in the wrong house; see {home.broker}/log"
    )
    program.chmod(0o644)
    with pytest.raises(BrokerWontStart, match="cannot be started: Permission denied"):
        EmbeddedBroker(home).start()


def test_it_ends_with_its_boss(home: Home, tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from boss.shell.embedded_broker import EmbeddedBroker\n"
        "from ecloud.config.home import Home\n"
        "EmbeddedBroker(Home(sys.argv[1])).start()\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    boss = subprocess.Popen([sys.executable, "-c", program, str(home.path)], stdout=subprocess.PIPE)
    assert boss.stdout is not None
    with boss.stdout:
        assert boss.stdout.readline() == b"ready\n"
        port = int((home.broker / "port").read_text())
        assert listens(port)
        boss.kill()
        boss.wait()
    wait_until(lambda: not listens(port), what="the broker ends")


# --- a whole run over the broker from pip ---------------------------------------------------------


def test_a_run_where_there_is_no_mosquitto(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "daemon", LEASE_S=15.0)
    daemon.program = ("-c", WITHOUT_MOSQUITTO)
    try:
        daemon.start()
        broker_pid = int((daemon.home.broker / "pid").read_text())
        assert "boss.shell.pip_broker" in daemon.processes()[broker_pid]
        journal = tmp_path / "journal"
        middle = [f"middle-{index}" for index in range(12)]
        commands = ("sleep 0.2", f"echo done >> {journal}")
        tasks = [TaskDefinition("first", commands)]
        tasks += [TaskDefinition(name, commands, (Dependency("first"),)) for name in middle]
        tasks += [TaskDefinition("last", commands, tuple(map(Dependency, middle)))]
        with daemon.client() as client:
            client.push(tasks, PushOptions("r"))
            wait_until(lambda: journal.exists() and len(journal.read_text().split()) >= 3, what="3 tasks have run")
            os.kill(broker_pid, signal.SIGKILL)
            assert watch_to_the_end(client, "r").states == {"succeeded": 14}
        assert len(journal.read_text().split()) == 14
    finally:
        daemon.end()
