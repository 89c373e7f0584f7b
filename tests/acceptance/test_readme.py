"""What README.md and docs/production.md show, typed as it stands there, does what they say; and they are complete."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from databases import MariaDb
from doors import Doors
from pages import Page, type_all
from services import ROOT, Daemon, Mosquitto

from ecloud.cli import main, push_action
from ecloud.model.tasks import TaskDefinition


def test_the_readme_does_what_it_shows(doors: Doors) -> None:
    page = Page("README.md")
    (doors.place / "tour.json").write_text(page.marked("file: tour.json"))
    try:
        type_all(page, doors.place, doors.environment)
    finally:
        doors.admin("stop", "--vms", code=None)


def test_the_production_page_does_what_it_shows(
    mariadb: MariaDb, mosquitto_tls: Mosquitto, daemons: Callable[..., Daemon], tmp_path: Path
) -> None:
    page = Page("docs/production.md")
    daemon = daemons()
    doors = Doors(tmp_path / "place", daemon)
    url = mariadb.new_url()
    ca = doors.place / "ca.pem"
    ca.write_text(mosquitto_tls.address.ca)
    (doors.place / "datastore").mkdir()
    settings = page.marked("settings")
    for name, value in {
        '"/var/lib/ecloud"': repr(str(daemon.home.path)),
        '"mysql://ecloud:choose-one@db.example.org/ecloud"': repr(url),
        '"broker.example.org"': repr(mosquitto_tls.address.host),
        "8883": str(mosquitto_tls.port),
        '"ecloud"': repr(mosquitto_tls.address.user),
        '"choose-another"': repr(mosquitto_tls.address.password),
        '"/etc/ecloud/ca.pem"': repr(str(ca)),
        '"/srv/ecloud"': repr(str(doors.place / "datastore")),
    }.items():
        assert name in settings
        settings = settings.replace(name, value)
    daemon.settings_file.write_text(settings)
    try:
        type_all(page, doors.place, doors.environment)
        tasks = doors.write("t.json", [{"id": "a", "commands": "echo 1 > out", "results": ["out"]}])
        assert "1 succeeded" in doors.push(tasks, "--wait").out
    finally:
        doors.admin("stop", "--vms", code=None)


DOCUMENTED = "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


@pytest.mark.parametrize("name", sorted(main.main.commands))
def test_every_action_is_documented(name: str) -> None:
    assert re.search(rf"`[^`]*\b{name}\b[^`]*`", DOCUMENTED)


def test_every_option_of_a_push_is_documented() -> None:
    options = [option.opts[0] for option in push_action.push.params if option.param_type_name == "option"]
    assert [name for name in options if name not in DOCUMENTED] == []


def test_every_field_of_a_task_is_documented() -> None:
    assert [name for name in TaskDefinition.__struct_fields__ if f"`{name}`" not in DOCUMENTED] == []


@pytest.mark.parametrize("name", ["examples/tasks.json", "examples/sweep.json"])
def test_the_examples_succeed(doors: Doors, name: str) -> None:
    report = doors.push(ROOT / name, "--local", "--json").json
    assert set(report["states"]) == {"succeeded"}


def test_the_example_of_failures_ends_as_it_says(doors: Doors) -> None:
    report = doors.push(ROOT / "examples" / "failures.json", "--local", "--json", code=1).json
    assert report["states"] == {"succeeded": 4, "failed": 6, "aborted": 1}
