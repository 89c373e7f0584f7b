"""joblib on a cluster. Importing this module registers the backend `ecloud`:

    import ecloud.joblib

    with joblib.parallel_config(backend="ecloud"):
        GridSearchCV(model, grid, n_jobs=-1).fit(X, y)

Options of the backend are those of `ClusterExecutor`, or `executor`, an existing one. `Parallel` calls with equal
options share an executor, which ends with the program.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from joblib import register_parallel_backend
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase

from ecloud.python.executor import ClusterExecutor

_executors: dict[str, ClusterExecutor] = {}
_call = lambda batch: batch()  # noqa: E731 - a lambda is pickled by value, so workers do not need ecloud


class ClusterBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs joblib's batches as calls of a run. Nested parallel calls use threads of their worker."""

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        executor: ClusterExecutor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._executor = executor
        self._options = options
        self._pending: set[Future[Any]] = set()
        self._callbacks: ThreadPoolExecutor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return the number of concurrent batches: `n_jobs`; if negative, the number of workers minus `-1 - n_jobs`, at
        least 2: with 1, joblib would run all in this program, although a cluster starts workers when calls wait."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is not None and n_jobs > 0:
            return n_jobs
        executor = self._connected()
        if not executor.workers:  # the boss sends the number with the progress of calls
            executor.submit(int).result()
        return max(2, executor.workers + 1 + (-1 if n_jobs is None else n_jobs))

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Called by joblib before a `Parallel` call."""
        self.parallel = parallel
        # joblib's callback unpickles each result; a separate thread calls it, so that the connection is not blocked.
        self._callbacks = ThreadPoolExecutor(1, "ecloud-joblib")
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], object] | None = None) -> Future[Any]:
        """Called by joblib to run a batch."""
        future = self._connected().submit(_call, func)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        if callback is not None:
            future.add_done_callback(lambda done: self._call_back(callback, done))
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Called by joblib for the value of a batch. Raises what the batch raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Called by joblib after a batch failed: cancel the others."""
        for future in tuple(self._pending):
            future.cancel()

    def terminate(self) -> None:
        """Called by joblib after a `Parallel` call."""
        callbacks, self._callbacks = self._callbacks, None
        if callbacks is not None:
            callbacks.shutdown(wait=False)
        self.reset_batch_stats()

    def _call_back(self, callback: Callable[[Any], object], done: Future[Any]) -> None:
        callbacks = self._callbacks
        if callbacks is not None:
            callbacks.submit(callback, done)

    def _connected(self) -> ClusterExecutor:
        if self._executor is None:
            name = repr(sorted(self._options.items()))
            if name not in _executors:
                _executors[name] = ClusterExecutor(**self._options)
            self._executor = _executors[name]
        return self._executor


register_parallel_backend("ecloud", ClusterBackend)
