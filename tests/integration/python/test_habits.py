"""Programs written for other systems: Dask's names, cluster-workers, oden files, joblib. On a private cluster."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import joblib
import pytest
from services import ROOT, wait_until

import ecloud.joblib
from ecloud import Client, ClientThread, ClusterExecutor, as_completed
from ecloud.config.secrets import write_access
from ecloud.python.cluster import Cluster

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The access file of a cluster of two workers."""
    cluster = Cluster(None, workers=2, private=True)
    path = tmp_path_factory.mktemp("access") / "access"
    write_access(path, cluster.access)
    with ClusterExecutor(cluster.access) as executor:  # the boss starts the second worker when two calls take long
        wait_until(lambda: list(executor.map(time.sleep, [0.5] * 4, chunksize=1)) and executor.workers == 2, 60.0)
    yield path
    cluster.close()


@pytest.fixture(autouse=True)
def _usual(access: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECLOUD_ACCESS", str(access))


def square(number: int) -> int:
    return number * number


def divide(number: int) -> float:
    return 1 / number


# --- Dask's names -----------------------------------------------------------------------------------------


def test_a_client_gathers_what_it_mapped_in_the_same_nesting() -> None:
    with Client() as client:
        squares = client.map(square, range(5))
        total = client.submit(sum, squares)
        assert client.gather({"squares": squares, "total": [total]}) == {"squares": [0, 1, 4, 9, 16], "total": [30]}
        assert {future.result() for future in as_completed(squares)} == {0, 1, 4, 9, 16}
        assert total.status == "finished"


def test_failed_calls_are_raised_or_skipped() -> None:
    with Client() as client:
        futures = client.map(divide, [1, 0, 2])
        with pytest.raises(ZeroDivisionError):
            client.gather(futures)
        assert client.gather(futures, errors="skip") == [1.0, 0.5]
        assert [future.status for future in futures] == ["finished", "error", "finished"]


def test_scattered_values_are_arguments() -> None:
    with Client() as client:
        first, second = client.scatter([[1, 2, 3], [4]])
        named = client.scatter({"a": list(range(100_000))})
        assert client.submit(len, named["a"]).result() == 100_000
        assert client.gather(client.map(len, [first, second])) == [3, 1]


def test_cancelled_calls_do_not_run() -> None:
    with Client() as client:
        hold = client.submit(time.sleep, 60)
        client.cancel([hold])
        assert hold.status == "cancelled"


# --- cluster-workers --------------------------------------------------------------------------------------


def test_a_client_thread_calls_back_with_the_id_of_each_job() -> None:
    results: dict[int, int] = {}
    client = ClientThread(results.__setitem__)
    client.start()
    for job in range(20):
        client.submit(job, square, job)
    client.wait()
    assert results == {job: job * job for job in range(20)}
    client.submit(99, divide, 0)
    with pytest.raises(ZeroDivisionError):
        client.wait()
    client.submit(100, square, 3)
    client.wait()
    assert results[100] == 9
    client.stop()
    for late in (client.start, lambda: client.submit(101, square, 4)):
        with pytest.raises(RuntimeError, match="this ClientThread was stopped and takes no more jobs: make another"):
            late()


PROGRAM = """
import cw, cw.client

def done(jobid, output):
    print(jobid, output)

def work(n):
    if n == 3:
        raise ValueError("three")
    return n * n

def main():
    with cw.allocate(nworkers=1):
        client = cw.client.ClientThread(done)
        client.start()
        for n in range(3):
            client.submit(n, work, n)
        client.wait()
        client.submit(cw.randid(), work, 3)
        try:
            client.wait()
        except cw.client.RemoteException as error:
            print("remote:", "three" in str(error))
    with cw.client.ClusterExecutor() as executor:
        print(list(executor.map(work, [5, 6])))

if __name__ == "__main__":
    main()
"""


def test_a_program_for_cluster_workers_runs_with_another_pythonpath(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'examples' / 'compat'}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "0 0", "1 1", "2 4", "[25, 36]", "remote: True"]


# --- oden -------------------------------------------------------------------------------------------------

ODEN = """
from flask import Flask  # above the marker: never run here
# ------ User write below ------
try:
    hosts = pathlib.Path("hosts.txt").read_text()
except FileNotFoundError:
    hosts = ""
name = "sample"
def make_tasks():
    return [3, 1, 2, 2]
def calc(task):
    if task == 1 and not pathlib.Path({flag!r}).exists():
        raise ValueError("one")
    return task * 10
def handle_finish_machine(uri, name):
    print("machine", name)
def handle_finish_tasks():
    print("all done")
def show_status():
    return "fine"
# ------ User write above ------
app = Flask(__name__)
"""


