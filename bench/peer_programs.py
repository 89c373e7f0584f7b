"""The measurements A, B, H and C by one peer, run by the Python of the peers' environment: imports nothing of ECLOUD.

    python peer_programs.py ray|dask|celery|hyperqueue|parsl|processes DIRECTORY

Prints one line of JSON: tasks a second (A), ms a link (B), ms from submit to the start of the command (H), calls a
second by submit and by map and ms of one call (C), and the peer's version. Two slots everywhere. `processes` is
Python's own ProcessPoolExecutor.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

TASKS, LINKS, SINGLES, CALLS = (100, 20, 5, 200) if "BENCH_SMALL" in os.environ else (4_000, 300, 50, 10_000)
"""With BENCH_SMALL, few of each: to see that everything runs, not how fast."""
CHUNK = 100
"""Calls that a map sends together, where the peer does not choose it."""
PAUSE_S = 0.03
"""Pause between two single tasks, so that the cluster is idle."""
WARM = 50
START_S = 30.0
Found = dict[str, Any]


def run_true(before: object = None) -> int:
    """One task of A and B. It imports what it needs: Parsl sends functions without their modules."""
    import subprocess

    return subprocess.run(["sh", "-c", "true"], check=True).returncode


def note_start(path: str) -> int:
    """One task of H: writes the time at which its command starts to a file, in ns."""
    import subprocess

    return subprocess.run(["sh", "-c", f"date +%s%N > {path}"], check=True).returncode


def nothing(number: int) -> int:
    """One call of C."""
    return number


def nothings(numbers: Iterable[int]) -> list[int]:
    """Many calls of C in one task, for peers without a map of their own that does this."""
    return [nothing(number) for number in numbers]


def timed(action: Callable[[], object]) -> float:
    """Return the action's duration in seconds."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


def singles(directory: Path, submit_and_wait: Callable[[str], object]) -> list[float]:
    """Return the ms from submit to the start of the command, of one task at a time."""
    found = []
    for number in range(SINGLES):
        time.sleep(PAUSE_S)
        path = directory / f"single-{number}"
        began_ns = time.time_ns()
        submit_and_wait(str(path))
        found.append((int(path.read_text()) - began_ns) / 1e6)
    return found


class Calls(NamedTuple):
    """C: submit this many calls one by one and wait for all; the same by the peer's map, if it has one; one call."""

    submit: Callable[[int], object]
    map: Callable[[int], object] | None
    one: Callable[[], object]


def figures(
    all_tasks: Callable[[int], object],
    chain: Callable[[int], object],
    one: Callable[[str], object],
    calls: Calls | None,
    directory: Path,
) -> Found:
    """Run all measurements, after a warm-up that is not counted."""
    all_tasks(WARM)
    chain(WARM)
    one(str(directory / "warm"))
    found: Found = {
        "A": TASKS / timed(lambda: all_tasks(TASKS)),
        "B": timed(lambda: chain(LINKS)) / LINKS * 1e3,
        "H": singles(directory, one),
    }
    if calls is not None:
        calls.submit(WARM)
        found["submit"] = CALLS / timed(lambda: calls.submit(CALLS))
        by_map = calls.map
        if by_map is not None:
            by_map(WARM)
            found["map"] = CALLS / timed(lambda: by_map(CALLS))
        found["call"] = median([timed(calls.one) * 1e3 for _ in range(SINGLES)])
    return found


