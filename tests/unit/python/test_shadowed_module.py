"""A file beside a program that has the name of a module of Python's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from services import ROOT


def test_the_file_is_named_instead_of_a_broken_import(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("dice = 6\n")
    (tmp_path / "program.py").write_text("from ecloud import ClusterExecutor\n")
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {tmp_path}/random.py takes the place of Python's own module 'random': rename it"
    )
