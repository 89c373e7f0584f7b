"""An image for containers: a directory with a shell, a few programs and their libraries."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its file /etc/image says "the image"."""
    top = tmp_path_factory.mktemp("image") / "root"
    programs = [
        Path(found) for name in ("sh", "cat", "ls", "sleep", "id", "setsid", "touch") if (found := shutil.which(name))
    ]
    listed = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=True).stdout
    libraries = {Path(word) for word in listed.split() if word.startswith("/") and not word.endswith(":")}
    for file in (*programs, *libraries):
        place = top / str(file.parent).lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file.resolve(), place / file.name)
    for name in ("etc", "dev", "proc", "sys", "tmp", "mnt", "root", "home", "bin"):
        (top / name).mkdir(exist_ok=True)
    if not (top / "bin/sh").exists():
        shutil.copy2(Path("/bin/sh").resolve(), top / "bin/sh")
    (top / "etc/image").write_text("the image")
    for name in ("passwd", "group", "hosts", "resolv.conf"):
        (top / "etc" / name).touch()
    return top
