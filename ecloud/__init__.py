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
_ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


def __getattr__(name: str) -> Any:
    if name in _FOR_PROGRAMS:
        try:
            module = importlib.import_module(_FOR_PROGRAMS[name])
        except Exception:
            file, of_whom = _shadowing_file()
            if not file:
                raise
            stem = os.path.basename(file).partition(".")[0]
            raise ImportError(f"{file} takes the place of {of_whom} {stem!r}: rename it") from None
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _shadowing_file() -> tuple[str, str]:
    """Return the file or directory that was loaded instead of a module of Python's own or a package of ECLOUD, and
    which of both; empty if none was."""
    # Programs load no other package of ECLOUD: they may have a `worker.py` of their own.
    ours = str(getattr(sys.modules.get("datastore"), "__file__", None) or "")
    taken = os.path.dirname(ours) if os.path.basename(ours).startswith("__init__.") else ours
    if taken and os.path.realpath(taken) != os.path.join(_ROOT, "datastore"):
        return taken, "ECLOUD's own package"
    place = os.path.realpath(sys.path[0] if sys.path else "")
    for name in sys.stdlib_module_names & sys.modules.keys():
        file = getattr(sys.modules[name], "__file__", None)
        if file and os.path.realpath(os.path.dirname(file)) == place:
            return str(file), "Python's own module"
    return "", ""


def __dir__() -> list[str]:
    return sorted([*globals(), *_FOR_PROGRAMS])
