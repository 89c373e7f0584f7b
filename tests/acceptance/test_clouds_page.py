"""docs/clouds.md, typed as it stands there: from three templates to results, and the bill. The cloud is the double;
the broker is a real one at the address that its machine gets; guests' sshd and agents are real."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from pathlib import Path

import pytest
from doors import Doors
from opennebula_double import OpenNebula
from pages import Page, type_all
from services import PASSWORD, USER, Daemon, Mosquitto, free_port

from datastore.keys import public_line
from ecloud.config.datastore_address import boss_key

BROKER = "127.77.0.10"
"""What the double gives to the first VM."""


@pytest.mark.long
def test_the_clouds_page_does_what_it_shows(daemons: Callable[..., Daemon], tmp_path: Path) -> None:
    page = Page("docs/clouds.md")
    double = OpenNebula(tmp_path / "cloud")
    double.ssh_port = free_port()
    double.add_network()
    port = free_port()
    broker = Mosquitto(tmp_path / "mosquitto", f"listener {port} {BROKER}").start()
    daemon = daemons()
    daemon.home.make()
    key = public_line(boss_key(daemon.home)).strip()  # a person's own ssh would have put it there
    plain = 'CPU="1"\nMEMORY="512"\nNIC=[NETWORK_ID="0"]\n'
    double.add_template(f'NAME="ecloud-broker"\n{plain}CONTEXT=[NETWORK="YES"]')
    double.add_template(f'NAME="ecloud-files"\n{plain}CONTEXT=[NETWORK="YES",SSH_PUBLIC_KEY="{key}"]')
    double.add_worker_template("ecloud-worker", cpus=4)
    double.start()
    settings = page.marked("settings")
    for name, value in {
        '"https://one.example.org:2633/RPC2"': repr(double.url),
        '"ecloud"\nOPENNEBULA_PASSWORD = "choose-one"': '"alice"\nOPENNEBULA_PASSWORD = "PASSWORD"',
        "1883": str(port),
        '"ecloud"\nBROKER_PASSWORD = "choose-another"': f'"{USER}"\nBROKER_PASSWORD = "{PASSWORD}"',
        '"ecloud@*:/srv/ecloud"': repr(f"{getpass.getuser()}@*:{double.ssh_port}:{tmp_path}/files"),
        '"maximum": 50': '"maximum": 2',
        '"cpus": 4, "memory_mb": 8000': '"cpus": 4, "memory_mb": 500',
    }.items():
        assert name in settings
        settings = settings.replace(name, value)
    daemon.settings_file.write_text(daemon.settings_file.read_text() + settings)
    doors = Doors(tmp_path / "place", daemon)
    try:
        type_all(page, doors.place, doors.environment)
        assert "mean" in (doors.place / "report.txt").read_text()
        assert len(double.alive) == 2, "the machines stay, and nothing else"
    finally:
        doors.admin("stop", "--vms", code=None)
        double.end()
        broker.stop()
