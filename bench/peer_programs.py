"""The measurements A, B, H and C by one peer, run by the Python of the peers' environment: imports nothing of ECLOUD.

    python peer_programs.py ray|dask|celery|hyperqueue|parsl DIRECTORY

Prints one line of JSON: tasks a second (A), ms a link (B), ms from submit to the start of the command (H), calls a
second (C), and the peer's version. Two slots everywhere.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

TASKS, LINKS, SINGLES, CALLS = 4_000, 300, 50, 2_000
PAUSE_S = 0.03
"""Pause between two single tasks, so that the cluster is idle."""
WARM = 50
START_S = 30.0
Found = dict[str, Any]


def run_true(before: object = None) -> int:
    """One task of A and B."""
    return subprocess.run(["sh", "-c", "true"], check=True).returncode


def note_start(path: str) -> int:
    """One task of H: writes the time at which its command starts to a file, in ns."""
    return subprocess.run(["sh", "-c", f"date +%s%N > {path}"], check=True).returncode


def nothing(number: int) -> int:
    """One call of C."""
    return number


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


def figures(
    all_tasks: Callable[[int], object],
    chain: Callable[[int], object],
    one: Callable[[str], object],
    calls: Callable[[int], object] | None,
    directory: Path,
) -> Found:
    """Run all four measurements, after a warm-up that is not counted."""
    all_tasks(WARM)
    chain(WARM)
    one(str(directory / "warm"))
    found: Found = {
        "A": TASKS / timed(lambda: all_tasks(TASKS)),
        "B": timed(lambda: chain(LINKS)) / LINKS * 1e3,
        "H": singles(directory, one),
    }
    if calls is not None:
        calls(WARM)
        found["C"] = CALLS / timed(lambda: calls(CALLS))
    return found


def of_ray(directory: Path) -> Found:
    """Ray, with its own cluster on this machine."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    true, note, call = ray.remote(run_true), ray.remote(note_start), ray.remote(nothing)

    def chain(links: int) -> None:
        last = None
        for _ in range(links):
            last = true.remote(last)
        ray.get(last)

    return figures(
        lambda count: ray.get([true.remote() for _ in range(count)]),
        chain,
        lambda path: ray.get(note.remote(path)),
        lambda count: ray.get([call.remote(number) for number in range(count)]),
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
            lambda count: client.gather(client.map(nothing, range(count), pure=False)),
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

        true, note, call = (app.tasks[f"peer.{name}"] for name in ("run_true", "note_start", "nothing"))

        def gather(signatures: Iterable[Any]) -> None:
            group(signatures).apply_async().join(interval=0.005)

        return figures(
            lambda count: gather(true.si() for _ in range(count)),
            lambda links: celery_chain(*[true.si() for _ in range(links)]).apply_async().get(interval=0.005),
            lambda path: note.delay(path).get(interval=0.005),
            lambda count: gather(call.si(number) for number in range(count)),
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

        return figures(
            lambda count: submit(["true"] * count),
            lambda links: submit(["true"] * links, chained=True),
            lambda path: submit([f"date +%s%N > {path}"]),
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
            lambda count: gather([call(number) for number in range(count)]),
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


PEERS = {"ray": of_ray, "dask": of_dask, "celery": of_celery, "hyperqueue": of_hyperqueue, "parsl": of_parsl}
PACKAGES = {"dask": "distributed"}

if __name__ == "__main__":
    name = sys.argv[1]
    result = PEERS[name](Path(sys.argv[2]))
    print(json.dumps({**result, "version": importlib.metadata.version(PACKAGES.get(name, name))}), flush=True)
