"""ECLOUD as a package: what `pip install` gives works outside the checkout, with every action and `ecloud push`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from other_pythons import other_pythons
from services import ROOT

if sys.version_info >= (3, 11):
    import tomllib

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
INSTALL_S = 600
COMMAND_S = 300


def build(place: Path) -> Path:
    """The wheel of this checkout, built from a copy: building leaves files behind."""
    source = place / "source"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "build", "dist")
    shutil.copytree(ROOT, source, ignore=ignored)
    subprocess.run(
        [*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(place), str(source)],
        check=True,
        timeout=INSTALL_S,
        cwd=place,
    )
    shutil.rmtree(source)
    (wheel,) = place.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def environment(place: Path, **more: str) -> dict[str, str]:
    """What a new user's shell has: a home of its own, nothing of the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ECLOUD_", "PYTHON", "VIRTUAL"))}
    return {**kept, "HOME": str(place / "home"), "XDG_CONFIG_HOME": str(place / "config"), **more}


def push_the_example(ecloud: list[str], place: Path, variables: dict[str, str]) -> None:
    """`ecloud push examples/tasks.json --local --wait` succeeds in `place`, and a boss starts and stops there."""
    shutil.copytree(ROOT / "examples", place / "examples")

    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [*ecloud, *words], cwd=place, env=variables, capture_output=True, text=True, timeout=COMMAND_S
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    told = run("push", "examples/tasks.json", "--local", "2", "--wait")
    assert re.search(r"run \S+: \d+ succeeded", told), told
    assert "ecloud start" in run("status", code=3), "the texts name the program that was typed"
    run("start")
    try:
        assert "leads" in run("status")
    finally:
        run("stop", "--vms")


@pytest.mark.timeout(2 * COMMAND_S)
def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """With the packages of this environment; the long test below installs them for each Python."""
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    place = tmp_path / "place"
    place.mkdir()
    ecloud = [sys.executable, "-c", "from ecloud.cli.main import ecloud; ecloud()"]
    push_the_example(ecloud, place, environment(place, PYTHONPATH=str(target)))
    code = "import ecloud, boss.bootstrap.bundle as b; print(ecloud.__file__, len(b.code_files()))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        env=environment(place, PYTHONPATH=str(target)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert str(target) in found
    assert int(found.split()[-1]) > 30, "the boss can send its own code to a VM"


@pytest.mark.long
@pytest.mark.timeout(INSTALL_S + 2 * COMMAND_S)
@pytest.mark.parametrize("minor", [10, 11, 12, 13])
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_fresh_environment(minor: int, kind: str, wheel: Path, tmp_path: Path) -> None:
    python = sys.executable if sys.version_info[1] == minor else other_pythons().get((3, minor))
    if python is None:
        pytest.skip(f"no Python 3.{minor} here")
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=INSTALL_S)
    pip = [str(tmp_path / "venv/bin/python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    package = wheel
    if kind == "sdist":
        source = tmp_path / "source"
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "sdist"], check=True, timeout=60, cwd=source)
        (package,) = (source / "dist").glob("*.tar.gz")
    subprocess.run([*pip, "install", str(package)], check=True, timeout=INSTALL_S, cwd=place)
    push_the_example([str(tmp_path / "venv/bin/ecloud")], place, environment(place))
    for program in ("ecloud", "ecloud-boss", "ecloud-worker"):
        done = subprocess.run([str(tmp_path / "venv/bin" / program), "--version"], capture_output=True, timeout=60)
        assert done.returncode == 0
        assert b"ecloud " in done.stdout


def test_the_wheel_holds_what_is_no_code(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("ecloud/py.typed", "datastore/gate.py", "worker/start.sh", "ecloud/config/settings.example.py"):
        assert name in names
    migrations = {path.name for path in (ROOT / "migrations" / "versions").glob("*.py")}
    assert {name.rpartition("/")[2] for name in names if "migrations/versions" in name} == migrations
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_the_extras_together_are_what_the_checkout_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {*project["dependencies"], *(item for items in extras.values() for item in items)}
    drawn = set(extras["plots"])  # a checkout has it for its tests; `admin.py sweep --plot` says how to install it
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {line.strip() for line in lines if line and not line.startswith("#")}
    assert {item for item in declared if not item.startswith("ecloud[")} == required | drawn
    assert drawn <= set((ROOT / "requirements-dev.txt").read_text().splitlines())
    named = {name for item in extras["all"] for name in re.findall(r"[a-z]+", item.partition("[")[2])}
    assert named == set(extras) - {"all"}
