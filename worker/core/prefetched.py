"""Short calls that are handed to the call host of a running call before it ends, so that the host need not wait for the
worker. They stay in the worker's queue until the host begins them. Owns which calls wait at which host. Pure.

The host begins a prefetched call only within `BEGIN_S` after it was handed over, and the worker can recall all that
have not begun. So a long call, a crash, a stop or the end of the lease never holds up or repeats another call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from ecloud.model.wire import AttemptOrder

AHEAD_S = 0.1
"""Calls that take this long together wait at one host."""
AHEAD_MOST = 32
"""Number of calls that wait at one host: enough to make the exchange with the worker cheap."""
AHEAD_BYTES = 16 * 1024
"""Limit for the pickles of a prefetched call: many such calls fit in the buffer of a socket."""
RECALL_S = 0.25
"""The worker recalls the calls behind one that runs longer than this."""
BEGIN_S = 1.0
"""A prefetched call begins within this time, or is recalled. The lease must last longer."""
FUNCTIONS_KEPT = 1_000
"""Functions whose run time is remembered, those that were called last."""
NEW_WEIGHT = 0.2
"""Weight of the latest call in the average run time of its function."""

Key = tuple[int, int]


class Waiting(msgspec.Struct, eq=False):
    """Calls that wait at the host of the running call `head`, in order. `is_open`: whether it may get more."""

    head: Key
    order: AttemptOrder
    began_at: float
    keys: deque[Key] = msgspec.field(default_factory=deque)
    is_open: bool = True


class Prefetched:
    """The calls that wait at the hosts of one worker."""

    def __init__(self) -> None:
        self._by_head: dict[Key, Waiting] = {}
        self._of: dict[Key, Waiting] = {}
        self._run_s: dict[str, float] = {}
        """Average run time of a call, by function."""

    def __contains__(self, key: Key) -> bool:
        return key in self._of

    # --- handing over -------------------------------------------------------------------------------

    def on_began(self, key: Key, order: AttemptOrder, now: float) -> None:
        """A call began at a host at which nothing waits."""
        if is_prefetchable(order):
            self._by_head[key] = Waiting(key, order, now)

    def take(self, queue: Mapping[Key, AttemptOrder]) -> Iterator[tuple[Key, AttemptOrder, Key]]:
        """Choose calls from the front of the queue; yield each with the running call behind which it waits from now
        on."""
        hosts = [waiting for waiting in self._by_head.values() if waiting.is_open and self._room(waiting) > 0]
        for key, order in queue.items() if hosts else ():
            if key in self._of:
                continue
            if not is_prefetchable(order):
                return
            alike = [waiting for waiting in hosts if _is_alike(waiting.order, order)]
            if not alike:
                return
            waiting = min(alike, key=lambda waiting: len(waiting.keys))
            waiting.keys.append(key)
            self._of[key] = waiting
            if self._room(waiting) <= 0:
                hosts.remove(waiting)
            yield key, order, waiting.head

    def _room(self, waiting: Waiting) -> int:
        return self._most(waiting) - len(waiting.keys)

    def _most(self, waiting: Waiting) -> int:
        run_s = self._run_s.get(_function(waiting.order))
        return 0 if run_s is None else min(AHEAD_MOST, int(AHEAD_S / max(run_s, 1e-6)))

    # --- begun, recalled, ended --------------------------------------------------------------------

    def on_next(self, key: Key, after: Key, order: AttemptOrder, now: float) -> bool:
        """The host has ended the call `after` and begun this one, which waited behind it. Return whether it should get
        more soon."""
        waiting = self._by_head.pop(after)
        assert waiting.keys[0] == key, "a host began another call than the next one"
        waiting.keys.popleft()
        del self._of[key]
        waiting.head, waiting.order, waiting.began_at, waiting.is_open = key, order, now, True
        self._by_head[key] = waiting
        return len(waiting.keys) <= self._most(waiting) // 2

    def on_recalled(self, keys: Iterable[Key]) -> None:
        """These have not begun and wait in the worker's queue only. Their hosts get nothing more behind the present
        call."""
        for key in keys:
            waiting = self._of.pop(key)
            waiting.keys.remove(key)
            waiting.is_open = False

    def on_ended(self, key: Key) -> None:
        """A running call ended, and no call waits at its host: those that did were recalled, or it began the next."""
        waiting = self._by_head.pop(key, None)
        assert waiting is None or not waiting.keys, "calls wait behind one that has ended"

    def learn(self, order: AttemptOrder, run_s: float) -> None:
        """Count a call that succeeded after `run_s`."""
        function = _function(order)
        known_s = self._run_s.pop(function, run_s)
        self._run_s[function] = known_s + NEW_WEIGHT * (run_s - known_s)
        if len(self._run_s) > FUNCTIONS_KEPT:
            del self._run_s[next(iter(self._run_s))]

    # --- time ---------------------------------------------------------------------------------------

    @property
    def recall_at(self) -> float | None:
        """When calls behind a long one must be recalled."""
        return min((at.began_at + RECALL_S for at in self._by_head.values() if at.is_open and at.keys), default=None)

    def overdue(self, now: float) -> list[Key]:
        """Calls that wait behind one that runs too long: they are to be recalled."""
        late = [at for at in self._by_head.values() if at.is_open and at.keys and now >= at.began_at + RECALL_S]
        for waiting in late:
            waiting.is_open = False
        return [key for waiting in late for key in waiting.keys]

    def check(self, queue: Mapping[Key, object], running: Mapping[Key, object]) -> None:
        """Invariants: what waits at a host is queued, and waits behind a call that runs."""
        assert self._by_head.keys() <= running.keys(), "calls wait behind one that does not run"
        assert self._of.keys() <= queue.keys(), "a prefetched call is not queued"
        waiting = {key: at for at in self._by_head.values() for key in at.keys}
        assert waiting == self._of, "a prefetched call waits in two places"
        assert all(at.head == head for head, at in self._by_head.items())


def is_prefetchable(order: AttemptOrder) -> bool:
    """Whether it is a small call that neither fetches anything of its own nor waits for anything."""
    body = order.body
    call = body.call if body is not None else None
    if call is None or body is None or order.after or order.init or order.after_init or order.asks.get("gpus"):
        return False
    if call.arguments_file or any(value.path for value in order.values):
        return False
    if len(body.requirements) > len(call.shared):
        return False
    size = len(call.code) + len(call.arguments) + len(call.setup) + sum([len(value.value) for value in order.values])
    return size <= AHEAD_BYTES


def _function(order: AttemptOrder) -> str:
    assert order.body is not None
    assert order.body.call is not None
    return order.body.call.function


def _is_alike(head: AttemptOrder, order: AttemptOrder) -> bool:
    """Whether one host can run both, one after the other. Shared files of the first are on this machine already."""
    first, body = head.body, order.body
    assert first is not None
    assert first.call is not None
    assert body is not None
    assert body.call is not None
    return (
        head.run_no == order.run_no
        and first.call.function == body.call.function
        and head.asks == order.asks
        and first.call.shared == body.call.shared
        and first.env == body.env
        and first.container == body.container
        and first.call.python == body.call.python
        and first.call.setup == body.call.setup
        and first.call.project == body.call.project
    )
