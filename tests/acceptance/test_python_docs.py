"""docs/python.md as a new user types it: its programs are run one after another on one private cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
REST = """
import os, sys
import ecloud
from ecloud.python.cluster import Cluster


def train(number):
    return number, os.environ["CUDA_VISIBLE_DEVICES"]


if __name__ == "__main__":
    cluster = Cluster(None, workers=1)
    access = os.path.join(os.getcwd(), "my-access.json")
    with open(access, "wb") as file:
        file.write(__import__("msgspec").json.encode(cluster.access))
    os.chmod(access, 0o600)
    os.environ["ECLOUD_ACCESS"] = access
    ClusterExecutor = lambda *names, **options: ecloud.ClusterExecutor(*names, **{"run": "night-run", **options})
"""


def run(place: Path, text: str) -> str:
    """What the program prints."""
    (place / "program.py").write_text(text)
    smi = place / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 0\n")
    smi.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("ECLOUD_")}
    env |= {"PYTHONPATH": str(ROOT), "ECLOUD_HOME": str(place / "none"), "PATH": f"{place}:{env['PATH']}"}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=place, env=env, text=True, capture_output=True, timeout=110, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.timeout(120)
def test_the_first_program(tmp_path: Path) -> None:
    assert run(tmp_path, BLOCKS[0]) == "49\n332833500\n"


@pytest.mark.timeout(120)
def test_options_and_a_run_that_outlives_its_program(tmp_path: Path) -> None:
    rest = "".join(f"    {line}" for block in BLOCKS[1:] for line in (*block.splitlines(keepends=True), "\n"))
    ends = "    executor.shutdown()\n    cluster.close()\n"
    assert run(tmp_path, REST + rest + ends) == "(3, '0') 1\n"
