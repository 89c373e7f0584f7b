"""Calls in a container, and calls that use GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import pytest

from ecloud import ClusterExecutor, RemoteError
from ecloud.model.tasks import Container
from worker.core.containers import WORK

cloudpickle.register_pickle_by_value(sys.modules[__name__])
PATIENCE_S = 100.0
SYSTEM_PYTHON = "/usr/bin/python3"
pytestmark = pytest.mark.timeout(120)


def where(name: str) -> tuple[str, str, bool]:
    print("seen from inside")
    return os.getcwd(), sys.executable, os.path.exists(name)


@pytest.fixture
def same_python() -> None:
    """Needs a system Python of this minor version: it is the Python of the images here."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    if version != f"{sys.version_info[0]}.{sys.version_info[1]}":
        pytest.skip(f"{SYSTEM_PYTHON} is Python {version}")


@pytest.fixture
def python_image(same_python: None, tmp_path: Path) -> Path:
    """A root directory into which this machine's /usr is bound."""
    top = tmp_path / "image"
    for name in ("etc", "dev", "proc", "sys", "tmp", "mnt", "root", "home", "usr"):
        (top / name).mkdir(parents=True)
    for name in ("passwd", "group", "hosts", "resolv.conf"):
        (top / "etc" / name).touch()
    for name in ("bin", "sbin", "lib", "lib64"):
        if Path(f"/{name}").is_symlink():
            (top / name).symlink_to(f"usr/{name}")
    return top


@pytest.mark.parametrize("runtime", ["bubblewrap", "charliecloud"])
def test_calls_run_on_a_host_in_their_container(runtime: str, python_image: Path, tmp_path: Path) -> None:
    """cloudpickle is the worker's."""
    with ClusterExecutor(max_workers=1) as executor:
        boxed = executor.options(container=Container(str(python_image), runtime, binds=("/usr:/usr:ro",)))
        found = [boxed.submit(where, str(tmp_path)).result(PATIENCE_S) for _ in range(3)]
        large = boxed.submit(bytes, 100_000)
        assert len(large.result(PATIENCE_S)) == 100_000
        assert boxed.submit(len, large).result(PATIENCE_S) == 100_000
    assert all(Path(directory).is_relative_to(WORK) for directory, _, _ in found)
    assert {python for _, python, _ in found} == {SYSTEM_PYTHON}


@pytest.mark.usefixtures("same_python")
def test_a_container_with_another_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with ClusterExecutor(max_workers=1) as executor:
        monkeypatch.setattr("ecloud.python.executor.PYTHON", "3.9")
        boxed = executor.options(container=Container("/", "bubblewrap"))
        with pytest.raises(RemoteError, match=r"was pickled by Python 3\.9 and its container has 3\.\d+: use an image"):
            boxed.submit(where, "").result(PATIENCE_S)


def gpus_while_others_wait(place: str, count: int) -> str:
    """The GPUs of this call, which ends when `count` calls run at the same time."""
    devices = os.environ["CUDA_VISIBLE_DEVICES"]
    Path(place, devices).touch()
    deadline = time.monotonic() + PATIENCE_S
    while len(os.listdir(place)) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    return devices


def test_each_call_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 0\necho 1\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(smi.parent), prepend=":")
    place = tmp_path / "seen"
    place.mkdir()
    with ClusterExecutor(max_workers=1) as executor:
        on_gpu = executor.options(resources={"gpus": 1, "cpus": 0.5})
        futures = [on_gpu.submit(gpus_while_others_wait, str(place), 2) for _ in range(2)]
        assert sorted(future.result(PATIENCE_S) for future in futures) == ["0", "1"]
        both = executor.options(resources={"gpus": 2, "cpus": 0.5}).submit(gpus_while_others_wait, str(place), 0)
        assert both.result(PATIENCE_S) == "0,1"
