"""CPython's own tests of executors (`test_concurrent_futures.py` of its test suite), on `ClusterExecutor`.

Not taken over, and why:

- `ExecutorShutdownTest.test_interpreter_shutdown`, `test_submit_after_interpreter_shutdown`, `test_hang_gh83386`: they
  import the executor from `concurrent.futures`; `test_programs.py` has what they test.
- `ThreadPool…` and `ProcessPool…` tests inspect threads, processes and queues that do not exist here.
- `ExecutorDeadlockTest`: it breaks the pool; here a crash costs its own call (`test_executor.py`).
- `FailingInitializerMixin`: it waits until the executor is broken for good; here each call fails with `BrokenExecutor`.
- `FutureTests` make futures by hand, of the standard library's class.
- `ExecutorShutdownTest.test_cancel_futures` wants one of the calls to end: here `cancel()` ends those that run, too.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ecloud import ClusterExecutor
from ecloud.config.secrets import AccessFile
from ecloud.python.cluster import Cluster

SUITE = Path(f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/test/test_concurrent_futures.py")
MODULE = "cpython_futures"
MIXINS = ("ExecutorTest", "WaitTests", "AsCompletedTests", "ExecutorShutdownTest", "InitializerMixin")
LEFT_OUT = frozenset(
    {
        "test_interpreter_shutdown", "test_submit_after_interpreter_shutdown", "test_hang_gh83386",
        "test_cancel_futures",
    }
)  # fmt: skip
pytestmark = [
    pytest.mark.skipif(not SUITE.exists(), reason=f"{SUITE} is not there: apt-get install libpython3.11-testsuite"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Place:
    """The cluster of these tests."""

    access: AccessFile


class OnCluster(ClusterExecutor):
    """As the tests make executors."""

    def __init__(self, max_workers: int | None = None, **options: Any) -> None:
        super().__init__(Place.access, max_workers=max_workers, **options)


def loaded() -> types.ModuleType:
    """The suite's file as a module."""
    spec = importlib.util.spec_from_file_location(MODULE, SUITE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    return module


def case_of(mixin: str) -> type[unittest.TestCase]:
    """A test case of the suite for our executor."""
    suite = sys.modules.get(MODULE) or loaded()
    own = type("OurMixin", (suite.ExecutorMixin,), {"executor_type": OnCluster})
    bases = (getattr(suite, mixin), own, unittest.TestCase)
    return type(f"Cluster{mixin}", bases, {"runTest": lambda self: None})


def names() -> list[tuple[str, str]]:
    """(mixin, test) of what is taken over."""
    if not SUITE.exists():
        return []
    suite = loaded()
    found = [(mixin, name) for mixin in MIXINS for name in vars(getattr(suite, mixin)) if name.startswith("test_")]
    return [(mixin, name) for mixin, name in found if name not in LEFT_OUT]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A private cluster whose interpreters can import the suite's file."""
    place = tmp_path_factory.mktemp("suite")
    (place / f"{MODULE}.py").write_text(SUITE.read_text())
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (before, str(place))))
    cluster = Cluster(None, workers=4)
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
    Place.access = cluster.access
    yield
    cluster.close()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("mixin", "name"), names())
def test_cpythons_tests(mixin: str, name: str) -> None:
    case = case_of(mixin)(name)
    result = unittest.TestResult()
    case.run(result)
    assert not result.failures + result.errors, "\n".join(text for _, text in result.failures + result.errors)
    assert result.testsRun == 1
