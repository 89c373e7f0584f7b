"""Packages for a Python unlike the boss's: pip fetches their wheels, and a machine without any network works with them.
Needs a registry and another Python, else it is skipped."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from other_pythons import machine_of, other_pythons, registry_answers

from boss.bootstrap.bundle import Bundle, Bundles, NoBundle

pytestmark = pytest.mark.long
PYTHONS = other_pythons()
ALONE = {"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PYTHONDONTWRITEBYTECODE": "1"}
"""An environment in which pip fetches nothing."""


@pytest.fixture(params=sorted(PYTHONS) or [None], ids=lambda version: version and f"3.{version[1]}")
def version(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Of another Python that is here."""
    if request.param is None:
        pytest.skip("no other Python of 3.10 or later is here")
    found: tuple[int, int] = request.param
    return found


def bundle_for(version: tuple[int, int], home: Path) -> Bundle:
    """Made with what pip fetched; skips the test where nothing can be fetched."""
    try:
        return Bundles(home).get(machine_of(version, PYTHONS[version]))
    except NoBundle as error:
        if registry_answers(home / "tried"):
            raise
        pytest.skip(f"pip reaches no registry: {error}")


def ran(*command: object, **others: str) -> str:
    done = subprocess.run(
        [str(word) for word in command], env={**ALONE, **others}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_that_python_s_own_pip_takes_the_wheels_without_a_network(version: tuple[int, int], tmp_path: Path) -> None:
    bundle_for(version, tmp_path / "home")
    wheels = list((tmp_path / "home/wheels").glob("*/*.whl"))
    assert {wheel.name.partition("-")[0] for wheel in wheels} >= {"msgspec"}
    ran(PYTHONS[version], "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    ran(python, "-m", "pip", "install", "--no-deps", *wheels)
    encoded = ran(python, "-c", "import msgspec, sys; print(sys.version_info[1], msgspec.json.encode([1]).decode())")
    assert encoded.split() == [str(version[1]), "[1]"]


def test_a_worker_starts_there_from_the_bundle_alone(version: tuple[int, int], tmp_path: Path) -> None:
    bundle = bundle_for(version, tmp_path / "home")
    place = tmp_path / "there"
    with tarfile.open(bundle.archive) as archive:
        archive.extractall(place, filter="data")
    ran(PYTHONS[version], "-m", "venv", "--without-pip", place / ".venv")
    # The checkout's own .venv is what worker/start.sh takes; no other package is in it.
    assert "ACCESS_FILE" in ran("sh", place / "worker/start.sh", "--help")
    words = ran("sh", place / "worker/debug.sh", "--help")
    assert "ACCESS_FILE" in words
    imports = "import click, msgspec, psutil, paho.mqtt.client as c; print(psutil.cpu_count() > 0, c.__file__)"
    told = ran(place / ".venv/bin/python", "-W", "error", "-c", imports, PYTHONPATH=f"{place}:{place}/packages")
    assert told.startswith(f"True {place}/packages/paho")
