"""Names for calls that clients and workers share."""

from __future__ import annotations

PYTHON_CALLS = 1_000.0
"""Amount that a worker offers of each Python it has. A call requests 1: its other resources are the limit."""


def python_resource(version: str) -> str:
    """Return the resource for a version of Python, such as `python3.11`."""
    return f"python{version}"
