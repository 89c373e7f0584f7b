"""The Pythons of this machine that run calls. Each is offered as a resource, such as `python3.11`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

from ecloud.model.calls import PYTHON_CALLS, python_resource
from ecloud.model.tasks import Resources

MINORS = range(8, 20)
"""Versions 3.x that are searched for in PATH."""
ASK_S = 10.0
_ASK = "import sys; print('%d.%d' % sys.version_info[:2])"


class Pythons:
    """Interpreters by version. `ECLOUD_PYTHON` names one or more (separated by `:`); they take precedence over the
    others that are found."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._path = environment.get("PATH", os.defpath)
        self.named = [name for name in environment.get("ECLOUD_PYTHON", "").split(os.pathsep) if name]
        own = f"{sys.version_info[0]}.{sys.version_info[1]}"
        self.by_version: dict[str, str] = {own: sys.executable}
        for minor in MINORS:
            program = shutil.which(f"python3.{minor}", path=self._path)
            if program is not None:
                self.by_version.setdefault(f"3.{minor}", program)
        self.problems: list[str] = []
        for name in reversed(self.named):
            program = shutil.which(name, path=self._path)
            version = _version(program) if program else ""
            if program and version:
                self.by_version[version] = program
            else:
                self.problems.append(f"ECLOUD_PYTHON: {name} is not a Python that can be started on this machine")

    @property
    def resources(self) -> Resources:
        """The Python resources that a worker offers: an amount that calls never exhaust."""
        return {python_resource(version): PYTHON_CALLS for version in sorted(self.by_version)}

    def of(self, version: str) -> str | None:
        """Return the program of that version, or the default for calls that name no version; None if it is missing."""
        return self.by_version.get(version) if version else next(iter(self.by_version.values()))


def _version(program: str) -> str:
    try:
        done = subprocess.run([program, "-c", _ASK], capture_output=True, timeout=ASK_S, check=True, text=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
