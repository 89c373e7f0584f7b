"""docs/hosts.md has a row for each option and script of mlframework's README, and its letters exist here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/hosts.md").read_text()
THERE = (
    "infrainit.sh", "config.sh", "infra_clean.sh", "update_files.sh", "check_celery_status.sh", "run_tasks.sh",
    "nvdocker_install/install_ubuntu.sh", "Docker", "Flower", "tasks.py", "parameters.yml", "!!python/tuple",
    "22, 4369, 5555, 5671, 5672, 25672",
)  # fmt: skip
LETTERS = ("-a", "-i", "-r", "-d", "-b", "-m", "-w", "-f")


def test_each_option_and_script_has_its_row() -> None:
    section = PAGE.partition("### From mlframework")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]
    first = next(cell for cell in cells if "infrainit.sh" in cell)
    assert [name for name in THERE if not any(name in cell for cell in cells)] == []
    assert [letter for letter in LETTERS if f"`{letter}`" not in first.replace("infrainit.sh ", "`")] == []


def test_the_letters_are_those_of_hosts_up() -> None:
    command = [sys.executable, str(ROOT / "admin.py"), "hosts", "up", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [letter for letter in LETTERS if not re.search(rf"^\s+{letter}\b", told, re.MULTILINE)] == []
