"""Futures of calls. All futures of an executor share one condition: a million of them fit in memory.

A future keeps the pickled value, or its location. `result()` unpickles it in the calling thread, so that no payload can
harm the thread that receives messages.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, PENDING, RUNNING
from threading import Condition
from typing import Any, Protocol

from datastore.problem import Problem
from ecloud.model.tasks import ENDED, TaskState
from ecloud.model.wire import CallEnded
from ecloud.python.payload import failure_of, value_of

__all__ = ["CallFuture", "CancelledError"]

KEPT_BYTES = 1024
"""A future keeps a pickled value of at most this size. A larger one is fetched on request."""
_NOTHING = object()
_SUCCEEDED = TaskState.SUCCEEDED.value


class Exchange(Protocol):
    """What the futures of an executor share: how they reach the boss. `condition`: notified when calls end."""

    condition: Condition
    failed: dict[str, CallFuture]
    """The calls that failed last, by id."""
    fetch: Callable[[CallEnded], bytes]
    """Return the pickled value of a call that succeeded. Raises `Problem`."""

    def cancel(self, future: CallFuture) -> None:
        """Cancel the call on the cluster."""

    def require_own_process(self) -> None:
        """Raise `RuntimeError` in a process that this one forked: it learns of no end."""

    def look_up(self, ended: CallEnded) -> CallEnded:
        """Return the same call with its value, if that is small. Raises `Problem`."""


class CallFuture(Future[Any]):
    """The future of one call. `id`: the id of its task."""

    __slots__ = (
        "_call",
        "_callbacks",
        "_ended",
        "_exception_here",
        "_is_listed",
        "_key",
        "_link",
        "_many",
        "_state",
        "_value",
        "_waiting",
    )  # fmt: skip

    def __init__(self, link: Exchange, id: str, many: bool = False) -> None:
        # The base class's __init__ would create a lock for each future.
        self._link = link
        self._call = id
        self._many = many
        self._state = PENDING
        self._ended: CallEnded | None = None
        self._is_listed = False
        self._value: Any = _NOTHING
        self._exception_here: BaseException | None = None
        self._waiting: list[Any] | None = None
        self._callbacks: list[Callable[[Future[Any]], object]] | None = None

    @property
    def id(self) -> str:
        """The id of its task in the run."""
        return self._call

    @property
    def _condition(self) -> Condition:  # type: ignore[override]
        return self._link.condition

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        if self._waiting is None:
            self._waiting = []
        return self._waiting

    @property
    def _done_callbacks(self) -> list[Callable[[Future[Any]], object]]:
        if self._callbacks is None:
            self._callbacks = []
        return self._callbacks

    @property
    def key(self) -> str:
        """The same id, under Dask's name for it."""
        return self._call

    @property
    def status(self) -> str:
        """`pending`, `finished`, `error` or `cancelled`, in Dask's terms."""
        if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
            return "cancelled"
        if self._state != FINISHED:
            return "pending"
        return "error" if self._exception_here is not None or self._is_failed else "finished"

    @property
    def worker(self) -> str:
        """The worker that ran the call; empty before its end, or if no worker ran it."""
        return self._ended.worker if self._ended is not None else ""

    def __repr__(self) -> str:
        return f"<CallFuture {self._call} {self._state.lower()}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a future is an argument of its executor's calls: elsewhere pass its result()")

    # --- for users ----------------------------------------------------------------------------------

    def cancel(self) -> bool:
        """Cancel the call, even while it runs. Return False if it has ended."""
        self._link.require_own_process()
        with self._condition:
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
                return True
            if self._state == FINISHED:
                return False
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiting or ():
                waiter.add_cancelled(self)
            self._condition.notify_all()
        self._link.cancel(self)
        self._invoke_callbacks()
        return True

    def result(self, timeout: float | None = None) -> Any:
        """Return the value, or raise the exception of the call. Raises `TimeoutError`, `CancelledError`."""
        self._wait(timeout)
        if self._exception_here is not None or self._is_failed:
            raise self._failure()
        return self._fetched_value()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception of the call, or None. Raises `TimeoutError`, `CancelledError`."""
        self._wait(timeout)
        return self._failure() if self._exception_here is not None or self._is_failed else None

    def _wait(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._state in (PENDING, RUNNING):
            self._link.require_own_process()
        with self._condition:
            while self._state in (PENDING, RUNNING):
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    raise TimeoutError(f"call {self._call} has not ended")
                self._condition.wait(left_s)
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
                raise CancelledError

    @property
    def _is_failed(self) -> bool:
        return self._ended is not None and self._ended.state != TaskState.SUCCEEDED

    def _failure(self) -> BaseException:
        if self._exception_here is None:
            ended = self._ended
            assert ended is not None
            if self._is_listed:
                ended, self._is_listed = self._link.look_up(ended), False
            note = f"call {ended.id}, attempt {ended.number}" + (f", worker {ended.worker}" if ended.worker else "")
            data = ended.value
            if self._many and data and ended.exit_code == 1:
                data = value_of(data, ended.id)[1]
            error = failure_of(data, ended.error or f"call {ended.id} {ended.state}", ended.cause, note)
            if ended.state == TaskState.ABORTED:
                error.__cause__ = self._cause_of(ended.error)
            self._exception_here = error
        return self._exception_here

    def _cause_of(self, reason: str) -> BaseException | None:
        """The exception of the call whose failure is the reason that this one did not run, if this program has it."""
        named = re.fullmatch("task (.+) failed", reason)
        failed = self._link.failed.get(named[1]) if named is not None else None
        with contextlib.suppress(Problem):  # it is of an attached run, and the executor is shut down
            return failed.exception() if failed is not None else None
        return None

    def _fetched_value(self) -> Any:
        value = self._value() if isinstance(self._value, weakref.ref) else self._value
        if value is _NOTHING or (value is None and isinstance(self._value, weakref.ref)):
            assert self._ended is not None
            data = self._ended.value or self._link.fetch(self._ended)
            value = value_of(data, self._ended.id)
            if self._many:
                value = value[0]
            self._value = value if len(data) <= KEPT_BYTES else _weakly(value)
        return value

    def take(self) -> Any:
        """The value of a call that succeeded, which is not kept here."""
        value, self._value = self._fetched_value(), _NOTHING
        return value

    @classmethod
    def of_listed(cls, link: Exchange, call: CallEnded) -> CallFuture:
        """Of a call that was pushed before, as the boss lists it: without its value."""
        future = cls(link, call.id, call.many)
        if call.state in ENDED:
            future._is_listed = True
            future.on_ended(call)
        return future

    def values_before_failure(self) -> list[Any]:
        """Of several calls that were sent as one: the values of those before the one that failed."""
        ended = self._ended
        if ended is None or not ended.value:
            return []
        return list(value_of(ended.value, ended.id)[0])

    # --- called by the link -------------------------------------------------------------------------

    def on_ended(self, ended: CallEnded) -> bool:
        """Record the end of the call; return False if it was known. The caller holds the condition and notifies it."""
        if self._state not in (PENDING, RUNNING):
            return False
        if ended.state == TaskState.CANCELLED:
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiting or ():
                waiter.add_cancelled(self)
            return True
        self._ended = ended if self._many or ended.state != TaskState.SUCCEEDED else self._small(ended)
        self._state = FINISHED
        for waiter in self._waiting or ():
            if self._is_failed:
                waiter.add_exception(self)
            else:
                waiter.add_result(self)
        return True

    def _small(self, ended: CallEnded) -> CallEnded:
        """What a success needs, with shared texts: a program may hold a million of them."""
        worker = sys.intern(ended.worker)
        return CallEnded(
            ended.task_no, self._call, _SUCCEEDED, ended.number, worker, value=ended.value, path=ended.path
        )

    def fail(self, error: BaseException) -> None:
        """Fail the future: the outcome of the call can no longer be learned, or the boss never accepted it."""
        with self._condition:
            if self._state not in (PENDING, RUNNING):
                return
            self._exception_here = error
            self._state = FINISHED
            for waiter in self._waiting or ():
                waiter.add_exception(self)
            self._condition.notify_all()
        self._invoke_callbacks()

    def on_running(self) -> None:
        """Record that a worker runs the call."""
        if self._state == PENDING:
            self._state = RUNNING

    def _invoke_callbacks(self) -> None:
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            try:
                callback(self)
            except Exception:
                LOGGER.exception("exception calling callback for %r", self)


def _weakly(value: Any) -> Any:
    """Return a weak reference, so that a large value is freed when the user no longer holds it; or a marker for "not
    kept" if the value has no weak references."""
    try:
        return weakref.ref(value)
    except TypeError:
        return _NOTHING  # unpickled again on the next request
