"""The shared language of boss, workers and doors: tasks, messages, formats, tables, questions.

For programs: `from ecloud import ClusterExecutor` (docs/python.md).
"""

import importlib
import os
import sys
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
        try:
            module = importlib.import_module(_FOR_PROGRAMS[name])
        except Exception:
            file = _shadowing_file()
            if not file:
                raise
            stem = os.path.basename(file).partition(".")[0]
            raise ImportError(f"{file} takes the place of Python's own module {stem!r}: rename it") from None
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _shadowing_file() -> str:
    """Return the file beside the program that was loaded instead of a module of Python's own; empty if none was."""
    place = os.path.realpath(sys.path[0] if sys.path else "")
    for name in sys.stdlib_module_names & sys.modules.keys():
        file = getattr(sys.modules[name], "__file__", None)
        if file and os.path.realpath(os.path.dirname(file)) == place:
            return str(file)
    return ""


def __dir__() -> list[str]:
    return sorted([*globals(), *_FOR_PROGRAMS])
