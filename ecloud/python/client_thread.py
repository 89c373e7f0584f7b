"""`ClientThread`: jobs with ids and a callback for each result, as cluster-workers has them.

client = ClientThread(callback)
client.start()
client.submit(jobid, function, *args)
client.wait()
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ecloud.cli import app
from ecloud.config.secrets import AccessFile
from ecloud.config.settings import load_settings
from ecloud.python.executor import ClusterExecutor

log = logging.getLogger("ecloud.python")

LOCAL = ("", "localhost", "127.0.0.1", "::1")
"""Names of this machine: they select its cluster, or a private one if no boss runs here."""

Callback = Callable[[Any, Any], object]
"""Called with the job's id and its result."""


class ClientThread(threading.Thread):
    """Runs jobs on a cluster and calls `callback(jobid, result)` for each, one at a time, on this thread.

    `host`: the host of the boss, or an access file. A host other than this one needs an access file: `$ECLOUD_ACCESS`,
    or the one in ECLOUD's home if both machines share it. `port` is accepted and ignored: the access file has it.
    `executor`: use this one instead. `start` raises `Problem`, `PartAway`.
    """

    def __init__(
        self,
        callback: Callback,
        host: str = "localhost",
        port: int | None = None,
        *,
        executor: ClusterExecutor | None = None,
    ) -> None:
        super().__init__(name="ecloud-client", daemon=True)
        self.callback = callback
        self._host = host
        self._executor = executor
        self._owns_executor = executor is None
        self._ended: queue.SimpleQueue[tuple[Any, Future[Any]] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._active = 0
        self._error: BaseException | None = None

    def start(self) -> None:
        """Connect, and start to deliver results. Raises `RuntimeError` after `stop`."""
        if self.ident is not None and not self.is_alive():
            raise RuntimeError("this ClientThread was stopped and takes no more jobs: make another one")
        if self._executor is None:
            self._executor = ClusterExecutor(access_of(self._host))
        super().start()

    def submit(self, jobid: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Run `function(*args, **kwargs)` as job `jobid`. Starts the thread if necessary. Raises as
        `ClusterExecutor.submit`."""
        if not self.is_alive():
            self.start()
        assert self._executor is not None
        future = self._executor.submit(function, *args, **kwargs)
        with self._changed:
            self._active += 1
        future.add_done_callback(lambda done: self._ended.put((jobid, done)))

    def wait(self) -> None:
        """Wait until all jobs have ended and their callbacks have returned. Raises the first exception of a job or a
        callback; the other jobs continue, and a further `wait` waits for them."""
        with self._changed:
            self._changed.wait_for(lambda: not self._active or self._error is not None)
            error, self._error = self._error, None
        if error is not None:
            raise error

    def stop(self) -> None:
        """Deliver the results of jobs that have ended, and end the thread. The other jobs end without a callback, at
        the latest before the program ends; then a private cluster ends, too."""
        if self.is_alive():
            self._ended.put(None)
            self.join()
        if self._executor is not None and self._owns_executor:
            self._executor.shutdown(wait=False)

    def run(self) -> None:
        """Deliver results. Runs on the thread."""
        while (item := self._ended.get()) is not None:
            error = self._deliver(*item)
            with self._changed:
                self._active -= 1
                if error is not None and self._error is None:
                    self._error = error
                if error is not None or not self._active:
                    self._changed.notify_all()

    def _deliver(self, jobid: Any, done: Future[Any]) -> BaseException | None:
        try:
            self.callback(jobid, done.result())
        except BaseException as error:
            if not done.cancelled() and done.exception() is None:
                log.exception("the callback for job %s failed", jobid)
            return error
        return None


def access_of(host: str) -> AccessFile | Path | None:
    """Return the access to the boss on `host`, which may also be the path of an access file. None: the default cluster.
    Raises `Problem` if there is no access file."""
    if Path(host).expanduser().is_file():
        return Path(host).expanduser()
    if host in (*LOCAL, socket.gethostname(), socket.getfqdn()):
        return None
    return app.find_access(load_settings())
