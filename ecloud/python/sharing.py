"""Large objects that many calls have among their arguments: moved once to each worker, unpickled once in each
interpreter. Calls must not change them.

An object that is shared automatically and that the program may change is read again for each call: its name is the hash
of its content, so that each call gets the content of its moment, and equal content is stored once.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections import OrderedDict
from typing import Any

import cloudpickle

from ecloud.python.objects import Objects
from ecloud.python.payload import LARGE_BYTES, PROTOCOL, ForeignFuture

SEEN_MOST = 256
"""Large objects that were passed once and are remembered."""
_SIZED = (bytes, bytearray, str)


class Shared:
    """Stands for a shared object among the arguments of calls, as `ClusterExecutor.share` gives it."""

    def __init__(self, name: str, owner: Sharing) -> None:
        self.name = name
        self.owner = weakref.ref(owner)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a shared object is an argument of its executor's calls, and of nothing else")


class Sharing:
    """The shared objects of one executor."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._names: OrderedDict[int, tuple[Any, str]] = OrderedDict()
        """By `id`: (the object or a reference to it, its name; empty if its content may change)."""
        self._seen: OrderedDict[int, Any] = OrderedDict()
        """Large objects that were passed once."""

    def share(self, item: Any) -> Shared:
        """Pickle it and put it into the datastore. Raises `TypeError`, `DatastoreAway`."""
        return Shared(self._name(item), self)

    def name_of(self, item: Any) -> str | None:
        """The name of a shared object; None for one that is not. Raises `ForeignFuture`."""
        if isinstance(item, Shared):
            if item.owner() is not self:
                raise ForeignFuture("the argument was shared by another executor: share it with this one")
            return item.name
        if _size(item) < LARGE_BYTES:
            return None
        known = self._names.get(id(item))
        if known is not None and _is_same(known[0], item):
            return known[1] or self._name(item)
        if _is_same(self._seen.pop(id(item), None), item):
            return self._name(item)
        self._seen[id(item)] = _held(item)
        while len(self._seen) > SEEN_MOST:
            self._seen.popitem(last=False)
        return None

    def _name(self, item: Any) -> str:
        buffers: list[Any] = []
        try:
            data = cloudpickle.dumps(item, protocol=PROTOCOL, buffer_callback=buffers.append)
        except Exception as error:
            raise TypeError(f"the object to share (of type {type(item).__name__}) cannot be pickled: {error}") from None
        parts = [data, *(buffer.raw() for buffer in buffers)]
        head = json.dumps([memoryview(part).nbytes for part in parts]).encode() + b"\n"
        digest = hashlib.sha256(head)
        for part in parts:
            digest.update(part)
        name = self._objects.put([head, *parts], digest.hexdigest())
        if _size(item) >= LARGE_BYTES:
            self._names[id(item)] = (_held(item), name if _is_constant(item) else "")
        return name


def _size(item: Any) -> int:
    if isinstance(item, _SIZED):
        return len(item)
    size = getattr(item, "nbytes", 0) if hasattr(type(item), "nbytes") else 0
    return size if isinstance(size, int) else 0


def _is_constant(item: Any) -> bool:
    """Whether its content cannot change: bytes, text, an array that is read-only and no view of another."""
    flags = getattr(item, "flags", None)
    is_frozen = not getattr(flags, "writeable", True) and getattr(flags, "owndata", False)
    return isinstance(item, (bytes, str)) or bool(is_frozen)


def _held(item: Any) -> Any:
    """A reference that tells whether it is the same object still; the object itself where there can be none."""
    try:
        return weakref.ref(item)
    except TypeError:
        return item


def _is_same(held: Any, item: Any) -> bool:
    return held is item or (isinstance(held, weakref.ref) and held() is item)
