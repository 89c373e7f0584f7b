"""What a machine offers by its own report: GPUs by nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecloud.config import this_host
from ecloud.config.settings import PoolSettings, default_pools, size_of


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name that says what a machine with two GPUs says."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0\necho 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return program


def test_gpus_are_those_that_nvidia_smi_lists(nvidia_smi: Path) -> None:
    assert this_host.gpus() == ("0", "1")
    assert default_pools(4)[-1].gpus == 2.0


def test_a_machine_whose_nvidia_smi_fails_has_none(nvidia_smi: Path) -> None:
    nvidia_smi.write_text("#!/bin/sh\necho no driver; exit 9\n")
    assert this_host.gpus() == ()


def test_what_a_pool_leaves_open_is_the_machines() -> None:
    whole = size_of(PoolSettings("whole", cpus=0))
    assert whole["cpus"] == this_host.cpus()
    assert whole["memory_mb"] == pytest.approx(this_host.memory_mb(), abs=1)
    half = size_of(PoolSettings("half", cpus=this_host.cpus() / 2))
    assert half["memory_mb"] == pytest.approx(this_host.memory_mb() / 2, abs=1)
