"""Names that clients and workers share about calls."""

from __future__ import annotations

PYTHON_CALLS = 1_000.0
"""How much a worker offers of each Python it has. A call asks for 1: what limits calls is their other resources."""


def python_resource(version: str) -> str:
    """The resource that stands for a version of Python, as in `python3.11`."""
    return f"python{version}"
