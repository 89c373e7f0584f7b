"""The environment of tasks: the part of the worker's environment that they get, and the variables that the worker
adds."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ecloud.model.tasks import Resources

CHECKOUT = Path(__file__).resolve().parents[2]
SECRETS = ("ECLOUD_SETTINGS", "ECLOUD_HOME", "ECLOUD_ACCESS", "ECLOUD_DATASTORE_VIA")
THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "JULIA_NUM_THREADS",
)  # fmt: skip
"""Libraries read the number of threads to start from each of these. Without them each task starts as many threads as
the machine has CPUs."""


def inherited(environment: Mapping[str, str], prefix: str = sys.prefix) -> dict[str, str]:
    """Return the part of the worker's own environment that tasks get.

    It has no secrets, and neither the path with which `start.sh` makes our code importable, nor our own `.venv`:
    `python3` in a task is the machine's, or that of the user's own environment.
    """
    env = {name: value for name, value in environment.items() if name not in SECRETS}
    ours = (str(CHECKOUT), str(CHECKOUT / "packages"))
    others = [path for path in env.pop("PYTHONPATH", "").split(os.pathsep) if path and path not in ours]
    if others:
        env["PYTHONPATH"] = os.pathsep.join(others)
    if _is_own_venv(env.get("VIRTUAL_ENV", "")):
        del env["VIRTUAL_ENV"]
        env.pop("VIRTUAL_ENV_PROMPT", None)
    if "PATH" in env:
        paths = env["PATH"].split(os.pathsep)
        env["PATH"] = os.pathsep.join(path for path in paths if not _is_own_venv(os.path.dirname(path.rstrip("/"))))
    return env


def _is_own_venv(path: str) -> bool:
    """Whether a directory is the virtual environment of our checkout, also under another name."""
    if not path or not os.path.isfile(os.path.join(path, "pyvenv.cfg")):
        return False
    own = CHECKOUT / ".venv"
    return Path(path).parent.resolve() == CHECKOUT or os.path.realpath(path) == os.path.realpath(own)


@functools.lru_cache(maxsize=1_000)
def of_cpus(cpus: float) -> dict[bytes, bytes]:
    """Return the variables for the number of CPUs, for the task and for libraries that start threads."""
    threads = b"%d" % max(1, int(cpus))
    return {b"ECLOUD_CPUS": b"%g" % cpus, **{name.encode(): threads for name in THREADS}}


def of_resources(asks: Resources) -> dict[bytes, bytes]:
    """See `of_cpus`. A task that requests no CPU gets one thread."""
    return of_cpus(asks.get("cpus", 0.0))


def of_gpus(gpus: Sequence[str]) -> dict[str, str]:
    """Return the variables for the GPUs of a task, for NVIDIA's and AMD's libraries. Indices count as `nvidia-smi`
    does."""
    named = ",".join(gpus)
    return {
        "CUDA_VISIBLE_DEVICES": named,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "ROCR_VISIBLE_DEVICES": named,
    }


def encoded(env: Mapping[str, str]) -> dict[bytes, bytes]:
    """Encode variables as bytes, the form in which a process gets them."""
    return {os.fsencode(name): os.fsencode(value) for name, value in env.items()}
