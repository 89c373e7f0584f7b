"""Pythons of other versions that this machine has, for tests of what is sent to machines unlike the boss's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from boss.bootstrap.bundle import Machine
from ecloud.model.machine_needs import LEAST_PYTHON

NEWEST = 14
ASK = "import platform; libc = platform.libc_ver(); print(platform.machine(), libc[0] or 'musl', libc[1] or '1.2')"


def other_pythons() -> dict[tuple[int, int], Path]:
    """Those that a worker can use and that are not ours: on the PATH, or installed beside ours."""
    found = {}
    for minor in range(LEAST_PYTHON[1], NEWEST + 1):
        name = f"python3.{minor}"
        beside = sorted(Path(sys.base_prefix).parent.glob(f"*/bin/{name}"))
        every = [*beside, *([Path(there)] if (there := shutil.which(name)) else [])]
        works = [
            path for path in every if subprocess.run([path, "-c", "import venv"], capture_output=True).returncode == 0
        ]
        if works and minor != sys.version_info[1]:
            found[3, minor] = works[0]
    return found


def machine_of(version: tuple[int, int], python: Path) -> Machine:
    """A machine that has this Python."""
    said = subprocess.run([python, "-c", ASK], capture_output=True, text=True, check=True).stdout.split()
    major, minor = said[2].split(".")[:2]
    return Machine(version, said[0], said[1], (int(major), int(minor)))


def registry_answers(place: Path) -> bool:
    """Whether pip gets anything at all: a wheel for this very machine."""
    words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(place)]
    return subprocess.run([*words, "msgspec"], capture_output=True, timeout=120).returncode == 0
