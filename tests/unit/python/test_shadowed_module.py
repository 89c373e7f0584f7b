"""A file beside a program that has the name of a module of Python's own, or of a package of ECLOUD."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from services import ROOT


def last_line(place: Path, **files: str) -> str:
    """Of the standard error of a program beside these files, which fails."""
    for name, text in files.items():
        file = place / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    done = subprocess.run(
        [sys.executable, place / "program.py"], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


IMPORT = "from ecloud import ClusterExecutor\n"


def test_the_file_is_named_instead_of_a_broken_import(tmp_path: Path) -> None:
    assert last_line(tmp_path, random="dice = 6\n", program=IMPORT) == (
        f"ImportError: {tmp_path}/random.py takes the place of Python's own module 'random': rename it"
    )


@pytest.mark.parametrize("before", ["", "import datastore\n"])
@pytest.mark.parametrize(("file", "named"), [("datastore", "datastore.py"), ("datastore/__init__", "datastore")])
def test_a_file_in_the_place_of_a_package_of_ecloud_is_named(
    file: str, named: str, before: str, tmp_path: Path
) -> None:
    assert last_line(tmp_path, program=before + IMPORT, **{file: "places = []\n"}) == (
        f"ImportError: {tmp_path}/{named} takes the place of ECLOUD's own package 'datastore': rename it"
    )
