"""Names for calls that clients and workers share."""

from __future__ import annotations

import re

PYTHON_CALLS = 1_000.0
"""Amount that a worker offers of each Python it has. A call requests 1: its other resources are the limit."""


def python_resource(version: str) -> str:
    """Return the resource for a version of Python, such as `python3.11`."""
    return f"python{version}"


def is_python_resource(name: str) -> bool:
    """Return whether a resource is a version of Python."""
    return re.fullmatch(r"python\d+\.\d+", name) is not None
