"""Chained attempts at a worker: which wait for which attempts, and which may start when these have succeeded.

Owns the chained attempts that may not start yet. An attempt succeeds here when its commands succeeded and its results
are complete on this worker. Knows no resources: attempts that may start join the queue of `attempts`.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ecloud.model.wire import AttemptOrder
from worker.core.events import ResultsComplete

Key = tuple[int, int]


class Follower(msgspec.Struct, eq=False):
    """A chained attempt. `open`: attempts that have not succeeded yet; `own`: requirements that finished ones have
    made."""

    order: AttemptOrder
    open: set[Key]
    own: dict[str, Key] = {}


class Followers:
    """Chained attempts by key, from order to start."""

    def __init__(self) -> None:
        self.waiting: dict[Key, Follower] = {}
        self._ready: dict[Key, Follower] = {}
        """Followers that may start, until they do: they still need the results of the others."""
        self._of: dict[Key, dict[Key, None]] = {}
        """By attempt: its followers, and those that need its results."""

    def __contains__(self, key: Key) -> bool:
        return key in self.waiting

    def add(self, key: Key, order: AttemptOrder) -> None:
        """Add a chained attempt. For those of `order.after` that have succeeded, call `on_success` next."""
        self.waiting[key] = Follower(order, {(name.task_no, name.number) for name in order.after})
        for earlier in self.waiting[key].open:
            self._of.setdefault(earlier, {})[key] = None

    def is_followed(self, key: Key) -> bool:
        """Whether others wait for this attempt, or need its results."""
        return key in self._of

    def on_success(self, done: ResultsComplete) -> tuple[list[tuple[Key, AttemptOrder]], list[Key]]:
        """Record the success of an attempt. Returns its followers that may start now, and those to give back because
        they require results that only the datastore can provide, after publication."""
        earlier = (done.task_no, done.number)
        ready, back = [], []
        for key in list(self._of.get(earlier, ())):
            follower = self.waiting.get(key)
            if follower is None or earlier not in follower.open:
                continue
            assert follower.order.body is not None
            needs = False
            for path in {wanted.path for wanted in follower.order.body.requirements}:
                name = _plain(path)
                if name in done.files:
                    follower.own = {**follower.own, path: earlier}
                    needs = True
                elif _overlaps(name, done):
                    back.append(key)
                    break
            follower.open.discard(earlier)
            if not needs:
                self._let_go(earlier, key)
            if not follower.open and key not in back:
                self._ready[key] = self.waiting.pop(key)
                ready.append((key, follower.order))
        return ready, back

    def take(self, key: Key) -> dict[str, Key]:
        """Remove an attempt that starts. Returns which attempt made which of its requirements."""
        follower = self._ready.pop(key, None)
        if follower is None:
            return {}
        for earlier in set(follower.own.values()):
            self._let_go(earlier, key)
        return follower.own

    def remove(self, key: Key) -> AttemptOrder | None:
        """Remove an attempt that is given back. Returns its order if it waited here for others."""
        follower = self.waiting.pop(key, None)
        ready = self._ready.pop(key, None)
        for one in (follower, ready):
            if one is not None:
                for earlier in {*one.open, *one.own.values()}:
                    self._let_go(earlier, key)
        return None if follower is None else follower.order

    def orders(self) -> Iterator[AttemptOrder]:
        """Orders of attempts that wait for others."""
        return (follower.order for follower in self.waiting.values())

    def _let_go(self, earlier: Key, key: Key) -> None:
        of = self._of.get(earlier)
        if of is not None:
            of.pop(key, None)
            if not of:
                del self._of[earlier]

    def check(self) -> None:
        """Invariants: each follower waits for something; each followed attempt has a follower."""
        for key, follower in self.waiting.items():
            assert follower.open, f"{key} waits for nothing"
            for earlier in (*follower.open, *follower.own.values()):
                assert key in self._of[earlier], f"{key} waits for {earlier}, which does not notify it"
        for earlier, keys in self._of.items():
            assert keys, f"{earlier} has no follower"
            for key in keys:
                assert key in self.waiting or key in self._ready, f"{key} follows {earlier} no more"


def _plain(path: str) -> str:
    return "/".join([part for part in path.split("/") if part not in ("", ".")])


def _overlaps(path: str, done: ResultsComplete) -> bool:
    """Whether the required path contains a result, lies within one, or is one that is not a file."""
    if path in done.others:
        return True
    return any(
        made.startswith(path + "/") or path.startswith(made + "/")
        for names in (done.files, done.others)
        for made in names
    )