def of_ray(directory: Path) -> Found:
    """Ray, with its own cluster on this machine."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    true, note, call, many = map(ray.remote, (run_true, note_start, nothing, nothings))

    def chain(links: int) -> None:
        last = None
        for _ in range(links):
            last = true.remote(last)
        ray.get(last)

    return figures(
        lambda count: ray.get([true.remote() for _ in range(count)]),
        chain,
        lambda path: ray.get(note.remote(path)),
        Calls(
            lambda count: ray.get([call.remote(number) for number in range(count)]),
            lambda count: ray.get([many.remote(range(count)[at : at + CHUNK]) for at in range(0, count, CHUNK)]),
            lambda: ray.get(call.remote(1)),
        ),
        directory,
    )


def of_dask(directory: Path) -> Found:
    """Dask.distributed with two worker processes."""
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=directory) as cluster,
        Client(cluster) as client,
    ):

        def chain(links: int) -> None:
            last: Any = None
            for _ in range(links):
                last = client.submit(run_true, last, pure=False)
            last.result()

        return figures(
            lambda count: client.gather([client.submit(run_true, pure=False) for _ in range(count)]),
            chain,
            lambda path: client.submit(note_start, path, pure=False).result(),
            Calls(
                lambda count: client.gather([client.submit(nothing, number, pure=False) for number in range(count)]),
                lambda count: client.gather(client.map(nothing, range(count), pure=False)),
                lambda: client.submit(nothing, 1, pure=False).result(),
            ),
            directory,
        )


def of_celery(directory: Path) -> Found:
    """Celery with a private Redis and two worker processes."""
    port = _free_port()
    redis = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)],
        stdout=subprocess.DEVNULL,
    )
    worker = None
    try:
        _wait_for(port)
        url = f"redis://127.0.0.1:{port}/0"
        app = celery_app(url)
        options = ["worker", "-c", "2", "-l", "error", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        command = [sys.executable, "-m", "celery", "-A", "peer_programs", *options]
        environment = {**os.environ, "PEER_CELERY": url, "PYTHONPATH": str(Path(__file__).parent), "C_FORCE_ROOT": "1"}
        worker = subprocess.Popen(command, env=environment, cwd=directory, stdout=subprocess.DEVNULL)
        from celery import chain as celery_chain
        from celery import group
        from celery.result import ResultSet

        true, note, call = (app.tasks[f"peer.{name}"] for name in ("run_true", "note_start", "nothing"))

        def gather(signatures: Iterable[Any]) -> None:
            group(signatures).apply_async().join(interval=0.005)

        return figures(
            lambda count: gather(true.si() for _ in range(count)),
            lambda links: celery_chain(*[true.si() for _ in range(links)]).apply_async().get(interval=0.005),
            lambda path: note.delay(path).get(interval=0.005),
            Calls(
                lambda count: ResultSet([call.delay(number) for number in range(count)]).join(interval=0.005),
                lambda count: call.chunks(zip(range(count)), CHUNK).apply_async().get(interval=0.005),
                lambda: call.delay(1).get(interval=0.005),
            ),
            directory,
        )
    finally:
        for process in filter(None, (worker, redis)):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)


def celery_app(url: str) -> Any:
    """Return the application, for client and workers."""
    from celery import Celery

    app = Celery("peer", broker=url, backend=url)
    for function in (run_true, note_start, nothing):
        app.task(function, name=f"peer.{function.__name__}")
    return app


if "PEER_CELERY" in os.environ:
    app = celery_app(os.environ["PEER_CELERY"])


def of_hyperqueue(directory: Path) -> Found:
    """HyperQueue with one worker of two cores. Its tasks are programs; it has no comparable calls."""
    from hyperqueue import Job
    from hyperqueue.cluster import LocalCluster, WorkerConfig

    with LocalCluster() as cluster:
        cluster.start_worker(WorkerConfig(cores=2))
        client = cluster.client()

        def submit(commands: list[str], chained: bool = False) -> None:
            job = Job(directory)
            last: list[Any] = []
            for command in commands:
                task = job.program(["sh", "-c", command], deps=last, stdout=None, stderr=None)
                last = [task] if chained else []
            client.wait_for_jobs([client.submit(job)])

        def start_one(path: str) -> None:
            """Wait for the file, not for the client, which asks once a second whether a job has ended."""
            job = Job(directory)
            job.program(["sh", "-c", f"date +%s%N > {path}.new; mv {path}.new {path}"], stdout=None, stderr=None)
            client.submit(job)
            while not Path(path).exists():
                time.sleep(0.002)

        return figures(
            lambda count: submit(["true"] * count),
            lambda links: submit(["true"] * links, chained=True),
            start_one,
            None,
            directory,
        )


def of_parsl(directory: Path) -> Found:
    """Parsl's HighThroughputExecutor with two workers on this machine."""
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    provider = LocalProvider(init_blocks=1, max_blocks=1)
    executor = HighThroughputExecutor(max_workers_per_node=2, address="127.0.0.1", provider=provider)
    with parsl.load(Config(executors=[executor], run_dir=str(directory / "runinfo"), usage_tracking=0)):
        true, note, call = map(parsl.python_app, (run_true, note_start, nothing))

        def gather(futures: list[Any]) -> None:
            for future in futures:
                future.result()

        def chain(links: int) -> None:
            last = None
            for _ in range(links):
                last = true(last)
            gather([last])

        return figures(
            lambda count: gather([true() for _ in range(count)]),
            chain,
            lambda path: note(path).result(),
            Calls(lambda count: gather([call(number) for number in range(count)]), None, lambda: call(1).result()),
            directory,
        )


def of_processes(directory: Path) -> Found:
    """Python's own pool of two processes: what calls cost without a cluster."""
    with ProcessPoolExecutor(2) as pool:

        def gather(futures: list[Any]) -> None:
            for future in futures:
                future.result()

        def chain(links: int) -> None:
            for _ in range(links):
                pool.submit(run_true).result()

        return figures(
            lambda count: gather([pool.submit(run_true) for _ in range(count)]),
            chain,
            lambda path: pool.submit(note_start, path).result(),
            Calls(
                lambda count: gather([pool.submit(nothing, number) for number in range(count)]),
                lambda count: list(pool.map(nothing, range(count), chunksize=CHUNK)),
                lambda: pool.submit(nothing, 1).result(),
            ),
            directory,
        )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(port: int) -> None:
    give_up_at = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.05)


PEERS = {
    "ray": of_ray, "dask": of_dask, "celery": of_celery, "hyperqueue": of_hyperqueue, "parsl": of_parsl,
    "processes": of_processes,
}  # fmt: skip
PACKAGES = {"dask": "distributed"}

if __name__ == "__main__":
    name = sys.argv[1]
    result = PEERS[name](Path(sys.argv[2]))
    version = platform.python_version() if name == "processes" else importlib.metadata.version(PACKAGES.get(name, name))
    print(json.dumps({**result, "version": version}), flush=True)
