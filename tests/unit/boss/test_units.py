"""systemd reads the units of `hosts up`, and the one for people, without a complaint."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from boss.providers.ssh_hosts_scripts import Place, unit_text

ROOT = Path(__file__).parents[3]


def complaints(unit: Path, *options: str) -> str:
    """What `systemd-analyze verify` says about this unit; it also reads those that are installed. No systemd needs to
    run."""
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze is not installed: make services"
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(unit.parent)}
    done = subprocess.run([program, *options, "verify", str(unit)], capture_output=True, text=True, env=environment)
    return "\n".join(line for line in (done.stdout + done.stderr).splitlines() if unit.name in line)


@pytest.mark.parametrize(("units", "options"), [("system", ()), ("user", ("--user",))])
def test_a_unit_is_understood_also_in_a_home_with_a_space(units: str, options: tuple[str, ...], tmp_path: Path) -> None:
    home = tmp_path / "an na"
    home.mkdir()
    text = unit_text(Place("h0a1b2c", kind="worker"), 1, units)
    unit = home / "ecloud-h0a1b2c-worker-1.service"
    unit.write_text(text.replace("@DIRECTORY@", f"{home}/.ecloud-hosts/h0a1b2c/worker-1").replace("@HOME@", str(home)))
    assert complaints(unit, *options) == ""
    unit.write_text(unit.read_text().replace("on-failure", "sometimes"))
    assert "sometimes" in complaints(unit, *options), "it reads what is written there"


def test_the_unit_for_people_is_understood(tmp_path: Path) -> None:
    text = (ROOT / "docs/ecloud-worker.service").read_text()
    start = ROOT / "worker/start.sh"
    unit = tmp_path / "ecloud-worker.service"
    unit.write_text(text.replace("/opt/ecloud/worker/start.sh", f"/bin/sh {start}"))
    assert complaints(unit) == ""
