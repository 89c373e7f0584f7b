"""What docs/ says of messages, states and limits is what the code says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ecloud.config.settings import ROOT

GENERATE = "docs/generate.py"


def generate(place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run docs/generate.py of a checkout against this code."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(place / GENERATE), *options]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=60)


def test_docs_and_code_agree() -> None:
    done = generate(ROOT, "--check")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun: python {GENERATE}"


def test_docs_that_differ_are_named_and_drawn_again(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    drawn = [file for file in (tmp_path / "docs").rglob("*.md") if "<!-- generated: " in file.read_text()]
    assert drawn, "some document has drawn parts"
    file = drawn[0]
    before = file.read_text()
    start = before.index("-->\n", before.index("<!-- generated: ")) + 4
    file.write_text(before[:start] + "an old line\n" + before[start:])

    done = generate(tmp_path, "--check")
    assert done.returncode == 1
    assert file.name in done.stdout + done.stderr
    assert "an old line" in file.read_text(), "a check changes nothing"

    assert generate(tmp_path).returncode == 0
    assert file.read_text() == before
    assert generate(tmp_path, "--check").returncode == 0
