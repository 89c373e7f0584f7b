"""The message for a Python that lacks a package of ECLOUD. Imports only the standard library."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_INSTALLED = 3
"""The exit code: a part is missing."""


def sentence(program: str, error: ImportError) -> str:
    """Return which package is missing and how to install it: in a checkout by make, in an environment by pip."""
    missing = (error.name or "a package").partition(".")[0]
    text = f"{program}: the Python at {sys.executable} lacks {missing}"
    if (ROOT / "Makefile").exists():
        return f"{text}: run `make install`, then .venv/bin/python {program}"
    return f"{text}: {sys.executable} -m pip install 'ecloud[all]'"