def oden(place: Path, mode: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ecloud.oden", "oden.py", mode],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def results(place: Path) -> list[tuple[int, int]]:
    found = [pickle.loads(path.read_bytes()) for path in place.glob("sample*.done.pickle")]
    return sorted((item["task"], pickle.loads(item["result"])) for item in found)


def test_an_oden_project_is_run_and_resumed(tmp_path: Path) -> None:
    flag = tmp_path / "mended"
    (tmp_path / "oden.py").write_text(ODEN.format(flag=str(flag)))
    first = oden(tmp_path, "manager")
    assert first.returncode == 1, first.stderr
    assert "resume" in first.stderr
    assert "all done" in first.stdout
    assert results(tmp_path) == [(2, 20), (2, 20), (3, 30)]
    (error,) = tmp_path.glob("sample*.error.pickle")
    assert "ValueError: one" in pickle.loads(error.read_bytes())["error"]
    status = oden(tmp_path, "status")
    assert status.stdout.split("\n")[:2] == ["sample: 4 tasks, 3 done, 1 failed, 0 to run", "fine"]
    again = oden(tmp_path, "manager")
    assert again.returncode == 2
    assert "4 results of an earlier calculation" in again.stderr
    flag.touch()
    assert oden(tmp_path, "resume").returncode == 0
    assert results(tmp_path) == [(1, 10), (2, 20), (2, 20), (3, 30)]
    assert not list(tmp_path.glob("sample*.error.pickle"))
    assert "all tasks have a result" in oden(tmp_path, "resume").stderr


ODEN_WITH_ODD_VALUES = """
# ------ User write below ------
name = "sample"
class Own:
    pass
class Odd:
    def __reduce__(self):
        return int, ("odd",)
def make_tasks():
    return [1, 2, 3, 4]
def calc(task):
    if task == 4:
        raise ValueError("four")
    return {2: Odd(), 3: Own()}.get(task, task * 10)
# ------ User write above ------
"""


def test_a_value_that_cannot_be_read_or_written_is_the_error_of_its_task_alone(tmp_path: Path) -> None:
    (tmp_path / "oden.py").write_text(ODEN_WITH_ODD_VALUES)
    for mode in ("manager", "resume"):
        done = oden(tmp_path, mode)
        assert done.returncode == 1, done.stderr
        assert "a fault of ECLOUD" not in done.stderr
        assert "task 4 failed: ValueError: four\n" in done.stderr
        assert results(tmp_path) == [(1, 10)]
        errors = [pickle.loads(path.read_bytes()) for path in tmp_path.glob("sample*.error.pickle")]
        texts = {error["task"]: error["error"] for error in errors}
        assert sorted(texts) == [2, 3, 4]
        assert "cannot be unpickled here: ValueError: invalid literal" in texts[2]
        assert "cannot be pickled" in texts[3]


def test_a_failure_of_calc_on_this_machine_is_shown_as_python_shows_it(tmp_path: Path) -> None:
    (tmp_path / "oden.py").write_text(ODEN_WITH_ODD_VALUES)
    done = oden(tmp_path, "test")
    assert done.returncode == 1
    trace = done.stderr[done.stderr.index("Traceback") :].splitlines()
    assert trace[1] == '  File "oden.py", line 13, in calc'
    assert trace[-1] == "ValueError: four"
    assert "ECLOUD" not in done.stderr


def test_a_file_that_cannot_be_used_is_named_once(tmp_path: Path) -> None:
    assert oden(tmp_path, "test").stderr == "oden: oden.py cannot be read: No such file or directory\n"
    (tmp_path / "oden.py").write_bytes(b"\xff")
    assert oden(tmp_path, "test").stderr == "oden: oden.py cannot be read: it is not UTF-8 text\n"
    (tmp_path / "oden.py").write_text(ODEN_WITH_ODD_VALUES.replace("class Own", "absent()\nclass Own"))
    assert oden(tmp_path, "test").stderr == "oden: oden.py, line 4: NameError: name 'absent' is not defined\n"


def test_a_file_without_markers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "oden.py").write_text("name = 'x'\n")
    done = oden(tmp_path, "test")
    assert done.returncode == 2
    assert "User write below" in done.stderr
    assert "Traceback" not in done.stderr


# --- joblib -----------------------------------------------------------------------------------------------


def nested(number: int) -> int:
    return sum(joblib.Parallel(n_jobs=2)(joblib.delayed(square)(item) for item in range(number)))


def test_scikit_learns_grid_search_runs_on_the_cluster() -> None:
    """Skipped where scikit-learn is not installed: it is not among the development packages."""
    datasets, selection, svm = map(pytest.importorskip, ("sklearn.datasets", "sklearn.model_selection", "sklearn.svm"))
    with joblib.parallel_config(backend="ecloud"):
        search = selection.GridSearchCV(svm.SVC(), {"C": [1e-3, 1.0], "kernel": ["linear", "rbf"]}, cv=3, n_jobs=-1)
        search.fit(*datasets.load_iris(return_X_y=True))
    assert search.best_params_["C"] == 1.0
    assert search.best_score_ > 0.9


def test_joblib_runs_on_the_cluster() -> None:
    assert ecloud.joblib.ClusterBackend
    with joblib.parallel_config(backend="ecloud"):
        assert joblib.effective_n_jobs(-1) == 2
        parallel = joblib.Parallel(n_jobs=-1)
        assert parallel(joblib.delayed(square)(number) for number in range(200)) == [n * n for n in range(200)]
        assert joblib.Parallel()(joblib.delayed(nested)(number) for number in (3, 4)) == [5, 14]
        with pytest.raises(ZeroDivisionError):
            parallel(joblib.delayed(divide)(number) for number in (1, 0, 2))
        assert parallel(joblib.delayed(square)(number) for number in range(3)) == [0, 1, 4]
