"""What a worker's machine is sent: the code that it imports and packages that fit its Python."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from boss.bootstrap.bundle import PACKAGES, Bundles, Machine, NoBundle, code_files, fits, pip_target, this_machine

DEBIAN = Machine((3, 11), "x86_64", "glibc", (2, 36))
ALPINE = Machine((3, 12), "x86_64", "musl", (1, 2))


@pytest.fixture
def no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be fetched."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.mark.parametrize(
    ("tag", "machine", "does"),
    [
        ("py3-none-any", ALPINE, True),
        ("cp311-cp311-manylinux_2_17_x86_64", DEBIAN, True),
        ("cp311-cp311-manylinux2014_x86_64", DEBIAN, True),
        ("cp311-cp311-manylinux_2_39_x86_64", DEBIAN, False),
        ("cp312-cp312-manylinux_2_17_x86_64", DEBIAN, False),
        ("cp36-abi3-manylinux_2_12_x86_64", DEBIAN, True),
        ("cp312-abi3-manylinux_2_12_x86_64", DEBIAN, False),
        ("cp311-cp311-manylinux_2_17_aarch64", DEBIAN, False),
        ("cp311-cp311-musllinux_1_2_x86_64", DEBIAN, False),
        ("cp312-cp312-musllinux_1_2_x86_64", ALPINE, True),
        ("cp311-cp311-linux_x86_64", DEBIAN, True),
        ("cp311-cp311-win_amd64", DEBIAN, False),
    ],
)
def test_a_package_fits_a_machine_or_not(tag: str, machine: Machine, does: bool) -> None:
    assert fits(tag, machine, DEBIAN) is does


def test_what_was_built_here_runs_where_the_libc_is_as_new() -> None:
    older = Machine((3, 11), "x86_64", "glibc", (2, 31))
    assert not fits("cp311-cp311-linux_x86_64", older, DEBIAN)


def test_a_worker_starts_from_a_bundle_alone_and_the_boss_is_not_in_it(tmp_path: Path, no_registry: None) -> None:
    bundle = Bundles(tmp_path / "home").get(this_machine())
    place = tmp_path / "there"
    with tarfile.open(bundle.archive) as archive:
        archive.extractall(place, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    environment = {"PYTHONPATH": f"{place}:{place}/packages", "PYTHONDONTWRITEBYTECODE": "1"}
    # -S: without this environment's own packages; its standard library is all it has.
    command = [sys.executable, "-S", "-W", "error", "-m", "worker", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert b"ACCESS_FILE" in done.stdout, done.stderr
    assert os.access(place / "worker/start.sh", os.X_OK)
    assert not {"boss", "sim", "tests"} & {path.name for path in place.iterdir()}
    assert not (place / "ecloud/db/database.py").exists()


def test_the_same_code_makes_the_same_bundle(tmp_path: Path, no_registry: None) -> None:
    first, second = (Bundles(tmp_path / name).get(this_machine()) for name in ("one", "two"))
    assert first.name == second.name
    assert first.archive.read_bytes() == second.archive.read_bytes()


def test_a_package_that_is_not_available_for_a_machine_is_named(tmp_path: Path, no_registry: None) -> None:
    other = Machine((3, 10) if this_machine().python != (3, 10) else (3, 12), "x86_64", "glibc", (2, 35))
    with pytest.raises(NoBundle, match=r"no msgspec .* is available for Python 3\.1.* put its wheel into"):
        Bundles(tmp_path).get(other)


def test_a_wheel_that_a_person_put_there_is_taken(tmp_path: Path, no_registry: None) -> None:
    import msgspec
    import psutil

    python = (3, 10) if this_machine().python != (3, 10) else (3, 12)
    other = Machine(python, "riscv64", "glibc", (2, 35))
    place = tmp_path / "wheels" / f"3-{python[1]}-riscv64-glibc"
    place.mkdir(parents=True)
    for name, version in (("msgspec", msgspec.__version__), ("psutil", psutil.__version__)):
        tag = f"cp3{python[1]}-cp3{python[1]}-manylinux_2_17_riscv64"
        with zipfile.ZipFile(place / f"{name}-{version}-{tag}.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
    with tarfile.open(Bundles(tmp_path).get(other).archive) as archive:
        assert "packages/msgspec/__init__.py" in archive.getnames()


def test_a_python_that_is_too_old_gets_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoBundle, match=r"Python 3\.6 .*3\.10 or later is needed"):
        Bundles(tmp_path).get(Machine((3, 6), "x86_64", "glibc", (2, 28)))


def test_pip_is_asked_for_what_the_machine_can_load() -> None:
    words = pip_target(ALPINE)
    assert "musllinux_1_2_x86_64" in words
    assert not any("manylinux" in word for word in words)
    assert "manylinux_2_36_x86_64" in pip_target(DEBIAN)


def test_every_package_that_a_worker_imports_is_among_them() -> None:
    from worker.debug import PACKAGES as IMPORTED

    assert set(IMPORTED.values()) == set(PACKAGES)
    names = {str(path) for path in code_files()}
    assert {"worker/start.sh", "worker/debug.sh", "ecloud/model/wire.py", "datastore/gate.py"} <= names
