"""Calls through deaths: of an interpreter, and in the long tests of the program, the boss and a worker together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import pytest
import sqlalchemy as sa
from services import Daemon

from ecloud import ClusterExecutor, RemoteError
from ecloud.config.settings import load_settings
from ecloud.python.cluster import Cluster
from ecloud.queries.status import open_database

cloudpickle.register_pickle_by_value(sys.modules[__name__])
ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 300.0
COUNT = 5_000


def triple(number: int) -> int:
    return 3 * number


def triple_unless(number: int, deadly: int) -> int:
    if number == deadly:
        os.kill(os.getpid(), signal.SIGSEGV)
    return 3 * number


def test_a_segfault_in_one_of_a_thousand_calls_costs_that_one(cluster: Cluster) -> None:
    with ClusterExecutor(cluster.access) as executor:
        futures = [executor.submit(triple_unless, number, 500) for number in range(1_000)]
        errors = {number: error for number, future in enumerate(futures) if (error := future.exception(PATIENCE_S))}
        assert list(errors) == [500]
        assert isinstance(errors[500], RemoteError)
        assert "SIGSEGV" in str(errors[500])
        assert [future.result() for future in futures if future is not futures[500]] == [
            3 * number for number in range(1_000) if number != 500
        ]


PROGRAM = """
import sys
from ecloud import ClusterExecutor

def triple(number):
    return 3 * number

if __name__ == "__main__":
    executor = ClusterExecutor(sys.argv[1], run="endures", retries=9)
    for number in range({count}):
        executor.options(key=f"call-{{number}}").submit(triple, number)
    executor._link.flush(100)
    print("submitted", flush=True)
    sys.stdin.read()
"""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_killed_program_a_killed_boss_and_a_killed_worker_lose_no_call(
    daemons: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = daemons("--local", "2").start()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(count=COUNT))
    argv = [sys.executable, str(program), str(daemon.home.client_access)]
    env = {**daemon.environment, "PYTHONPATH": str(ROOT)}
    client = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    assert client.stdout.readline() == "submitted\n"
    client.kill()
    client.communicate()
    workers = [pid for pid, command in daemon.processes().items() if re.search(r"-m worker ", command)]
    os.kill(workers[0], signal.SIGKILL)
    daemon.restart("--local", "2")
    with ClusterExecutor(daemon.home.client_access) as executor:
        executor.attach("endures")
        assert [executor.future(f"call-{number}").result(PATIENCE_S) for number in range(COUNT)] == [
            3 * number for number in range(COUNT)
        ]
    engine = open_database(load_settings({"home": str(daemon.home.path), "database_url": ""}))
    with engine.connect() as connection:
        states = dict(connection.execute(sa.text("SELECT state, count(*) FROM tasks GROUP BY state")).all())
        good = connection.execute(sa.text("SELECT count(*) FROM attempts WHERE cause = 'success'")).scalar()
    engine.dispose()
    assert (states, good) == ({"succeeded": COUNT}, COUNT)


class Counted:
    """100 MB that note in a file when they are unpickled."""

    def __init__(self, place: str, data: bytes) -> None:
        self.place, self.data = place, data

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        (Path(self.place) / f"{os.getpid()}-{time.monotonic_ns()}").touch()


def size_of(item: Counted, number: int) -> int:
    return len(item.data) + number


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_array_shared_by_a_thousand_calls_is_moved_once_to_each_worker(cluster: Cluster, tmp_path: Path) -> None:
    size = 100_000_000
    with ClusterExecutor(cluster.access, run="shares") as executor:
        shared = executor.share(Counted(str(tmp_path), bytes(size)))
        futures = [executor.submit(size_of, shared, number) for number in range(1_000)]
        assert [future.result(PATIENCE_S) for future in futures] == [size + number for number in range(1_000)]
    unpickled = [path.name.partition("-")[0] for path in tmp_path.iterdir()]
    assert len(unpickled) == len(set(unpickled)) <= 2
    engine = open_database(cluster.settings)
    with engine.connect() as connection:
        moved = connection.execute(sa.text("SELECT sum(fetch_bytes - cached_bytes) FROM attempts")).scalar()
    engine.dispose()
    assert size * len(set(unpickled)) <= moved < size * 2.1
