"""The shared language of boss, workers and doors: tasks, messages, formats, tables, questions.

For programs: `from ecloud import ClusterExecutor` (docs/python.md).
"""

import importlib
from typing import Any

VERSION = "0.1.0"
"""Of the package; pyproject.toml reads it here."""
_FOR_PROGRAMS = {
    "Client": "ecloud.python.client",
    "ClientThread": "ecloud.python.client_thread",
    "ClusterExecutor": "ecloud.python.executor",
    "RemoteError": "ecloud.python.payload",
    "as_completed": "ecloud.python.client",
    "slurm_master_host": "ecloud.python.slurm",
}
"""What programs import, and where it is: loaded when it is asked for."""


def __getattr__(name: str) -> Any:
    if name in _FOR_PROGRAMS:
        return getattr(importlib.import_module(_FOR_PROGRAMS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FOR_PROGRAMS])
