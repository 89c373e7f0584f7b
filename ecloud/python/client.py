"""`Client`: a `ClusterExecutor` with the method names of Dask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, as_completed
from typing import Any

from ecloud.python.executor import ClusterExecutor

__all__ = ["Client", "as_completed"]

_value_of = lambda value: value  # noqa: E731 - a lambda travels by value: workers need no ecloud to run it


class Client:
    """Runs functions on a cluster. `address`: an access file; None: `$ECLOUD_ACCESS`, this machine's boss, or a private
    cluster of `n_workers` workers. `options`: those of `ClusterExecutor`.

    Futures are those of `concurrent.futures`: `result`, `done`, `cancel`, `add_done_callback`; and `status` and `key`.
    """

    def __init__(self, address: str | None = None, *, n_workers: int | None = None, **options: Any) -> None:
        self._executor = ClusterExecutor(address, max_workers=n_workers, **options)

    def submit(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        key: str = "",
        resources: dict[str, float] | None = None,
        retries: int | None = None,
        priority: int | None = None,
        **kwargs: Any,
    ) -> Future[Any]:
        """Call `function(*args, **kwargs)`. A future among the arguments is replaced by its value."""
        future: Future[Any] = self._with(key, resources, retries, priority).submit(function, *args, **kwargs)
        return future

    def map(
        self,
        function: Callable[..., Any],
        *iterables: Iterable[Any],
        resources: dict[str, float] | None = None,
        retries: int | None = None,
        priority: int | None = None,
        **kwargs: Any,
    ) -> list[Future[Any]]:
        """Return a future for each set of items. `kwargs` go to each call. For very many short calls
        `ClusterExecutor.map` is faster: it combines several into one."""
        executor = self._with("", resources, retries, priority)
        return [executor.submit(function, *items, **kwargs) for items in zip(*iterables)]

    def gather(self, futures: Any, errors: str = "raise") -> Any:
        """Return the values of futures, in the same nesting of lists, tuples, sets and dicts. `errors`: `raise`, or
        `skip` to leave failed calls out of lists, tuples, sets and dicts."""
        if errors not in ("raise", "skip"):
            raise ValueError(f"errors = {errors!r}: raise or skip")
        return _gathered(futures, errors == "skip")

    def scatter(self, data: Any, broadcast: bool = False) -> Any:
        """Send values to the cluster once. Returns futures for them, in the same list, tuple or dict. `broadcast` is
        accepted and ignored: each worker fetches a value when its first call needs it."""
        if isinstance(data, dict):
            return {key: self._sent(value) for key, value in data.items()}
        if isinstance(data, (list, tuple)):
            return type(data)([self._sent(value) for value in data])
        return self._sent(data)

    def cancel(self, futures: Any) -> None:
        """Cancel calls, including running ones."""
        for future in _futures_in(futures):
            future.cancel()

    def get_executor(self) -> ClusterExecutor:
        """Return the executor behind this client."""
        return self._executor

    def close(self) -> None:
        """Wait for all calls and disconnect. A private cluster ends."""
        self._executor.shutdown()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        self._executor.__exit__(kind, value, trace)

    def __repr__(self) -> str:
        return f"<Client of {self._executor!r}>"

    def _with(self, key: str, resources: dict[str, float] | None, retries: int | None, priority: int | None) -> Any:
        named = {"resources": resources, "retries": retries, "priority": priority}
        options = {name: value for name, value in named.items() if value is not None}
        return self._executor.options(key, **options) if key or options else self._executor

    def _sent(self, value: Any) -> Future[Any]:
        return self._executor.submit(_value_of, value)


def _gathered(futures: Any, skip: bool) -> Any:
    if isinstance(futures, Future):
        return futures.result()
    if isinstance(futures, dict):
        return {key: _gathered(item, skip) for key, item in futures.items() if not (skip and _has_failed(item))}
    if isinstance(futures, (list, tuple, set, frozenset)):
        return type(futures)([_gathered(item, skip) for item in futures if not (skip and _has_failed(item))])
    if isinstance(futures, Iterator):
        return _gathered(list(futures), skip)
    return futures


def _has_failed(item: Any) -> bool:
    return isinstance(item, Future) and (item.exception() if not item.cancelled() else item) is not None


def _futures_in(futures: Any) -> Iterator[Future[Any]]:
    if isinstance(futures, Future):
        yield futures
    elif isinstance(futures, dict):
        for item in futures.values():
            yield from _futures_in(item)
    elif isinstance(futures, Iterable):
        for item in futures:
            yield from _futures_in(item)
