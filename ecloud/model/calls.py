"""Names for calls that clients and workers share."""

from __future__ import annotations

import hashlib
import re

PYTHON_CALLS = 1_000.0
"""Amount that a worker offers of each Python it has. A call requests 1: its other resources are the limit."""

VALUES = "calls"
"""Directory of the datastore for pickles that are too large for a message."""


def python_resource(version: str) -> str:
    """Return the resource for a version of Python, such as `python3.11`."""
    return f"python{version}"


def is_python_resource(name: str) -> bool:
    """Return whether a resource is a version of Python."""
    return re.fullmatch(r"python\d+\.\d+", name) is not None


def calls_directory(run: str) -> str:
    """Return the directory of the datastore for large pickles of the calls of a run. Runs do not share one."""
    return f"{VALUES}/{file_name(run)}"


def file_name(name: str) -> str:
    """Return a name that a file can have. Different names do not share one."""
    safe = re.sub(r"[^\w.=+-]", "_", name, flags=re.ASCII).lstrip(".")
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
