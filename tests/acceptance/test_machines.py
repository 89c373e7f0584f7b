"""The broker's and the datastore's machine as VMs of a cloud: found by their templates, or made with `start --create`,
as a person meets it. The cloud is the double; its guests' sshd and the broker are real."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doors import Doors
from opennebula_double import OpenNebula
from services import PASSWORD, USER, Daemon, Mosquitto, free_port, wait_until

from datastore.keys import public_line
from ecloud.config.datastore_address import boss_key

BROKER, DATASTORE = "127.77.0.10", "127.77.0.11"


@pytest.fixture
def double(tmp_path: Path) -> Iterator[OpenNebula]:
    made = OpenNebula(tmp_path / "cloud")
    made.ssh_port = free_port()
    made.add_network()
    made.start()
    yield made
    made.end()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """It listens where the first VM of the cloud will be: that is what the image of such a machine would do."""
    port = free_port()
    made = Mosquitto(tmp_path / "mosquitto", f"listener {port} {BROKER}").start()
    made.port = port
    yield made
    made.stop()


@pytest.fixture
def hosted(daemons: Callable[..., Daemon], double: OpenNebula, broker: Mosquitto, tmp_path: Path) -> Iterator[Doors]:
    daemon = daemons(
        OPENNEBULA_URL=double.url,
        OPENNEBULA_USER="alice",
        OPENNEBULA_PASSWORD="PASSWORD",
        BOSS_TEMPLATE="boss",
        BROKER_PORT=broker.port,
        BROKER_USER=USER,
        BROKER_PASSWORD=PASSWORD,
        DATASTORE_TEMPLATE="files",
        DATASTORE_AT=f"{getpass.getuser()}@*:{double.ssh_port}:{tmp_path}/files",
    )
    daemon.home.make()
    key = public_line(boss_key(daemon.home)).strip()
    double.add_template('NAME="boss"\nCPU="1"\nMEMORY="512"\nNIC=[NETWORK_ID="0"]\nCONTEXT=[NETWORK="YES"]')
    context = f'CONTEXT=[NETWORK="YES",SSH_PUBLIC_KEY="{key}"]'
    double.add_template(f'NAME="files"\nCPU="1"\nMEMORY="512"\nNIC=[NETWORK_ID="0"]\n{context}')
    doors = Doors(tmp_path / "place", daemon)
    yield doors
    doors.admin("stop", code=None)


def words(done: Any) -> str:
    return " ".join(done.text.split())


def test_they_are_made_once_found_again_and_never_ended(hosted: Doors, double: OpenNebula, tmp_path: Path) -> None:
    lacking = words(hosted.admin("start", code=3))
    assert (
        "BROKER_HOST cannot be found: no VM of template boss runs: start one, or run python admin.py start" in lacking
    )
    assert double.vms == {}
    doctor = words(hosted.admin("doctor", code=3))
    for lacking in ("BOSS_TEMPLATE (boss)", "DATASTORE_TEMPLATE (files)"):
        assert f"the machine of {lacking} is not set; python admin.py start finds it" in doctor

    made = hosted.admin("start", "--create")
    assert f"BROKER_HOST: made VM 0 of template boss at {BROKER}" in words(made)
    assert f"DATASTORE: made VM 1 of template files at {DATASTORE}" in words(made)
    assert f"the datastore is {getpass.getuser()}@{DATASTORE}:{double.ssh_port}:{tmp_path}/files" in words(made)
    context = hosted.admin("show_context", "--json").json
    assert context["boss_address"] == BROKER
    assert DATASTORE in context["datastore_address"]

    task = {"id": "a", "commands": "echo one > out", "results": ["out"]}
    hosted.push(hosted.write("film.json", [task]), "--wait")
    assert (tmp_path / "files/out").read_text() == "one\n"

    # The addresses are stored: the cloud is not asked again.
    hosted.admin("stop", "--vms")
    calls = dict(double.calls)
    assert "the boss runs" in hosted.admin("start").out
    assert double.calls == calls
    hosted.admin("stop")
    # Where they are not, what runs is found.
    hosted.admin("start")
    hosted.admin("drop_context", "boss_address")
    hosted.admin("stop")
    assert f"BROKER_HOST: found VM 0 of template boss at {BROKER}" in words(hosted.admin("start", "--create"))
    hosted.admin("stop", "--vms")
    assert len(double.alive) == len(double.vms) == 2, "they are not the cluster's to end"


def test_what_is_wrong_is_one_sentence(hosted: Doors, double: OpenNebula) -> None:
    assert hosted.daemon is not None
    for number in (7, 8):
        double.add_vm(number, f"boss-{number}", owner=double.alice, state=3, lcm=3)
    wrong = words(hosted.admin("start", "--create", code=3))
    assert "2 VMs of template boss run: 7" in wrong
    assert len(double.vms) == 2
    text = hosted.daemon.settings_file.read_text()
    hosted.daemon.settings_file.write_text(text.replace("'PASSWORD'", "'wrong'"))
    assert "BROKER_HOST cannot be found: the cloud at" in words(hosted.admin("start", code=3))
    hosted.daemon.settings_file.write_text(text.replace("@*:", "@host:"))
    assert "DATASTORE_AT" in words(hosted.admin("start", code=2))
    hosted.daemon.settings_file.write_text(text.replace("BOSS_TEMPLATE = 'boss'", "").replace("'files'", "''"))
    assert "settings.py names neither" in words(hosted.admin("start", "--create", code=2))


@pytest.mark.long
def test_a_datastore_that_refuses_our_key_is_one_sentence_and_the_boss_works(hosted: Doors, double: OpenNebula) -> None:
    double.templates[1].attributes["CONTEXT"]["SSH_PUBLIC_KEY"] = ""  # type: ignore[index]
    done = hosted.admin("start", "--create", code=3)
    assert "does not accept the boss's key" in words(done)
    assert "the boss runs" in done.out
    assert hosted.admin("status", "--json").json["boss"]["leads"]
    context = hosted.admin("show_context", "--json").json
    assert "DATASTORE_TEMPLATE (files) is not set yet" in context["datastore_machine"]
    assert "datastore_address" not in context
    wait_until(lambda: len(double.alive) == 2)
