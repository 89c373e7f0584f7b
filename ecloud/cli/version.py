"""The version of ECLOUD, for `--version`."""

from __future__ import annotations

import platform
from typing import Any

import click

from ecloud import VERSION


def version_option(command: Any) -> Any:
    """Add `--version`: prints the versions of ECLOUD and Python, and ends."""
    text = f"ecloud {VERSION} (Python {platform.python_version()})"
    return click.version_option(VERSION, "--version", message=text)(command)
